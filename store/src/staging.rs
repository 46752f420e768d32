//! Where things are made before anyone may see them.
//!
//! Each daemon has one directory of mode 0700 inside the store directory, so that a finished item can be renamed into
//! place. Its name is that of a store path, `HASH-fruixd-staging`, with a hash that depends on nothing but a small number: it is
//! announced as a temporary root, which keeps a collecting guix-daemon off it, and once its daemon is dead every collector takes
//! it for the garbage that it is. A lock on the file `lock` inside tells the living from the dead.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fruix_drv::{Hash, StoreDir, StorePath, path};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};

use crate::failpoints::step;
use crate::fsutil::{self, Place, lstat_at, open_dir_at, remove_tree, same_file};
use crate::{Error, Result, Store, TempRoots};

const NAME: &str = "fruixd-staging";
const LOCK: &str = "lock";

/// Daemons that can work on one store at the same time.
const SLOTS: u32 = 1024;

/// A daemon's staging directory. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: OwnedFd,
    path: StorePath,
    shown: PathBuf,
    dir: OwnedFd,
    next: AtomicU64,
    // Keeps a collector off the directory as long as it is in use.
    _root: TempRoots,
    // Held, never read.
    _lock: Flock<OwnedFd>,
}

/// The name of the staging directory number `slot`.
fn slot_path(dir: &StoreDir, slot: u32) -> Result<StorePath> {
    path::make_store_path(dir, "fruixd-staging", &Hash::sha256(slot.to_string()), NAME)
        .map_err(|error| Error::BadName { reason: error.to_string() })
}

/// Whether `base_name` is that of a staging directory.
pub(crate) fn is_staging(base_name: &[u8]) -> bool {
    base_name.strip_suffix(NAME.as_bytes()).is_some_and(|rest| rest.len() == fruix_drv::store_path::HASH_PART_LEN + 1)
}

impl Staging {
    /// Takes the first staging directory that no living daemon holds, and empties it. Its path becomes a root of `roots`.
    pub(crate) fn open(store: BorrowedFd<'_>, dir: &StoreDir, roots: TempRoots) -> Result<Staging> {
        for slot in 0..SLOTS {
            let path = slot_path(dir, slot)?;
            let shown = PathBuf::from(dir.display(&path));
            if let Some((fd, lock)) = Self::take(store, OsStr::new(path.base_name()), &shown, &mut || roots.add(&path))? {
                for name in fsutil::names(&fd).map_err(Error::io("reading directory", &shown))? {
                    if name != LOCK {
                        remove_tree(&fd, &name, &shown.join(&name), 0)?;
                    }
                }
                let store = store.try_clone_to_owned().map_err(Error::io("opening", &shown))?;
                let shared = Shared { store, path, shown, dir: fd, next: AtomicU64::new(0), _root: roots, _lock: lock };
                return Ok(Staging { shared: Arc::new(shared) });
            }
        }
        let shown = Path::new(dir.as_str());
        Err(Error::io("making a staging directory in", shown)(io::Error::from(Errno::EUSERS)))
    }

    fn take(
        store: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
        announce: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<(OwnedFd, Flock<OwnedFd>)>> {
        loop {
            match step("staging::make", || mkdirat(store, name, Mode::S_IRWXU)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(Error::io("creating directory", shown)(error)),
            }
            let Some(dir) = Self::open_own(store, name, shown)? else {
                return Ok(None);
            };
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = match step("staging::lock", || openat(&dir, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)) {
                Ok(file) => file,
                // Another daemon removes the directory just now.
                Err(Errno::ENOENT) => continue,
                Err(error) => return Err(Error::io("opening lock file in", shown)(error)),
            };
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(Error::io("locking", shown)(error)),
            };
            announce()?;
            // Between making and locking it, the directory may have gone, and another one come.
            let held = fstat(&dir).map_err(Error::io("getting status of", shown))?;
            let lock_held = fstat(&*lock).map_err(Error::io("getting status of", shown))?;
            let current = (lstat_at(store, name), lstat_at(&dir, OsStr::new(LOCK)));
            match current {
                (Ok(a), Ok(b)) if same_file(&a, &held) && same_file(&b, &lock_held) => {
                    return Ok(Some((dir, lock)));
                }
                _ => continue,
            }
        }
    }

