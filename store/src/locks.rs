//! Locks that other processes see.
//!
//! | file | taken by | meaning |
//! |---|---|---|
//! | `STORE/HASH-NAME.lock` | whoever makes that path ([`Store::lock_paths`]) | no one else makes it |
//! | `STATE/gc.lock` | a collector, for writing | no new roots, no new files of temporary roots, no second collector |
//! | `DB/big-lock` | every process that has the store open, for reading | no one changes the schema |
//! | `DB/big-lock` | an adder, for writing, for a moment | no other process has the store open: see [`BigLock`] |
//! | `STATE/gc.lock` | whoever makes a file of temporary roots, for reading | no collector is at work |
//!
//! They are POSIX record locks, as guix-daemon's are, and so belong to the process, not to a thread or a descriptor: one thread does not
//! exclude another, and closing *any* descriptor of the file loses the lock. Hence the table [`held`]: a file that somebody in this process
//! has locked is never opened a second time, and threads exclude each other there. Waiting for another process is polling: `F_SETLKW`
//! cannot be cancelled, and the kernel, which thinks in processes, would report deadlocks between threads that have none.
//!
//! A lock file that is no longer wanted is first unlinked, then a byte is written to it. Who waited for it finds that byte (or no link), and
//! starts over with the file that has the name now.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fruix_drv::StorePath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl, openat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, lstat};

use crate::big_lock::{Alone, BigLock};
use crate::failpoints::step;
use crate::fsutil::{self, same_file};
use crate::{Error, Result, Store};

/// Longest pause between two looks at a lock that another process holds.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Longest pause before a waiting thread looks at its flag.
pub(crate) const CANCEL_POLL: Duration = Duration::from_millis(100);

/// What to do when a lock is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait<'a> {
    /// Come back at once.
    No,
    /// Wait, until the flag is set.
    Until(&'a AtomicBool),
}

/// A flag that nobody sets.
pub(crate) static NEVER: AtomicBool = AtomicBool::new(false);

impl Wait<'_> {
    /// Whether to go on waiting.
    pub(crate) fn go_on(self) -> Result<bool> {
        match self {
            Wait::No => Ok(false),
            Wait::Until(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Interrupted),
            Wait::Until(_) => Ok(true),
        }
    }
}

/// How a lock excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everyone.
    Exclusive,
    /// Those who want it [`Kind::Exclusive`].
    Shared,
    /// As [`Kind::Shared`], but let in by a holder of [`Kind::Exclusive`] in the same process, who then cannot give it up before.
    Guest,
}

