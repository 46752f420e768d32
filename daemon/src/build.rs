//! One build: directories and plan, the builder, its output, and what becomes of it.
//!
//! `prepare` makes everything the builder needs and the [`Plan`] of it; `run` starts it and passes its output on until it
//! ends or runs out of time; `outputs::register` takes its outputs into the store. A build that nobody waits for any more is dropped wherever it
//! is: the builder is killed, and a guard removes its directories afterwards, holding the output locks until that is done.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bstr::{BString, ByteSlice};
use fruix_drv::derivation::Derivation;
use fruix_drv::{Hash, StorePath};
use fruix_store::{PathInfo, PathLocks, Rewrites, Store};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::build_dir::{self, BuildDir, Shape, free_bytes};
use crate::build_log::BuildLog;
use crate::builtin_job;
use crate::builtins;
use crate::config::{READ_CHUNK, Settings};
use crate::error::Error;
use crate::options::{ClientOptions, Level};
use crate::outputs;
use crate::sandbox::{self, BuildSpec, ExitStatus, Plan, Program, Running, Sandbox, Site, SpawnerHandle, Unconfined};
use crate::scheduler::{Audience, BuildMode, blocking, closure, show_paths};
use crate::users::{BuildUser, UserPool};

/// With less than this many bytes free after a failure, the failure is put down to that.
const DISK_FULL_BELOW: u64 = 8 * 1024 * 1024;
/// How long output may still come after the builder has ended, from processes that it left behind outside a sandbox.
const DRAIN: Duration = Duration::from_secs(2);
/// How long it takes at most until a client that leaves a build no longer counts for the limits that it is under.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The home directory that no builder has.
const HOME: &str = "/homeless-shelter";

/// What is to be built.
pub struct Job {
    /// The derivation's path.
    pub drv_path: StorePath,
    /// The derivation.
    pub drv: Arc<Derivation>,
    /// Why.
    pub mode: BuildMode,
    /// All that the builder may see.
    pub inputs: BTreeSet<StorePath>,
    /// The outputs to make.
    pub missing: BTreeSet<StorePath>,
    /// Who hears of it.
    pub audience: Arc<Audience>,
    /// The locks on all outputs.
    pub locks: Arc<Mutex<PathLocks>>,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All outputs are registered.
    Built,
    /// The client has been told why.
    Failed {
        /// It would fail again.
        permanent: bool,
        /// It ran out of time.
        timed_out: bool,
        /// It may be remembered with `--cache-failures`.
        cacheable: bool,
    },
}

/// Why a build failed, short of the whole request failing.
#[derive(Debug)]
pub(crate) struct BuildFailure {
    pub(crate) message: String,
    pub(crate) kind: FailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The derivation asks for what cannot be.
    InputRejected,
    /// The builder failed.
    Builder,
    /// The builder succeeded, its outputs are not acceptable.
    OutputRejected,
    /// It ran out of time; that has been told.
    TimedOut,
}

/// Ends a build: with the build's own failure, or with one of the machine or the request.
#[derive(Debug)]
pub(crate) enum Stop {
    Failure(BuildFailure),
    Fatal(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Fatal(error.into())
    }
}

/// A build's own failure.
pub(crate) fn reject(kind: FailureKind, message: impl Into<String>) -> Stop {
    Stop::Failure(BuildFailure { message: message.into(), kind })
}

/// Makes builds happen; shared by all of them.
#[derive(Clone)]
pub struct Builder {
    store: Store,
    settings: Arc<Settings>,
    sandbox: Arc<dyn Sandbox>,
    users: Option<Arc<UserPool>>,
    spawner: SpawnerHandle,
    /// Builds that were given up and are being cleaned up after.
    cleanups: TaskTracker,
}

/// Everything that one round of a build has on disk; removed when dropped, after the builder has been killed.
pub(crate) struct Workspace {
    // The order of the fields is the order in which they are dropped.
    running: Option<Running>,
    pub(crate) root: Option<BuildDir>,
    pub(crate) build_dir: Option<BuildDir>,
    user: Option<BuildUser>,
}

impl Workspace {
    /// Who must own what the builder made.
    pub(crate) fn build_uid(&self) -> Option<u32> {
        self.user.as_ref().map(BuildUser::uid)
    }
}

