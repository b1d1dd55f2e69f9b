//! Makes an image bootable: writes its root device's metadata beside its flist, once.
//!
//! ```text
//! <image>/root.erofs    the start of the device
//! <image>/root.map      where the blocks are on it
//! <image>/root.json     {"version":1,"routes":[{"first":0,"last":255,"url":...}],"inodes":n,...}; written last
//! ```
//! and, when the flist brings hints, the list of [`crate::prefetch_list`].
//!
//! # Invariants
//! Each file appears whole and durable. When `root.json` is there, all three are. Two processes may prepare one image at
//! once: they write the same bytes.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zmachine_flist::block::Digest;
use zmachine_flist::{Flist, Route, RouteTable};
use zmachine_sys::file::{FileError, NewFile, read_json, replace_json};

use crate::erofs::{BLOCK_SIZE, ErofsImage, LayoutError, layout};
use crate::map::write_map;
use crate::prefetch_list::{self, PrefetchList};

/// Name of the metadata file in an image directory.
pub const EROFS_NAME: &str = "root.erofs";
/// Name of the extent table in an image directory.
pub const MAP_NAME: &str = "root.map";
/// Name of the description in an image directory.
pub const ROOT_NAME: &str = "root.json";
/// The version of `root.json` that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Why an image could not be prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The tree has no representation.
    #[error("image {} cannot become a root disk", image.display())]
    Layout {
        /// The image directory.
        image: PathBuf,
        /// What does not fit.
        source: LayoutError,
    },
    /// A file could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `root.json` is of a newer program.
    #[error("{} has version {found}; this program knows version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What `root.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDescription {
    version: u32,
    routes: Vec<StoredRoute>,
    /// Number of inodes.
    pub inodes: u64,
    /// Length of the metadata in bytes.
    pub metadata_bytes: u64,
    /// Number of different blocks.
    pub blocks: u64,
    /// Bytes of all different blocks together.
    pub data_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRoute {
    first: u8,
    last: u8,
    url: String,
}

impl RootDescription {
    /// Reads the description of a prepared image.
    ///
    /// # Errors
    /// When it is missing (the image is not prepared), damaged or of another version.
    pub fn read(image: &Path) -> Result<RootDescription, PrepareError> {
        let path = image.join(ROOT_NAME);
        let description: RootDescription = read_json(&path)?;
        if description.version != VERSION {
            return Err(PrepareError::Version {
                path,
                found: description.version,
            });
        }
        Ok(description)
    }

    /// The routes of the flist.
    pub fn routes(&self) -> RouteTable {
        let route = |r: &StoredRoute| Route {
            first: r.first,
            last: r.last,
            url: r.url.clone(),
        };
        RouteTable(self.routes.iter().map(route).collect())
    }

    fn new(image: &ErofsImage<'_>, routes: &RouteTable) -> RootDescription {
        let stored = |r: &Route| StoredRoute {
            first: r.first,
            last: r.last,
            url: r.url.clone(),
        };
        RootDescription {
            version: VERSION,
            routes: routes.0.iter().map(stored).collect(),
            inodes: image.inodes() as u64,
            metadata_bytes: image.metadata_blocks() * BLOCK_SIZE,
            blocks: image.extents().len() as u64,
            data_bytes: image.extents().iter().map(|e| u64::from(e.block.len)).sum(),
        }
    }
}

/// Writes `root.erofs`, `root.map` and `root.json` into the directory `image`, unless they are there. `digest` is the
/// image's digest in any spelling; the file system's id is derived from it.
///
/// # Errors
/// When the tree has no representation or a file cannot be written; what is written by then is whole.
pub fn prepare(image: &Path, digest: &str, flist: &Flist) -> Result<RootDescription, PrepareError> {
    match RootDescription::read(image) {
        Err(PrepareError::File(error)) if error.is_not_found() => {}
        known => return known,
    }
    let erofs = layout(&flist.tree, uuid_of(digest)).map_err(|source| PrepareError::Layout {
        image: image.to_owned(),
        source,
    })?;
    write_file(image, EROFS_NAME, |out| erofs.write_metadata(out))?;
    write_file(image, MAP_NAME, |out| write_map(&erofs, out))?;
    let list = PrefetchList::of_flist(flist, &erofs);
    if !list.blocks().is_empty() && !image.join(prefetch_list::NAME).exists() {
        list.save(image)?;
    }
    let description = RootDescription::new(&erofs, &flist.routes);
    replace_json(&image.join(ROOT_NAME), &description)?;
    Ok(description)
}

fn write_file(image: &Path, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    let path = image.join(name);
    let new = NewFile::create(image, 0o644)?;
    let mut out = BufWriter::with_capacity(1 << 16, new.file());
    let written = write(&mut out).and_then(|()| out.flush());
    drop(out);
    written.map_err(|source| FileError::io("write", &path, source))?;
    new.publish_over(&path)
}

/// A UUID of version 8 (free form) from the digest's digest.
fn uuid_of(digest: &str) -> [u8; 16] {
    let hash = Digest::blake2b_32(digest.as_bytes());
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.as_bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
