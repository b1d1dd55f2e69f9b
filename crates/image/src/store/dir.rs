//! `dir:///path`: a directory of blocks, `<root>/<first two hex digits>/<hex id>`; the older flat `<root>/<hex id>` is read too.
//!
//! Writing: a block gets its name only when it is complete and never replaces one with the same bytes, so a reader sees a
//! whole block or none. Names become durable in batches: [`BlockStore::flush`] syncs the file system of the store once
//! for all blocks put since, which is what the packer wants; until then a power loss may take blocks (or, on file systems
//! that link before they write, leave one of the wrong content: readers verify, `put` replaces it, and `holds` says no).
//! Whatever is no regular file is no block: reading refuses it at once, and `put` replaces it.
//! A store that had no block in the flat place when it was first written to is not asked for one there again and again:
//! should another program put one meanwhile, the block is kept twice.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use zmachine_flist::BlockId;
use zmachine_sys::file::{FileError, NewFile, open_regular};

use super::{BlockStore, MAX_SEALED_LEN, StoreError};

/// A directory of sealed blocks.
#[derive(Debug)]
pub struct DirStore {
    root: PathBuf,
    /// Whether a writer has to look into the flat place too.
    has_flat: OnceLock<bool>,
    /// By first byte, the directories that this writer has made: nothing older is in them.
    is_made: [AtomicBool; 256],
}

impl DirStore {
    /// The store in `root`, which need not exist yet: reading from a missing one is an error, writing makes it.
    pub fn new(root: PathBuf) -> DirStore {
        DirStore {
            root,
            has_flat: OnceLock::new(),
            is_made: [const { AtomicBool::new(false) }; 256],
        }
    }

    /// Whether a block lies in the root itself: its 256 names are read, once, or those before the first such block. A root that cannot
    /// be listed is asked for every block.
    fn has_flat(&self) -> bool {
        *self.has_flat.get_or_init(|| match std::fs::read_dir(&self.root) {
            Ok(mut entries) => entries.any(|entry| entry.map_or(true, |entry| entry.file_name().len() >= 32)),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        })
    }

    /// Makes the directory of a block, and notes when it was not there.
    fn make_shard(&self, id: &BlockId, shard: &Path) -> io::Result<()> {
        // Writable for their owner alone, whatever the umask: whoever can write here decides what images are.
        let mut builder = DirBuilder::new();
        builder.mode(0o755).recursive(true).create(&self.root)?;
        match builder.recursive(false).create(shard) {
            Ok(()) => self.is_made(id).store(true, Ordering::Relaxed),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn is_made(&self, id: &BlockId) -> &AtomicBool {
        &self.is_made[usize::from(id.0.as_bytes()[0])]
    }

    fn sharded(&self, id: &BlockId) -> PathBuf {
        let hex = id.0.to_string();
        self.root.join(&hex[..2]).join(hex)
    }

    /// The two places of a block, the usual one first.
    fn places(&self, id: &BlockId) -> [PathBuf; 2] {
        [self.sharded(id), self.root.join(id.0.to_string())]
    }

    fn missing(&self, id: &BlockId) -> StoreError {
        if self.root.is_dir() {
            StoreError::NotFound {
                store: self.describe(),
                id: id.0.to_string(),
            }
        } else {
            StoreError::MissingDirectory {
                path: self.root.clone(),
            }
        }
    }

    fn read(&self, id: &BlockId, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match open_regular(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open", path, e)),
        };
        // The length is a hint only, and a block on disk is no longer than it may be: one read instead of ten.
        let len = file.metadata().map_err(|e| io_error("look at", path, e))?.len();
        let mut bytes = Vec::with_capacity(len.min(MAX_SEALED_LEN as u64) as usize + 1);
        file.take(MAX_SEALED_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| io_error("read", path, e))?;
        if bytes.len() > MAX_SEALED_LEN {
            return Err(StoreError::TooLong {
                store: self.describe(),
                id: id.0.to_string(),
                limit: MAX_SEALED_LEN,
            });
        }
        Ok(Some(bytes))
    }

    /// What is stored of the block, in the usual place first; `None` when nothing is.
    fn stored(&self, id: &BlockId) -> Result<Option<Stored>, StoreError> {
        let [sharded, flat] = self.places(id);
        let flat = self.has_flat().then_some(flat);
        for path in [Some(sharded), flat].into_iter().flatten() {
            match std::fs::metadata(&path) {
                Ok(meta) => {
                    return Ok(Some(Stored {
                        length: meta.is_file().then_some(meta.len()),
                        path,
                    }));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("look at", &path, e)),
            }
        }
        Ok(None)
    }
}

/// What has the name of a block.
struct Stored {
    path: PathBuf,
    /// `None` when it is no regular file.
    length: Option<u64>,
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn file_error(path: &Path, error: FileError) -> StoreError {
    match error {
        FileError::Io { action, path, source } => io_error(action, &path, source),
        other => io_error("write", path, io::Error::other(other)),
    }
}

impl BlockStore for DirStore {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        for path in self.places(id) {
            if let Some(bytes) = self.read(id, &path)? {
                return Ok(bytes);
            }
        }
        Err(self.missing(id))
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        Ok(self.stored(id)?.is_some_and(|stored| stored.length.is_some()))
    }

    fn holds(&self, id: &BlockId) -> Result<bool, StoreError> {
        match self.stored(id)? {
            Some(Stored {
                path,
                length: Some(length),
            }) if length <= MAX_SEALED_LEN as u64 => {
                let sealed = self.read(id, &path)?;
                Ok(sealed.is_some_and(|sealed| id.0.same_of(&sealed) == id.0))
            }
            _ => Ok(false),
        }
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        // Where nothing older can be, nothing is looked for; should another writer be faster, the name tells below.
        let is_bare = self.is_made(id).load(Ordering::Relaxed) && !self.has_flat();
        let before = if is_bare { None } else { self.stored(id)? };
        if let Some(Stored {
            path,
            length: Some(length),
        }) = &before
            && *length == sealed.len() as u64
            && self.read(id, path)?.is_some_and(|there| there == sealed)
        {
            return Ok(false);
        }
        let path = self.sharded(id);
        let shard = path.parent().unwrap_or(&self.root);
        let new = match NewFile::create(shard, 0o644) {
            // 256 times in the life of a store.
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.make_shard(id, shard)
                    .map_err(|e| io_error("create directory", shard, e))?;
                NewFile::create(shard, 0o644)
            }
            new => new,
        };
        let new = new.map_err(|e| file_error(&path, e))?;
        new.file().write_all(sealed).map_err(|e| io_error("write", &path, e))?;
        if before.is_some() {
            // A torn or damaged block: the name must lead to the good one from one moment to the next. One in the flat place is hidden
            // by this one.
            new.publish_over(&path).map_err(|e| file_error(&path, e))?;
            return Ok(true);
        }
        new.publish_new(&path, false).map_err(|e| file_error(&path, e))
    }

    fn flush(&self) -> Result<(), StoreError> {
        let synced = File::open(&self.root).and_then(|root| rustix::fs::syncfs(&root).map_err(io::Error::from));
        synced.map_err(|e| io_error("sync", &self.root, e))
    }

    fn describe(&self) -> String {
        format!("dir://{}", self.root.display())
    }

    fn local_directories(&self) -> Vec<&Path> {
        vec![&self.root]
    }
}
