//! Linux: namespaces.
//!
//! The new process reports over a pipe: `S` (the surroundings are made), `F` and a [`Failure`], `X` and an [`ExitStatus`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};

use super::super::linux::{self, Wrapping};
use super::super::plan::Root;
use super::super::{Builtins, ExitStatus, Plan};
use super::{Failure, Isolation, Report, Request, detach, live, packet_pair, receive, send};
use crate::sys::{self, Cloned, Namespace};

/// The longest report of a new process over its pipe, in bytes.
const MAX_PIPE: usize = 16 * 1024;

/// How a spawner may be started.
pub(super) type Choice = Isolation;

/// The ways that are tried, best first.
pub(super) fn choices() -> [Choice; 3] {
    [Isolation::Kernel, Isolation::KernelUnprivileged, Isolation::BestEffort]
}

pub(super) fn isolation(choice: &Choice) -> Isolation {
    *choice
}

/// The number of a builder's process here; 0 where it has none.
pub(super) fn pid_here(_pid: i32, process: Option<OwnedFd>) -> i32 {
    process.and_then(|process| host_pid(process.as_fd())).unwrap_or(0)
}

/// The number of a process in the namespace of the mounted `/proc`.
fn host_pid(process: BorrowedFd<'_>) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).unwrap_or_default();
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|number| number.trim().parse().ok());
    number.filter(|number| *number > 0)
}

