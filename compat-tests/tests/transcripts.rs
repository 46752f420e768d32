//! What real clients and a real daemon said to each other, decoded by the table of operations and encoded again.
//!
//! `FRUIX_RECORD=PEERS cargo test -p fruix-compat-tests --test transcripts` records anew; see `golden/record.sh`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use bstr::ByteSlice;
use fruix_compat_tests::recorder::{self, Connection, Side};
use fruix_drv::StoreDir;
use fruix_protocol::{
    nar,
    ops::{Operation, Reply, Request, Stream, TABLE},
    wire::{
        self, Context, MAGIC_CLIENT, MAGIC_DAEMON, STDERR_ERROR, STDERR_LAST, STDERR_NEXT, STDERR_READ, STDERR_WRITE, Sink, Source,
        Version, put_string,
    },
};

/// How often something was seen.
#[derive(Default)]
struct Seen {
    operations: BTreeMap<Operation, u32>,
    succeeded: BTreeSet<Operation>,
    frames: BTreeMap<u64, u32>,
    /// Connections that the daemon ended with an error.
    closed: u32,
}

fn word(bytes: &mut &[u8]) -> u64 {
    let (word, rest) = bytes.split_first_chunk::<8>().expect("a word");
    *bytes = rest;
    u64::from_le_bytes(*word)
}

fn string(bytes: &mut &[u8], context: &Context) -> Vec<u8> {
    let before = *bytes;
    let text = wire::now(async { Source::reply(bytes, context).bytes(1 << 20, "a string").await }).unwrap();
    let mut again = Vec::new();
    put_string(&mut again, &text);
    assert_eq!(again, before[..before.len() - bytes.len()]);
    text.into()
}

/// Reads an archive off the front and checks that writing it gives the same bytes.
fn archive(bytes: &mut &[u8]) {
    let before = *bytes;
    let mut reader = nar::Reader::new(&mut *bytes);
    let mut writer = nar::Writer::new(Vec::new());
    while let Some(event) = reader.next().unwrap() {
        match event {
            nar::Event::Directory => writer.directory(),
            nar::Event::Entry(name) => writer.entry(name.as_ref()),
            nar::Event::EndDirectory => writer.end_directory(),
            nar::Event::Symlink { target } => writer.symlink(target.as_ref()),
            nar::Event::File { executable, size } => writer.file(executable, size),
        }
        .unwrap();
        let mut buf = [0; 100];
        loop {
            match reader.read_data(&mut buf).unwrap() {
                0 => break,
                count => writer.data(&buf[..count]).unwrap(),
            }
        }
    }
    assert_eq!(writer.finish().unwrap(), before[..before.len() - bytes.len()]);
}

