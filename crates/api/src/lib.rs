//! The engine over HTTP: Docker's API for the tools that people have, and a REST API of its own.
//!
//! | module | owns |
//! |---|---|
//! | [`listen`] | the sockets: made, with mode and group, or taken over from systemd |
//! | [`guard`] | checks of every request: origin, host, credentials, rate |
//! | [`server`] | connections and their limit |
//! | [`http`] | bodies, answers, errors of requests |
//! | [`app`] | what requests share |
//! | [`listing`] | what listings show of machines |
//! | [`hub`] | when something has happened to a machine |
//! | [`files`] | files to and from machines |
//! | [`docker`] | Docker's API |
//! | [`native`] | the REST API `/v1` |
//!
//! # Invariants
//! The server is parent of nothing that matters: monitors have sessions of their own, and all state is in files, so it may be
//! killed and started at any time. What it keeps in memory (clients that attached before a start, execs that were made and
//! not started) lasts as long as the connections or seconds.
//!
//! One thread runs all connections; calls of the engine, which block, go to threads of a pool. A stream to a client holds at
//! most a few chunks: whoever does not read stops whoever writes for it, and nobody else.

#![recursion_limit = "256"]

pub mod app;
pub mod docker;
pub mod files;
pub mod guard;
pub mod http;
pub mod hub;
pub mod listen;
pub mod listing;
pub mod native;
pub mod server;
