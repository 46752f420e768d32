//! FreeBSD: the process beside a builder. It makes the jail, starts the builder in it, and takes all down again; see `docs/design/jails.md`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use fruix_freebsd::{Cell, Features, Host, Jail, Kernel as _, set_up, tear_down};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Gid, Pid, Uid, setegid, seteuid, setgroups};
use serde::{Deserialize, Serialize};

use super::child::{CANNOT_RUN, Done, Step, exec, run_builtin, say, step};
use super::jails::{State, cell};
use super::plan::{Identity, Lookup, Mount, Network, Program, Root};
use super::spawner::{Failure, send};
use super::{Builtins, ExitStatus, Plan};
use crate::sys::{self, Forked};

/// What the spawner hears from a keeper and its builder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The builder has its surroundings.
    Started {
        /// Its process.
        pid: i32,
    },
    /// The surroundings could not be made.
    Failed(Failure),
    /// The builder has ended, and nothing of it is left.
    Ended(ExitStatus),
}

/// What all keepers of a spawner know.
#[derive(Clone, Debug)]
pub(super) struct Jails {
    /// Where they write what they do.
    pub(super) dir: PathBuf,
    /// How the names of their jails begin.
    pub(super) prefix: String,
    pub(super) features: Features,
    pub(super) ruleset: u16,
}

impl Jails {
    /// The name of a build's jail, and where its keeper writes of it.
    pub(super) fn names(&self, id: u64) -> (String, PathBuf) {
        (format!("{}{id}", self.prefix), self.dir.join(id.to_string()))
    }
}

/// A keeper's whole life. On `socket` come what it says and, as soon as anything can be read there or the other end is closed, the order to stop.
pub(super) fn keep(plan: &Plan, id: u64, output: OwnedFd, socket: &OwnedFd, jails: Option<&Jails>, builtins: Builtins) -> io::Result<()> {
    let mut file = None;
    let result = match (&plan.root, jails) {
        (Root::Host, _) => keep_plain(plan, output, socket, builtins),
        (Root::Private { .. }, Some(jails)) => keep_jail(plan, id, output, socket, jails, builtins, &mut file),
        (Root::Private { .. }, None) => step("making a jail (the daemon is not root; try --disable-chroot)", "", Err(Errno::EPERM)),
    };
    let word = match result {
        Ok(status) => Word::Ended(status),
        Err(Step { what, path, source }) => Word::Failed(Failure::new(what, &path, &source)),
    };
    send(socket.as_fd(), &word, &[])?;
    // Where nobody hears, the next daemon has directories to remove.
    file.map_or(Ok(()), std::fs::remove_file)
}

fn keep_plain(plan: &Plan, output: OwnedFd, socket: &OwnedFd, builtins: Builtins) -> Done<ExitStatus> {
    step("adopting orphans", "", fruix_freebsd::become_reaper())?;
    let kill = || fruix_freebsd::signal_descendants(libc::SIGKILL);
    let status = run(plan, output, socket, None, builtins, &kill)?;
    step("killing what the builder left", "", kill())?;
    step("waiting for what the builder left", "", Host.wait_for_children())?;
    Ok(status)
}

/// `done` becomes the file that tells of the jail, when nothing is left of that.
fn keep_jail(
    plan: &Plan,
    id: u64,
    output: OwnedFd,
    socket: &OwnedFd,
    jails: &Jails,
    builtins: Builtins,
    done: &mut Option<PathBuf>,
) -> Done<ExitStatus> {
    step("adopting orphans", "", fruix_freebsd::become_reaper())?;
    let (name, file) = jails.names(id);
    let plan = readable(plan)?;
    let cell = step("making a jail", "", cell(&plan, &name, jails.ruleset).map_err(io::Error::other))?;
    step("writing", &file, write_state(&file, &cell))?;
    let jail = match set_up(&mut Host, &cell, &jails.features) {
        Ok(jail) => jail,
        Err(failure) => {
            let (error, undoing) = *failure;
            if let Some(undoing) = undoing {
                say(format!("fruixd: {undoing}\n").as_bytes());
            } else {
                *done = Some(file);
            }
            return Err(step_of(error));
        }
    };
    let kill = || Host.remove_jail(jail.id);
    let result = run(&plan, output, socket, Some((&jail, &jails.features)), builtins, &kill);
    // What is not gone is the next daemon's.
    tear_down(&mut Host, &cell.name, &cell.root, false).map_err(step_of)?;
    *done = Some(file);
    result
}

/// A platform's error as a step: its own words say what failed, and its number goes with it.
fn step_of(error: fruix_freebsd::Error) -> Step {
    Step { what: "making or removing a jail", path: PathBuf::new(), source: io::Error::other(error.to_string()) }
}

