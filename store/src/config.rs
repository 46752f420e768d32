//! What a store is opened with.

use std::path::PathBuf;

use fruix_drv::StoreDir;

/// Where a store is and how it behaves. Start from [`Config::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store directory; a real directory of this name must exist or be creatable.
    pub store_dir: StoreDir,
    /// `STATE`: gcroots, profiles, temproots, `gc.lock`, … (`GUIX_STATE_DIRECTORY`).
    pub state_dir: PathBuf,
    /// Where build logs go (`GUIX_LOG_DIRECTORY`).
    pub log_dir: PathBuf,
    /// The database's directory (`GUIX_DATABASE_DIRECTORY`), by default `STATE/db`.
    pub db_dir: PathBuf,
    /// The group of the build users. When root opens the store with it, the store directory becomes 1775 root:GID.
    pub build_users_gid: Option<u32>,
    /// Whether equal files become hard links of one another when they are added.
    pub deduplicate: bool,
    /// Whether the collector keeps the outputs of live derivations.
    pub gc_keep_outputs: bool,
    /// Whether the collector keeps the derivers of live outputs.
    pub gc_keep_derivations: bool,
    /// Bytes to hold in `DB/reserved`, so that a collection can begin on a full disk; 0 gives them back.
    pub reserve_space: u64,
    /// Whether files reach the disk at all before anybody asks for it. Only throw-away stores want `false`.
    pub durable: bool,
    /// Whether additions are on the disk before they are acknowledged. Else they are a second later; what a power cut loses of them is found,
    /// and no longer called valid, when the store is opened again. The outputs of builds always are on the disk before they are registered.
    pub sync_additions: bool,
    /// Whether a store directory with items in it may be given a new, empty database. Those items then count as garbage.
    pub adopt_items: bool,
    /// Whether the store directory or one of its parents may be a symbolic link (`NIX_IGNORE_SYMLINK_STORE=1`).
    pub allow_symlinked_store: bool,
    /// The program asked for paths that running processes use (`PROGRAM gc --list-busy`); `None` asks nobody.
    pub guix_program: Option<PathBuf>,
}

impl Config {
    /// Upstream's defaults for a store directory and a state directory. The log directory is `STATE/log`.
    pub fn new(store_dir: StoreDir, state_dir: impl Into<PathBuf>) -> Config {
        let state_dir = state_dir.into();
        Config {
            store_dir,
            log_dir: state_dir.join("log"),
            db_dir: state_dir.join("db"),
            state_dir,
            build_users_gid: None,
            deduplicate: true,
            gc_keep_outputs: false,
            gc_keep_derivations: true,
            reserve_space: 8 * 1024 * 1024,
            durable: true,
            sync_additions: false,
            adopt_items: false,
            allow_symlinked_store: false,
            guix_program: None,
        }
    }
}
