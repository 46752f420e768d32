//! Linux: the surroundings of a builder are made by the new process itself, step by step as its [`Plan`] says, before it becomes the builder.
//!
//! A builder with a root of its own is process 1 of a PID namespace, as under upstream. One that sees the host is the child of a process that
//! stays beside it, so that what it leaves behind can be killed; see [`Wrapping`].
//!
//! Sources and targets of mounts are descriptors, looked up component by component where the plan forbids symbolic links; no name is looked up
//! twice.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bstr::ByteSlice as _;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, fchownat, setegid, seteuid, setgroups, symlinkat};

use super::child::{CANNOT_RUN, Done, Step, exec, run_builtin, say, step};
use super::plan::{Entry, Identity, Lookup, Mount, Network, Personality, Program, Root};
use super::spawner::{Failure, Isolation};
use super::{BuildSpec, Builtins, Error, ExitStatus, HostFacts, Plan, Sandbox, SpawnerHandle, Starting};
use crate::sys::{self, Cloned, Namespace};

/// Runs builders in namespaces, each with a root of its own.
#[derive(Clone, Debug)]
pub struct LinuxNamespaces {
    spawner: SpawnerHandle,
    host: HostFacts,
}

impl LinuxNamespaces {
    /// A backend that starts builders through `spawner`.
    #[must_use]
    pub fn new(spawner: SpawnerHandle, host: HostFacts) -> LinuxNamespaces {
        LinuxNamespaces { spawner, host }
    }
}

impl Sandbox for LinuxNamespaces {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    fn plan(&self, spec: &BuildSpec) -> Result<Plan, Error> {
        Plan::confined(spec, &self.host)
    }

    fn start<'a>(&'a self, plan: &'a Plan, output: OwnedFd) -> Starting<'a> {
        Box::pin(self.spawner.start_builder(plan, output))
    }
}

/// What a builder that sees the host is wrapped in, so that all its processes can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapping {
    /// A PID namespace with a `/proc` to match. Its process 1 is ours.
    Namespaces,
    /// A process that adopts orphans and kills them at the end.
    Adopting,
}

impl Wrapping {
    /// What can be had here: without a root that is a mount, as in a plain chroot, a new `/proc` would show everywhere.
    pub(super) fn possible(isolation: Isolation) -> io::Result<Wrapping> {
        if isolation == Isolation::BestEffort {
            return Ok(Wrapping::Adopting);
        }
        match sys::clone_process(&[Namespace::Mounts])? {
            Cloned::Child => sys::exit_now(i32::from(detach_mounts(MsFlags::MS_SLAVE).is_err())),
            Cloned::Parent(pid, _) => loop {
                match waitpid(Pid::from_raw(pid), None) {
                    Ok(WaitStatus::Exited(_, 0)) => return Ok(Wrapping::Namespaces),
                    Err(Errno::EINTR) => {}
                    _ => return Ok(Wrapping::Adopting),
                }
            },
        }
    }
}

/// The namespaces that the process of a plan starts with.
pub(super) fn namespaces(plan: &Plan, wrapping: Wrapping) -> Vec<Namespace> {
    if plan.root == Root::Host {
        return if wrapping == Wrapping::Namespaces { vec![Namespace::Mounts, Namespace::Processes] } else { Vec::new() };
    }
    let mut namespaces = vec![Namespace::Mounts, Namespace::Processes, Namespace::Ipc, Namespace::Names];
    if plan.network != Network::Host {
        namespaces.push(Namespace::Network);
    }
    if matches!(plan.identity, Identity::Namespace { .. }) {
        namespaces.push(Namespace::Users);
    }
    namespaces
}

/// Maps one user and one group of this process's new user namespace (inside, outside). The process does this itself, which needs no privilege.
pub(super) fn map_ids(uid: (u32, u32), gid: (u32, u32)) -> io::Result<()> {
    std::fs::write("/proc/self/uid_map", format!("{} {} 1", uid.0, uid.1))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{} {} 1", gid.0, gid.1))
}

fn detach_mounts(propagation: MsFlags) -> io::Result<()> {
    let none: Option<&CStr> = None;
    Ok(mount(none, "/", none, MsFlags::MS_REC | propagation, none)?)
}

