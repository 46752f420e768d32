//! The database of valid paths, `DB/db.sqlite`.
//!
//! The tables are guix-daemon's (schema 7); the columns `ultimate`, `sigs` and `ca` of `ValidPaths` are Nix's, appended, so that every
//! statement of guix-daemon and of `(guix store database)`, which name their columns, goes on working. `FruixUnsynced` is ours: see
//! [`crate::unsynced`].
//!
//! One connection writes, a pool of connections reads; in WAL mode neither waits for the other. That another process holds the database
//! is never an error here: whoever asks waits.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::failpoints::{Moment, point};
use crate::memory::Memory;
use crate::{Error, Result, lock};

/// The version that `DB/schema` holds. Guix never had another.
pub(crate) const SCHEMA: i64 = 7;

const TABLES: &str = "
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer
);
create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null,
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
create table if not exists FailedPaths (
    path text primary key not null,
    time integer not null
);
create table if not exists FruixUnsynced (
    daemon text primary key not null,
    first  integer not null,
    boot   text not null
);
";

/// Nix's columns and their types.
const EXTRA_COLUMNS: [(&str, &str); 3] = [("ultimate", "integer"), ("sigs", "text"), ("ca", "text")];

/// Connections that the pool keeps for later; more are made when more threads ask at once.
const IDLE_READERS: usize = 16;

/// KiB of pages that the connection that writes keeps.
const CACHE: i64 = 16 * 1024;

/// KiB of pages that a connection of the pool keeps: the inner ones, which every query reads. Who asks for much is answered by a picture. Only those
/// connections that are in use fill theirs, the idle one that was used last first.
const READER_CACHE: i64 = 4 * 1024;

/// KiB of pages where each is read once.
const PASSING_CACHE: i64 = 256;

/// How long SQLite itself waits for another process that is writing. Whoever can wait longer asks again.
const BUSY: Duration = Duration::from_millis(20);

/// How long somebody with much to write waits for those who have been woken to write little, and how often he looks.
const TURN: Duration = Duration::from_millis(100);
const TURN_POLL: Duration = Duration::from_micros(50);

/// Pages (of 4 KiB) in the log from which on whoever commits moves them to the database himself, should the thread that does so be late.
const LONG_LOG: i64 = 16 * 1024;

/// Statements that each connection keeps prepared; more than this crate has.
const STATEMENTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    writer: Mutex<Writer>,
    /// Those who wait for the writer to write a few rows.
    queue: AtomicUsize,
    /// Held for reading by those who must not be kept waiting for more than a few rows, for writing by those who may change more.
    gate: RwLock<()>,
    readers: Mutex<Vec<Connection>>,
    /// A connection of its own, so that nobody waits for what it does.
    checkpointer: Mutex<Option<Connection>>,
    /// Answers that are still right.
    pub(crate) memory: Memory,
}

/// The connection that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    connection: Connection,
    /// Whether `FruixUnsynced` has this daemon's row.
    pub(crate) unsynced: bool,
}

/// The connection that writes, in the hands of somebody who may take long.
#[derive(Debug)]
pub(crate) struct Exclusive<'d> {
    // Given back before others are let in.
    writer: MutexGuard<'d, Writer>,
    _gate: RwLockWriteGuard<'d, ()>,
}

impl Deref for Exclusive<'_> {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.writer
    }
}

impl DerefMut for Exclusive<'_> {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

/// Whether somebody waits for another process that holds the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it takes.
    Endless,
    /// Some milliseconds; then the change fails as busy.
    Moment,
}

/// Whether `error` means that another connection holds the database.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed))
}

/// Waits a little for another process, longer each time.
pub(crate) fn pause(attempt: u32) {
    if attempt == 0 {
        tracing::warn!("SQLite database is busy");
    }
    std::thread::sleep(Duration::from_millis(u64::from(attempt.min(9)) * 10 + 1));
}

fn connect(path: &Path, create: bool) -> rusqlite::Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(3600))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Else some statements are planned anew for each value that they are given.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE)?;
    Ok(connection)
}

/// Makes a database in the new file `path`, with its tables, that is only this one file when it is closed.
pub(crate) fn connect_file(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_CREATE;
    if path.exists() {
        return Err(rusqlite::Error::InvalidPath(path.to_owned()));
    }
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.query_row("pragma main.journal_mode = memory", [], |_| Ok(()))?;
    prepare_schema(&mut connection)?;
    Ok(connection)
}

