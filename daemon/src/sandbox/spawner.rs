//! The process that starts all builders.
//!
//! [`SpawnerHandle::start`] forks it before the daemon has a second thread, so no process with several threads ever forks. It is process 1 of a
//! PID namespace: when it ends, the kernel kills whatever runs in it. It ends when its socket does, and that ends with the daemon, however the
//! daemon ends. Where PID namespaces are not to be had, neither as root nor in a user namespace, it is an ordinary process that adopts orphans and
//! kills what it can find; see [`Isolation`].
//!
//! Over a `SOCK_SEQPACKET` pair go [`Request`]s, with the plan in a file in memory, and [`Report`]s. The spawner itself only clones, waits and
//! passes on; all that can block or fail is done by the new process. What it does is the platform's: `spawner_linux.rs` and
//! `spawner_freebsd.rs`.
//!
//! A second, even smaller process, the *killer*, stays in the host's PID namespace and kills all processes of a build user on demand, as upstream
//! does before and after each build: those of an earlier daemon are not in the spawner's namespace.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, recvmsg, sendmsg, shutdown,
    socketpair,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{debug, error};

use super::{Builtins, Error, ExitStatus, Plan};
use crate::sys::{self, Forked};

#[cfg(target_os = "freebsd")]
#[path = "spawner_freebsd.rs"]
mod platform;
#[cfg(target_os = "linux")]
#[path = "spawner_linux.rs"]
mod platform;

#[cfg(target_os = "freebsd")]
pub use platform::Jailer;

/// The longest message over the socket, in bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// The most descriptors in a message.
const MAX_FDS: usize = 4;

/// From the daemon. The descriptors are those of the plan and of the builder's output.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Start { id: u64 },
    Kill { id: u64 },
}

/// To the daemon. With `Started` comes the process's number, and where that is one of another namespace, a descriptor of the process.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready { isolation: Isolation },
    Started { id: u64, pid: i32 },
    Failed { id: u64, failure: Failure },
    Ended { id: u64, status: ExitStatus },
}

/// Why a builder's surroundings could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) step: String,
    pub(super) path: String,
    /// The system's number for the error, or 0 where there is only `message`.
    pub(super) errno: i32,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(step: &str, path: &std::path::Path, source: &io::Error) -> Failure {
        let mut path = path.to_string_lossy().into_owned();
        path.truncate(path.floor_char_boundary(MAX_MESSAGE / 8));
        Failure { step: step.to_owned(), path, errno: source.raw_os_error().unwrap_or(0), message: source.to_string() }
    }

    fn into_error(self) -> Error {
        let source = if self.errno == 0 { io::Error::other(self.message) } else { io::Error::from_raw_os_error(self.errno) };
        Error::Setup { step: self.step, path: PathBuf::from(self.path), source }
    }
}

/// What happens to builders when the daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// The kernel kills all of them: the spawner is process 1 of a PID namespace.
    Kernel,
    /// As above; the daemon has no privileges, and the namespace is one of an ordinary user.
    KernelUnprivileged,
    /// Builders run in jails. The spawner removes them when the daemon dies; when it is killed itself, each jail is removed by the process beside it.
    Jails,
    /// The spawner kills those that it finds, and itself must not be killed. Builders with a root of their own cannot be started.
    BestEffort,
}