/// Kills the descendants of a process, as far as they can be found; tells whether there were any.
pub(super) fn kill_descendants(ancestor: Pid) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut parents = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
        // PID (NAME) STATE PARENT; a name may hold anything.
        let Some((_, rest)) = stat.rsplit_once_str(")") else { continue };
        let mut words = rest.fields();
        let (state, parent) = (words.next(), words.next().and_then(|word| word.to_str().ok()).and_then(|word| word.parse::<i32>().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != b"Z"
        {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![ancestor.as_raw()];
    let mut index = 0;
    while let Some(parent) = family.get(index).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        index += 1;
    }
    let descendants = family.get(1..).unwrap_or_default();
    for pid in descendants {
        let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    !descendants.is_empty()
}

/// Kills the descendants of this process, which adopts their orphans, until there are none.
pub(super) fn kill_all_descendants() {
    while kill_descendants(Pid::this()) {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {}
        // They may take a moment to end.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a process started by the spawner does: becomes the builder of `plan`, with its output on `output`, and reports on `pipe`. `ids` are the
/// spawner's user and group. Returns only on failure.
pub(super) fn be_builder(
    plan: &Plan,
    output: OwnedFd,
    mut pipe: File,
    ids: (u32, u32),
    wrapping: Wrapping,
    builtins: Builtins,
) -> io::Result<()> {
    let result = if plan.root == Root::Host {
        wrap(plan, output, &mut pipe, wrapping, builtins)
    } else {
        become_builder(plan, &output, &mut pipe, ids, builtins)
    };
    if let Err(Step { what, path, source }) = result {
        report_failure(&mut pipe, &Failure::new(what, &path, &source));
    }
    Err(io::ErrorKind::Other.into())
}

fn report_failure(pipe: &mut File, failure: &Failure) {
    let mut message = b"F".to_vec();
    if serde_json::to_writer(&mut message, failure).is_ok() {
        let _ = pipe.write_all(&message);
    }
}

/// Starts the builder as a child, waits for it, and sees to it that nothing of it stays.
fn wrap(plan: &Plan, output: OwnedFd, pipe: &mut File, wrapping: Wrapping, builtins: Builtins) -> Done {
    match wrapping {
        Wrapping::Namespaces => {
            step("detaching mounts", "/", detach_mounts(MsFlags::MS_SLAVE))?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let proc = step("opening", "/proc", openat(AT_FDCWD, "/proc", flags, Mode::empty()))?;
            mount_new(c"proc", &[], &proc, Path::new("/proc"))?;
        }
        Wrapping::Adopting => {
            step("adopting orphans", "", prctl::set_child_subreaper(true))?;
            step("setting the death signal", "", prctl::set_pdeathsig(Signal::SIGKILL))?;
        }
    }
    match step("starting the child process", "", sys::clone_process(&[]))? {
        Cloned::Child => {
            if let Err(Step { what, path, source }) = become_builder(plan, &output, pipe, (0, 0), builtins) {
                report_failure(pipe, &Failure::new(what, &path, &source));
            }
            sys::exit_now(CANNOT_RUN)
        }
        Cloned::Parent(builder, _) => {
            // The end of the builder's output must be seen where it is read, so this process must not hold it.
            drop(output);
            let status = loop {
                let (pid, status) = match waitpid(None, None) {
                    Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
                    Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::Signal(signal as i32)),
                    Ok(_) | Err(Errno::EINTR) => continue,
                    Err(errno) => return step("waiting for the child process", "", Err(errno)),
                };
                if pid.as_raw() == builder {
                    break status;
                }
            };
            if wrapping == Wrapping::Adopting {
                kill_all_descendants();
            }
            let mut message = b"X".to_vec();
            if serde_json::to_writer(&mut message, &status).is_ok() {
                let _ = pipe.write_all(&message);
            }
            sys::exit_now(0)
        }
    }
}

/// Goes through all steps and becomes the builder. Returns only if a step fails.
fn become_builder(plan: &Plan, output: &OwnedFd, pipe: &mut File, outer: (u32, u32), builtins: Builtins) -> Done {
    if let (Identity::Namespace { uid, gid }, Root::Private { .. }) = (&plan.identity, &plan.root) {
        step("mapping users and groups", "/proc/self/uid_map", map_ids((*uid, outer.0), (*gid, outer.1)))?;
    }
    step("resetting signals", "", sys::reset_signals())?;
    step("starting a session", "", nix::unistd::setsid())?;
    let null = step("opening", "/dev/null", File::options().read(true).write(true).open("/dev/null"))?;
    step("setting up standard input", "", nix::unistd::dup2_stdin(&null))?;
    step("setting up standard output", "", nix::unistd::dup2_stdout(output))?;
    step("setting up standard error", "", nix::unistd::dup2_stderr(output))?;
    let _ = sys::clear_ambient_capabilities();
    nix::sys::stat::umask(mode(plan.umask));
    if let Root::Private { dir } = &plan.root {
        if plan.network == (Network::Private { loopback: true }) {
            let socket = step("opening a socket", "", socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))?;
            step("bringing up the loopback interface", "", sys::loopback_up(socket.as_fd()))?;
        }
        step("setting the host name", "", nix::unistd::sethostname(&plan.host_name))?;
        step("setting the domain name", "", sys::set_domain_name(&plan.domain_name))?;
        make_root(plan, dir)?;
    }
    step("changing into", &plan.cwd, std::env::set_current_dir(&plan.cwd))?;
    step("setting the personality", "", sys::set_personality(persona(plan.personality)))?;
    // Not to be had everywhere, and no reason to fail.
    let _ = std::fs::write("/proc/self/oom_score_adj", plan.oom_score.to_string());
    if matches!(plan.root, Root::Private { .. }) && plan.network == Network::Host {
        step("restricting sockets", "", sys::internet_sockets_only())?;
    }
    match &plan.identity {
        Identity::User(user) => {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            step("setting supplementary groups", "", setgroups(&groups))?;
            step("setting the group", "", nix::unistd::setresgid(gid, gid, gid))?;
            step("setting the user", "", nix::unistd::setresuid(uid, uid, uid))?;
        }
        Identity::Namespace { uid, gid } if plan.root != Root::Host => {
            // The mounts become those of a namespace above, which the builder cannot take apart even if it makes a user namespace of its own.
            step("locking mounts", "", unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER))?;
            step("locking mounts", "/proc/self/uid_map", map_ids((*uid, *uid), (*gid, *gid)))?;
        }
        Identity::Namespace { .. } | Identity::Daemon => {}
    }
    if matches!(plan.program, Program::Builtin { .. }) {
        // What a new program does not get, a function of the daemon has to give up: privileges in a user namespace, and a view through /proc of
        // the daemon's environment and memory, of which it has a copy.
        step("dropping capabilities", "", sys::drop_capabilities())?;
        step("hiding memory", "", prctl::set_dumpable(false))?;
    }
    step("reporting", "", pipe.write_all(b"S"))?;
    step("closing files", "", sys::close_from(3))?;
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

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

fn persona(personality: Personality) -> u32 {
    const PER_LINUX32: u32 = 0x0008;
    const UNAME26: u32 = 0x0002_0000;
    const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
    let Personality { bits_32, linux_26, fixed_addresses } = personality;
    [(bits_32, PER_LINUX32), (linux_26, UNAME26), (fixed_addresses, ADDR_NO_RANDOMIZE)]
        .into_iter()
        .filter(|(is, _)| *is)
        .fold(0, |persona, (_, flag)| persona | flag)
}

/// The root while it is made: a descriptor of it, and of the directory that was used last.
struct NewRoot {
    root: OwnedFd,
    recent: Option<(PathBuf, OwnedFd)>,
}

/// Fills the root, mounts into it, and makes it this process's root. Of the host's nothing is left afterwards.
fn make_root(plan: &Plan, dir: &Path) -> Done {
    step("detaching mounts (is the daemon in a chroot?)", "/", detach_mounts(MsFlags::MS_PRIVATE))?;
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let bare = step("opening", dir, openat(AT_FDCWD, dir, directory, Mode::empty()))?;
    // The new root has to be a mount.
    let root = step("mounting", dir, sys::clone_tree(bare.as_fd()))?;
    step("mounting", dir, sys::attach(root.as_fd(), bare.as_fd()))?;
    let mut new = NewRoot { root, recent: None };
    for entry in &plan.entries {
        new.make(entry)?;
    }
    for mount in &plan.mounts {
        new.mount(mount, &plan.identity)?;
    }
    step("changing into", dir, nix::unistd::fchdir(&new.root))?;
    // The old root is now mounted over the new one, whence it is taken away.
    step("changing the root to", dir, nix::unistd::pivot_root(".", "."))?;
    step("unmounting the host's root", "", umount2(".", MntFlags::MNT_DETACH))?;
    step("changing the root to", dir, nix::unistd::chroot("."))?;
    step("changing into", "/", std::env::set_current_dir("/"))?;
    // Nothing may be added beside what is there.
    step("setting permissions on", "/", fchmodat(AT_FDCWD, "/", mode(0o555), FchmodatFlags::FollowSymlink))
}

/// The directory and the name of a path inside a new root.
fn split(path: &Path) -> Done<(&Path, &std::ffi::OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => step("making", path, Err(Errno::EINVAL)),
    }
}

fn open_dir(parent: impl AsFd, name: &std::ffi::OsStr) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(parent, name, how)
}

