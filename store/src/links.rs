//! Hard-link deduplication.
