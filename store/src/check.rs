//! Looking at a store from outside, without changing it: does everything hold that should hold at every moment?
//!
//! [`check_store`] needs no daemon and no open [`Store`](crate::Store), and takes no lock that anybody waits for, so that it can be used on the
//! store of a daemon that is dead, of one that is at work, and of a guix-daemon. Beside a living daemon it tells what is in flight from what is
//! broken in these ways:
//!
//! - the database is read in one transaction, and what then looks wrong with a path is looked at again, with what the database says by then,
//!   three times within half a second: a path that was collected meanwhile is none of ours, and one that is being replaced is whole again;
//! - a path whose lock somebody holds is at most worth a note;
//! - what is not registered is no damage anyhow, and not even a leftover if it is the temporary root of a living process, or was registered
//!   between the listing of the store and a second look at the database;
//! - a directory that deduplication is at work in is writable, and of another time, only for a moment.
//!
//! It must not be called in a process that has a store open: closing a file loses the process's record locks on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bstr::ByteSlice;
use fruix_drv::modulo::verify_output_paths;
use fruix_drv::{Derivation, Hash, HashAlgo, ModuloCache, StorePath, aterm};
use fruix_protocol::limits::NAR_DEPTH;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::canonicalise::{foreign_attributes, frozen};
use crate::db::SCHEMA;
use crate::fsutil::{self, Place, STORE_MTIME, kind, links, lstat_at, open_dir, open_dir_at, open_file_at, open_link_at, permissions};
use crate::staging::is_staging;
use crate::{Config, Error, Result};

/// How often something is looked at before it is called damaged.
const LOOKS: u32 = 3;
/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// A derivation's outputs take long to verify the first time; what was verified is kept, up to so many.
const KNOWN_DERIVATIONS: usize = 200_000;
/// Directories within one another in which roots are looked for.
const ROOTS_DEPTH: usize = 256;

const REPAIR: &str = "`guix gc --verify=contents,repair' builds it anew where it can";
const COLLECT: &str = "the next `guix gc' removes it";
const RESTART: &str = "the next start of the daemon removes it";
const RESTORE: &str = "restore the database from a backup, or have the rows repaired by hand";

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something promised does not hold: data is lost or changed, or others can change it.
    Damage,
    /// What somebody who was killed left behind. It takes space, and does no harm.
    Leftover,
    /// Worth knowing.
    Note,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Severity::Damage => "damage",
            Severity::Leftover => "leftover",
            Severity::Note => "note",
        })
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub path: PathBuf,
    /// What is wrong there.
    pub what: String,
    /// What to do about it; empty when nothing need be done.
    pub remedy: &'static str,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.severity, self.path.display(), self.what)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

/// Hears what is found, and how far it is.
pub trait Watch {
    /// Something was found.
    fn found(&mut self, finding: &Finding);
    /// `done` of `total` are done of `what`.
    fn progress(&mut self, what: &str, done: usize, total: usize);
}

/// What was looked at, and how much was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Valid paths.
    pub paths: usize,
    /// Files in `.links`.
    pub links: usize,
    /// Permanent roots.
    pub roots: usize,
    /// Processes that have temporary roots, as every daemon with a client has.
    pub processes: usize,
    /// Findings by severity.
    pub damage: usize,
    /// See [`Checked::damage`].
    pub leftovers: usize,
    /// See [`Checked::damage`].
    pub notes: usize,
}

/// Checks the store and its state, without logs. With `contents` every file is read, else only what is quick to look at.
///
/// # Errors
/// [`Error::Io`], [`Error::OpenDatabase`], [`Error::Database`] when something cannot even be looked at; what is merely wrong is a [`Finding`].
pub fn check_store(config: &Config, contents: bool, watch: &mut dyn Watch) -> Result<Checked> {
    let store = Path::new(config.store_dir.as_str());
    let dir = open_dir(store).map_err(Error::io("opening", store))?;
    let file = config.db_dir.join("db.sqlite");
    let owner = std::fs::metadata(&file).map_err(Error::io("getting status of", &file))?.uid();
    let open = || {
        // Nothing is written, but for the index of the write-ahead log, which SQLite cannot read it without.
        let db = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(Duration::from_secs(600))?;
        db.pragma_update(None, "query_only", true)?;
        Ok(db)
    };
    let db = open().map_err(|source| Error::OpenDatabase { path: file.clone(), source })?;
    let links = open_dir_at(&dir, OsStr::new(".links")).ok();
    let mut check = Check { config, dir, links, db, file, owner, contents, watch, checked: Checked::default() };
    check.state_directories();
    check.database()?;
    let snapshot = check.load()?;
    check.references(&snapshot);
    check.paths(&snapshot)?;
    check.derivations(&snapshot)?;
    check.entries(&snapshot)?;
    check.links()?;
    check.roots(&snapshot)?;
    Ok(check.checked)
}

