//! What the database knows of paths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fruix_drv::{Hash, StorePath};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::{Error, Result, Store};

/// What is known of a valid path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its archive. All zeros when unknown (in stores of old).
    pub nar_hash: Hash,
    /// Valid paths whose hash part occurs in it; possibly itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation it was built by, if known; that need not be valid.
    pub deriver: Option<StorePath>,
    /// Seconds since 1970. When registering, 0 means now.
    pub registration_time: u64,
    /// Bytes of its archive; 0 when unknown (in stores of old).
    pub nar_size: u64,
}

/// Paths, as an answer.
pub(crate) type Paths = BTreeSet<StorePath>;

/// The outputs of a derivation, by name.
pub(crate) type Outputs = BTreeMap<String, StorePath>;

impl Store {
    /// Reads a path as the database has it.
    pub(crate) fn parse_row(&self, path: &str) -> Result<StorePath> {
        self.store_dir().parse(path).map_err(|error| Error::CorruptRow { path: path.to_owned(), reason: error.to_string() })
    }

    pub(crate) fn not_valid(&self, path: &StorePath) -> Error {
        Error::NotValid { path: self.print(path) }
    }

    /// Whether `path` is registered.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn is_valid(&self, path: &StorePath) -> Result<bool> {
        let find = || {
            let path = self.print(path);
            self.db().read("querying path in database", |db| Ok(row_id(db, &path)?.is_some()))
        };
        self.recall(|answers| &mut answers.valid, path, find)
    }

    /// Whether all of `paths` are registered.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn are_valid<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) -> Result<bool> {
        for path in paths {
            if !self.is_valid(path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Those of `paths` that are registered.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn filter_valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        if let Some(valid) = self.db().memory.valid_among(paths.iter()) {
            return Ok(valid);
        }
        self.db().snapshot("querying paths in database", |db| {
            let mut valid = BTreeSet::new();
            for path in paths {
                if row_id(db, &self.print(path))?.is_some() {
                    valid.insert(path.clone());
                }
            }
            Ok(valid)
        })
    }

    /// All registered paths. Rows that are no store paths are left out; see [`Store::foreign_rows`].
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn all_valid(&self) -> Result<BTreeSet<StorePath>> {
        Ok(self.sorted_valid()?.into_iter().collect())
    }

    /// [`Store::all_valid`], in order, each once.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn sorted_valid(&self) -> Result<Vec<StorePath>> {
        if let Some(all) = self.db().memory.all_valid() {
            return Ok(all);
        }
        self.db().read("querying all valid paths", |db| {
            // From the index alone.
            let mut statement = db.prepare_cached("select path from ValidPaths order by path")?;
            let mut rows = statement.query([])?;
            let mut paths = Vec::new();
            while let Some(row) = rows.next()? {
                match self.parse_row(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?) {
                    Ok(path) => paths.push(path),
                    Err(error) => tracing::warn!(%error, "ignored"),
                }
            }
            Ok(paths)
        })
    }

    /// What is registered in `ValidPaths` but is no store path; [`Store::forget_row`] removes it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn foreign_rows(&self) -> Result<Vec<String>> {
        self.db().read("querying all valid paths", |db| {
            let mut statement = db.prepare_cached("select path from ValidPaths")?;
            let mut rows = statement.query([])?;
            let mut foreign = Vec::new();
            while let Some(row) = rows.next()? {
                let path: String = row.get(0)?;
                if self.store_dir().parse(&path).is_err() {
                    foreign.push(path);
                }
            }
            Ok(foreign)
        })
    }

    /// Removes the row of `path` as it is written there.
    ///
    /// # Errors
    /// [`Error::Database`], also when others refer to it.
    pub fn forget_row(&self, path: &str) -> Result<()> {
        self.db().write("invalidating path in database", |db| {
            db.prepare_cached("delete from ValidPaths where path = ?1")?.execute([path])?;
            Ok(())
        })
    }

    /// What is known of `path`, or `None` when it is not valid.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::CorruptRow`].
    pub fn query_path_info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        let find = || Ok(self.find_path_info(path)?.map(Arc::new));
        Ok(self.recall(|answers| &mut answers.infos, path, find)?.map(Arc::unwrap_or_clone))
    }

    fn find_path_info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        let printed = self.print(path);
        self.db().read("querying path info", |db| {
            // One statement sees one state: no row of references is missing because of a deletion in between.
            let mut statement = db.prepare_cached(
                "select v.hash, v.registrationTime, v.deriver, v.narSize, t.path from ValidPaths v \
                 left join Refs r on r.referrer = v.id left join ValidPaths t on t.id = r.reference where v.path = ?1",
            )?;
            let mut rows = statement.query([&printed])?;
            let mut info = None;
            while let Some(row) = rows.next()? {
                let info = match &mut info {
                    Some(info) => info,
                    none => none.insert(self.info_of_row(path, &printed, row)?),
                };
                if let Some(reference) = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)? {
                    info.references.insert(self.parse_row(reference)?);
                }
            }
            Ok(info)
        })
    }

    /// Like [`Store::query_path_info`], but refuses a path that is not valid.
    ///
    /// # Errors
    /// [`Error::NotValid`], and those of [`Store::query_path_info`].
    pub fn path_info(&self, path: &StorePath) -> Result<PathInfo> {
        self.query_path_info(path)?.ok_or_else(|| self.not_valid(path))
    }

    fn info_of_row(&self, path: &StorePath, printed: &str, row: &Row<'_>) -> Result<PathInfo> {
        let corrupt = |reason: String| Error::CorruptRow { path: printed.to_owned(), reason };
        let hash = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let nar_hash = Hash::parse_prefixed(hash).map_err(|error| corrupt(error.to_string()))?;
        let deriver = match row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            None | Some("") => None,
            Some(deriver) => Some(self.parse_row(deriver)?),
        };
        let number = |column, what: &str| {
            let value: Option<i64> = row.get(column)?;
            u64::try_from(value.unwrap_or(0)).map_err(|_| corrupt(format!("negative {what}")))
        };
        Ok(PathInfo {
            path: path.clone(),
            nar_hash,
            references: BTreeSet::new(),
            deriver,
            registration_time: number(1, "registration time")?,
            nar_size: number(3, "size")?,
        })
    }

    /// Valid paths to which the valid path `path` refers, possibly itself.
    ///
    /// # Errors
    /// [`Error::NotValid`], [`Error::Database`].
    pub fn references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        Ok(self.path_info(path)?.references)
    }

    /// Valid paths that refer to `path`, possibly itself; none when it is not valid.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let sql = "select v.path from Refs r join ValidPaths v on r.referrer = v.id \
                   where r.reference = (select id from ValidPaths where path = ?1)";
        let find = || Ok(Arc::new(self.paths("querying referrers", sql, &self.print(path))?));
        self.recall(|answers| &mut answers.referrers, path, find).map(Arc::unwrap_or_clone)
    }

    /// The derivation by which the valid path `path` was built, if known.
    ///
    /// # Errors
    /// [`Error::NotValid`], [`Error::Database`].
    pub fn deriver(&self, path: &StorePath) -> Result<Option<StorePath>> {
        Ok(self.path_info(path)?.deriver)
    }

    /// Valid derivations that have `path` among their outputs.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let sql = "select v.path from DerivationOutputs d join ValidPaths v on d.drv = v.id where d.path = ?1";
        self.paths("querying valid derivers", sql, &self.print(path))
    }

    /// The outputs of the valid derivation `drv`, by name. None when it is valid but no derivation.
    ///
    /// # Errors
    /// [`Error::NotValid`], [`Error::Database`].
    pub fn derivation_outputs(&self, drv: &StorePath) -> Result<BTreeMap<String, StorePath>> {
        let find = || Ok(Arc::new(self.find_derivation_outputs(drv)?));
        self.recall(|answers| &mut answers.outputs, drv, find).map(Arc::unwrap_or_clone)
    }

    fn find_derivation_outputs(&self, drv: &StorePath) -> Result<Outputs> {
        let printed = self.print(drv);
        self.db().snapshot("querying derivation outputs", |db| {
            let id = row_id(db, &printed)?.ok_or_else(|| self.not_valid(drv))?;
            let mut statement = db.prepare_cached("select id, path from DerivationOutputs where drv = ?1")?;
            let mut rows = statement.query([id])?;
            let mut outputs = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let path = self.parse_row(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?;
                outputs.insert(row.get(0)?, path);
            }
            Ok(outputs)
        })
    }

    /// The valid path with this hash part.
    ///
    /// # Errors
    /// [`Error::HashPart`] when it has not 32 characters, [`Error::Database`].
    pub fn path_from_hash_part(&self, hash_part: &str) -> Result<Option<StorePath>> {
        if hash_part.len() != fruix_drv::store_path::HASH_PART_LEN {
            return Err(Error::HashPart);
        }
        let prefix = format!("{}/{hash_part}", self.store_dir());
        self.db().read("finding path with hash part", |db| {
            let mut statement = db.prepare_cached("select path from ValidPaths where path >= ?1 limit 1")?;
            let found: Option<String> = statement.query_row([&prefix], |row| row.get(0)).optional()?;
            match found {
                Some(found) if found.starts_with(&prefix) => Ok(Some(self.parse_row(&found)?)),
                _ => Ok(None),
            }
        })
    }

    /// Asks one question of each kind, about a path that nobody has: what is prepared at the first of a kind, such as its statement, is ready for the
    /// first client.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn warm_up(&self) -> Result<()> {
        let Ok(nothing) = StorePath::from_base_name(format!("{}-nothing", "0".repeat(fruix_drv::store_path::HASH_PART_LEN))) else {
            return Ok(());
        };
        self.is_valid(&nothing)?;
        self.query_path_info(&nothing)?;
        self.referrers(&nothing)?;
        self.valid_derivers(&nothing)?;
        self.path_from_hash_part(nothing.hash_part())?;
        match self.derivation_outputs(&nothing) {
            Ok(_) | Err(Error::NotValid { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn paths(&self, action: &'static str, sql: &'static str, argument: &str) -> Result<BTreeSet<StorePath>> {
        self.db().read(action, |db| {
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([argument])?;
            let mut paths = BTreeSet::new();
            while let Some(row) = rows.next()? {
                paths.insert(self.parse_row(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
            }
            Ok(paths)
        })
    }
}

/// The number of the row of `path`, when it is valid.
pub(crate) fn row_id(db: &Connection, path: &str) -> Result<Option<i64>> {
    Ok(db.prepare_cached("select id from ValidPaths where path = ?1")?.query_row([path], |row| row.get(0)).optional()?)
}
