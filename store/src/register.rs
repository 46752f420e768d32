//! Making paths valid, and invalid again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fruix_drv::modulo::{ModuloError, VerifyError};
use fruix_drv::{Derivation, ModuloCache, StorePath, aterm, verify_output_paths};
use nix::sys::stat::{SFlag, fstat};
use rusqlite::{Connection, Transaction};

use crate::db::{Patience, Writer, pause};
use crate::fsutil::{Place, kind, open_file_at};
use crate::info::row_id;
use crate::{Error, PathInfo, Result, Store, lock};

/// Hashes of derivations that are kept, about 200 bytes each.
const KNOWN_DERIVATIONS: usize = 50_000;

/// References and outputs from which on a registration is for itself, since others may not be kept waiting for it.
pub(crate) const MANY: usize = 256;

/// How often, and with what pauses, somebody tries who must not wait.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_micros(50);

/// What is in `mutex`, unless somebody has it for longer than a moment.
fn lock_soon<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..TRIES {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
    None
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// Derivations that are about to be registered, and need not be read back.
pub(crate) type Parsed = BTreeMap<StorePath, Derivation>;

/// Whether what is registered is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// It is.
    Yes,
    /// It will be; the database notes that it may not be.
    Later,
}

/// Paths that somebody waits to see registered, all or none.
#[derive(Debug)]
struct Registration {
    infos: Vec<PathInfo>,
    parsed: Parsed,
    on_disk: OnDisk,
    result: Mutex<Option<Result<()>>>,
}

/// Those that are waiting for the database.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    waiting: Mutex<Vec<Arc<Registration>>>,
}

impl Store {
    /// Reads the derivation `path` from its file, valid or not.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::LargeDerivation`], [`Error::BadDerivation`].
    pub fn read_derivation(&self, path: &StorePath) -> Result<Derivation> {
        self.read_derivation_at(path, &self.place(path))
    }

