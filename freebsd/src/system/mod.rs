//! Systems: from a description to a closure in a store, and to the tree of a root file system.
//!
//! | module | what |
//! |---|---|
//! | [`fields`] | the table of what a system file may say |
//! | [`model`] | [`OperatingSystem`](model::OperatingSystem) and its parts, and what must hold among them |
//! | [`table`] | the table for Scheme and for readers |
//! | [`toml`](mod@toml) | system files in TOML |
//! | [`canon`] | the canonical text, in which builders get a description |
//! | [`needs`] | what a system needs of its base |
//! | [`packages`] | the packages of a base |
//! | [`base`] | a base as a tree, and cutting it |
//! | [`sets`] | FreeBSD's archives |
//! | [`source`] | FreeBSD's sources |
//! | [`native`] | FreeBSD built from its sources |
//! | [`pkg`] | FreeBSD's packages: repositories, catalogues, archives |
//! | [`accounts`] | users and groups |
//! | [`capabilities`] | the database of login.conf |
//! | [`closure`] | the directory in the store that is the system |
//! | [`rootfs`] | the root file system |
//! | [`disk`] | the partitions of its disk |
//! | [`installed`] | a system that is in a store, read back |
//! | [`change`] | what a machine must change to go from one system to another |
//! | [`generation`] | what the loader and process 1 do with one generation among others |
//! | [`machine`] | the files of a machine, looked at and changed |
//! | [`derivations`] | the derivations that make all that |
//!
//! Nothing here runs anything or knows a daemon.

pub mod accounts;
pub mod base;
pub mod canon;
pub mod capabilities;
pub mod change;
pub mod closure;
pub mod derivations;
pub mod disk;
pub mod fields;
pub mod generation;
pub mod installed;
pub mod machine;
pub mod model;
pub mod native;
pub mod needs;
pub mod packages;
pub mod pkg;
pub mod rootfs;
pub mod sets;
pub mod source;
pub mod table;
pub mod toml;
