//! Answers of the database that are remembered for as long as nobody changes it.
//!
//! A query of a row or two is a read transaction, which takes longer than to find the answer in memory. Whoever commits to a database in WAL mode,
//! in whatever process, writes a new header into its `-shm` file, with a counter that goes up (SQLite's "WAL-mode file format", section 2.1, the
//! WAL-index header: two copies of 48 bytes). An answer that was found while this was the same before and after is the right one until it is
//! another. Over a commit of our own all answers are kept but those that it changes ([`Memory::carry`]).
//!
//! When many different things are asked, a [`Picture`] of all tables is made on a thread of its own and answers from then on, under the same
//! conditions. What our own commits change is not changed there, but asked of the database again. It is given back when nobody has asked for a while.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use fruix_drv::StorePath;
use nix::sys::stat::{fstat, lstat};

use crate::fsutil::same_file;
use crate::info::{Outputs, Paths};
use crate::picture::{self, Picture};
use crate::{PathInfo, Result, Store, lock};

/// The first of the two copies.
const HEADER: usize = 48;

/// Where it says whether it is in use.
const INITIALISED: usize = 12;

/// Where it counts the commits, in the machine's own order of bytes (`WalIndexHdr.iChange` of SQLite's `wal.c`).
const COMMITS: Range<usize> = 8..12;

/// Answers that are remembered, counted with the paths in them: some 8 MiB. Then all are forgotten.
const LIMIT: usize = 64 * 1024;

/// How long a picture is kept for nobody.
const IDLE: Duration = Duration::from_secs(300);

/// Paths that are looked up before others may.
const AT_ONCE: usize = 256;

/// How often a picture is begun anew because somebody committed just then.
const TRIES: usize = 8;

/// Longer than most commits.
const MOMENT: Duration = Duration::from_millis(1);

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
    /// Whether a commit of ours is on its way to [`Memory::carry`].
    committing: AtomicBool,
    /// Queries since there is no picture.
    asked: AtomicUsize,
    /// Tells the thread that makes pictures, and gives them back, to make one.
    painter: OnceLock<SyncSender<()>>,
    /// Whether it has been told, and is not done.
    painting: AtomicBool,
    /// Whether the picture has answered anything since that thread looked.
    used: AtomicBool,
}

#[derive(Debug)]
struct State {
    header: Header,
    answers: Answers,
    /// What counts for [`LIMIT`].
    size: usize,
    picture: Option<Arc<Picture>>,
    /// What has changed since the picture was taken, or since somebody began to take one.
    since: Option<Since>,
}

/// Paths about which a picture says nothing any more.
#[derive(Debug, Default)]
struct Since {
    registered: HashSet<StorePath>,
    referred_to: HashSet<StorePath>,
}

impl Since {
    fn note(&mut self, info: &PathInfo) {
        self.registered.insert(info.path.clone());
        self.referred_to.extend(info.references.iter().cloned());
    }

    fn len(&self) -> usize {
        self.registered.len().saturating_add(self.referred_to.len())
    }
}

impl State {
    /// Nothing remembered yet.
    fn of(header: Header) -> State {
        State { header, answers: Answers::default(), size: 0, picture: None, since: None }
    }

    /// Forgets all but the picture.
    fn forget(&mut self) {
        (self.answers, self.size) = (Answers::default(), 0);
    }

    /// The picture that shows what is known about `path`.
    fn shows<T: Answer>(&self, path: &StorePath) -> Option<Arc<Picture>> {
        let (picture, since) = self.picture.as_ref().zip(self.since.as_ref())?;
        let changed = since.registered.contains(path) || T::OF_REFERRERS && since.referred_to.contains(path);
        (!changed).then(|| Arc::clone(picture))
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

    /// Whether a new reference to a path changes it.
    const OF_REFERRERS: bool = false;

    /// What `picture` answers about `path`.
    fn shown(picture: &Picture, path: &StorePath) -> Option<Self>;
}

impl Answer for bool {
    fn paths(&self) -> usize {
        0
    }

    fn shown(picture: &Picture, path: &StorePath) -> Option<Self> {
        Some(picture.is_valid(path))
    }
}

impl Answer for Option<Arc<PathInfo>> {
    fn paths(&self) -> usize {
        self.as_ref().map_or(0, |info| info.references.len())
    }

    fn shown(picture: &Picture, path: &StorePath) -> Option<Self> {
        picture.info(path)
    }
}

impl Answer for Arc<Paths> {
    const OF_REFERRERS: bool = true;

    fn paths(&self) -> usize {
        self.len()
    }

    fn shown(picture: &Picture, path: &StorePath) -> Option<Self> {
        picture.referrers(path)
    }
}

impl Answer for Arc<Outputs> {
    fn paths(&self) -> usize {
        self.len()
    }

