//! Blocks of layers that are not here yet, among all others ([`crate::lazy`]).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use zmachine_flist::BlockRef;

use super::{Attempt, FetchError, Fetcher, Landed, PAUSES, lock};
use crate::lazy::{Brought, LazyBlocks};

impl Fetcher {
    /// The lazy blocks that it knows, when the block is one of these.
    pub(super) fn lazy_of(&self, block: &BlockRef) -> Option<&LazyBlocks> {
        self.lazy.as_ref().filter(|lazy| lazy.has(block))
    }

    /// The block as the cache has it; `None` for a lazy one that nobody has read.
    pub(super) fn in_cache_as(&self, block: &BlockRef) -> Option<BlockRef> {
        match self.lazy_of(block) {
            Some(lazy) => lazy.known(block),
            None => Some(*block),
        }
    }

    /// Fetches the chunks of a lazy block, and keeps all blocks that are in them.
    pub(super) fn land_lazy(
        &self,
        lazy: &LazyBlocks,
        block: &BlockRef,
        deadline: Instant,
    ) -> Result<Landed, FetchError> {
        let mut landed = Landed::InCache;
        let mut kept = Vec::new();
        for brought in self.download_lazy(lazy, block, deadline)? {
            match self.cache.insert_verified(&brought.block, &brought.plain) {
                Ok(_) => kept.push((brought.lazy, brought.block)),
                Err(error) => {
                    self.counters.cache_failures.fetch_add(1, Relaxed);
                    *lock(&self.trouble) = Some(error);
                    if brought.lazy == *block {
                        landed = Landed::InMemory(brought.plain.into());
                    }
                }
            }
        }
        lazy.remember(&kept);
        Ok(landed)
    }

    /// The blocks in the chunks of a lazy block, itself first.
    pub(super) fn download_lazy(
        &self,
        lazy: &LazyBlocks,
        block: &BlockRef,
        deadline: Instant,
    ) -> Result<Vec<Brought>, FetchError> {
        for pause in PAUSES.iter().map(Some).chain([None]) {
            let error = match lazy.fetch(block, deadline) {
                Ok(brought) => {
                    let plain: usize = brought.iter().map(|brought| brought.plain.len()).sum();
                    self.count(lazy.stored_bytes(block), plain);
                    return Ok(brought);
                }
                Err(error) => error,
            };
            if !error.is_transient {
                self.counters.corrupt_answers.fetch_add(1, Relaxed);
            }
            let out_of_time = Instant::now() + pause.copied().unwrap_or_default() >= deadline;
            let attempt = Attempt {
                store: lazy.describe(),
                problem: error.what,
                is_missing: false,
                is_corrupt: !error.is_transient,
                is_transient: error.is_transient,
                hint: Some(
                    "the image was not here as a whole yet: see that its registry can be reached, and pull it".into(),
                ),
            };
            if !error.is_transient || pause.is_none() || out_of_time {
                return Err(self.failed(block, vec![attempt], out_of_time && error.is_transient));
            }
            std::thread::sleep(pause.copied().unwrap_or_default());
        }
        Err(self.failed(block, Vec::new(), false))
    }
}
