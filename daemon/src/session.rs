//! One client's session: a method for each operation of the table.
//!
//! Point queries are answered where they are asked; what writes, hashes, walks or waits runs where it may block. A method's future is dropped when
//! the client goes away: builds that nobody else waits for end then, and what runs on a blocking thread completes and is of no consequence.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bstr::{BString, ByteSlice};
use fruix_drv::{Hash, HashAlgo, StorePath};
use fruix_protocol::kinds::{BuildMode as WireMode, GcAction as WireAction};
use fruix_protocol::nar;
use fruix_protocol::ops::{self, GcResults, PathInfo, Service, SubstitutableInfo};
use fruix_protocol::server::{self as wire, Log, OpError, Work};
use fruix_store::Error as StoreError;
use fruix_store::{GcAction, GcOptions, Repair, Report, Store, TempRoots, Verbosity};

use crate::error::Error;
use crate::listen::{Peer, Stream};
use crate::options::ClientOptions;
use crate::replies::Replies;
use crate::requester::{LineSink, Requester};
use crate::roots::keep;
use crate::runtime_roots::runtime_roots;
use crate::scheduler::{BuildMode, Target, Wanted, blocking_on};
use crate::server::Shared;
use crate::share;

/// How long a client may take to introduce itself.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How long a client may let pass without a byte in the middle of a request or a reply.
const STALL: Duration = Duration::from_secs(600);
/// How often a repair looks whether its client is gone.
const CANCEL_POLL: Duration = Duration::from_millis(200);
/// Texts up to this many bytes are added without another thread, if nobody need be waited for: to wake that, and then this one, takes longer
/// than the addition.
const SMALL_TEXT: usize = 64 * 1024;
/// What a client is told that asks for signatures: there are no keys.
const NO_SIGNATURES: &str = "signing and checking of archives is switched off in this daemon";

struct Session {
    shared: Arc<Shared>,
    share: share::Session,
    peer: Peer,
    options: ClientOptions,
    roots: Arc<TempRoots>,
}

/// Serves one client until it goes.
pub async fn serve(
    stream: Box<dyn Stream>,
    peer: Peer,
    share: share::Session,
    shared: Arc<Shared>,
) -> Result<wire::End, wire::SessionError> {
    let settings = wire::Settings {
        handshake_timeout: Some(HANDSHAKE),
        stall_timeout: Some(STALL),
        room: share.room(),
        ..wire::Settings::new(shared.settings.store_dir.clone())
    };
    let wire_peer = wire::Peer { trusted: shared.trusts(&peer), remote: peer.remote };
    wire::serve(Replies(stream), wire_peer, &settings, |_| async move {
        Ok(Session { share, options: ClientOptions::new(&shared.settings), roots: Arc::new(shared.store.temp_roots()), peer, shared })
    })
    .await
}

impl From<Error> for OpError {
    fn from(error: Error) -> OpError {
        OpError::new(error.to_string()).with_status(u32::try_from(error.status()).unwrap_or(1))
    }
}

/// What the store answers, for the client.
fn told<T>(result: fruix_store::Result<T>) -> Result<T, OpError> {
    result.map_err(|error| Error::from(error).into())
}

/// Sends a build's lines to the session that waits.
struct Lines(Log);

impl LineSink for Lines {
    fn send(&self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}

impl Session {
    fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Runs what may block.
    async fn block<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static) -> Result<T, OpError> {
        let (store, thread) = (self.shared.store.clone(), self.share.thread().await);
        blocking_on(&self.shared.main, move || {
            let _thread = thread;
            work(&store)
        })
        .await
        .map_err(OpError::from)
    }

    fn requester(&self, work: &Work) -> Arc<Requester> {
        let mut options = self.options.clone();
        // What is kept for a client of another machine is of no use to it, and fills our disk.
        options.keep_failed &= !self.peer.remote;
        Requester::new(self.shared.next_id(), options, self.peer.credentials, Box::new(Lines(work.log())), Some(Arc::clone(&self.roots)))
    }

    /// What is registered of `path`, or upstream's error.
    fn info(&self, path: &StorePath) -> Result<fruix_store::PathInfo, OpError> {
        told(self.store().path_info(path))
    }

    /// Parses `PATH.drv`, `PATH.drv!OUT,OUT` or `PATH`.
    fn target(&self, text: &BString) -> Result<Target, OpError> {
        let (path, outputs) = match text.split_once_str("!") {
            Some((path, outputs)) => (path, Some(outputs)),
            None => (text.as_slice(), None),
        };
        let path = self.store().store_dir().parse(path).map_err(|_| OpError::new(format!("path `{}' is not valid", path.as_bstr())))?;
        if !path.is_derivation() {
            return Ok(Target::Path(path));
        }
        let wanted = match outputs {
            None => Wanted::All,
            Some(names) => Wanted::of(names.split_str(",").filter(|name| !name.is_empty()).map(|name| name.to_str_lossy().into_owned())),
        };
        Ok(Target::Derivation(path, wanted))
    }

