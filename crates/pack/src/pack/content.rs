//! Sealing and storing blocks; the blocks of one file, and the proof that it held still.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rustix::fs::OFlags;
use zmachine_flist::{BlockKey, BlockRef, Metadata, Sealer};
use zmachine_image::progress::Progress;
use zmachine_image::store::{BlockStore, StoreError};

use super::scan::{FileToRead, failed, metadata};
use super::{PackError, PackReport, Packed, xattr};
use crate::batch::{LARGE_TOGETHER, Spares};
use crate::zeros;

/// What all threads of one pack share.
pub(crate) struct Packer<'a> {
    store: &'a dyn BlockStore,
    progress: &'a dyn Progress,
    /// Every plaintext of this run that is in the store, by its digest.
    known: Mutex<HashMap<BlockKey, BlockRef>>,
    /// Plaintexts of an earlier flist; whether the store has them is asked once each.
    earlier: HashMap<BlockKey, BlockRef>,
    spares: Spares<Room>,
    /// The block of zeros, once there was one.
    zeros: OnceLock<BlockRef>,
    stored: AtomicU64,
    stored_bytes: AtomicU64,
    /// Attributes of overlayfs, which were left out.
    overlay_xattrs: AtomicU64,
}

/// Where a thread reads and seals a batch.
#[derive(Debug, Default)]
struct Room {
    plain: Vec<u8>,
    sealer: Sealer,
}

/// A piece that the store did not take, by its place in the batch.
struct Refused {
    piece: usize,
    source: StoreError,
}