/// A row of `ValidPaths`.
#[derive(Debug)]
struct Row {
    id: i64,
    path: StorePath,
    hash: Option<Hash>,
    size: u64,
}

/// One state of the database.
#[derive(Debug, Default)]
struct Snapshot {
    rows: Vec<Row>,
    /// Where the row with a number is in `rows`.
    by_id: HashMap<i64, usize>,
    by_path: HashMap<StorePath, usize>,
    /// By place in `rows`.
    references: Vec<Vec<usize>>,
    outputs: HashMap<i64, BTreeMap<String, String>>,
    /// Rows from this on may have lost their files in a power cut; the next start drops those that have.
    doubtful: Option<i64>,
}

impl Snapshot {
    fn is_doubtful(&self, row: &Row) -> bool {
        self.doubtful.is_some_and(|first| row.id >= first)
    }
}

struct Check<'a> {
    config: &'a Config,
    dir: OwnedFd,
    links: Option<OwnedFd>,
    db: Connection,
    file: PathBuf,
    /// The daemon's user: whose the database is.
    owner: u32,
    contents: bool,
    watch: &'a mut dyn Watch,
    checked: Checked,
}

/// Who holds a record lock on an open file, if anybody does; 0 for somebody in another PID namespace.
fn lock_holder(file: impl AsFd) -> io::Result<Option<i32>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
        #[cfg(target_os = "freebsd")]
        l_sysid: 0,
    };
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid))
}

/// Opens a file that may be somebody's lock, without following or waiting for anything.
fn open_lock(path: &Path) -> io::Result<std::fs::File> {
    std::fs::File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits()).open(path)
}

