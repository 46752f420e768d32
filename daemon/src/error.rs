//! What can go wrong in the daemon.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the daemon. Its text is what a client sees, in upstream's words where tools or users depend on them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the environment makes no sense: the daemon does not start.
    #[error("{0}")]
    Usage(String),
    /// The machine refused something: the operation fails, the daemon goes on.
    #[error("{doing} `{}': {source}", path.display())]
    Io {
        /// What was being done, as in "creating log file".
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The store refused or failed: the operation fails, the store is as before.
    #[error(transparent)]
    Store(#[from] fruix_store::Error),
    /// The sandbox could not be made: the build fails, and nothing of it runs.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::Error),
    /// The build users could not be had.
    #[error(transparent)]
    Users(#[from] crate::users::Error),
    /// A build or a request failed for the reason given; `status` goes to the client beside it.
    #[error("{message}")]
    Request {
        /// What the client reads.
        message: String,
        /// Upstream's status: 1, 100 for a permanent failure, 101 for a timeout.
        status: u64,
    },
    /// What was asked for was tried and could not be built; why has been told already.
    #[error("{message}")]
    NotBuilt {
        /// What the client reads.
        message: String,
        /// As of [`Error::Request`].
        status: u64,
    },
}

impl Error {
    /// An [`Error::Io`].
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { doing, path: path.to_owned(), source }
    }

    /// A refused request, with upstream's ordinary status.
    pub fn request(message: impl Into<String>) -> Error {
        Error::Request { message: message.into(), status: 1 }
    }

    /// The status a client is told.
    #[must_use]
    pub fn status(&self) -> u64 {
        match self {
            Error::Request { status, .. } | Error::NotBuilt { status, .. } => *status,
            _ => 1,
        }
    }
}