/// Owns the workspace and the locks while the builder runs, and cleans up off the runtime's threads when the build is given up.
struct Guard {
    held: Option<(Workspace, Arc<Mutex<PathLocks>>)>,
    cleanups: TaskTracker,
}

impl Guard {
    fn workspace(&mut self) -> Option<&mut Workspace> {
        self.held.as_mut().map(|(workspace, _)| workspace)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((mut workspace, locks)) = self.held.take() {
            debug!("a build is given up");
            let cleanup = async move {
                if let Some(mut running) = workspace.running.take() {
                    running.kill();
                    let _ = running.wait().await;
                }
                let _ = tokio::task::spawn_blocking(move || {
                    if let Some(user) = &workspace.user {
                        user.kill_processes();
                    }
                    drop(workspace);
                    drop(locks);
                })
                .await;
            };
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(self.cleanups.spawn_on(cleanup, &runtime)),
                Err(_) => debug!("no runtime to clean up with: the next start does it"),
            }
        }
    }
}

impl Builder {
    /// A builder for `store`, whose builders `spawner` starts, where builds do not run as the daemon under `users`.
    #[must_use]
    pub fn new(store: Store, settings: Arc<Settings>, spawner: SpawnerHandle, users: Option<Arc<UserPool>>) -> Builder {
        let sandbox: Arc<dyn Sandbox> = if settings.use_chroot {
            sandbox::confining(spawner.clone(), Site { limits: settings.limits.clone() })
        } else {
            Arc::new(Unconfined::new(spawner.clone()))
        };
        Builder { store, settings, sandbox, users, spawner, cleanups: TaskTracker::new() }
    }

    /// Waits until everything is cleaned up that belonged to builds which were given up.
    pub async fn settle(&self) {
        self.cleanups.close();
        self.cleanups.wait().await;
    }

    /// Builds `job`, in as many rounds as were asked for.
    pub async fn build(&self, job: Job) -> Result<Verdict, Error> {
        let options =
            job.audience.listeners().first().map_or_else(|| ClientOptions::new(&self.settings), |requester| requester.options.clone());
        let shown = self.store.store_dir().display(&job.drv_path);
        let mut previous = None;
        let (mut round, mut last) = (0_u64, false);
        while !last {
            round += 1;
            // As many as anybody who still waits has asked for: who has left no longer counts.
            let asked = job.audience.listeners().iter().map(|requester| requester.options.rounds).max();
            // A fixed-output derivation is checked against its hash, and need not be repeated.
            let rounds = if job.drv.is_fixed_output() { 1 } else { asked.unwrap_or(options.rounds).max(1) };
            last = round >= rounds;
            let verb = match job.mode {
                BuildMode::Repair => "repairing path(s)",
                BuildMode::Check => "checking path(s)",
                BuildMode::Normal => "building path(s)",
            };
            // Only then does guix-daemon count them aloud.
            let of = if rounds > 1 && job.mode == BuildMode::Normal { format!(" (round {round}/{rounds})") } else { String::new() };
            job.audience.message(Level::Info, &format!("{verb} {}{of}", show_paths(&self.store, &job.missing)));
            let mut kept = None;
            let verdict = match self.round(&job, &options, &mut previous, last, &mut kept).await {
                Ok(()) => continue,
                Err(Stop::Fatal(error)) => Err(error),
                Err(Stop::Failure(failure)) => Ok(self.report(&job, &shown, &failure)),
            };
            if let Some(dir) = kept {
                let facts = self.facts(&job)?;
                blocking(move || {
                    keep(&facts, dir);
                    Ok(())
                })
                .await?;
            }
            return verdict;
        }
        job.locks.lock().unwrap_or_else(PoisonError::into_inner).set_deletion(true);
        job.audience.trace(&format!("@ build-succeeded {shown} -"));
        Ok(Verdict::Built)
    }

    /// Tells everybody of a failure and classifies it.
    fn report(&self, job: &Job, shown: &str, failure: &BuildFailure) -> Verdict {
        if failure.kind == FailureKind::TimedOut {
            return Verdict::Failed { permanent: false, timed_out: true, cacheable: false };
        }
        job.audience.message(Level::Error, &failure.message);
        let code = u8::from(failure.kind != FailureKind::InputRejected);
        job.audience.trace(&format!("@ build-failed {shown} - {code} {}", failure.message));
        let transient = job.drv.is_fixed_output() || free_bytes(self.store.dir()) < DISK_FULL_BELOW;
        let builder = failure.kind == FailureKind::Builder;
        Verdict::Failed {
            permanent: failure.kind == FailureKind::InputRejected || builder && !transient,
            timed_out: false,
            cacheable: failure.kind != FailureKind::InputRejected && !transient,
        }
    }

