//! Additions that are valid, but not on the disk yet.
//!
//! To wait for the disk with each addition makes an addition of two kilobytes take milliseconds, of which there are thousands to one `guix build`.
//! So an addition is acknowledged when its files are written and its row is committed, which a crash of the daemon cannot undo; and a second
//! later, or when it is relied on, everything is synced at once. Until then the table `FruixUnsynced` says from which row of `ValidPaths` on a
//! daemon has registered what may not be on the disk. It is written in the same transaction as the first of these rows.
//!
//! After a power cut the next fruixd that opens the store finds that row, with the name of another boot of the machine than this, reads what was
//! registered since, and makes invalid what is not as it should be, together with what refers to it. (If only the daemon was killed, nothing is
//! lost, and the next one takes the row over.) So the database never calls valid what is not there whole, but additions of the last second may
//! be lost: their clients add them again. What was built, or refers to an addition and is itself on the disk, is registered after a sync of all
//! that was added before, and so is never lost with it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fruix_drv::{HashAlgo, StorePath};
use nix::errno::Errno;
use rusqlite::{OptionalExtension, Transaction};

use crate::db::Patience;
use crate::scan::hash_at;
use crate::staging::Staging;
use crate::sync::sync_all;
use crate::{Error, Result, Store};

/// For how long an addition may not be on the disk.
const DELAY: Duration = Duration::from_secs(1);

/// Tells the thread that syncs.
#[derive(Debug, Default)]
pub(crate) struct Syncer {
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct Bell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    ended: bool,
}

/// The name of this boot of the machine, or nothing where none is to be had.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim_end().to_owned()
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there has been something to sync for a while; `false` when there will be nothing any more.
    fn wait(&self) -> bool {
        let idle = |state: &mut State| !state.wanted && !state.ended;
        drop(self.changed.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner));
        let waiting = self.changed.wait_timeout_while(self.state(), DELAY, |state| !state.ended);
        let (mut state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        state.wanted = false;
        !state.ended
    }
}

impl Syncer {
    /// There is something to sync.
    pub(crate) fn ring(&self) {
        if !std::mem::replace(&mut self.bell.state().wanted, true) {
            self.bell.changed.notify_all();
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.bell.state().ended = true;
        self.bell.changed.notify_all();
    }
}

impl Store {
    /// Starts the thread that syncs, which ends with the store.
    pub(crate) fn start_syncer(&self) -> Result<()> {
        let (bell, store) = (Arc::clone(&self.inner.syncer.bell), Arc::downgrade(&self.inner));
        let run = move || {
            while bell.wait() {
                let Some(inner) = store.upgrade() else { return };
                let store = Store { inner };
                if let Err(error) = store.flush() {
                    tracing::error!(%error, "additions of the last second may get lost in a power cut");
                    store.inner.syncer.ring();
                }
                if let Err(error) = store.db().checkpoint() {
                    tracing::warn!(%error, "the database's log grows");
                }
            }
        };
        let started = std::thread::Builder::new().name("store-sync".to_owned()).spawn(run);
        started.map(drop).map_err(Error::io("starting a thread for", self.store_dir().as_str()))
    }

    /// The name of this daemon in `FruixUnsynced`: that of its staging directory, which no other living daemon has.
    fn daemon_name(&self) -> &str {
        self.staging_path().base_name()
    }

    /// Notes that what is registered from now on may not be on the disk.
    pub(crate) fn note_unsynced(&self, db: &Transaction<'_>) -> Result<()> {
        let sql = "insert or ignore into FruixUnsynced (daemon, first, boot) select ?1, coalesce(max(id), 0) + 1, ?2 from ValidPaths";
        db.prepare_cached(sql)?.execute((self.daemon_name(), boot()))?;
        Ok(())
    }

    /// Returns when everything that was added before is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]: the disk is failing or full. [`Error::Database`].
    pub fn flush(&self) -> Result<()> {
        let newest = "select coalesce(max(id), 0) from ValidPaths";
        let upto: i64 = {
            // While nobody registers: the files of all rows there are have been written.
            let mut writer = self.db().writer();
            if !writer.unsynced {
                return Ok(());
            }
            writer.write("looking for additions to sync", Patience::Endless, |db| {
                Ok(db.prepare_cached(newest)?.query_row([], |row| row.get(0))?)
            })?
        };
        self.sync_since_noted()?;
        let mut writer = self.db().writer();
        let left = writer.write("noting what is synced", Patience::Endless, |db| {
            let daemon = self.daemon_name();
            let now: i64 = db.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
            if now <= upto {
                db.prepare_cached("delete from FruixUnsynced where daemon = ?1")?.execute([daemon])?;
                return Ok(false);
            }
            let update = "update FruixUnsynced set first = ?2 where daemon = ?1 and first < ?2";
            db.prepare_cached(update)?.execute((daemon, upto.saturating_add(1)))?;
            Ok(true)
        })?;
        writer.unsynced = left;
        drop(writer);
        if left {
            self.inner.syncer.ring();
        }
        Ok(())
    }

