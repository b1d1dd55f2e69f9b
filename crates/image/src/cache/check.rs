//! Hashing all that is in a cache: what `image cache verify` does.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use zmachine_sys::file::open_regular_itself;

use super::{BlockCache, CacheError, CachedBlock, io_error, name_is_digest_of, read_all};
use crate::progress::Progress;

/// What [`BlockCache::check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheCheck {
    /// Blocks whose bytes are right.
    pub good: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Files that are not the block their name says, sorted.
    pub damaged: Vec<PathBuf>,
}

impl BlockCache {
    /// Hashes everything that has the name of a block; `removes`: what is something else goes. Blocks that come or go meanwhile
    /// are no damage. Progress is told in blocks.
    ///
    /// # Errors
    /// When a directory cannot be listed, or a damaged file not be removed.
    pub fn check(&self, removes: bool, progress: &dyn Progress) -> Result<CacheCheck, CacheError> {
        let blocks = self.list()?;
        progress.begin(Some(blocks.len() as u64), "verifying the cache");
        let found = Mutex::new(CacheCheck::default());
        blocks.par_iter().try_for_each(|CachedBlock { path, .. }| {
            let bytes = right_bytes(path);
            progress.advance(1);
            match bytes {
                Ok(Some(bytes)) => {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.good += 1;
                    found.bytes += bytes;
                    Ok(())
                }
                // It was removed since the listing.
                Err(CacheError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
                // What cannot be read is as little a block as what reads as something else.
                Ok(None) | Err(_) => {
                    found
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .damaged
                        .push(path.clone());
                    if removes { self.remove(path) } else { Ok(()) }
                }
            }
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.damaged.sort();
        Ok(found)
    }
}

/// Length of a file that is the block its name says.
fn right_bytes(path: &Path) -> Result<Option<u64>, CacheError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let file = open_regular_itself(path).map_err(|e| io_error("open", path, e))?;
    let plain = read_all(file, path)?;
    Ok(name_is_digest_of(name, &plain).then_some(plain.len() as u64))
}
