//! Layers of container images, whose blocks are on this host alone.
//!
//! ```text
//! images/layers/<64 hex>/blocks    the blocks of the layer's files in their order; <64 hex> = SHA-256 of the layer's tar
//! images/layers/<64 hex>/frame     the tar without the contents of its files (written and read by whoever packs)
//! images/<digest>/layers.json      {"version": 1, "layers": ["<64 hex>", ...]}: those of the image, the lowest first
//! ```
//! # Invariants
//! * A layer appears by a rename, when all its blocks are durable. It stays as long as an image has it; one that no image has, since its pull
//!   was interrupted or is under way, until images are pruned.
//! * No limit of the cache takes a block that a layer here has: it could not be fetched again. Each home tells its own layers, so this
//!   holds for homes that share a cache as well.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_flist::{BlockKey, BlockRef, Digest};
use zmachine_sys::file::{self, FileError, read_regular};

use super::staging::Staging;
use super::{Library, ResolveError, names_in};
use crate::cache::BlockCache;

/// What a list of blocks begins with.
const MAGIC: &[u8; 8] = b"zmblock1";
/// Key and length of a block.
const RECORD: usize = 32 + 4;
/// The longest list that is read: some 60 million blocks.
const LIST_LIMIT: u64 = 2 << 30;

const VERSION: u32 = 1;

/// `layers.json` of an image.
#[derive(Debug, Serialize, Deserialize)]
struct LayersOfImage {
    version: u32,
    layers: Vec<String>,
}

/// A layer that is here with all its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    directory: PathBuf,
    /// Those of its files, in their order; some may come again.
    pub blocks: Vec<BlockRef>,
}

impl Layer {
    /// The file with what is no content.
    pub fn frame_path(&self) -> PathBuf {
        self.directory.join("frame")
    }
}

/// A layer under construction; dropped without [`NewLayer::publish`], it is gone.
#[derive(Debug)]
pub struct NewLayer {
    staging: Staging,
    library: Library,
}

/// Whether the text is a SHA-256 in hexadecimal digits.
fn is_name(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl NewLayer {
    /// Where what is no content is written, once.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn frame(&self) -> Result<File, ResolveError> {
        let path = self.staging.directory().join("frame");
        let made = File::options().write(true).create_new(true).mode(0o644).open(&path);
        Ok(made.map_err(|e| FileError::io("create", &path, e))?)
    }

    /// Gives the layer its name. Its blocks must be durable; `frame` is what [`NewLayer::frame`] gave, whole.
    ///
    /// # Errors
    /// When the name is none, or it cannot be written.
    pub fn publish(self, name: &str, frame: &File, blocks: Vec<BlockRef>) -> Result<Layer, ResolveError> {
        let layers = self.library.layers();
        let place = layers.join(name);
        if !is_name(name) {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "no layer can have such a name");
            return Err(FileError::io("create", &place, what).into());
        }
        frame
            .sync_all()
            .map_err(|e| FileError::io("sync", &self.staging.directory().join("frame"), e))?;
        let mut bytes = Vec::with_capacity(MAGIC.len() + blocks.len() * RECORD);
        bytes.extend(MAGIC);
        for block in &blocks {
            bytes.extend(block.key.0.as_bytes());
            bytes.extend(block.len.to_le_bytes());
        }
        file::replace(&self.staging.directory().join("blocks"), &bytes)?;
        file::make_dirs(&layers)?;
        // Somebody who was faster is as good.
        if let Some(layer) = self.library.layer(name)? {
            return Ok(layer);
        }
        self.staging.publish_over(&place)?;
        Ok(Layer {
            directory: place,
            blocks,
        })
    }
}

fn read_blocks(path: &Path) -> Result<Vec<BlockRef>, ResolveError> {
    let bytes = read_regular(path, LIST_LIMIT).map_err(|e| FileError::io("read", path, e))?;
    let records = bytes.strip_prefix(MAGIC).filter(|records| records.len() % RECORD == 0);
    let records = records.ok_or_else(|| ResolveError::TooNew {
        path: path.to_owned(),
        what: "another form".to_owned(),
    })?;
    let block = |record: &[u8; RECORD]| {
        let (key, len) = record.split_at(32);
        let key = Digest::from_bytes(key).unwrap_or_else(|_| Digest::blake2b_32(&[]));
        let len = len.iter().rev().fold(0, |len, byte| len << 8 | u32::from(*byte));
        BlockRef::unsealed(BlockKey(key), len)
    };
    Ok(records.as_chunks::<RECORD>().0.iter().map(block).collect())
}

