//! Where a disk has its blocks from: a fetcher in this process, or one in a process of its own ([`crate::broker`]).

use std::fs::File;

use thiserror::Error;
use zmachine_flist::BlockRef;
use zmachine_image::CacheError;
use zmachine_image::fetch::{FetchError, FetchStats, Fetched, Fetcher};

/// A block that no store delivered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Undelivered {
    /// What was wrong with each store.
    pub reason: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl From<FetchError> for Undelivered {
    fn from(error: FetchError) -> Undelivered {
        Undelivered {
            hint: error.hint(),
            reason: error.to_string(),
        }
    }
}

/// Why the cache could not keep or give a block, which was served all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFailure {
    /// What went wrong.
    pub reason: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl From<CacheError> for CacheFailure {
    fn from(error: CacheError) -> CacheFailure {
        let what = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let reason = match error {
            CacheError::Damaged { .. } => what,
            _ => format!("{what}: blocks are served from memory and fetched again when they are read again"),
        };
        CacheFailure {
            reason,
            hint: error.hint(),
        }
    }
}

/// Blocks of an image.
pub trait Blocks: Send + Sync {
    /// The open file of a block that is on this host; never waits for a network.
    fn cached(&self, block: &BlockRef) -> Option<File>;

    /// So many blocks are as good to open at once as one alone.
    fn together(&self) -> usize {
        1
    }

    /// [`Blocks::cached`] of each, at most [`Blocks::together`].
    fn cached_all(&self, blocks: &[BlockRef]) -> Vec<Option<File>> {
        blocks.iter().map(|block| self.cached(block)).collect()
    }

    /// The block, from the cache or a store; from a store alone when the cached one `is_damaged`.
    ///
    /// # Errors
    /// When no store delivers it in time.
    fn fetch(&self, block: &BlockRef, is_damaged: bool) -> Result<Fetched, Undelivered>;

    /// What was done so far.
    fn stats(&self) -> FetchStats;

    /// Why the cache could not keep a block, the last time since this was asked.
    fn take_cache_failure(&self) -> Option<CacheFailure>;
}

impl Blocks for Fetcher {
    fn cached(&self, block: &BlockRef) -> Option<File> {
        Fetcher::cached(self, block)
    }

    fn cached_all(&self, blocks: &[BlockRef]) -> Vec<Option<File>> {
        Fetcher::cached_all(self, blocks)
    }

    fn fetch(&self, block: &BlockRef, is_damaged: bool) -> Result<Fetched, Undelivered> {
        let fetched = match is_damaged {
            true => self.refetch(block),
            false => Fetcher::fetch(self, block),
        };
        Ok(fetched?)
    }

    fn stats(&self) -> FetchStats {
        Fetcher::stats(self)
    }

    fn take_cache_failure(&self) -> Option<CacheFailure> {
        self.take_cache_error().map(CacheFailure::from)
    }
}
