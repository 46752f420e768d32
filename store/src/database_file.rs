//! A database in a file of its own, for a store that is not here: that of an image.

use std::collections::BTreeMap;
use std::path::Path;

use fruix_drv::StoreDir;

use crate::db::connect_file;
use crate::{Error, PathInfo, Result};

/// Writes to the new file `path` a database in which `infos` are valid, for a store called `dir`. Equal infos give equal bytes: the rows come in the
/// order of the paths, and an info with the registration time 0 gets the time 1.
///
/// # Errors
/// [`Error::OpenDatabase`] when the file is there or cannot be made; [`Error::NotValid`] for a reference that is not among `infos`.
pub fn write_database(path: &Path, dir: &StoreDir, infos: &[PathInfo]) -> Result<()> {
    let failed = |source: rusqlite::Error| Error::OpenDatabase { path: path.to_owned(), source };
    let mut connection = connect_file(path).map_err(failed)?;
    let infos: BTreeMap<String, &PathInfo> = infos.iter().map(|info| (dir.display(&info.path).to_string(), info)).collect();
    let mut fill = || -> rusqlite::Result<Option<String>> {
        let transaction = connection.transaction()?;
        let mut ids = BTreeMap::new();
        for (path, info) in &infos {
            let size = (info.nar_size != 0).then(|| i64::try_from(info.nar_size).unwrap_or(i64::MAX));
            let time = i64::try_from(info.registration_time.max(1)).unwrap_or(i64::MAX);
            let deriver = info.deriver.as_ref().map(|deriver| dir.display(deriver).to_string());
            let id = transaction
                .prepare_cached("insert into ValidPaths (path, hash, registrationTime, deriver, narSize) values (?1, ?2, ?3, ?4, ?5)")?
                .insert((path, info.nar_hash.to_string(), time, deriver, size))?;
            ids.insert(path, id);
        }
        for (path, info) in &infos {
            for reference in &info.references {
                let reference = dir.display(reference).to_string();
                let (Some(from), Some(to)) = (ids.get(path), ids.get(&reference)) else { return Ok(Some(reference)) };
                transaction.prepare_cached("insert into Refs (referrer, reference) values (?1, ?2)")?.execute((from, to))?;
            }
        }
        transaction.commit()?;
        Ok(None)
    };
    if let Some(path) = fill().map_err(failed)? {
        return Err(Error::NotValid { path });
    }
    connection.close().map_err(|(_, error)| failed(error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fruix_drv::{Hash, StorePath};

    use super::*;

    #[test]
    fn equal_infos_give_equal_bytes_and_a_database_that_opens() {
        let directory = tempfile::tempdir().unwrap();
        let dir = StoreDir::new("/frx/store");
        let path = |letter: &str, name: &str| StorePath::from_base_name(format!("{}-{name}", letter.repeat(32))).unwrap();
        let info = |path: &StorePath, references: &[&StorePath]| PathInfo {
            path: path.clone(),
            nar_hash: Hash::sha256(path.base_name()),
            references: references.iter().copied().cloned().collect::<BTreeSet<_>>(),
            deriver: None,
            registration_time: 0,
            nar_size: 7,
        };
        let (a, b) = (path("a", "a"), path("b", "b"));
        let infos = [info(&a, &[&a, &b]), info(&b, &[])];
        for (name, infos) in [("1", [infos[0].clone(), infos[1].clone()]), ("2", [infos[1].clone(), infos[0].clone()])] {
            write_database(&directory.path().join(name), &dir, &infos).unwrap();
        }
        let read = |name| std::fs::read(directory.path().join(name)).unwrap();
        assert_eq!(read("1"), read("2"));
        assert!(crate::db::Db::has_paths(&directory.path().join("1")).unwrap());
        let missing = write_database(&directory.path().join("3"), &dir, &infos[..1]).unwrap_err();
        assert!(matches!(missing, Error::NotValid { .. }), "{missing}");
        assert!(write_database(&directory.path().join("1"), &dir, &infos).is_err());
    }
}