    /// One round: everything is made anew, and gone at the end, or in `kept` when it failed and is to be looked at.
    async fn round(
        &self,
        job: &Job,
        options: &ClientOptions,
        previous: &mut Option<Vec<PathInfo>>,
        last: bool,
        kept: &mut Option<BuildDir>,
    ) -> Result<(), Stop> {
        let (workspace, plan) = self.prepare(job, options, kept).await?;
        let mut guard = Guard { held: Some((workspace, Arc::clone(&job.locks))), cleanups: self.cleanups.clone() };
        let ended = match self.run(job, options, &mut guard, &plan).await {
            Ok(ended) => ended,
            Err(stop) => {
                // Whose builder was never started shows what it would have been given.
                if let Some(workspace) = guard.workspace().filter(|workspace| options.keep_failed && workspace.running.is_none()) {
                    *kept = workspace.build_dir.take();
                }
                return Err(stop);
            }
        };
        let Some((mut workspace, _)) = guard.held.take() else {
            return Err(Error::request("internal error: a build lost its workspace").into());
        };
        workspace.running = None;
        if let Some(uid) = workspace.build_uid() {
            self.kill_user(uid).await?;
        }
        // From here on nothing of the builder runs; the rest is the disk's.
        let (this, job, keep_failed) = (self.clone(), self.facts(job)?, options.keep_failed);
        let before = previous.take();
        let (returned, dir, result) = tokio::task::spawn_blocking(move || {
            let mut previous = before;
            let result = this.conclude(&job, &mut workspace, ended, keep_failed, &mut previous, last);
            (previous, workspace.build_dir.take(), result)
        })
        .await
        .map_err(|error| Error::request(format!("internal error: {error}")))?;
        *previous = returned;
        *kept = dir;
        result
    }

    /// Kills all processes of a build user: only with none left is what they made safe from them.
    async fn kill_user(&self, uid: u32) -> Result<(), Error> {
        let spawner = self.spawner.clone();
        blocking(move || {
            spawner.kill_user(uid).map_err(|source| Error::request(format!("cannot kill processes for uid `{uid}': {source}")))
        })
        .await
    }

    /// Makes directories and plan, off the runtime's threads.
    /// When that fails and the directory is to be looked at, it is in `kept`.
    async fn prepare(&self, job: &Job, options: &ClientOptions, kept: &mut Option<BuildDir>) -> Result<(Workspace, Plan), Stop> {
        let user = match &self.users {
            Some(users) => Some(UserPool::acquire(users).await?),
            _ => None,
        };
        if let Some(user) = &user {
            self.kill_user(user.uid()).await?;
        }
        let (this, job, cores, keep_failed) = (self.clone(), self.facts(job)?, options.cores, options.keep_failed);
        let (prepared, dir) = tokio::task::spawn_blocking(move || {
            let mut dir = None;
            let prepared = this.prepare_blocking(&job, user, cores, &mut dir);
            (prepared, dir.filter(|_| keep_failed))
        })
        .await
        .map_err(|error| Error::request(format!("internal error: {error}")))?;
        *kept = dir;
        prepared
    }

