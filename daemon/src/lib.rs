//! See docs/architecture.md.
pub mod builtins;
