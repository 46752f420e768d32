//! UFS2, the file system of FreeBSD: a [writer](write()), a [reader](Ufs) and a [checker](check), of FreeBSD 15's format with its check hashes and
//! directory depths.

mod checker;
mod format;
mod geometry;
mod maps;
mod reader;
mod writer;

pub use checker::{Fault, Finding, Report, check, compare};
pub use format::{CylinderGroup, Inode, MAX_LINKS, ROOT, Recovery, SECTOR, SUPERBLOCK_OFFSET, SUPERBLOCK_ROOM, Superblock};
pub use geometry::Geometry;
pub use reader::{DirectoryEntry, Ufs};
pub use writer::{Options, Summary, needed, write};