    /// `made` has the build directory when it is there and the rest failed.
    fn prepare_blocking(
        &self,
        job: &JobFacts,
        user: Option<BuildUser>,
        cores: u64,
        made: &mut Option<BuildDir>,
    ) -> Result<(Workspace, Plan), Stop> {
        let confined = self.confines(&job.drv);
        let ids = user.as_ref().map(BuildUser::ids);
        let owner = ids.as_ref().map(|ids| (ids.uid, ids.gid));
        let name = job.drv_path.name();
        for path in job.redirected.values() {
            outputs::remove(&self.store, path)?;
        }
        if job.mode == BuildMode::Normal {
            // What is there is not valid: the locks are ours, and `missing` was found out under them.
            for path in &job.missing {
                outputs::remove(&self.store, path)?;
            }
        }
        let shape = if confined { Shape::Nested } else { Shape::Flat };
        let build_dir = made.insert(BuildDir::numbered(&self.settings.tmp_dir, &format!("{}{name}", build_dir::PREFIX), shape)?);
        self.export_references(job, build_dir)?;
        build_dir.hand_over(owner, 0o700)?;
        let root = if confined {
            let root = BuildDir::named(Path::new(self.store.store_dir().as_str()), format!("{}.chroot", job.drv_path.base_name()))?;
            root.hand_over(owner.map(|(_, gid)| (0, gid)), 0o750)?;
            Some(root)
        } else {
            None
        };
        let inside = if confined { PathBuf::from(format!("/tmp/guix-build-{name}-0")) } else { build_dir.top_path() };
        let env = self.environment(job, &inside, cores);
        let program = self.program(job, build_dir, &inside, owner, &env)?;
        let spec = BuildSpec {
            root: root.as_ref().map(BuildDir::top_path),
            build_dir: build_dir.top_path(),
            build_dir_inside: inside,
            host_files: if owner.is_some() { builtin_job::local_files(&job.drv) } else { Vec::new() },
            program,
            env,
            user: ids,
            ..spec(&self.settings, job)?
        };
        let plan = if confined { self.sandbox.plan(&spec)? } else { Plan::unconfined(&spec)? };
        Ok((Workspace { running: None, root, build_dir: made.take(), user }, plan))
    }

