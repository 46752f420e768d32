//! Answers of the database that are remembered for as long as nobody changes it.
//!
//! A query of a row or two is a read transaction, which takes longer than to find the answer in memory. Whoever commits to a database in WAL mode,
//! in whatever process, writes a new header into its `-shm` file, with a counter that goes up (SQLite's "WAL-mode file format", section 2.1, the
//! WAL-index header: two copies of 48 bytes). An answer that was found while this was the same before and after is the right one until it is
//! another. Over a commit of our own all answers are kept but those that it changes ([`Memory::carry`]).

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use fruix_drv::StorePath;
use nix::sys::stat::{fstat, lstat};

use crate::fsutil::same_file;
use crate::info::{Outputs, Paths};
use crate::{PathInfo, Result, lock};

/// The first of the two copies.
const HEADER: usize = 48;

/// Where it says whether it is in use.
const INITIALISED: usize = 12;

/// Where it counts the commits, in the machine's own order of bytes (`WalIndexHdr.iChange` of SQLite's `wal.c`).
const COMMITS: Range<usize> = 8..12;

/// Answers that are remembered, counted with the paths in them: some 8 MiB. Then all are forgotten.
const LIMIT: usize = 64 * 1024;

/// A state of the database.
pub(crate) type Header = [u8; HEADER];

/// The `-shm` files that this process has opened. They stay open: closing one would lose the locks that SQLite has on it.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Arc<File>>>> = LazyLock::new(Mutex::default);

/// What is remembered of one database.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    file: OnceLock<Arc<File>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    header: Header,
    answers: Answers,
    /// What counts for [`LIMIT`].
    size: usize,
}

impl State {
    /// Nothing remembered yet.
    fn of(header: Header) -> State {
        State { header, answers: Answers::default(), size: 0 }
    }
}

/// By the path that was asked about.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Whether it is valid.
    pub(crate) valid: HashMap<StorePath, bool>,
    /// What is known of it, or that it is not valid.
    pub(crate) infos: HashMap<StorePath, Option<Arc<PathInfo>>>,
    /// What refers to it.
    pub(crate) referrers: HashMap<StorePath, Arc<Paths>>,
    /// The outputs of a derivation.
    pub(crate) outputs: HashMap<StorePath, Arc<Outputs>>,
}

/// One of the kinds of answers.
pub(crate) type Slot<T> = fn(&mut Answers) -> &mut HashMap<StorePath, T>;

/// Something that is remembered.
pub(crate) trait Answer: Clone {
    /// How many paths are in it.
    fn paths(&self) -> usize;
}

impl Answer for bool {
    fn paths(&self) -> usize {
        0
    }
}

impl Answer for Option<Arc<PathInfo>> {
    fn paths(&self) -> usize {
        self.as_ref().map_or(0, |info| info.references.len())
    }
}

impl Answer for Arc<Paths> {
    fn paths(&self) -> usize {
        self.len()
    }
}

impl Answer for Arc<Outputs> {
    fn paths(&self) -> usize {
        self.len()
    }
}

impl Memory {
    /// Nothing yet, of the database in the file `path`.
    pub(crate) fn new(path: &Path) -> Memory {
        // As SQLite does, which follows links.
        let mut shm = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
        shm.push("-shm");
        Memory { path: shm.into(), file: OnceLock::new(), state: Mutex::new(State::of([0; HEADER])) }
    }

    /// The header as it is now; `None` when there is none, as before the first query.
    pub(crate) fn header(&self) -> Option<Header> {
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = open(&self.path)?;
                self.file.get_or_init(|| file)
            }
        };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        (header.get(INITIALISED) == Some(&1)).then_some(header)
    }

    /// What is known about `path` in `slot`, in the state `header`.
    fn known<T: Answer>(&self, slot: Slot<T>, path: &StorePath, header: &Header) -> Option<T> {
        let mut state = lock(&self.state);
        if state.header == *header { slot(&mut state.answers).get(path).cloned() } else { None }
    }

    /// What is remembered about `path` in `slot`, and still right.
    pub(crate) fn remembered<T: Answer>(&self, slot: Slot<T>, path: &StorePath) -> Option<T> {
        self.known(slot, path, &self.header()?)
    }

    /// What `ask` answers about `path`, which is kept in `slot`.
    pub(crate) fn recall<T: Answer>(&self, slot: Slot<T>, path: &StorePath, ask: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.header();
        if let Some(answer) = before.as_ref().and_then(|header| self.known(slot, path, header)) {
            return Ok(answer);
        }
        let answer = ask()?;
        if let Some(header) = before
            && self.header() == before
        {
            let mut state = lock(&self.state);
            let size = answer.paths().saturating_add(1);
            if state.header != header || state.size.saturating_add(size) > LIMIT {
                *state = State::of(header);
            }
            if size <= LIMIT {
                state.size = state.size.saturating_add(size);
                slot(&mut state.answers).insert(path.clone(), answer.clone());
            }
        }
        Ok(answer)
    }

    /// Keeps what is remembered over a commit, which this process has just made, and nobody else of it since: `before` is the header while its
    /// transaction had the database, `change` puts the answers right. If others have committed since, all is forgotten, as after any change.
    pub(crate) fn carry(&self, before: Option<Header>, change: impl FnOnce(&mut Answers) -> usize) {
        let Some((before, after)) = before.zip(self.header()) else { return };
        if after != before && commits(&after) != commits(&before).wrapping_add(1) {
            return;
        }
        let mut state = lock(&self.state);
        if state.header != before && state.header != after {
            *state = State::of(after);
        }
        state.header = after;
        let more = change(&mut state.answers);
        state.size = state.size.saturating_add(more);
        if state.size > LIMIT {
            *state = State::of(after);
        }
    }
}

