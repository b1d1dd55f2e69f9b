//! The engine over HTTP: Docker's API for the tools that people have, and a REST API of its own.
//!
//! | module | owns |
//! |---|---|
//! | [`listen`] | the sockets: made, with mode and group, or taken over from systemd |
//! | [`server`] | connections and their limit |
//! | [`native`] | the REST API `/v1` |
//!
//! Docker's API, and what all requests share, is the crate `zmachine-docker`.
//!
//! # Invariants
//! The server is parent of nothing that matters: monitors have sessions of their own, and all state is in files, so it may be
//! killed and started at any time. What it keeps in memory (clients that attached before a start, execs that were made and
//! not started) lasts as long as the connections or seconds.
//!
//! One thread runs all connections; calls of the engine, which block, go to threads of a pool. A stream to a client holds at
//! most a few chunks: whoever does not read stops whoever writes for it, and nobody else.

#![recursion_limit = "256"]

pub mod listen;
pub mod native;
pub mod server;

pub use zmachine_docker::{app, docker, files, guard, http, hub, listing, place};
