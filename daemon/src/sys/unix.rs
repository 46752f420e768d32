//! What every Unix has.

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Which process returns from [`fork`](super::fork).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    /// The new one.
    Child,
    /// The one that called, with the child's number.
    Parent(i32),
}

/// Takes over a descriptor that came in a message, as `recvmsg` reported it.
pub(crate) fn adopt_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass the numbers of a received SCM_RIGHTS message, each once; the kernel made them for this process.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Ends this process at once, without running anything that was registered for its end.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// Ignores the given signals.
pub(crate) fn ignore_signals(signals: &[c_int]) {
    for signal in signals {
        // SAFETY: SIG_IGN is a valid action and no handler is installed.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// A C string of bytes that hold no NUL.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
