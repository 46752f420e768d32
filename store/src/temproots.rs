//! Temporary roots: what sessions need until they end.
//!
//! Each process with sessions has a file `STATE/temproots/PID`, guix-daemon's, with the paths it needs, each ended by a NUL byte:
//!
//! - The file is made while `STATE/gc.lock` is held for reading, that is, while nobody collects. (Our own collector lets us in.)
//! - Its owner holds a read lock on it, and nobody may think him dead.
//! - To change it he takes a write lock. A collector of another process, which holds a read lock on each such file from the moment it
//!   reads them until it has decided what to delete, makes him wait.
//! - A file that can be locked for writing by somebody else is that of a dead process: it is unlinked, and a byte is written to it.
//!
//! A path stays in the file when its last session ends, until there are more such paths than needed ones; then the file is written anew,
//! if that is possible without waiting.
//!
//! Within the process a collector does not read the file, but this table, and does not stop sessions: see [`crate::gc`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use fruix_drv::{StoreDir, StorePath};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fstat, lstat};

use crate::failpoints::{Writes, step};
use crate::fsutil::{make_dirs, same_file};
use crate::gc::Sweep;
use crate::locks::{CANCEL_POLL, FileLock, Kind, Life, NEVER, POLL, READ, WRITE, Wait, set_record_lock};
use crate::{Error, Result, Store, lock};

/// Other daemons with our process number (in PID namespaces of their own) that we make room for.
const NAMESAKES: u32 = 1000;

/// A state directory and a store directory.
type Key = (PathBuf, String);

/// The tables of this process. None is ever given up: there are few.
static TABLES: LazyLock<Mutex<HashMap<Key, Arc<Table>>>> = LazyLock::new(Mutex::default);

/// The files of temporary roots that this process has locked, its own and those of others that a collection reads. Nothing in this process
/// opens them a second time: closing would lose the lock.
static IN_USE: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

/// The right of this holder, within this process, to open a file of temporary roots.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
}

impl Claim {
    /// Claims `path`, unless it is claimed.
    pub(crate) fn take(path: &Path) -> Option<Claim> {
        lock(&IN_USE).insert(path.to_owned()).then(|| Claim { path: path.to_owned() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&IN_USE).remove(&self.path);
    }
}

/// Who needs what, in this process, of one store.
#[derive(Debug)]
pub(crate) struct Table {
    state_dir: PathBuf,
    store_dir: StoreDir,
    /// Taken before `roots` when both are.
    file: Mutex<Option<RootFile>>,
    roots: Mutex<Roots>,
    /// Something that a collection has been deleting is gone.
    gone: Condvar,
}

#[derive(Debug, Default)]
struct Roots {
    /// How many sessions need it.
    counts: HashMap<StorePath, usize>,
    sessions: usize,
    collection: Option<Collection>,
}

/// A collection that this process is at.
#[derive(Debug)]
struct Collection {
    /// What any session has needed at any moment since it began. None of it is deleted, even when its session has ended.
    needed: HashSet<StorePath>,
    /// From the moment when it is known what is dead.
    sweep: Option<Sweep>,
}

#[derive(Debug)]
struct RootFile {
    // Closed before the claim is given up.
    file: File,
    _claim: Claim,
    path: PathBuf,
    len: u64,
    /// What is in it.
    written: HashSet<StorePath>,
}

impl Drop for RootFile {
    fn drop(&mut self) {
        // By the name, unless that is another file's by now. A collector that has opened it finds it unlocked and empty-handed, whatever it
        // does then.
        if let (Ok(own), Ok(now)) = (fstat(&self.file), lstat(&self.path))
            && same_file(&own, &now)
            && let Err(error) = step("temproots::unlink", || nix::unistd::unlink(&self.path))
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the file of temporary roots");
        }
    }
}

/// Writes all of `bytes` to `file`, from `offset` on.
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    struct At<'f>(&'f File, u64);
    impl Write for At<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.0.write_at(bytes, self.1)?;
            self.1 = self.1.saturating_add(written as u64);
            Ok(written)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    Writes::new("temproots::write", At(file, offset)).write_all(bytes)
}