fn has_column(connection: &Connection, column: &str) -> rusqlite::Result<bool> {
    connection.prepare("select 1 from pragma_table_info('ValidPaths') where name = ?1")?.exists([column])
}

fn prepare_schema(connection: &mut Connection) -> rusqlite::Result<()> {
    let mut complete = connection.prepare("select 1 from sqlite_master where type = 'table' and name = 'FruixUnsynced'")?.exists([])?;
    for (column, _) in EXTRA_COLUMNS {
        complete = complete && has_column(connection, column)?;
    }
    if complete {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    for (column, kind) in EXTRA_COLUMNS {
        if !has_column(&transaction, column)? {
            transaction.execute_batch(&format!("alter table ValidPaths add column {column} {kind};"))?;
        }
    }
    point::<rusqlite::Error>("db::schema", Moment::Before)?;
    transaction.commit()?;
    point("db::schema", Moment::After)
}

impl Db {
    /// Opens `path`, and makes or completes the tables.
    pub(crate) fn open(path: &Path, durable: bool) -> Result<Db> {
        let mut attempt = 0;
        loop {
            match Self::try_open(path, durable) {
                Ok(connection) => {
                    let writer = Mutex::new(Writer { connection, unsynced: false });
                    let memory = Memory::new(path);
                    let (readers, checkpointer, gate, queue) = (Mutex::default(), Mutex::default(), RwLock::default(), AtomicUsize::new(0));
                    return Ok(Db { path: path.to_owned(), writer, queue, gate, readers, checkpointer, memory });
                }
                Err(source) if is_busy(&source) => pause(attempt),
                Err(source) => {
                    return Err(Error::OpenDatabase { path: path.to_owned(), source });
                }
            }
            attempt += 1;
        }
    }

    /// Whether the database in the file `path` has any row of a valid path. Nothing is made or changed.
    pub(crate) fn has_paths(path: &Path) -> Result<bool> {
        let look = || {
            let connection = connect(path, false)?;
            let table = "select 1 from sqlite_master where type = 'table' and name = 'ValidPaths'";
            Ok(connection.prepare(table)?.exists([])? && connection.prepare("select 1 from ValidPaths limit 1")?.exists([])?)
        };
        let mut attempt = 0;
        loop {
            match look() {
                Err(source) if is_busy(&source) => pause(attempt),
                other => {
                    return other.map_err(|source| Error::OpenDatabase { path: path.to_owned(), source });
                }
            }
            attempt += 1;
        }
    }

    fn try_open(path: &Path, durable: bool) -> rusqlite::Result<Connection> {
        let mut writer = connect(path, true)?;
        let mode: String = writer.query_row("pragma main.journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            writer.query_row("pragma main.journal_mode = wal", [], |_| Ok(()))?;
        }
        // In WAL mode a power cut may lose the last commits, never their order: a path is lost, not half there.
        writer.pragma_update(None, "synchronous", if durable { "normal" } else { "off" })?;
        writer.pragma_update(None, "wal_autocheckpoint", LONG_LOG)?;
        prepare_schema(&mut writer)?;
        writer.busy_timeout(BUSY)?;
        Ok(writer)
    }

    /// Runs a query on a connection of the pool. `query` may run more than once, and sees one state of the database per statement.
    pub(crate) fn read<T>(&self, action: &'static str, mut query: impl FnMut(&Connection) -> Result<T>) -> Result<T> {
        let idle = lock(&self.readers).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.reader()?,
        };
        let mut attempt = 0;
        let result = loop {
            match query(&connection) {
                Err(error) if error.is_busy() => pause(attempt),
                Err(Error::Database { source, .. }) => {
                    break Err(Error::Database { action, source });
                }
                other => break other,
            }
            attempt += 1;
        };
        let mut readers = lock(&self.readers);
        if readers.len() < IDLE_READERS && connection.is_autocommit() {
            readers.push(connection);
        }
        result
    }

    /// Like [`Db::read`], with one state of the database for all statements of `query`: each alone would have to find out anew which that is.
    pub(crate) fn snapshot<T>(&self, action: &'static str, mut query: impl FnMut(&Connection) -> Result<T>) -> Result<T> {
        self.read(action, |db| {
            db.prepare_cached("begin")?.execute([])?;
            let result = query(db);
            if !db.is_autocommit() {
                db.prepare_cached("commit")?.execute([])?;
            }
            result
        })
    }

    /// Like [`Db::snapshot`], for somebody who reads all there is, once, in order: on a connection of his own that keeps no pages.
    pub(crate) fn pass<T>(&self, action: &'static str, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.reader()?;
        let pass = || {
            connection.pragma_update(None, "cache_size", -PASSING_CACHE)?;
            let transaction = connection.unchecked_transaction()?;
            query(&transaction)
        };
        pass().map_err(|error| match error {
            Error::Database { source, .. } => Error::Database { action, source },
            other => other,
        })
    }

    fn reader(&self) -> Result<Connection> {
        let open = || {
            let connection = connect(&self.path, false)?;
            connection.pragma_update(None, "query_only", true)?;
            connection.pragma_update(None, "cache_size", -READER_CACHE)?;
            Ok(connection)
        };
        open().map_err(|source| Error::OpenDatabase { path: self.path.clone(), source })
    }

    /// The connection that writes. Others wait until it is given back; those who must not wait are kept out meanwhile.
    pub(crate) fn writer(&self) -> Exclusive<'_> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        Exclusive { writer: lock(&self.writer), _gate: gate }
    }

    /// The connection that writes, for a few rows.
    pub(crate) fn brief_writer(&self) -> MutexGuard<'_, Writer> {
        self.queue.fetch_add(1, Ordering::Relaxed);
        let writer = lock(&self.writer);
        self.queue.fetch_sub(1, Ordering::Relaxed);
        writer
    }

    /// Called between one change and the next by somebody who has many to make: a mutex that is given back and taken again at once goes to nobody
    /// who waits for it. Now they get it, or a tenth of a second passes.
    pub(crate) fn give_turn(&self) {
        let end = Instant::now().checked_add(TURN);
        while self.queue.load(Ordering::Relaxed) > 0 && end.is_some_and(|end| Instant::now() < end) {
            std::thread::sleep(TURN_POLL);
        }
    }

    /// While this is held whoever has the connection that writes has it for a few rows. `None`: somebody has it who may take long, or wants it.
    pub(crate) fn brief(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.gate.try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// [`Writer::write`] when nobody else writes.
    pub(crate) fn write<T>(&self, action: &'static str, change: impl FnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.writer().write(action, Patience::Endless, change)
    }

    /// Moves what is in the log to the database, as far as nobody is in the way, and waits for the disk: so that those who commit need not.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let checkpoint = |connection: &Connection| connection.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(()));
        let mut slot = lock(&self.checkpointer);
        let connection = match &mut *slot {
            Some(connection) => connection,
            none => none.insert(connect(&self.path, false).map_err(Error::db("opening the database"))?),
        };
        checkpoint(connection).map_err(Error::db("moving the log to the database"))
    }

    /// Returns when all that was committed before is on the disk.
    pub(crate) fn sync_log(&self) -> Result<()> {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let log = PathBuf::from(log);
        // No lock of SQLite's is on this file, so that closing it again loses none.
        match std::fs::File::open(&log) {
            Ok(file) => file.sync_data().map_err(Error::io("syncing", log)),
            // All of it is in the database.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("opening file", log)(error)),
        }
    }

    /// Gives the log's space back, as far as nobody is in the way.
    pub(crate) fn truncate_log(&self) {
        if let Err(error) = self.writer().connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())) {
            tracing::debug!(%error, "cannot truncate the write-ahead log");
        }
    }

    /// Gives unused pages back to the file system, as `guix gc --vacuum-database`.
    pub(crate) fn vacuum(&self) -> Result<()> {
        self.writer().connection.execute_batch("vacuum;").map_err(Error::db("vacuuming SQLite database"))
    }
}

