//! Linux: processes with namespaces, the mount calls on descriptors, system call filters.

use std::ffi::{CStr, c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::Forked;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that the kernel has just returned.
fn new_fd(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks. The caller must have one thread only, so that the child may do anything; that is checked.
pub(crate) fn fork() -> io::Result<Forked> {
    Ok(match clone_process(&[])? {
        Cloned::Child => Forked::Child,
        Cloned::Parent(pid, _) => Forked::Parent(pid),
    })
}

/// The signal that this process gets when its parent ends.
pub(crate) fn set_death_signal(signal: c_int) -> io::Result<()> {
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

/// What `ps` calls this process.
pub(crate) fn set_name(name: &CStr) {
    let _ = nix::sys::prctl::set_name(name);
}

/// Which process returns from [`clone_process`].
pub(crate) enum Cloned {
    /// The new one.
    Child,
    /// The one that called, with the child's number in its own PID namespace and a descriptor of it.
    Parent(i32, OwnedFd),
}

/// A namespace that a new process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    Mounts,
    Processes,
    Network,
    Ipc,
    Names,
    Users,
}

impl Namespace {
    fn flag(self) -> c_int {
        match self {
            Namespace::Mounts => libc::CLONE_NEWNS,
            Namespace::Processes => libc::CLONE_NEWPID,
            Namespace::Network => libc::CLONE_NEWNET,
            Namespace::Ipc => libc::CLONE_NEWIPC,
            Namespace::Names => libc::CLONE_NEWUTS,
            Namespace::Users => libc::CLONE_NEWUSER,
        }
    }
}

/// Forks, the child being in new namespaces. The caller must have one thread only, so that the child may do anything; that is checked.
pub(crate) fn clone_process(namespaces: &[Namespace]) -> io::Result<Cloned> {
    if thread_count()? != 1 {
        return Err(io::Error::other("cannot fork: there are other threads"));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero `clone_args` is a valid one.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = namespaces.iter().fold(libc::CLONE_PIDFD, |flags, namespace| flags | namespace.flag());
    args.flags = u64::from(flags.cast_unsigned());
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child has a copy of all memory. There is one thread, so no lock is
    // held by another one. `args` lives through the call, and `pidfd` is written in the parent only.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor here.
    Ok(Cloned::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn thread_count() -> io::Result<usize> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        // Without /proc nothing can be said.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Gives all signals their default action and blocks none.
pub(crate) fn reset_signals() -> io::Result<()> {
    /// The kernel's set of signals, in bytes.
    const SET_SIZE: usize = 8;
    // An action of the kernel that is all zero, whatever its fields: the default one, no flags, nothing blocked.
    let default = [0_u64; 8];
    for signal in 1..=c_long::from(libc::SIGRTMAX()) {
        // The system call and not the C library's function, which refuses the signals that it keeps for itself but does not mind if they were
        // inherited as ignored. For KILL and STOP this fails, which is as well.
        // SAFETY: `default` is larger than any architecture's structure and valid as one; no old action is asked for.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), SET_SIZE) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Sends a signal to the process of a descriptor; one that has ended is no error.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0 as c_uint) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Closes all descriptors from `first` on.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: no memory is passed. Called in a process that is about to become another program, or that owns nothing beyond `first`.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0 as c_uint) }).map(drop)
}

/// Closes all descriptors but 0, 1, 2 and `kept`.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = c_uint::try_from(kept.as_raw_fd()).map_err(io::Error::other)?;
    if kept > 3 {
        // SAFETY: no memory is passed. Called in a process that uses none of these and ends without dropping their owners.
        check(unsafe { libc::syscall(libc::SYS_close_range, 3 as c_uint, kept - 1, 0 as c_uint) })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_close_range, kept.max(2) + 1, c_uint::MAX, 0 as c_uint) }).map(drop)
}

/// `setdomainname`.
pub(crate) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live string.
    check(c_long::from(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })).map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = from.cast_signed() as libc::c_char;
    }
    let flags = libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS takes a pointer to an `ifreq`, which lives through the call.
    check(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })).map(drop)
}

/// `personality(2)`.
pub(crate) fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(c_long::from(unsafe { libc::personality(c_ulong::from(persona)) })).map(drop)
}

/// Drops ambient capabilities.
pub(crate) fn clear_ambient_capabilities() -> io::Result<()> {
    let zero: c_ulong = 0;
    // SAFETY: no memory is passed.
    check(c_long::from(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, zero, zero, zero) })).map(drop)
}

