//! Removing what nobody needs any more: images without a name that no machine uses, and blocks that no image has.
//!
//! ```text
//! images/.use     held shared by who resolves an image for a machine or a name, until that is written; exclusively here
//! ```

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use zmachine_flist::Digest;
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::{Library, ResolveError};

/// How long those are waited for who resolve images right now.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Images.
    pub images: u64,
    /// Blocks of the cache.
    pub blocks: u64,
    /// What both had on disk, in bytes.
    pub bytes: u64,
}

/// The right to prune; nobody resolves an image for a machine meanwhile.
#[derive(Debug)]
pub struct Prune<'a> {
    library: &'a Library,
    _lock: FileLock,
}

/// Keeps everything in the library of `home` until the value is dropped: an image that was just resolved has neither name
/// nor machine yet.
///
/// # Errors
/// When the lock can not be had.
pub fn hold_images(home: &Path) -> Result<FileLock, ResolveError> {
    let images = home.join("images");
    file::make_dirs(&images)?;
    Ok(FileLock::shared(&images.join(".use"))?)
}

impl Library {
    /// Waits until nobody resolves an image for a machine; `None` when somebody still does after half a minute.
    ///
    /// # Errors
    /// When the lock can not be had.
    pub fn begin_prune(&self) -> Result<Option<Prune<'_>>, ResolveError> {
        let lock = FileLock::exclusive_within(&self.images.join(".use"), PATIENCE)?;
        Ok(lock.map(|lock| Prune {
            library: self,
            _lock: lock,
        }))
    }
}

impl Prune<'_> {
    /// Removes images without a name that are not in `used`, then the blocks that no remaining image has.
    ///
    /// # Errors
    /// When an image that stays can not be read: its blocks would be taken for nobody's. Nothing else is removed then.
    pub fn run(self, used: &HashSet<Digest>) -> Result<PruneReport, ResolveError> {
        let library = self.library;
        let mut report = PruneReport::default();
        let mut kept: HashSet<PathBuf> = HashSet::new();
        let mut unused = Vec::new();
        for image in library.list()? {
            let place = library.place(&image.digest);
            if image.names.is_empty() && !used.contains(&image.digest) {
                unused.push(place);
                continue;
            }
            kept.extend(library.block_paths(&image.digest)?);
        }
        for place in unused {
            report.bytes += bytes_below(&place);
            file::remove_dir_all(&place)?;
            report.images += 1;
        }
        let (blocks, bytes) = library.cache.retain(|path| kept.contains(path))?;
        report.blocks = blocks;
        report.bytes += bytes;
        Ok(report)
    }
}

/// What the files below `folder` take on disk, in bytes; no link is followed.
fn bytes_below(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}
