//! Between flists and everything else: directories, archives, container images, other stores.
//!
//! | module | owns |
//! |---|---|
//! | [`mod@pack`] | from a directory or an archive to a flist and its blocks |
//! | [`oci`] | importing container images: layouts, archives, registries |
//! | [`mod@unpack`] | from a flist to a directory |
//! | [`copy`] | blocks of a flist to other stores: `convert`, `push` |
//! | [`mod@verify`] | every block of every route |
//! | [`mod@diff`] | what is different between two trees |
//! | `tar`, `compression` | archives, as hostile input |
//! | `batch` | what one thread of a pack or an unpack takes on at a time |
//!
//! Everything blocks the calling thread. The crate reads no environment and no home directory: paths, URLs and limits come in as
//! arguments.

mod batch;
mod compression;
pub mod copy;
pub mod diff;
pub mod oci;
pub mod pack;
mod tar;
pub mod unpack;
pub mod verify;
mod zeros;
