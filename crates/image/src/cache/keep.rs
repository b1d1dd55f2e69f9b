//! Many plaintexts at once, as the layers of an image bring them: named as they come, durable together.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use zmachine_flist::{BlockKey, BlockRef};

use super::marks::Mark;
use super::{BlockCache, CacheError, io_error};

/// Keeps blocks of a cache; they are durable when [`Keeper::settle`] returns.
#[derive(Debug)]
pub struct Keeper {
    cache: BlockCache,
    /// Of the cache, open since before the first block was written: a failure to write any of them is told to who syncs by it.
    directory: File,
    unsettled: AtomicU64,
}

impl BlockCache {
    /// For blocks that come in great number.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn keeper(&self) -> Result<Keeper, CacheError> {
        let directory = File::open(&*self.dir).map_err(|e| io_error("open", &self.dir, e))?;
        Ok(Keeper {
            cache: self.clone(),
            directory,
            unsettled: AtomicU64::new(0),
        })
    }

    /// Whether there is a file of the block's length; what is in it shows when it is read.
    pub fn seems_to_have(&self, block: &BlockRef) -> bool {
        let meta = self.path_of(block).symlink_metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.len() == u64::from(block.len))
    }

    /// Gives another cache of the same user a block of this one.
    ///
    /// # Errors
    /// When it is not here, or not the block; or cannot be written there.
    pub(crate) fn give(&self, block: &BlockRef, other: &BlockCache) -> Result<(), CacheError> {
        if other.get(block)?.is_some() {
            return Ok(());
        }
        let path = self.path_of(block);
        let file = self.get(block)?;
        let file = file.ok_or_else(|| io_error("read", &path, std::io::ErrorKind::NotFound.into()))?;
        let plain = super::read_all(file, &path)?;
        other.insert(block, &plain).map(drop)
    }
}

impl Keeper {
    /// Hashes plaintexts of up to [`BlockRef::SIZE`] bytes and keeps those that are not there; the blocks of all.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn keep(&self, plains: &[&[u8]]) -> Result<Vec<BlockRef>, CacheError> {
        let keys = BlockKey::of_each(plains);
        let mut blocks = Vec::with_capacity(plains.len());
        for (key, plain) in keys.into_iter().zip(plains) {
            let block = BlockRef::unsealed(key, plain.len() as u32);
            if !matches!(self.cache.get(&block), Ok(Some(_))) {
                self.write(&block, plain)?;
            }
            blocks.push(block);
        }
        Ok(blocks)
    }

    fn write(&self, block: &BlockRef, plain: &[u8]) -> Result<(), CacheError> {
        let cache = &self.cache;
        let path = cache.path_of(block);
        let new = cache.unnamed_beside(&path)?;
        new.file()
            .write_all(plain)
            .map_err(|e| cache.io_or_full("write", &path, e))?;
        let is_new = new
            .publish_new(&path, false)
            .map_err(|e| cache.file_or_full(&path, e))?;
        if !is_new {
            // Somebody was faster, or something torn is there.
            return cache.insert_verified(block, plain).map(drop);
        }
        self.unsettled.fetch_add(plain.len() as u64, Relaxed);
        let meta = path.symlink_metadata().map_err(|e| io_error("look at", &path, e))?;
        // Nobody has replaced it meanwhile: the mark is of what was written here.
        if meta.len() == u64::from(block.len) && meta.nlink() == 1 {
            cache.marks.set(Mark::of(block, &meta));
        }
        Ok(())
    }

    /// Bytes written that are not durable yet.
    pub fn unsettled(&self) -> u64 {
        self.unsettled.load(Relaxed)
    }

    /// Makes all blocks durable that were written until now.
    ///
    /// # Errors
    /// When the file system could not write one of them.
    pub fn settle(&self) -> Result<(), CacheError> {
        let written = self.unsettled();
        let synced = rustix::fs::syncfs(&self.directory);
        synced.map_err(|e| self.cache.io_or_full("sync", &self.cache.dir, e.into()))?;
        self.unsettled.fetch_sub(written, Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_kept_is_found_and_costs_no_second_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let keeper = cache.keeper().unwrap();
        let blocks = keeper.keep(&[b"one", b"two", b"one"]).unwrap();
        assert_eq!((keeper.unsettled(), blocks[0]), (6, blocks[2]));
        keeper.settle().unwrap();
        assert_eq!(keeper.keep(&[b"two"]).unwrap(), [blocks[1]]);
        assert_eq!((keeper.unsettled(), cache.list().unwrap().len()), (0, 2));
        let mut plain = String::new();
        cache
            .get(&blocks[1])
            .unwrap()
            .unwrap()
            .read_to_string(&mut plain)
            .unwrap();
        assert!(plain == "two" && blocks[1].is_unsealed() && cache.seems_to_have(&blocks[1]));
        // What is damaged is written anew.
        std::fs::write(cache.path_of(&blocks[1]), "tw0").unwrap();
        keeper.keep(&[b"two"]).unwrap();
        assert_eq!(std::fs::read(cache.path_of(&blocks[1])).unwrap(), b"two");
    }
}