    fn program(
        &self,
        job: &JobFacts,
        build_dir: &BuildDir,
        inside: &Path,
        owner: Option<(u32, u32)>,
        env: &BTreeMap<BString, BString>,
    ) -> Result<Program, Stop> {
        // A builtin that does not exist, or a builder outside the store, fails in the child, whose words go to the build's log.
        let Some(name) = job.drv.builtin() else {
            if !job.drv.builder.contains(&b'/') {
                return Err(Error::request(format!("invalid file name `{}'", job.drv.builder)).into());
            }
            return Ok(exec(job));
        };
        let ca_bundle = match builtins::ca::collect(|name| std::env::var_os(name)) {
            Ok(Some(bundle)) => {
                build_dir.write_file(builtin_job::CA_FILE, &bundle, owner)?;
                Some(inside.join(builtin_job::CA_FILE))
            }
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "downloads trust the certificate authorities that fruixd was made with");
                None
            }
        };
        let env: Vec<_> = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let input = builtin_job::input(&self.store, job, &env, ca_bundle, owner.is_some())
            .map_err(|message| reject(FailureKind::InputRejected, message))?;
        Ok(Program::Builtin { name: name.to_string(), network: builtins::uses_network(&name.to_str_lossy()), input })
    }

    fn environment(&self, job: &JobFacts, build_dir: &Path, cores: u64) -> BTreeMap<BString, BString> {
        environment(&self.settings, job, build_dir, cores)
    }

    /// Writes the files that `exportReferencesGraph` asks for: pairs of a file name and a store path. They stay the daemon's.
    fn export_references(&self, job: &JobFacts, dir: &BuildDir) -> Result<(), Stop> {
        let Some(text) = job.drv.env_var("exportReferencesGraph") else { return Ok(()) };
        let words: Vec<&[u8]> = words(text).collect();
        if !words.len().is_multiple_of(2) {
            return Err(reject(FailureKind::InputRejected, format!("odd number of tokens in `exportReferencesGraph': `{text}'")));
        }
        for pair in words.chunks_exact(2) {
            let [name, path] = pair else { continue };
            fruix_drv::check_name(name).map_err(|error| Error::request(error.to_string()))?;
            let shown = path.as_bstr();
            let path =
                self.store.store_dir().to_store_path(path).map_err(|_| {
                    reject(FailureKind::InputRejected, format!("`exportReferencesGraph' contains a non-store path `{shown}'"))
                })?;
            if !self.store.is_valid(&path)? {
                return Err(reject(
                    FailureKind::InputRejected,
                    format!("`exportReferencesGraph' contains an invalid path `{}'", self.store.print(&path)),
                ));
            }
            let mut paths = closure(&self.store, [path])?;
            // Derivations bring their outputs, so that all build-time dependencies of something can be had.
            let derivations: Vec<_> = paths.iter().filter(|path| path.is_derivation()).cloned().collect();
            for derivation in derivations {
                let outputs = self.store.read_derivation(&derivation)?.outputs;
                paths.extend(closure(&self.store, outputs.into_values().map(|output| output.path))?);
            }
            let text = self.validity_registration(&paths)?;
            dir.write_file(&name.to_str_lossy(), text.as_bytes(), None)?;
        }
        Ok(())
    }

    /// A graph in the text format of upstream's validity registration, without hashes and derivers.
    fn validity_registration(&self, paths: &BTreeSet<StorePath>) -> Result<String, Error> {
        let mut text = String::new();
        for path in paths {
            let references = self.store.references(path)?;
            text += &format!("{}\n\n{}\n", self.store.print(path), references.len());
            for reference in references {
                text += &format!("{}\n", self.store.print(&reference));
            }
        }
        Ok(text)
    }

    /// Starts the builder and stays until it has ended.
    async fn run(&self, job: &Job, options: &ClientOptions, guard: &mut Guard, plan: &Plan) -> Result<Ended, Stop> {
        let shown = self.store.print(&job.drv_path);
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| Error::io("creating a pipe for the builder of", Path::new(&shown), errno.into()))?;
        let mut log = match self.settings.log_compression {
            Some(compression) => Some(BuildLog::create(&self.settings.log_dir, &job.drv_path, compression)?),
            None => None,
        };
        let running = self.sandbox.start(plan, writer).await?;
        let pid = running.pid();
        let Some(workspace) = guard.workspace() else { return Err(Error::request("internal error: a build lost its workspace").into()) };
        let running = workspace.running.insert(running);
        let log_name = log.as_ref().map(|log| log.path().display().to_string()).unwrap_or_default();
        job.audience.started(format!("@ build-started {shown} - {} {log_name} {pid}", job.drv.platform));
        let ended = self.follow(job, options, running, reader, pid, log.as_mut()).await;
        if let Some(log) = log {
            log.finish()?;
        }
        ended
    }

    async fn follow(
        &self,
        job: &Job,
        options: &ClientOptions,
        running: &mut Running,
        reader: OwnedFd,
        pid: i32,
        mut log: Option<&mut BuildLog>,
    ) -> Result<Ended, Stop> {
        let shown = self.store.print(&job.drv_path);
        let name = Path::new(&shown);
        let mut output = pipe::Receiver::from_owned_fd(reader).map_err(|source| Error::io("reading output of", name, source))?;
        let mut buffer = vec![0; READ_CHUNK];
        let begun = Instant::now();
        let (mut last, mut status, mut open, mut written) = (begun, None, true, 0_u64);
        while status.is_none() || open {
            // A builder that closes its output and goes on is still timed: the clock is the process's, not the pipe's.
            let now = Instant::now();
            let wake = match (&status, deadline(job, options, begun, last)) {
                (Some(_), _) => now + DRAIN,
                (None, Some((at, after))) if at <= now => {
                    job.audience.message(Level::Error, &format!("building of `{shown}' timed out after {after}"));
                    return self.time_out(job, running).await;
                }
                (None, Some((at, _))) => at.min(now + LOOK_AGAIN),
                (None, None) => now + LOOK_AGAIN,
            };
            tokio::select! {
                biased;
                got = output.read(&mut buffer), if open => {
                    let bytes = match got {
                        Ok(count) => buffer.get(..count).unwrap_or_default(),
                        Err(source) => return Err(Error::io("reading output of", name, source).into()),
                    };
                    if bytes.is_empty() {
                        open = false;
                        continue;
                    }
                    last = Instant::now();
                    written = written.saturating_add(bytes.len() as u64);
                    if options.max_log_size != 0 && written > options.max_log_size {
                        let limit = options.max_log_size;
                        job.audience
                            .message(Level::Error, &format!("building of `{shown}' killed after writing more than {limit} bytes of log output"));
                        return self.time_out(job, running).await;
                    }
                    job.audience.builder_output(pid, bytes);
                    if let Some(log) = log.as_deref_mut() {
                        log.write(bytes)?;
                    }
                }
                ended = running.wait(), if status.is_none() => status = Some(ended.map_err(Error::from)?),
                () = tokio::time::sleep_until(wake.into()) => {
                    if status.is_some() {
                        debug!(drv = %job.drv_path, "a process that the builder left behind holds its output open");
                        break;
                    }
                }
            }
        }
        Ok(status.map_or(Ended::TimedOut, Ended::Status))
    }

    /// Ends a build that has had enough.
    async fn time_out(&self, job: &Job, running: &mut Running) -> Result<Ended, Stop> {
        job.audience.trace(&format!("@ build-failed {} - timeout", self.store.print(&job.drv_path)));
        running.kill();
        let _ = running.wait().await;
        Ok(Ended::TimedOut)
    }

    /// Takes the outputs, or tells why not, and removes what the build leaves; its directory is still there if it is to be kept.
    fn conclude(
        &self,
        job: &JobFacts,
        workspace: &mut Workspace,
        ended: Ended,
        keep_failed: bool,
        previous: &mut Option<Vec<PathInfo>>,
        last: bool,
    ) -> Result<(), Stop> {
        let result = match &ended {
            Ended::Status(status) if status.success() => {
                outputs::register(&self.store, job, workspace, &outputs::Terms { keep_failed, last }, previous)
            }
            Ended::Status(status) => {
                let full = [workspace.build_dir.as_ref().map(|dir| free_bytes(dir.top())), Some(free_bytes(self.store.dir()))]
                    .into_iter()
                    .flatten()
                    .any(|free| free < DISK_FULL_BELOW);
                if keep_failed && let Some(dir) = workspace.build_dir.take() {
                    keep(job, dir);
                }
                outputs::leave_for_debugging(&self.store, job, workspace.root.as_ref(), workspace.build_uid());
                if full {
                    job.audience.message(Level::Error, "note: build failure may have been caused by lack of free disk space");
                }
                let drv = self.store.print(&job.drv_path);
                Err(reject(FailureKind::Builder, format!("builder for `{drv}' {status}")))
            }
            Ended::TimedOut => Err(reject(FailureKind::TimedOut, "timed out")),
        };
        outputs::remove_redirected(&self.store, job);
        if (result.is_ok() || !keep_failed)
            && let Some(dir) = workspace.build_dir.take()
            && let Err(error) = dir.remove()
        {
            warn!(%error, "a build directory is left behind");
        }
        result
    }
}