impl Check<'_> {
    fn tell(&mut self, severity: Severity, path: impl Into<PathBuf>, what: impl Into<String>, remedy: &'static str) {
        match severity {
            Severity::Damage => self.checked.damage += 1,
            Severity::Leftover => self.checked.leftovers += 1,
            Severity::Note => self.checked.notes += 1,
        }
        self.watch.found(&Finding { severity, path: path.into(), what: what.into(), remedy });
    }

    fn damage(&mut self, path: impl Into<PathBuf>, what: impl Into<String>, remedy: &'static str) {
        self.tell(Severity::Damage, path, what, remedy);
    }

    fn shown(&self, name: impl AsRef<Path>) -> PathBuf {
        Path::new(self.config.store_dir.as_str()).join(name)
    }

    fn real(&self, path: &StorePath) -> PathBuf {
        self.shown(path.base_name())
    }

    fn query<T>(&self, action: &'static str, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        query(&self.db).map_err(Error::db(action))
    }

    /// Directories in which nobody but the daemon may make names.
    fn state_directories(&mut self) {
        let state = self.config.state_dir.clone();
        let (log, db) = (self.config.log_dir.clone(), self.config.db_dir.clone());
        let per_user = state.join("profiles/per-user");
        let dirs = [
            (state.clone(), true),
            (db.clone(), true),
            (log.clone(), true),
            (log.join("drvs"), false),
            (state.join("gcroots"), true),
            (state.join("gcroots/auto"), false),
            (state.join("profiles"), true),
            (per_user.clone(), true),
            (state.join("temproots"), true),
            (state.join("userpool"), false),
            (state.join("daemon-socket"), false),
        ];
        const MAKE: &str = "the next start of the daemon makes it";
        for (dir, needed) in dirs {
            match std::fs::metadata(&dir) {
                Ok(data) if !data.is_dir() => self.damage(dir, "is no directory", "move it away and restart the daemon"),
                Ok(data) => self.private(&dir, &data),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if needed {
                        self.damage(dir, "is missing", MAKE);
                    }
                }
                Err(error) => self.tell(Severity::Note, dir, format!("cannot be looked at: {error}"), "run this as the daemon's user"),
            }
        }
        for name in ["db.sqlite", "schema", "big-lock"] {
            let file = db.join(name);
            match std::fs::symlink_metadata(&file) {
                Ok(data) if !data.is_file() => self.damage(file, "is no regular file", RESTORE),
                Ok(data) => self.private(&file, &data),
                Err(error) => self.damage(file, format!("cannot be looked at: {error}"), RESTORE),
            }
        }
        let gc_lock = state.join("gc.lock");
        if let Ok(data) = std::fs::symlink_metadata(&gc_lock) {
            if data.is_file() {
                self.private(&gc_lock, &data);
            } else {
                self.damage(gc_lock, "is no regular file, so nobody can collect garbage", "remove it");
            }
        }
        for entry in list(&per_user) {
            let path = per_user.join(entry);
            if std::fs::symlink_metadata(&path).is_ok_and(|data| data.is_dir() && data.mode() & 0o002 != 0) {
                self.damage(path, "can be written to by everybody", "chmod 755");
            }
        }
        for entry in list(&db) {
            if entry.as_bytes().starts_with(b"schema.tmp-") {
                self.tell(Severity::Leftover, db.join(entry), "was being written when a daemon was killed", "remove it");
            }
        }
    }

    fn private(&mut self, path: &Path, data: &std::fs::Metadata) {
        if data.uid() != 0 && data.uid() != self.owner {
            self.damage(path, format!("belongs to user {}, not to the daemon's, {}", data.uid(), self.owner), "chown it");
        }
        if data.mode() & 0o022 != 0 && data.mode() & 0o1000 == 0 {
            self.damage(path, format!("has mode {:o}: others can write to it", data.mode() & 0o7777), "chmod go-w");
        }
    }

    /// What SQLite and the file `schema` say.
    fn database(&mut self) -> Result<()> {
        let schema = self.config.db_dir.join("schema");
        match std::fs::read_to_string(&schema) {
            Ok(text) if text.trim_end() == SCHEMA.to_string() => {}
            Ok(text) => self.damage(&schema, format!("holds {:?} instead of {SCHEMA}", text.trim_end()), RESTORE),
            Err(error) => self.damage(&schema, format!("cannot be read: {error}"), RESTORE),
        }
        self.watch.progress("checking the database", 0, 0);
        let lines = self.query("checking the database", |db| {
            let mut lines: Vec<String> =
                db.prepare("pragma integrity_check")?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            lines.retain(|line| line != "ok");
            let mut statement = db.prepare("pragma foreign_key_check")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (table, id, parent): (String, Option<i64>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                lines.push(format!("row {} of {table} refers to a row of {parent} that is not there", id.unwrap_or(0)));
            }
            Ok(lines)
        })?;
        for line in lines {
            self.damage(self.file.clone(), line, RESTORE);
        }
        Ok(())
    }

    /// Reads the database at one stroke.
    fn load(&mut self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        let mut wrong: Vec<(String, String)> = Vec::new();
        let dir = &self.config.store_dir;
        let mut pending = Vec::new();
        self.query("reading the database", |db| {
            let transaction = db.unchecked_transaction()?;
            let mut statement =
                transaction.prepare("select id, path, hash, registrationTime, deriver, narSize from ValidPaths order by path")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text: String = row.get(1)?;
                let Ok(path) = dir.parse(&text) else {
                    wrong.push((text, "is registered, but is no store path".to_owned()));
                    continue;
                };
                let hash: String = row.get(2)?;
                let hash = match Hash::parse_prefixed(&hash) {
                    Ok(hash) if hash.algo() == HashAlgo::Sha256 => (!hash.as_bytes().iter().all(|byte| *byte == 0)).then_some(hash),
                    _ => {
                        wrong.push((text.clone(), format!("is registered with a hash that is none, {hash:?}")));
                        None
                    }
                };
                if row.get::<_, i64>(3)? < 0 {
                    wrong.push((text.clone(), "is registered with a negative time".to_owned()));
                }
                if let Some(deriver) = row.get::<_, Option<String>>(4)?.filter(|deriver| !deriver.is_empty())
                    && !dir.parse(&deriver).is_ok_and(|path| path.is_derivation())
                {
                    wrong.push((text.clone(), format!("is registered as made by {deriver:?}, which is no derivation")));
                }
                let size = u64::try_from(row.get::<_, Option<i64>>(5)?.unwrap_or(0)).unwrap_or_else(|_| {
                    wrong.push((text.clone(), "is registered with a negative size".to_owned()));
                    0
                });
                let id = row.get(0)?;
                snapshot.by_id.insert(id, snapshot.rows.len());
                snapshot.by_path.insert(path.clone(), snapshot.rows.len());
                snapshot.rows.push(Row { id, path, hash, size });
            }
            drop(rows);
            snapshot.references = vec![Vec::new(); snapshot.rows.len()];
            let mut statement = transaction.prepare("select referrer, reference from Refs")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                // Those that lead nowhere were found by SQLite's check of foreign keys.
                if let (Some(from), Some(to)) = (snapshot.by_id.get(&row.get(0)?), snapshot.by_id.get(&row.get(1)?))
                    && let Some(list) = snapshot.references.get_mut(*from)
                {
                    list.push(*to);
                }
            }
            drop(rows);
            let mut statement = transaction.prepare("select drv, id, path from DerivationOutputs")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                snapshot.outputs.entry(row.get(0)?).or_default().insert(row.get(1)?, row.get(2)?);
            }
            drop(rows);
            let mut statement = transaction.prepare("select path from FailedPaths")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                if dir.parse(&text).is_err() {
                    wrong.push((text, "is remembered as failed, but is no store path".to_owned()));
                }
            }
            drop(rows);
            pending = unsynced(&transaction)?;
            Ok(())
        })?;
        for (path, what) in wrong {
            self.damage(path, what, RESTORE);
        }
        for (daemon, rows, first, stopped) in pending {
            let (what, remedy) = if stopped {
                snapshot.doubtful = Some(snapshot.doubtful.map_or(first, |other| other.min(first)));
                (
                    format!("{rows} paths were registered by {daemon}, and not synced, before the machine stopped"),
                    "the next start verifies them",
                )
            } else {
                (format!("{rows} paths that {daemon} has registered are not synced yet"), "")
            };
            self.tell(Severity::Note, self.file.clone(), what, remedy);
        }
        self.checked.paths = snapshot.rows.len();
        Ok(snapshot)
    }

    /// No path may refer to itself by way of another.
    fn references(&mut self, snapshot: &Snapshot) {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            Not,
            Entered,
            Left,
        }
        let mut seen = vec![Seen::Not; snapshot.rows.len()];
        let mut cycles = Vec::new();
        for start in 0..snapshot.rows.len() {
            let mut stack = vec![(start, 0)];
            while let Some((node, next)) = stack.last_mut() {
                let node = *node;
                if *next == 0 {
                    match seen.get_mut(node) {
                        Some(state @ Seen::Not) => *state = Seen::Entered,
                        _ => {
                            stack.pop();
                            continue;
                        }
                    }
                }
                match snapshot.references.get(node).and_then(|list| list.get(*next)) {
                    Some(to) => {
                        *next += 1;
                        match seen.get(*to) {
                            Some(Seen::Entered) if *to != node => cycles.push(*to),
                            Some(Seen::Not) => stack.push((*to, 0)),
                            _ => {}
                        }
                    }
                    None => {
                        if let Some(state) = seen.get_mut(node) {
                            *state = Seen::Left;
                        }
                        stack.pop();
                    }
                }
            }
        }
        for node in cycles {
            if let Some(row) = snapshot.rows.get(node) {
                self.damage(self.real(&row.path), "refers to itself by way of others, so that it can never be collected", RESTORE);
            }
        }
    }

    /// Every valid path is there, and as it was registered.
    fn paths(&mut self, snapshot: &Snapshot) -> Result<()> {
        let what = if self.contents { "checking contents" } else { "checking paths" };
        for (done, row) in snapshot.rows.iter().enumerate() {
            self.watch.progress(what, done, snapshot.rows.len());
            let (mut hash, mut size) = (row.hash, row.size);
            let mut wrong = self.look(&row.path, hash, size);
            for _ in 1..LOOKS {
                if wrong.is_empty() {
                    break;
                }
                std::thread::sleep(PAUSE);
                match self.registered(&row.path)? {
                    None => wrong.clear(),
                    Some(now) => {
                        (hash, size) = now;
                        wrong = self.look(&row.path, hash, size);
                    }
                }
            }
            let path = self.real(&row.path);
            if !wrong.is_empty()
                && let Some(pid) = self.lock_of(row.path.base_name().as_ref())
            {
                self.tell(Severity::Note, path, format!("is being worked on by process {pid}; was not as registered"), "check again");
                continue;
            }
            for Wrong { path, what, severity, remedy } in wrong {
                if snapshot.is_doubtful(row) {
                    self.tell(Severity::Note, path, what, "it was lost with the power, and the next start drops it");
                } else {
                    self.tell(severity, path, what, remedy);
                }
            }
        }
        Ok(())
    }

    /// Hash and size of a path that is still valid.
    fn registered(&self, path: &StorePath) -> Result<Option<(Option<Hash>, u64)>> {
        let found: Option<(String, Option<i64>)> = self.query("querying path info", |db| {
            db.prepare_cached("select hash, narSize from ValidPaths where path = ?1")?
                .query_row([self.config.store_dir.display(path)], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })?;
        Ok(found.map(|(hash, size)| {
            let hash = Hash::parse_prefixed(hash).ok().filter(|hash| !hash.as_bytes().iter().all(|byte| *byte == 0));
            (hash, size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))
        }))
    }

    /// What is wrong with a valid path.
    fn look(&self, path: &StorePath, hash: Option<Hash>, size: u64) -> Vec<Wrong> {
        let shown = self.real(path);
        let place = Place { dir: self.dir.as_fd(), name: path.base_name().into(), shown: shown.clone() };
        let mut wrong = Vec::new();
        match lstat_at(&self.dir, &place.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                wrong.push(Wrong::damage(shown, "is valid, but not there".to_owned(), REPAIR));
                return wrong;
            }
            Err(error) => {
                wrong.push(Wrong::damage(
                    shown,
                    format!("cannot be looked at: {error}"),
                    "run this as the daemon's user, or check the disk",
                ));
                return wrong;
            }
            Ok(stat) if !self.contents => {
                self.metadata(&place, &stat, &mut wrong);
                return wrong;
            }
            Ok(_) => self.tree(&place, 0, &mut wrong),
        }
        match crate::scan::hash_at(&place, HashAlgo::Sha256) {
            Ok((got, bytes)) => {
                if let Some(expected) = hash
                    && expected != got
                {
                    let what = format!("was modified: its hash is {}, registered is {}", got.base16(), expected.base16());
                    wrong.push(Wrong::damage(shown.clone(), what, REPAIR));
                }
                if size != 0 && size != bytes {
                    wrong.push(Wrong::damage(shown, format!("has an archive of {bytes} bytes, registered are {size}"), REPAIR));
                }
            }
            Err(error) => wrong.push(Wrong::damage(shown, format!("cannot be read: {error}"), REPAIR)),
        }
        wrong
    }

    fn tree(&self, place: &Place<'_>, depth: usize, wrong: &mut Vec<Wrong>) {
        let unreadable = |error: io::Error| Wrong::damage(place.shown.clone(), format!("cannot be looked at: {error}"), REPAIR);
        let stat = match lstat_at(place.dir, &place.name) {
            Ok(stat) => stat,
            Err(error) => return wrong.push(unreadable(error)),
        };
        self.metadata(place, &stat, wrong);
        if kind(&stat) != SFlag::S_IFDIR {
            return;
        }
        if depth >= NAR_DEPTH {
            return wrong.push(Wrong::damage(place.shown.clone(), "is deeper than any archive".to_owned(), REPAIR));
        }
        match open_dir_at(place.dir, &place.name).and_then(|dir| Ok((fsutil::names(&dir)?, dir))) {
            Ok((names, dir)) => {
                for name in names {
                    self.tree(&Place::new(dir.as_fd(), name, &place.shown), depth + 1, wrong);
                }
            }
            Err(error) => wrong.push(unreadable(error)),
        }
    }

    /// Whether a file has the owner, the mode, the time and the attributes that all have.
    fn metadata(&self, place: &Place<'_>, stat: &FileStat, wrong: &mut Vec<Wrong>) {
        const OURS: &str = "only the daemon's user should be able to change it; move it away, and repair it";
        let what = kind(stat);
        let mut damage = |text: String| wrong.push(Wrong::damage(place.shown.clone(), text, OURS));
        if !matches!(what, SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFLNK) {
            return damage("is neither a file nor a directory nor a symbolic link".to_owned());
        }
        if stat.st_uid != self.owner {
            damage(format!("belongs to user {}, not to the daemon's, {}", stat.st_uid, self.owner));
        }
        let mode = permissions(stat);
        let executable = Mode::from_bits_truncate(0o555);
        let tolerable = what == SFlag::S_IFDIR && mode - Mode::S_IWUSR == executable;
        if what != SFlag::S_IFLNK && mode != executable && (what == SFlag::S_IFDIR || mode != Mode::from_bits_truncate(0o444)) {
            let text = format!("has mode {:o}", mode.bits());
            if tolerable {
                wrong.push(Wrong::note(place.shown.clone(), text));
            } else {
                damage(text);
            }
        }
        if stat.st_mtime != STORE_MTIME || stat.st_mtime_nsec != 0 {
            let text = format!("has a modification time other than {STORE_MTIME}, {}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
            if what == SFlag::S_IFDIR {
                wrong.push(Wrong::note(place.shown.clone(), text));
            } else {
                wrong.push(Wrong::damage(place.shown.clone(), text, "touch -h -d @1"));
            }
        }
        let open = match what {
            SFlag::S_IFDIR => open_dir_at(place.dir, &place.name),
            // On Linux a link has nothing of all that.
            SFlag::S_IFLNK if cfg!(not(target_os = "freebsd")) => return,
            SFlag::S_IFLNK => open_link_at(place.dir, &place.name),
            _ => open_file_at(place.dir, &place.name),
        };
        // That it cannot be opened is said by whoever hashes it.
        if let Ok(fd) = open {
            if frozen(&fd) {
                wrong.push(Wrong::damage(place.shown.clone(), "has a flag that keeps it from being removed".to_owned(), "chattr -ia"));
            }
            if let Ok(names) = foreign_attributes(&fd)
                && let Some(name) = names.first()
            {
                let text = format!("has an extended attribute, {}", name.as_bstr());
                wrong.push(Wrong::damage(place.shown.clone(), text, "setfattr -x, or setfacl -b"));
            }
        }
    }

    /// Derivations can be read, and have the outputs that the database says and their contents make.
    fn derivations(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut known = ModuloCache::new();
        let total = snapshot.rows.len();
        for (done, row) in snapshot.rows.iter().enumerate() {
            self.watch.progress("checking derivations", done, total);
            let registered = snapshot.outputs.get(&row.id);
            let Some(name) = row.path.derivation_name() else {
                if registered.is_some() {
                    self.damage(self.real(&row.path), "is registered with outputs, but is no derivation", RESTORE);
                }
                continue;
            };
            if known.len() > KNOWN_DERIVATIONS {
                known.clear();
            }
            let wrong = match self.read_derivation(&row.path) {
                Err(what) => Some((if snapshot.is_doubtful(row) { Severity::Note } else { Severity::Damage }, what)),
                Ok(drv) => self.verify_derivation(&mut known, name, &drv, registered),
            };
            // Beside a collector it may be gone by now.
            if let Some((severity, what)) = wrong
                && self.registered(&row.path)?.is_some()
            {
                self.tell(severity, self.real(&row.path), what, if severity == Severity::Damage { REPAIR } else { "" });
            }
        }
        Ok(())
    }

    fn verify_derivation(
        &self,
        known: &mut ModuloCache,
        name: &str,
        drv: &Derivation,
        registered: Option<&BTreeMap<String, String>>,
    ) -> Option<(Severity, String)> {
        let expected: BTreeMap<String, String> =
            drv.outputs.iter().map(|(name, output)| (name.clone(), self.config.store_dir.display(&output.path).to_string())).collect();
        if registered != Some(&expected) {
            let what = format!("has the outputs {:?}, registered are {:?}", expected, registered.unwrap_or(&BTreeMap::new()));
            return Some((Severity::Damage, what));
        }
        let dir = &self.config.store_dir;
        let mut load = |path: &StorePath| self.read_derivation(path).map_err(io::Error::other);
        match verify_output_paths(dir, name, drv, &mut |input| known.hash(dir, input, &mut load)) {
            Ok(()) => None,
            Err(fruix_drv::modulo::VerifyError::Input { source, .. }) => {
                Some((Severity::Note, format!("cannot be verified, since an input cannot be read: {source}")))
            }
            Err(error) => Some((Severity::Damage, error.to_string())),
        }
    }

    fn read_derivation(&self, path: &StorePath) -> Result<Derivation, String> {
        let shown = self.real(path);
        let file =
            open_file_at(&self.dir, path.base_name().as_ref()).map_err(|error| format!("cannot open {}: {error}", shown.display()))?;
        let mut bytes = Vec::new();
        let limit = (aterm::MAX_SIZE as u64).saturating_add(1);
        std::fs::File::from(file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot read {}: {error}", shown.display()))?;
        aterm::parse(&self.config.store_dir, &bytes).map_err(|error| format!("is no derivation: {error}"))
    }

    /// The process that holds the lock of something in the store directory.
    fn lock_of(&self, name: &OsStr) -> Option<i32> {
        let mut lock = self.shown(name).into_os_string();
        lock.push(".lock");
        open_lock(Path::new(&lock)).ok().and_then(|file| lock_holder(file).ok().flatten())
    }

    /// What is in the store directory and is no valid path.
    fn entries(&mut self, snapshot: &Snapshot) -> Result<()> {
        let store = self.shown("");
        let stat = nix::sys::stat::fstat(&self.dir).map_err(Error::io("getting status of", &store))?;
        let mode = permissions(&stat);
        if mode.contains(Mode::S_IWOTH) || (mode.contains(Mode::S_IWGRP) && !mode.contains(Mode::S_ISVTX)) {
            self.damage(&store, format!("has mode {:o}: others can change what is in it", mode.bits()), "restart the daemon, or chmod it");
        }
        if stat.st_uid != self.owner && stat.st_uid != 0 {
            self.damage(&store, format!("belongs to user {}, not to the daemon's, {}", stat.st_uid, self.owner), "restart the daemon");
        }
        let names = fsutil::names(&self.dir).map_err(Error::io("reading directory", &store))?;
        // In this order: whatever is being made was somebody's temporary root when it was listed, or is registered by now.
        let needed = self.temporary_roots()?;
        for name in names {
            let bytes = name.as_bytes();
            let path = StorePath::from_base_name(bytes).ok();
            if name == ".links" || path.as_ref().is_some_and(|path| snapshot.by_path.contains_key(path)) {
                continue;
            }
            if path.as_ref().is_some_and(|path| needed.contains(path)) && !is_staging(bytes) {
                continue;
            }
            if let Some(path) = &path
                && self.registered(path)?.is_some()
            {
                continue;
            }
            if let Some((what, remedy)) = self.leftover(&name, path.as_ref()) {
                self.tell(Severity::Leftover, self.shown(&name), what, remedy);
            }
        }
        Ok(())
    }

    /// What an entry of the store directory is that is neither valid nor somebody's root; `None` if somebody is at work on it, or it is gone.
    fn leftover(&self, name: &OsStr, path: Option<&StorePath>) -> Option<(&'static str, &'static str)> {
        let bytes = name.as_bytes();
        let shown = self.shown(name);
        shown.symlink_metadata().ok()?;
        if is_staging(bytes) {
            // To ask is to have it for a moment; a daemon that starts just then takes another directory.
            let lock = open_lock(&shown.join("lock")).ok();
            let living = lock.is_some_and(|lock| Flock::lock(lock, FlockArg::LockSharedNonblock).is_err());
            return (!living).then_some(("is the staging directory of a dead daemon", RESTART));
        }
        if let Some(of) = bytes.strip_suffix(b".lock") {
            let living = open_lock(&shown).ok().and_then(|file| lock_holder(file).ok().flatten()).is_some();
            let item = StorePath::from_base_name(of).is_ok();
            return (!living).then_some(if item { ("is a lock that nobody holds", COLLECT) } else { ("is no store item", COLLECT) });
        }
        let of = bytes.strip_suffix(b".chroot").unwrap_or(bytes);
        if self.lock_of(OsStr::from_bytes(of)).is_some() {
            return None;
        }
        Some((if path.is_some() { "is not registered" } else { "is no store item" }, COLLECT))
    }

    /// The temporary roots of living processes.
    fn temporary_roots(&mut self) -> Result<HashSet<StorePath>> {
        let dir = self.config.state_dir.join("temproots");
        let mut roots = HashSet::new();
        for name in list(&dir) {
            let path = dir.join(&name);
            let mut file = match open_lock(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.damage(&path, format!("cannot be opened, so nobody can collect garbage: {error}"), "remove it");
                    continue;
                }
            };
            if !file.metadata().is_ok_and(|data| data.is_file()) {
                self.damage(&path, "is no regular file, so nobody can collect garbage", "remove it");
                continue;
            }
            if lock_holder(&file).map_err(Error::io("asking for the lock of", &path))?.is_none() {
                // Unless its owner gave it up just now.
                if path.symlink_metadata().is_ok() {
                    self.tell(Severity::Leftover, &path, "holds the temporary roots of a dead process", COLLECT);
                }
                continue;
            }
            self.checked.processes += 1;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(Error::io("reading", &path))?;
            let mut parts: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
            // What follows the last NUL is being written.
            parts.pop();
            for part in parts {
                match self.config.store_dir.parse(part) {
                    Ok(root) => {
                        roots.insert(root);
                    }
                    Err(_) => self.damage(&path, format!("names {:?}, which is no store path", part.as_bstr()), "restart the daemon"),
                }
            }
        }
        Ok(roots)
    }

    /// Files that deduplication knows: what their name says, and nobody's to change.
    fn links(&mut self) -> Result<()> {
        let dir = self.shown(".links");
        let Some(links_dir) = self.links.take() else {
            self.damage(dir, "is missing or no directory", "restart the daemon");
            return Ok(());
        };
        if let Ok(data) = std::fs::symlink_metadata(&dir) {
            self.private(&dir, &data);
        }
        let names = fsutil::names(&links_dir).map_err(Error::io("reading directory", &dir))?;
        self.checked.links = names.len();
        let mut unused = 0_usize;
        for (done, name) in names.iter().enumerate() {
            self.watch.progress("checking links", done, names.len());
            let place = Place::new(links_dir.as_fd(), name.clone(), &dir);
            let Ok(stat) = lstat_at(&links_dir, name) else { continue };
            const BAD: &str = "remove it; files that were linked to it are checked by themselves";
            if kind(&stat) != SFlag::S_IFREG {
                // Symbolic links are deduplicated by other daemons.
                if kind(&stat) != SFlag::S_IFLNK {
                    self.damage(place.shown, "is no file", BAD);
                }
                continue;
            }
            let mut wrong = Vec::new();
            self.metadata(&place, &stat, &mut wrong);
            if links(&stat) < 2 {
                unused += 1;
            }
            let expected = fruix_drv::base32::decode(name.as_bytes()).filter(|bytes| bytes.len() == 32);
            if expected.is_none() {
                wrong.push(Wrong::damage(place.shown.clone(), "is not named by a hash".to_owned(), BAD));
            } else if self.contents {
                match crate::scan::hash_at(&place, HashAlgo::Sha256) {
                    Ok((hash, _)) if expected.as_deref() == Some(hash.as_bytes()) => {}
                    Ok((hash, _)) => {
                        let what = format!("is not what its name says, but {}", hash.base32());
                        wrong.push(Wrong::damage(place.shown.clone(), what, BAD));
                    }
                    Err(error) => wrong.push(Wrong::damage(place.shown.clone(), format!("cannot be read: {error}"), BAD)),
                }
            }
            if lstat_at(&links_dir, name).is_ok() {
                for Wrong { path, what, severity, remedy } in wrong {
                    self.tell(severity, path, what, remedy);
                }
            }
        }
        if unused > 0 {
            self.tell(Severity::Leftover, dir, format!("has {unused} files that nothing else uses"), COLLECT);
        }
        Ok(())
    }

    /// Permanent roots lead to valid paths.
    fn roots(&mut self, snapshot: &Snapshot) -> Result<()> {
        let gcroots = self.config.state_dir.join("gcroots");
        let mut stack = vec![(gcroots.clone(), 0_usize)];
        let auto = gcroots.join("auto");
        while let Some((dir, depth)) = stack.pop() {
            for name in list(&dir) {
                let path = dir.join(&name);
                let Ok(data) = path.symlink_metadata() else { continue };
                if data.is_dir() {
                    if depth < ROOTS_DEPTH {
                        stack.push((path, depth + 1));
                    }
                } else if data.is_symlink() {
                    self.root(snapshot, &path, dir == auto)?;
                } else if dir == auto {
                    self.tell(Severity::Note, path, "is no symbolic link, and so no root", "remove it");
                }
            }
        }
        Ok(())
    }

    fn root(&mut self, snapshot: &Snapshot, link: &Path, auto: bool) -> Result<()> {
        self.checked.roots += 1;
        let Ok(target) = std::fs::read_link(link) else { return Ok(()) };
        let name = link.file_name().unwrap_or_default();
        if auto {
            if name.as_bytes().contains_str(".tmp-") {
                self.tell(Severity::Leftover, link, "is an unfinished root", "a `guix gc' after ten minutes removes it");
                return Ok(());
            }
            let expected = Hash::of(HashAlgo::Sha1, target.as_os_str().as_bytes()).base32();
            if name.as_bytes() != expected.as_bytes() {
                self.tell(Severity::Note, link, format!("should be called {expected}, for its target `{}'", target.display()), "");
            }
        }
        let mut target = link.parent().unwrap_or(Path::new("/")).join(target);
        if !self.config.store_dir.contains(target.as_os_str().as_bytes()) {
            match target.symlink_metadata() {
                Err(_) if auto => {
                    self.tell(Severity::Leftover, link, format!("is a stale root: `{}' is gone", target.display()), COLLECT);
                    return Ok(());
                }
                Ok(data) if data.is_symlink() => match std::fs::read_link(&target) {
                    Ok(second) => target = target.parent().unwrap_or(Path::new("/")).join(second),
                    Err(_) => return Ok(()),
                },
                _ => return Ok(()),
            }
        }
        let Ok(path) = self.config.store_dir.to_store_path(target.as_os_str().as_bytes()) else { return Ok(()) };
        if !snapshot.by_path.contains_key(&path) && self.registered(&path)?.is_none() && link.symlink_metadata().is_ok() {
            self.tell(Severity::Note, link, format!("is a root, but `{}' is not valid", self.real(&path).display()), "");
        }
        Ok(())
    }
}