/// Unlinks a file of a dead process and marks it, whose write lock is held.
pub(crate) fn bury(file: &File, path: &Path) {
    if let (Ok(own), Ok(now)) = (fstat(file), lstat(path))
        && same_file(&own, &now)
    {
        // It is no harm if either fails: somebody else will find the same.
        let _ = step("temproots::bury", || nix::unistd::unlink(path));
    }
    let _ = file.write_all_at(b"d", 0);
}

impl Table {
    /// The table for a store.
    pub(crate) fn of(state_dir: &Path, store_dir: &StoreDir) -> Arc<Table> {
        let state_dir = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
        let key = (state_dir.clone(), store_dir.to_string());
        let make =
            || Table { state_dir, store_dir: store_dir.clone(), file: Mutex::default(), roots: Mutex::default(), gone: Condvar::new() };
        Arc::clone(lock(&TABLES).entry(key).or_insert_with(|| Arc::new(make())))
    }

    /// The file name of a root, as it goes into the file.
    fn print(&self, path: &StorePath, out: &mut Vec<u8>) {
        out.extend_from_slice(self.store_dir.as_str().as_bytes());
        out.push(b'/');
        out.extend_from_slice(path.base_name().as_bytes());
        out.push(0);
    }

    /// Writes the roots of all sessions into `file`, whose write lock is held, in place of what is there.
    fn rewrite(&self, file: &mut RootFile) -> Result<()> {
        let written: HashSet<StorePath> = lock(&self.roots).counts.keys().cloned().collect();
        let mut bytes = Vec::new();
        for path in &written {
            self.print(path, &mut bytes);
        }
        let len = bytes.len() as u64;
        // Over the old contents, since that takes no new space on most file systems.
        write_at(&file.file, &bytes, 0)
            .and_then(|()| file.file.set_len(len))
            .map_err(Error::io("writing temporary roots to", &file.path))?;
        file.len = len;
        file.written = written;
        Ok(())
    }

    /// Makes the process's file. `None`: a collector of another process is at work.
    fn create(&self) -> Result<Option<RootFile>> {
        let dir = self.state_dir.join("temproots");
        make_dirs(&dir, 0o755)?;
        let gc_lock = self.state_dir.join("gc.lock");
        let Some(_no_collector) = FileLock::acquire(&gc_lock, Kind::Guest, Life::Lasting, Wait::No, || {})? else { return Ok(None) };
        let pid = std::process::id();
        let mut namesake = 0;
        loop {
            let path = dir.join(if namesake == 0 { pid.to_string() } else { format!("{pid}-{namesake}") });
            namesake += 1;
            if namesake > NAMESAKES {
                return Err(Error::io("opening temporary roots file", &path)(std::io::Error::from(Errno::EUSERS)));
            }
            let Some(claim) = Claim::take(&path) else { continue };
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let open = || openat(AT_FDCWD, &path, flags, Mode::S_IRUSR | Mode::S_IWUSR);
            let file = step("temproots::create", open).map_err(Error::io("opening temporary roots file", &path))?;
            let file = File::from(file);
            if !set_record_lock(&file, WRITE).map_err(Error::io("locking", &path))? {
                // Alive, in another PID namespace.
                continue;
            }
            let stat = fstat(&file).map_err(Error::io("statting", &path))?;
            if stat.st_size != 0 || stat.st_nlink == 0 {
                bury(&file, &path);
                namesake -= 1;
                continue;
            }
            let mut file = RootFile { file, _claim: claim, path, len: 0, written: HashSet::new() };
            self.rewrite(&mut file)?;
            set_record_lock(&file.file, READ).map_err(Error::io("locking", &file.path))?;
            return Ok(Some(file));
        }
    }