/// Leaves a build directory for whoever asked for the build.
fn keep(job: &JobFacts, dir: BuildDir) {
    job.audience.message(Level::Error, &format!("note: keeping build directory `{}'", dir.path().display()));
    if let Err(error) = dir.keep(job.client) {
        job.audience.message(Level::Error, &error.to_string());
    }
}

/// When the build is over that began at `begun` and was last heard of at `last`, and after what; looked at again and again.
///
/// Of each limit the most generous counts among those of all who still wait: nobody's impatience ends what somebody else waits for, and nobody's
/// patience outlasts his interest.
fn deadline(job: &Job, options: &ClientOptions, begun: Instant, last: Instant) -> Option<(Instant, String)> {
    let listeners = job.audience.listeners();
    let laxest = |limit: fn(&ClientOptions) -> u64| {
        laxest(listeners.iter().map(|requester| limit(&requester.options))).unwrap_or_else(|| limit(options))
    };
    let at = |from: Instant, seconds: u64, what: &str| {
        let after = Duration::from_secs(Some(seconds).filter(|seconds| *seconds != 0)?);
        Some((from.checked_add(after)?, format!("{seconds} seconds{what}")))
    };
    let silence = at(last, laxest(|options| options.max_silent_time), " of silence");
    let time = at(begun, laxest(|options| options.timeout), "");
    silence.into_iter().chain(time).min_by_key(|(at, _)| *at)
}

/// The most generous of some limits, of which 0 is none.
fn laxest(limits: impl Iterator<Item = u64>) -> Option<u64> {
    limits.max_by_key(|limit| limit.wrapping_sub(1))
}

/// How the builder ended.
#[derive(Debug)]
enum Ended {
    Status(ExitStatus),
    TimedOut,
}

/// What of a [`Job`] the parts need that run on other threads.
#[derive(Clone)]
pub(crate) struct JobFacts {
    pub(crate) drv_path: StorePath,
    pub(crate) drv: Arc<Derivation>,
    pub(crate) mode: BuildMode,
    pub(crate) inputs: BTreeSet<StorePath>,
    pub(crate) missing: BTreeSet<StorePath>,
    /// Valid outputs that the builder makes under another name.
    pub(crate) redirected: BTreeMap<StorePath, StorePath>,
    pub(crate) audience: Arc<Audience>,
    /// Who gets what a failed build leaves.
    pub(crate) client: Option<(u32, u32)>,
    /// Whether a client reads traces.
    pub(crate) traced: bool,
    /// Whether a client reads the traces of downloads.
    pub(crate) extended_trace: bool,
}