    fn shown(picture: &Picture, path: &StorePath) -> Option<Self> {
        picture.outputs(path)
    }
}

impl Memory {
    /// Nothing yet, of the database in the file `path`.
    pub(crate) fn new(path: &Path) -> Memory {
        // As SQLite does, which follows links.
        let mut shm = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
        shm.push("-shm");
        Memory {
            path: shm.into(),
            file: OnceLock::new(),
            state: Mutex::new(State::of([0; HEADER])),
            committing: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            painter: OnceLock::new(),
            painting: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
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
        if state.header != *header {
            return None;
        }
        if let Some(known) = slot(&mut state.answers).get(path) {
            return Some(known.clone());
        }
        let picture = state.shows::<T>(path)?;
        drop(state);
        self.used.store(true, Ordering::Relaxed);
        T::shown(&picture, path)
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
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = ask()?;
        if let Some(header) = before
            && self.header() == before
        {
            let mut state = lock(&self.state);
            let size = answer.paths().saturating_add(1);
            if state.header != header {
                // Perhaps it is ours, and all is about to be carried over it.
                if self.committing.load(Ordering::SeqCst) {
                    return Ok(answer);
                }
                *state = State::of(header);
            }
            if state.size.saturating_add(size) > LIMIT {
                state.forget();
            }
            if size <= LIMIT {
                state.size = state.size.saturating_add(size);
                slot(&mut state.answers).insert(path.clone(), answer.clone());
            }
        }
        Ok(answer)
    }

    /// Those of `paths` that are valid, if there is a picture.
    pub(crate) fn valid_among<'p>(&self, paths: impl Iterator<Item = &'p StorePath>) -> Option<Paths> {
        let mut valid = Paths::new();
        let mut paths = paths.peekable();
        // Others are not kept waiting for all of them.
        while paths.peek().is_some() {
            let header = self.header()?;
            let state = lock(&self.state);
            let (picture, since) = state.picture.as_ref().zip(state.since.as_ref()).filter(|_| state.header == header)?;
            let is_valid = |path: &&StorePath| since.registered.contains(path) || picture.is_valid(path);
            valid.extend(paths.by_ref().take(AT_ONCE).filter(is_valid).cloned());
        }
        self.used.store(true, Ordering::Relaxed);
        Some(valid)
    }

    /// All valid paths in order, if there is a picture.
    pub(crate) fn all_valid(&self) -> Option<Vec<StorePath>> {
        let header = self.header()?;
        let state = lock(&self.state);
        let (picture, since) = state.picture.as_ref().zip(state.since.as_ref()).filter(|_| state.header == header)?;
        let (picture, registered) = (Arc::clone(picture), since.registered.clone());
        drop(state);
        self.used.store(true, Ordering::Relaxed);
        let mut all: Vec<StorePath> = picture.all().collect();
        if !registered.is_empty() {
            all.extend(registered);
            all.sort();
            all.dedup();
        }
        Some(all)
    }

    /// Somebody who has the connection that writes is about to commit, and to call [`Memory::carry`] if that succeeds.
    pub(crate) fn committing(&self) -> Committing<'_> {
        self.committing.store(true, Ordering::SeqCst);
        Committing(self)
    }

    /// Keeps what is remembered over a commit, which this process has just made, and nobody else of it since: `before` is the header while its
    /// transaction had the database, `registered` what it has changed. If others have committed since, all is forgotten, as after any change.
    pub(crate) fn carry<'i>(&self, before: Option<Header>, registered: impl Iterator<Item = &'i PathInfo>) {
        let Some((before, after)) = before.zip(self.header()) else { return };
        if after != before && commits(&after) != commits(&before).wrapping_add(1) {
            return;
        }
        let mut state = lock(&self.state);
        if state.header != before && state.header != after {
            *state = State::of(after);
        }
        state.header = after;
        for info in registered {
            let more = state.answers.registered(info);
            state.size = state.size.saturating_add(more);
            if let Some(since) = &mut state.since {
                since.note(info);
            }
        }
        if state.size > LIMIT {
            state.forget();
        }
        let shown = state.picture.as_ref().map_or(usize::MAX, |picture| picture.len());
        if state.since.as_ref().is_some_and(|since| since.len() > LIMIT.max(shown / 4)) {
            (state.picture, state.since) = (None, None);
        }
    }

    /// Whether it is time to make a picture, of a database of so many rows as `rows` says. It is to be made then.
    fn wants_picture(&self, rows: impl FnOnce() -> Result<i64>) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        // To find out whether it is worth while is a query, too.
        if asked < picture::FEW || !asked.is_multiple_of(picture::FEW) || self.painting.load(Ordering::Relaxed) {
            return false;
        }
        rows().is_ok_and(|rows| picture::worth_while(asked, rows)) && !self.painting.swap(true, Ordering::SeqCst)
    }

    /// Makes a picture by `take`, which is to ask its argument whether nothing has been committed since, when it has begun to read.
    fn picture(&self, take: impl Fn(&dyn Fn() -> bool) -> Result<Option<Picture>>) -> Result<()> {
        for _ in 0..TRIES {
            let Some(header) = self.header() else { break };
            {
                let mut state = lock(&self.state);
                if state.header != header {
                    if self.committing.load(Ordering::SeqCst) {
                        drop(state);
                        std::thread::sleep(MOMENT);
                        continue;
                    }
                    *state = State::of(header);
                }
                (state.picture, state.since) = (None, Some(Since::default()));
            }
            if let Some(picture) = take(&|| self.header() == Some(header))? {
                let mut state = lock(&self.state);
                // Unless all was forgotten meanwhile.
                if state.since.is_some() {
                    state.picture = Some(Arc::new(picture));
                    state.forget();
                }
                break;
            }
        }
        Ok(())
    }

    /// Gives a picture back that nobody has used since the last call.
    fn rest(&self) {
        let mut state = lock(&self.state);
        if !self.used.swap(false, Ordering::Relaxed) {
            (state.picture, state.since) = (None, None);
        }
    }
}

