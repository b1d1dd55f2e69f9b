//! The flist formats and the block codec: pure, no network, no async.
//!
//! A flist is the metadata of a whole file tree plus, for each regular file, the list of its content-addressed blocks; the
//! blocks themselves are in stores that the [`RouteTable`] names. [`Flist::open`] reads a file into a [`Tree`] and refuses
//! everything that is not exactly a tree; [`Flist::write`] writes format 2. The block codec is [`BlockRef::open`] and
//! [`BlockRef::seal`]; fetching blocks is not this crate's business.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | digests, block references, the codec |
//! | [`tree`] | the file tree, its invariants, look-ups, [`TreeBuilder`] |
//! | [`route`] | where blocks live |
//! | [`startup`] | `.startup.toml` |
//! | `v2` | format 2: a SQLite database |
//!
//! A file that comes from outside is hostile: it may not make this crate panic, loop, allocate beyond its own size by more
//! than a constant factor, or hand out a tree that breaks an invariant.

pub mod block;
pub mod route;
pub mod startup;
pub mod tree;
mod v2;

use std::collections::BTreeMap;
use std::path::Path;

pub use block::{BlockError, BlockId, BlockKey, BlockRef, Digest, DigestError};
pub use route::{Route, RouteTable};
pub use startup::{Startup, StartupError};
pub use tree::{Metadata, Node, NodeId, NodeKind, ResolveError, Tree, TreeBuilder, TreeCounts, TreeError};
pub use v2::{OpenError, WriteError};

/// A flist: a tree, where its blocks are, and free metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flist {
    /// The file tree.
    pub tree: Tree,
    /// Where the blocks live.
    pub routes: RouteTable,
    /// Free metadata; known names are `version`, `description` and `author`.
    pub tags: BTreeMap<String, String>,
}

impl Flist {
    /// Reads a format 2 flist. The file and its directory may be read-only; nothing is written beside it.
    ///
    /// # Errors
    /// [`OpenError`] names the file and the row or property that is wrong. Nothing wrong is skipped or repaired.
    pub fn open(path: &Path) -> Result<Flist, OpenError> {
        v2::read(path)
    }

    /// Writes format 2 to `path`: a temporary file beside it, fsync, rename, fsync of the directory. On an error nothing
    /// is left and an older file stays as it was. Equal flists give equal bytes.
    ///
    /// The format has no hard links, extended attributes or nanoseconds: each name of a node becomes a file of its own,
    /// the others are not written. Directory sizes are written as 4096, as a packer of old would on ext4.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        v2::write(self, path)
    }
}