/// The daemon's end of the spawner. Clones are the same spawner; with the last one, all builders end.
#[derive(Clone, Debug)]
pub struct SpawnerHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    socket: OwnedFd,
    isolation: Isolation,
    pid: i32,
    killer: Option<Mutex<OwnedFd>>,
    killer_pid: Option<i32>,
    next: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
    reader: Once,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Nobody will answer any more.
    gone: bool,
    builds: HashMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    started: Option<oneshot::Sender<Result<i32, Error>>>,
    ended: oneshot::Sender<ExitStatus>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SpawnerHandle {
    /// Forks the spawner, and as root the killer. To be called while the process has one thread and no open file that builders must not have
    /// kept open: the new processes close what they inherit, but see it for a moment. `builtins` finds the builders inside the daemon.
    ///
    /// # Errors
    /// There are several threads, or the system refuses a process.
    pub fn start(builtins: Builtins) -> Result<SpawnerHandle, Error> {
        Self::start_any(&platform::choices(), builtins)
    }

    /// As [`start`](Self::start), with builders in jails.
    ///
    /// # Errors
    /// There are several threads, or the system refuses a process.
    #[cfg(target_os = "freebsd")]
    pub fn start_with_jails(builtins: Builtins, jailer: Jailer) -> Result<SpawnerHandle, Error> {
        Self::start_any(&[platform::Choice::Jails(jailer)], builtins)
    }

    fn start_any(choices: &[platform::Choice], builtins: Builtins) -> Result<SpawnerHandle, Error> {
        let failed = |doing: &'static str| move |source: io::Error| Error::Spawner { doing, source };
        let root = Uid::effective().is_root();
        let killer = if root { Some(start_killer().map_err(failed("starting the killer"))?) } else { None };
        let mut last = None;
        for choice in choices {
            let isolation = platform::isolation(choice);
            match platform::start_spawner(choice, builtins) {
                Ok((socket, pid)) => {
                    let (killer_pid, killer) = killer.map(|(pid, socket)| (pid, Mutex::new(socket))).unzip();
                    return Ok(SpawnerHandle(Arc::new(Inner {
                        socket,
                        isolation,
                        pid,
                        killer,
                        killer_pid,
                        next: AtomicU64::new(0),
                        waiting: Arc::default(),
                        reader: Once::new(),
                    })));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(failed("starting the spawner")(last.unwrap_or_else(|| io::ErrorKind::Unsupported.into())))
    }

    /// What happens to builders when the daemon dies.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.0.isolation
    }

    /// The spawner's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Starts a builder; see [`super::Sandbox::start`].
    pub fn start_builder(&self, plan: &Plan, output: OwnedFd) -> impl Future<Output = Result<Running, Error>> + Send + use<> {
        let begun = self.begin(plan, &output);
        drop(output);
        async move {
            let (guard, started, ended) = begun?;
            let pid = Some(started.await.map_err(|_| Error::Gone)??).filter(|pid| *pid > 0).unwrap_or_else(|| guard.stand_in());
            Ok(Running { guard, ended, pid, status: None })
        }
    }

    fn begin(&self, plan: &Plan, output: &OwnedFd) -> Result<Begun, Error> {
        let failed = |source: io::Error| Error::Spawner { doing: "asking the spawner for a builder", source };
        self.listen();
        let plan = plan_file(plan).map_err(failed)?;
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (started, has_started) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        {
            let mut waiting = lock(&self.0.waiting);
            if waiting.gone {
                return Err(Error::Gone);
            }
            waiting.builds.insert(id, Waiter { started: Some(started), ended });
        }
        let guard = KillGuard { id, spawner: self.clone() };
        if let Err(error) = send(self.0.socket.as_fd(), &Request::Start { id }, &[plan.as_fd(), output.as_fd()]) {
            lock(&self.0.waiting).builds.remove(&id);
            return Err(failed(error));
        }
        Ok((guard, has_started, has_ended))
    }

    /// Kills all processes of a user, wherever they run, and returns when that is done. This blocks, though not for long.
    ///
    /// # Errors
    /// The user is root or the daemon's, the daemon is not root, or the system refuses.
    pub fn kill_user(&self, uid: u32) -> io::Result<()> {
        if uid == 0 || uid == Uid::effective().as_raw() {
            return Err(io::Error::other("not a build user"));
        }
        let Some(killer) = &self.0.killer else { return Err(io::ErrorKind::PermissionDenied.into()) };
        let turn = lock(killer);
        let mut socket = File::from(turn.try_clone()?);
        socket.write_all(&uid.to_le_bytes())?;
        let mut answer = [0; 4];
        socket.read_exact(&mut answer)?;
        match i32::from_le_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Starts the thread that reads reports. It is not started with the spawner, so that there is still one thread when that returns.
    fn listen(&self) {
        self.0.reader.call_once(|| {
            let waiting = Arc::downgrade(&self.0.waiting);
            let pid = self.0.pid;
            let thread = self.0.socket.try_clone().and_then(|socket| {
                std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
                    read_reports(&socket, &waiting);
                    let _ = waitpid(Pid::from_raw(pid), None);
                })
            });
            if let Err(error) = thread {
                error!(%error, "cannot listen to the spawner");
                lock(&self.0.waiting).gone = true;
            }
        });
    }
}

type Begun = (KillGuard, oneshot::Receiver<Result<i32, Error>>, oneshot::Receiver<ExitStatus>);

impl Drop for Inner {
    fn drop(&mut self) {
        // The reader's copy of the socket sees this too, and so does the spawner, which then ends.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if !self.reader.is_completed() {
            let _ = waitpid(Pid::from_raw(self.pid), None);
        }
        if let (Some(killer), Some(pid)) = (&self.killer, self.killer_pid) {
            let _ = shutdown(lock(killer).as_raw_fd(), Shutdown::Both);
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

/// A builder that runs. Dropping it kills the builder and all its processes.
#[derive(Debug)]
pub struct Running {
    guard: KillGuard,
    ended: oneshot::Receiver<ExitStatus>,
    pid: i32,
    status: Option<ExitStatus>,
}

impl Running {
    /// Its process number in the daemon's PID namespace; a number that no process has if it ended at once, or if there is no `/proc`. No two
    /// builds that run have the same.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it with all its processes. [`wait`](Self::wait) tells when that is done.
    pub fn kill(&self) {
        self.guard.kill();
    }

    /// Waits for its end. Inside a PID namespace all its processes have ended then, not only its first. May be cancelled and called again.
    ///
    /// # Errors
    /// The spawner is gone, and with it the builder.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = (&mut self.ended).await.map_err(|_| Error::Gone)?;
        self.status = Some(status);
        Ok(status)
    }
}

/// Kills a builder when dropped; the spawner does not mind if it has ended.
#[derive(Debug)]
struct KillGuard {
    id: u64,
    spawner: SpawnerHandle,
}

impl KillGuard {
    /// A number beyond those of processes.
    fn stand_in(&self) -> i32 {
        const ABOVE_PROCESSES: i32 = 1 << 30;
        ABOVE_PROCESSES + i32::try_from(self.id % (1 << 29)).unwrap_or(0)
    }

    fn kill(&self) {
        if lock(&self.spawner.0.waiting).builds.contains_key(&self.id)
            && let Err(error) = send(self.spawner.0.socket.as_fd(), &Request::Kill { id: self.id }, &[])
        {
            debug!(%error, "the spawner does not listen");
        }
    }
}

impl Drop for KillGuard {
    fn drop(&mut self) {
        self.kill();
    }
}

fn plan_file(plan: &Plan) -> io::Result<File> {
    let mut file = File::from(memfd_create("plan", MFdFlags::MFD_CLOEXEC)?);
    let mut writer = io::BufWriter::new(&mut file);
    serde_json::to_writer(&mut writer, plan)?;
    writer.flush()?;
    drop(writer);
    file.rewind()?;
    Ok(file)
}

fn read_reports(socket: &OwnedFd, waiting: &Weak<Mutex<Waiting>>) {
    loop {
        let report = receive::<Report>(socket.as_fd());
        let Some(waiting) = waiting.upgrade() else { return };
        let mut waiting = lock(&waiting);
        match report {
            Ok(Some((Report::Ready { .. }, _))) => {}
            Ok(Some((Report::Started { id, pid }, mut fds))) => {
                if let Some(waiter) = waiting.builds.get_mut(&id)
                    && let Some(started) = waiter.started.take()
                {
                    let _ = started.send(Ok(platform::pid_here(pid, fds.pop())));
                }
            }
            Ok(Some((Report::Failed { id, failure }, _))) => {
                if let Some(Waiter { started: Some(started), .. }) = waiting.builds.remove(&id) {
                    let _ = started.send(Err(failure.into_error()));
                }
            }
            Ok(Some((Report::Ended { id, status }, _))) => match waiting.builds.remove(&id) {
                Some(Waiter { started: Some(started), .. }) => drop(started.send(Err(Error::Ended { status }))),
                Some(Waiter { ended, .. }) => drop(ended.send(status)),
                None => {}
            },
            Ok(None) | Err(_) => {
                // Dropping the senders wakes everybody that waits.
                waiting.gone = true;
                waiting.builds.clear();
                return;
            }
        }
    }
}

/// Sends one message with descriptors.
pub(super) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop).map_err(io::Error::from),
        }
    }
}

