//! What can go wrong with an image, and what follows.

use std::io;

use crate::tree::TreeError;

/// An image could not be written, read or checked. What was written of it until then is no image: remove it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The tree, or a file of this machine that it names.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The image's file could not be written or read.
    #[error("{doing} at byte {offset}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where in the image.
        offset: u64,
        /// The system's word.
        source: io::Error,
    },
    /// What is to go into the image does not fit: give it `needed` bytes at least, or less content.
    #[error("{what} needs {needed} bytes or more and has {available}: make it larger")]
    Capacity {
        /// Which part of the image.
        what: String,
        /// How many bytes it needs, as far as is known.
        needed: u64,
        /// How many it has.
        available: u64,
    },
    /// An option, a label or a plan that cannot be: the words say which and why.
    #[error("{0}")]
    Option(String),
    /// An entry of the tree cannot be in this kind of file system.
    #[error("`{path}': {why}")]
    Entry {
        /// The entry.
        path: String,
        /// What is in the way.
        why: String,
    },
    /// What was read is no such file system, or one so damaged that it cannot be read.
    #[error("{what}: {why}")]
    Damaged {
        /// Which structure.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An [`ImageError`], unless said otherwise.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

impl ImageError {
    pub(crate) fn io(doing: &'static str, offset: u64) -> impl FnOnce(io::Error) -> ImageError {
        move |source| ImageError::Io { doing, offset, source }
    }

    pub(crate) fn damaged(what: impl Into<String>, why: impl Into<String>) -> ImageError {
        ImageError::Damaged { what: what.into(), why: why.into() }
    }
}