/// The state is on the disk before anything of the jail is: a power cut leaves no mounts, so this need not be waited for.
fn write_state(file: &Path, cell: &Cell) -> io::Result<()> {
    let state = State { jail: cell.name.clone(), root: cell.root.clone() };
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(file)?;
    serde_json::to_writer(&mut file, &state)?;
    file.flush()
}

/// Starts the builder and waits for it, or until told to stop.
fn run(
    plan: &Plan,
    output: OwnedFd,
    socket: &OwnedFd,
    jail: Option<(&Jail, &Features)>,
    builtins: Builtins,
    kill: &dyn Fn() -> io::Result<()>,
) -> Done<ExitStatus> {
    let events = step("watching the builder", "", watch(socket))?;
    if told_to_stop(socket) {
        return Ok(ExitStatus::Signal(libc::SIGKILL));
    }
    let builder = match step("starting the child process", "", sys::fork())? {
        Forked::Child => {
            let Err(Step { what, path, source }) = become_builder(plan, &output, socket, jail, builtins) else { sys::exit_now(CANNOT_RUN) };
            let _ = send(socket.as_fd(), &Word::Failed(Failure::new(what, &path, &source)), &[]);
            sys::exit_now(CANNOT_RUN)
        }
        Forked::Parent(pid) => Pid::from_raw(pid),
    };
    // The end of the builder's output must be seen where it is read, so this process must not hold it.
    drop(output);
    let null = step("opening", "/dev/null", File::options().write(true).open("/dev/null"))?;
    step("letting go of the builder's output", "", nix::unistd::dup2_stderr(&null))?;
    let mut stopping = false;
    loop {
        loop {
            // Looked at each time: what forks without end always has another orphan to wait for.
            if !stopping && told_to_stop(socket) {
                stopping = true;
                step("killing the child process", "", kill())?;
            }
            // The builder stays a zombie until its jail is removed: it holds the jail's network stack, whose removal takes the kernel a quarter of a
            // second, in which this process need not wait.
            let found = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return step("waiting for the child process", "", Err(errno)),
            };
            if found.0 == builder {
                return Ok(found.1);
            }
            step("waiting for an orphan", "", waitpid(found.0, None))?;
        }
        let mut happened = [KEvent::new(0, EventFilter::EVFILT_READ, EvFlags::empty(), FilterFlag::empty(), 0, 0); 2];
        match events.kevent(&[], &mut happened, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return step("watching the builder", "", Err(errno)),
        }
    }
}

