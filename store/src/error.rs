//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store operation failed. Where upstream has a sentence that clients or people know, the text is that sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something. The store is unchanged, but for garbage that the next collection removes.
    #[error("{action} `{}': {source}", path.display())]
    Io {
        /// What was being done, as `creating directory`.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The database refused something; nothing of the transaction took place.
    #[error("{action}: {source}")]
    Database {
        /// What was being done.
        action: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },

    /// The database could not be opened: the daemon cannot serve this store.
    #[error("cannot open store database `{}': {source}", path.display())]
    OpenDatabase {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },

    /// A row of the database cannot be read. `fruix gc --verify` tells more.
    #[error("corrupt entry in the store database for `{path}': {reason}")]
    CorruptRow {
        /// The path whose row it is.
        path: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The file `schema` holds no number: the database directory is damaged or not one of ours.
    #[error("`{}' is corrupt", path.display())]
    CorruptSchema {
        /// The file.
        path: PathBuf,
    },

    /// The database was made by a later program.
    #[error("current store schema is version {found}, but I only support {supported}")]
    SchemaTooNew {
        /// What the file `schema` says.
        found: i64,
        /// What this program knows.
        supported: i64,
    },

    /// The database was made by a program older than Guix.
    #[error("Your store database uses an implausibly old schema, version {found}.")]
    SchemaTooOld {
        /// What the file `schema` says.
        found: i64,
    },

    /// The store directory has items which the database has never heard of: most likely the state directory is the wrong one.
    /// Nothing was changed.
    #[error(
        "store directory `{}' has {items} items, but the database in `{}' knows none of them; going on would treat them all as garbage. \
         Check the state directory (GUIX_STATE_DIRECTORY), or restore the database from a backup; \
         only if these items are to be given up, start once with --adopt-empty-database",
        store.display(), database.display()
    )]
    UnknownItems {
        /// The store directory.
        store: PathBuf,
        /// The database directory.
        database: PathBuf,
        /// How many items were seen; counting stops early.
        items: usize,
    },

    /// The store directory, or a parent of it, is a symbolic link, so that its name in hashes is not its true name.
    #[error("the path `{}' is a symlink; this is not allowed for the store and its parent directories", path.display())]
    SymlinkedStore {
        /// The link.
        path: PathBuf,
    },

    /// The store directory is mounted read-only and nothing can be done about it.
    #[error("'{}' is read-only; make sure to mount it read-write for proper guix-daemon operation", path.display())]
    ReadOnlyStore {
        /// The store directory.
        path: PathBuf,
    },

    /// The path is not valid, that is, not registered.
    #[error("path `{path}' is not valid")]
    NotValid {
        /// The path, printed.
        path: String,
    },

    /// A name that is not directly in the store directory was given where a store path must be.
    #[error("path `{path}' is not in the store")]
    NotInStore {
        /// What was given.
        path: String,
    },

    /// A hash part has not 32 characters.
    #[error("invalid hash part")]
    HashPart,

    /// A path cannot be removed because others refer to it.
    #[error("cannot delete path `{path}' because it is in use by {referrers}")]
    InUse {
        /// The path, printed.
        path: String,
        /// Its referrers, each quoted, joined by commas.
        referrers: String,
    },

    /// A path that was to be deleted can be reached from a root.
    #[error("cannot delete path `{path}' since it is still alive")]
    StillAlive {
        /// The path, printed.
        path: String,
    },

    /// A missing or damaged path cannot be made anew, for lack of substitutes.
    #[error("cannot repair path `{path}'")]
    CannotRepair {
        /// The path, printed.
        path: String,
    },

    /// What was to make a missing or damaged path anew ended early.
    #[error("{message}")]
    Repair {
        /// The path, printed.
        path: String,
        /// Why.
        message: String,
    },

    /// Outputs refer to each other in a circle. None of them was registered.
    #[error("cycle detected in the references of `{path}'")]
    Cycle {
        /// One path of the circle, printed.
        path: String,
    },

    /// A derivation names an output path that does not follow from its contents. It was not registered.
    #[error("derivation `{drv}' has incorrect output `{found}', should be `{expected}'")]
    IncorrectOutput {
        /// The derivation, printed.
        drv: String,
        /// What it says.
        found: String,
        /// What its contents make.
        expected: String,
    },

    /// A fixed-output derivation has no output `out`.
    #[error("derivation `{drv}' does not have an output named `out'")]
    NoOut {
        /// The derivation, printed.
        drv: String,
    },

    /// A derivation in the store cannot be read as one.
    #[error("error parsing derivation `{drv}': {reason}")]
    BadDerivation {
        /// The derivation, printed.
        drv: String,
        /// What is wrong, and where.
        reason: String,
    },

    /// A derivation is longer than this program reads.
    #[error("derivation `{drv}' has {size} bytes, more than the {limit} that are allowed")]
    LargeDerivation {
        /// The derivation, printed.
        drv: String,
        /// Its length in bytes.
        size: u64,
        /// The longest that is read.
        limit: u64,
    },

    /// A name, hash or method from which a store path was to be made is not one.
    #[error("{reason}")]
    BadName {
        /// The sentence for the user.
        reason: String,
    },

    /// An archive was given where a file is needed, and it holds a directory or a symbolic link.
    #[error("regular file expected")]
    RegularFileExpected,

    /// An archive cannot be read; nothing was added.
    #[error("{source}")]
    Nar {
        /// What is wrong with it.
        #[source]
        source: fruix_protocol::nar::Error,
    },

    /// What came from another store is not what it says; nothing was added.
    #[error("the archive of path `{path}' has hash `{found}', and `{expected}' was promised (or its size differs); fetch it again")]
    OtherArchive {
        /// The path, printed.
        path: String,
        /// The hash that was promised.
        expected: String,
        /// That of what came.
        found: String,
    },

    /// A socket, FIFO or device is where only files, directories and symbolic links may be.
    #[error("file `{}' has an unsupported type", path.display())]
    UnsupportedType {
        /// The file.
        path: PathBuf,
    },

    /// Directories are nested deeper than an archive may have them.
    #[error("directory nesting of `{}' exceeds maximum depth of {}", path.display(), fruix_protocol::limits::NAR_DEPTH)]
    TooDeep {
        /// The first file too deep.
        path: PathBuf,
    },

    /// A file in a build's output belongs to someone else than the build user: it is a hard link to a foreign file. The output is refused.
    #[error("invalid ownership on file `{}'", path.display())]
    InvalidOwnership {
        /// The file.
        path: PathBuf,
    },

    /// A build's output can be changed by others, or is shared with something outside. The output is refused.
    #[error("suspicious ownership or permission on `{}'; rejecting this build output", path.display())]
    Suspicious {
        /// The file.
        path: PathBuf,
    },

    /// A file changed while it was looked at. Nothing was done with it.
    #[error("file `{}' changed while it was being processed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },

    /// Two candidates of a reference scan have the same hash part.
    #[error("bad reference `{path}'")]
    BadReference {
        /// One of them, printed.
        path: String,
    },

    /// The group of build users does not exist, or has number 0.
    #[error("the build users' group may not have the number 0")]
    BuildGroup,

    /// A user's name that cannot be a directory's.
    #[error("invalid user name `{name}'")]
    UserName {
        /// What was given.
        name: String,
    },

    /// A root is to be made inside the store, where the collector does not look.
    #[error("creating a garbage collector root ({}) in the store is forbidden", path.display())]
    RootInStore {
        /// The root.
        path: PathBuf,
    },

    /// A lock is asked for which the same owner already holds.
    #[error("deadlock: trying to re-acquire self-held lock")]
    SelfHeldLock,

    /// A program that was asked for something failed.
    #[error("program `{}' {reason}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// How it failed.
        reason: String,
    },

    /// The caller asked to stop.
    #[error("interrupted by the user")]
    Interrupted,
}

impl Error {
    /// An [`Error::Io`] builder for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { action, path, source: source.into() }
    }

    /// An [`Error::Database`] builder for `map_err`.
    pub(crate) fn db(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
        move |source| Error::Database { action, source }
    }

    /// Whether this is the database being busy, which a new attempt cures.
    pub(crate) fn is_busy(&self) -> bool {
        let Error::Database { source, .. } = self else {
            return false;
        };
        crate::db::is_busy(source)
    }

    /// Whether this is for lack of space on the disk, or may well be.
    pub(crate) fn is_full(&self) -> bool {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        match self {
            Error::Io { source, .. } => matches!(source.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EDQUOT)),
            Error::Database { source, .. } | Error::OpenDatabase { source, .. } => {
                matches!(source.sqlite_error_code(), Some(DiskFull | SystemIoFailure))
            }
            _ => false,
        }
    }

    /// The system's error number, when the system was the one to refuse.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Inside a closure given to [`crate::db::Db`], which names the action afterwards.
impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Error {
        Error::Database { action: "querying the store database", source }
    }
}

impl From<fruix_protocol::nar::Error> for Error {
    fn from(source: fruix_protocol::nar::Error) -> Error {
        Error::Nar { source }
    }
}
