//! A big store made by SQL: pairs of a derivation and what it made, which refer to others of their kind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use fruix_drv::{Hash, StoreDir, base32};
use rusqlite::{Connection, params};

use crate::Result;
use crate::daemon::Side;
use crate::storm::Dice;

/// A graph of `pairs`; the first of each kind reaches all others of its kind.
pub(crate) struct Graph {
    /// Whole paths: a derivation, and its output.
    pub(crate) pairs: Vec<(String, String)>,
    references: Vec<Vec<usize>>,
}

impl Graph {
    /// `label` goes into the names, so that two graphs have nothing in common.
    pub(crate) fn new(dir: &StoreDir, label: &str, pairs: usize) -> Self {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let name = |kind: &str, i: usize| {
            let digest = Hash::sha256(format!("{label} {kind} {i}"));
            format!("{}/{}-{label}-{i}{kind}", dir.as_str(), base32::encode(&digest.compress(20)))
        };
        let mut references = Vec::with_capacity(pairs);
        for i in 0..pairs {
            // A tree, so that all are reached, and six more, most of them near.
            let mut to: Vec<usize> = [2 * i + 1, 2 * i + 2].into_iter().filter(|to| *to < pairs).collect();
            for j in 0..6 {
                let reach = if j < 4 { 200.min(pairs - i - 1) } else { pairs - i - 1 };
                if reach > 0 {
                    to.push(i + 1 + dice.below(reach));
                }
            }
            to.sort_unstable();
            to.dedup();
            references.push(to);
        }
        Self { pairs: (0..pairs).map(|i| (name(".drv", i), name("", i))).collect(), references }
    }

    /// Registers all of it.
    pub(crate) fn register(&self, database: &Path) -> Result<()> {
        let mut connection = Connection::open(database)?;
        connection.pragma_update(None, "synchronous", "off")?;
        let base: i64 = connection.query_row("select coalesce(max(id), 0) + 1 from ValidPaths", [], |row| row.get(0))?;
        let transaction = connection.transaction()?;
        {
            let mut path = transaction.prepare(
                "insert into ValidPaths (id, path, hash, registrationTime, deriver, narSize) values (?, ?, ?, 1700000000, ?, 1000)",
            )?;
            let mut reference = transaction.prepare("insert or ignore into Refs (referrer, reference) values (?, ?)")?;
            let mut output = transaction.prepare("insert into DerivationOutputs (drv, id, path) values (?, 'out', ?)")?;
            let hash = format!("sha256:{}", Hash::sha256("anything").base16());
            let id = |i: usize| i64::try_from(2 * i).map(|i| base + i);
            for (i, (drv, out)) in self.pairs.iter().enumerate() {
                let drv_id = id(i)?;
                path.execute(params![drv_id, drv, hash, None::<String>])?;
                path.execute(params![drv_id + 1, out, hash, drv])?;
                output.execute(params![drv_id, out])?;
            }
            for (i, to) in self.references.iter().enumerate() {
                for to in to {
                    reference.execute([id(i)?, id(*to)?])?;
                    reference.execute([id(i)? + 1, id(*to)? + 1])?;
                }
            }
        }
        transaction.commit()?;
        // One file, nothing beside it: so it can be copied.
        connection.pragma_update(None, "wal_checkpoint", "truncate")?;
        Ok(())
    }

    /// Makes the files: a derivation is a file of 1 KB, an output a directory with a file in it.
    pub(crate) fn make_files(&self) -> Result<()> {
        let text = vec![b'x'; 1000];
        for (drv, out) in &self.pairs {
            put(Path::new(drv), &text)?;
            fs::create_dir(out)?;
            put(&Path::new(out).join("file"), &text)?;
            fs::File::open(out)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
            fs::set_permissions(out, fs::Permissions::from_mode(0o555))?;
        }
        Ok(())
    }

    /// Keeps what the first output reaches.
    pub(crate) fn root(&self, side: &Side) -> Result<()> {
        let (_, out) = self.pairs.first().ok_or("an empty graph")?;
        Ok(symlink(out, side.root.join("var/gcroots/bench"))?)
    }
}

fn put(path: &Path, text: &[u8]) -> Result<()> {
    fs::write(path, text)?;
    fs::File::open(path)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o444))?)
}
