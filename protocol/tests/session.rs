//! A session against peers that behave, and peers that do not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::*;
use fruix_drv::StoreDir;
use fruix_protocol::{
    client::{Client, Error},
    limits, nar,
    ops::*,
    sample::Samples,
    server::*,
    wire::*,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Sends a request as bytes and decodes what comes back, which must be all there is.
async fn ask(stream: &mut tokio::io::DuplexStream, request: &Request, context: &Context) -> Reply {
    let mut out = Vec::new();
    let mut sink = Sink::new(&mut out, context);
    sink.word(request.operation().code());
    request.encode(&mut sink);
    if request.operation().info().stream == Stream::Archive {
        out.extend_from_slice(&archive());
    }
    stream.write_all(&out).await.unwrap();
    let mut source = Source::reply(stream, context);
    loop {
        match source.word("frame").await.unwrap() {
            STDERR_NEXT => drop(source.bytes(100, "log").await.unwrap()),
            STDERR_LAST => break,
            other => panic!("frame {other:#x} for {request:?}"),
        }
    }
    Reply::decode(request.operation(), &mut source).await.unwrap()
}

#[tokio::test]
async fn any_request_leaves_the_stream_in_step() {
    for store_dir in ["/frx/store", "/gnu/store"] {
        for version in [Version::GUIX_MIN, Version::GUIX_1_99, Version::GUIX_1_100] {
            let dummy = Dummy::new(store_dir);
            let context = context(store_dir, version);
            let (mut stream, task) = start(&dummy, ROOT);
            greet(&mut stream, version).await;
            let add = AddToStore { base_name: "tree".into(), fixed: true, recursive: true, hash_algo: "sha256".into() };
            let mut first = plain_requests(&context.store_dir);
            first.push(Request::AddToStore(add));
            let second = first.clone();
            let mut expected = Vec::new();
            for request in &first {
                for request in [request, &second[request.operation() as usize % second.len()]] {
                    let request = at_version(request.clone(), version);
                    assert_eq!(ask(&mut stream, &request, &context).await, dummy.reply(request.operation()));
                    expected.push(request);
                }
            }
            assert_eq!(*dummy.seen.lock().unwrap(), expected);
            drop(stream);
            assert_eq!(task.await.unwrap().unwrap(), End::Closed);
        }
    }
}

/// Fields that only old clients send.
fn at_version(request: Request, version: Version) -> Request {
    match request {
        Request::SetOptions(request) => {
            let old = (version < Version(0x161)).then_some(5);
            Request::SetOptions(SetOptions { max_build_jobs: old, max_silent_time: old, build_cores: old, ..request })
        }
        other => other,
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let dummy = Dummy::new("/frx/store");
    let context = context("/frx/store", Version::GUIX_1_100);
    let (mut stream, _task) = start(&dummy, ROOT);
    greet(&mut stream, context.version).await;
    let requests = plain_requests(&context.store_dir);
    let mut out = Vec::new();
    for request in &requests {
        let mut sink = Sink::new(&mut out, &context);
        sink.word(request.operation().code());
        request.encode(&mut sink);
    }
    stream.write_all(&out).await.unwrap();
    for request in &requests {
        let mut source = Source::reply(&mut stream, &context);
        while source.word("frame").await.unwrap() == STDERR_NEXT {
            source.bytes(100, "log").await.unwrap();
        }
        let reply = Reply::decode(request.operation(), &mut source).await.unwrap();
        assert_eq!(reply, dummy.reply(request.operation()));
    }
}

#[tokio::test]
async fn the_client_half_speaks_to_the_server_half() {
    let store_dir = StoreDir::new("/frx/store");
    let dummy = Dummy::new("/frx/store");
    let (stream, task) = start(&dummy, ROOT);
    let mut client = Client::connect(stream, store_dir.clone(), Version::GUIX_1_99).await.unwrap();
    assert_eq!(client.version(), Version::GUIX_1_99);
    let log = Arc::new(Mutex::new(Vec::new()));
    let into = log.clone();
    client.set_log(move |piece| into.lock().unwrap().extend_from_slice(piece));

    let build = normal_build(&store_dir);
    match client.build_paths(build.clone()).await {
        Err(Error::Remote { message, status }) => assert_eq!((message, status), ("build failed".into(), 100)),
        other => panic!("{other:?}"),
    }
    assert_eq!(*log.lock().unwrap(), [build.paths[0].as_slice(), b"\n"].concat());

    let add = |name: &str| AddToStore { base_name: name.into(), fixed: true, recursive: true, hash_algo: "sha256".into() };
    for _ in 0..2 {
        let added = client.add_to_store(add("tree"), &mut archive().as_slice()).await.unwrap();
        assert_eq!(Reply::AddToStore(added), dummy.reply(Operation::AddToStore));
        let refused = client.add_to_store(add("refused"), &mut archive().as_slice()).await;
        assert!(matches!(refused, Err(Error::Remote { status: 7, .. })), "{refused:?}");
    }

    let mut exported = Vec::new();
    let path = Samples::new(3, store_dir.clone()).store_path();
    client.export_path(ExportPath { path, sign: false }, &mut exported).await.unwrap();
    assert_eq!(exported.len(), 320_000);
    assert_eq!(exported[319_992..], 39_999_u64.to_le_bytes());

    let imported = client.import_paths(ImportPaths {}, &mut exported.as_slice()).await.unwrap();
    assert_eq!(Reply::ImportPaths(imported), dummy.reply(Operation::ImportPaths));
    let short = client.import_paths(ImportPaths {}, &mut [0; 9].as_slice()).await;
    assert!(matches!(short, Err(Error::Remote { .. })), "{short:?}");

    let too_old = client.substitute_urls(SubstituteURLs {}).await;
    assert!(matches!(too_old, Err(Error::TooOld { .. })));
    let infos = client.builtin_builders(BuiltinBuilders {}).await.unwrap();
    assert_eq!(Reply::BuiltinBuilders(infos), dummy.reply(Operation::BuiltinBuilders));
    drop(client);
    assert_eq!(task.await.unwrap().unwrap(), End::Closed);
}

/// What is said, what is answered, and whether the connection goes on, as guix-daemon does it.
#[tokio::test]
async fn errors_close_the_connection_where_upstream_closes_it() {
    let context = context("/frx/store", Version::GUIX_1_100);
    let good = "/frx/store/0123456789abcdfghijklmnpqrsvwxyz-x";
    let string = |text: &str| {
        let mut out = Vec::new();
        put_string(&mut out, text.as_bytes());
        out
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let untrusted = Peer { trusted: false, remote: false };
    let remote = Peer { trusted: false, remote: true };
    let cases: Vec<(Peer, Vec<u8>, &str, bool)> = vec![
        (ROOT, words(&[99]), "invalid operation 99", false),
        (ROOT, words(&[2]), "invalid operation 2", false),
        (ROOT, words(&[1 << 32]), "implementation cannot deal with > 32-bit integers", false),
        (ROOT, [words(&[1]), string("/etc/passwd")].concat(), "path `/etc/passwd' is not in the store", true),
        (ROOT, [words(&[5]), string("/etc/passwd")].concat(), "path `/etc/passwd' is not in the store", false),
        (ROOT, [words(&[5]), string("/frx/store/x/y")].concat(), "path `/frx/store/x/y' is not in the store", false),
        (ROOT, [words(&[5]), string("/frx/store/x")].concat(), "path `/frx/store/x' is not valid", true),
        (ROOT, [words(&[10]), string("/frx/store/x")].concat(), "path `/frx/store/x' does not exist and cannot be created", true),
        (ROOT, [words(&[5]), b"\x01\0\0\0\0\0\0\0/aaaaaaa".to_vec()].concat(), "non-zero padding", false),
        (untrusted, words(&[9, 0, 1]), "repairing is a privileged operation", false),
        (untrusted, words(&[35, 0, 1]), "you are not privileged to repair paths", true),
        (ROOT, words(&[20, 2, 0, 1, 0, 0, 0, 0]), "you are not allowed to ignore liveness", true),
        (remote, words(&[20]), "Garbage collection is disabled for remote hosts.", false),
        (ROOT, [words(&[9, 1]), string(good), words(&[0])].concat(), "build failed", true),
        (
            ROOT,
            [words(&[7]), string("x"), words(&[1, 1]), string("sha256"), string("nix-archive-2")].concat(),
            "bad archive: input doesn't look like a normalized archive",
            false,
        ),
    ];
    for (peer, bytes, message, goes_on) in cases {
        let dummy = Dummy::new("/frx/store");
        let (mut stream, task) = start(&dummy, peer);
        greet(&mut stream, context.version).await;
        stream.write_all(&bytes).await.unwrap();
        let (text, status) = error(&mut stream, &context).await;
        assert_eq!(text, message);
        assert_eq!(status, if message == "build failed" { 100 } else { 1 });
        if goes_on {
            let request = Request::QueryAllValidPaths(QueryAllValidPaths {});
            assert_eq!(ask(&mut stream, &request, &context).await, dummy.reply(Operation::QueryAllValidPaths));
        } else {
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "after {message}");
            drop(stream);
            assert_eq!(task.await.unwrap().unwrap(), End::Refused);
        }
    }
}

/// guix-daemon takes any name beneath the store directory for a store path; ours know better, and say the same.
#[tokio::test]
async fn impossible_names_are_valid_nowhere() {
    let context = context("/frx/store", Version::GUIX_1_100);
    let (mut stream, _task) = start(&Dummy::new("/frx/store"), ROOT);
    greet(&mut stream, context.version).await;
    let mut name = Vec::new();
    put_string(&mut name, b"/frx/store/x");
    for (code, reply) in [(3, vec![0_u64]), (6, vec![0]), (33, vec![0]), (11, vec![1])] {
        stream.write_all(&[&u64::to_le_bytes(code)[..], &name].concat()).await.unwrap();
        for word in [vec![STDERR_LAST], reply].concat() {
            assert_eq!(stream.read_u64_le().await.unwrap(), word, "operation {code}");
        }
    }
    // Among candidates they are left out.
    let mut rest = [&2_u64.to_le_bytes()[..], &name, &[0; 8]].concat();
    let good = Samples::new(1, context.store_dir.clone()).store_path();
    rest.truncate(8 + name.len());
    put_string(&mut rest, context.store_dir.display(&good).as_bytes());
    let (read, left) = decode::<QueryValidPaths>(&rest, &context).unwrap();
    assert_eq!((read.paths, left.len()), (vec![good], 0));
}

#[tokio::test]
async fn a_store_that_does_not_open_is_reported() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let task = tokio::spawn(async move {
        let open = |_| async { Err::<Dummy, _>(OpError::new("no database")) };
        serve(theirs, ROOT, &settings("/frx/store"), open).await
    });
    match Client::connect(ours, StoreDir::new("/frx/store"), Version::GUIX_1_100).await {
        Err(Error::Remote { message, status: 1 }) => assert_eq!(message, "no database"),
        other => panic!("{other:?}"),
    }
    assert_eq!(task.await.unwrap().unwrap(), End::Refused);
}

#[tokio::test]
async fn strangers_and_clients_of_other_dialects_are_refused() {
    let dummy = Dummy::new("/frx/store");
    let (mut stream, task) = start(&dummy, ROOT);
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert!(matches!(task.await.unwrap(), Err(SessionError::Magic)));

    let (stream, task) = start(&dummy, ROOT);
    match Client::connect(stream, StoreDir::new("/frx/store"), Version(0x127)).await {
        Err(Error::Remote { message, .. }) => {
            assert_eq!(message, "client's protocol version 1.39 is not supported");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(task.await.unwrap().unwrap(), End::Refused);
}

#[tokio::test]
async fn a_handler_is_cancelled_when_its_client_goes_away() {
    let dummy = Dummy::new("/frx/store");
    let (mut stream, task) = start(&dummy, ROOT);
    greet(&mut stream, Version::GUIX_1_100).await;
    stream.write_u64_le(13).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!*dummy.cancelled.lock().unwrap());
    drop(stream);
    let end = timeout(Duration::from_secs(5), task).await.unwrap().unwrap().unwrap();
    assert_eq!(end, End::Disconnected);
    assert!(*dummy.cancelled.lock().unwrap());
}

/// A thread that reads an archive must not be left waiting for a client that has gone in the middle.
#[tokio::test]
async fn a_blocked_thread_is_released_when_its_client_goes_away() {
    let dummy = Dummy::new("/frx/store");
    let (mut stream, task) = start(&dummy, ROOT);
    greet(&mut stream, Version::GUIX_1_100).await;
    let mut out = Vec::new();
    let context = context("/frx/store", Version::GUIX_1_100);
    let mut sink = Sink::new(&mut out, &context);
    sink.word(7);
    let add = AddToStore { base_name: "x".into(), fixed: true, recursive: true, hash_algo: "sha256".into() };
    AddToStore::encode(&add, &mut sink);
    out.extend_from_slice(&archive()[..1000]);
    stream.write_all(&out).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    // The runtime of the test could not shut down either while a thread of its hangs.
    let end = timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    assert!(matches!(end, Ok(End::Disconnected)), "{end:?}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_is_bounded_and_counted() {
    let dummy = Dummy::new("/frx/store");
    let (ours, theirs) = tokio::io::duplex(1024);
    // BuildPaths logs one line per path: 40,000 lines of 64 bytes are 2.5 MB of 3.8 MB in frames.
    let task = tokio::spawn(async move { serve(theirs, ROOT, &settings("/frx/store"), |_| async move { Ok(dummy) }).await });
    let mut client = Client::connect(ours, StoreDir::new("/frx/store"), Version::GUIX_1_100).await.unwrap();
    let (lines, dropped) = (Arc::new(Mutex::new(0_u64)), Arc::new(Mutex::new(0_u64)));
    let (lines2, dropped2) = (lines.clone(), dropped.clone());
    client.set_log(move |piece| {
        let text = piece.to_string();
        match text.strip_prefix('[') {
            Some(rest) => *dropped2.lock().unwrap() += rest.split(' ').next().unwrap().parse::<u64>().unwrap(),
            None => *lines2.lock().unwrap() += 1,
        }
    });
    let path = "/frx/store/0123456789abcdfghijklmnpqrsvwxyz-a-name-of-some-length-so";
    let build = BuildPaths { paths: vec![path.into(); 40_000], mode: fruix_protocol::kinds::BuildMode::Normal };
    assert!(matches!(client.build_paths(build).await, Err(Error::Remote { status: 100, .. })));
    let (lines, dropped) = (*lines.lock().unwrap(), *dropped.lock().unwrap());
    assert_eq!(lines + dropped, 40_000);
    let kept = limits::LOG_BACKLOG as u64 / 96;
    assert!((kept / 2..kept * 2).contains(&lines), "{lines} lines arrived");
    drop(client);
    task.await.unwrap().unwrap();
}

fn hurried() -> Settings {
    let soon = Some(Duration::from_millis(200));
    Settings { handshake_timeout: soon, stall_timeout: soon, ..settings("/frx/store") }
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_off() {
    // In the handshake, within the fields, within an archive, and in not reading an answer.
    let context = context("/frx/store", Version::GUIX_1_100);
    let add = AddToStore { base_name: "x".into(), fixed: true, recursive: true, hash_algo: "sha256".into() };
    let mut archive_start = 7_u64.to_le_bytes().to_vec();
    AddToStore::encode(&add, &mut Sink::new(&mut archive_start, &context));
    for sent in [None, Some(5_u64.to_le_bytes().to_vec()), Some(archive_start)] {
        let (mut stream, theirs) = tokio::io::duplex(16);
        let task = tokio::spawn(async move { serve(theirs, ROOT, &hurried(), |_| async { Ok(Dummy::new("/frx/store")) }).await });
        match sent {
            None => stream.write_all(&[0x63]).await.unwrap(),
            Some(bytes) => {
                greet(&mut stream, context.version).await;
                // Idleness between requests is nobody's fault.
                tokio::time::sleep(Duration::from_millis(400)).await;
                stream.write_all(&bytes).await.unwrap();
            }
        }
        let end = timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
        assert!(matches!(end, Err(SessionError::Timeout { .. })), "{end:?}");
    }
    let dummy = Dummy::new("/frx/store");
    let (ours, theirs) = tokio::io::duplex(16);
    let task = tokio::spawn(async move { serve(theirs, ROOT, &hurried(), |_| async move { Ok(dummy) }).await });
    let (mut read, mut write) = tokio::io::split(ours);
    write.write_u64_le(MAGIC_CLIENT).await.unwrap();
    read.read_exact(&mut [0; 16]).await.unwrap();
    for word in [0x164, 0, 0] {
        write.write_u64_le(word).await.unwrap();
    }
    read.read_u64_le().await.unwrap();
    write.write_u64_le(23).await.unwrap();
    let end = timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    assert!(matches!(end, Err(SessionError::Timeout { .. })), "{end:?}");
}

#[tokio::test]
async fn an_idle_connection_is_cheap() {
    let dummy = Dummy::new("/frx/store");
    let settings = settings("/frx/store");
    let (_ours, theirs) = tokio::io::duplex(64);
    let session = serve(theirs, ROOT, &settings, |_| async move { Ok(dummy) });
    let size = std::mem::size_of_val(&session);
    assert!(size + 2 * limits::IDLE_BUFFER < 16 * 1024, "a session takes {size} bytes");
}

#[test]
fn an_archive_of_every_shape_is_what_it_was() {
    let bytes = archive();
    let mut reader = nar::Reader::new(bytes.as_slice());
    reader.skip_to_end().unwrap();
    assert_eq!(reader.position(), bytes.len() as u64);
}