    /// Whether a living daemon has the staging directory of this name.
    pub(crate) fn is_held(store: BorrowedFd<'_>, dir: &StoreDir, name: &str) -> Result<bool> {
        if !is_staging(name.as_bytes()) {
            return Ok(false);
        }
        let shown = Path::new(dir.as_str()).join(name);
        let found = open_dir_at(store, OsStr::new(name))
            .and_then(|dir| Ok(openat(&dir, LOCK, OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?));
        match found.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
            Ok(Ok(_)) => Ok(false),
            Ok(Err((_, Errno::EWOULDBLOCK))) => Ok(true),
            Ok(Err((_, error))) => Err(Error::io("locking", &shown)(error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("opening lock file in", &shown)(error)),
        }
    }

    /// Opens the directory, if it is a directory and this user's.
    fn open_own(store: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<Option<OwnedFd>> {
        let dir = match open_dir_at(store, name) {
            Ok(dir) => dir,
            // A build user who may write to the store directory has taken the name; let him have it.
            Err(_) => return Ok(None),
        };
        let stat = fstat(&dir).map_err(Error::io("getting status of", shown))?;
        if stat.st_uid != nix::unistd::geteuid().as_raw() {
            return Ok(None);
        }
        fchmod(&dir, Mode::S_IRWXU).map_err(Error::io("changing mode of", shown))?;
        // What is made inside must not inherit the store directory's group (as on BSD) nor its default ACL.
        nix::unistd::fchown(&dir, None, Some(nix::unistd::getegid())).map_err(Error::io("changing group of", shown))?;
        crate::canonicalise::strip_attributes(&dir).map_err(Error::io("removing extended attributes of", shown))?;
        Ok(Some(dir))
    }

    /// The staging directory's own store path.
    pub(crate) fn path(&self) -> &StorePath {
        &self.shared.path
    }

    /// A name in the staging directory that is not used yet.
    pub(crate) fn reserve(&self, what: &str) -> Staged {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Staged { shared: Arc::clone(&self.shared), name: OsString::from(format!("{number}-{what}")) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // With the lock held, so that nobody takes it meanwhile. What fails here is garbage for a collector.
        let name = OsStr::new(self.path.base_name());
        if let Err(error) = remove_tree(&self.store, name, &self.shown, 0) {
            tracing::debug!(%error, "cannot remove the staging directory");
        }
    }
}

/// A name in the staging directory. Dropping it removes what is there.
#[derive(Debug)]
pub(crate) struct Staged {
    shared: Arc<Shared>,
    name: OsString,
}

impl Staged {
    /// The staging directory.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.shared.dir.as_fd()
    }

    /// The name in it.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Both, with the whole file name for messages.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { dir: self.dir(), name: self.name.clone(), shown: self.shown() }
    }

    /// The whole file name, for messages.
    pub(crate) fn shown(&self) -> PathBuf {
        self.shared.shown.join(&self.name)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(self.dir(), &self.name, &self.shown(), 0) {
            tracing::warn!(%error, "cannot remove a staged file");
        }
    }
}

/// A directory of mode 0700 beneath the staging directory, on the store's file system: for the outputs of a build.
/// Dropping it removes it with all that is in it.
#[derive(Debug)]
pub struct StagedDir {
    dir: OwnedFd,
    staged: Staged,
}

impl StagedDir {
    /// The directory, open.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Something in it.
    pub fn place(&self, name: impl Into<OsString>) -> Place<'_> {
        Place::new(self.dir(), name, &self.path())
    }

    /// Its file name. Only the daemon's user gets there.
    pub fn path(&self) -> PathBuf {
        self.staged.shown()
    }
}

impl Store {
    /// Makes a directory that only the daemon can enter, from which [`Store::install`] can move things into the store. `what` is
    /// part of its name and says what it is for: letters, digits and dashes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stage_dir(&self, what: &str) -> Result<StagedDir> {
        let staged = self.inner.staging.reserve(what);
        let make = || mkdirat(staged.dir(), staged.name(), Mode::S_IRWXU);
        step("staging::dir", make).map_err(Error::io("creating directory", staged.shown()))?;
        let dir = open_dir_at(staged.dir(), staged.name()).map_err(Error::io("opening", staged.shown()))?;
        fchmod(&dir, Mode::S_IRWXU).map_err(Error::io("changing mode of", staged.shown()))?;
        Ok(StagedDir { dir, staged })
    }

    /// Makes a file without a name on the store's file system, for reading and writing.
    pub(crate) fn unnamed_file(&self) -> Result<std::fs::File> {
        let staged = self.inner.staging.reserve("spool");
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(staged.dir(), staged.name(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = step("staging::spool", open).map_err(Error::io("creating file", staged.shown()))?;
        // Dropping `staged` takes the name away.
        Ok(std::fs::File::from(file))
    }

    /// The store path of this daemon's staging directory, which is a temporary root as long as the store is open.
    pub fn staging_path(&self) -> &StorePath {
        self.inner.staging.path()
    }
}