impl Writer {
    /// Runs `change` in a transaction, which is rolled back when it fails. `change` may run more than once.
    pub(crate) fn write<T>(
        &mut self,
        action: &'static str,
        patience: Patience,
        mut change: impl FnMut(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            match self.attempt(&mut change) {
                Err(error) if error.is_busy() && patience == Patience::Endless => pause(attempt),
                Err(Error::Database { source, .. }) => {
                    return Err(Error::Database { action, source });
                }
                other => return other,
            }
            attempt += 1;
        }
    }

    fn attempt<T>(&mut self, change: &mut impl FnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&transaction)?;
        point::<rusqlite::Error>("db::commit", Moment::Before)?;
        transaction.commit()?;
        point::<rusqlite::Error>("db::commit", Moment::After)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::{config, temp_dir, test_store};
    use crate::{PathInfo, Store};

    type Column = (&'static str, &'static str, bool, i64);

    /// The columns of each table of guix-daemon 1.5.0, as SQLite reports them of a database that it made: name, type, whether null is
    /// refused, and place in the primary key.
    const UPSTREAM: [(&str, &[Column]); 4] = [
        ("DerivationOutputs", &[("drv", "INTEGER", true, 1), ("id", "TEXT", true, 2), ("path", "TEXT", true, 0)]),
        ("FailedPaths", &[("path", "TEXT", true, 1), ("time", "INTEGER", true, 0)]),
        ("Refs", &[("referrer", "INTEGER", true, 1), ("reference", "INTEGER", true, 2)]),
        (
            "ValidPaths",
            &[
                ("id", "INTEGER", true, 1),
                ("path", "TEXT", true, 0),
                ("hash", "TEXT", true, 0),
                ("registrationTime", "INTEGER", true, 0),
                ("deriver", "TEXT", false, 0),
                ("narSize", "INTEGER", false, 0),
            ],
        ),
    ];

