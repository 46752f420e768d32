//! What can go wrong, and what follows.

use std::io;
use std::path::{Path, PathBuf};

/// An [`Error`], unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was being done, to what, and the system's word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of a root could not be made or looked at: the jail is not made, and what was made is undone.
    #[error("{doing} `{}': {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Something could not be mounted: the jail is not made, and what was made is undone.
    #[error("mounting `{}': {source}{}", path.display(), words(message))]
    Mount {
        /// Where.
        path: PathBuf,
        /// The kernel's own words, where it gave some.
        message: String,
        /// The system's word.
        source: io::Error,
    },
    /// Something is still mounted. It stays until the daemon starts anew or somebody unmounts it; its directories are not removed.
    #[error("unmounting `{}': {source}", path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A jail could not be made, found or removed.
    #[error("{doing} jail `{name}': {source}{}", words(message))]
    Jail {
        /// What was being done.
        doing: &'static str,
        /// The jail.
        name: String,
        /// The kernel's own words, where it gave some.
        message: String,
        /// The system's word.
        source: io::Error,
    },
    /// Device rules could not be read or made: no jail can be made.
    #[error("{doing} devfs ruleset {ruleset}: {source}")]
    Devices {
        /// What was being done.
        doing: &'static str,
        /// Which one.
        ruleset: u16,
        /// The system's word.
        source: io::Error,
    },
    /// A limit could not be set or taken away. Without it the jail is not made.
    #[error("{doing} limit `{rule}': {source}")]
    Limit {
        /// What was being done.
        doing: &'static str,
        /// The rule or filter.
        rule: String,
        /// The system's word.
        source: io::Error,
    },
    /// An image could not be made or read: what was written of it is none.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// The source of a mount is not what it was a moment before: somebody changes it, and the jail is not made.
    #[error("`{}' was replaced while it was mounted", path.display())]
    Replaced {
        /// The source.
        path: PathBuf,
    },
}

fn words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

impl Error {
    /// The system's number for the error, if it has one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::File { source, .. }
            | Error::Mount { source, .. }
            | Error::Unmount { source, .. }
            | Error::Jail { source, .. }
            | Error::Devices { source, .. }
            | Error::Limit { source, .. } => source.raw_os_error(),
            Error::Image(_) | Error::Replaced { .. } => None,
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { doing, path: path.to_owned(), source }
    }
}
