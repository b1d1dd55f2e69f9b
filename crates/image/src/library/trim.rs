//! A limit for the block cache, and what is removed when it is over it.
//!
//! ```text
//! cache.json      {"version":1,"limit":BYTES}; missing: the cache may grow as long as its disk does
//! images/.trim    held by the one process that removes blocks for the limit
//! ```
//! The blocks that were not read for the longest time go first (the access time of their files, which
//! [`BlockCache::get`](crate::BlockCache::get) keeps to ten minutes on any mount). Those of images that the caller names
//! stay whatever the limit is: a running machine whose store is gone has nothing else.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_flist::Digest;
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::{Library, ResolveError, open_flist};
use crate::cache::CachedBlock;

const VERSION: u32 = 1;

/// How full the cache is afterwards, in percent of its limit: room for what comes next, or every new block would
/// have the whole cache listed again.
const FILL: u64 = 90;

#[derive(Debug, Serialize, Deserialize)]
struct LimitFile {
    version: u32,
    limit: u64,
}

/// How much the cache holds, and may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheUsage {
    /// Blocks.
    pub blocks: u64,
    /// What they have on disk, in bytes.
    pub bytes: u64,
    /// The most they may have, in bytes; `None` without a limit.
    pub limit: Option<u64>,
}

/// What was removed for the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TrimReport {
    /// Blocks.
    pub blocks: u64,
    /// What they had on disk, in bytes.
    pub bytes: u64,
    /// By how many bytes the cache is still over its limit: all of it is needed by running machines.
    pub over: u64,
}

impl Library {
    fn limit_path(&self) -> PathBuf {
        self.images.with_file_name("cache.json")
    }

    /// The most the block cache may have on disk, in bytes.
    ///
    /// # Errors
    /// When the file that says so can not be read.
    pub fn cache_limit(&self) -> Result<Option<u64>, ResolveError> {
        let path = self.limit_path();
        match file::read_json::<LimitFile>(&path) {
            Ok(found) if found.version == VERSION => Ok(Some(found.limit)),
            Ok(found) => Err(ResolveError::LimitVersion {
                path,
                found: found.version,
            }),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sets the limit, or takes it away; removes nothing.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn set_cache_limit(&self, limit: Option<u64>) -> Result<(), ResolveError> {
        let path = self.limit_path();
        match limit {
            Some(limit) => file::replace_json(
                &path,
                &LimitFile {
                    version: VERSION,
                    limit,
                },
            )?,
            None => file::remove_if_there(&path)?,
        }
        Ok(())
    }

    /// How much the block cache holds, and may.
    ///
    /// # Errors
    /// When it can not be listed.
    pub fn cache_usage(&self) -> Result<CacheUsage, ResolveError> {
        let limit = self.cache_limit()?;
        let blocks = self.cache.list()?;
        Ok(CacheUsage {
            blocks: blocks.len() as u64,
            bytes: blocks.iter().map(|block| block.bytes).sum(),
            limit,
        })
    }

    /// Removes the blocks that were not read for the longest time when the cache is over its limit, those of the images
    /// `pinned` never. `None` when there is no limit, or another process is at it.
    ///
    /// # Errors
    /// When the cache can not be listed, or an image of `pinned` not be read: nothing is removed then.
    pub fn trim_cache(&self, pinned: &HashSet<Digest>) -> Result<Option<TrimReport>, ResolveError> {
        let Some(limit) = self.cache_limit()? else {
            return Ok(None);
        };
        let Some(_lock) = FileLock::try_exclusive(&self.images.join(".trim"))? else {
            return Ok(None);
        };
        let mut blocks = self.cache.list()?;
        let mut total: u64 = blocks.iter().map(|block| block.bytes).sum();
        let mut report = TrimReport::default();
        if total <= limit {
            return Ok(Some(report));
        }
        let kept = self.paths_of(pinned)?;
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
        Ok(Some(report))
    }

    /// Where the blocks of `images` are or would be.
    fn paths_of(&self, images: &HashSet<Digest>) -> Result<HashSet<PathBuf>, ResolveError> {
        let mut paths = HashSet::new();
        for digest in images {
            paths.extend(self.block_paths(digest)?);
        }
        Ok(paths)
    }

    /// Where the blocks of the image are or would be in the cache.
    pub(super) fn block_paths(&self, digest: &Digest) -> Result<Vec<PathBuf>, ResolveError> {
        let path = self.place(digest).join("image.fl");
        let flist = open_flist(&path, &path.display().to_string())?;
        let blocks = flist.tree.unique_blocks();
        Ok(blocks.iter().map(|block| self.cache.path_of(block)).collect())
    }
}