/// A record lock's kind, as `F_SETLK` takes it.
pub(crate) fn set_record_lock(fd: impl AsFd, kind: libc::c_int) -> Result<bool, Errno> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
        #[cfg(target_os = "freebsd")]
        l_sysid: 0,
    };
    loop {
        match fcntl(&fd, FcntlArg::F_SETLK(&lock)) {
            Ok(_) => return Ok(true),
            Err(Errno::EACCES | Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The record locks for [`set_record_lock`], of one type on every platform.
pub(crate) const READ: libc::c_int = libc::F_RDLCK as libc::c_int;
/// See [`READ`].
pub(crate) const WRITE: libc::c_int = libc::F_WRLCK as libc::c_int;

/// Like [`set_record_lock`], but waits as `wait` says. `false`: it would have had to wait.
pub(crate) fn wait_record_lock(fd: impl AsFd, kind: libc::c_int, wait: Wait<'_>, shown: &Path) -> Result<bool> {
    let mut pause = Duration::from_micros(200);
    loop {
        if set_record_lock(&fd, kind).map_err(Error::io("acquiring/releasing lock", shown))? {
            return Ok(true);
        }
        if !wait.go_on()? {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL);
    }
}

/// Something that this process has locked.
#[derive(Debug)]
struct Held {
    means: Means,
    exclusive: bool,
    /// Holders of [`Kind::Shared`], and guests of a holder of [`Kind::Exclusive`].
    sharers: usize,
}

/// What keeps other processes out.
#[derive(Debug)]
enum Means {
    /// A record lock on the lock file.
    File(OwnedFd),
    /// That there are none. Held, never read.
    Alone { _alone: Alone },
}

#[derive(Default)]
struct Table {
    held: Mutex<HashMap<PathBuf, Held>>,
    changed: Condvar,
    /// Threads that wait for a change; changed while `held` is locked. Most often there are none, and to tell them so would be a system call.
    waiting: AtomicUsize,
}

/// The lock files that this process has locked, by name.
static TABLE: LazyLock<Table> = LazyLock::new(Table::default);

fn held() -> MutexGuard<'static, HashMap<PathBuf, Held>> {
    // Nothing panics while it holds this; and each change is a single one.
    TABLE.held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A held lock. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct FileLock {
    path: PathBuf,
    kind: Kind,
    delete: bool,
}

/// Whether a lock file comes and goes with what it locks, so that one with a link less or a byte more has been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// A path's lock.
    Passing,
    /// `gc.lock`: there once and for all, whatever is in it.
    Lasting,
}

/// How an attempt ended.
enum Attempt {
    Locked,
    HeldHere,
    HeldElsewhere,
}

impl FileLock {
    /// Locks the file `path`, which is made if it is missing. `waiting` is called once, if and before it waits. `None`: it would have had
    /// to wait.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Io`], [`Error::UnsupportedType`].
    pub(crate) fn acquire(path: &Path, kind: Kind, life: Life, wait: Wait<'_>, waiting: impl FnMut()) -> Result<Option<FileLock>> {
        Self::acquire_how(path, kind, life, wait, None, waiting)
    }

    /// Like [`FileLock::acquire`], for a lock that is held for some milliseconds at most: as long as no other process has the store of
    /// `big_lock` open, no file is made for it.
    fn acquire_how(
        path: &Path,
        kind: Kind,
        life: Life,
        wait: Wait<'_>,
        big_lock: Option<&Arc<BigLock>>,
        mut waiting: impl FnMut(),
    ) -> Result<Option<FileLock>> {
        let mut table = held();
        let mut pause = Duration::from_millis(1);
        let mut said = false;
        loop {
            let pause_now = match attempt(&mut table, path, kind, life, big_lock)? {
                Attempt::Locked => return Ok(Some(FileLock { path: path.to_owned(), kind, delete: false })),
                Attempt::HeldHere => CANCEL_POLL,
                Attempt::HeldElsewhere => {
                    pause = (pause * 2).min(POLL);
                    pause
                }
            };
            if !wait.go_on()? {
                return Ok(None);
            }
            if !std::mem::replace(&mut said, true) {
                drop(table);
                waiting();
                table = held();
                continue;
            }
            TABLE.waiting.fetch_add(1, Ordering::Relaxed);
            table = TABLE.changed.wait_timeout(table, pause_now).unwrap_or_else(PoisonError::into_inner).0;
            TABLE.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether the file goes when the lock does.
    pub(crate) fn set_deletion(&mut self, delete: bool) {
        self.delete = delete;
    }
}

/// Opens `path` and locks it, unless it is locked; `table` is the table of those which this process has.
fn attempt(table: &mut HashMap<PathBuf, Held>, path: &Path, kind: Kind, life: Life, big_lock: Option<&Arc<BigLock>>) -> Result<Attempt> {
    if let Some(held) = table.get_mut(path) {
        let welcome = match kind {
            Kind::Exclusive => false,
            Kind::Shared => !held.exclusive,
            Kind::Guest => true,
        };
        if !welcome {
            return Ok(Attempt::HeldHere);
        }
        held.sharers += 1;
        return Ok(Attempt::Locked);
    }
    let exclusive = kind == Kind::Exclusive;
    if exclusive && let Some(alone) = big_lock.and_then(BigLock::alone) {
        table.insert(path.to_owned(), Held { means: Means::Alone { _alone: alone }, exclusive, sharers: 0 });
        return Ok(Attempt::Locked);
    }
    loop {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = || openat(AT_FDCWD, path, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = step("locks::open", open).map_err(Error::io("opening lock file", path))?;
        // Nobody in this process has it, so that closing it again loses nothing.
        if !set_record_lock(&file, if exclusive { WRITE } else { READ }).map_err(Error::io("locking", path))? {
            return Ok(Attempt::HeldElsewhere);
        }
        let stat = fstat(&file).map_err(Error::io("statting lock file", path))?;
        if fsutil::kind(&stat) != SFlag::S_IFREG {
            return Err(Error::UnsupportedType { path: path.to_owned() });
        }
        if life == Life::Lasting || (stat.st_size == 0 && stat.st_nlink > 0) {
            table.insert(path.to_owned(), Held { means: Means::File(file), exclusive, sharers: usize::from(!exclusive) });
            return Ok(Attempt::Locked);
        }
        // It was unlinked, or is about to be, or is nobody's lock file: the name has to have another one.
        if exclusive && lstat(path).is_ok_and(|now| same_file(&now, &stat)) {
            match nix::unistd::unlink(path) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(Error::io("unlinking", path)(error)),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let mut table = held();
        if self.kind == Kind::Exclusive {
            while table.get(&self.path).is_some_and(|held| held.sharers > 0) {
                TABLE.waiting.fetch_add(1, Ordering::Relaxed);
                table = TABLE.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
                TABLE.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            if let Some(Held { means: Means::File(file), .. }) = table.get(&self.path)
                && self.delete
                && let Err(error) = delete(&self.path, file)
            {
                tracing::debug!(path = %self.path.display(), %error, "cannot delete a lock file");
            }
            // Closes it as well, before anybody can open it again.
            table.remove(&self.path);
        } else if let Some(held) = table.get_mut(&self.path) {
            held.sharers = held.sharers.saturating_sub(1);
            if held.sharers == 0 && !held.exclusive {
                table.remove(&self.path);
            }
        }
        let waiting = TABLE.waiting.load(Ordering::Relaxed);
        drop(table);
        if waiting > 0 {
            TABLE.changed.notify_all();
        }
    }
}

/// Unlinks a lock file and tells so those who wait for it.
fn delete(path: &Path, file: &OwnedFd) -> io::Result<()> {
    step("locks::unlink", || nix::unistd::unlink(path))?;
    step("locks::mark", || nix::unistd::write(file, b"d"))?;
    Ok(())
}

/// Deletes the lock file `path` unless somebody, in whatever process, has it locked. Returns whether it is gone.
pub(crate) fn delete_stale(path: &Path) -> Result<bool> {
    match FileLock::acquire(path, Kind::Exclusive, Life::Passing, Wait::No, || {})? {
        Some(mut lock) => {
            lock.set_deletion(true);
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Whether somebody in this process has locked `path`.
pub(crate) fn is_held(path: &Path) -> bool {
    held().contains_key(path)
}

/// Locks on store paths. Dropping them gives them up.
#[derive(Debug)]
pub struct PathLocks {
    locks: Vec<FileLock>,
}

impl PathLocks {
    /// Whether the lock files are deleted when the locks are given up. It should be set once the paths are valid: nobody will want to
    /// lock them again soon. At first it is not.
    pub fn set_deletion(&mut self, delete: bool) {
        for lock in &mut self.locks {
            lock.set_deletion(delete);
        }
    }
}

impl Store {
    /// Locks `paths`, each by a file `PATH.lock`, against whoever else would make them: other threads, other fruixds and guix-daemons.
    /// Without `wait`, `None` says that one of them is locked by someone else, and none is locked by this call; an asynchronous caller
    /// tries again after a while. With `wait` this blocks; the order is always the same, so that two such callers cannot wait for
    /// each other, but somebody who already holds one of `paths` waits for himself, for ever.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::UnsupportedType`] if something that is no file has the lock file's name.
    pub fn lock_paths(&self, paths: &[StorePath], wait: bool) -> Result<Option<PathLocks>> {
        self.lock_paths_how(paths, if wait { Wait::Until(&NEVER) } else { Wait::No })
    }

    /// Like [`Store::lock_paths`], waiting until `cancel` is set.
    ///
    /// # Errors
    /// As [`Store::lock_paths`], and [`Error::Interrupted`].
    pub fn lock_paths_or_cancel(&self, paths: &[StorePath], cancel: &AtomicBool) -> Result<PathLocks> {
        self.lock_paths_how(paths, Wait::Until(cancel))?.ok_or(Error::Interrupted)
    }

    /// Locks `path` as [`Store::lock_paths`] does with `wait`, for the time that it takes to put something in its place. When the lock is given
    /// up, `path` is valid or not there, so that the lock file, if there is one, is deleted.
    pub(crate) fn lock_path_briefly(&self, path: &StorePath, wait: Wait<'_>) -> Result<FileLock> {
        let file = self.lock_file(path);
        let lock = FileLock::acquire_how(&file, Kind::Exclusive, Life::Passing, wait, Some(&self.inner.big_lock), || {})?;
        let mut lock = lock.ok_or(Error::Interrupted)?;
        lock.set_deletion(true);
        Ok(lock)
    }

    fn lock_paths_how(&self, paths: &[StorePath], wait: Wait<'_>) -> Result<Option<PathLocks>> {
        let mut sorted: Vec<&StorePath> = paths.iter().collect();
        sorted.sort();
        sorted.dedup();
        let mut locks = Vec::with_capacity(sorted.len());
        for path in sorted {
            match FileLock::acquire(&self.lock_file(path), Kind::Exclusive, Life::Passing, wait, || {})? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        }
        Ok(Some(PathLocks { locks }))
    }

    /// Whether somebody in this process has locked `path`.
    pub fn is_locked_here(&self, path: &StorePath) -> bool {
        is_held(&self.lock_file(path))
    }

    /// The lock file of `path`.
    fn lock_file(&self, path: &StorePath) -> PathBuf {
        let mut name = self.real_path(path).into_os_string();
        name.push(".lock");
        PathBuf::from(name)
    }

    /// `STATE/gc.lock`.
    pub(crate) fn gc_lock_file(&self) -> PathBuf {
        self.state_dir().join("gc.lock")
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;

    const CHILD: &str = "FRUIX_TEST_LOCK_FILE";

    /// What another process does in [`other_processes`]: locks the file, says so, holds it until its input ends, and gives it up with
    /// deletion.
    #[test]
    fn child() {
        let Some(path) = std::env::var_os(CHILD) else { return };
        let mut lock = FileLock::acquire(Path::new(&path), Kind::Exclusive, Life::Passing, Wait::Until(&NEVER), || {}).unwrap().unwrap();
        println!("\nlocked");
        io::Read::read(&mut io::stdin(), &mut [0]).unwrap();
        lock.set_deletion(true);
    }

    fn start_child(path: &Path) -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "locks::tests::child", "--nocapture"])
            .env(CHILD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = io::BufReader::new(child.stdout.as_mut().unwrap());
        assert!(io::BufRead::lines(output).any(|line| line.unwrap() == "locked"));
        child
    }

    fn exclusive(path: &Path, wait: Wait<'_>) -> Result<Option<FileLock>> {
        FileLock::acquire(path, Kind::Exclusive, Life::Passing, wait, || {})
    }

    #[test]
    fn other_processes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let mut child = start_child(&path);
        assert!(exclusive(&path, Wait::No).unwrap().is_none());
        assert!(FileLock::acquire(&path, Kind::Shared, Life::Lasting, Wait::No, || {}).unwrap().is_none());
        assert!(!delete_stale(&path).unwrap());

        let cancel = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| exclusive(&path, Wait::Until(&cancel)));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!waiting.is_finished());
            cancel.store(true, Ordering::Relaxed);
            assert!(matches!(waiting.join().unwrap(), Err(Error::Interrupted)));
            // The other process deletes the file: what is locked then must be a new one.
            let waiting = scope.spawn(|| exclusive(&path, Wait::Until(&NEVER)));
            std::thread::sleep(Duration::from_millis(30));
            drop(child.stdin.take());
            let lock = waiting.join().unwrap().unwrap().unwrap();
            assert!(path.exists());
            drop(lock);
        });
        assert!(child.wait().unwrap().success());
        assert!(path.exists());
        assert!(delete_stale(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn threads_exclude_each_other_and_keep_the_lock_from_other_processes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (path, inside) = (&path, &inside);
                scope.spawn(move || {
                    for round in 0..50 {
                        let mut lock = exclusive(path, Wait::Until(&NEVER)).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        lock.set_deletion((thread + round) % 3 == 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        // Failed attempts here must not have lost the lock to the other process.
        let lock = exclusive(&path, Wait::No).unwrap().unwrap();
        assert!(exclusive(&path, Wait::No).unwrap().is_none());
        assert!(is_held(&path));
        let started = Instant::now();
        std::thread::scope(|scope| {
            let child = scope.spawn(|| start_child(&path));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!child.is_finished());
            drop(lock);
            let mut child = child.join().unwrap();
            assert!(started.elapsed() >= Duration::from_millis(300));
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        });
    }

    #[test]
    fn guests_keep_their_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gc.lock");
        let host = exclusive(&path, Wait::No).unwrap().unwrap();
        assert!(FileLock::acquire(&path, Kind::Shared, Life::Lasting, Wait::No, || {}).unwrap().is_none());
        let guest = FileLock::acquire(&path, Kind::Guest, Life::Lasting, Wait::No, || {}).unwrap().unwrap();
        std::thread::scope(|scope| {
            let leaving = scope.spawn(move || drop(host));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!leaving.is_finished());
            drop(guest);
            leaving.join().unwrap();
        });
        let one = FileLock::acquire(&path, Kind::Guest, Life::Lasting, Wait::No, || {}).unwrap().unwrap();
        let two = FileLock::acquire(&path, Kind::Shared, Life::Lasting, Wait::No, || {}).unwrap().unwrap();
        assert!(exclusive(&path, Wait::No).unwrap().is_none());
        drop(one);
        assert!(exclusive(&path, Wait::No).unwrap().is_none());
        drop(two);
        assert!(exclusive(&path, Wait::No).unwrap().is_some());
    }

    #[test]
    fn junk_with_a_lock_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, "junk").unwrap();
        drop(exclusive(&path, Wait::No).unwrap().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        let link = dir.path().join("y.lock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(exclusive(&link, Wait::No).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }
}
