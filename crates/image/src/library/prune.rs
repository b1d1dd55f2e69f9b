//! Removing what nobody needs any more: images without a name that no machine uses, layers that no image has, and blocks that neither
//! has.
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
use super::{Library, ResolveError, layers};

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
    /// Removes images without a name that are not in `used` of this home, then the layers and blocks that no remaining image has, in any
    /// home of the cache. `used` gives the images of a home's machines.
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

    /// Removes those of `images` that have no name and that no machine uses, with their layers that no other image has and the blocks
    /// that only these have. What stores have of them stays in the cache.
    ///
    /// # Errors
    /// As [`Prune::run`].
    pub fn remove_images<E: From<ResolveError>>(
        self,
        images: &HashSet<Digest>,
        used: impl Fn(&Path) -> Result<HashSet<Digest>, E>,
    ) -> Result<PruneReport, E> {
        let library = self.library;
        let used = used(&library.place.home)?;
        let mut report = PruneReport::default();
        let mut layers: HashSet<String> = HashSet::new();
        for image in library.list().map_err(E::from)? {
            let is_meant = images.contains(&image.digest);
            if is_meant && image.names.is_empty() && !used.contains(&image.digest) {
                layers.extend(library.layers_of(&image.digest)?);
                self.remove_image(&image.digest, &mut report)?;
            }
        }
        for image in library.list().map_err(E::from)? {
            for layer in library.layers_of(&image.digest)? {
                layers.remove(&layer);
            }
        }
        if layers.is_empty() {
            return Ok(report);
        }
        let mut blocks = library.paths_of_layers(&layers)?;
        for layer in &layers {
            report.bytes += layers::bytes_of(&library.layers().join(layer));
            library.remove_layer(layer)?;
        }
        for path in library.all_block_paths()? {
            blocks.remove(&path);
        }
        for home in &self.removal.others {
            for path in library.of_other(home).all_block_paths().map_err(unreadable(home))? {
                blocks.remove(&path);
            }
        }
        for path in blocks {
            if let Ok(meta) = path.symlink_metadata() {
                library.cache.remove(&path).map_err(ResolveError::from)?;
                report.blocks += 1;
                report.bytes += meta.blocks() * 512;
            }
        }
        Ok(report)
    }

    fn remove_image(&self, digest: &Digest, report: &mut PruneReport) -> Result<(), ResolveError> {
        let place = self.library.place_of(digest);
        report.bytes += bytes_below(&place);
        file::remove_dir_all(&place)?;
        crate::lazy::forget(&place, self.library.cache.directory());
        report.images += 1;
        Ok(())
    }

    /// The same with the blocks that other homes need.
    fn remove(self, used: &HashSet<Digest>, mut kept: HashSet<PathBuf>) -> Result<PruneReport, ResolveError> {
        let library = self.library;
        let mut report = PruneReport {
            forgotten: self.removal.forgotten.clone(),
            ..PruneReport::default()
        };
        let mut unused = Vec::new();
        let mut layers: HashSet<String> = library.layer_names()?.into_iter().collect();
        for image in library.list()? {
            if image.names.is_empty() && !used.contains(&image.digest) {
                unused.push(image.digest);
                continue;
            }
            kept.extend(library.block_paths(&image.digest)?);
            let own = library.layers_of(&image.digest)?;
            kept.extend(library.paths_of_layers(&own)?);
            own.iter().for_each(|layer| {
                layers.remove(layer);
            });
        }
        for digest in unused {
            self.remove_image(&digest, &mut report)?;
        }
        for layer in &layers {
            report.bytes += layers::bytes_of(&library.layers().join(layer));
            library.remove_layer(layer)?;
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
