//! Canonical metadata.

use std::io;
use std::os::fd::AsFd;

/// Inodes seen.
#[derive(Debug, Default)]
pub struct InodesSeen;

/// Removes all extended attributes, and so access control lists, of an open file.
pub(crate) fn strip_attributes(fd: impl AsFd) -> io::Result<()> {
    let _ = fd;
    Ok(())
}
