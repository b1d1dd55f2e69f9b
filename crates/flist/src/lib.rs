//! The flist formats and the block codec: pure, no network, no async.
//!
//! A flist is the metadata of a whole file tree plus, for each regular file, the list of its content-addressed blocks; the
//! blocks themselves are in stores that the [`RouteTable`] names. [`Flist::open`] reads a file into a [`Tree`] and refuses
//! everything that is not exactly a tree; [`Flist::write`] writes format 2, our extensions included. The block codec is [`BlockRef::open`] and
//! [`BlockRef::seal`]; fetching blocks is not this crate's business.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | digests, block references, the codec |
//! | [`tree`] | the file tree, its invariants, look-ups, [`TreeBuilder`] |
//! | [`route`] | where blocks live |
//! | [`startup`] | `.startup.toml` |
//! | [`config`] | what an image says about running it, in a tag |
//! | [`hints`] | which blocks its start needs, in a tag |
//! | `v2` | format 2: a SQLite database |
//! | `v1` | format 1, read only: a tar with a SQLite database of Cap'n Proto objects |
//! | `database` | asking a SQLite database that nobody vouches for |
//!
//! A file that comes from outside is hostile: it may not make this crate panic, loop, allocate beyond its own size by more
//! than a constant factor, or hand out a tree that breaks an invariant.

pub mod block;
pub mod config;
mod database;
mod error;
mod file;
pub mod hints;
pub mod route;
pub mod startup;
pub mod tree;
mod v1;
mod v2;
mod xxtea;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

pub use block::{BlockError, BlockId, BlockKey, BlockRef, Digest, DigestError, Opener, Sealer};
pub use config::{ConfigError, Healthcheck, ImageConfig};
pub use error::{OpenError, WriteError};
pub use hints::{Hint, Hints, HintsError};
pub use route::{Route, RouteTable};
pub use startup::{Startup, StartupError};
pub use tree::{Metadata, Node, NodeId, NodeKind, ResolveError, Tree, TreeBuilder, TreeCounts, TreeError};

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
    /// Reads a flist of either format. The file and its directory may be read-only; nothing is written beside it.
    ///
    /// # Errors
    /// [`OpenError`] names the file and the row or property that is wrong. Nothing wrong is skipped or repaired.
    pub fn open(path: &Path) -> Result<Flist, OpenError> {
        if Flist::format_of(path)? == 1 {
            return v1::read(path);
        }
        v2::read(path)
    }

    /// Which format the file is of by its first bytes: 1 for what may be an archive, else 2.
    ///
    /// # Errors
    /// [`OpenError::Read`], or [`OpenError::NotAFlist`] for a directory or device.
    pub fn format_of(path: &Path) -> Result<u32, OpenError> {
        let read_error = |source| OpenError::Read {
            path: path.into(),
            source,
        };
        let file = file::open_regular(path).map_err(read_error)?;
        let file = file.ok_or_else(|| OpenError::NotAFlist {
            path: path.into(),
            found: "it is not a regular file".into(),
        })?;
        let mut head = Vec::new();
        file.take(512).read_to_end(&mut head).map_err(read_error)?;
        Ok(if v1::looks_like(&head) { 1 } else { 2 })
    }

    /// Writes format 2 to `path`: a temporary file beside it, fsync, rename, fsync of the directory. On an error nothing
    /// is left and an older file stays as it was. Equal flists give equal bytes.
    ///
    /// Hard links, extended attributes, nanoseconds and raw names are in tables of our own: a reader of old sees each name
    /// as a file of its own, and the others not at all. Directory sizes are written as 4096, as a packer of old would on ext4.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        v2::write(self, path)
    }
}
