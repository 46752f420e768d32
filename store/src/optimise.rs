//! Deduplicating one item, or the whole store: see [`crate::links`].

use std::sync::atomic::AtomicBool;

use fruix_drv::{Hash, StorePath};

use crate::fsutil::Place;
use crate::gc::{Report, Verbosity, show_bytes};
use crate::links::{Deduplicator, OptimiseStats};
use crate::locks::NEVER;
use crate::{Error, Result, Store};

/// Messages that no client gets.
fn trace(level: Verbosity, text: &str) {
    if level == Verbosity::Error {
        tracing::warn!("{text}");
    } else {
        tracing::debug!("{text}");
    }
}

impl Store {
    /// Deduplicates the files of something canonical that nobody changes, in the staging directory or in the store, if the store's
    /// configuration wants that. Directories keep their mode and time. What is deduplicated before it is synced is synced with it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Changed`]. That the file system has no room for links is no error.
    pub fn deduplicate(&self, place: &Place<'_>) -> Result<OptimiseStats> {
        self.deduplicate_hashed(place, None)
    }

    /// [`Store::deduplicate`] for something whose archive's SHA-256 is known: a large file need not be hashed again.
    ///
    /// # Errors
    /// As [`Store::deduplicate`].
    pub fn deduplicate_hashed(&self, place: &Place<'_>, hash: Option<Hash>) -> Result<OptimiseStats> {
        if !self.config().deduplicate {
            return Ok(OptimiseStats::default());
        }
        let mut report = trace;
        let mut deduplicator = Deduplicator::new(self, &mut report)?;
        deduplicator.tree(place, hash, &NEVER)?;
        Ok(deduplicator.stats)
    }

    /// [`Store::deduplicate`] for `path` in the store, which must be a root or locked by the caller.
    ///
    /// # Errors
    /// As [`Store::deduplicate`].
    pub fn optimise_path(&self, path: &StorePath) -> Result<OptimiseStats> {
        self.deduplicate(&self.place(path))
    }

    /// Deduplicates all valid paths, whatever the configuration says. A path that cannot be is left, with a message.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once `cancel` is set; [`Error::Io`] and [`Error::Database`] where nothing can be done at all.
    pub fn optimise_store(&self, report: &mut Report<'_>, cancel: &AtomicBool) -> Result<OptimiseStats> {
        let paths = self.all_valid()?;
        let stats = {
            let mut deduplicator = Deduplicator::new(self, report)?;
            deduplicator.load()?;
            for path in &paths {
                // One session for each, or everything would be alive at the end.
                let roots = self.temp_roots();
                roots.add_or_cancel(path, cancel)?;
                if !self.is_valid(path)? {
                    continue;
                }
                match deduplicator.tree(&self.place(path), None, cancel) {
                    Ok(()) => {}
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(error) => deduplicator.say(Verbosity::Error, &format!("error: {error}")),
                }
            }
            deduplicator.stats
        };
        let bytes = i64::try_from(stats.bytes_freed).unwrap_or(i64::MAX);
        report(Verbosity::Error, &format!("{} freed by hard-linking {} files", show_bytes(bytes), stats.files_linked));
        Ok(stats)
    }
}
