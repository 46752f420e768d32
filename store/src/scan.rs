//! Scanning for references.
