//! Deduplicating a whole store.