/// Wakes when a child ends and, once, when the other end of the socket wants something.
fn watch(socket: &OwnedFd) -> nix::Result<Kqueue> {
    let queue = Kqueue::new()?;
    let event = |ident, filter, flags| KEvent::new(ident, filter, EvFlags::EV_ADD | flags, FilterFlag::empty(), 0, 0);
    let child = usize::try_from(libc::SIGCHLD).map_err(|_| Errno::EINVAL)?;
    let fd = usize::try_from(socket.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let changes = [event(child, EventFilter::EVFILT_SIGNAL, EvFlags::empty()), event(fd, EventFilter::EVFILT_READ, EvFlags::EV_ONESHOT)];
    queue.kevent(&changes, &mut [], None)?;
    Ok(queue)
}

fn told_to_stop(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Goes through all steps and becomes the builder. Returns only if a step fails.
fn become_builder(plan: &Plan, output: &OwnedFd, socket: &OwnedFd, jail: Option<(&Jail, &Features)>, builtins: Builtins) -> Done {
    step("resetting signals", "", sys::reset_signals())?;
    step("starting a session", "", nix::unistd::setsid())?;
    let null = step("opening", "/dev/null", File::options().read(true).write(true).open("/dev/null"))?;
    step("setting up standard input", "", nix::unistd::dup2_stdin(&null))?;
    step("setting up standard output", "", nix::unistd::dup2_stdout(output))?;
    step("setting up standard error", "", nix::unistd::dup2_stderr(output))?;
    #[allow(clippy::cast_possible_truncation)] // Permission bits fit.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(plan.umask as libc::mode_t));
    if let Some((jail, features)) = jail {
        step("entering the jail", "", fruix_freebsd::attach_jail(jail.id))?;
        if features.vnet && plan.network == (Network::Private { loopback: true }) {
            step("bringing up the loopback interface", "", fruix_freebsd::loopback_up())?;
        }
    }
    step("changing into", &plan.cwd, std::env::set_current_dir(&plan.cwd))?;
    if let Identity::User(user) = &plan.identity {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        // Before FreeBSD 15 the first one is the effective group.
        let groups: Vec<Gid> =
            std::iter::once(gid).chain(user.groups.iter().map(|other| Gid::from_raw(*other)).filter(|other| *other != gid)).collect();
        step("setting supplementary groups", "", setgroups(&groups))?;
        step("setting the group", "", nix::unistd::setresgid(gid, gid, gid))?;
        step("setting the user", "", nix::unistd::setresuid(uid, uid, uid))?;
    }
    if plan.personality.fixed_addresses {
        step("fixing addresses", "", fruix_freebsd::fix_addresses())?;
    }
    if jail.is_some() {
        step("giving up set-user-id programs", "", fruix_freebsd::no_new_privileges())?;
    }
    if matches!(plan.program, Program::Builtin { .. }) {
        // A function of the daemon has a copy of its memory.
        step("hiding memory", "", fruix_freebsd::forbid_tracing())?;
    }
    step("reporting", "", send(socket.as_fd(), &Word::Started { pid: Pid::this().as_raw() }, &[]))?;
    sys::close_from(3);
    let status = match &plan.program {
        Program::Exec { path, args } => {
            let why = exec(plan, path, args);
            say(&[b"while setting up the child process: in phase exec: ".as_slice(), &why, b"\n"].concat());
            CANNOT_RUN
        }
        Program::Builtin { name, input, .. } => run_builtin(name, input, builtins),
    };
    sys::exit_now(status)
}

/// The plan without those files of the host that the builder could not read on the host. The others are found by their names without links from now on:
/// through nullfs the builder reads a file with its own rights as well, but not what is above it.
fn readable(plan: &Plan) -> Done<Plan> {
    let mut plan = plan.clone();
    let Identity::User(user) = plan.identity.clone() else { return Ok(plan) };
    if !plan.mounts.iter().any(|mount| matches!(mount, Mount::Bind { lookup: Lookup::AsBuilder, .. })) {
        return Ok(plan);
    }
    let groups = step("reading groups", "", nix::unistd::getgroups())?;
    let theirs: Vec<Gid> = std::iter::once(user.gid).chain(user.groups.iter().copied()).map(Gid::from_raw).collect();
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    step("setting supplementary groups", "", setgroups(&theirs))?;
    step("setting the group", "", setegid(Gid::from_raw(user.gid)))?;
    step("setting the user", "", seteuid(Uid::from_raw(user.uid)))?;
    plan.mounts.retain_mut(find_as_caller);
    step("setting the user", "", seteuid(uid))?;
    step("setting the group", "", setegid(gid))?;
    step("setting supplementary groups", "", setgroups(&groups))?;
    Ok(plan)
}

/// Finds the source of a mount that is to be found with the builder's rights, which the caller has. False: the mount is to be left out.
fn find_as_caller(mount: &mut Mount) -> bool {
    let Mount::Bind { source, lookup: Lookup::AsBuilder, .. } = mount else { return true };
    let Ok(found) = source.canonicalize() else { return false };
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let readable =
        File::options().read(true).custom_flags(flags).open(&found).and_then(|file| file.metadata()).is_ok_and(|data| data.is_file());
    *source = found;
    readable
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use fruix_freebsd::{Found, Mounted};

    use super::super::jails::mounted;
    use super::*;

    /// A19: a name is turned elsewhere between the look at it and the mount.
    #[test]
    fn what_is_mounted_is_what_the_builder_could_read() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["public", "private"] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("file"), name).unwrap();
        }
        symlink("public", dir.join("way")).unwrap();
        let bind = |source: PathBuf| Mount::Bind { target: source.clone(), source, read_only: true, lookup: Lookup::AsBuilder };
        let mut mount = bind(dir.join("way/file"));
        assert!(find_as_caller(&mut mount));
        for missing in ["none", "way", "public/file/x"] {
            assert!(!find_as_caller(&mut bind(dir.join(missing))), "{missing}");
        }
        fs::remove_file(dir.join("way")).unwrap();
        symlink("private", dir.join("way")).unwrap();
        let Some(Mounted::Host { source, target, lookup, .. }) = mounted(&mount) else { panic!("{mount:?}") };
        assert_eq!(target, dir.join("way/file"));
        let Ok(Found::File(found)) = Host.find(&source, lookup) else { panic!("{}", source.display()) };
        assert_eq!(fs::read_to_string(found.path).unwrap(), "public");
        // Nor is a link followed that has taken a directory's place.
        fs::rename(dir.join("public"), dir.join("moved")).unwrap();
        symlink("private", dir.join("public")).unwrap();
        assert!(Host.find(&source, lookup).is_err());
    }
}