impl NewRoot {
    /// The directory `path`, made if need be. No symbolic link is followed.
    fn dir(&mut self, path: &Path) -> Done<OwnedFd> {
        if let Some((recent, fd)) = &self.recent
            && recent == path
        {
            return step("opening", path, fd.try_clone());
        }
        let mut fd = step("opening", path, self.root.try_clone())?;
        for part in path.components() {
            let name = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return step("making directory", path, Err(Errno::EINVAL)),
            };
            fd = match open_dir(&fd, name) {
                Err(Errno::ENOENT) => {
                    step("making directory", path, mkdirat(&fd, name, mode(0o755)))?;
                    step("opening", path, open_dir(&fd, name))?
                }
                other => step("opening", path, other)?,
            };
        }
        let kept = step("opening", path, fd.try_clone())?;
        self.recent = Some((path.to_owned(), kept));
        Ok(fd)
    }

    fn make(&mut self, entry: &Entry) -> Done {
        match entry {
            Entry::Dir { path, mode: bits, gid } => {
                let (parent, name) = split(path)?;
                self.dir(path)?;
                let parent = self.dir(parent)?;
                if let Some(gid) = gid {
                    let gid = Some(Gid::from_raw(*gid));
                    step("cannot change ownership of", path, fchownat(&parent, name, None, gid, AtFlags::AT_SYMLINK_NOFOLLOW))?;
                }
                step("setting permissions on", path, fchmodat(&parent, name, mode(*bits), FchmodatFlags::FollowSymlink))
            }
            Entry::File { path, contents } => {
                let (parent, name) = split(path)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = step("making", path, openat(self.dir(parent)?, name, flags, mode(0o644)))?;
                step("writing", path, File::from(file).write_all(contents.as_bytes()))
            }
            Entry::Link { path, target } => self.link(path, target),
            Entry::Users { path, .. } => step("making", path, Err(Errno::ENOSYS)),
        }
    }

    fn link(&mut self, path: &Path, target: &Path) -> Done {
        let (parent, name) = split(path)?;
        step("making", path, symlinkat(target, self.dir(parent)?, name))
    }

    fn mount(&mut self, mount: &Mount, identity: &Identity) -> Done {
        match mount {
            Mount::Devices { target } | Mount::Descriptors { target } => return step("mounting", target, Err(Errno::ENODEV)),
            Mount::Bind { source, target, read_only, lookup } => self.bind(source, target, *read_only, *lookup, identity)?,
            Mount::Processes { target } => {
                let dir = self.dir(target)?;
                mount_new(c"proc", &[], &dir, target)?;
            }
            Mount::Memory { target } => {
                let dir = self.dir(target)?;
                mount_new(c"tmpfs", &[], &dir, target)?;
            }
            Mount::Terminals { target } => {
                let dir = self.dir(target)?;
                let terminals = mount_new(c"devpts", &[(c"newinstance", None), (c"mode", Some(c"0620"))], &dir, target)?;
                step("setting permissions on", target, fchmodat(&terminals, "ptmx", mode(0o666), FchmodatFlags::FollowSymlink))?;
                let beside = target.with_file_name("ptmx");
                self.link(&beside, &target.join("ptmx"))?;
            }
        }
        if self.recent.as_ref().is_some_and(|(path, _)| path.starts_with(mount.target())) {
            self.recent = None;
        }
        Ok(())
    }

    fn bind(&mut self, source: &Path, target: &Path, read_only: bool, lookup: Lookup, identity: &Identity) -> Done {
        let Some(from) = open_source(source, lookup, identity)? else { return Ok(()) };
        let kind = SFlag::from_bits_truncate(step("looking at", source, fstat(&from))?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFLNK {
            let to = step("reading", source, readlinkat(&from, ""))?;
            return self.link(target, Path::new(&to));
        }
        let onto = if kind == SFlag::S_IFDIR {
            self.dir(target)?
        } else {
            let (parent, name) = split(target)?;
            let parent = self.dir(parent)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(&parent, name, flags, mode(0o600)) {
                Ok(_) => {}
                Err(Errno::EEXIST) => {
                    let there = step("looking at", target, fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW))?;
                    if SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
                        return step("mounting", target, Err(Errno::EEXIST));
                    }
                }
                Err(errno) => return step("making", target, Err(errno)),
            }
            step("opening", target, openat(&parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()))?
        };
        let tree = step("mounting", source, sys::clone_tree(from.as_fd()))?;
        if read_only {
            step("mounting read-only (Linux 5.12 or later is needed)", source, sys::make_read_only(tree.as_fd()))?;
        }
        step("mounting", target, sys::attach(tree.as_fd(), onto.as_fd()))
    }
}

