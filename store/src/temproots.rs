//! Temporary roots.
