//! The block cache: verified plaintext blocks on local disk, shared by all images and machines of the homes that use it.
//!
//! ```text
//! <dir>/ab/<hex>     the plaintext of one block; <hex> = its block key (digest of the plaintext), ab = the first two digits
//! ```
//!
//! Invariants
//! * A name appears only when the whole plaintext is behind it **and on stable storage**: the bytes go into an unnamed
//!   file, `fdatasync` returns, then `linkat` gives the name. A power loss leaves the block or no block, never a torn one.
//!   The directory itself is not synced: a name that gets lost costs one fetch. Only [`Keeper`] names many blocks first and makes
//!   them durable together; what a power loss tears meanwhile is found by its hash, and no image has such blocks yet.
//! * Only bytes that were checked against the key are written. Two writers of one block write the same, so the first wins
//!   and the second is fine.
//! * Whoever opens a block gets one that was hashed since this host was started, by this process or another (`marks`). A file
//!   that is not the block its name says is removed and reported absent, and so is whatever is no regular file.
//! * Everything here can be fetched again, but for the blocks of layers (`library::layers`), which are as durable as the images that
//!   need them; nothing else may be kept below `<dir>`.
//!
//! It fetches nothing and knows no stores.

mod adopt;
mod check;
mod keep;
mod marks;

use std::fs::{self, DirBuilder, File, FileTimes, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use zmachine_flist::{BlockKey, BlockRef, Digest};
use zmachine_sys::file::{FileError, NewFile, open_regular_itself};

pub use adopt::Adopted;
pub use check::CacheCheck;
pub use keep::Keeper;
use marks::{Mark, Marks};

/// Blocks are hashed together up to this many bytes: the memory that takes, and as many large ones as gain by it.
const HASHED_TOGETHER: u64 = 4 * BlockRef::SIZE as u64;

/// Why the cache could not keep or give a block.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The disk (or the quota) has no room left.
    #[error("the block cache {} is full", dir.display())]
    Full {
        /// The cache.
        dir: PathBuf,
    },
    /// The bytes are not the block they were said to be.
    #[error("the bytes given to the cache are not block {key}")]
    NotTheBlock {
        /// The block key.
        key: String,
    },
    /// What was in the place of a block was not that block, and is gone.
    #[error("the cached block {} was damaged, and is fetched again", path.display())]
    Damaged {
        /// Its file.
        path: PathBuf,
    },
    /// A file or directory of the cache could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CacheError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            CacheError::Full { .. } => Some("free some space, or run 'zmachine image prune'".into()),
            CacheError::Damaged { .. } => {
                Some("look for others with 'zmachine image cache verify', and at the health of the disk".into())
            }
            _ => None,
        }
    }
}

/// What [`BlockCache::verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The block is there and its bytes are right.
    Good,
    /// The block was not there.
    Absent,
    /// Something else was there under its name; it has been removed.
    Corrupt,
}

/// What [`BlockCache::look`] found in the place of a block.
#[derive(Debug)]
pub(crate) enum Found {
    /// The block, hashed in this boot.
    Block(File),
    /// Nothing.
    Nothing,
    /// Something else, which has been removed.
    Damaged,
}

impl Found {
    fn block(self) -> Option<File> {
        match self {
            Found::Block(file) => Some(file),
            Found::Nothing | Found::Damaged => None,
        }
    }
}

/// A regular file in the place of a block.
struct Opened {
    file: File,
    meta: Metadata,
}

/// One file of the cache.
#[derive(Debug)]
pub(crate) struct CachedBlock {
    pub(crate) path: PathBuf,
    /// On disk.
    pub(crate) bytes: u64,
    /// When it was last read or written, in seconds since 1970; see `note_use`.
    pub(crate) last_used: i64,
}

/// The cache in one directory. Clones share it.
#[derive(Debug, Clone)]
pub struct BlockCache {
    dir: Arc<Path>,
    marks: Arc<Marks>,
}