impl JobFacts {
    /// What turns the hashes that a builder saw back to the true ones.
    pub(crate) fn rewrites_back(&self) -> Rewrites {
        self.redirected.iter().filter_map(|(path, other)| Some((hash_bytes(other)?, hash_bytes(path)?))).collect()
    }

    /// `bytes` with the hashes of the outputs that are redirected replaced.
    fn redirect(&self, bytes: &BString) -> BString {
        let mut text = bytes.clone();
        for (path, other) in &self.redirected {
            text = text.replace(path.hash_part(), other.hash_part()).into();
        }
        text
    }
}

fn hash_bytes(path: &StorePath) -> Option<[u8; 32]> {
    path.hash_part().as_bytes().try_into().ok()
}

impl Builder {
    /// What of `job` its parts need.
    fn facts(&self, job: &Job) -> Result<JobFacts, Error> {
        let listeners = job.audience.listeners();
        let mut facts = JobFacts {
            drv_path: job.drv_path.clone(),
            drv: Arc::clone(&job.drv),
            mode: job.mode,
            inputs: job.inputs.clone(),
            missing: job.missing.clone(),
            redirected: BTreeMap::new(),
            audience: Arc::clone(&job.audience),
            client: listeners.first().and_then(|requester| requester.uid.zip(requester.gid)),
            traced: listeners.iter().any(|requester| requester.options.print_build_trace),
            extended_trace: listeners.iter().any(|requester| requester.options.extended_trace),
        };
        if !self.confines(&job.drv) {
            // Without a root of its own a builder would overwrite outputs that are valid: it gets other names for them.
            for path in job.drv.output_paths() {
                if self.store.is_valid(path)? {
                    let text = format!("rewrite:{}:{}", self.store.print(&job.drv_path), self.store.print(path));
                    let hash = Hash::sha256(text).base32();
                    let name = format!("{}-{}", hash.get(..32).unwrap_or_default(), path.name());
                    let other = StorePath::from_base_name(name).map_err(|error| Error::request(error.to_string()))?;
                    facts.redirected.insert(path.clone(), other);
                }
            }
        }
        Ok(facts)
    }

    /// Whether the builder of `drv` gets a root of its own.
    fn confines(&self, drv: &Derivation) -> bool {
        self.settings.use_chroot && builtin_job::confinable(drv)
    }
}

/// What of a spec follows from settings and derivation alone; the rest is as for a look at it.
fn spec(settings: &Settings, job: &JobFacts) -> Result<BuildSpec, Error> {
    let inside = PathBuf::from(format!("/tmp/guix-build-{}-0", job.drv_path.name()));
    Ok(BuildSpec {
        drv_name: settings.store_dir.display(&job.drv_path).to_string(),
        traced: job.traced,
        store_dir: settings.store_dir.clone(),
        root: None,
        build_dir: inside.clone(),
        env: environment(settings, job, &inside, settings.cores),
        build_dir_inside: inside,
        inputs: job.inputs.clone(),
        outputs: job.drv.output_paths().map(|path| job.redirected.get(path).unwrap_or(path).clone()).collect(),
        extra_dirs: settings.chroot_dirs.clone(),
        builder_root: builder_root(settings, job)?,
        host_files: Vec::new(),
        program: exec(job),
        fixed_output: job.drv.is_fixed_output(),
        user: None,
        platform: job.drv.platform.to_string(),
        system: settings.system.clone(),
        impersonate_linux_26: settings.impersonate_linux_26,
        isolate_host_loopback: settings.isolate_host_loopback,
    })
}

/// What of an input shows in the root of a derivation that names it in `builderRoot`: a builder may then run programs that want to be in their usual places.
const ROOT_DIRECTORIES: [&str; 7] = ["bin", "lib", "lib32", "lib64", "libexec", "sbin", "usr"];

