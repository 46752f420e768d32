//! FreeBSD: a keeper beside every builder, and what a daemon that died left behind.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fruix_freebsd::{Host, Kernel as _, builder_devices, provide_ruleset, tear_down};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::jails::{State, outer, prefix};
use super::super::keeper::{self, Jails, Word};
use super::super::{Builtins, ExitStatus, Plan};
use super::{Failure, Isolation, Report, Request, detach, live, packet_pair, receive, send};
use crate::sys::{self, Forked};

/// How long to wait for the spawner of a daemon that is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look whether it is gone.
const POLL: Duration = Duration::from_millis(20);

/// How a spawner may be started.
#[derive(Debug)]
pub(super) enum Choice {
    /// Without jails.
    Plain,
    /// With them.
    Jails(Jailer),
}

/// The ways that are tried, best first.
pub(super) fn choices() -> [Choice; 1] {
    [Choice::Plain]
}

pub(super) fn isolation(choice: &Choice) -> Isolation {
    match choice {
        Choice::Plain => Isolation::BestEffort,
        Choice::Jails(_) => Isolation::Jails,
    }
}

/// The number of a builder's process here.
pub(super) fn pid_here(pid: i32, _process: Option<OwnedFd>) -> i32 {
    pid
}

/// Everything that jails need, looked up or made before the spawner is: leftovers are gone, the ruleset is there. As long as it lives no other
/// daemon of this state directory gets this far.
#[derive(Debug)]
pub struct Jailer {
    jails: Jails,
    _lock: File,
}

impl Jailer {
    /// Removes what daemons of this state directory left that are gone, and prepares for jails of our own.
    ///
    /// # Errors
    /// The caller is not root, the kernel lacks something, or the state directory cannot be written.
    pub fn prepare(state_dir: &Path) -> io::Result<Jailer> {
        let dir = state_dir.join("jails");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lock = open_lock(&dir)?;
        lock.lock()?;
        let metadata = std::fs::metadata(state_dir)?;
        let prefix = prefix(metadata.dev(), metadata.ino());
        sweep(&dir, &prefix)?;
        let features = Host.features()?;
        for needed in ["nullfs", "devfs"] {
            if !features.has_file_system(needed) {
                return Err(io::Error::other(format!("the kernel has no {needed}: `kldload {needed}'")));
            }
        }
        let ruleset = provide_ruleset(&mut Host, &builder_devices()).map_err(|error| io::Error::other(error.to_string()))?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let instance = format!("{}x{started}", std::process::id());
        let instance_dir = dir.join(&instance);
        std::fs::DirBuilder::new().mode(0o700).create(&instance_dir)?;
        let jails = Jails { dir: instance_dir, prefix: format!("{prefix}{instance}-"), features, ruleset };
        Ok(Jailer { jails, _lock: lock })
    }

    /// What this kernel has.
    #[must_use]
    pub fn features(&self) -> &fruix_freebsd::Features {
        &self.jails.features
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(dir.join("lock"))
}

/// Removes jails, mounts, directories and state of the instances that are gone.
fn sweep(dir: &Path, prefix: &str) -> io::Result<()> {
    let mut instances = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_gone(&entry.path(), &name) {
            sweep_instance(&entry.path())?;
        } else {
            instances.push(name);
        }
    }
    for (id, name) in Host.jails()? {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        let instance = rest.rsplit_once('-').map_or(rest, |(instance, _)| instance);
        if !instances.iter().any(|other| other == instance) {
            Host.remove_jail(id)?;
            Host.remove_limits(&format!("jail:{name}"))?;
            eprintln!("fruixd: removed jail `{name}', which an earlier daemon left");
        }
    }
    Ok(())
}

