//! Proof against upstream.
//!
//! `golden/` holds transcripts of what real clients and a real daemon said to each other; `tests/transcripts.rs` decodes
//! them. The program `record` makes them; `golden/record.sh` says how. [`random`] is the random differential tester.

pub mod random;
pub mod recorder;
