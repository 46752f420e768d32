//! A build daemon that speaks the Guix worker protocol.
//!
//! The way of a request: [`listen`] accepts, [`server`] gives each client a session, [`session`] has one method per operation, which asks the
//! store or the [`scheduler`]. The way of a derivation: [`scheduler`] decides when, [`build`] makes directories and a plan, [`sandbox`] runs it,
//! [`outputs`] takes what came of it into the store. See `docs/architecture.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod build;
pub mod build_dir;
pub mod build_log;
mod builtin_job;
pub mod builtins;
pub mod check;
pub mod config;
pub mod error;
pub mod explain;
pub mod lanes;
pub mod listen;
pub mod options;
mod outputs;
pub mod platform;
mod replies;
pub mod requester;
pub mod roots;
mod runtime_roots;
pub mod sandbox;
pub mod scheduler;
pub mod server;
pub mod session;
pub mod share;
pub mod sys;
pub mod users;
