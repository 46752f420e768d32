//! What FreeBSD has and no crate wraps: flags of files, and its extended attributes. The only module with `unsafe`.
//!
//! Facts: chflags(2), extattr(2) of FreeBSD 15.1; constants are the `libc` crate's.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::stat::FileStat;

/// ZFS sets this one itself, on every file that has changed.
const UF_ARCHIVE: u32 = 0x0800;

/// Whether a file has flags, such as one that lets nobody change or remove it.
pub(crate) fn has_flags(stat: &FileStat) -> bool {
    stat.st_flags & !UF_ARCHIVE != 0
}

/// Takes all flags away from `name` in `dir`, or from `dir` where that is `.`; a symbolic link is not followed.
///
/// # Errors
/// Whatever the system says.
pub(crate) fn clear_flags(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    // SAFETY: the name is a live C string, and the descriptor is open.
    match unsafe { libc::chflagsat(dir.as_raw_fd(), name.as_ptr(), 0, libc::AT_SYMLINK_NOFOLLOW) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A file system without flags.
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            error => Err(error),
        },
    }
}

/// The names of the extended attributes that users may set on an open file.
///
/// # Errors
/// Whatever the system says; that the file system has none is no error.
pub(crate) fn attributes(fd: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let list = |data: *mut c_void, size: usize| {
        // SAFETY: `data` is null, or a live buffer of `size` bytes.
        let length = unsafe { libc::extattr_list_fd(fd.as_raw_fd(), libc::EXTATTR_NAMESPACE_USER, data, size) };
        usize::try_from(length).map_err(|_| io::Error::last_os_error())
    };
    let mut buffer = match list(std::ptr::null_mut(), 0) {
        Ok(0) => return Ok(Vec::new()),
        Ok(size) => vec![0_u8; size],
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let size = list(buffer.as_mut_ptr().cast(), buffer.len())?;
    // Each name has its length before it, in one byte.
    let mut rest = buffer.get(..size).unwrap_or_default();
    let mut names = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let length = usize::from(*length).min(after.len());
        names.push(after.get(..length).unwrap_or_default().to_vec());
        rest = after.get(length..).unwrap_or_default();
    }
    Ok(names)
}

/// Removes an extended attribute that users may set; that it is not there is no error.
///
/// # Errors
/// Whatever the system says.
pub(crate) fn remove_attribute(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a live C string.
    let result: c_int = unsafe { libc::extattr_delete_fd(fd.as_raw_fd(), libc::EXTATTR_NAMESPACE_USER, name.as_ptr()) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOATTR) => Ok(()),
            error => Err(error),
        },
    }
}