    /// Writes `paths` to the file where they are missing. `false`: a collector of another process does not let us.
    fn write(&self, slot: &mut Option<RootFile>, paths: &[StorePath]) -> Result<bool> {
        // Somebody has cleared the state directory away under us, or a namesake took our file for a dead one's.
        if let Some(file) = slot
            && fstat(&file.file).map_err(Error::io("statting", &file.path))?.st_nlink == 0
        {
            *slot = None;
        }
        if slot.is_none() {
            *slot = self.create()?;
        }
        let Some(file) = slot else { return Ok(false) };
        let mut bytes = Vec::new();
        for path in paths.iter().filter(|path| !file.written.contains(*path)) {
            self.print(path, &mut bytes);
        }
        if bytes.is_empty() {
            return Ok(true);
        }
        if !set_record_lock(&file.file, WRITE).map_err(Error::io("locking", &file.path))? {
            return Ok(false);
        }
        let written = write_at(&file.file, &bytes, file.len).map_err(Error::io("writing temporary roots to", &file.path));
        if written.is_ok() {
            file.len += bytes.len() as u64;
            file.written.extend(paths.iter().cloned());
        } else {
            // Half a path would be read as one.
            let _ = file.file.set_len(file.len);
        }
        set_record_lock(&file.file, READ).map_err(Error::io("locking", &file.path))?;
        written.map(|()| true)
    }

    /// Adds `paths` for a session. `false`: that would take waiting, and nothing was added.
    fn add(&self, paths: &[StorePath], wait: Wait<'_>) -> Result<bool> {
        let mut pause = Duration::from_micros(200);
        let mut roots = loop {
            let mut file = lock(&self.file);
            if self.write(&mut file, paths)? {
                // With the file still held, or it could be written anew without these.
                let mut roots = lock(&self.roots);
                if matches!(wait, Wait::No) && paths.iter().any(|path| roots.is_going(path)) {
                    return Ok(false);
                }
                for path in paths {
                    roots.enter(path);
                }
                break roots;
            }
            drop(file);
            if !wait.go_on()? {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL);
        };
        while paths.iter().any(|path| roots.is_going(path)) {
            if let Err(error) = wait.go_on() {
                for path in paths {
                    roots.leave(path);
                }
                return Err(error);
            }
            roots = self.gone.wait_timeout(roots, CANCEL_POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(true)
    }

    /// Forgets what a session needed, without ever waiting for another process.
    fn end_session(&self, paths: &HashSet<StorePath>) {
        let mut slot = lock(&self.file);
        let mut roots = lock(&self.roots);
        for path in paths {
            roots.leave(path);
        }
        roots.sessions = roots.sessions.saturating_sub(1);
        let (sessions, needed) = (roots.sessions, roots.counts.len());
        drop(roots);
        if sessions == 0 {
            *slot = None;
        }
        let Some(file) = slot.as_mut() else { return };
        if file.written.len().saturating_sub(needed) <= needed || !set_record_lock(&file.file, WRITE).unwrap_or(false) {
            return;
        }
        let rewritten = self.rewrite(file);
        let locked = set_record_lock(&file.file, READ);
        if let Err(error) = rewritten.and(locked.map(drop).map_err(Error::io("locking", &file.path))) {
            tracing::warn!(%error, "cannot shorten the file of temporary roots; making another one");
            *slot = None;
            match self.create() {
                Ok(file) => *slot = file,
                Err(error) => {
                    tracing::error!(%error, "cannot write temporary roots; another process that collects garbage will not see them")
                }
            }
        }
    }

    /// Begins a collection. `gc.lock` must be held for writing until it ends.
    pub(crate) fn begin(self: &Arc<Self>) -> CollectionGuard {
        let mut roots = lock(&self.roots);
        let needed = roots.counts.keys().cloned().collect();
        roots.collection = Some(Collection { needed, sweep: None });
        CollectionGuard { table: Arc::clone(self) }
    }
}

impl Roots {
    fn enter(&mut self, path: &StorePath) {
        *self.counts.entry(path.clone()).or_default() += 1;
        if let Some(collection) = &mut self.collection {
            collection.needed.insert(path.clone());
            if let Some(sweep) = &mut collection.sweep {
                sweep.keep(path);
            }
        }
    }

    fn leave(&mut self, path: &StorePath) {
        if let Some(count) = self.counts.get_mut(path) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(path);
            }
        }
    }

    /// Whether a collection is deleting `path` just now.
    fn is_going(&self, path: &StorePath) -> bool {
        let sweep = self.collection.as_ref().and_then(|collection| collection.sweep.as_ref());
        sweep.is_some_and(|sweep| sweep.is_going(path))
    }
}

/// A collection of this process, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct CollectionGuard {
    table: Arc<Table>,
}

