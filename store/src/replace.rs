//! Putting a sound copy in the place of a damaged store item.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;

use crate::failpoints::step;
use crate::fsutil::{Place, exists_at, remove_tree};
use crate::{Error, PathInfo, Result, Store};

impl Store {
    /// Exchanges the valid path of `info` for `from`, which is canonical, synced and has the hash that `info` says, and registers that hash. At
    /// every moment either the old or the new item has the name, on systems that can exchange names. The caller holds the path's lock.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`]; one of the two items is at the path.
    pub fn replace(&self, from: &Place<'_>, info: &PathInfo) -> Result<()> {
        let shown = self.real_path(&info.path);
        let name = OsStr::new(info.path.base_name());
        if exists_at(self.dir(), name).map_err(Error::io("getting attributes of path", &shown))? {
            step("replace::exchange", || exchange(from, self.dir(), name)).map_err(Error::io("exchanging", &shown))?;
            self.sync_store_dir()?;
            remove_tree(from.dir, &from.name, &from.shown, 0)?;
        } else {
            self.install(from, &info.path)?;
        }
        self.update_path_info(info)
    }
}

/// Exchanges what `from` and `name` in `dir` name, at once.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn exchange(from: &Place<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    rustix::fs::renameat_with(from.dir, from.name.as_os_str(), dir, name, rustix::fs::RenameFlags::EXCHANGE).map_err(Into::into)
}

/// Exchanges what `from` and `name` in `dir` name. The system has no call for that: for a moment `name` is not there, and a crash in that moment
/// leaves the old item beside the new one in the staging directory; the path is then found missing, and can be repaired again.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn exchange(from: &Place<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut aside = from.name.clone();
    aside.push(".old");
    nix::fcntl::renameat(dir, name, from.dir, aside.as_os_str())?;
    nix::fcntl::renameat(from.dir, from.name.as_os_str(), dir, name)?;
    nix::fcntl::renameat(from.dir, aside.as_os_str(), from.dir, from.name.as_os_str())?;
    Ok(())
}