    /// Syncs whatever this daemon has noted as unsynced.
    fn sync_since_noted(&self) -> Result<()> {
        if !self.config().durable {
            return Ok(());
        }
        if self.sync_store_file_system()? {
            return Ok(());
        }
        let first = self.db().read("looking for additions to sync", |db| {
            let sql = "select first from FruixUnsynced where daemon = ?1";
            Ok(db.prepare_cached(sql)?.query_row([self.daemon_name()], |row| row.get::<_, i64>(0)).optional()?)
        })?;
        let Some(first) = first else { return Ok(()) };
        for path in self.registered_since(first)? {
            match sync_all(&self.place(&path)) {
                // Collected meanwhile.
                Err(_) if !self.is_valid(&path)? => {}
                other => other?,
            }
        }
        self.sync_store_dir()
    }

    /// The valid paths whose row is `first` or a later one.
    fn registered_since(&self, first: i64) -> Result<Vec<StorePath>> {
        let rows: Vec<String> = self.db().read("querying valid paths", |db| {
            let mut statement = db.prepare_cached("select path from ValidPaths where id >= ?1")?;
            let rows = statement.query_map([first], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        rows.iter().map(|row| self.parse_row(row)).collect()
    }

    /// Sees to what daemons that are gone had registered and not synced: makes invalid what is not what it should be, if the machine has stopped
    /// since, and has the rest synced soon.
    pub(crate) fn take_over_unsynced(&self) -> Result<()> {
        let mut noted: Vec<(String, i64, String)> = self.db().read("looking for additions that were not synced", |db| {
            let mut statement = db.prepare_cached("select daemon, first, boot from FruixUnsynced")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let boot = boot();
        let mut held = Vec::new();
        for (daemon, ..) in &noted {
            if daemon != self.daemon_name() && Staging::is_held(self.dir(), self.store_dir(), daemon)? {
                held.push(daemon.clone());
            }
        }
        noted.retain(|(daemon, ..)| !held.contains(daemon));
        if let Some(first) = noted.iter().filter(|(.., then)| boot.is_empty() || *then != boot).map(|(_, first, _)| *first).min() {
            self.drop_lost(first)?;
        }
        let Some(first) = noted.iter().map(|(_, first, _)| *first).min() else { return Ok(()) };
        let mut writer = self.db().writer();
        writer.write("taking over what is not synced", Patience::Endless, |db| {
            let mut delete = db.prepare_cached("delete from FruixUnsynced where daemon = ?1")?;
            noted.iter().try_for_each(|(daemon, ..)| delete.execute([daemon]).map(drop))?;
            let sql = "insert or replace into FruixUnsynced (daemon, first, boot) values (?1, ?2, ?3)";
            db.prepare_cached(sql)?.execute((self.daemon_name(), first, &boot))?;
            Ok(())
        })?;
        writer.unsynced = true;
        self.inner.syncer.ring();
        Ok(())
    }

    /// Makes invalid what is not whole of what was registered since row `first`.
    fn drop_lost(&self, first: i64) -> Result<()> {
        let since = self.registered_since(first)?;
        tracing::info!(paths = since.len(), "looking at additions that may not have reached the disk");
        let mut next = Vec::new();
        for path in since {
            if !self.is_whole(&path)? {
                next.push(path);
            }
        }
        let mut lost = BTreeSet::new();
        while let Some(path) = next.pop() {
            next.extend(self.referrers(&path)?.into_iter().filter(|referrer| *referrer != path && !lost.contains(referrer)));
            lost.insert(path);
        }
        for path in &lost {
            tracing::warn!("`{}' did not reach the disk before the machine stopped, and is no longer valid", self.print(path));
        }
        self.invalidate(&lost)
    }

    /// Whether `path` is there and as the database says.
    fn is_whole(&self, path: &StorePath) -> Result<bool> {
        let Some(info) = self.query_path_info(path)? else { return Ok(true) };
        match hash_at(&self.place(path), HashAlgo::Sha256) {
            Ok((hash, size)) => Ok(hash == info.nar_hash && size == info.nar_size),
            // Not there, not readable, or something else altogether. What the machine lacks for the moment is no reason to give anything up.
            Err(Error::Io { source, path, action }) => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::EIO | Errno::ELOOP | Errno::ENOTDIR) => Ok(false),
                _ => Err(Error::Io { source, path, action }),
            },
            Err(Error::Database { action, source }) => Err(Error::Database { action, source }),
            Err(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{config, temp_dir};

    fn rows(store: &Store) -> Vec<(String, i64)> {
        let read = store.db().read("reading", |db| {
            let mut statement = db.prepare_cached("select daemon, first from FruixUnsynced")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        read.unwrap()
    }

    fn write(root: &std::path::Path, path: &StorePath, contents: &str) {
        let file = root.join("store").join(path.base_name());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(file, contents).unwrap();
    }

    #[test]
    fn d1_what_a_power_cut_took_is_no_longer_valid() {
        let (_dir, root) = temp_dir();
        let open = || Store::open(crate::Config { durable: true, ..config(&root) }).unwrap();
        let store = open();
        let add = |name: &str, references: &[&StorePath]| {
            let references = references.iter().map(|path| (*path).clone()).collect();
            store.add_text(&store.temp_roots(), name, b"contents", &references).unwrap()
        };
        let synced = add("synced", &[]);
        store.flush().unwrap();
        assert_eq!(rows(&store), []);
        let [whole, empty, gone] = ["whole", "empty", "gone"].map(|name| add(name, &[&synced]));
        let referrer = add("referrer", &[&whole, &empty]);
        let second_referrer = add("second-referrer", &[&referrer]);
        assert_eq!(rows(&store), [(store.daemon_name().to_owned(), 2)]);
        // A living daemon's additions are nobody else's business.
        write(&root, &empty, "");
        assert!(open().is_valid(&empty).unwrap());
        let row = rows(&store);
        drop(store);

        let store = open();
        // The first one's thread may have been at it, and then sees to it itself.
        while !rows(&store).is_empty() {
            store.flush().unwrap();
            std::thread::sleep(DELAY / 20);
        }
        let leave = |store: Store, boot: &str| {
            let sql = "insert into FruixUnsynced values (?1, 2, ?2)";
            store.db().write("writing", |db| Ok(db.execute(sql, (&row[0].0, boot))?)).unwrap();
        };
        // A daemon that was killed has left no more to do than to sync.
        leave(store, &boot());
        let store = open();
        assert!(store.is_valid(&empty).unwrap());
        assert_eq!(rows(&store), [(store.daemon_name().to_owned(), 2)]);
        store.flush().unwrap();
        assert_eq!(rows(&store), []);
        // But if the machine has stopped, all is looked at that came since.
        leave(store, "another");
        std::fs::remove_file(root.join("store").join(gone.base_name())).unwrap();
        write(&root, &synced, "damaged, but that is another story");
        let store = open();
        for (path, valid) in [(synced, true), (whole, true), (empty, false), (gone, false), (referrer, false), (second_referrer, false)] {
            assert_eq!(store.is_valid(&path).unwrap(), valid, "{path:?}");
        }
    }

    #[test]
    fn additions_are_synced_after_a_while_and_before_what_is_built() {
        let (_dir, root) = temp_dir();
        let store = Store::open(crate::Config { durable: true, ..config(&root) }).unwrap();
        let roots = store.temp_roots();
        let input = store.add_text(&roots, "input", b"contents", &BTreeSet::new()).unwrap();
        assert_eq!(rows(&store).len(), 1);
        let output = StorePath::from_base_name(format!("{}-output", "a".repeat(32))).unwrap();
        std::fs::write(store.real_path(&output), "contents").unwrap();
        let info = store.path_info(&input).unwrap();
        store.register(&[crate::PathInfo { path: output, references: BTreeSet::from([input]), ..info }]).unwrap();
        assert_eq!(rows(&store), []);
        store.add_text(&roots, "late", b"contents", &BTreeSet::new()).unwrap();
        assert_eq!(rows(&store).len(), 1);
        let begun = std::time::Instant::now();
        while !rows(&store).is_empty() {
            assert!(begun.elapsed() < DELAY * 20, "nobody syncs");
            std::thread::sleep(DELAY / 20);
        }
        // With this asked for, nothing is ever outstanding.
        drop(store);
        let store = Store::open(crate::Config { durable: true, sync_additions: true, ..config(&root) }).unwrap();
        store.add_text(&store.temp_roots(), "strict", b"contents", &BTreeSet::new()).unwrap();
        assert_eq!(rows(&store), []);
    }
}