/// Until this is dropped a commit of ours may be under way.
pub(crate) struct Committing<'m>(&'m Memory);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.0.committing.store(false, Ordering::SeqCst);
    }
}

impl Store {
    /// What is remembered about `path`, or what `ask` answers. Many different questions make a picture of everything.
    pub(crate) fn recall<T: Answer>(&self, slot: Slot<T>, path: &StorePath, ask: impl FnOnce() -> Result<T>) -> Result<T> {
        let memory = &self.db().memory;
        let mut asked = false;
        let answer = memory.recall(slot, path, || {
            asked = true;
            ask()
        });
        if asked && memory.wants_picture(|| self.last_row()) {
            // Full, or gone: then there is none, and the database is asked.
            let _ = memory.painter.get_or_init(|| self.start_painter()).try_send(());
        }
        answer
    }

    /// The number of the last row of all valid paths.
    fn last_row(&self) -> Result<i64> {
        let sql = "select coalesce(max(id), 0) from ValidPaths";
        self.db().read("querying all valid paths", |db| Ok(db.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
    }

    /// Starts the thread that makes pictures and gives them back, which ends with the store.
    fn start_painter(&self) -> SyncSender<()> {
        let (painter, orders) = sync_channel(1);
        let weak = Arc::downgrade(&self.inner);
        let run = move || {
            loop {
                let order = orders.recv_timeout(IDLE);
                let Some(store) = weak.upgrade().map(|inner| Store { inner }) else { return };
                let memory = &store.db().memory;
                match order {
                    Ok(()) => {
                        if let Err(error) = store.take_picture() {
                            tracing::warn!(%error, "the database is asked each time");
                        }
                        memory.asked.store(0, Ordering::Relaxed);
                        memory.painting.store(false, Ordering::SeqCst);
                    }
                    Err(RecvTimeoutError::Timeout) => memory.rest(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("store-picture".to_owned()).spawn(run) {
            tracing::warn!(%error, "the database is asked each time");
        }
        painter
    }

    fn take_picture(&self) -> Result<()> {
        let prefix = format!("{}/", self.store_dir());
        let memory = &self.db().memory;
        memory.picture(|unchanged| {
            self.db().pass("reading all valid paths", |db| {
                // A transaction sees what its first statement saw.
                db.prepare("select 1 from ValidPaths limit 1")?.exists([])?;
                if unchanged() { Ok(Some(Picture::load(db, prefix.as_bytes())?)) } else { Ok(None) }
            })
        })?;
        memory.used.store(true, Ordering::Relaxed);
        Ok(())
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
    use fruix_drv::StorePath;
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
            memory.carry(
                before,
                std::iter::from_fn(|| {
                    asked = true;
                    None
                }),
            );
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

    /// All answers about all paths, `picture` or not.
    fn answers(store: &crate::Store, paths: &[StorePath]) -> Vec<String> {
        let shown = |path| {
            let info = store.query_path_info(path).map_err(|error| error.to_string());
            let outputs = store.derivation_outputs(path).map_err(|error| error.to_string());
            let referrers = store.referrers(path).map_err(|error| error.to_string());
            format!("{path} {:?} {info:?} {outputs:?} {referrers:?}", store.is_valid(path).unwrap())
        };
        let all = [store.sorted_valid().unwrap(), store.filter_valid(&paths.iter().cloned().collect()).unwrap().into_iter().collect()];
        paths.iter().map(shown).chain(all.map(|paths| format!("{paths:?}"))).collect()
    }

    /// A picture shows what the database says, of rows that are not as they should be, too, and what changes after it was taken.
    #[test]
    fn a_picture_shows_what_is_there() {
        let test = test_store();
        let store = &test.store;
        let memory = &store.db().memory;
        let has_picture = || super::lock(&memory.state).picture.is_some();
        let a = test.text("a", "x");
        let roots = store.temp_roots();
        let mut paths = vec![a.clone(), StorePath::from_base_name(format!("{}-nothing", "0".repeat(32))).unwrap()];
        for number in 0..5 {
            let references = [a.clone(), paths[paths.len() - 1].clone()].into_iter().filter(|path| path.name() != "nothing").collect();
            paths.push(store.add_text(&roots, &format!("text-{number}"), b"z", &references).unwrap());
        }
        let output = StorePath::from_base_name(format!("{}-out", "1".repeat(32))).unwrap();
        let other = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        let row = |path: &StorePath| -> i64 {
            other.query_row("select id from ValidPaths where path = ?1", [store.print(path)], |row| row.get(0)).unwrap()
        };
        let insert = "insert into DerivationOutputs (drv, id, path) values (?1, ?2, ?3)";
        for (name, path) in [("out", &output), ("doc", &paths[3])] {
            other.execute(insert, (row(&paths[2]), name, store.print(path))).unwrap();
        }
        other.execute(insert, (row(&paths[6]), "out", "/elsewhere")).unwrap();
        other.execute("insert or ignore into Refs values (?1, ?1)", [row(&paths[4])]).unwrap();
        let set = |column: &str, value: &str, path: &StorePath| {
            other.execute(&format!("update ValidPaths set {column} = ?1 where path = ?2"), (value, store.print(path))).unwrap();
        };
        set("deriver", &store.print(&output), &paths[2]);
        set("deriver", &store.print(&a), &paths[3]);
        set("deriver", "/elsewhere", &paths[4]);
        set("hash", "sha256:short", &paths[5]);
        let asked = answers(store, &paths);
        store.take_picture().unwrap();
        assert!(has_picture() && super::lock(&memory.state).size == 0);
        assert_eq!(answers(store, &paths), asked);
        // Shown are all but what is odd: an info with a deriver elsewhere, one with a bad hash, and outputs elsewhere.
        let odd = super::lock(&memory.state).answers.infos.len();
        assert_eq!(odd, 1, "the others are errors, and these are not remembered");
        // A new one, what it refers to, and one registered again.
        let more = store.add_text(&roots, "more", b"y", &[a.clone(), paths[3].clone()].into()).unwrap();
        let info = store.path_info(&paths[3]).unwrap();
        store.register(&[crate::PathInfo { references: [more.clone()].into(), nar_size: 77, ..info }]).unwrap();
        assert!(has_picture());
        paths.push(more);
        let now = answers(store, &paths);
        assert!(has_picture());
        assert_eq!(store.path_info(&paths[3]).unwrap().nar_size, 77);
        // Another's commit ends it; so does ours that makes something invalid.
        set("narSize", "78", &a);
        assert_eq!(store.path_info(&a).unwrap().nar_size, 78);
        assert!(!has_picture());
        assert_ne!(now, answers(store, &paths));
        store.take_picture().unwrap();
        let last = paths.last().unwrap().clone();
        other.execute("delete from Refs where referrer <> reference", []).unwrap();
        store.take_picture().unwrap();
        assert!(store.is_valid(&last).unwrap() && has_picture());
        store.invalidate(&[last.clone()].into()).unwrap();
        assert!(!store.is_valid(&last).unwrap() && !has_picture());
        // Nobody has used this one.
        store.take_picture().unwrap();
        memory.rest();
        assert!(has_picture());
        memory.rest();
        assert!(!has_picture());
    }

    /// Whoever asks for much gets one.
    #[test]
    fn many_questions_make_a_picture() {
        let test = test_store();
        let memory = &test.store.db().memory;
        let a = test.text("a", "x");
        let path = |number: usize| StorePath::from_base_name(format!("{number:032}-x")).unwrap();
        for number in 0..crate::picture::FEW {
            assert!(super::lock(&memory.state).picture.is_none());
            assert!(!test.store.is_valid(&path(number)).unwrap());
        }
        let begin = std::time::Instant::now();
        while super::lock(&memory.state).picture.is_none() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(60));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(test.store.is_valid(&a).unwrap() && !test.store.is_valid(&path(0)).unwrap());
        assert!(!crate::picture::worth_while(1024, 100_000) && !crate::picture::worth_while(usize::MAX, crate::picture::MOST_ROWS + 1));
    }
}
