//! The database of valid paths, `DB/db.sqlite`.
//!
//! The tables are guix-daemon's (schema 7); the columns `ultimate`, `sigs` and `ca` of `ValidPaths` are Nix's, appended, so that every
//! statement of guix-daemon and of `(guix store database)`, which name their columns, goes on working.
//!
//! One connection writes, a pool of connections reads; in WAL mode neither waits for the other. That another process holds the database
//! is never an error here: whoever asks waits.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::{Error, Result};

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
";

/// Nix's columns and their types.
const EXTRA_COLUMNS: [(&str, &str); 3] = [("ultimate", "integer"), ("sigs", "text"), ("ca", "text")];

/// Connections that the pool keeps for later; more are made when more threads ask at once.
const IDLE_READERS: usize = 16;

/// Statements that each connection keeps prepared; more than this crate has.
const STATEMENTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
}

/// Whether `error` means that another connection holds the database.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind is a connection whose transaction was rolled back: as good as new.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pause(attempt: u32) {
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
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

fn has_column(connection: &Connection, column: &str) -> rusqlite::Result<bool> {
    connection.prepare("select 1 from pragma_table_info('ValidPaths') where name = ?1")?.exists([column])
}

fn prepare_schema(connection: &mut Connection) -> rusqlite::Result<()> {
    let mut complete = connection.prepare("select 1 from sqlite_master where type = 'table' and name = 'FailedPaths'")?.exists([])?;
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
    transaction.commit()
}

impl Db {
    /// Opens `path`, and makes or completes the tables.
    pub(crate) fn open(path: &Path, durable: bool) -> Result<Db> {
        let mut attempt = 0;
        loop {
            match Self::try_open(path, durable) {
                Ok(writer) => {
                    return Ok(Db { path: path.to_owned(), writer: Mutex::new(writer), readers: Mutex::default() });
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
        writer.pragma_update(None, "wal_autocheckpoint", 4000)?;
        prepare_schema(&mut writer)?;
        Ok(writer)
    }

    /// Runs a query on a connection of the pool. `query` may run more than once, and sees one state of the database per statement.
    pub(crate) fn read<T>(&self, action: &'static str, mut query: impl FnMut(&Connection) -> Result<T>) -> Result<T> {
        let idle = held(&self.readers).pop();
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
        let mut readers = held(&self.readers);
        if readers.len() < IDLE_READERS {
            readers.push(connection);
        }
        result
    }

    fn reader(&self) -> Result<Connection> {
        let open = || {
            let connection = connect(&self.path, false)?;
            connection.pragma_update(None, "query_only", true)?;
            Ok(connection)
        };
        open().map_err(|source| Error::OpenDatabase { path: self.path.clone(), source })
    }

    /// Runs `change` in a transaction, which is rolled back when it fails. `change` may run more than once.
    pub(crate) fn write<T>(&self, action: &'static str, mut change: impl FnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = held(&self.writer);
        let mut attempt = 0;
        loop {
            match Self::attempt(&mut connection, &mut change) {
                Err(error) if error.is_busy() => pause(attempt),
                Err(Error::Database { source, .. }) => {
                    return Err(Error::Database { action, source });
                }
                other => return other,
            }
            attempt += 1;
        }
    }

    fn attempt<T>(connection: &mut Connection, change: &mut impl FnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    /// Gives unused pages back to the file system, as `guix gc --vacuum-database`.
    pub(crate) fn vacuum(&self) -> Result<()> {
        held(&self.writer).execute_batch("vacuum;").map_err(Error::db("vacuuming SQLite database"))
    }
}
