//! How two programs talk about a store: limits, the archive format, wire primitives, the table of operations, and the
//! server's and the client's half of a connection.

pub mod limits;
pub mod nar;