/// Receives one message with its descriptors; `None` at the end.
fn receive<T: for<'de> Deserialize<'de>>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
    let (length, fds) = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(message) => {
                let mut fds = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(received) = control {
                        fds.extend(received.into_iter().map(sys::adopt_fd));
                    }
                }
                break (message.bytes, fds);
            }
        }
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(bytes.get(..length).unwrap_or_default())?, fds)))
}

fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Makes a freshly forked process one that holds nothing of the daemon's but `socket` and standard error, and that no terminal signals.
fn detach(name: &std::ffi::CStr, socket: &OwnedFd) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    drop(null);
    sys::close_all_but(socket.as_fd())?;
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    sys::set_name(name);
    sys::reset_signals()?;
    sys::ignore_signals(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2]);
    Ok(())
}

/// The whole life of a forked process: nothing of the daemon's that is on the stack below may be unwound or dropped there.
fn live(life: impl FnOnce() -> io::Result<()>) -> ! {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
    sys::exit_now(i32::from(!matches!(result, Ok(Ok(())))))
}

/// Forks the killer.
fn start_killer() -> io::Result<(i32, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    match sys::fork()? {
        Forked::Parent(pid) => Ok((pid, ours)),
        Forked::Child => live(|| {
            sys::set_death_signal(libc::SIGKILL)?;
            detach(c"fruixd-killer", &theirs)?;
            kill_users(&mut File::from(theirs));
            Ok(())
        }),
    }
}

