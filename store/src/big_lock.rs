//! `DB/big-lock`: who has the store open.
//!
//! Every guix-daemon that serves a client, and every fruixd, holds a read lock on it. Whoever can take it for writing is therefore alone with the
//! store, and whoever comes waits until that is over. An adder that is alone needs no lock file of its own to keep other processes from his path.
//! That matters: on ext4 every file that was removed in the last five seconds makes the next one dearer to create, and with a lock file an
//! addition, a thousand additions a second become three hundred.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fstat, lstat};

use crate::fsutil::same_file;
use crate::locks::{NEVER, READ, WRITE, Wait, set_record_lock, wait_record_lock};
use crate::{Error, Result, lock};

/// For how long others are made to wait at most, when there is always somebody who wants to be alone.
const ALONE: Duration = Duration::from_millis(100);

/// How long they then have to get in.
const REST: Duration = Duration::from_millis(10);

/// The big locks of this process. They stay open: closing one would lose the lock for whoever else in this process has it.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Arc<BigLock>>>> = LazyLock::new(Mutex::default);

/// The open file, held for reading.
#[derive(Debug)]
pub(crate) struct BigLock {
    file: OwnedFd,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Those for whom it is held for writing.
    holders: usize,
    /// Since when.
    since: Option<Instant>,
    /// Until when it must not be taken for writing.
    rest: Option<Instant>,
}

impl BigLock {
    /// Opens the file `path` and takes it for reading; if somebody has it for writing, this waits.
    pub(crate) fn share(path: &Path) -> Result<Arc<BigLock>> {
        let mut open = lock(&OPEN);
        if let Some(known) = open.get(path)
            && let (Ok(held), Ok(now)) = (fstat(&known.file), lstat(path))
            && same_file(&held, &now)
        {
            return Ok(Arc::clone(known));
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let file = openat(AT_FDCWD, path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::io("opening lock file", path))?;
        if !set_record_lock(&file, READ).map_err(Error::io("acquiring lock", path))? {
            tracing::warn!("waiting for the big store lock...");
            wait_record_lock(&file, READ, Wait::Until(&NEVER), path)?;
        }
        let big_lock = Arc::new(BigLock { file, path: path.to_owned(), state: Mutex::default() });
        open.insert(path.to_owned(), Arc::clone(&big_lock));
        Ok(big_lock)
    }

    /// Keeps other processes from opening the store, unless one has it open already or has waited for too long.
    pub(crate) fn alone(self: &Arc<Self>) -> Option<Alone> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.holders > 0 {
            if state.since.is_none_or(|since| now.duration_since(since) >= ALONE) {
                return None;
            }
        } else {
            if state.rest.is_some_and(|until| now < until) || !set_record_lock(&self.file, WRITE).unwrap_or(false) {
                return None;
            }
            state.since = Some(now);
        }
        state.holders += 1;
        Some(Alone { big_lock: Arc::clone(self) })
    }
}

/// As long as one of these lives, no other process opens the store.
#[derive(Debug)]
pub(crate) struct Alone {
    big_lock: Arc<BigLock>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut state = lock(&self.big_lock.state);
        state.holders = state.holders.saturating_sub(1);
        if state.holders > 0 {
            return;
        }
        let now = Instant::now();
        if state.since.is_none_or(|since| now.duration_since(since) >= ALONE) {
            state.rest = now.checked_add(REST);
        }
        // Making a lock weaker cannot conflict with anyone.
        if let Err(error) = set_record_lock(&self.big_lock.file, READ) {
            tracing::error!(path = %self.big_lock.path.display(), %error, "cannot let other processes open the store");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::testing::temp_dir;

    /// What a child of this test program locks.
    const CHILD: &str = "FRUIX_TEST_BIG_LOCK";

    /// Run by [`start`] in a process of its own: opens the lock, says so, and holds it until its input ends.
    #[test]
    fn child() {
        let Some(path) = std::env::var_os(CHILD) else { return };
        let _lock = BigLock::share(Path::new(&path)).unwrap();
        println!("open");
        let _ = std::io::stdin().read_line(&mut String::new());
    }

    fn start(path: &Path) -> Child {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "big_lock::tests::child", "--nocapture"];
        Command::new(program).args(arguments).env(CHILD, path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn wait_until_open(child: &mut Child) {
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("open")));
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn alone_only_while_nobody_else_is_there() {
        let (_dir, root) = temp_dir();
        let path = root.join("big-lock");
        let big = BigLock::share(&path).unwrap();
        // Not if somebody is there ...
        let mut other = start(&path);
        wait_until_open(&mut other);
        assert!(big.alone().is_none());
        end(other);
        // ... and when nobody is, whoever comes waits until the last has done.
        let first = big.alone().unwrap();
        let second = BigLock::share(&path).unwrap().alone().unwrap();
        let mut other = start(&path);
        drop(first);
        std::thread::sleep(Duration::from_millis(50));
        let before = Instant::now();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(second);
        });
        wait_until_open(&mut other);
        assert!(before.elapsed() >= Duration::from_millis(100));
        end(other);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (_dir, root) = temp_dir();
        let big = BigLock::share(&root.join("big-lock")).unwrap();
        let first = big.alone().unwrap();
        std::thread::sleep(ALONE);
        // There is always somebody who is alone, but no one joins him any more.
        assert!(big.alone().is_none());
        drop(first);
        assert!(big.alone().is_none());
        std::thread::sleep(REST * 2);
        assert!(big.alone().is_some());
    }
}
