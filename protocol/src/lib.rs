//! How two programs talk about a store. Pure formats with thin edges over `AsyncRead` and `AsyncWrite`; no file system,
//! no socket, no store directory of its own.
//!
//! | module | what |
//! |---|---|
//! | [`limits`] | every bound that a peer can run into |
//! | [`nar`] | archives: [`nar::Reader`], [`nar::Writer`] |
//! | [`wire`] | words, strings, frames; [`wire::Codec`], [`wire::Source`], [`wire::Sink`] |
//! | [`kinds`] | the kinds of fields |
//! | [`ops`] | the table of operations and all that follows from it |
//! | [`server`] | [`server::serve`]: a daemon's half of one connection, over a [`ops::Service`] |
//! | [`client`] | [`client::Client`]: the other half |
//! | [`docs`] | `docs/protocol.md`, from the table |
//! | [`sample`] | values for tests, fuzzers and sweeps |

pub mod client;
pub mod docs;
pub mod kinds;
pub mod limits;
pub mod nar;
pub mod ops;
pub mod sample;
pub mod server;
mod shared;
pub mod wire;