    /// Reads the derivation that is at `place` and is, or will be, `path`.
    pub(crate) fn read_derivation_at(&self, path: &StorePath, place: &Place<'_>) -> Result<Derivation> {
        let shown = &place.shown;
        let fd = match open_file_at(place.dir, &place.name) {
            Ok(fd) => fd,
            // A symbolic link, for which each C library has a text of its own.
            Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Err(self.bad_derivation(path, "it is no regular file".to_owned()));
            }
            Err(error) => return Err(Error::io("opening file", shown)(error)),
        };
        let stat = fstat(&fd).map_err(Error::io("getting attributes of path", shown))?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(self.bad_derivation(path, "it is no regular file".to_owned()));
        }
        let limit = aterm::MAX_SIZE as u64;
        let mut bytes = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(aterm::MAX_SIZE));
        std::fs::File::from(fd).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("reading file", shown))?;
        self.parse_derivation(path, &bytes)
    }

    pub(crate) fn parse_derivation(&self, path: &StorePath, bytes: &[u8]) -> Result<Derivation> {
        if bytes.len() > aterm::MAX_SIZE {
            let (size, limit) = (bytes.len() as u64, aterm::MAX_SIZE as u64);
            return Err(Error::LargeDerivation { drv: self.print(path), size, limit });
        }
        aterm::parse(self.store_dir(), bytes).map_err(|error| self.bad_derivation(path, error.to_string()))
    }

    fn bad_derivation(&self, path: &StorePath, reason: String) -> Error {
        Error::BadDerivation { drv: self.print(path), reason }
    }

    /// Registers paths that are on the disk, synced, in one transaction: all or none.
    ///
    /// A path that is valid already gets the new hash and size, and the new references on top of those it has. Of derivations the
    /// outputs are noted, after a check that they are the right ones.
    ///
    /// # Errors
    /// [`Error::NotValid`] for a reference that is neither valid nor among `infos`, [`Error::Cycle`], [`Error::IncorrectOutput`]
    /// and its likes for derivations, [`Error::Database`].
    pub fn register(&self, infos: &[PathInfo]) -> Result<()> {
        // Files are read and hashed before the transaction, which holds up everyone else.
        let mut parsed = Parsed::new();
        for info in infos.iter().filter(|info| info.path.is_derivation()) {
            parsed.insert(info.path.clone(), self.read_derivation(&info.path)?);
        }
        for (path, drv) in &parsed {
            self.check_outputs_among(path, drv, &parsed)?;
        }
        // What they refer to must not get lost before they do.
        self.flush()?;
        let mut writer = self.db().writer();
        let own = Registration { infos: infos.to_vec(), parsed, on_disk: OnDisk::Yes, result: Mutex::default() };
        self.commit(&mut writer, &[Arc::new(own)], Patience::Endless)
    }

    /// [`Store::register`] for an addition, given the derivation that it may be, which has been checked.
    ///
    /// Whoever finds the database free commits what all have been waiting for with it. Nobody has it for more than a moment: another process that
    /// holds it is waited for without it, and not at all if `patience` says so.
    pub(crate) fn insert(&self, info: PathInfo, parsed: Parsed, on_disk: OnDisk, patience: Patience) -> Result<()> {
        let rows = info.references.len().saturating_add(parsed.values().map(|drv| drv.outputs.len()).sum());
        let own = Arc::new(Registration { infos: vec![info], parsed, on_disk, result: Mutex::default() });
        if rows > MANY {
            return self.commit(&mut self.db().writer(), &[own], Patience::Endless);
        }
        let waiting = &self.inner.registrations.waiting;
        lock(waiting).push(Arc::clone(&own));
        let mut attempt = 0;
        loop {
            let mut writer = self.db().brief_writer();
            if let Some(result) = lock(&own.result).take() {
                return result;
            }
            let batch = std::mem::take(&mut *lock(waiting));
            let mut busy = self.commit_all(&mut writer, batch);
            // Others may have the patience.
            busy.retain(|one| patience == Patience::Endless || !Arc::ptr_eq(one, &own));
            lock(waiting).extend(busy);
            drop(writer);
            if let Some(result) = lock(&own.result).take() {
                return result;
            }
            if patience == Patience::Moment {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, None).into());
            }
            pause(attempt);
            attempt += 1;
        }
    }

    /// Commits `batch`, together or else each for himself, and sets the results. Returns those for whom the database was busy.
    fn commit_all(&self, writer: &mut Writer, mut batch: Vec<Arc<Registration>>) -> Vec<Arc<Registration>> {
        if batch.len() > 1 && self.commit(writer, &batch, Patience::Moment).is_ok() {
            for one in batch.drain(..) {
                *lock(&one.result) = Some(Ok(()));
            }
        }
        // One's failure is not another's.
        while let Some(one) = batch.first() {
            let result = self.commit(writer, std::slice::from_ref(one), Patience::Moment);
            if result.as_ref().is_err_and(Error::is_busy) {
                break;
            }
            *lock(&one.result) = Some(result);
            batch.remove(0);
        }
        batch
    }

    fn commit(&self, writer: &mut Writer, batch: &[Arc<Registration>], patience: Patience) -> Result<()> {
        let unsynced = batch.iter().any(|one| one.on_disk == OnDisk::Later);
        let note = unsynced && !writer.unsynced;
        let memory = &self.db().memory;
        let mut before = None;
        let committing = memory.committing();
        writer.write("registering valid paths", patience, |db| {
            // Nobody else commits from here on.
            before = memory.header();
            if note {
                self.note_unsynced(db)?;
            }
            batch.iter().try_for_each(|one| self.insert_together(db, &one.infos, &one.parsed))
        })?;
        // While the connection is ours.
        memory.carry(before, batch.iter().flat_map(|one| &one.infos));
        drop(committing);
        writer.unsynced |= note;
        self.inner.syncer.ring();
        Ok(())
    }

    fn insert_together(&self, db: &Transaction<'_>, infos: &[PathInfo], parsed: &Parsed) -> Result<()> {
        let mut ids = Vec::with_capacity(infos.len());
        for info in infos {
            ids.push(self.insert_row(db, info, parsed.get(&info.path))?);
        }
        let mut insert = db.prepare_cached("insert or ignore into Refs (referrer, reference) values (?1, ?2)")?;
        for (info, referrer) in infos.iter().zip(ids) {
            for reference in &info.references {
                insert.execute((referrer, self.valid_id(db, reference)?))?;
            }
        }
        self.refuse_cycles(db, infos)
    }

    fn valid_id(&self, db: &Connection, path: &StorePath) -> Result<i64> {
        row_id(db, &self.print(path))?.ok_or_else(|| self.not_valid(path))
    }

    /// Inserts or changes the row of `info`, and returns its number.
    fn insert_row(&self, db: &Transaction<'_>, info: &PathInfo, drv: Option<&Derivation>) -> Result<i64> {
        let path = self.print(&info.path);
        let hash = info.nar_hash.to_string();
        let size = (info.nar_size != 0).then(|| i64::try_from(info.nar_size).unwrap_or(i64::MAX));
        if let Some(id) = row_id(db, &path)? {
            db.prepare_cached("update ValidPaths set narSize = ?1, hash = ?2 where path = ?3")?.execute((size, hash, path))?;
            return Ok(id);
        }
        let time = match info.registration_time {
            0 => now(),
            time => i64::try_from(time).unwrap_or(i64::MAX),
        };
        let deriver = info.deriver.as_ref().map(|deriver| self.print(deriver));
        let id = db
            .prepare_cached("insert into ValidPaths (path, hash, registrationTime, deriver, narSize) values (?1, ?2, ?3, ?4, ?5)")?
            .insert((path, hash, time, deriver, size))?;
        if let Some(drv) = drv {
            let mut insert = db.prepare_cached("insert or replace into DerivationOutputs (drv, id, path) values (?1, ?2, ?3)")?;
            for (name, output) in &drv.outputs {
                insert.execute((id, name, self.print(&output.path)))?;
            }
        }
        Ok(id)
    }

    /// Refuses references that lead from one of `infos` over others of them back to it.
    fn refuse_cycles(&self, db: &Connection, infos: &[PathInfo]) -> Result<()> {
        if infos.len() < 2 {
            return Ok(());
        }
        let mut edges: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
        let paths: BTreeMap<String, &StorePath> = infos.iter().map(|info| (self.print(&info.path), &info.path)).collect();
        let mut query = db.prepare_cached("select path from Refs join ValidPaths on reference = id where referrer = ?1")?;
        for (printed, path) in &paths {
            let Some(id) = row_id(db, printed)? else {
                continue;
            };
            let mut rows = query.query([id])?;
            let mut to = BTreeSet::new();
            while let Some(row) = rows.next()? {
                let reference = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                to.extend(paths.get(reference).filter(|to| *to != path).copied());
            }
            // Taken from the end, so the last is the first to be looked at.
            edges.insert(path, to.into_iter().rev().collect());
        }
        match find_cycle(edges) {
            Some(path) => Err(Error::Cycle { path: self.print(&path) }),
            None => Ok(()),
        }
    }

    /// Checks that the outputs of the derivation `path`, whose inputs must be valid, have the paths that follow from the rest of it.
    ///
    /// # Errors
    /// [`Error::IncorrectOutput`], [`Error::NotValid`], [`Error::BadDerivation`], [`Error::BadName`].
    pub fn check_outputs(&self, path: &StorePath, drv: &Derivation) -> Result<()> {
        self.check_outputs_among(path, drv, &Parsed::new())
    }

    /// Like [`Store::check_outputs`], and notes the hash of the derivation, which is likely to be the next one's input: if all its inputs' hashes are
    /// known, and nobody is at reading derivations to find out more of them. `false`: otherwise, or the outputs are not right.
    pub(crate) fn check_outputs_at_once(&self, path: &StorePath, drv: &Derivation) -> bool {
        let Some(name) = path.derivation_name() else { return false };
        let Some(mut known) = lock_soon(&self.inner.drv_hashes) else { return false };
        if drv.is_fixed_output() && !drv.outputs.contains_key("out") {
            return false;
        }
        let verified = verify_output_paths(self.store_dir(), name, drv, &mut |input| known.get(input).ok_or(()));
        let mut load = |input: &StorePath| if input == path { Ok(drv.clone()) } else { Err(()) };
        verified.is_ok() && known.hash(self.store_dir(), path, &mut load).is_ok()
    }

    fn check_outputs_among(&self, path: &StorePath, drv: &Derivation, parsed: &Parsed) -> Result<()> {
        let Some(name) = path.derivation_name() else {
            return Err(self.bad_derivation(path, "its name does not end in `.drv'".to_owned()));
        };
        if drv.is_fixed_output() && !drv.outputs.contains_key("out") {
            return Err(Error::NoOut { drv: self.print(path) });
        }
        let mut known = self.drv_hashes();
        if known.len() > KNOWN_DERIVATIONS {
            known.clear();
        }
        let mut load = |input: &StorePath| match parsed.get(input) {
            Some(drv) => Ok(drv.clone()),
            None if self.is_valid(input)? => self.read_derivation(input),
            None => Err(self.not_valid(input)),
        };
        let result = verify_output_paths(self.store_dir(), name, drv, &mut |input| known.hash(self.store_dir(), input, &mut load));
        result.map_err(|error| match error {
            VerifyError::IncorrectOutput { found, expected, .. } => {
                Error::IncorrectOutput { drv: self.print(path), found: self.print(&found), expected: self.print(&expected) }
            }
            VerifyError::Input { source: ModuloError::Load { source, .. }, .. } => source,
            VerifyError::Input { source, .. } => self.bad_derivation(path, source.to_string()),
            other => Error::BadName { reason: other.to_string() },
        })
    }

    pub(crate) fn drv_hashes(&self) -> MutexGuard<'_, ModuloCache> {
        // Entries are complete or absent, whatever panicked.
        lock(&self.inner.drv_hashes)
    }

    /// Stores hash and size of the valid path `info.path` anew, for repairs of the database; nothing else of `info` is looked at.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn update_path_info(&self, info: &PathInfo) -> Result<()> {
        let size = (info.nar_size != 0).then(|| i64::try_from(info.nar_size).unwrap_or(i64::MAX));
        self.db().write("updating path info", |db| {
            db.prepare_cached("update ValidPaths set narSize = ?1, hash = ?2 where path = ?3")?.execute((
                size,
                info.nar_hash.to_string(),
                self.print(&info.path),
            ))?;
            Ok(())
        })
    }

    /// Makes `paths` invalid, in one transaction: all or none. Their files stay.
    ///
    /// # Errors
    /// [`Error::InUse`] when a valid path that is not among them refers to one of them; [`Error::Database`].
    pub fn invalidate(&self, paths: &BTreeSet<StorePath>) -> Result<()> {
        self.db().write("invalidating path in database", |db| {
            let mut ids = Vec::with_capacity(paths.len());
            let mut unrefer = db.prepare_cached("delete from Refs where referrer = ?1")?;
            for path in paths {
                if let Some(id) = row_id(db, &self.print(path))? {
                    unrefer.execute([id])?;
                    ids.push((id, path));
                }
            }
            let mut referrers =
                db.prepare_cached("select v.path from Refs r join ValidPaths v on r.referrer = v.id where r.reference = ?1")?;
            let mut delete = db.prepare_cached("delete from ValidPaths where id = ?1")?;
            for (id, path) in ids {
                let using = referrers.query_map([id], |row| row.get::<_, String>(0))?.collect::<Result<BTreeSet<_>, _>>()?;
                if !using.is_empty() {
                    let quoted: Vec<String> = using.iter().map(|path| format!("`{path}'")).collect();
                    return Err(Error::InUse { path: self.print(path), referrers: quoted.join(", ") });
                }
                delete.execute([id])?;
            }
            Ok(())
        })?;
        let mut known = self.drv_hashes();
        for path in paths.iter().filter(|path| path.is_derivation()) {
            known.forget(path);
        }
        Ok(())
    }

    /// Gives the database's unused pages back to the file system.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn vacuum_database(&self) -> Result<()> {
        self.db().vacuum()
    }
}

