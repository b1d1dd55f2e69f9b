//! Directories of the host for guests: `virtiofsd` over a tree that is put together in a mount namespace of its own.
//!
//! ```text
//! role `share` ─> waits for its monitor ─> mount namespace ─> tree on the mount point ─> becomes virtiofsd
//!                                                             │                          (mount, pid and network namespaces,
//!                                                             │                           seccomp, few capabilities: its own)
//!   a directory:  bound with all below it, no devices, no setuid, read-only when asked for
//!   an image:     overlayfs of the unpacked image (never written) and the machine's own layer
//! ```
//! # Invariants
//! Nothing of it is mounted outside of the namespace, so nothing is left when the processes are gone, however they ended.
//! What may only be read is read-only here, whatever the guest's kernel believes. One process at a time has a layer: its
//! lock is inherited by all of virtiofsd's processes.
//!
//! | module | owns |
//! |---|---|
//! | [`server`] | which virtiofsd this host has, and its command line |
//! | [`role`] | the process: tree, then virtiofsd |

pub mod role;
pub mod server;

pub use role::{ShareArgs, ShareError, Tree, become_server};
pub use server::{MissingServer, Server};
