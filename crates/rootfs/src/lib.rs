//! From an image to a guest root device.
//!
//! ```text
//! Flist ──[prepare]──> images/<digest>/root.erofs   metadata of a read-only file system       ([erofs])
//!                                      root.map     which file block is where on the device   ([map])
//!                                      root.json    where the blocks come from
//!                                      prefetch.json  what starts read                        ([prefetch_list])
//!
//! guest ──virtio-blk──> hypervisor ──vhost-user──> [server] ──> [disk] ──> root.erofs | [block broker] ──> block cache | stores
//!                                 ──NBD─────────> [nbd] ─────┘
//! ```
//! The right half are processes of their own, the role [`role::serve`]: a hostile guest talks to the server, so it locks itself in
//! ([`sandbox`]) before it reads the first byte; in a jail the block broker fetches for it, which no guest talks to. The writable layer on
//! top is an ordinary disk ([`upper`]); the guest stacks the two. The server notes what starts read, and fetches it ahead of later
//! guests ([`prefetch`]).
//!
//! # Invariants
//! Nothing here mounts anything, and no file data is needed before a guest reads it.

pub mod blocks;
pub mod broker;
pub mod disk;
pub mod erofs;
pub mod files;
mod first_reads;
pub mod map;
pub mod nbd;
mod open_blocks;
pub mod prefetch;
pub mod prefetch_list;
pub mod prepare;
pub mod report;
pub mod role;
pub mod sandbox;
pub mod server;
mod slices;
#[cfg(test)]
mod test_device;
pub mod upper;
pub mod write_back;

pub use files::files_of_block;
pub use prefetch::Prefetch;
pub use prefetch_list::PrefetchList;
pub use prepare::{PrepareError, prepare};
pub use role::{RootfsArgs, ServeError, serve};
pub use upper::{UpperError, create_upper};
