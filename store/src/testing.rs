//! Stores for tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fruix_drv::StoreDir;
use fruix_protocol::nar::Writer;

use crate::{Config, Store};

/// A store in a directory that goes with it.
pub(crate) struct TestStore {
    pub(crate) store: Store,
    pub(crate) root: PathBuf,
    _dir: tempfile::TempDir,
}

/// Where a test store is, without deduplication and syncing.
pub(crate) fn config(root: &Path) -> Config {
    let store_dir = StoreDir::new(root.join("store").to_str().unwrap());
    Config { deduplicate: false, durable: false, reserve_space: 4096, ..Config::new(store_dir, root.join("state")) }
}

/// An empty directory, by its true name.
pub(crate) fn temp_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    (dir, root)
}

/// An empty store.
pub(crate) fn test_store() -> TestStore {
    let (dir, root) = temp_dir();
    let store = Store::open(config(&root)).unwrap();
    TestStore { store, root, _dir: dir }
}

impl TestStore {
    /// Adds a text without references.
    pub(crate) fn text(&self, name: &str, contents: &str) -> fruix_drv::StorePath {
        let roots = self.store.temp_roots();
        self.store.add_text(&roots, name, contents.as_bytes(), &BTreeSet::new()).unwrap()
    }
}

/// The archive of a file.
pub(crate) fn nar_of(contents: &[u8], executable: bool) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.file(executable, contents.len() as u64).unwrap();
    writer.data(contents).unwrap();
    writer.finish().unwrap()
}
