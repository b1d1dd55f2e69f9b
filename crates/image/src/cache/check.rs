//! Hashing all that is in a cache: what `image cache verify` does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use zmachine_sys::file::open_regular_itself;

use super::{BlockCache, CacheError, CachedBlock, io_error, is_something_else, name_is_digest_of, read_all};
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
    /// are no damage; one that the disk does not give is, and stays. Progress is told in blocks.
    ///
    /// # Errors
    /// When a directory cannot be listed, a file not be opened, or a damaged one not be removed.
    pub fn check(&self, removes: bool, progress: &dyn Progress) -> Result<CacheCheck, CacheError> {
        let blocks = self.list()?;
        progress.begin(Some(blocks.len() as u64), "verifying the cache");
        let found = Mutex::new(CacheCheck::default());
        blocks.par_iter().try_for_each(|CachedBlock { path, .. }| {
            let state = state_of(path)?;
            progress.advance(1);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            match state {
                State::Gone => return Ok(()),
                State::Good(bytes) => {
                    found.good += 1;
                    found.bytes += bytes;
                    return Ok(());
                }
                State::Wrong | State::Unreadable => found.damaged.push(path.clone()),
            }
            drop(found);
            // What cannot be read stays until somebody has its bytes: it may be read again later.
            match state {
                State::Wrong if removes => self.remove(path),
                _ => Ok(()),
            }
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.damaged.sort();
        Ok(found)
    }
}

/// What has the name of a block.
enum State {
    /// The block, of so many bytes.
    Good(u64),
    /// Other bytes, or no regular file.
    Wrong,
    /// The disk does not give its bytes.
    Unreadable,
    /// Nothing any more.
    Gone,
}

fn state_of(path: &Path) -> Result<State, CacheError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let file = match open_regular_itself(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Gone),
        Err(e) if is_something_else(&e) => return Ok(State::Wrong),
        Err(e) => return Err(io_error("open", path, e)),
    };
    Ok(match read_all(file, path) {
        Ok(plain) if name_is_digest_of(name, &plain) => State::Good(plain.len() as u64),
        Ok(_) => State::Wrong,
        Err(_) => State::Unreadable,
    })
}
