//! The client of the REST API: `zmachine --host URL ...` and `zmachine context ...`.
//!
//! | module | owns |
//! |---|---|
//! | [`target`] | which host, by which way, with which token |
//! | [`contexts`] | hosts that have names |
//! | [`connection`] | requests, answers, failures, WebSockets |
//! | [`streams`] | archives to and from a host |
//! | [`terminal`] | a process elsewhere on the terminal here |
//! | [`words`] | the command lines |
//! | [`commands`] | what they do |
//!
//! # Invariants
//! Nothing here looks at this host's machines: what a command line means is asked of the server. One connection serves one request, so that a
//! stream that is not read stops nothing else. Failures of the server keep their class, hint and exit code.

pub mod commands;
pub mod connection;
pub mod contexts;
pub mod streams;
pub mod target;
pub mod terminal;
pub mod words;