impl BlockCache {
    /// Opens the cache in `dir` (`<home>/blocks`, or that of a shared cache), making the directory when it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: &Path) -> Result<BlockCache, CacheError> {
        make_dirs(dir).map_err(|e| io_error("create directory", dir, e))?;
        Ok(BlockCache {
            dir: dir.into(),
            marks: Arc::new(Marks::open(dir)),
        })
    }

    /// The directory, for sandboxes that must allow it.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Where the block is or would be.
    pub fn path_of(&self, block: &BlockRef) -> PathBuf {
        self.path_of_key(&block.key)
    }

    pub(crate) fn path_of_key(&self, key: &BlockKey) -> PathBuf {
        let hex = key.0.to_string();
        self.dir.join(&hex[..2]).join(hex)
    }

    /// The open file of a cached block, which was hashed since this host was started; `None` when it is not cached. What else is
    /// in its place is removed and counts as absent.
    ///
    /// # Errors
    /// When the file is there and cannot be opened, read or removed.
    pub fn get(&self, block: &BlockRef) -> Result<Option<File>, CacheError> {
        let found = self.look(std::slice::from_ref(block)).pop();
        found.map_or(Ok(None), |found| found.map(Found::block))
    }

    /// What is in the places of some blocks. Those that nobody has hashed in this boot are hashed together.
    pub(crate) fn look(&self, blocks: &[BlockRef]) -> Vec<Result<Found, CacheError>> {
        let mut found = Vec::with_capacity(blocks.len());
        let mut unknown: Vec<(usize, Opened)> = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            let path = self.path_of(block);
            found.push(match open_regular_itself(&path) {
                Ok(file) => match file.metadata() {
                    Ok(meta) if meta.len() != u64::from(block.len) => self.damaged(block),
                    Ok(meta) if self.marks.has(Mark::of(block, &meta)) => {
                        self.note_use(block, &file, &meta);
                        Ok(Found::Block(file))
                    }
                    Ok(meta) => {
                        unknown.push((at, Opened { file, meta }));
                        Ok(Found::Nothing)
                    }
                    Err(e) => Err(io_error("look at", &path, e)),
                },
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
                Err(e) if is_something_else(&e) => self.damaged(block),
                Err(e) => Err(io_error("open", &path, e)),
            });
        }
        let mut rest = unknown.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), 0);
            while let Some((_, next)) = rest.peek()
                && (group.is_empty() || bytes + next.meta.len() <= HASHED_TOGETHER)
            {
                bytes += next.meta.len();
                group.extend(rest.next());
            }
            self.hash(blocks, group, &mut found);
        }
        found
    }

    /// Hashes files of the right lengths, and puts what they are in their places.
    fn hash(&self, blocks: &[BlockRef], group: Vec<(usize, Opened)>, found: &mut [Result<Found, CacheError>]) {
        // What cannot be read now may be read later, when no store has it any more: it stays until somebody has its bytes.
        let mut read: Vec<(usize, Opened, Vec<u8>)> = Vec::with_capacity(group.len());
        for (at, opened) in group {
            let mut plain = vec![0; blocks[at].len as usize];
            match opened.file.read_exact_at(&mut plain, 0) {
                Ok(()) => read.push((at, opened, plain)),
                Err(e) => found[at] = Err(io_error("read", &self.path_of(&blocks[at]), e)),
            }
        }
        let pairs: Vec<(BlockRef, &[u8])> = read
            .iter()
            .map(|(at, _, plain)| (blocks[*at], plain.as_slice()))
            .collect();
        let are_right = BlockRef::are_plains(&pairs);
        for ((at, Opened { file, meta }, _), is_right) in read.into_iter().zip(are_right) {
            let block = &blocks[at];
            found[at] = match is_right {
                true => {
                    self.marks.set(Mark::of(block, &meta));
                    self.note_use(block, &file, &meta);
                    Ok(Found::Block(file))
                }
                false => self.damaged(block),
            };
        }
    }

    fn damaged(&self, block: &BlockRef) -> Result<Found, CacheError> {
        self.evict(block).map(|()| Found::Damaged)
    }

    /// Sets the access time of a block that is being used, every ten minutes: mounts without access times, and `relatime` with its
    /// one day, say too little about which blocks are in use. One that cannot be set makes the block look older than it is.
    fn note_use(&self, block: &BlockRef, file: &File, meta: &Metadata) {
        const PRECISION: Duration = Duration::from_secs(600);
        let is_recent = |used: SystemTime| used.elapsed().map_or(true, |age| age < PRECISION);
        if meta.accessed().is_ok_and(is_recent) {
            return;
        }
        let times = FileTimes::new().set_accessed(SystemTime::now());
        if file.set_times(times).is_ok() {
            self.mark(block, file);
        }
    }

    /// Notes that the file is the block.
    fn mark(&self, block: &BlockRef, file: &File) {
        if let Ok(meta) = file.metadata() {
            self.marks.set(Mark::of(block, &meta));
        }
    }

    /// Keeps the plaintext of a block after checking it against the block's key, and gives the open file.
    ///
    /// # Errors
    /// [`CacheError::NotTheBlock`], [`CacheError::Full`], or why it could not be written; nothing is left behind then.
    pub fn insert(&self, block: &BlockRef, plain: &[u8]) -> Result<File, CacheError> {
        if block.verify_plain(plain).is_err() {
            return Err(CacheError::NotTheBlock {
                key: block.key.0.to_string(),
            });
        }
        self.insert_verified(block, plain)
    }

    /// [`BlockCache::insert`] for bytes that [`BlockRef::open`] has just checked.
    pub(crate) fn insert_verified(&self, block: &BlockRef, plain: &[u8]) -> Result<File, CacheError> {
        let path = self.path_of(block);
        let new = self.written(&path, plain)?;
        let is_new = new.publish_new(&path, false).map_err(|e| self.file_or_full(&path, e))?;
        if !is_new && !matches!(self.get(block), Ok(Some(_))) {
            // The name was taken by something torn, or by what cannot be read.
            let again = self.written(&path, plain)?;
            again.publish_over(&path).map_err(|e| self.file_or_full(&path, e))?;
        }
        let file = open_regular_itself(&path).map_err(|e| io_error("open", &path, e))?;
        // The change time is that of the file with its name.
        self.mark(block, &file);
        Ok(file)
    }

    /// `plain` on stable storage in a file without a name.
    fn written(&self, path: &Path, plain: &[u8]) -> Result<NewFile, CacheError> {
        let new = self.unnamed_beside(path)?;
        let written = new.file().write_all(plain).and_then(|()| new.file().sync_data());
        written.map_err(|e| self.io_or_full("write", path, e))?;
        Ok(new)
    }

    /// An unnamed file on the cache's file system; makes the directory of `path` at its first block.
    fn unnamed_beside(&self, path: &Path) -> Result<NewFile, CacheError> {
        let shard = path.parent().unwrap_or(&self.dir);
        match NewFile::create(shard, 0o644) {
            Err(e) if e.is_not_found() => {}
            other => return other.map_err(|e| self.file_or_full(path, e)),
        }
        make_dirs(shard).map_err(|e| self.io_or_full("create directory", shard, e))?;
        NewFile::create(shard, 0o644).map_err(|e| self.file_or_full(path, e))
    }

    /// Hashes the cached block, whatever was found before; one that is wrong is removed.
    ///
    /// # Errors
    /// When it cannot be opened, read or removed.
    pub fn verify(&self, block: &BlockRef) -> Result<Presence, CacheError> {
        let path = self.path_of(block);
        let opened = match open_regular_itself(&path) {
            Ok(file) => {
                let meta = file.metadata().map_err(|e| io_error("look at", &path, e))?;
                Some(Opened { file, meta })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Presence::Absent),
            Err(e) if is_something_else(&e) => None,
            Err(e) => return Err(io_error("open", &path, e)),
        };
        let mut found = [Ok(Found::Nothing)];
        match opened {
            Some(opened) if opened.meta.len() == u64::from(block.len) => {
                self.hash(std::slice::from_ref(block), vec![(0, opened)], &mut found);
            }
            _ => found = [self.damaged(block)],
        }
        let [found] = found;
        Ok(match found? {
            Found::Block(_) => Presence::Good,
            Found::Nothing | Found::Damaged => Presence::Corrupt,
        })
    }

    /// Removes a block; one that is not there is fine. Files that are open stay readable.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn evict(&self, block: &BlockRef) -> Result<(), CacheError> {
        self.remove(&self.path_of(block))
    }

    /// Removes every block whose file `is_kept` does not want; how many, and their bytes. Files that are open stay readable.
    ///
    /// # Errors
    /// When a directory cannot be listed or a file not be removed.
    pub fn retain(&self, is_kept: impl Fn(&Path) -> bool) -> Result<(u64, u64), CacheError> {
        let (mut count, mut bytes) = (0, 0);
        for block in self.list()?.into_iter().filter(|block| !is_kept(&block.path)) {
            self.remove(&block.path)?;
            bytes += block.bytes;
            count += 1;
        }
        Ok((count, bytes))
    }

    /// Everything that has the name of a block, whatever it is.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub(crate) fn list(&self) -> Result<Vec<CachedBlock>, CacheError> {
        let mut blocks = Vec::new();
        let is_hidden = |path: &Path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        };
        // What is no shard belongs to somebody else (`lazy`).
        let shards = list(&self.dir)?;
        for shard in shards.into_iter().filter(|shard| shard.is_dir() && !is_hidden(shard)) {
            for path in list(&shard)? {
                // One with a leading dot is being written right now, on a file system without unnamed files.
                let is_block = !is_hidden(&path);
                // One without metadata was removed since the listing.
                let Some(meta) = path.symlink_metadata().ok().filter(|_| is_block) else {
                    continue;
                };
                blocks.push(CachedBlock {
                    path,
                    bytes: meta.blocks() * 512,
                    last_used: meta.atime(),
                });
            }
        }
        Ok(blocks)
    }

    /// Removes one of [`BlockCache::list`]. Files that are open stay readable.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), CacheError> {
        remove_any(path).map_err(|e| io_error("remove", path, e))
    }

    fn io_or_full(&self, action: &'static str, path: &Path, error: io::Error) -> CacheError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CacheError::Full {
                dir: self.dir.to_path_buf(),
            },
            _ => io_error(action, path, error),
        }
    }

    fn file_or_full(&self, path: &Path, error: FileError) -> CacheError {
        match error {
            FileError::Io { action, path, source } => self.io_or_full(action, &path, source),
            other => io_error("write", path, io::Error::other(other)),
        }
    }
}

/// Whether a file could not be opened because it is none.
fn is_something_else(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory)
}

/// Makes a directory of the cache and those above it, writable for its owner alone whatever the umask.
fn make_dirs(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn read_all(mut file: File, path: &Path) -> Result<Vec<u8>, CacheError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| io_error("read", path, e))?;
    Ok(bytes)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect());
    entries.map_err(|e| io_error("list", dir, e))
}

/// Removes whatever has the name, a directory too: nothing but blocks belongs into the cache.
fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether `name` is the digest of `plain`, as long as those of its format are.
fn name_is_digest_of(name: &str, plain: &[u8]) -> bool {
    name.parse::<Digest>()
        .is_ok_and(|digest| digest == digest.same_of(plain))
}