/// Gives up all capabilities.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    /// Version 3 of the interface: two blocks of effective, permitted and inheritable bits.
    const VERSION: u32 = 0x2008_0522;
    let (header, none) = ([VERSION, 0], [0_u32; 6]);
    // SAFETY: both pointers are to live memory of the sizes that version 3 has; process 0 is the calling one.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }).map(drop)
}

// The kernel's <linux/mount.h>.
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const MOUNT_ATTR_RDONLY: u64 = 1;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A copy, attached nowhere yet, of the mount that `file` is in, with `file` as its root and all that is mounted below.
pub(crate) fn clone_tree(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | libc::AT_EMPTY_PATH.cast_unsigned() | libc::AT_RECURSIVE.cast_unsigned();
    // SAFETY: the path is a live C string.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a mount to what `target` refers to.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are live C strings.
    check(unsafe { libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), target.as_raw_fd(), c"".as_ptr(), flags) })
        .map(drop)
}

/// Makes a mount read-only, not touching its other attributes and what is mounted below, as upstream does.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path is a live C string; pointer and size are those of `attr`, which has the kernel's layout.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    })
    .map(drop)
}

/// A new file system of the given type, attached nowhere yet. A parameter without a value is a flag.
pub(crate) fn new_file_system(kind: &CStr, parameters: &[(&CStr, Option<&CStr>)]) -> io::Result<OwnedFd> {
    // SAFETY: the name is a live C string.
    let context = new_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in parameters {
        let (command, value) = match value {
            Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
            None => (FSCONFIG_SET_FLAG, std::ptr::null()),
        };
        // SAFETY: key and value are live C strings, or the value is null as FSCONFIG_SET_FLAG wants it.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0 as c_int) })?;
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0 as c_int) })?;
    // SAFETY: no memory is passed.
    new_fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0 as c_uint) })
}

/// The architecture that system call filters see here.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;
#[cfg(target_arch = "powerpc64")]
const AUDIT_ARCH: u32 = if cfg!(target_endian = "little") { 0xc000_0015 } else { 0x8000_0015 };
/// Numbers from here on are those of the x32 interface.
#[cfg(target_arch = "x86_64")]
const NUMBERS_END: u32 = 0x4000_0000;
#[cfg(not(target_arch = "x86_64"))]
const NUMBERS_END: u32 = u32::MAX;

/// From now on, this process and its children make sockets for the Internet and for asking the kernel only: none that can be reached by name
/// from outside of its root, such as those in the abstract namespace, over which descriptors can be passed.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64", target_arch = "powerpc64"))]
pub(crate) fn internet_sockets_only() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    const ALLOW: u32 = 0x7fff_0000;
    let load = |offset: usize| filter(BPF_LD | BPF_W | BPF_ABS, u32::try_from(offset).unwrap_or(u32::MAX), 0, 0);
    let equal = |value: u32, yes, no| filter(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let refuse = |errno: c_int| filter(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(), 0, 0);
    let number = |number: c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let low_half = if cfg!(target_endian = "little") { 0 } else { 4 };
    let mut program = [
        load(std::mem::offset_of!(libc::seccomp_data, arch)),
        equal(AUDIT_ARCH, 1, 0),
        refuse(libc::ENOSYS),
        load(std::mem::offset_of!(libc::seccomp_data, nr)),
        filter(BPF_JMP | BPF_JGE | BPF_K, NUMBERS_END, 4, 0),
        equal(number(libc::SYS_io_uring_setup), 3, 0), // it makes sockets without a system call of its own
        equal(number(libc::SYS_socket), 3, 0),
        equal(number(libc::SYS_socketpair), 2, 0),
        filter(BPF_RET | BPF_K, ALLOW, 0, 0),
        refuse(libc::ENOSYS),
        load(std::mem::offset_of!(libc::seccomp_data, args) + low_half),
        equal(libc::AF_INET.cast_unsigned(), 3, 0),
        equal(libc::AF_INET6.cast_unsigned(), 2, 0),
        equal(libc::AF_NETLINK.cast_unsigned(), 1, 0),
        refuse(libc::EAFNOSUPPORT),
        filter(BPF_RET | BPF_K, ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_mut_ptr() };
    // SAFETY: `program` and what it points to live through the call, which copies them.
    check(c_long::from(unsafe { libc::prctl(libc::PR_SET_SECCOMP, c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const program) }))
        .map(drop)
}

/// As above, where nobody has written the filter yet: refuses, so that nothing runs with less than was asked for.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64", target_arch = "powerpc64")))]
pub(crate) fn internet_sockets_only() -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64", target_arch = "powerpc64"))]
fn filter(code: c_uint, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}