impl Library {
    pub(super) fn layers(&self) -> PathBuf {
        self.images.join("layers")
    }

    /// The layer of this name, when it is here with all its blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn layer(&self, name: &str) -> Result<Option<Layer>, ResolveError> {
        let directory = self.layers().join(name);
        if !is_name(name) || !directory.is_dir() {
            return Ok(None);
        }
        let blocks = read_blocks(&directory.join("blocks"))?;
        let is_whole = blocks.iter().all(|block| self.cache.seems_to_have(block));
        Ok(is_whole.then_some(Layer { directory, blocks }))
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn new_layer(&self) -> Result<NewLayer, ResolveError> {
        Ok(NewLayer {
            staging: Staging::new(&self.images)?,
            library: self.clone(),
        })
    }

    /// The names of the layers that an image has; none when its blocks come from stores.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn layers_of(&self, image: &Digest) -> Result<Vec<String>, ResolveError> {
        let path = self.place_of(image).join(FILE);
        match file::read_json::<LayersOfImage>(&path) {
            Ok(found) if found.version == VERSION => Ok(found.layers),
            Ok(found) => Err(ResolveError::TooNew {
                path,
                what: format!("version {}", found.version),
            }),
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the blocks of an image are lazy: its layers may be here or not.
    pub fn is_lazy(&self, image: &Digest) -> bool {
        crate::lazy::is_lazy(&self.place_of(image))
    }

    /// All layers that are here.
    pub(super) fn layer_names(&self) -> Result<Vec<String>, ResolveError> {
        match names_in(&self.layers()) {
            Err(ResolveError::File(e)) if e.is_not_found() => Ok(Vec::new()),
            names => Ok(names?.into_iter().filter(|name| is_name(name)).collect()),
        }
    }

    /// The blocks of a layer, whether they are there or not.
    fn blocks_of_layer(&self, name: &str) -> Result<Vec<BlockRef>, ResolveError> {
        match read_blocks(&self.layers().join(name).join("blocks")) {
            // It was removed since the listing.
            Err(ResolveError::File(e)) if e.is_not_found() => Ok(Vec::new()),
            blocks => blocks,
        }
    }

    /// Where the blocks of some layers are.
    pub(super) fn paths_of_layers<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<HashSet<PathBuf>, ResolveError> {
        let mut paths = HashSet::new();
        for name in names {
            paths.extend(
                self.blocks_of_layer(name)?
                    .iter()
                    .map(|block| self.cache.path_of(block)),
            );
        }
        Ok(paths)
    }

    /// Where the blocks are that no store has: those of all layers.
    pub(super) fn pinned_paths(&self) -> Result<HashSet<PathBuf>, ResolveError> {
        self.paths_of_layers(&self.layer_names()?)
    }

    pub(super) fn remove_layer(&self, name: &str) -> Result<(), ResolveError> {
        Ok(file::remove_dir_all(&self.layers().join(name))?)
    }

    /// Gives `cache` the blocks of all layers, for a home that will have its blocks there.
    pub(super) fn give_layers(&self, cache: &BlockCache) -> Result<(), ResolveError> {
        for name in self.layer_names()? {
            for block in self.blocks_of_layer(&name)? {
                // One that is gone here is missing there as well: its image says so when it is used.
                if self.cache.seems_to_have(&block) {
                    self.cache.give(&block, cache)?;
                }
            }
        }
        Ok(())
    }
}

/// The file of an image.
const FILE: &str = "layers.json";

/// Writes which layers the image under construction in `directory` has.
pub(super) fn write(directory: &Path, layers: &[String]) -> Result<(), ResolveError> {
    let layers = LayersOfImage {
        version: VERSION,
        layers: layers.to_vec(),
    };
    Ok(file::replace_json(&directory.join(FILE), &layers)?)
}

/// Bytes of a directory's own files.
pub(super) fn bytes_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

/// Writes what an image brings beside its flist.
pub(super) fn write_files(directory: &Path, files: &[(&str, &[u8])]) -> Result<(), ResolveError> {
    for (name, bytes) in files {
        let path = directory.join(name);
        let write = File::create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        write.map_err(|e| FileError::io("write", &path, e))?;
    }
    Ok(())
}
