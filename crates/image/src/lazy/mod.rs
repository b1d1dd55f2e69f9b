//! Blocks whose contents are still inside layers of a registry: what they are is known, what their digests are is not.
//!
//! A layer in a format with a table of contents (eStargz, zstd:chunked) says where each file is in it, in chunks that can be unpacked
//! alone, and the SHA-256 of each. The image's tree is made of that table, and a machine starts before anything else of the layer is here. A
//! **lazy block** stands for 512 KiB of a file (fewer at its end); its key is derived from the digests of the chunks that it is made of, so
//! it is no digest of its content. When it is first read, its chunks are fetched, held against their digests and cut into
//! ordinary blocks ([`BlockRef::unsealed`]), and a table remembers which block each lazy one turned out to be.
//!
//! ```text
//! images/<digest>/lazy.json      where the layers are ([`Origin`])
//! images/<digest>/lazy.chunks    the chunks, and which of them each lazy block is made of (module `index`)
//! images/<digest>/lazy.blocks    what every lazy block is (module `known`); there when all layers are
//! blocks/.lazy/<digest>          the same for those that were read; added to by block brokers
//! ```
//! # Invariants
//! * Nothing is kept, and nobody sees a byte, before all chunks that it comes from were held against the SHA-256 in the table of contents,
//!   whose own digest is in the image's manifest.
//! * What one fetch takes is bounded: [`MOST_STORED`] bytes from the registry and [`MOST_PLAIN`] unpacked.
//! * The two tables of blocks only ever say what was found to be so; one that is lost or torn costs another fetch.

mod index;
mod known;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zmachine_flist::{BlockKey, BlockRef, Digest};
use zmachine_sys::file::{self, FileError};

pub use index::{Chunk, LazyIndex, MOST_PLAIN, MOST_STORED};
use known::Known;
pub(crate) use known::known_blocks;
pub use known::write_known;

/// Where the layers of an image are.
pub const ORIGIN_FILE: &str = "lazy.json";
/// Its chunks and lazy blocks.
pub const INDEX_FILE: &str = "lazy.chunks";
/// What all its lazy blocks are.
pub const KNOWN_FILE: &str = "lazy.blocks";
/// Where block brokers write what they found, in the block cache.
const FOUND_FOLDER: &str = ".lazy";

const VERSION: u32 = 1;

/// `lazy.json`: where the layers of an image are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    version: u32,
    /// The reference of the image with the digest of its manifest: `docker://HOST/NAME@sha256:...`.
    pub source: String,
    /// Files with credentials of registries.
    pub auth_files: Vec<PathBuf>,
    /// Files with what is said about registries.
    pub registries: Vec<PathBuf>,
    /// The layers that chunks are in; a chunk names one by its place here.
    pub layers: Vec<LazyLayer>,
}

/// A layer whose chunks are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyLayer {
    /// Digest of the layer as the registry keeps it.
    pub digest: String,
    /// Its length there, in bytes.
    pub size: u64,
    /// How its chunks are compressed.
    pub compression: ChunkCompression,
}

/// How the chunks of a layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkCompression {
    /// Each begins a member of a gzip file.
    Gzip,
    /// Each is a zstd frame, or several.
    Zstd,
}

impl Origin {
    /// Of an image whose layers are at `source`.
    pub fn new(source: String, layers: Vec<LazyLayer>) -> Origin {
        Origin {
            version: VERSION,
            source,
            auth_files: Vec::new(),
            registries: Vec::new(),
            layers,
        }
    }

    /// That of the image in `directory`; `None` when its blocks are not lazy.
    ///
    /// # Errors
    /// When it is there and cannot be read, or is of a newer program.
    pub fn read(directory: &Path) -> Result<Option<Origin>, FileError> {
        let path = directory.join(ORIGIN_FILE);
        match file::read_json::<Origin>(&path) {
            Ok(origin) if origin.version == VERSION => Ok(Some(origin)),
            Ok(origin) => {
                let what = format!(
                    "it has version {}, and this program knows version {VERSION}",
                    origin.version
                );
                Err(FileError::io("read", &path, std::io::Error::other(what)))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Whether the image in `directory` was made of tables of contents.
pub fn is_lazy(directory: &Path) -> bool {
    directory.join(ORIGIN_FILE).exists()
}

/// Whether an image's blocks are lazy and have all come, so that another image has been made of them.
pub fn is_complete(directory: &Path) -> bool {
    is_lazy(directory) && directory.join(KNOWN_FILE).exists()
}

/// Why chunks did not come.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct ChunkError {
    /// What happened.
    pub what: String,
    /// Whether another try may succeed.
    pub is_transient: bool,
}

/// A place that has the layers of an [`Origin`].
pub trait ChunkSource: Send + Sync {
    /// The plaintexts of chunks of one layer that are beside each other, not verified: each has the size that it should have.
    ///
    /// # Errors
    /// When they cannot be had before `deadline`, or are not what they should be.
    fn chunks(&self, layer: usize, chunks: &[Chunk], deadline: Instant) -> Result<Vec<Vec<u8>>, ChunkError>;

    /// What it is, for messages.
    fn describe(&self) -> String;
}

/// A block that a fetch brought.
pub(crate) struct Brought {
    /// The lazy block that it was asked for as.
    pub(crate) lazy: BlockRef,
    /// What it is.
    pub(crate) block: BlockRef,
    pub(crate) plain: Vec<u8>,
}

/// The lazy blocks of one image, and where their contents are.
pub struct LazyBlocks {
    index: LazyIndex,
    known: Mutex<Known>,
    source: Box<dyn ChunkSource>,
}

impl fmt::Debug for LazyBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LazyBlocks({})", self.source.describe())
    }
}

impl LazyBlocks {
    /// Those of the image in `image`, whose name is its digest. What is found out is written into the block cache `blocks`.
    ///
    /// # Errors
    /// When a file of the image cannot be read.
    pub fn open(image: &Path, blocks: &Path, source: Box<dyn ChunkSource>) -> Result<LazyBlocks, FileError> {
        Ok(LazyBlocks {
            index: LazyIndex::read(&image.join(INDEX_FILE))?,
            known: Mutex::new(Known::open(image, blocks)),
            source,
        })
    }

