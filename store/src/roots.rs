//! Garbage-collector roots.