/// Attaches a new file system to a directory.
fn mount_new(kind: &CStr, parameters: &[(&CStr, Option<&CStr>)], target: impl AsFd, path: &Path) -> Done<OwnedFd> {
    let parameters = [&[(c"source", Some(c"none"))], parameters].concat();
    let mounted = step("mounting", path, sys::new_file_system(kind, &parameters))?;
    let target: BorrowedFd<'_> = target.as_fd();
    step("mounting", path, sys::attach(mounted.as_fd(), target))?;
    Ok(mounted)
}

/// Opens the source of a mount; `None` where the plan says that it may be missing, and it is.
fn open_source(source: &Path, lookup: Lookup, identity: &Identity) -> Done<Option<OwnedFd>> {
    let open =
        |flags: OFlag, resolve: ResolveFlag| openat2(AT_FDCWD, source, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve));
    let result = match lookup {
        Lookup::Strict => open(OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::RESOLVE_NO_SYMLINKS),
        Lookup::Link => open(OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::RESOLVE_NO_MAGICLINKS),
        Lookup::Follow => match open(OFlag::O_PATH, ResolveFlag::RESOLVE_NO_MAGICLINKS) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other,
        },
        Lookup::AsBuilder => {
            let opened =
                as_builder(identity, || open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, ResolveFlag::RESOLVE_NO_MAGICLINKS))?;
            return Ok(opened.ok().filter(is_plain_file));
        }
    };
    step("opening", source, result).map(Some)
}

/// A regular file, and not one of those that the kernel makes up.
fn is_plain_file(file: &OwnedFd) -> bool {
    fstat(file).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
        && fstatfs(file).is_ok_and(|statfs| statfs.filesystem_type() != PROC_SUPER_MAGIC)
}

/// Does something with the builder's rights to files.
fn as_builder<T>(identity: &Identity, action: impl FnOnce() -> T) -> Done<T> {
    let Identity::User(user) = identity else { return Ok(action()) };
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let groups = step("reading groups", "", nix::unistd::getgroups())?;
    let theirs: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    step("setting supplementary groups", "", setgroups(&theirs))?;
    step("setting the group", "", setegid(Gid::from_raw(user.gid)))?;
    step("setting the user", "", seteuid(Uid::from_raw(user.uid)))?;
    let result = action();
    step("setting the user", "", seteuid(uid))?;
    step("setting the group", "", setegid(gid))?;
    step("setting supplementary groups", "", setgroups(&groups))?;
    Ok(result)
}
