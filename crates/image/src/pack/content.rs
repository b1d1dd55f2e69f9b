//! Sealing and storing blocks; the blocks of one file, and the proof that it held still.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::OFlags;
use zmachine_flist::{BlockKey, BlockRef, Metadata};

use super::scan::{failed, metadata};
use super::{PackError, PackReport, xattr};
use crate::progress::Progress;
use crate::store::{BlockStore, StoreError};

/// What all threads of one pack share.
pub(crate) struct Packer<'a> {
    store: &'a dyn BlockStore,
    progress: &'a dyn Progress,
    /// Every plaintext of this run that is in the store, by its digest.
    known: Mutex<HashMap<BlockKey, BlockRef>>,
    /// Plaintexts of an earlier flist; whether the store has them is asked once each.
    earlier: HashMap<BlockKey, BlockRef>,
    stored: AtomicU64,
    stored_bytes: AtomicU64,
}

/// What shows that a file was changed: size, and both times to the nanosecond.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl<'a> Packer<'a> {
    /// `known`: blocks of an earlier flist, whose plaintext need not be sealed again when the store has them.
    pub(crate) fn new(store: &'a dyn BlockStore, known: &[BlockRef], progress: &'a dyn Progress) -> Packer<'a> {
        let (stored, stored_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Packer {
            store,
            progress,
            earlier: known.iter().map(|block| (block.key, *block)).collect(),
            known: Mutex::default(),
            stored,
            stored_bytes,
        }
    }

    /// The counts that only the packer knows.
    pub(crate) fn into_report(self) -> PackReport {
        PackReport {
            unique: self.known.into_inner().unwrap_or_else(PoisonError::into_inner).len() as u64,
            stored: self.stored.into_inner(),
            stored_bytes: self.stored_bytes.into_inner(),
            ..PackReport::default()
        }
    }

    /// Metadata and blocks of a regular file as it was at one moment. A file that changes is read once more.
    pub(super) fn file(&self, path: &Path) -> Result<(Metadata, Vec<BlockRef>), PackError> {
        for _ in 0..2 {
            if let Some(read) = self.read_once(path)? {
                return Ok(read);
            }
        }
        Err(PackError::Changed { path: path.into() })
    }

    /// `None` when the file changed meanwhile.
    fn read_once(&self, path: &Path) -> Result<Option<(Metadata, Vec<BlockRef>)>, PackError> {
        let file = open(path)?;
        let before = file.metadata().map_err(failed("look at", path))?;
        if !before.is_file() {
            return Err(PackError::Changed { path: path.into() });
        }
        let count = before.len().div_ceil(BlockRef::SIZE as u64);
        let read = |index| self.block(&file, path, before.len(), index);
        let blocks: Option<Vec<BlockRef>> = if count < 2 {
            (0..count).map(read).collect::<Result<_, _>>()?
        } else {
            (0..count).into_par_iter().map(read).collect::<Result<_, _>>()?
        };
        let after = file.metadata().map_err(failed("look at", path))?;
        let same = stamp(&before) == stamp(&after);
        let Some(blocks) = blocks.filter(|_| same) else {
            return Ok(None);
        };
        let mut metadata = metadata(&before);
        metadata.xattrs = xattr::of_file(&file, path)?;
        Ok(Some((metadata, blocks)))
    }

    /// Reads, seals and stores one block; `None` when the file ends before it.
    fn block(&self, file: &File, path: &Path, size: u64, index: u64) -> Result<Option<BlockRef>, PackError> {
        let offset = index * BlockRef::SIZE as u64;
        let mut plain = vec![0; (size - offset).min(BlockRef::SIZE as u64) as usize];
        match file.read_exact_at(&mut plain, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(failed("read", path))?,
        }
        let stored = self.store_plain(&plain).map_err(|source| PackError::Store {
            path: path.into(),
            source,
        })?;
        Ok(Some(stored))
    }

    /// Seals one piece of a file, unless that was done before, and stores it.
    pub(crate) fn store_plain(&self, plain: &[u8]) -> Result<BlockRef, StoreError> {
        let key = BlockKey::of(plain);
        let known = self.known().get(&key).copied();
        let block = match known {
            Some(block) => block,
            None => self.store_new(key, plain)?,
        };
        self.progress.advance(plain.len() as u64);
        Ok(block)
    }

    /// Two threads may get here with the same plaintext; the store then takes it from the first one.
    fn store_new(&self, key: BlockKey, plain: &[u8]) -> Result<BlockRef, StoreError> {
        if let Some(block) = self.earlier.get(&key).filter(|block| block.len as usize == plain.len())
            && self.store.has(&block.id)?
        {
            self.known().insert(key, *block);
            return Ok(*block);
        }
        let (block, sealed) = key.seal(plain);
        if self.store.put(&block.id, &sealed)? {
            self.stored.fetch_add(1, Ordering::Relaxed);
            self.stored_bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
        }
        self.known().insert(key, block);
        Ok(block)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<BlockKey, BlockRef>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a file for reading: not through a link, and without waiting should it have become a pipe.
fn open(path: &Path) -> Result<File, PackError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    file.map_err(
        |error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::LOOP) => PackError::Changed { path: path.into() },
            _ => failed("open", path)(error),
        },
    )
}

fn stamp(stat: &std::fs::Metadata) -> Stamp {
    Stamp {
        size: stat.len(),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        ctime: (stat.ctime(), stat.ctime_nsec()),
    }
}
