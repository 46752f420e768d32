//! Answers of the database that are remembered for as long as nobody changes it.
//!
//! A query of a row or two is a read transaction, which takes longer than to find the answer in memory. Whoever commits to a database in WAL mode,
//! in whatever process, writes a new header into its `-shm` file, with a counter that goes up (SQLite's "WAL-mode file format", section 2.1, the
//! WAL-index header: two copies of 48 bytes). An answer that was found while this was the same before and after is the right one until it is
//! another.

use std::collections::HashMap;
use std::fs::File;
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

/// Answers that are remembered, counted with the paths in them: some 8 MiB. Then all are forgotten.
const LIMIT: usize = 64 * 1024;

type Header = [u8; HEADER];

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
        let state = State { header: [0; HEADER], answers: Answers::default(), size: 0 };
        Memory { path: shm.into(), file: OnceLock::new(), state: Mutex::new(state) }
    }

    /// The header as it is now; `None` when there is none, as before the first query.
    fn header(&self) -> Option<Header> {
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

    /// What `ask` answers about `path`, which is kept in `slot`.
    pub(crate) fn recall<T: Answer>(
        &self,
        slot: fn(&mut Answers) -> &mut HashMap<StorePath, T>,
        path: &StorePath,
        ask: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = self.header();
        if let Some(header) = &before {
            let mut state = lock(&self.state);
            if state.header == *header
                && let Some(answer) = slot(&mut state.answers).get(path)
            {
                return Ok(answer.clone());
            }
        }
        let answer = ask()?;
        if let Some(header) = before
            && self.header() == before
        {
            let mut state = lock(&self.state);
            let size = answer.paths().saturating_add(1);
            if state.header != header || state.size.saturating_add(size) > LIMIT {
                *state = State { header, answers: Answers::default(), size: 0 };
            }
            if size <= LIMIT {
                state.size = state.size.saturating_add(size);
                slot(&mut state.answers).insert(path.clone(), answer.clone());
            }
        }
        Ok(answer)
    }
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
