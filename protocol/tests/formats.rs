//! What is written is read back, to the last byte; what is hostile costs nothing; the page of the protocol is current.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::Read;

use common::{archive, context};
use fruix_protocol::{limits, nar, ops::*, sample::Samples, wire::*};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Node {
    File(bool, Vec<u8>),
    Symlink(Vec<u8>),
    Directory(std::collections::BTreeMap<Vec<u8>, Node>),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..12).prop_filter("no name", |name| nar::valid_name(name))
}

fn nodes() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(x, data)| Node::File(x, data)),
        prop::collection::vec(1_u8.., 1..20).prop_map(Node::Symlink),
    ];
    leaf.prop_recursive(5, 40, 5, |node| prop::collection::btree_map(names(), node, 0..5).prop_map(Node::Directory))
}

fn write(node: &Node, out: &mut nar::Writer<Vec<u8>>) -> Result<(), nar::Error> {
    match node {
        Node::File(executable, data) => {
            out.file(*executable, data.len() as u64)?;
            data.chunks(7).try_for_each(|chunk| out.data(chunk))
        }
        Node::Symlink(target) => out.symlink(target.as_slice().into()),
        Node::Directory(entries) => {
            out.directory()?;
            for (name, node) in entries {
                out.entry(name.as_slice().into())?;
                write(node, out)?;
            }
            out.end_directory()
        }
    }
}

/// Copies an archive event by event; also reads a file's data or lets it be skipped.
fn copy(reader: &mut nar::Reader<impl Read>) -> Result<Vec<u8>, nar::Error> {
    let mut out = nar::Writer::new(Vec::new());
    let mut buf = [0; 11];
    while let Some(event) = reader.next()? {
        match event {
            nar::Event::Directory => out.directory()?,
            nar::Event::Entry(name) => out.entry(name.as_ref())?,
            nar::Event::EndDirectory => out.end_directory()?,
            nar::Event::Symlink { target } => out.symlink(target.as_ref())?,
            nar::Event::File { executable, size } => {
                out.file(executable, size)?;
                loop {
                    let count = reader.read_data(&mut buf)?;
                    if count == 0 {
                        break;
                    }
                    out.data(&buf[..count])?;
                }
            }
        }
    }
    out.finish()
}

proptest! {
    #[test]
    fn archives_are_copied_byte_for_byte(node in nodes(), rest in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut out = nar::Writer::new(Vec::new());
        write(&node, &mut out).unwrap();
        let bytes = out.finish().unwrap();
        let mut stream = [bytes.as_slice(), &rest].concat();
        let mut reader = nar::Reader::new(stream.as_slice());
        prop_assert_eq!(copy(&mut reader).unwrap(), bytes.clone());
        prop_assert_eq!(reader.position(), bytes.len() as u64);
        prop_assert_eq!(reader.into_inner(), rest.as_slice());
        // No prefix is an archive, and none makes the reader fail otherwise than by ending early.
        stream.truncate(bytes.len() - 1);
        let cut = nar::Reader::new(stream.as_slice()).skip_to_end();
        prop_assert!(matches!(cut, Err(nar::Error::Truncated { .. })), "cut");
    }

    #[test]
    fn a_changed_archive_is_refused_or_is_another(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = small_archive();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        if let Ok(copied) = copy(&mut nar::Reader::new(bytes.as_slice())) {
            // The format is injective: what is accepted is written the same way.
            prop_assert_eq!(copied.as_slice(), &bytes[..copied.len()]);
        }
    }

    #[test]
    fn messages_are_read_back(seed in any::<u64>(), row in 0..TABLE.len(), old in any::<bool>()) {
        let info = TABLE[row];
        let version = if old { Version::GUIX_1_99 } else { Version::GUIX_1_100 };
        for store_dir in ["/frx/store", "/gnu/store"] {
            let context = context(store_dir, version);
            let mut samples = Samples::new(seed, context.store_dir.clone());
            let request = info.operation.sample_request(&mut samples);
            let reply = info.operation.sample_reply(&mut samples);
            let mut bytes = Vec::new();
            request.encode(&mut Sink::new(&mut bytes, &context));
            reply.encode(&mut Sink::new(&mut bytes, &context));
            prop_assert_eq!(bytes.len() % 8, 0);
            let mut rest = bytes.as_slice();
            let (request2, reply2) = now(async {
                let mut source = Source::request(&mut rest, &context);
                let request = Request::decode(info.operation, &mut source).await?;
                Ok((request, Reply::decode(info.operation, &mut source).await?))
            }).unwrap();
            prop_assert_eq!((request2, reply2), (request.clone(), reply));
            prop_assert!(rest.is_empty());
            // Whatever is cut off is missed.
            bytes.clear();
            request.encode(&mut Sink::new(&mut bytes, &context));
            if let Some(cut) = bytes.len().checked_sub(1) {
                let mut cut = &bytes[..cut];
                let result = now(async {
                    Request::decode(info.operation, &mut Source::request(&mut cut, &context)).await
                });
                prop_assert!(matches!(result, Err(Error::Truncated { .. })), "cut");
            }
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), row in 0..TABLE.len()) {
        let context = context("/frx/store", Version::GUIX_1_100);
        let mut rest = bytes.as_slice();
        let _ = now(async {
            Request::decode(TABLE[row].operation, &mut Source::request(&mut rest, &context)).await
        });
        let _ = nar::Reader::new(bytes.as_slice()).skip_to_end();
    }
}