/// Something wrong with a valid path.
struct Wrong {
    path: PathBuf,
    what: String,
    severity: Severity,
    remedy: &'static str,
}

impl Wrong {
    fn damage(path: PathBuf, what: String, remedy: &'static str) -> Wrong {
        Wrong { path, what, severity: Severity::Damage, remedy }
    }

    /// A directory that deduplication was at work in when the daemon was killed. No archive is different for it.
    fn note(path: PathBuf, what: String) -> Wrong {
        Wrong { path, what, severity: Severity::Note, remedy: "`guix gc --optimize' puts it right" }
    }
}

/// The names in a directory, none if it cannot be read.
fn list(dir: &Path) -> BTreeSet<OsString> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

/// What daemons have noted as registered and not synced: whose note it is, how many rows, from which on, and whether the machine has stopped since.
fn unsynced(db: &Connection) -> rusqlite::Result<Vec<(String, i64, i64, bool)>> {
    // guix-daemon's database does not have the table.
    if !db.prepare("select 1 from sqlite_master where type = 'table' and name = 'FruixUnsynced'")?.exists([])? {
        return Ok(Vec::new());
    }
    let boot = crate::unsynced::boot();
    let sql = "select daemon, (select count(*) from ValidPaths where id >= first), first, boot from FruixUnsynced";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let then: String = row.get(3)?;
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, boot.is_empty() || then != boot))
    })?;
    rows.collect()
}
