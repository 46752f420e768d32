//! A service that answers every request with a sample, and peers to talk to it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::{
    io::Read,
    sync::{Arc, Mutex},
    time::Duration,
};

use fruix_drv::StoreDir;
use fruix_protocol::{
    kinds::{BuildMode, GcAction},
    nar,
    ops::*,
    sample::Samples,
    server::*,
    wire::*,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub const ROOT: Peer = Peer { trusted: true, remote: false };

pub fn context(store_dir: &str, version: Version) -> Context {
    Context { store_dir: StoreDir::new(store_dir), version }
}

/// Answers with samples; what it was asked is in `seen`.
#[derive(Clone)]
pub struct Dummy {
    pub store_dir: StoreDir,
    pub seen: Arc<Mutex<Vec<Request>>>,
    /// Whether the future of `sync_with_gc`, which never ends, was dropped.
    pub cancelled: Arc<Mutex<bool>>,
}

impl Dummy {
    pub fn new(store_dir: &str) -> Self {
        Dummy { store_dir: StoreDir::new(store_dir), seen: Arc::default(), cancelled: Arc::default() }
    }

    pub fn reply(&self, operation: Operation) -> Reply {
        operation.sample_reply(&mut Samples::new(operation.code(), self.store_dir.clone()))
    }

    fn note(&self, request: impl Into<Request>) -> Reply {
        let request = request.into();
        let reply = self.reply(request.operation());
        self.seen.lock().unwrap().push(request);
        reply
    }
}

struct SetOnDrop(Arc<Mutex<bool>>);
impl Drop for SetOnDrop {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = true;
    }
}

macro_rules! sampled {
    ($( $method:ident $name:ident, )*) => { $(
        async fn $method(
            &mut self,
            request: $name,
            work: &mut Work,
        ) -> Result<<<$name as Call>::Reply as Codec>::Value, OpError> {
            work.log().line(stringify!($method));
            match self.note(request) {
                Reply::$name(reply) => Ok(reply),
                other => panic!("{other:?}"),
            }
        }
    )* };
}

impl Service for Dummy {
    sampled! {
        has_substitutes HasSubstitutes, query_path_hash QueryPathHash, query_references QueryReferences,
        query_referrers QueryReferrers, add_text_to_store AddTextToStore, ensure_path EnsurePath,
        add_temp_root AddTempRoot, add_indirect_root AddIndirectRoot, find_roots FindRoots,
        query_deriver QueryDeriver, set_options SetOptions, collect_garbage CollectGarbage,
        query_substitutable_path_info QuerySubstitutablePathInfo, query_derivation_outputs QueryDerivationOutputs,
        query_all_valid_paths QueryAllValidPaths, query_failed_paths QueryFailedPaths,
        clear_failed_paths ClearFailedPaths, query_path_info QueryPathInfo,
        query_derivation_output_names QueryDerivationOutputNames, query_path_from_hash_part QueryPathFromHashPart,
        query_substitutable_path_infos QuerySubstitutablePathInfos, query_valid_paths QueryValidPaths,
        query_substitutable_paths QuerySubstitutablePaths, query_valid_derivers QueryValidDerivers,
        optimise_store OptimiseStore, verify_store VerifyStore, builtin_builders BuiltinBuilders,
        substitute_urls SubstituteURLs,
    }

    async fn is_valid_path(&mut self, request: IsValidPath, work: &mut Work) -> Result<bool, OpError> {
        if !is_in_store(&request.path, work.store_dir()) {
            return Err(OpError::new(format!("path `{}' is not in the store", request.path)));
        }
        let Reply::IsValidPath(reply) = self.note(request) else { panic!() };
        Ok(reply)
    }

    async fn add_to_store(&mut self, request: AddToStore, work: &mut Work) -> Result<fruix_drv::StorePath, OpError> {
        let mut body = work.body().into_blocking();
        let name = request.base_name.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut archive = nar::Reader::new(&mut body);
            archive.skip_to_end()?;
            body.finish();
            Ok::<_, nar::Error>(())
        });
        read.await.unwrap()?;
        if name == "refused" {
            return Err(OpError::new("invalid name").with_status(7));
        }
        let Reply::AddToStore(reply) = self.note(request) else { panic!() };
        Ok(reply)
    }

    async fn build_paths(&mut self, request: BuildPaths, work: &mut Work) -> Result<(), OpError> {
        let log = work.log();
        for path in &request.paths {
            log.line(path);
        }
        self.note(request);
        Err(OpError::new("build failed").with_status(100))
    }

    /// Never ends.
    async fn sync_with_gc(&mut self, _: SyncWithGC, _: &mut Work) -> Result<(), OpError> {
        let _set = SetOnDrop(self.cancelled.clone());
        std::future::pending::<()>().await;
        Ok(())
    }

    async fn export_path(&mut self, request: ExportPath, work: &mut Work) -> Result<(), OpError> {
        let mut out = work.tunnel_writer().into_blocking();
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            for i in 0..40_000_u64 {
                out.write_all(&i.to_le_bytes())?;
            }
            out.flush()
        })
        .await
        .unwrap()
        .unwrap();
        self.note(request);
        Ok(())
    }

    async fn import_paths(&mut self, request: ImportPaths, work: &mut Work) -> Result<Vec<fruix_drv::StorePath>, OpError> {
        // Takes eight words and leaves the rest of the client's data alone.
        let mut input = work.tunnel_reader().into_blocking();
        tokio::task::spawn_blocking(move || {
            let mut words = [0; 64];
            input.read_exact(&mut words).map_err(|error| OpError::new(error.to_string()))
        })
        .await
        .unwrap()?;
        let Reply::ImportPaths(reply) = self.note(request) else { panic!() };
        Ok(reply)
    }
}

