//! Docker's API over the engine, for the tools that people have, and what all requests to the server share.
//!
//! | module | owns |
//! |---|---|
//! | [`http`] | bodies, answers, errors of requests |
//! | [`guard`] | checks of every request: origin, host, credentials, rate |
//! | [`place`] | the places of connections |
//! | [`app`] | what requests share |
//! | [`listing`] | what listings show of machines |
//! | [`hub`] | when something has happened to a machine |
//! | [`files`] | files to and from machines |
//! | [`docker`] | Docker's API |
//!
//! # Invariants
//! Calls of the engine, which block, go to threads of a pool. A stream to a client holds at most a few chunks: whoever does not read stops
//! whoever writes for it, and nobody else. What is kept in memory lasts as long as connections, or seconds.

#![recursion_limit = "256"]

pub mod app;
pub mod docker;
pub mod files;
pub mod guard;
pub mod http;
pub mod hub;
pub mod listing;
pub mod place;
