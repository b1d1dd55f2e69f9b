//! All unsafe of the host, and the few primitives that every crate above needs: durable files, locks, child
//! processes and their jail, descriptors, mounts of a process of its own, sockets, taps, terminals, host facts.
//!
//! # Invariants
//! Every `unsafe` block of the host program is in this crate, each with its reason. Nothing here knows what a machine
//! is. Nothing here reads the environment or a home directory: paths come in as arguments.

#![allow(unsafe_code)]

pub mod affinity;
pub mod clock;
pub mod fd;
pub mod file;
pub mod heap;
pub mod host;
pub mod io;
pub mod jail;
pub mod lock;
pub mod mount;
pub mod process;
pub mod reap;
pub mod signal;
pub mod socket;
pub mod sparse;
pub mod tap;
pub mod tty;