/// Forks the spawner and waits until it is ready.
pub(super) fn start_spawner(choice: &Choice, builtins: Builtins) -> io::Result<(OwnedFd, i32)> {
    let isolation = *choice;
    let namespaces: &[Namespace] = match isolation {
        Isolation::Kernel => &[Namespace::Processes],
        Isolation::KernelUnprivileged => &[Namespace::Users, Namespace::Processes],
        Isolation::BestEffort | Isolation::Jails => &[],
    };
    let (ours, theirs) = packet_pair()?;
    let (uid, gid) = (Uid::effective(), nix::unistd::getegid());
    match sys::clone_process(namespaces)? {
        Cloned::Parent(pid, _) => {
            drop(theirs);
            match receive::<Report>(ours.as_fd()) {
                Ok(Some((Report::Ready { .. }, _))) => Ok((ours, pid)),
                other => {
                    let _ = waitpid(Pid::from_raw(pid), None);
                    Err(other.err().unwrap_or_else(|| io::ErrorKind::PermissionDenied.into()))
                }
            }
        }
        Cloned::Child => live(|| {
            if isolation == Isolation::KernelUnprivileged {
                linux::map_ids((uid.as_raw(), uid.as_raw()), (gid.as_raw(), gid.as_raw()))?;
            }
            if isolation == Isolation::BestEffort {
                prctl::set_child_subreaper(true)?;
            } else {
                // End-of-file says the same; this holds even if the spawner hangs.
                prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            detach(c"fruixd-spawner", &theirs)?;
            Spawner::new(theirs, isolation, builtins)?.serve()
        }),
    }
}

/// The spawner's own side.
struct Spawner {
    socket: OwnedFd,
    isolation: Isolation,
    wrapping: Wrapping,
    builtins: Builtins,
    child_ended: SignalFd,
    builds: HashMap<u64, Build>,
}

/// A builder, as the spawner knows it.
struct Build {
    pid: Pid,
    process: OwnedFd,
    /// Its process is one that adopts the builder's orphans, and the builder a child of it.
    adopting: bool,
    pipe: File,
    /// What has come over the pipe and not been understood yet.
    heard: Vec<u8>,
    started: bool,
    failure: Option<Failure>,
    /// What a wrapping process says of the builder.
    status: Option<ExitStatus>,
}

impl Spawner {
    fn new(socket: OwnedFd, isolation: Isolation, builtins: Builtins) -> io::Result<Spawner> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let child_ended = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let wrapping = Wrapping::possible(isolation)?;
        send(socket.as_fd(), &Report::Ready { isolation }, &[])?;
        Ok(Spawner { socket, isolation, wrapping, builtins, child_ended, builds: HashMap::new() })
    }

    /// Serves until the daemon is gone.
    fn serve(mut self) -> io::Result<()> {
        loop {
            let ids: Vec<u64> = self.builds.keys().copied().collect();
            let mut polled =
                vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(self.child_ended.as_fd(), PollFlags::POLLIN)];
            let open: Vec<u64> = ids.into_iter().filter(|id| self.builds.get(id).is_some_and(Build::setting_up)).collect();
            polled.extend(open.iter().filter_map(|id| self.builds.get(id)).map(|build| PollFd::new(build.pipe.as_fd(), PollFlags::POLLIN)));
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            for (id, ready) in open.iter().zip(ready.iter().skip(2)) {
                if *ready {
                    self.hear(*id)?;
                }
            }
            if ready.get(1) == Some(&true) {
                while let Ok(Some(_)) = self.child_ended.read_signal() {}
                self.reap()?;
            }
            if ready.first() == Some(&true) {
                match receive::<Request>(self.socket.as_fd()) {
                    Ok(Some((Request::Start { id }, fds))) => self.start(id, fds)?,
                    Ok(Some((Request::Kill { id }, _))) => self.kill(id),
                    Ok(None) | Err(_) => return self.end(),
                }
            }
        }
    }

    fn start(&mut self, id: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        match self.try_start(fds) {
            Ok(build) => {
                self.builds.insert(id, build);
                Ok(())
            }
            Err(error) => {
                let failure = Failure::new("starting the child process", std::path::Path::new(""), &error);
                send(self.socket.as_fd(), &Report::Failed { id, failure }, &[])
            }
        }
    }

    fn try_start(&self, fds: Vec<OwnedFd>) -> io::Result<Build> {
        let mut fds = fds.into_iter();
        let (Some(plan), Some(output)) = (fds.next(), fds.next()) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let plan: Plan = serde_json::from_reader(io::BufReader::new(File::from(plan)))?;
        if plan.root != Root::Host && self.isolation == Isolation::BestEffort {
            return Err(io::Error::other("namespaces are not available here (for the daemon's user); try --disable-chroot"));
        }
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let ids = (Uid::effective().as_raw(), nix::unistd::getegid().as_raw());
        match sys::clone_process(&linux::namespaces(&plan, self.wrapping))? {
            Cloned::Parent(pid, process) => Ok(Build {
                pid: Pid::from_raw(pid),
                process,
                adopting: plan.root == Root::Host && self.wrapping == Wrapping::Adopting,
                pipe: File::from(ours),
                heard: Vec::new(),
                started: false,
                failure: None,
                status: None,
            }),
            Cloned::Child => live(|| linux::be_builder(&plan, output, File::from(theirs), ids, self.wrapping, self.builtins)),
        }
    }

    /// Reads what a new process has to say.
    fn hear(&mut self, id: u64) -> io::Result<()> {
        let Some(build) = self.builds.get_mut(&id) else { return Ok(()) };
        let started = build.started;
        build.hear();
        if build.started && !started {
            send(self.socket.as_fd(), &Report::Started { id, pid: 0 }, &[build.process.as_fd()])?;
        }
        Ok(())
    }

    /// Takes note of the processes that have ended, among them those that builders left behind.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let Some(id) = self.builds.iter().find(|(_, build)| build.pid == pid).map(|(id, _)| *id) else { continue };
            self.hear(id)?;
            let Some(build) = self.builds.remove(&id) else { continue };
            let report = match build.failure {
                Some(failure) if !build.started => Report::Failed { id, failure },
                _ => Report::Ended { id, status: build.status.unwrap_or(status) },
            };
            send(self.socket.as_fd(), &report, &[])?;
        }
    }

    fn kill(&self, id: u64) {
        let Some(build) = self.builds.get(&id) else { return };
        // A process that adopts what the builder leaves behind has to stay until it has killed it all.
        if build.adopting && linux::kill_descendants(build.pid) {
            return;
        }
        let _ = sys::pidfd_signal(build.process.as_fd(), libc::SIGKILL);
    }

    /// The daemon is gone. For process 1 of a namespace, ending is enough.
    fn end(self) -> io::Result<()> {
        if self.isolation == Isolation::BestEffort {
            for build in self.builds.values() {
                linux::kill_descendants(build.pid);
                let _ = sys::pidfd_signal(build.process.as_fd(), libc::SIGKILL);
            }
            linux::kill_all_descendants();
        }
        Ok(())
    }
}

impl Build {
    fn setting_up(&self) -> bool {
        !self.started && self.failure.is_none()
    }

    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.pipe.read(&mut buffer) {
            self.heard.extend_from_slice(buffer.get(..length).unwrap_or_default());
            if self.heard.len() > MAX_PIPE {
                break;
            }
        }
        self.understand();
    }

    /// `S`, or `F` with the rest of it, or `X` with the rest of it.
    fn understand(&mut self) {
        while let Some((kind, rest)) = self.heard.split_first() {
            let rest = rest.to_vec();
            match kind {
                b'S' => self.started = true,
                b'F' => {
                    if let Ok(failure) = serde_json::from_slice(&rest) {
                        self.failure = Some(failure);
                    }
                    return;
                }
                _ => {
                    if let Ok(status) = serde_json::from_slice(&rest) {
                        self.status = Some(status);
                    }
                    return;
                }
            }
            self.heard = rest;
        }
    }
}