fn small_archive() -> Vec<u8> {
    let mut out = nar::Writer::new(Vec::new());
    out.directory().unwrap();
    for (name, executable, data) in [("a", false, "x"), ("b", true, "12345678")] {
        out.entry(name.into()).unwrap();
        out.file(executable, data.len() as u64).unwrap();
        out.data(data.as_bytes()).unwrap();
    }
    out.entry("c".into()).unwrap();
    out.symlink("a".into()).unwrap();
    out.end_directory().unwrap();
    out.finish().unwrap()
}

/// Tokens of an archive; a number is a bare length.
fn tokens(tokens: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for token in tokens {
        put_string(&mut out, token.as_bytes());
    }
    out
}

#[test]
fn hostile_archives_are_refused() {
    let dir = ["nix-archive-1", "(", "type", "directory"];
    let file = ["(", "type", "regular", "contents", "", ")", ")"];
    let with = |names: &[&str]| {
        let mut all = dir.to_vec();
        for name in names {
            all.extend(["entry", "(", "name", name, "node"]);
            all.extend(file);
        }
        all.push(")");
        tokens(&all)
    };
    let long = "x".repeat(256);
    let read = |bytes: &[u8]| nar::Reader::new(bytes).skip_to_end();
    read(&with(&["a", "b"])).unwrap();
    for name in ["", ".", "..", "a/b", "/", "a\0"] {
        assert!(matches!(read(&with(&[name])), Err(nar::Error::Name { .. })), "{name:?}");
    }
    assert!(matches!(read(&with(&[&long])), Err(nar::Error::TooLong { .. })));
    read(&with(&[&long[1..]])).unwrap();
    for names in [["a", "a"], ["b", "a"], ["a", "B"]] {
        assert!(matches!(read(&with(&names)), Err(nar::Error::Order { .. })), "{names:?}");
    }
    let link = |target: &str| read(&tokens(&["nix-archive-1", "(", "type", "symlink", "target", target, ")"]));
    link(&"x".repeat(4095)).unwrap();
    assert!(matches!(link(&"x".repeat(4096)), Err(nar::Error::TooLong { .. })));
    assert!(matches!(link(""), Err(nar::Error::Target { .. })));
    assert!(matches!(link("a\0b"), Err(nar::Error::Target { .. })));
    // Behind such a link the archive goes on, and is read to its end and not further.
    let entry = |name, target| ["entry", "(", "name", name, "node", "(", "type", "symlink", "target", target, ")", ")"];
    let both = [&["nix-archive-1", "(", "type", "directory"][..], &entry("a", ""), &entry("b", ""), &[")"]].concat();
    let both = [tokens(&both), b"more".to_vec()].concat();
    let mut reader = nar::Reader::new(&both[..]);
    assert!(matches!(reader.skip_to_end(), Err(error @ nar::Error::Target { .. }) if error.goes_on()));
    assert_eq!(reader.into_inner(), b"more");

    for depth in [limits::NAR_DEPTH, limits::NAR_DEPTH + 1, 100_000] {
        let mut all = vec!["nix-archive-1"];
        for _ in 1..depth {
            all.extend(["(", "type", "directory", "entry", "(", "name", "d", "node"]);
        }
        all.extend(&file[..6]);
        for _ in 1..depth {
            all.extend([")", ")"]);
        }
        let result = read(&tokens(&all));
        if depth == limits::NAR_DEPTH {
            result.unwrap();
        } else {
            assert!(matches!(result, Err(nar::Error::Depth { .. })));
        }
    }

    // A file of 2^64-1 bytes, a token of 2^64-8, a token of 33.
    let mut huge = tokens(&["nix-archive-1", "(", "type", "regular", "contents"]);
    huge.extend(u64::MAX.to_le_bytes());
    assert!(matches!(read(&huge), Err(nar::Error::Truncated { .. })));
    for length in [u64::MAX - 7, 33] {
        let mut token = tokens(&["nix-archive-1"]);
        token.extend(length.to_le_bytes());
        token.extend([0; 64]);
        assert!(matches!(read(&token), Err(nar::Error::TooLong { .. })));
    }
    assert!(matches!(read(&tokens(&["nix-archive-2"])), Err(nar::Error::Magic { .. })));
    let mut padded = small_archive();
    padded[23] = 1;
    assert!(matches!(read(&padded), Err(nar::Error::Magic { .. } | nar::Error::Padding { .. })));
}

