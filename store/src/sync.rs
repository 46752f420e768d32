//! Getting data onto the disk before it is called valid.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use fruix_drv::StorePath;
use fruix_protocol::limits::NAR_DEPTH;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::fsync;

use crate::failpoints::step;
use crate::fsutil::{
    Place, STORE_MTIME, kind, lstat_at, names, open_dir_at, open_file_at, permissions, remove_tree, set_store_mtime, with_place,
};
use crate::{Error, Result, Store};

/// Files and directories that are synced one by one. More are synced with the whole file system: on ext4 that takes 2 ms instead of 15 for
/// 64 small files, and 33 instead of 720 for 2000, but it also waits for what everybody else has written.
const SINGLY: u64 = 8;

/// Lets concurrent requests to sync the file system share one call.
#[derive(Debug, Default)]
pub(crate) struct FileSystemSync {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    finished: u64,
    running: bool,
}

impl FileSystemSync {
    /// Returns when a sync that began after this call has finished. `sync` does it.
    fn run<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = state.started.saturating_add(1);
        while state.running && state.finished < needed {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.finished >= needed {
            return Ok(());
        }
        state.running = true;
        state.started = state.started.saturating_add(1);
        let mine = state.started;
        drop(state);
        let result = sync();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        // After a failure whoever waits tries himself.
        if result.is_ok() {
            state.finished = state.finished.max(mine);
        }
        drop(state);
        self.done.notify_all();
        result
    }
}

impl Store {
    /// Returns when the tree `path`, which nobody changes, is on the disk: contents, metadata and names within it. Its own name is not; see
    /// [`Store::install`].
    ///
    /// # Errors
    /// [`Error::Io`]: the disk is failing or full.
    pub fn sync_tree(&self, path: &Path) -> Result<()> {
        with_place(path, |place| self.sync_at(place))
    }

    /// Like [`Store::sync_tree`], for something in an open directory.
    ///
    /// # Errors
    /// As [`Store::sync_tree`].
    pub fn sync_at(&self, place: &Place<'_>) -> Result<()> {
        if !self.config().durable || sync_singly(place, &mut 0, SINGLY, 0)? || self.sync_store_file_system()? {
            return Ok(());
        }
        sync_all(place)
    }

    /// Syncs all of the store's file system, in which whatever lies that is to be renamed into the store. `false`: this system cannot.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn sync_store_file_system(&self) -> Result<bool> {
        let sync = || {
            step("sync::filesystem", || rustix::fs::syncfs(self.dir()))
                .map_err(Error::io("syncing the file system of", self.store_dir().as_str()))
        };
        self.inner.file_system_sync.run(sync).map(|()| true)
    }

    /// Moves `from`, which is canonical and synced, to the store path `path`, whose lock the caller holds. Whatever was there, invalid as it
    /// must be, is removed first. Returns when the name is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; then either nothing is at `path` or the new item is, invalid still.
    pub fn install(&self, from: &Place<'_>, path: &StorePath) -> Result<()> {
        self.put_in_place(from, path)?;
        self.sync_store_dir()
    }

    pub(crate) fn sync_store_dir(&self) -> Result<()> {
        if !self.config().durable {
            return Ok(());
        }
        step("sync::names", || fsync(self.dir())).map_err(Error::io("syncing", self.store_dir().as_str()))
    }

    /// [`Store::install`] without the sync.
    pub(crate) fn put_in_place(&self, from: &Place<'_>, path: &StorePath) -> Result<()> {
        let shown = self.real_path(path);
        let name = OsStr::new(path.base_name());
        remove_tree(self.dir(), name, &shown, 0)?;
        let stat = lstat_at(from.dir, &from.name).map_err(Error::io("getting attributes of path", &from.shown))?;
        let dir = if kind(&stat) == SFlag::S_IFDIR {
            let dir = open_dir_at(from.dir, &from.name).map_err(Error::io("opening", &from.shown))?;
            if !nix::unistd::geteuid().is_root() {
                // A directory that moves has its `..` changed, for which its owner must be allowed to write to it.
                fchmod(&dir, permissions(&stat) | Mode::S_IWUSR).map_err(Error::io("changing mode of", &from.shown))?;
            }
            Some(dir)
        } else {
            None
        };
        let rename = || nix::fcntl::renameat(from.dir, from.name.as_os_str(), self.dir(), name);
        step("install::rename", rename).map_err(Error::io("moving to the store", &shown))?;
        if let Some(dir) = dir {
            let now = fstat(&dir).map_err(Error::io("getting attributes of path", &shown))?;
            if permissions(&now) != permissions(&stat) {
                fchmod(&dir, permissions(&stat)).map_err(Error::io("changing mode of", &shown))?;
            }
            if now.st_mtime != STORE_MTIME || now.st_mtime_nsec != 0 {
                set_store_mtime(&dir).map_err(Error::io("changing modification time of", &shown))?;
            }
        }
        Ok(())
    }
}

/// Syncs a tree file by file.
pub(crate) fn sync_all(place: &Place<'_>) -> Result<()> {
    sync_singly(place, &mut 0, u64::MAX, 0).map(drop)
}

/// Syncs a tree file by file, unless it has more than `limit`: then it returns `false`.
fn sync_singly(place: &Place<'_>, met: &mut u64, limit: u64, depth: usize) -> Result<bool> {
    let shown = &place.shown;
    *met += 1;
    if *met > limit {
        return Ok(false);
    }
    if depth > NAR_DEPTH {
        return Err(Error::TooDeep { path: shown.clone() });
    }
    let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", shown))?;
    let fd = match kind(&stat) {
        SFlag::S_IFREG => open_file_at(place.dir, &place.name).map_err(Error::io("opening", shown))?,
        SFlag::S_IFDIR => {
            let dir = open_dir_at(place.dir, &place.name).map_err(Error::io("opening", shown))?;
            for name in names(&dir).map_err(Error::io("reading directory", shown))? {
                if !sync_singly(&Place::new(dir.as_fd(), name, shown), met, limit, depth + 1)? {
                    return Ok(false);
                }
            }
            dir
        }
        // A symbolic link is on the disk when its directory is.
        _ => return Ok(true),
    };
    step("sync::file", || fsync(&fd)).map_err(Error::io("syncing", shown))?;
    Ok(true)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Store {
    pub(crate) fn sync_store_file_system(&self) -> Result<bool> {
        let _ = &self.inner.file_system_sync;
        Ok(false)
    }
}
