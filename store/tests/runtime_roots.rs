//! Whatever processes of other users do, the roots that running processes are can be found.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::ffi::OsStr;

use fruix_drv::StoreDir;
use fruix_store::{ProcRoots, RuntimeRoots, fsutil};
use nix::sys::stat::{Mode, mkdirat};

/// A file name longer than the system can tell must not end every collection.
#[test]
fn a_process_deep_down_is_no_obstacle() {
    let root = tempfile::tempdir().unwrap();
    let name = "d".repeat(250);
    let mut dir = fsutil::open_dir(root.path()).unwrap();
    for _ in 0..20 {
        mkdirat(&dir, name.as_str(), Mode::S_IRWXU).unwrap();
        dir = fsutil::open_dir_at(&dir, OsStr::new(&name)).unwrap();
    }
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    assert_eq!(std::fs::read_link(link).unwrap_err().raw_os_error(), Some(nix::libc::ENAMETOOLONG));
    ProcRoots::default().runtime_roots(&StoreDir::new("/some/store")).unwrap();
    drop(dir);
    // By steps, since no system call takes such a name.
    let top = fsutil::open_dir(root.path()).unwrap();
    fsutil::remove_tree(&top, OsStr::new(&name), root.path(), 0).unwrap();
}