    /// Whether a block is one of these.
    pub(crate) fn has(&self, block: &BlockRef) -> bool {
        self.index.has(&block.key)
    }

    /// What a lazy block turned out to be, as far as this process knows.
    pub(crate) fn known(&self, block: &BlockRef) -> Option<BlockRef> {
        self.lock().get(block)
    }

    /// Looks at what other processes found meanwhile.
    pub(crate) fn look_again(&self) {
        self.lock().read_on();
    }

    /// Remembers what blocks are, whose contents are in the cache.
    pub(crate) fn remember<'a>(&self, found: impl IntoIterator<Item = &'a (BlockRef, BlockRef)>) {
        self.lock().add(found);
    }

    /// The most bytes that the registry sends for a block.
    pub(crate) fn stored_bytes(&self, block: &BlockRef) -> u64 {
        let chunks = self.index.chunks_of(&block.key).map_or(&[][..], |(_, chunks)| chunks);
        chunks.iter().map(|chunk| u64::from(chunk.stored)).sum()
    }

    pub(crate) fn describe(&self) -> String {
        self.source.describe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Whole after every statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the chunks of a block; the block, first, and all others that are whole in the same chunks.
    pub(crate) fn fetch(&self, block: &BlockRef, deadline: Instant) -> Result<Vec<Brought>, ChunkError> {
        let broken = |what: String| ChunkError {
            what,
            is_transient: false,
        };
        let (range, chunks) = self
            .index
            .chunks_of(&block.key)
            .ok_or_else(|| broken(format!("block {} is none of this image", block.key)))?;
        let Some(first) = chunks.first() else {
            return Err(broken(format!("block {} has no chunks", block.key)));
        };
        let plains = self.source.chunks(usize::from(first.layer), chunks, deadline)?;
        for (chunk, plain) in chunks.iter().zip(&plains) {
            if plain.len() as u64 != chunk.size || <[u8; 32]>::from(Sha256::digest(plain)) != chunk.sha256 {
                return Err(broken(format!(
                    "{} sent something else: a chunk at {} of layer {} has another digest",
                    self.source.describe(),
                    chunk.at,
                    chunk.layer
                )));
            }
        }
        if plains.len() != chunks.len() {
            return Err(broken(format!("{} sent too few chunks", self.source.describe())));
        }
        let whole = plains.concat();
        let wanted = self.index.within(range).into_iter();
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for (lazy, part) in wanted {
            let Some(plain) = usize::try_from(part.start)
                .ok()
                .and_then(|start| whole.get(start..start + lazy.len as usize))
            else {
                continue;
            };
            let brought = Brought {
                lazy,
                block: BlockRef::unsealed(BlockKey(Digest::blake2b_32(plain)), lazy.len),
                plain: plain.to_vec(),
            };
            match lazy.key == block.key {
                true => first.push(brought),
                false => rest.push(brought),
            }
        }
        if first.is_empty() {
            return Err(broken(format!("block {} is not in its chunks", block.key)));
        }
        first.append(&mut rest);
        Ok(first)
    }
}

/// The folder of the block cache with what block brokers found.
pub(crate) fn found_folder(blocks: &Path) -> PathBuf {
    blocks.join(FOUND_FOLDER)
}

/// Removes what was found of an image that is gone.
pub(crate) fn forget(image: &Path, blocks: &Path) {
    // One that stays says nothing wrong, and is found again when the image comes back.
    let _ = std::fs::remove_file(found_folder(blocks).join(image.file_name().unwrap_or_default()));
}
