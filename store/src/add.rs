//! Adding to the store.
