//! Looking for damage: rows without files, and files that are not what they were.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use fruix_drv::StorePath;

use crate::fsutil::{self, exists_at};
use crate::gc::{Report, Verbosity};
use crate::locks::{Kind, Wait};
use crate::scan::hash_at;
use crate::{Error, Result, Store};

/// What to do with paths found missing or damaged.
pub type Repair<'a> = dyn FnMut(&StorePath) -> Result<()> + 'a;

/// A [`Repair`] for a store without substitutes, whose damaged paths cannot be made anew.
///
/// # Errors
/// Always: [`Error::CannotRepair`].
pub fn cannot_repair(store: &Store) -> impl FnMut(&StorePath) -> Result<()> {
    let store = store.clone();
    move |path| Err(Error::CannotRepair { path: store.print(path) })
}

/// How a valid path was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It is there.
    Present,
    /// It was not there, and is not valid any more.
    Removed,
    /// It is not there, but valid paths refer to it.
    Missing,
}

/// A verification of which paths are there.
struct Existence<'a, 'r> {
    store: &'a Store,
    present: HashSet<Vec<u8>>,
    done: HashMap<StorePath, Found>,
    errors: bool,
    report: &'a mut Report<'r>,
}

impl Store {
    /// Verifies that all valid paths are there, and with `check_contents` that they have the hashes that the database says. Rows of paths
    /// that are gone, with nothing valid referring to them, are removed; missing hashes and sizes are filled in. With `repair`, that is
    /// called for what is missing or damaged otherwise. Returns whether errors remain. `report` gets guix-daemon's messages.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once `cancel` is set; [`Error::Io`] and [`Error::Database`] when nothing can be found out.
    pub fn verify_store(
        &self,
        check_contents: bool,
        mut repair: Option<&mut Repair<'_>>,
        report: &mut Report<'_>,
        cancel: &AtomicBool,
    ) -> Result<bool> {
        report(Verbosity::Error, "reading the store...");
        let gc_lock = self.lock_gc(Kind::Exclusive, Wait::Until(cancel), report)?;
        report(Verbosity::Info, "checking path existence...");
        for row in self.foreign_rows()? {
            report(Verbosity::Error, &format!("path `{row}' is not in the store"));
            self.forget_row(&row)?;
        }
        // In this order: what is valid first cannot go while we have the lock, but more may come.
        let valid = self.all_valid()?;
        let names = fsutil::names(self.dir()).map_err(Error::io("reading directory", self.store_dir().as_str()))?;
        let present = names.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut existence = Existence { store: self, present, done: HashMap::new(), errors: false, report };
        for path in &valid {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            existence.check(path, &mut repair)?;
        }
        let mut errors = existence.errors;
        let there: BTreeSet<StorePath> =
            existence.done.into_iter().filter_map(|(path, found)| (found == Found::Present).then_some(path)).collect();
        // Hashes may take hours, which nobody need wait for.
        drop(gc_lock);
        if check_contents {
            report(Verbosity::Info, "checking hashes...");
            for path in &there {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                match self.check_hash(path, &mut repair, report) {
                    Ok(good) => errors |= !good,
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(error) => {
                        // It may have been collected meanwhile.
                        let kind = if self.is_valid(path)? { "error" } else { "warning" };
                        report(Verbosity::Error, &format!("{kind}: {error}"));
                        errors = true;
                    }
                }
            }
        }
        Ok(errors)
    }

    /// Whether a path has the hash that the database says.
    fn check_hash(&self, path: &StorePath, repair: &mut Option<&mut Repair<'_>>, report: &mut Report<'_>) -> Result<bool> {
        let mut info = self.path_info(path)?;
        let shown = self.print(path);
        report(Verbosity::Talkative, &format!("checking contents of `{shown}'"));
        let (hash, size) = hash_at(&self.place(path), info.nar_hash.algo())?;
        let unknown = info.nar_hash.as_bytes().iter().all(|byte| *byte == 0);
        if !unknown && info.nar_hash != hash {
            let (expected, got) = (info.nar_hash.base16(), hash.base16());
            report(Verbosity::Error, &format!("path `{shown}' was modified! expected hash `{expected}', got `{got}'"));
            return match repair {
                Some(repair) => repair(path).map(|()| true),
                None => Ok(false),
            };
        }
        if unknown {
            report(Verbosity::Error, &format!("fixing missing hash on `{shown}'"));
        }
        if info.nar_size == 0 {
            report(Verbosity::Error, &format!("updating size field on `{shown}' to {size}"));
        }
        if unknown || info.nar_size == 0 {
            info.nar_hash = hash;
            info.nar_size = size;
            self.update_path_info(&info)?;
        }
        Ok(true)
    }
}

impl Existence<'_, '_> {
    /// Checks a path after those that refer to it, of which a long chain must not be a deep recursion.
    fn check(&mut self, path: &StorePath, repair: &mut Option<&mut Repair<'_>>) -> Result<()> {
        let mut stack: Vec<(StorePath, Option<BTreeSet<StorePath>>)> = vec![(path.clone(), None)];
        let mut entered = HashSet::new();
        while let Some((path, referrers)) = stack.pop() {
            if self.done.contains_key(&path) {
                continue;
            }
            let Some(referrers) = referrers else {
                // By the listing; by the name, if that was made before the path.
                let name = path.base_name();
                if self.present.contains(name.as_bytes())
                    || exists_at(self.store.dir(), name.as_ref()).map_err(Error::io("getting status of", self.store.real_path(&path)))?
                {
                    self.done.insert(path, Found::Present);
                    continue;
                }
                if !entered.insert(path.clone()) {
                    continue;
                }
                let mut referrers = self.store.referrers(&path)?;
                referrers.remove(&path);
                let first: Vec<StorePath> = referrers.iter().filter(|path| !entered.contains(*path)).cloned().collect();
                stack.push((path, Some(referrers)));
                stack.extend(first.into_iter().map(|path| (path, None)));
                continue;
            };
            let shown = self.store.print(&path);
            if referrers.iter().all(|path| self.done.get(path) == Some(&Found::Removed)) {
                (self.report)(Verbosity::Error, &format!("path `{shown}' disappeared, removing from database..."));
                self.store.invalidate(&BTreeSet::from([path.clone()]))?;
                self.done.insert(path, Found::Removed);
                continue;
            }
            (self.report)(Verbosity::Error, &format!("path `{shown}' disappeared, but it still has valid referrers!"));
            self.done.insert(path.clone(), Found::Missing);
            match repair {
                Some(repair) => {
                    if let Err(error) = repair(&path) {
                        (self.report)(Verbosity::Error, &format!("warning: {error}"));
                        self.errors = true;
                    }
                }
                None => self.errors = true,
            }
        }
        Ok(())
    }
}