fn builder_root(settings: &Settings, job: &JobFacts) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
    let Some(value) = job.drv.env_var("builderRoot") else { return Ok(Vec::new()) };
    let wrong = |why: &str| Error::request(format!("builderRoot of `{}': `{value}' {why}", settings.store_dir.display(&job.drv_path)));
    if !settings.use_chroot || !builtin_job::confinable(&job.drv) {
        return Err(wrong("needs a sandbox, which this daemon does not make"));
    }
    let path = value.to_str().ok().and_then(|text| settings.store_dir.parse(text).ok());
    let Some(path) = path.filter(|path| job.inputs.contains(path)) else { return Err(wrong("is none of its inputs")) };
    let top = PathBuf::from(settings.store_dir.display(&path));
    let is_directory = std::fs::symlink_metadata(&top).is_ok_and(|metadata| metadata.is_dir());
    let named = ROOT_DIRECTORIES.iter().map(|name| (Path::new("/").join(name), top.join(name)));
    let shown: Vec<_> = named.filter(|(_, source)| std::fs::symlink_metadata(source).is_ok()).collect();
    if !is_directory || shown.is_empty() {
        return Err(wrong(&format!("has none of the directories {}", ROOT_DIRECTORIES.join(", "))));
    }
    Ok(shown)
}

fn exec(job: &JobFacts) -> Program {
    let drv = &job.drv;
    let name = drv.builder.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let args = std::iter::once(BString::from(name)).chain(drv.args.iter().map(|arg| job.redirect(arg))).collect();
    Program::Exec { path: drv.builder.clone(), args }
}

/// The plan of a build of `drv_path`, for a look at it: nothing is made or started.
pub(crate) fn plan_for(settings: &Settings, store: &Store, drv_path: &StorePath) -> Result<Plan, Error> {
    let drv = store.read_derivation(drv_path)?;
    let mut starts: BTreeSet<StorePath> = drv.input_srcs.clone();
    for (input, names) in &drv.input_drvs {
        let outputs = store.read_derivation(input)?.outputs;
        starts.extend(names.iter().filter_map(|name| outputs.get(name)).map(|output| output.path.clone()));
    }
    let job = JobFacts {
        drv_path: drv_path.clone(),
        missing: drv.output_paths().cloned().collect(),
        mode: BuildMode::Normal,
        inputs: closure(store, starts)?,
        redirected: BTreeMap::new(),
        audience: Audience::nobody(),
        client: None,
        traced: false,
        extended_trace: false,
        drv: Arc::new(drv),
    };
    let confined = settings.use_chroot && builtin_job::confinable(&job.drv);
    let root = confined.then(|| PathBuf::from(format!("{}.chroot/top", store.print(drv_path))));
    let spec = BuildSpec { root, ..spec(settings, &job)? };
    Ok(if confined { sandbox::confined_plan(&spec, &Site { limits: settings.limits.clone() })? } else { Plan::unconfined(&spec)? })
}

/// The environment of the builder, in upstream's order, which is that of the names.
fn environment(settings: &Settings, job: &JobFacts, build_dir: &Path, cores: u64) -> BTreeMap<BString, BString> {
    let build_dir = build_dir.as_os_str().as_encoded_bytes();
    let mut env: BTreeMap<BString, BString> = BTreeMap::new();
    let mut set = |name: &str, value: &[u8]| drop(env.insert(name.into(), value.into()));
    set("PATH", b"/path-not-set");
    set("HOME", HOME.as_bytes());
    set("NIX_STORE", settings.store_dir.as_str().as_bytes());
    set("NIX_BUILD_CORES", cores.to_string().as_bytes());
    for (name, value) in &job.drv.env {
        set(&name.to_str_lossy(), &job.redirect(value));
    }
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        set(name, build_dir);
    }
    if job.drv.is_fixed_output()
        && let Some(names) = job.drv.env_var("impureEnvVars")
    {
        for name in words(names) {
            use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
            let value = std::env::var_os(std::ffi::OsStr::from_bytes(name)).unwrap_or_default().into_vec();
            set(&name.to_str_lossy(), &value);
        }
    }
    env
}

/// The words of a derivation's variable that holds a list.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| b" \t\n\r".contains(byte)).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_the_most_generous_one() {
        assert_eq!(laxest([3, 1, 7].into_iter()), Some(7));
        assert_eq!(laxest([3, 0, u64::MAX].into_iter()), Some(0));
        assert_eq!(laxest(std::iter::empty()), None);
    }
}
