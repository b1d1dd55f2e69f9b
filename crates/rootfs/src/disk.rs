//! The lazy disk: bytes of the device from the metadata file and the block cache, fetched when they are first read.
//!
//! [`LazyDisk::read_local`] never waits for a network: what is not here yet is an answer ([`Outcome::Missing`]), and
//! [`LazyDisk::fetch`] then gets it. The caller can so hold a lock around the one and not around the other.
//!
//! # Invariants
//! Bytes between the end of a block and the next 4 KiB boundary are zeros: the kernel shows them to whoever maps the last
//! page of a file. A block that cannot be fetched fails the requests that need it and nothing else; for
//! [`FAILURE_REST`] it fails them at once, because the kernel repeats a failed read page by page. A block that is in the
//! cache is always served, whatever failed before.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use zmachine_flist::BlockRef;
use zmachine_image::fetch::{FetchStats, Fetched};

use crate::blocks::{Blocks, CacheFailure, Undelivered};
use crate::erofs::{BLOCK_SIZE, Extent};
use crate::first_reads::FirstReads;
use crate::map::{ExtentMap, MapError};
use crate::open_blocks::OpenBlocks;
use crate::slices::{Cursor, fill_zero, read_bytes, read_file};

/// How long a block that failed is not asked for again.
pub const FAILURE_REST: Duration = Duration::from_secs(2);
/// Failed blocks remembered at most; a forgotten one is only asked for again.
const FAILURES_MAX: usize = 1024;

/// Why a lazy disk cannot be opened.
#[derive(Debug, Error)]
pub enum OpenDiskError {
    /// The metadata file cannot be opened.
    #[error("cannot open image metadata {}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The metadata file and the extent table are not of one image.
    #[error("image metadata {} has {found} bytes, its extent table says {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What the table says.
        expected: u64,
    },
    /// The extent table is unusable.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// A part of the device with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The metadata file, at the device's offset.
    Metadata,
    /// A file block, from this byte of it on.
    Block {
        /// The block and its address.
        extent: Extent,
        /// Bytes into the block.
        offset: u32,
    },
    /// Zeros.
    Zeros,
}

/// What [`LazyDisk::read_local`] did.
#[derive(Debug)]
pub enum Outcome {
    /// All bytes are in place.
    Done,
    /// This block is not here; fetch it and read again.
    Missing {
        /// The block and its address.
        extent: Extent,
        /// The cache has a file for it that cannot be read.
        is_damaged: bool,
    },
    /// The bytes cannot be had now.
    Failed,
}

/// Blocks that one request has fetched and the cache could not keep.
pub type Pinned = Vec<(u32, Arc<Fetched>)>;

/// A read-only disk of an image.
pub struct LazyDisk {
    metadata: File,
    map: ExtentMap,
    blocks: Box<dyn Blocks>,
    open: Mutex<OpenBlocks>,
    /// First device block of failed blocks, and since when.
    failures: Mutex<HashMap<u32, Instant>>,
    first_reads: FirstReads,
    demand: Mutex<Demand>,
}

/// What guests wait for.
#[derive(Debug)]
struct Demand {
    waiting: usize,
    last: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both values behind these locks are caches that are whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the metadata file and the extent table of a disk.
///
/// # Errors
/// When one of the files cannot be used, or they do not belong together.
pub fn open_files(erofs: &Path, map: &Path) -> Result<(File, ExtentMap), OpenDiskError> {
    let map = ExtentMap::open(map)?;
    let opened = File::open(erofs).and_then(|file| file.metadata().map(|m| (file, m.len())));
    let (metadata, found) = opened.map_err(|source| OpenDiskError::Metadata {
        path: erofs.to_owned(),
        source,
    })?;
    if found != map.metadata_bytes() {
        return Err(OpenDiskError::Length {
            path: erofs.to_owned(),
            found,
            expected: map.metadata_bytes(),
        });
    }
    Ok((metadata, map))
}

impl LazyDisk {
    /// Opens the disk whose metadata file and extent table are `erofs` and `map`; its blocks are `blocks`.
    ///
    /// # Errors
    /// When one of the files cannot be used, or they do not belong together.
    pub fn open(erofs: &Path, map: &Path, blocks: impl Blocks + 'static) -> Result<LazyDisk, OpenDiskError> {
        let (metadata, map) = open_files(erofs, map)?;
        Ok(LazyDisk::of(metadata, map, blocks))
    }