#[test]
fn the_writer_refuses_what_the_reader_refuses() {
    let mut out = nar::Writer::new(Vec::new());
    assert!(matches!(out.entry("a".into()), Err(nar::Error::Misuse { .. })));
    out.directory().unwrap();
    out.entry("b".into()).unwrap();
    assert!(matches!(out.symlink("".into()), Err(nar::Error::Target { .. })));
    out.file(false, 2).unwrap();
    assert!(matches!(out.data(b"abc"), Err(nar::Error::Misuse { .. })));
    assert!(matches!(out.end_directory(), Err(nar::Error::Misuse { .. })));
    out.data(b"ab").unwrap();
    for name in ["", ".", "..", "x/y", "x\0"] {
        assert!(matches!(out.entry(name.into()), Err(nar::Error::Name { .. })));
    }
    for name in ["a", "b"] {
        assert!(matches!(out.entry(name.into()), Err(nar::Error::Order { .. })));
    }
    assert!(matches!(out.finish(), Err(nar::Error::Misuse { .. })));
}

/// The most memory that this process has ever had mapped, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Declared lengths and counts cost nothing before the bytes come.
#[cfg(target_os = "linux")]
#[test]
fn declared_lengths_allocate_nothing() {
    let context = context("/frx/store", Version::GUIX_1_100);
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let before = peak();
    for length in [1 << 24, limits::TEXT as u64, 1 << 32, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        for operation in TABLE.iter().map(|info| info.operation) {
            // As the first string's length, as a later one's, and as a count.
            for bytes in [words(&[length]), words(&[0, length]), words(&[length; 8]), words(&[1, length, 0])] {
                let mut rest = bytes.as_slice();
                let _ = now(async { Request::decode(operation, &mut Source::request(&mut rest, &context)).await });
            }
        }
    }
    let mut whole = 0_u64.to_le_bytes().to_vec();
    whole.extend((limits::TEXT as u64).to_le_bytes());
    let mut endless = whole.as_slice().chain(std::io::repeat(0).take(1 << 20));
    let mut bytes = Vec::new();
    endless.read_to_end(&mut bytes).unwrap();
    let mut rest = bytes.as_slice();
    let cut = now(async { Request::decode(Operation::AddTextToStore, &mut Source::request(&mut rest, &context)).await });
    assert!(matches!(cut, Err(Error::Truncated { .. })), "{cut:?}");
    // Other tests run at the same time, on stacks of 2 MiB each.
    assert!(peak() - before < 256 << 20, "{} bytes", peak() - before);
}

/// Many small strings are bounded as one large one is.
#[test]
fn a_request_is_bounded_as_a_whole() {
    let context = context("/frx/store", Version::GUIX_1_100);
    let request = |count: u64, size: usize| {
        let mut bytes = count.to_le_bytes().to_vec();
        let item = vec![b'x'; size];
        for _ in 0..count {
            put_string(&mut bytes, &item);
        }
        let mut rest = bytes.as_slice();
        now(async { Request::decode(Operation::ClearFailedPaths, &mut Source::request(&mut rest, &context)).await })
    };
    request(limits::REQUEST_ITEMS, 8).unwrap();
    assert!(matches!(request(limits::REQUEST_ITEMS + 1, 8), Err(Error::TooMany { .. })));
    assert!(matches!(request(limits::REQUEST_BYTES / 4096, 4096), Err(Error::Budget)));
    assert!(matches!(request(1, 4097), Err(Error::TooLong { .. })));
}

#[test]
fn docs_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    let page = fruix_protocol::docs::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert!(written == page, "docs/protocol.md is stale: UPDATE_DOCS=1 cargo test -p fruix-protocol docs");
}

#[test]
fn numbers_and_names_are_unique() {
    for (index, info) in TABLE.iter().enumerate() {
        assert_eq!(Operation::try_from(info.code), Ok(info.operation));
        for other in &TABLE[index + 1..] {
            assert!(info.code < other.code && info.name != other.name && info.method != other.method);
        }
    }
    assert_eq!(TABLE.len(), 34);
    assert!(archive().len() > 300_000);
}
