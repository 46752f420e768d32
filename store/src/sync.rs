//! Getting data onto the disk.