    /// The disk of files that are open already (see [`open_files`]).
    pub fn of(metadata: File, map: ExtentMap, blocks: impl Blocks + 'static) -> LazyDisk {
        LazyDisk {
            metadata,
            map,
            blocks: Box::new(blocks),
            open: Mutex::new(OpenBlocks::new(getrlimit(Resource::Nofile).current)),
            failures: Mutex::default(),
            first_reads: FirstReads::default(),
            demand: Mutex::new(Demand { waiting: 0, last: None }),
        }
    }

    /// Notes from now on which blocks are read, in which order.
    #[must_use]
    pub fn recording(mut self) -> LazyDisk {
        self.first_reads = FirstReads::recording();
        self
    }

    /// The first device blocks of those read for the first time since this was asked, at most 256 of them, in the order
    /// of reading.
    pub fn take_first_reads(&self) -> Vec<u32> {
        self.first_reads.take()
    }

    /// Size in sectors of 512 bytes.
    pub fn capacity_sectors(&self) -> u64 {
        self.map.device_bytes() / 512
    }

    /// Why the cache could not keep a block, the last time since this was asked.
    pub fn take_cache_failure(&self) -> Option<CacheFailure> {
        self.blocks.take_cache_failure()
    }

    /// The block that begins at device block `start`, if one does.
    pub fn extent_at(&self, start: u32) -> Option<Extent> {
        let found = self.map.lookup(start).ok().flatten()?;
        (found.start == start).then_some(found)
    }

    /// The block after `extent` on the device, or the first of all.
    pub fn extent_after(&self, extent: Option<&Extent>) -> Option<Extent> {
        let next = match extent {
            Some(extent) => extent.start.checked_add(extent.device_blocks())?,
            None => u32::try_from(self.map.metadata_bytes() / BLOCK_SIZE).ok()?,
        };
        self.extent_at(next)
    }

    /// What was fetched so far.
    pub fn fetch_stats(&self) -> FetchStats {
        self.blocks.stats()
    }

    /// The piece at byte `offset` of the device and its length, at most `len` (more than 0). Past the end are zeros.
    ///
    /// # Errors
    /// When the extent table cannot be read.
    pub fn piece(&self, offset: u64, len: u64) -> Result<(Piece, u64), MapError> {
        let metadata = self.map.metadata_bytes();
        if offset < metadata {
            return Ok((Piece::Metadata, len.min(metadata - offset)));
        }
        let block = u32::try_from(offset / BLOCK_SIZE).unwrap_or(u32::MAX);
        let Some(extent) = self.map.lookup(block)? else {
            return Ok((Piece::Zeros, len));
        };
        let within = offset - u64::from(extent.start) * BLOCK_SIZE;
        let data = u64::from(extent.block.len);
        if within < data {
            let piece = Piece::Block {
                extent,
                offset: within as u32,
            };
            return Ok((piece, len.min(data - within)));
        }
        let end = u64::from(extent.device_blocks()) * BLOCK_SIZE;
        Ok((Piece::Zeros, len.min(end.saturating_sub(within).max(1))))
    }

