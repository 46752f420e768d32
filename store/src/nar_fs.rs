//! Archives and the file system.