/// Whether nobody has an instance's lock any more. Where its daemon is gone but its spawner still cleans up, this waits.
fn is_gone(dir: &Path, name: &str) -> bool {
    let Ok(lock) = open_lock(dir) else { return true };
    let daemon = name.split('x').next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
    let since = Instant::now();
    loop {
        if lock.try_lock().is_ok() {
            return true;
        }
        let dead = daemon.is_some_and(|pid| nix::sys::signal::kill(pid, None) == Err(Errno::ESRCH));
        if !dead || since.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

fn sweep_instance(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        // Its spawner has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "lock") {
            continue;
        }
        match serde_json::from_slice::<State>(&std::fs::read(&path)?) {
            Ok(state) => {
                tear_down(&mut Host, &state.jail, &state.root, true).map_err(|error| io::Error::other(error.to_string()))?;
                remove_root(&state.root)?;
                eprintln!("fruixd: removed jail `{}', which an earlier daemon left", state.jail);
            }
            // Nothing is mounted before it is written whole.
            Err(error) => eprintln!("fruixd: `{}' is not whole, and ignored: {error}", path.display()),
        }
        std::fs::remove_file(&path)?;
    }
    let _ = std::fs::remove_file(dir.join("lock"));
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the directory that a root is in. Nothing is mounted there any more.
fn remove_root(root: &Path) -> io::Result<()> {
    let Some(outer) = outer(root) else { return Ok(()) };
    let (Some(parent), Some(name)) = (outer.parent(), outer.file_name()) else { return Ok(()) };
    let parent = OwnedFd::from(File::open(parent)?);
    fruix_store::fsutil::remove_tree(&parent, name, outer, 0).map(drop).map_err(|error| io::Error::other(error.to_string()))
}

/// Forks the spawner and waits until it is ready.
pub(super) fn start_spawner(choice: &Choice, builtins: Builtins) -> io::Result<(OwnedFd, i32)> {
    let (ours, theirs) = packet_pair()?;
    match sys::fork()? {
        Forked::Parent(pid) => {
            drop(theirs);
            match receive::<Report>(ours.as_fd()) {
                Ok(Some((Report::Ready { .. }, _))) => Ok((ours, pid)),
                other => {
                    let _ = waitpid(Pid::from_raw(pid), None);
                    Err(other.err().unwrap_or_else(|| io::ErrorKind::PermissionDenied.into()))
                }
            }
        }
        Forked::Child => live(|| {
            fruix_freebsd::become_reaper()?;
            detach(c"fruixd-spawner", &theirs)?;
            let jails = match choice {
                Choice::Plain => None,
                Choice::Jails(jailer) => Some(jailer.jails.clone()),
            };
            let lock = match &jails {
                Some(jails) => {
                    let lock = open_lock(&jails.dir)?;
                    lock.lock()?;
                    Some(lock)
                }
                None => None,
            };
            let isolation = isolation(choice);
            Spawner { socket: theirs, isolation, jails, builtins, builds: HashMap::new(), daemon_lives: true, _lock: lock }.serve()
        }),
    }
}

/// The spawner's own side.
struct Spawner {
    socket: OwnedFd,
    isolation: Isolation,
    jails: Option<Jails>,
    builtins: Builtins,
    builds: HashMap<u64, Build>,
    daemon_lives: bool,
    /// Says that this instance lives; its keepers inherit it.
    _lock: Option<File>,
}

/// A build, as the spawner knows it.
struct Build {
    keeper: Pid,
    socket: OwnedFd,
    /// Its root, if it has one of its own.
    root: Option<PathBuf>,
    started: bool,
    failure: Option<Failure>,
    status: Option<ExitStatus>,
}

impl Spawner {
    fn serve(mut self) -> io::Result<()> {
        send(self.socket.as_fd(), &Report::Ready { isolation: self.isolation }, &[])?;
        while self.daemon_lives || !self.builds.is_empty() {
            let (daemon, ready) = self.wait()?;
            for id in ready {
                self.hear(id);
            }
            // Orphans of builders whose keeper is gone.
            while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {}
            if daemon {
                match receive::<Request>(self.socket.as_fd()) {
                    Ok(Some((Request::Start { id }, fds))) => self.start(id, fds),
                    Ok(Some((Request::Kill { id }, _))) => self.stop(id),
                    Ok(None) | Err(_) => {
                        self.daemon_lives = false;
                        for id in self.builds.keys() {
                            self.stop(*id);
                        }
                    }
                }
            }
        }
        if let Some(jails) = &self.jails {
            let _ = std::fs::remove_file(jails.dir.join("lock"));
            let _ = std::fs::remove_dir(&jails.dir);
        }
        Ok(())
    }

    /// Waits for something to read: from the daemon, and from which builds.
    fn wait(&self) -> io::Result<(bool, Vec<u64>)> {
        let builds: Vec<_> = self.builds.iter().collect();
        let mut fds: Vec<_> = builds.iter().map(|(_, build)| PollFd::new(build.socket.as_fd(), PollFlags::POLLIN)).collect();
        if self.daemon_lives {
            fds.push(PollFd::new(self.socket.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let daemon = self.daemon_lives && fds.last().is_some_and(is_ready);
        let ready = builds.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|((id, _), _)| **id).collect();
        Ok((daemon, ready))
    }

    fn report(&self, report: &Report) {
        // A daemon that is gone need not be told.
        let _ = send(self.socket.as_fd(), report, &[]);
    }

    fn start(&mut self, id: u64, fds: Vec<OwnedFd>) {
        match self.try_start(id, fds) {
            Ok(build) => drop(self.builds.insert(id, build)),
            Err(error) => self.report(&Report::Failed { id, failure: Failure::new("starting the child process", Path::new(""), &error) }),
        }
    }

    fn try_start(&mut self, id: u64, fds: Vec<OwnedFd>) -> io::Result<Build> {
        let mut fds = fds.into_iter();
        let (Some(plan), Some(output)) = (fds.next(), fds.next()) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let plan: Plan = serde_json::from_reader(io::BufReader::new(File::from(plan)))?;
        let root = match &plan.root {
            super::super::plan::Root::Private { dir } => Some(dir.clone()),
            super::super::plan::Root::Host => None,
        };
        let (ours, theirs) = packet_pair()?;
        match sys::fork()? {
            Forked::Parent(pid) => {
                Ok(Build { keeper: Pid::from_raw(pid), socket: ours, root, started: false, failure: None, status: None })
            }
            Forked::Child => {
                // The ends of the other keepers' sockets, and that of the daemon's, must be seen where they are read.
                self.builds.clear();
                drop(ours);
                let (jails, builtins) = (self.jails.clone(), self.builtins);
                let null = File::open("/dev/null").map(OwnedFd::from);
                live(|| {
                    drop(std::mem::replace(&mut self.socket, null?));
                    sys::set_name(c"fruixd-keeper");
                    keeper::keep(&plan, id, output, &theirs, jails.as_ref(), builtins)
                })
            }
        }
    }

    /// Takes note of what a keeper or its builder says.
    fn hear(&mut self, id: u64) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        match receive::<Word>(build.socket.as_fd()) {
            Ok(Some((Word::Started { pid }, _))) => {
                build.started = true;
                self.report(&Report::Started { id, pid });
            }
            Ok(Some((Word::Failed(failure), _))) => drop(build.failure.get_or_insert(failure)),
            Ok(Some((Word::Ended(status), _))) => build.status = Some(status),
            Ok(None) | Err(_) => self.finish(id),
        }
    }

    /// A keeper is gone.
    fn finish(&mut self, id: u64) {
        let Some(build) = self.builds.remove(&id) else { return };
        while waitpid(build.keeper, None) == Err(Errno::EINTR) {}
        let mut failure = build.failure.filter(|_| !build.started);
        let mut nothing_left = build.status.is_some();
        if !nothing_left && let (Some(jails), Some(root)) = (&self.jails, &build.root) {
            // It did not end as it should. Its builder may still run, and is nobody's child.
            let (name, file) = jails.names(id);
            match tear_down(&mut Host, &name, root, true) {
                Ok(()) => {
                    nothing_left = true;
                    let _ = std::fs::remove_file(file);
                }
                Err(error) => {
                    let error = io::Error::other(error.to_string());
                    failure.get_or_insert(Failure::new("removing a jail", root, &error));
                }
            }
        }
        // Whose directory it is cannot remove it any more.
        if !self.daemon_lives
            && nothing_left
            && let Some(root) = &build.root
        {
            let _ = remove_root(root);
        }
        let report = match failure {
            Some(failure) => Report::Failed { id, failure },
            None => Report::Ended { id, status: build.status.unwrap_or(ExitStatus::Signal(libc::SIGKILL)) },
        };
        self.report(&report);
    }

    fn stop(&self, id: u64) {
        if let Some(build) = self.builds.get(&id) {
            let _ = send(build.socket.as_fd(), &"stop", &[]);
        }
    }
}
