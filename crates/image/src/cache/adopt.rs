//! Moving the blocks of one cache into another one of the same user.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use zmachine_sys::file::open_regular_itself;

use super::{
    BlockCache, CacheError, CachedBlock, io_error, is_something_else, list, make_dirs, name_is_digest_of, read_all,
};

/// What one cache took over from another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Adopted {
    /// Blocks that were moved, or were in both.
    pub blocks: u64,
    /// Files that were not the block their name says; removed.
    pub damaged: u64,
}

impl BlockCache {
    /// Moves all blocks of another cache here, also from another file system, after hashing each of them. The other one is gone
    /// then, or empty where its directory cannot be removed.
    ///
    /// # Errors
    /// When a block cannot be read, written or removed; those that were moved are here then, and the others where they were.
    pub fn adopt(&self, other: &BlockCache) -> Result<Adopted, CacheError> {
        let mut report = Adopted::default();
        for CachedBlock { path, .. } in other.list()? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let plain = content(&path)?.unwrap_or_default();
            if name_is_digest_of(name, &plain) {
                self.take_over(&path, &self.dir.join(&name[..2]).join(name), &plain)?;
                report.blocks += 1;
            } else {
                report.damaged += 1;
            }
            other.remove(&path)?;
        }
        for left in list(&other.dir)? {
            // Directories without blocks, and the file of its claims.
            let _ = match left.is_dir() {
                true => fs::remove_dir(&left),
                false => fs::remove_file(&left),
            };
        }
        let _ = fs::remove_dir(&other.dir);
        Ok(report)
    }

    /// Gives the block in the file `from`, whose bytes are `plain`, the name `to`, unless the block has it already.
    fn take_over(&self, from: &Path, to: &Path, plain: &[u8]) -> Result<(), CacheError> {
        match content(to) {
            Ok(Some(there)) if there == plain => return Ok(()),
            Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            _ => self.remove(to)?,
        }
        let shard = to.parent().unwrap_or(&self.dir);
        make_dirs(shard).map_err(|e| self.io_or_full("create directory", shard, e))?;
        // On another file system its bytes are written anew.
        if fs::hard_link(from, to).is_err() {
            let new = self.written(to, plain)?;
            // Somebody else who is faster has the same bytes.
            new.publish_new(to, false).map_err(|e| self.file_or_full(to, e))?;
        }
        Ok(())
    }
}

/// The bytes of a regular file; `None` for whatever else is there.
fn content(path: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    match open_regular_itself(path) {
        Ok(file) => read_all(file, path).map(Some),
        Err(e) if is_something_else(&e) => Ok(None),
        Err(e) => Err(io_error("open", path, e)),
    }
}