    fn columns(db: &Connection, table: &str) -> Vec<(String, String, bool, i64)> {
        let mut statement = db.prepare("select name, upper(type), \"notnull\", pk from pragma_table_info(?1)").unwrap();
        let rows = statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    fn owned(columns: &[Column]) -> Vec<(String, String, bool, i64)> {
        columns.iter().map(|(name, kind, not_null, key)| (name.to_string(), kind.to_string(), *not_null, *key)).collect()
    }

    fn objects(db: &Connection, kind: &str) -> BTreeSet<String> {
        let mut statement = db.prepare("select name from sqlite_master where type = ?1 and name not like 'sqlite_%'").unwrap();
        let rows = statement.query_map([kind], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_schema_is_upstreams_with_columns_appended() {
        let test = test_store();
        let db = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        for (table, expected) in UPSTREAM {
            let mut expected = owned(expected);
            if table == "ValidPaths" {
                expected.extend(EXTRA_COLUMNS.map(|(name, kind)| (name.to_owned(), kind.to_uppercase(), false, 0)));
            }
            assert_eq!(columns(&db, table), expected, "{table}");
        }
        let tables = UPSTREAM.map(|(table, _)| table.to_owned()).into_iter().chain(["FruixUnsynced".to_owned()]);
        assert_eq!(objects(&db, "table"), tables.collect());
        assert_eq!(objects(&db, "trigger"), ["DeleteSelfRefs".to_owned()].into());
        assert_eq!(objects(&db, "index"), ["IndexDerivationOutputs", "IndexReference", "IndexReferrer"].map(str::to_owned).into());
        let mode: String = db.query_row("pragma journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    /// Statements of guix-daemon's, before and after a fruixd has had the database.
    #[test]
    fn upstreams_statements_work_before_and_after() {
        let (_dir, root) = temp_dir();
        std::fs::create_dir_all(root.join("state/db")).unwrap();
        std::fs::write(root.join("state/db/schema"), "7").unwrap();
        let file = root.join("state/db/db.sqlite");
        let upstream = Connection::open(&file).unwrap();
        upstream.execute_batch(TABLES).unwrap();
        upstream.execute_batch("pragma foreign_keys = 1").unwrap();
        let name = |letter: char| format!("{}/{}-x", root.join("store").display(), letter.to_string().repeat(32));
        let hash = format!("sha256:{}", "0".repeat(63) + "1");
        let insert = |letter: char| {
            let sql = "insert into ValidPaths (path, hash, registrationTime, deriver, narSize) values (?, ?, ?, ?, ?);";
            upstream.prepare(sql).unwrap().insert((name(letter), &hash, 5, None::<String>, 120)).unwrap()
        };
        let a = insert('a');
        let store = Store::open(config(&root)).unwrap();
        let all = store.all_valid().unwrap();
        let first = all.first().unwrap().clone();
        let expected = PathInfo {
            path: first.clone(),
            nar_hash: hash.parse().unwrap(),
            references: BTreeSet::new(),
            deriver: None,
            registration_time: 5,
            nar_size: 120,
        };
        assert_eq!(store.query_path_info(&first).unwrap(), Some(expected));
        let b = insert('b');
        upstream.execute("insert or replace into Refs (referrer, reference) values (?, ?);", (b, a)).unwrap();
        upstream.execute("insert or replace into Refs (referrer, reference) values (?, ?);", (b, b)).unwrap();
        assert_eq!(store.referrers(&first).unwrap().len(), 1);
        // Its triggers and constraints hold for both.
        assert!(upstream.execute("delete from ValidPaths where path = ?;", [name('a')]).is_err());
        upstream.execute("delete from ValidPaths where path = ?;", [name('b')]).unwrap();
        store.invalidate(&all).unwrap();
        let rows: i64 =
            upstream.query_row("select (select count(*) from ValidPaths) + (select count(*) from Refs)", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn whoever_must_not_wait_does_not() {
        let test = test_store();
        let other = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        let roots = test.store.temp_roots();
        let at_once = |name: &str| test.store.add_text_at_once(&roots, name, b"contents", &BTreeSet::new()).unwrap();
        assert!(at_once("first").is_some());
        // Another process is writing.
        other.execute_batch("begin immediate").unwrap();
        let begin = std::time::Instant::now();
        assert_eq!(at_once("second"), None);
        assert!(begin.elapsed() < Duration::from_secs(1));
        other.execute_batch("commit").unwrap();
        // Somebody of ours is, and may take long.
        let long = test.store.db().writer();
        assert_eq!(at_once("third"), None);
        drop(long);
        // What was not added has left nothing.
        assert_eq!(std::fs::read_dir(test.root.join("store")).unwrap().filter(|entry| !is_staging(entry)).count(), 1);
        for name in ["second", "third"] {
            assert!(at_once(name).is_some());
        }
        assert_eq!(test.store.all_valid().unwrap().len(), 3);
    }

    /// Somebody who makes many changes keeps nobody waiting for more than one of them.
    #[test]
    fn a_collection_lets_others_in_between() {
        let test = test_store();
        let db = test.store.db();
        let changes = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for change in 1..=50 {
                    db.write("changing", |_| {
                        changes.store(change, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(10));
                        Ok(())
                    })
                    .unwrap();
                    db.give_turn();
                }
            });
            while changes.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            for text in ["a", "b", "c"] {
                test.text(text, "x");
            }
            assert!(changes.load(Ordering::SeqCst) < 50);
        });
    }

    /// Somebody who can wait does not fail with somebody who cannot.
    #[test]
    fn the_patient_are_served_in_the_end() {
        let test = test_store();
        let other = Connection::open(test.root.join("state/db/db.sqlite")).unwrap();
        other.execute_batch("begin immediate").unwrap();
        std::thread::scope(|scope| {
            let patient = scope.spawn(|| test.text("patient", "y"));
            let roots = test.store.temp_roots();
            for number in 0..20 {
                let name = format!("hasty-{number}");
                assert_eq!(test.store.add_text_at_once(&roots, &name, b"contents", &BTreeSet::new()).unwrap(), None);
            }
            assert!(!patient.is_finished());
            other.execute_batch("commit").unwrap();
            patient.join().unwrap();
        });
        assert_eq!(test.store.all_valid().unwrap().len(), 1);
    }

    fn is_staging(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.') || name.to_string_lossy().ends_with("-fruixd-staging")
    }

    #[test]
    fn nobody_sees_a_busy_database() {
        let test = test_store();
        let file = test.root.join("state/db/db.sqlite");
        let other = Connection::open(&file).unwrap();
        other.execute_batch("begin immediate").unwrap();
        std::thread::scope(|scope| {
            let adder = scope.spawn(|| test.text("x", "y"));
            std::thread::sleep(Duration::from_millis(150));
            // Readers do not wait.
            assert!(test.store.all_valid().unwrap().is_empty());
            assert!(!adder.is_finished());
            other.execute_batch("commit").unwrap();
            adder.join().unwrap();
        });
        assert_eq!(test.store.all_valid().unwrap().len(), 1);
    }
}
