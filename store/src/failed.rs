//! Outputs whose build has failed, remembered when the daemon is told to (`--cache-failures`).

use std::collections::BTreeSet;

use fruix_drv::StorePath;

use crate::register::now;
use crate::{Result, Store};

impl Store {
    /// Whether building `path` has failed before.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn has_failed(&self, path: &StorePath) -> Result<bool> {
        let path = self.print(path);
        self.db().read("querying failed path", |db| Ok(db.prepare_cached("select 1 from FailedPaths where path = ?1")?.exists([&path])?))
    }

    /// Remembers that building `paths` has failed.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn register_failed(&self, paths: &BTreeSet<StorePath>) -> Result<()> {
        self.db().write("registering failed path", |db| {
            let mut statement = db.prepare_cached("insert or ignore into FailedPaths (path, time) values (?1, ?2)")?;
            for path in paths {
                statement.execute((self.print(path), now()))?;
            }
            Ok(())
        })
    }

    /// All paths whose build has failed.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn failed_paths(&self) -> Result<BTreeSet<StorePath>> {
        self.db().read("querying failed paths", |db| {
            let mut statement = db.prepare_cached("select path from FailedPaths")?;
            let mut rows = statement.query([])?;
            let mut paths = BTreeSet::new();
            while let Some(row) = rows.next()? {
                paths.insert(self.parse_row(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
            }
            Ok(paths)
        })
    }

    /// Forgets that building `paths` has failed, and of derivations among them that building their outputs has; `None` forgets
    /// every failure.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn clear_failed(&self, paths: Option<&BTreeSet<StorePath>>) -> Result<()> {
        self.db().write("clearing failed paths", |db| {
            let Some(paths) = paths else {
                db.execute("delete from FailedPaths", [])?;
                return Ok(());
            };
            let mut statement = db.prepare_cached(
                "delete from FailedPaths where path = ?1 or path in \
                 (select d.path from DerivationOutputs d join ValidPaths v on d.drv = v.id where v.path = ?1)",
            )?;
            for path in paths {
                statement.execute([self.print(path)])?;
            }
            Ok(())
        })
    }
}
