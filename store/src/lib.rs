//! The store on disk.
//!
//! A [`Store`] is one store directory (`/gnu/store`, `/frx/store`, …) with its state directory: the database of valid paths, locks,
//! garbage-collector roots, and everything that changes them. It is synchronous and knows neither clients nor builds.
//!
//! What holds at every moment, whatever dies:
//!
//! - what the database calls valid is on the disk, canonical (mode 0444 or 0555, modification time 1, owned by the daemon) and complete;
//! - whatever else lies in the store directory is garbage, and may be deleted by whoever holds the path's lock;
//! - a guix-daemon may work on the same store at the same time: names, formats and locks are the same.
//!
//! Files are reached through held directory descriptors only, and no symbolic link is followed below them.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod add;
mod big_lock;
mod canonicalise;
mod check;
mod config;
mod database_file;
mod db;
mod error;
mod failed;
pub mod failpoints;
pub mod fsutil;
mod gc;
mod graph;
mod hashing;
mod info;
mod layout;
mod links;
mod locks;
mod memory;
mod nar_fs;
mod optimise;
mod picture;
mod register;
mod replace;
mod roots;
mod scan;
mod staging;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // Only there can a whole file system be synced and errors be heard.
mod sync;
#[cfg(target_os = "freebsd")]
mod sys;
mod temproots;
mod unsynced;
mod users;
mod verify;

#[cfg(test)]
mod testing;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fruix_drv::{StoreDir, StorePath};

pub use canonicalise::{InodesSeen, canonicalise, check_output};
pub use check::{Checked, Finding, Severity, Watch, check_store};
pub use config::Config;
pub use database_file::write_database;
pub use error::{Error, Result};
pub use fsutil::Place;
pub use gc::{GcAction, GcOptions, GcResults, Report, Verbosity, show_bytes};
pub use info::PathInfo;
pub use layout::ensure_store_writable;
pub use links::OptimiseStats;
pub use locks::PathLocks;
pub use nar_fs::{Made, Rewrites, copy_at, dump_at, dump_nar, restore_nar};
pub use roots::{ProcRoots, RuntimeRoots};
pub use scan::{Scanned, Scanner, hash_at, hash_path, scan, scan_at};
pub use staging::StagedDir;
pub use temproots::TempRoots;
pub use verify::{Repair, cannot_repair};

/// Locks what is complete after each change, so that a thread that panicked has left nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store directory and its state, open for reading and writing.
///
/// Cheap to clone; every clone is the same store. All methods may be called from any thread, and block.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    config: Config,
    dir: OwnedFd,
    db: db::Db,
    drv_hashes: Mutex<fruix_drv::ModuloCache>,
    staging: staging::Staging,
    registrations: register::Registrations,
    file_system_sync: sync::FileSystemSync,
    syncer: unsynced::Syncer,
    big_lock: Arc<big_lock::BigLock>,
    temp_roots: Arc<temproots::Table>,
}

impl Store {
    /// How the store was opened.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The store directory's name, as it goes into hashes.
    pub fn store_dir(&self) -> &StoreDir {
        &self.inner.config.store_dir
    }

    /// The store directory itself, open for reading. Everything below is reached through it.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.inner.dir.as_fd()
    }

    /// The file name of `path`, whether or not it exists.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        PathBuf::from(self.print(path))
    }

    /// `path` as users and clients write it.
    pub fn print(&self, path: &StorePath) -> String {
        self.store_dir().display(path).to_string()
    }

    pub(crate) fn db(&self) -> &db::Db {
        &self.inner.db
    }

    /// The state directory, `/var/guix` with Guix's defaults.
    pub fn state_dir(&self) -> &Path {
        &self.inner.config.state_dir
    }
}