/// A file that was of one block at most when it was scanned.
enum Small {
    /// It is; its length.
    Read(Metadata, usize),
    /// It has more now.
    HasGrown,
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
            spares: Spares::default(),
            zeros: OnceLock::new(),
            stored,
            stored_bytes,
            overlay_xattrs: AtomicU64::new(0),
        }
    }

    /// Sealed bytes that the store did not have.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// The counts that only the packer knows.
    pub(crate) fn into_report(self) -> PackReport {
        PackReport {
            unique: self.known.into_inner().unwrap_or_else(PoisonError::into_inner).len() as u64,
            stored: self.stored.into_inner(),
            stored_bytes: self.stored_bytes.into_inner(),
            overlay_xattrs: self.overlay_xattrs.into_inner(),
            ..PackReport::default()
        }
    }

    /// Metadata and blocks of a batch of regular files, each as it was at one moment. A file that changes is read once more.
    pub(super) fn files(&self, files: &[FileToRead]) -> Result<Vec<Packed>, PackError> {
        match files {
            [file] if file.size > BlockRef::SIZE as u64 => self.large_file(file).map(|packed| vec![packed]),
            files => self.spares.with(|room| self.small_files(files, room)),
        }
    }

    /// Files that were of one block at most when they were scanned.
    fn small_files(&self, files: &[FileToRead], room: &mut Room) -> Result<Vec<Packed>, PackError> {
        let mut packed = Vec::with_capacity(files.len());
        // Which file each piece is of, and where the piece ends.
        let mut pieces: Vec<(usize, usize)> = Vec::with_capacity(files.len());
        let mut end = 0;
        for (at, file) in files.iter().enumerate() {
            let read = twice(&file.path, |path| self.read_small(path, &mut room.plain, end))?;
            let Small::Read(metadata, length) = read else {
                packed.push(self.large_file(file)?);
                continue;
            };
            packed.push((file.node, metadata, Vec::new()));
            if length > 0 {
                end += length;
                pieces.push((at, end));
            }
        }
        let mut rest = &room.plain[..end];
        let mut start = 0;
        let cut = |(_, end): &(usize, usize)| {
            let piece;
            (piece, rest) = rest.split_at(end - start);
            start = *end;
            piece
        };
        let plains: Vec<&[u8]> = pieces.iter().map(cut).collect();
        let blocks = self.store_each(&plains, &mut room.sealer).map_err(|refused| {
            let (at, _) = pieces[refused.piece];
            refused.of(&files[at].path)
        })?;
        for ((at, _), block) in pieces.into_iter().zip(blocks) {
            packed[at].2 = vec![block];
        }
        Ok(packed)
    }

    /// A file of several blocks, read by all threads.
    fn large_file(&self, file: &FileToRead) -> Result<Packed, PackError> {
        let (metadata, blocks) = twice(&file.path, |path| self.read_large(path))?;
        Ok((file.node, metadata, blocks))
    }

    /// `None` when the file changed meanwhile.
    fn read_large(&self, path: &Path) -> Result<Option<(Metadata, Vec<BlockRef>)>, PackError> {
        let (file, before) = open(path)?;
        let count = before.len().div_ceil(BlockRef::SIZE as u64);
        let batch = |first: u64| {
            let range = first * LARGE_TOGETHER..count.min((first + 1) * LARGE_TOGETHER);
            self.spares
                .with(|room| self.blocks(&file, path, before.len(), range, room))
        };
        let batches = (0..count.div_ceil(LARGE_TOGETHER)).into_par_iter().map(batch);
        let blocks: Option<Vec<Vec<BlockRef>>> = batches.collect::<Result<_, _>>()?;
        let same = is_unchanged(&file, path, &before)?;
        let Some(blocks) = blocks.filter(|_| same) else {
            return Ok(None);
        };
        let mut metadata = metadata(&before);
        metadata.xattrs = xattr::of_file(&file, path, &self.overlay_xattrs)?;
        Ok(Some((metadata, blocks.concat())))
    }

    /// Reads a file of one block into `plain` from `start`; `None` when it changed meanwhile.
    fn read_small(&self, path: &Path, plain: &mut Vec<u8>, start: usize) -> Result<Option<Small>, PackError> {
        let (file, before) = open(path)?;
        if before.len() > BlockRef::SIZE as u64 {
            return Ok(Some(Small::HasGrown));
        }
        let length = before.len() as usize;
        if length > 0 && !read_at(&file, path, space(plain, start, length), 0)? {
            return Ok(None);
        }
        if !is_unchanged(&file, path, &before)? {
            return Ok(None);
        }
        let mut metadata = metadata(&before);
        metadata.xattrs = xattr::of_file(&file, path, &self.overlay_xattrs)?;
        Ok(Some(Small::Read(metadata, length)))
    }

    /// Reads, seals and stores some blocks of a file; `None` when it ends before them.
    fn blocks(
        &self,
        file: &File,
        path: &Path,
        size: u64,
        blocks: Range<u64>,
        room: &mut Room,
    ) -> Result<Option<Vec<BlockRef>>, PackError> {
        let offset = blocks.start * BlockRef::SIZE as u64;
        let length = size.min(blocks.end * BlockRef::SIZE as u64) - offset;
        if length.is_multiple_of(BlockRef::SIZE as u64) && zeros::is_hole(file, offset, length) {
            let zeros = self.zeros(room).map_err(|refused| refused.of(path))?;
            self.progress.advance(length);
            return Ok(Some(vec![zeros; (length / BlockRef::SIZE as u64) as usize]));
        }
        let plain = space(&mut room.plain, 0, length as usize);
        if !read_at(file, path, plain, offset)? {
            return Ok(None);
        }
        let plains: Vec<&[u8]> = plain.chunks(BlockRef::SIZE).collect();
        let stored = self.store_each(&plains, &mut room.sealer);
        stored.map(Some).map_err(|refused| refused.of(path))
    }

    /// The block of zeros, stored once.
    fn zeros(&self, room: &mut Room) -> Result<BlockRef, Refused> {
        if let Some(block) = self.zeros.get() {
            return Ok(*block);
        }
        let blocks = self.store_uncounted(&[&zeros::PLAIN], &mut room.sealer)?;
        Ok(*self.zeros.get_or_init(|| blocks[0]))
    }

    /// Seals one piece of a file, unless that was done before, and stores it.
    pub(crate) fn store_plain(&self, plain: &[u8]) -> Result<BlockRef, StoreError> {
        let stored = self.spares.with(|room| self.store_each(&[plain], &mut room.sealer));
        stored.map(|blocks| blocks[0]).map_err(|refused| refused.source)
    }

    /// Seals and stores those pieces that this run has not seen yet; the blocks of all.
    fn store_each(&self, plains: &[&[u8]], sealer: &mut Sealer) -> Result<Vec<BlockRef>, Refused> {
        let blocks = self.store_uncounted(plains, sealer)?;
        self.progress
            .advance(plains.iter().map(|plain| plain.len() as u64).sum());
        Ok(blocks)
    }

    /// The same for what the progress is told of elsewhere.
    fn store_uncounted(&self, plains: &[&[u8]], sealer: &mut Sealer) -> Result<Vec<BlockRef>, Refused> {
        let keys = BlockKey::of_each(plains);
        let new = self.unknown(&keys, plains)?;
        let batch: Vec<(BlockKey, &[u8])> = new.iter().map(|piece| (keys[*piece], plains[*piece])).collect();
        // Two threads may get here with the same plaintext; the store then takes it from the first one.
        let mut stored = Vec::with_capacity(new.len());
        for (piece, (block, sealed)) in new.into_iter().zip(sealer.seal(&batch)) {
            let is_new = self.store.put(&block.id, sealed);
            if is_new.map_err(|source| Refused { piece, source })? {
                self.stored.fetch_add(1, Ordering::Relaxed);
                self.stored_bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
            }
            stored.push((block.key, block));
        }
        let mut known = self.known();
        known.extend(stored);
        let blocks = keys.iter().map(|key| known[key]).collect();
        drop(known);
        Ok(blocks)
    }

    /// The first piece of each plaintext that is not known to be in the store.
    fn unknown(&self, keys: &[BlockKey], plains: &[&[u8]]) -> Result<Vec<usize>, Refused> {
        let mut seen = HashSet::new();
        let mut new: Vec<usize> = {
            let known = self.known();
            let is_new = |piece: &usize| !known.contains_key(&keys[*piece]) && seen.insert(keys[*piece]);
            (0..keys.len()).filter(is_new).collect()
        };
        let mut there = Vec::new();
        for piece in &new {
            let earlier = self.earlier.get(&keys[*piece]);
            let Some(block) = earlier.filter(|block| block.len as usize == plains[*piece].len()) else {
                continue;
            };
            let has = self.store.holds(&block.id);
            if has.map_err(|source| Refused { piece: *piece, source })? {
                there.push((block.key, *block));
            }
        }
        if !there.is_empty() {
            let mut known = self.known();
            known.extend(there);
            new.retain(|piece| !known.contains_key(&keys[*piece]));
        }
        Ok(new)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<BlockKey, BlockRef>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refused {
    fn of(self, path: &Path) -> PackError {
        PackError::Store {
            path: path.into(),
            source: self.source,
        }
    }
}

/// Reads a file, and once more should it change meanwhile.
fn twice<T>(path: &Path, mut read: impl FnMut(&Path) -> Result<Option<T>, PackError>) -> Result<T, PackError> {
    for _ in 0..2 {
        if let Some(read) = read(path)? {
            return Ok(read);
        }
    }
    Err(PackError::Changed { path: path.into() })
}

/// The bytes from `start`, made longer as far as needed: what was there before is not cleared.
fn space(bytes: &mut Vec<u8>, start: usize, length: usize) -> &mut [u8] {
    if bytes.len() < start + length {
        bytes.resize(start + length, 0);
    }
    &mut bytes[start..start + length]
}

/// Fills `bytes` from `offset`; `false` when the file ends before that.
fn read_at(file: &File, path: &Path, bytes: &mut [u8], offset: u64) -> Result<bool, PackError> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true).map_err(failed("read", path)),
    }
}

/// Opens a regular file for reading: not through a link, and without waiting should it have become a pipe.
fn open(path: &Path) -> Result<(File, std::fs::Metadata), PackError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let file = file.map_err(
        |error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::LOOP) => PackError::Changed { path: path.into() },
            _ => failed("open", path)(error),
        },
    )?;
    let stat = file.metadata().map_err(failed("look at", path))?;
    match stat.is_file() {
        true => Ok((file, stat)),
        false => Err(PackError::Changed { path: path.into() }),
    }
}

/// Whether an open file is still what it was.
fn is_unchanged(file: &File, path: &Path, before: &std::fs::Metadata) -> Result<bool, PackError> {
    let after = file.metadata().map_err(failed("look at", path))?;
    Ok(stamp(before) == stamp(&after))
}

fn stamp(stat: &std::fs::Metadata) -> Stamp {
    Stamp {
        size: stat.len(),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        ctime: (stat.ctime(), stat.ctime_nsec()),
    }
}