/// A tree of everything that archives have.
pub fn archive() -> Vec<u8> {
    let mut archive = nar::Writer::new(Vec::new());
    archive.directory().unwrap();
    archive.entry(b"a".into()).unwrap();
    archive.file(false, 5).unwrap();
    archive.data(b"hello").unwrap();
    archive.entry(b"b".into()).unwrap();
    archive.directory().unwrap();
    archive.entry(b"x".into()).unwrap();
    archive.file(true, 300_001).unwrap();
    archive.data(&vec![b'x'; 300_001]).unwrap();
    archive.end_directory().unwrap();
    archive.entry(b"c".into()).unwrap();
    archive.symlink(b"a".into()).unwrap();
    archive.end_directory().unwrap();
    archive.finish().unwrap()
}

pub fn settings(store_dir: &str) -> Settings {
    Settings {
        handshake_timeout: Some(Duration::from_secs(10)),
        stall_timeout: Some(Duration::from_secs(20)),
        linger: Duration::from_millis(200),
        ..Settings::new(StoreDir::new(store_dir))
    }
}

/// Serves `dummy` to the other end of the stream that is returned.
pub fn start(dummy: &Dummy, peer: Peer) -> (DuplexStream, tokio::task::JoinHandle<Result<End, SessionError>>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let dummy = dummy.clone();
    let task = tokio::spawn(async move {
        let settings = settings(dummy.store_dir.as_str());
        serve(theirs, peer, &settings, |_| async move { Ok(dummy) }).await
    });
    (ours, task)
}

/// Speaks words, for tests that want to say what no client does.
pub async fn greet(stream: &mut DuplexStream, version: Version) {
    stream.write_u64_le(MAGIC_CLIENT).await.unwrap();
    assert_eq!(stream.read_u64_le().await.unwrap(), MAGIC_DAEMON);
    assert_eq!(stream.read_u64_le().await.unwrap(), 0x164);
    for word in [u64::from(version.0), 1, 3, 1] {
        stream.write_u64_le(word).await.unwrap();
    }
    assert_eq!(stream.read_u64_le().await.unwrap(), STDERR_LAST);
}

/// The text and status of an error, log pieces skipped.
pub async fn error(stream: &mut DuplexStream, context: &Context) -> (String, u64) {
    let mut source = Source::reply(stream, context);
    loop {
        match source.word("frame").await.unwrap() {
            STDERR_NEXT => drop(source.bytes(1 << 20, "log").await.unwrap()),
            STDERR_ERROR => {
                let text = source.bytes(1 << 20, "error").await.unwrap().to_string();
                return (text, source.word("status").await.unwrap());
            }
            other => panic!("frame {other:#x}"),
        }
    }
}

pub fn plain_requests(store_dir: &StoreDir) -> Vec<Request> {
    let mut samples = Samples::new(7, store_dir.clone());
    TABLE
        .iter()
        .filter(|info| info.stream == Stream::Plain)
        .filter(|info| !matches!(info.operation, Operation::SyncWithGC | Operation::BuildPaths))
        .map(|info| match info.operation.sample_request(&mut samples) {
            Request::IsValidPath(_) => {
                let path = samples.store_path();
                Request::IsValidPath(IsValidPath { path: store_dir.display(&path).into() })
            }
            Request::CollectGarbage(request) => {
                Request::CollectGarbage(CollectGarbage { action: GcAction::DeleteSpecific, ignore_liveness: false, ..request })
            }
            request => request,
        })
        .collect()
}

pub fn normal_build(store_dir: &StoreDir) -> BuildPaths {
    let path = Samples::new(1, store_dir.clone()).store_path();
    BuildPaths { paths: vec![store_dir.display(&path).into()], mode: BuildMode::Normal }
}