/// The killer's life: takes a user, kills its processes, answers with an error number or 0.
fn kill_users(socket: &mut File) {
    let mut uid = [0; 4];
    while socket.read_exact(&mut uid).is_ok() {
        let errno = match kill_all_of(Uid::from_raw(u32::from_le_bytes(uid))) {
            Ok(()) => 0,
            Err(errno) => errno as i32,
        };
        if socket.write_all(&errno.to_le_bytes()).is_err() {
            return;
        }
    }
}

/// Kills all processes of a user: a process that has become that user may signal all others of it at once, and only them.
fn kill_all_of(uid: Uid) -> Result<(), Errno> {
    if uid.is_root() {
        return Err(Errno::EPERM);
    }
    match sys::fork().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))? {
        Forked::Parent(pid) => loop {
            match waitpid(Pid::from_raw(pid), None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return if code == 0 { Ok(()) } else { Err(Errno::from_raw(code)) },
                // A process of that user has killed it.
                Ok(_) => return kill_all_of(uid),
                Err(errno) => return Err(errno),
            }
        },
        Forked::Child => {
            let result = nix::unistd::setresuid(uid, uid, uid).and_then(|()| {
                loop {
                    match nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL) {
                        Err(Errno::EINTR) => {}
                        Err(Errno::ESRCH) | Ok(()) => return Ok(()),
                        // What FreeBSD says when there are processes, and none of this user's.
                        Err(Errno::EPERM) if cfg!(target_os = "freebsd") => return Ok(()),
                        Err(errno) => return Err(errno),
                    }
                }
            });
            sys::exit_now(result.err().map_or(0, |errno| errno as i32))
        }
    }
}