    /// Reads from byte `offset` of the device into `slices`, as far as everything is on this host.
    pub fn read_local<B: BitmapSlice>(
        &self,
        mut offset: u64,
        slices: &[VolatileSlice<'_, B>],
        pinned: &Pinned,
    ) -> Outcome {
        let mut cursor = Cursor { slices, skip: 0 };
        loop {
            let left = cursor.left();
            if left == 0 {
                return Outcome::Done;
            }
            let Ok((piece, len)) = self.piece(offset, left as u64) else {
                return Outcome::Failed;
            };
            // `len` is at most `left`.
            let target = cursor.take(len as usize);
            let outcome = self.read_piece(piece, offset, &target, pinned);
            if !matches!(outcome, Outcome::Done) {
                return outcome;
            }
            offset += len;
        }
    }

    fn read_piece<B: BitmapSlice>(
        &self,
        piece: Piece,
        offset: u64,
        target: &[VolatileSlice<'_, B>],
        pinned: &Pinned,
    ) -> Outcome {
        match piece {
            Piece::Zeros => {
                target.iter().for_each(fill_zero);
                Outcome::Done
            }
            Piece::Metadata => match read_file(&self.metadata, target, offset) {
                Ok(()) => Outcome::Done,
                Err(_) => Outcome::Failed,
            },
            Piece::Block { extent, offset } => self.read_block(&extent, offset, target, pinned),
        }
    }

    fn read_block<B: BitmapSlice>(
        &self,
        extent: &Extent,
        offset: u32,
        target: &[VolatileSlice<'_, B>],
        pinned: &Pinned,
    ) -> Outcome {
        self.first_reads.note(extent.start);
        let Some(block) = self.local(extent, pinned) else {
            return match self.has_just_failed(extent) {
                true => Outcome::Failed,
                false => Outcome::Missing {
                    extent: *extent,
                    is_damaged: false,
                },
            };
        };
        let read = match &*block {
            Fetched::File(file) => read_file(file, target, u64::from(offset)),
            Fetched::Bytes(bytes) => read_bytes(bytes, target, offset as usize),
        };
        if read.is_ok() {
            return Outcome::Done;
        }
        lock(&self.open).remove(extent.start);
        match self.has_just_failed(extent) {
            true => Outcome::Failed,
            false => Outcome::Missing {
                extent: *extent,
                is_damaged: true,
            },
        }
    }

    /// The block, when it is on this host.
    fn local(&self, extent: &Extent, pinned: &Pinned) -> Option<Arc<Fetched>> {
        if let Some((_, block)) = pinned.iter().find(|(start, _)| *start == extent.start) {
            return Some(Arc::clone(block));
        }
        let known = lock(&self.open).get(extent.start);
        if known.is_some() {
            return known;
        }
        let wanted = self.to_open_with(extent);
        let blocks: Vec<BlockRef> = wanted.iter().map(|extent| extent.block).collect();
        let found = self.blocks.cached_all(&blocks);
        let mut open = lock(&self.open);
        let mut first = None;
        // The first last, so that no other one takes its place.
        for (extent, file) in wanted.iter().zip(found).rev() {
            first = file.map(|file| Arc::new(Fetched::File(file)));
            first
                .iter()
                .for_each(|block| open.insert(extent.start, Arc::clone(block)));
        }
        first
    }

    /// `extent`, and when what comes before it on the device was opened lately, those behind it that are not open: whoever
    /// reads one file after the other will want them too.
    fn to_open_with(&self, extent: &Extent) -> Vec<Extent> {
        let mut wanted = vec![*extent];
        let most = self.blocks.together();
        let mut open = lock(&self.open);
        if most > 1 && open.goes_on(extent.start) {
            while wanted.len() < most
                && let Some(next) = self.extent_after(wanted.last())
                && !open.has(next.start)
            {
                wanted.push(next);
            }
        }
        let end = wanted
            .last()
            .map_or(0, |last| last.start.saturating_add(last.device_blocks()));
        open.opened_until(end);
        wanted
    }

    /// Gets a block that [`LazyDisk::read_local`] missed; waits as long as a block's deadline. What the cache could not
    /// keep is added to `pinned`.
    ///
    /// # Errors
    /// When no store delivers it; it then counts as failed for [`FAILURE_REST`].
    pub fn fetch(&self, extent: &Extent, is_damaged: bool, pinned: &mut Pinned) -> Result<(), Undelivered> {
        lock(&self.demand).waiting += 1;
        let fetched = self.blocks.fetch(&extent.block, is_damaged);
        {
            let mut demand = lock(&self.demand);
            demand.waiting -= 1;
            demand.last = Some(Instant::now());
        }
        match fetched {
            Ok(fetched) => {
                let block = Arc::new(fetched);
                if matches!(&*block, Fetched::Bytes(_)) {
                    pinned.push((extent.start, Arc::clone(&block)));
                }
                lock(&self.open).insert(extent.start, block);
                lock(&self.failures).remove(&extent.start);
                Ok(())
            }
            Err(error) => {
                self.give_up(extent);
                Err(error)
            }
        }
    }

    /// Adds the blocks that a read of `len` bytes from byte `offset` on needs and this host does not have to `missing`, up to
    /// `most` in all. Those that have just failed are left out. Looks at `pieces` pieces at the most, and takes them off.
    pub fn missing(&self, mut offset: u64, mut len: u64, missing: &mut Vec<Extent>, most: usize, pieces: &mut usize) {
        while len > 0 && missing.len() < most && *pieces > 0 {
            *pieces -= 1;
            let Ok((piece, piece_len)) = self.piece(offset, len) else {
                return;
            };
            if let Piece::Block { extent, .. } = piece
                && !missing.contains(&extent)
                && !self.has_just_failed(&extent)
                && !self.is_here(&extent)
            {
                missing.push(extent);
            }
            offset += piece_len;
            len -= piece_len;
        }
    }

    /// Whether the block is on this host.
    pub fn is_here(&self, extent: &Extent) -> bool {
        lock(&self.open).get(extent.start).is_some() || self.blocks.cached(&extent.block).is_some()
    }

    /// Gets a block that nobody waits for yet. Whether the cache has kept it; if not, it is in memory for a moment. A
    /// failure is not remembered: who needs the block finds out for himself.
    ///
    /// # Errors
    /// When no store delivers it.
    pub fn fetch_ahead(&self, extent: &Extent) -> Result<bool, Undelivered> {
        let fetched = self.blocks.fetch(&extent.block, false)?;
        if matches!(fetched, Fetched::File(_)) {
            // Opened again when it is read; there are more blocks than descriptors.
            lock(&self.open).remove_from_memory(extent.start);
            return Ok(true);
        }
        lock(&self.open).insert(extent.start, Arc::new(fetched));
        Ok(false)
    }

    /// A block that is in memory alone, because the cache could not keep it; another one each time, while there are others.
    pub fn in_memory_alone(&self) -> Option<Extent> {
        let start = {
            let mut open = lock(&self.open);
            let oldest = open.oldest_in_memory()?;
            open.get(oldest);
            oldest
        };
        self.extent_at(start)
    }

    /// Whether no guest has waited for a block for `time`.
    pub fn is_idle_for(&self, time: Duration) -> bool {
        let demand = lock(&self.demand);
        demand.waiting == 0 && demand.last.is_none_or(|last| last.elapsed() >= time)
    }

    /// Lets a block count as failed for [`FAILURE_REST`].
    pub fn give_up(&self, extent: &Extent) {
        let mut failures = lock(&self.failures);
        if failures.len() >= FAILURES_MAX {
            failures.retain(|_, since| since.elapsed() < FAILURE_REST);
        }
        failures.insert(extent.start, Instant::now());
    }

    fn has_just_failed(&self, extent: &Extent) -> bool {
        lock(&self.failures)
            .get(&extent.start)
            .is_some_and(|since| since.elapsed() < FAILURE_REST)
    }
}
