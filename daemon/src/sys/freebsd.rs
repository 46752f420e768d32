//! FreeBSD: by name, as the rest of the daemon knows them.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::RawFd;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

pub(crate) use fruix_freebsd::{close_all_but, set_death_signal};

use super::Forked;

/// Forks. The caller must have one thread only, so that the child may do anything; that is checked.
pub(crate) fn fork() -> io::Result<Forked> {
    Ok(match fruix_freebsd::fork()? {
        fruix_freebsd::Forked::Child => Forked::Child,
        fruix_freebsd::Forked::Parent(pid) => Forked::Parent(pid),
    })
}

/// What `ps` calls this process.
pub(crate) fn set_name(name: &CStr) {
    fruix_freebsd::set_title(name);
}

/// Closes all descriptors from `first` on.
pub(crate) fn close_from(first: RawFd) {
    fruix_freebsd::close_from(first);
}

/// Gives all signals their default action and blocks none.
pub(crate) fn reset_signals() -> io::Result<()> {
    /// The last signal that there is.
    const LAST: c_int = 126;
    for signal in 1..=LAST {
        // For KILL and STOP this fails, which is as well.
        // SAFETY: SIG_DFL is a valid action and no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}
