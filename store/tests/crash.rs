//! A daemon that is killed at any moment: what it called valid is there, and the next one goes on.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bstr::BStr;
use fruix_drv::{HashAlgo, StoreDir};
use fruix_protocol::nar::Writer;
use fruix_store::{Config, Store, hash_path};

const ROOT: &str = "FRUIX_TEST_CRASH_ROOT";
const ROUND: &str = "FRUIX_TEST_CRASH_ROUND";

fn open(root: &Path) -> Store {
    let store_dir = StoreDir::new(root.join("store").to_str().unwrap());
    Store::open(Config { reserve_space: 0, durable: false, ..Config::new(store_dir, root.join("state")) }).unwrap()
}

/// Adds things, and says which, until it is killed.
#[test]
fn adder() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let round = std::env::var(ROUND).unwrap();
    let store = open(Path::new(&root));
    let roots = store.temp_roots();
    println!("\nbegin");
    for i in 0.. {
        let text = format!("text {i} of {round}");
        println!("added {}", store.add_text(&roots, "text", text.as_bytes(), &BTreeSet::new()).unwrap());
        let mut writer = Writer::new(Vec::new());
        writer.directory().unwrap();
        for name in ["a", "b", "c"] {
            writer.entry(BStr::new(name)).unwrap();
            writer.file(true, text.len() as u64).unwrap();
            writer.data(text.as_bytes()).unwrap();
        }
        writer.end_directory().unwrap();
        let archive = writer.finish().unwrap();
        println!("added {}", store.add_from_nar(&roots, "tree", true, HashAlgo::Sha256, &mut &*archive).unwrap());
    }
}

#[test]
fn killed_daemons_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..25_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "adder", "--nocapture"])
            .env(ROOT, &root)
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "begin"));
        std::thread::sleep(Duration::from_micros(round * round * 57));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.filter_map(|line| line.strip_prefix("added ").map(str::to_owned)));

        let store = open(&root);
        let valid = store.all_valid().unwrap();
        let printed: BTreeSet<String> = valid.iter().map(ToString::to_string).collect();
        assert!(acknowledged.is_subset(&printed), "{:?}", acknowledged.difference(&printed));
        for path in &valid {
            let info = store.path_info(path).unwrap();
            assert_eq!(hash_path(&store.real_path(path)).unwrap(), (info.nar_hash, info.nar_size), "{path}");
        }
        // The dead one's staging directory is empty again, and it is the same.
        assert_eq!(std::fs::read_dir(store.real_path(store.staging_path())).unwrap().count(), 1);
        let staging = std::fs::read_dir(root.join("store")).unwrap();
        assert_eq!(staging.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("-fruixd-staging")).count(), 1);
    }
    assert!(!acknowledged.is_empty());
}