impl CollectionGuard {
    /// What sessions have needed since the collection began.
    pub(crate) fn needed(&self) -> HashSet<StorePath> {
        lock(&self.table.roots).collection.as_ref().map(|collection| collection.needed.clone()).unwrap_or_default()
    }

    /// Goes over from marking to sweeping. What sessions have come to need since [`CollectionGuard::needed`] is kept.
    pub(crate) fn sweep(&self, mut sweep: Sweep) {
        let mut roots = lock(&self.table.roots);
        if let Some(collection) = &mut roots.collection {
            for path in &collection.needed {
                sweep.keep(path);
            }
            collection.sweep = Some(sweep);
        }
    }

    /// Looks at or changes the sweep, and what sessions need; nobody can begin to need anything meanwhile. Threads that wait for something
    /// to go look again afterwards.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Sweep, &HashSet<StorePath>) -> T) -> Option<T> {
        let mut roots = lock(&self.table.roots);
        let collection = roots.collection.as_mut()?;
        let value = change(collection.sweep.as_mut()?, &collection.needed);
        drop(roots);
        self.table.gone.notify_all();
        Some(value)
    }
}

impl Drop for CollectionGuard {
    fn drop(&mut self) {
        lock(&self.table.roots).collection = None;
        self.table.gone.notify_all();
    }
}

/// The temporary roots of one session: paths that no collector deletes, with all they refer to, until this is dropped.
#[derive(Debug)]
pub struct TempRoots {
    table: Arc<Table>,
    mine: Mutex<HashSet<StorePath>>,
}

impl TempRoots {
    /// No roots yet, in `table`.
    pub(crate) fn new(table: &Arc<Table>) -> TempRoots {
        lock(&table.roots).sessions += 1;
        TempRoots { table: Arc::clone(table), mine: Mutex::default() }
    }

    /// Makes `path` a root, whether or not it is valid or exists. Whoever needs a path does this first, and then asks whether it is valid:
    /// the answer lasts. This waits while the path is being deleted (a moment), and while another process collects garbage (which may
    /// take long).
    ///
    /// # Errors
    /// [`Error::Io`] when the file of temporary roots cannot be written.
    pub fn add(&self, path: &StorePath) -> Result<()> {
        self.add_or_cancel(path, &NEVER)
    }

    /// Like [`TempRoots::add`], until `cancel` is set.
    ///
    /// # Errors
    /// As [`TempRoots::add`], and [`Error::Interrupted`].
    pub fn add_or_cancel(&self, path: &StorePath, cancel: &AtomicBool) -> Result<()> {
        self.add_how(std::slice::from_ref(path), Wait::Until(cancel)).map(drop)
    }

    /// Like [`TempRoots::add`] for each of `paths`, at the price of one.
    ///
    /// # Errors
    /// As [`TempRoots::add`]; then none is added.
    pub fn add_all(&self, paths: &[StorePath]) -> Result<()> {
        self.add_how(paths, Wait::Until(&NEVER)).map(drop)
    }

    /// Like [`TempRoots::add_all`], but rather than wait it returns `false`, having done nothing. It takes microseconds.
    ///
    /// # Errors
    /// As [`TempRoots::add`].
    pub fn try_add_all(&self, paths: &[StorePath]) -> Result<bool> {
        self.add_how(paths, Wait::No)
    }

    fn add_how(&self, paths: &[StorePath], wait: Wait<'_>) -> Result<bool> {
        let mut new: Vec<StorePath> = {
            let mine = lock(&self.mine);
            paths.iter().filter(|path| !mine.contains(*path)).cloned().collect()
        };
        new.sort();
        new.dedup();
        if new.is_empty() {
            return Ok(true);
        }
        if !self.table.add(&new, wait)? {
            return Ok(false);
        }
        let mut mine = lock(&self.mine);
        for path in new {
            // Another thread of the same session may have been faster.
            if let Some(path) = mine.replace(path) {
                lock(&self.table.roots).leave(&path);
            }
        }
        Ok(true)
    }

    /// The table that these are part of.
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        self.table.end_session(&lock(&self.mine));
    }
}

impl Store {
    /// Temporary roots for a new session, none yet.
    pub fn temp_roots(&self) -> TempRoots {
        TempRoots::new(&self.inner.temp_roots)
    }
}
