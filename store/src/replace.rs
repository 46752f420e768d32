//! Putting a sound copy in the place of a damaged store item.

use std::ffi::OsStr;

use crate::fsutil::{Place, exists_at, remove_tree};
use crate::{Error, PathInfo, Result, Store};

impl Store {
    /// Exchanges the valid path of `info` for `from`, which is canonical, synced and has the hash that `info` says, and registers that hash. At
    /// every moment either the old or the new item has the name. The caller holds the path's lock.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`]; one of the two items is at the path.
    pub fn replace(&self, from: &Place<'_>, info: &PathInfo) -> Result<()> {
        let shown = self.real_path(&info.path);
        let name = OsStr::new(info.path.base_name());
        if exists_at(self.dir(), name).map_err(Error::io("getting attributes of path", &shown))? {
            rustix::fs::renameat_with(from.dir, from.name.as_os_str(), self.dir(), name, rustix::fs::RenameFlags::EXCHANGE)
                .map_err(Error::io("exchanging", &shown))?;
            self.sync_store_dir()?;
            remove_tree(from.dir, &from.name, &from.shown, 0)?;
        } else {
            self.install(from, &info.path)?;
        }
        self.update_path_info(info)
    }
}