/// A node that is reached again while its own edges are being followed, if there is one. Edges are consumed from the end.
fn find_cycle(mut edges: BTreeMap<&StorePath, Vec<&StorePath>>) -> Option<StorePath> {
    let mut visited = BTreeSet::new();
    let nodes: Vec<&StorePath> = edges.keys().copied().collect();
    for node in nodes {
        if !visited.insert(node) {
            continue;
        }
        let mut stack = vec![node];
        let mut parents = BTreeSet::from([node]);
        while let Some(&top) = stack.last() {
            match edges.get_mut(top).and_then(Vec::pop) {
                Some(next) if parents.contains(next) => return Some(next.clone()),
                Some(next) => {
                    if visited.insert(next) {
                        parents.insert(next);
                        stack.push(next);
                    }
                }
                None => {
                    parents.remove(top);
                    stack.pop();
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use fruix_drv::Hash;

    use super::*;
    use crate::testing::{TestStore, test_store};

    /// An item that is there, unregistered, and what there is to say of it.
    fn item(test: &TestStore, name: char, references: &str) -> PathInfo {
        let path = |name: char| StorePath::from_base_name(format!("{}-x", name.to_string().repeat(32))).unwrap();
        let info = PathInfo {
            path: path(name),
            nar_hash: Hash::sha256(name.to_string()),
            references: references.chars().map(path).collect(),
            deriver: Some(path('9')),
            registration_time: 77,
            nar_size: 120,
        };
        std::fs::write(test.store.real_path(&info.path), name.to_string()).unwrap();
        info
    }

    #[test]
    fn round_trip_all_or_none() {
        let test = test_store();
        let store = &test.store;
        // The order does not matter, and a path may refer to itself.
        let infos = [item(&test, 'a', "abc"), item(&test, 'b', "c"), item(&test, 'c', "")];
        store.register(&infos).unwrap();
        for info in &infos {
            assert_eq!(store.query_path_info(&info.path).unwrap().as_ref(), Some(info));
        }
        let lost = [item(&test, 'd', "a"), item(&test, 'f', "g")];
        let error = store.register(&lost).unwrap_err();
        assert!(matches!(error, Error::NotValid { .. }), "{error}");
        assert!(!store.is_valid(&lost[0].path).unwrap());
        // Unknown sizes and derivers are null.
        let bare = PathInfo { nar_size: 0, deriver: None, ..item(&test, 'd', "") };
        store.register(std::slice::from_ref(&bare)).unwrap();
        assert_eq!(store.query_path_info(&bare.path).unwrap(), Some(bare.clone()));
        let nulls: i64 = store
            .db()
            .read("counting", |db| {
                Ok(db.query_row("select count(*) from ValidPaths where narSize is null and deriver is null", [], |row| row.get(0))?)
            })
            .unwrap();
        assert_eq!(nulls, 1);
        // Registering again gives it the new hash and size.
        let again = PathInfo { nar_hash: Hash::sha256("new"), nar_size: 128, ..bare };
        store.register(std::slice::from_ref(&again)).unwrap();
        assert_eq!(store.query_path_info(&again.path).unwrap(), Some(again));
    }

    #[test]
    fn cycles_are_refused() {
        let test = test_store();
        let infos = [item(&test, 'a', "b"), item(&test, 'b', "c"), item(&test, 'c', "a"), item(&test, 'd', "")];
        let error = test.store.register(&infos).unwrap_err();
        assert_eq!(error.to_string(), format!("cycle detected in the references of `{}'", test.store.print(&infos[0].path)));
        assert!(test.store.all_valid().unwrap().is_empty());
    }

    #[test]
    fn invalidating_respects_referrers() {
        let test = test_store();
        let store = &test.store;
        let infos = [item(&test, 'a', "ab"), item(&test, 'b', "c"), item(&test, 'c', "")];
        store.register(&infos).unwrap();
        let [a, b, c] = infos.map(|info| info.path);
        let error = store.invalidate(&BTreeSet::from([b.clone(), c.clone()])).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot delete path `{}' because it is in use by `{}'", store.print(&b), store.print(&a)));
        assert_eq!(store.all_valid().unwrap().len(), 3);
        store.invalidate(&BTreeSet::from([a.clone(), b, c.clone()])).unwrap();
        assert!(store.all_valid().unwrap().is_empty());
        assert!(matches!(store.references(&a), Err(Error::NotValid { .. })));
        assert!(store.referrers(&c).unwrap().is_empty());
    }
}
