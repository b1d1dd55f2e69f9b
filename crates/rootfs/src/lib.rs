//! From an image to a guest root device.
//!
//! ```text
//! Flist ──[prepare]──> images/<digest>/root.erofs   metadata of a read-only file system       ([erofs])
//!                                      root.map     which file block is where on the device   ([map])
//!                                      root.json    where the blocks come from
//!
//! guest ──virtio-blk──> hypervisor ──vhost-user──> [server] ──> [disk] ──> root.erofs | block cache | stores
//! ```
//! The right half is a process of its own, the role [`role::serve`]: a hostile guest talks to it, so it locks itself in
//! ([`sandbox`]) before it reads the first byte. The writable layer on top is an ordinary disk ([`upper`]); the guest
//! stacks the two.
//!
//! # Invariants
//! Nothing here mounts anything, and no file data is needed before a guest reads it.

pub mod disk;
pub mod erofs;
pub mod files;
pub mod map;
pub mod prepare;
pub mod report;
pub mod role;
pub mod sandbox;
pub mod server;
pub mod upper;

pub use files::files_of_block;
pub use prepare::{PrepareError, prepare};
pub use role::{RootfsArgs, ServeError, serve};
pub use upper::{UpperError, create_upper};
