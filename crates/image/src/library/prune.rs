//! Removing what nobody needs any more: images without a name that no machine uses, and blocks that no image has.
//!
//! ```text
//! images/.use     held shared by who resolves an image for a machine or a name, until that is written, but not while an image is being
//!                 downloaded; exclusively here
//! ```
//! Homes that share the cache keep all their images, and all blocks of these.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use zmachine_flist::Digest;
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::cache_users::{Removal, unreadable};
use super::{Library, ResolveError};

/// How long those are waited for who resolve images right now.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Images.
    pub images: u64,
    /// Blocks of the cache.
    pub blocks: u64,
    /// What both had on disk, in bytes.
    pub bytes: u64,
    /// Homes that shared the cache and are gone from disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<PathBuf>,
}

/// The right to prune; nobody resolves an image for a machine meanwhile, in any home of the cache.
#[derive(Debug)]
pub struct Prune<'a> {
    library: &'a Library,
    removal: Removal,
    _uses: Vec<FileLock>,
}

/// Keeps everything in the library of `home` until the value is dropped: an image that was just resolved has neither name
/// nor machine yet. [`Library::download`] comes first, since whoever prunes waits for this.
///
/// # Errors
/// When the lock cannot be had.
pub fn hold_images(home: &Path) -> Result<FileLock, ResolveError> {
    let images = home.join("images");
    file::make_dirs(&images)?;
    Ok(FileLock::shared(&images.join(".use"))?)
}

impl Library {
    /// Waits until nobody resolves an image for a machine; `None` when somebody still does after half a minute, or removes
    /// blocks.
    ///
    /// # Errors
    /// When a lock cannot be had, or a home that shares the cache not be read.
    pub fn begin_prune(&self) -> Result<Option<Prune<'_>>, ResolveError> {
        let Some(removal) = Removal::begin(&self.place, TIMEOUT)? else {
            return Ok(None);
        };
        let mut uses = Vec::new();
        for home in [&self.place.home].into_iter().chain(&removal.others) {
            let lock = FileLock::exclusive_within(&home.join("images/.use"), TIMEOUT);
            match lock.map_err(|e| unreadable(home)(e.into()))? {
                Some(lock) => uses.push(lock),
                None => return Ok(None),
            }
        }
        Ok(Some(Prune {
            library: self,
            removal,
            _uses: uses,
        }))
    }
}

impl Prune<'_> {
    /// Removes images without a name that are not in `used` of this home, then the blocks that no remaining image has, in any home of
    /// the cache. `used` gives the images of a home's machines.
    ///
    /// # Errors
    /// When an image that stays cannot be read, or a home of the cache: its blocks would be taken for nobody's. Nothing else
    /// is removed then.
    pub fn run<E: From<ResolveError>>(
        self,
        used: impl Fn(&Path) -> Result<HashSet<Digest>, E>,
    ) -> Result<PruneReport, E> {
        let library = self.library;
        let mut kept: HashSet<PathBuf> = HashSet::new();
        for home in &self.removal.others {
            // What cannot be told of its machines is a reason to keep everything, although its images are kept anyway.
            used(home)?;
            kept.extend(library.of_other(home).all_block_paths().map_err(unreadable(home))?);
        }
        let used = used(&library.place.home)?;
        Ok(self.remove(&used, kept)?)
    }

    /// The same with the blocks that other homes need.
    fn remove(self, used: &HashSet<Digest>, mut kept: HashSet<PathBuf>) -> Result<PruneReport, ResolveError> {
        let library = self.library;
        let mut report = PruneReport {
            forgotten: self.removal.forgotten,
            ..PruneReport::default()
        };
        let mut unused = Vec::new();
        for image in library.list()? {
            let place = library.place_of(&image.digest);
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
