//! A limit for the block cache, and what is removed when it is over it.
//!
//! The blocks that were not read for the longest time go first (the access time of their files, which
//! [`BlockCache::get`](crate::BlockCache::get) keeps to ten minutes on any mount). Those of images that the caller names
//! stay whatever the limit is: a running machine whose store is gone has nothing else. So do blocks of layers, which no store has. A cache that homes share has one limit
//! ([`super::cache_location`]), and the images are those of all of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use zmachine_flist::Digest;

use super::cache_users::{Removal, unreadable};
use super::{Library, ResolveError, open_flist};
use crate::cache::CachedBlock;
use crate::lazy;

/// How full the cache is afterwards, in percent of its limit: room for what comes next, or every new block would
/// have the whole cache listed again.
const FILL: u64 = 90;

/// How much the cache holds, and may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CacheUsage {
    /// Where they are.
    pub folder: PathBuf,
    /// The homes that share it; none for a home's own.
    pub homes: Vec<PathBuf>,
    /// Blocks.
    pub blocks: u64,
    /// What they have on disk, in bytes.
    pub bytes: u64,
    /// The most they may have, in bytes; `None` without a limit.
    pub limit: Option<u64>,
}

/// What was removed for the limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TrimReport {
    /// Blocks.
    pub blocks: u64,
    /// What they had on disk, in bytes.
    pub bytes: u64,
    /// By how many bytes the cache is still over its limit: all of it is needed by running machines, or no store has it.
    pub over: u64,
    /// Homes that shared the cache and are gone from disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<PathBuf>,
}

impl Library {
    /// The most the block cache may have on disk, in bytes.
    ///
    /// # Errors
    /// When the file that says so cannot be read.
    pub fn cache_limit(&self) -> Result<Option<u64>, ResolveError> {
        self.place.limit()
    }

    /// Sets the limit, for all homes of the cache, or takes it away; removes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_cache_limit(&self, limit: Option<u64>) -> Result<(), ResolveError> {
        self.place.set_limit(limit)
    }

    /// How much the block cache holds, and may, and who shares it.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn cache_usage(&self) -> Result<CacheUsage, ResolveError> {
        let limit = self.cache_limit()?;
        let blocks = self.cache.list()?;
        Ok(CacheUsage {
            folder: self.cache.directory().to_owned(),
            homes: self.homes()?,
            blocks: blocks.len() as u64,
            bytes: blocks.iter().map(|block| block.bytes).sum(),
            limit,
        })
    }

    /// Removes the blocks that were not read for the longest time when the cache is over its limit, never those of the images that
    /// `pinned` gives for each home of the cache. `None` when there is no limit, or another process is at it.
    ///
    /// # Errors
    /// When the cache cannot be listed, or a home of it, or an image of `pinned`, not be read: nothing is removed then.
    pub fn trim_cache<E: From<ResolveError>>(
        &self,
        pinned: impl Fn(&Path) -> Result<HashSet<Digest>, E>,
    ) -> Result<Option<TrimReport>, E> {
        let Some(limit) = self.cache_limit()? else {
            return Ok(None);
        };
        let Some(removal) = Removal::begin(&self.place, Duration::ZERO)? else {
            return Ok(None);
        };
        let blocks = self.cache.list().map_err(ResolveError::from)?;
        let total: u64 = blocks.iter().map(|block| block.bytes).sum();
        let mut kept = HashSet::new();
        if total > limit {
            kept.extend(self.paths_of(&pinned(&self.place.home)?)?);
            kept.extend(self.pinned_paths()?);
            for home in &removal.others {
                let other = self.of_other(home);
                kept.extend(other.paths_of(&pinned(home)?).map_err(unreadable(home))?);
                kept.extend(other.pinned_paths().map_err(unreadable(home))?);
            }
        }
        let mut report = self.remove_oldest(blocks, &kept, limit)?;
        report.forgotten = removal.forgotten;
        Ok(Some(report))
    }

    /// Removes the oldest of `blocks`, but none of `kept`, when they are over the limit.
    fn remove_oldest(
        &self,
        mut blocks: Vec<CachedBlock>,
        kept: &HashSet<PathBuf>,
        limit: u64,
    ) -> Result<TrimReport, ResolveError> {
        let mut total: u64 = blocks.iter().map(|block| block.bytes).sum();
        let mut report = TrimReport::default();
        if total <= limit {
            return Ok(report);
        }
        blocks.retain(|block| !kept.contains(&block.path));
        blocks.sort_by_key(|block| block.last_used);
        for CachedBlock { path, bytes, .. } in blocks {
            if total <= limit / 100 * FILL {
                break;
            }
            self.cache.remove(&path)?;
            total -= bytes;
            report.blocks += 1;
            report.bytes += bytes;
        }
        report.over = total.saturating_sub(limit);
        Ok(report)
    }

    /// Where the blocks of `images` are or would be.
    fn paths_of(&self, images: &HashSet<Digest>) -> Result<HashSet<PathBuf>, ResolveError> {
        let mut paths = HashSet::new();
        for digest in images {
            paths.extend(self.block_paths(digest)?);
        }
        Ok(paths)
    }

    /// Where the blocks of all images and layers are or would be.
    pub(super) fn all_block_paths(&self) -> Result<HashSet<PathBuf>, ResolveError> {
        let digests = self.list()?.into_iter().map(|image| image.digest);
        let mut paths = self.paths_of(&digests.collect())?;
        paths.extend(self.pinned_paths()?);
        Ok(paths)
    }

    /// Where the blocks of the image are or would be in the cache.
    pub(super) fn block_paths(&self, digest: &Digest) -> Result<Vec<PathBuf>, ResolveError> {
        let place = self.place_of(digest);
        if lazy::is_lazy(&place) {
            // What has not been read is nowhere.
            let blocks = lazy::known_blocks(&place, self.cache.directory());
            return Ok(blocks.iter().map(|block| self.cache.path_of(block)).collect());
        }
        let path = place.join("image.fl");
        let flist = open_flist(&path, &path.display().to_string())?;
        let blocks = flist.tree.unique_blocks();
        Ok(blocks.iter().map(|block| self.cache.path_of(block)).collect())
    }
}
