//! What FreeBSD has and no crate wraps: flags of files, its extended attributes and its access control lists. The only module with `unsafe`.
//!
//! Facts: chflags(2), extattr(2), acl(3), acl(9) and `sys/acl.h` of FreeBSD 15.1; other constants are the `libc` crate's.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::stat::FileStat;

/// An access control list, as the C library has it; only it looks inside.
#[repr(C)]
struct Acl {
    _opaque: [u8; 0],
}

/// A type of access control lists: `acl_type_t`, and the kernel's name for where such a list is.
pub(crate) type ListType = (c_int, &'static str);
const ACL_TYPE_ACCESS: ListType = (2, "posix1e.acl_access");
const ACL_TYPE_DEFAULT: ListType = (3, "posix1e.acl_default");
const ACL_TYPE_NFS4: ListType = (4, "nfs4.acl");
/// Of `acl_get_entry`.
const ACL_FIRST_ENTRY: c_int = 0;
/// Of `fpathconf`: whether a file may have lists as POSIX.1e has them (`sys/unistd.h`).
const PC_ACL_EXTENDED: c_int = 59;

unsafe extern "C" {
    fn acl_get_fd_np(fd: c_int, kind: c_int) -> *mut Acl;
    fn acl_set_fd_np(fd: c_int, list: *mut Acl, kind: c_int) -> c_int;
    fn acl_delete_fd_np(fd: c_int, kind: c_int) -> c_int;
    fn acl_is_trivial_np(list: *mut Acl, trivial: *mut c_int) -> c_int;
    fn acl_strip_np(list: *mut Acl, recalculate_mask: c_int) -> *mut Acl;
    fn acl_get_entry(list: *mut Acl, which: c_int, entry: *mut *mut c_void) -> c_int;
    fn acl_free(memory: *mut c_void) -> c_int;
}

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

/// An access control list that the C library allocated.
struct AccessList(*mut Acl);

impl Drop for AccessList {
    fn drop(&mut self) {
        // SAFETY: the C library has allocated it, and nobody else frees it.
        unsafe { acl_free(self.0.cast()) };
    }
}

impl AccessList {
    fn new(list: *mut Acl) -> io::Result<AccessList> {
        if list.is_null() { Err(io::Error::last_os_error()) } else { Ok(AccessList(list)) }
    }

    /// That of an open file; `None` where the file system, or this kind of file, has none of this type.
    fn of(fd: BorrowedFd<'_>, kind: ListType) -> io::Result<Option<AccessList>> {
        // SAFETY: no memory is passed.
        match AccessList::new(unsafe { acl_get_fd_np(fd.as_raw_fd(), kind.0) }) {
            Ok(list) => Ok(Some(list)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it says more than the file's mode.
    fn says_more(&self) -> io::Result<bool> {
        let mut trivial: c_int = 0;
        // SAFETY: list and result live through the call.
        if unsafe { acl_is_trivial_np(self.0, &raw mut trivial) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(trivial == 0)
    }

    /// Whether it has an entry; without one it is as if it were not there.
    fn has_entries(&self) -> io::Result<bool> {
        let mut entry = std::ptr::null_mut();
        // SAFETY: list and result live through the call.
        match unsafe { acl_get_entry(self.0, ACL_FIRST_ENTRY, &raw mut entry) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The type of access control lists that the file system of an open file has; `None`: it has none.
fn access_list_type(fd: BorrowedFd<'_>) -> io::Result<Option<ListType>> {
    for (question, kind) in [(libc::_PC_ACL_NFS4, ACL_TYPE_NFS4), (PC_ACL_EXTENDED, ACL_TYPE_ACCESS)] {
        // SAFETY: no memory is passed.
        match unsafe { libc::fpathconf(fd.as_raw_fd(), question) } {
            1.. => return Ok(Some(kind)),
            0 => {}
            _ => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
                error => return Err(error),
            },
        }
    }
    Ok(None)
}

/// The access control lists of an open file that say more than its mode. The file may be a symbolic link that was opened with `O_PATH`.
///
/// # Errors
/// Whatever the system says; that the file system has none is no error.
pub(crate) fn access_lists(fd: BorrowedFd<'_>) -> io::Result<Vec<ListType>> {
    let Some(kind) = access_list_type(fd)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    if let Some(list) = AccessList::of(fd, kind)?
        && list.says_more()?
    {
        found.push(kind);
    }
    if kind == ACL_TYPE_ACCESS
        && let Some(list) = AccessList::of(fd, ACL_TYPE_DEFAULT)?
        && list.has_entries()?
    {
        found.push(ACL_TYPE_DEFAULT);
    }
    Ok(found)
}

/// Takes away from an open file or directory all access that its mode does not tell of. The mode may be another one afterwards.
///
/// # Errors
/// Whatever the system says.
pub(crate) fn strip_access_lists(fd: BorrowedFd<'_>) -> io::Result<()> {
    for kind in access_lists(fd)? {
        let result = if kind == ACL_TYPE_DEFAULT {
            // SAFETY: no memory is passed.
            unsafe { acl_delete_fd_np(fd.as_raw_fd(), kind.0) }
        } else {
            let Some(list) = AccessList::of(fd, kind)? else { continue };
            // SAFETY: the list lives through the call, which makes a new one.
            let plain = AccessList::new(unsafe { acl_strip_np(list.0, 0) })?;
            // SAFETY: the list lives through the call.
            unsafe { acl_set_fd_np(fd.as_raw_fd(), plain.0, kind.0) }
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
