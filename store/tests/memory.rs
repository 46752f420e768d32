//! Memory that adding takes; in a program of its own, since it is measured for the whole process.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{self, Read};

use bstr::BStr;
use fruix_drv::{HashAlgo, StoreDir};
use fruix_protocol::nar::Writer;
use fruix_store::{Config, Store};

/// The bytes that this process has ever had resident, as far as the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn adding_takes_the_same_memory_whatever_the_size() {
    const FILE: u64 = 300 << 20;
    const FILES: u32 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let store_dir = StoreDir::new(root.join("store").to_str().unwrap());
    let config = Config { durable: false, reserve_space: 0, ..Config::new(store_dir, root.join("state")) };
    let store = Store::open(config).unwrap();
    let roots = store.temp_roots();
    let Some(before) = peak_memory() else { return };

    // The archive of a large file, of which only the frame is made here: what comes before the size, and after the contents.
    let mut frame = Writer::new(Vec::new());
    frame.file(false, 0).unwrap();
    let frame = frame.finish().unwrap();
    let (head, tail) = frame.split_at(frame.len() - 16);
    let head = [&head[..head.len() - 8], &FILE.to_le_bytes()].concat();
    for recursive in [true, false] {
        let mut source = head.chain(io::repeat(7).take(FILE)).chain(tail);
        let path = store.add_from_nar(&roots, "big", recursive, HashAlgo::Sha256, &mut source).unwrap();
        assert_eq!(std::fs::metadata(store.real_path(&path)).unwrap().len(), FILE);
    }

    // A directory beyond what is held in a file, and of many files.
    let (mut reader, writer) = io::pipe().unwrap();
    let path = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut writer = Writer::new(io::BufWriter::with_capacity(1 << 16, writer));
            writer.directory().unwrap();
            writer.entry(BStr::new("big")).unwrap();
            writer.file(false, FILE).unwrap();
            for _ in 0..FILE >> 16 {
                writer.data(&[9; 1 << 16]).unwrap();
            }
            for i in 0..FILES {
                writer.entry(BStr::new(&format!("file-{i:08}"))).unwrap();
                writer.file(i % 2 == 0, 4).unwrap();
                writer.data(&i.to_le_bytes()).unwrap();
            }
            writer.end_directory().unwrap();
            writer.finish().unwrap();
        });
        store.add_from_nar(&roots, "tree", true, HashAlgo::Sha256, &mut reader).unwrap()
    });
    assert_eq!(std::fs::read_dir(store.real_path(&path)).unwrap().count(), FILES as usize + 1);
    let info = store.path_info(&path).unwrap();
    assert_eq!(fruix_store::hash_path(&store.real_path(&path)).unwrap(), (info.nar_hash, info.nar_size));

    let grown = peak_memory().unwrap().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
}