/// Follows one connection to its end.
fn follow(connection: &Connection, version: Version, seen: &mut Seen) {
    let (client, daemon) = (connection.sent_by(Side::Client), connection.sent_by(Side::Daemon));
    let (mut client, mut daemon) = (client.as_slice(), daemon.as_slice());
    let context = Context { store_dir: StoreDir::new("/frx/store"), version };

    assert_eq!(word(&mut client), MAGIC_CLIENT);
    assert_eq!((word(&mut daemon), word(&mut daemon)), (MAGIC_DAEMON, u64::from(Version::GUIX_1_100.0)));
    assert_eq!(word(&mut client), u64::from(version.0));
    if word(&mut client) != 0 {
        word(&mut client);
    }
    word(&mut client);
    assert_eq!(word(&mut daemon), STDERR_LAST);

    while !client.is_empty() {
        let code = word(&mut client);
        let Ok(operation) = Operation::try_from(code) else {
            assert_eq!(word(&mut daemon), STDERR_ERROR);
            assert_eq!(string(&mut daemon, &context), format!("invalid operation {code}").into_bytes());
            assert_eq!(word(&mut daemon), 1);
            break;
        };
        *seen.operations.entry(operation).or_default() += 1;
        let before = client;
        let mut impossible = None;
        let request = wire::now(async {
            let mut source = Source::request(&mut client, &context);
            let request = Request::decode(operation, &mut source).await?;
            impossible = source.take_impossible();
            Ok(request)
        });
        if let (Ok(request), None) = (&request, &impossible) {
            let mut again = Vec::new();
            request.encode(&mut Sink::new(&mut again, &context));
            let sent = &before[..before.len() - client.len()];
            // Impossible names among candidates are left out.
            assert!(again == sent || sent.contains_str("/frx/store/nothing"), "{request:?}");
        }
        let stream = operation.info().stream;
        if stream == Stream::Archive {
            archive(&mut client);
        }
        loop {
            let frame = word(&mut daemon);
            *seen.frames.entry(frame).or_default() += 1;
            match frame {
                STDERR_NEXT => drop(string(&mut daemon, &context)),
                STDERR_READ => {
                    assert_eq!(stream, Stream::TunnelIn);
                    let limit = word(&mut daemon);
                    assert!(string(&mut client, &context).len() as u64 <= limit);
                }
                STDERR_WRITE => {
                    assert_eq!(stream, Stream::TunnelOut);
                    string(&mut daemon, &context);
                }
                STDERR_ERROR => {
                    let message = String::from_utf8(string(&mut daemon, &context)).unwrap();
                    assert_ne!(word(&mut daemon), 0);
                    // What we would refuse, the daemon has refused in the same words; and it has closed the
                    // connection where we do.
                    if let Err(error) = &request {
                        assert_eq!(message, error.to_string());
                        assert!(client.is_empty());
                        seen.closed += 1;
                    }
                    if let Some(path) = &impossible {
                        // guix-daemon 1.5.0 forgets to put the path into one message.
                        let message = message.replace("%1%", &path.to_string());
                        assert_eq!(message, operation.impossible(path).unwrap_err().to_string());
                    }
                    break;
                }
                STDERR_LAST => {
                    let request = request.unwrap();
                    seen.succeeded.insert(operation);
                    let before = daemon;
                    let reply = wire::now(async {
                        let mut source = Source::reply(&mut daemon, &context);
                        let reply = Reply::decode(operation, &mut source).await?;
                        assert_eq!(source.take_impossible(), None);
                        Ok(reply)
                    })
                    .unwrap();
                    let mut again = Vec::new();
                    reply.encode(&mut Sink::new(&mut again, &context));
                    assert_eq!(again, before[..before.len() - daemon.len()], "{request:?} {reply:?}");
                    if let Some(path) = &impossible {
                        assert_eq!(reply, operation.impossible(path).unwrap());
                    }
                    break;
                }
                other => panic!("frame {other:#x} after {request:?}"),
            }
        }
    }
    assert_eq!((client.len(), daemon.len()), (0, 0), "bytes are left over");
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

#[test]
fn transcripts_are_understood_to_the_last_byte() {
    if let Some(peers) = std::env::var_os("FRUIX_RECORD") {
        let script = golden().join("record.sh");
        let status = Command::new(script).arg(peers).arg(env!("CARGO_BIN_EXE_record")).status().unwrap();
        assert!(status.success());
    }
    let mut sizes = 0;
    let mut versions: BTreeMap<Version, Seen> = BTreeMap::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "transcript")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let version = match name.split_once('-').unwrap().0 {
            "1.5.0" => Version::GUIX_1_100,
            "1.2.0" => Version::GUIX_1_99,
            other => panic!("{other}"),
        };
        eprintln!("{name}");
        sizes += file.metadata().unwrap().len();
        for connection in recorder::read(file).unwrap() {
            follow(&connection, version, versions.entry(version).or_default());
        }
    }
    assert!(sizes < 300_000, "the transcripts have {sizes} bytes");
    for version in [Version::GUIX_1_99, Version::GUIX_1_100] {
        let seen = &versions[&version];
        let missing: Vec<_> = TABLE.iter().filter(|info| !seen.succeeded.contains(&info.operation)).map(|info| info.name).collect();
        let expected: &[&str] = if version < Version::GUIX_1_100 { &["SubstituteURLs"] } else { &[] };
        assert_eq!(missing, expected, "operations without a successful call");
        for frame in [STDERR_NEXT, STDERR_READ, STDERR_WRITE, STDERR_LAST, STDERR_ERROR] {
            assert!(seen.frames.contains_key(&frame), "no frame {frame:#x}");
        }
        assert!(seen.closed >= 2);
    }
}

/// What is recorded is fit to be published.
#[test]
fn transcripts_say_nothing_of_the_machine_that_made_them() {
    let host = Command::new("hostname").output().map(|output| output.stdout).unwrap_or_default();
    let host = String::from_utf8_lossy(&host).trim().to_owned();
    for file in std::fs::read_dir(golden()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "transcript") {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            // A short name of a host could be part of any word.
            for word in ["/work", "/var/cache", "/dev/shm", "/home/"].into_iter().chain((host.len() > 9).then_some(&*host)) {
                assert!(!text.contains(word), "{} contains {word}", path.display());
            }
        }
    }
}