impl Answers {
    /// `info`, or a part of it, has been registered. Returns by how much there is more to remember.
    pub(crate) fn registered(&mut self, info: &PathInfo) -> usize {
        self.infos.remove(&info.path);
        self.referrers.remove(&info.path);
        self.outputs.remove(&info.path);
        for reference in &info.references {
            self.referrers.remove(reference);
        }
        usize::from(self.valid.insert(info.path.clone(), true).is_none())
    }
}

fn commits(header: &Header) -> u32 {
    header.get(COMMITS).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn open(path: &Path) -> Option<Arc<File>> {
    let mut open = lock(&OPEN);
    if let Some(known) = open.get(path)
        && let (Ok(held), Ok(now)) = (fstat(&**known), lstat(path))
        && same_file(&held, &now)
    {
        return Some(Arc::clone(known));
    }
    let file = Arc::new(File::open(path).ok()?);
    open.insert(path.to_owned(), Arc::clone(&file));
    Some(file)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use crate::testing::test_store;

    /// Another process's changes count at once, and so do ours; without a change the database is not asked.
    #[test]
    fn what_is_remembered_is_what_would_be_found() {
        let test = test_store();
        let (a, b) = (test.text("a", "x"), test.text("b", "y"));
        let other = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        let set_size = |size: i64| {
            let path = test.store.print(&a);
            assert_eq!(other.execute("update ValidPaths set narSize = ?1 where path = ?2", (size, path)).unwrap(), 1);
        };
        for size in [1, 2] {
            set_size(size);
            for _ in 0..2 {
                assert_eq!(test.store.path_info(&a).unwrap().nar_size, size as u64);
            }
        }
        assert_eq!(super::lock(&test.store.db().memory.state).answers.infos.len(), 1);
        assert!(test.store.is_valid(&b).unwrap() && test.store.referrers(&b).unwrap().is_empty());
        assert!(test.store.derivation_outputs(&b).unwrap().is_empty());
        let remembered = super::lock(&test.store.db().memory.state).size;
        assert_eq!(remembered, 4);
        test.store.invalidate(&[b.clone()].into()).unwrap();
        assert!(!test.store.is_valid(&b).unwrap());
        assert!(test.store.derivation_outputs(&b).is_err());
        assert_eq!(test.store.path_info(&a).unwrap().nar_size, 2);
        let again = test.text("b", "y");
        assert!(again == b && test.store.is_valid(&b).unwrap());
    }

    /// What is registered is remembered, what was known before it too, but for what it changes; somebody else's commit in between is noticed.
    #[test]
    fn answers_outlive_our_own_commits() {
        let test = test_store();
        let (a, b) = (test.text("a", "x"), test.text("b", "y"));
        assert!(test.store.referrers(&a).unwrap().is_empty() && test.store.referrers(&b).unwrap().is_empty());
        let memory = &test.store.db().memory;
        let remembered = |path| memory.remembered(|answers| &mut answers.valid, path);
        let roots = test.store.temp_roots();
        let c = test.store.add_text(&roots, "c", b"z", &[b.clone()].into()).unwrap();
        assert_eq!([&a, &b, &c].map(remembered), [Some(true); 3]);
        let referrers = |path| memory.remembered(|answers| &mut answers.referrers, path);
        assert!(referrers(&a).unwrap().is_empty());
        assert_eq!(referrers(&b), None);
        assert_eq!(test.store.referrers(&b).unwrap(), [c.clone()].into());
        // The same for an item that is registered anew with more references.
        let info = test.store.path_info(&a).unwrap();
        test.store.register(&[crate::PathInfo { references: [b.clone()].into(), ..info }]).unwrap();
        assert_eq!(test.store.path_info(&a).unwrap().references, [b.clone()].into());
        assert_eq!(test.store.referrers(&b).unwrap(), [a.clone(), c.clone()].into());
        // Another's commit, and then two, before ours is carried over.
        let other = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        let change = || other.execute("update ValidPaths set narSize = narSize + 1", []).unwrap();
        for others in 1..3 {
            let before = memory.header();
            test.text(&format!("ours-{others}"), "x");
            assert_eq!(remembered(&a), Some(true));
            for _ in 0..others {
                change();
            }
            let mut asked = false;
            memory.carry(before, |_| {
                asked = true;
                0
            });
            assert!(!asked && remembered(&a).is_none());
            assert!(test.store.is_valid(&a).unwrap());
        }
    }

    #[test]
    fn memory_is_bounded() {
        let test = test_store();
        let path = test.text("a", "x");
        assert!(test.store.is_valid(&path).unwrap());
        super::lock(&test.store.db().memory.state).size = super::LIMIT;
        assert!(test.store.referrers(&path).unwrap().is_empty());
        let state = super::lock(&test.store.db().memory.state);
        assert_eq!((state.size, state.answers.valid.len(), state.answers.referrers.len()), (1, 0, 1));
    }
}