    /// Runs what takes long and talks: its messages go to the client up to its verbosity, and it is cancelled when the client goes.
    async fn long<T: Send + 'static>(
        &self,
        work: &Work,
        act: impl FnOnce(&Store, &mut Report<'_>, &AtomicBool) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, OpError> {
        let cancel = Cancel(Arc::new(AtomicBool::new(false)));
        let (store, log, verbosity, flag) = (self.shared.store.clone(), work.log(), self.options.verbosity, Arc::clone(&cancel.0));
        let thread = self.share.thread().await;
        let result = blocking_on(&self.shared.main, move || {
            let _thread = thread;
            let mut report = |level: Verbosity, line: &str| {
                if level as u64 <= verbosity {
                    log.line(line);
                }
            };
            act(&store, &mut report, &flag)
        })
        .await;
        result.map_err(OpError::from)
    }
}

/// Waits until `flag` is raised.
async fn raised(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        tokio::time::sleep(CANCEL_POLL).await;
    }
}

/// Raised when it is dropped, as when the client goes.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether `path` is written as something below the directory `dir`.
fn inside(dir: &str, path: &[u8]) -> bool {
    path.strip_prefix(dir.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")).is_some_and(|name| !name.is_empty() && !name.contains(&b'/'))
}

fn absolute(path: &BString) -> Result<&[u8], OpError> {
    if path.starts_with(b"/") && !path.contains(&0) {
        Ok(path)
    } else {
        Err(OpError::new(format!("`{path}' is not an absolute file name")))
    }
}

impl Service for Session {
    async fn is_valid_path(&mut self, request: ops::IsValidPath, _: &mut Work) -> Result<bool, OpError> {
        let dir = self.store().store_dir();
        match dir.parse(&request.path) {
            Ok(path) => told(self.store().is_valid(&path)),
            // A name that no item can have is not an error, as long as it is below the store directory.
            Err(_) if inside(dir.as_str(), &request.path) => Ok(false),
            Err(_) => Err(OpError::new(format!("path `{}' is not in the store", request.path))),
        }
    }

    async fn has_substitutes(&mut self, _: ops::HasSubstitutes, _: &mut Work) -> Result<bool, OpError> {
        Ok(false)
    }

    async fn query_path_hash(&mut self, request: ops::QueryPathHash, _: &mut Work) -> Result<Hash, OpError> {
        Ok(self.info(&request.path)?.nar_hash)
    }

    async fn query_references(&mut self, request: ops::QueryReferences, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        told(self.store().references(&request.path))
    }

    async fn query_referrers(&mut self, request: ops::QueryReferrers, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        told(self.store().referrers(&request.path))
    }

    async fn add_to_store(&mut self, request: ops::AddToStore, work: &mut Work) -> Result<StorePath, OpError> {
        let (recursive, algo) = request.method();
        let algo = HashAlgo::parse(algo);
        let name = request.base_name.to_str_lossy().into_owned();
        let (store, roots) = (self.shared.store.clone(), Arc::clone(&self.roots));
        let thread = self.share.thread().await;
        let mut body = work.body().into_blocking();
        let added = blocking_on(&self.shared.main, move || {
            let _thread = thread;
            let added = match algo {
                Ok(algo) => store.add_from_nar(&roots, &name, recursive, algo, &mut body).map_err(Error::from),
                // Found out after the archive, so that the connection lives on.
                Err(_) => match nar::Reader::new(&mut body).skip_to_end() {
                    Ok(()) => Err(Error::request("unknown hash type")),
                    Err(source) => Err(fruix_store::Error::Nar { source }.into()),
                },
            };
            if !matches!(&added, Err(Error::Store(fruix_store::Error::Nar { source })) if !source.goes_on()) {
                body.finish();
            }
            added
        })
        .await;
        Ok(added?)
    }

    async fn add_text_to_store(&mut self, request: ops::AddTextToStore, _: &mut Work) -> Result<StorePath, OpError> {
        let references = request.references.into_iter().collect();
        let name = request.name.to_str_lossy().into_owned();
        if request.text.len() <= SMALL_TEXT {
            let _turn = self.shared.small_additions.acquire().await;
            if let Some(path) = told(self.store().add_text_at_once(&self.roots, &name, &request.text, &references))? {
                return Ok(path);
            }
        }
        let roots = Arc::clone(&self.roots);
        self.block(move |store| Ok(store.add_text(&roots, &name, &request.text, &references)?)).await
    }

    async fn build_paths(&mut self, request: ops::BuildPaths, work: &mut Work) -> Result<(), OpError> {
        let targets = request.paths.iter().map(|path| self.target(path)).collect::<Result<Vec<_>, _>>()?;
        let mode = match request.mode {
            WireMode::Normal => BuildMode::Normal,
            WireMode::Repair => BuildMode::Repair,
            WireMode::Check => BuildMode::Check,
        };
        let requester = self.requester(work);
        Ok(self.shared.scheduler.build(&requester, targets, mode).await?)
    }

    async fn ensure_path(&mut self, request: ops::EnsurePath, _: &mut Work) -> Result<(), OpError> {
        keep(&self.shared.main, &self.roots, [&request.path]).await?;
        if told(self.store().is_valid(&request.path))? {
            return Ok(());
        }
        Err(OpError::new(format!("path `{}' does not exist and cannot be created", self.store().print(&request.path))))
    }

    async fn add_temp_root(&mut self, request: ops::AddTempRoot, _: &mut Work) -> Result<(), OpError> {
        Ok(keep(&self.shared.main, &self.roots, [&request.path]).await?)
    }

    async fn add_indirect_root(&mut self, request: ops::AddIndirectRoot, _: &mut Work) -> Result<(), OpError> {
        let path = PathBuf::from(OsStr::from_bytes(absolute(&request.path)?));
        self.block(move |store| Ok(store.add_indirect_root(&path)?)).await
    }

    async fn sync_with_gc(&mut self, _: ops::SyncWithGC, work: &mut Work) -> Result<(), OpError> {
        self.long(work, |store, report, cancel| Ok(store.sync_with_gc(report, cancel)?)).await
    }

    async fn find_roots(&mut self, _: ops::FindRoots, work: &mut Work) -> Result<BTreeSet<(BString, StorePath)>, OpError> {
        self.long(work, |store, report, _| Ok(store.find_roots(report)?.into_iter().map(|(link, path)| (link.into(), path)).collect()))
            .await
    }

    async fn export_path(&mut self, request: ops::ExportPath, _: &mut Work) -> Result<(), OpError> {
        let _ = request;
        Err(OpError::new(NO_SIGNATURES))
    }

    async fn query_deriver(&mut self, request: ops::QueryDeriver, _: &mut Work) -> Result<Option<StorePath>, OpError> {
        told(self.store().deriver(&request.path))
    }

    async fn set_options(&mut self, request: ops::SetOptions, _: &mut Work) -> Result<(), OpError> {
        let trusted = self.shared.trusts(&self.peer);
        let options = &mut self.options;
        options.keep_failed = request.keep_failed;
        options.keep_going = request.keep_going;
        options.verbosity = request.verbosity.into();
        options.build_verbosity = request.build_verbosity.into();
        options.print_build_trace = request.print_build_trace;
        if let Some(jobs) = request.max_build_jobs {
            options.max_jobs = jobs.into();
        }
        if let Some(seconds) = request.max_silent_time {
            options.max_silent_time = seconds.into();
        }
        if let Some(cores) = request.build_cores {
            options.cores = cores.into();
        }
        for (name, value) in &request.settings {
            options.set(name, value, trusted).map_err(|error| OpError::new(error.to_string()).closing())?;
        }
        Ok(())
    }

    async fn collect_garbage(&mut self, request: ops::CollectGarbage, work: &mut Work) -> Result<GcResults, OpError> {
        let action = match request.action {
            WireAction::ReturnLive => GcAction::ReturnLive,
            WireAction::ReturnDead => GcAction::ReturnDead,
            WireAction::DeleteDead => GcAction::DeleteDead,
            WireAction::DeleteSpecific => GcAction::DeleteSpecific,
        };
        let paths_to_delete = request.paths_to_delete.into_iter().map(Vec::from).collect();
        let options = GcOptions { action, paths_to_delete, max_freed: request.max_freed };
        // Who asks for a collection gives up what he has used so far: clients delete what they just built, on the same connection.
        self.roots = Arc::new(self.store().temp_roots());
        let found =
            self.long(work, move |store, report, cancel| Ok(store.collect_garbage(&options, &runtime_roots(), report, cancel)?)).await?;
        Ok(GcResults { paths: found.paths.into_iter().map(BString::from).collect(), bytes_freed: found.bytes_freed, obsolete: 0 })
    }

    async fn query_substitutable_path_info(
        &mut self,
        _: ops::QuerySubstitutablePathInfo,
        _: &mut Work,
    ) -> Result<Option<SubstitutableInfo>, OpError> {
        Ok(None)
    }

    async fn query_derivation_outputs(
        &mut self,
        request: ops::QueryDerivationOutputs,
        _: &mut Work,
    ) -> Result<BTreeSet<StorePath>, OpError> {
        Ok(told(self.store().derivation_outputs(&request.path))?.into_values().collect())
    }

    async fn query_all_valid_paths(&mut self, _: ops::QueryAllValidPaths, _: &mut Work) -> Result<Vec<StorePath>, OpError> {
        self.block(|store| Ok(store.sorted_valid()?)).await
    }

    async fn query_failed_paths(&mut self, _: ops::QueryFailedPaths, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        self.block(|store| Ok(store.failed_paths()?)).await
    }

    async fn clear_failed_paths(&mut self, request: ops::ClearFailedPaths, _: &mut Work) -> Result<(), OpError> {
        let all = request.paths.iter().any(|path| path == "*");
        let dir = self.store().store_dir().clone();
        self.block(move |store| {
            let paths: BTreeSet<_> = request.paths.iter().filter_map(|path| dir.parse(path).ok()).collect();
            Ok(store.clear_failed(if all { None } else { Some(&paths) })?)
        })
        .await
    }

    async fn query_path_info(&mut self, request: ops::QueryPathInfo, _: &mut Work) -> Result<PathInfo, OpError> {
        let info = self.info(&request.path)?;
        Ok(PathInfo {
            deriver: info.deriver,
            hash: info.nar_hash,
            references: info.references,
            registration_time: u32::try_from(info.registration_time).unwrap_or(u32::MAX),
            nar_size: info.nar_size,
        })
    }

    async fn import_paths(&mut self, _: ops::ImportPaths, _: &mut Work) -> Result<Vec<StorePath>, OpError> {
        Err(OpError::new(NO_SIGNATURES))
    }

    async fn query_derivation_output_names(
        &mut self,
        request: ops::QueryDerivationOutputNames,
        _: &mut Work,
    ) -> Result<BTreeSet<BString>, OpError> {
        Ok(told(self.store().derivation_outputs(&request.path))?.into_keys().map(BString::from).collect())
    }

    async fn query_path_from_hash_part(&mut self, request: ops::QueryPathFromHashPart, _: &mut Work) -> Result<Option<StorePath>, OpError> {
        let hash_part = request.hash_part.to_str_lossy();
        told(self.store().path_from_hash_part(&hash_part))
    }

    async fn query_substitutable_path_infos(
        &mut self,
        _: ops::QuerySubstitutablePathInfos,
        _: &mut Work,
    ) -> Result<Vec<(StorePath, SubstitutableInfo)>, OpError> {
        Ok(Vec::new())
    }

    async fn query_valid_paths(&mut self, request: ops::QueryValidPaths, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        self.block(move |store| Ok(store.filter_valid(&request.paths.into_iter().collect())?)).await
    }

    async fn query_substitutable_paths(&mut self, _: ops::QuerySubstitutablePaths, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        Ok(BTreeSet::new())
    }

    async fn query_valid_derivers(&mut self, request: ops::QueryValidDerivers, _: &mut Work) -> Result<BTreeSet<StorePath>, OpError> {
        told(self.store().valid_derivers(&request.path))
    }

    async fn optimise_store(&mut self, _: ops::OptimiseStore, work: &mut Work) -> Result<(), OpError> {
        self.long(work, |store, report, cancel| Ok(store.optimise_store(report, cancel).map(drop)?)).await
    }

    async fn verify_store(&mut self, request: ops::VerifyStore, work: &mut Work) -> Result<bool, OpError> {
        let (requester, scheduler, runtime) = (self.requester(work), self.shared.scheduler.clone(), self.shared.main.clone());
        self.long(work, move |store, report, cancel| {
            let mut repair = |path: &StorePath| {
                let work = async {
                    tokio::select! {
                        repaired = scheduler.repair(&requester, path) => repaired.map_err(|error| match error {
                            crate::error::Error::Store(error) => error,
                            error => StoreError::Repair { path: store.print(path), message: error.to_string() },
                        }),
                        () = raised(cancel) => Err(StoreError::Interrupted),
                    }
                };
                runtime.block_on(work)
            };
            let repair: Option<&mut Repair<'_>> = if request.repair { Some(&mut repair) } else { None };
            Ok(store.verify_store(request.check_contents, repair, report, cancel)?)
        })
        .await
    }

    async fn builtin_builders(&mut self, _: ops::BuiltinBuilders, _: &mut Work) -> Result<BTreeSet<BString>, OpError> {
        Ok(crate::builtins::names().map(BString::from).collect())
    }

    async fn substitute_urls(&mut self, _: ops::SubstituteURLs, _: &mut Work) -> Result<Vec<BString>, OpError> {
        Ok(Vec::new())
    }
}
