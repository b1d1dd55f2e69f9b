//! Which block each lazy one turned out to be.
//!
//! ```text
//! record     key of the lazy block (32 bytes) | key of the block (32 bytes) | length u32, little-endian
//! ```
//! Records are appended, several processes at once: each write is one, and whole. What a power cut left of one makes those behind it unreadable,
//! which costs that many fetches.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zmachine_flist::{BlockKey, BlockRef, Digest};
use zmachine_sys::file::{self, FileError};

use super::{KNOWN_FILE, found_folder};

const RECORD: usize = 32 + 32 + 4;
/// Bytes that are read at once.
const PIECE: usize = RECORD * 1024;

/// What is known of an image's lazy blocks.
#[derive(Debug, Default)]
pub(super) struct Known {
    blocks: HashMap<BlockKey, BlockRef>,
    /// What block brokers found; `None` when it cannot be written, and what is found is forgotten with the process.
    found: Option<File>,
    read: u64,
    /// Where all of them will be, as long as that has not been read: it comes when all layers are here.
    all: Option<PathBuf>,
}

impl Known {
    pub(super) fn open(image: &Path, blocks: &Path) -> Known {
        let mut known = Known {
            all: Some(image.join(KNOWN_FILE)),
            ..Known::default()
        };
        let folder = found_folder(blocks);
        let path = folder.join(image.file_name().unwrap_or_default());
        known.found = file::make_dirs(&folder).ok().and_then(|()| {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o644);
            options.custom_flags(libc_nofollow()).open(path).ok()
        });
        known.read_on();
        known
    }

    pub(super) fn get(&self, lazy: &BlockRef) -> Option<BlockRef> {
        self.blocks.get(&lazy.key).copied()
    }

    /// Reads what was written since.
    pub(super) fn read_on(&mut self) {
        if let Some(all) = self.all.as_ref().and_then(|path| File::open(path).ok()) {
            self.take(&all, 0);
            self.all = None;
        }
        if let Some(found) = self.found.take() {
            self.read = self.take(&found, self.read);
            self.found = Some(found);
        }
    }

    /// Takes the records of a file from `at` on; where the next one begins.
    fn take(&mut self, file: &File, mut at: u64) -> u64 {
        let mut piece = vec![0; PIECE];
        loop {
            let mut filled = 0;
            while filled < PIECE {
                match file.read_at(&mut piece[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return at,
                }
            }
            let (records, _) = piece[..filled].as_chunks::<RECORD>();
            for record in records {
                let (lazy, rest) = record.split_at(32);
                let (key, len) = rest.split_at(32);
                let len = len.iter().rev().fold(0, |len, byte| len << 8 | u32::from(*byte));
                if let (Ok(lazy), Ok(key)) = (Digest::from_bytes(lazy), Digest::from_bytes(key)) {
                    self.blocks
                        .insert(BlockKey(lazy), BlockRef::unsealed(BlockKey(key), len));
                }
            }
            at += (records.len() * RECORD) as u64;
            if filled < PIECE {
                return at;
            }
        }
    }

    pub(super) fn add<'a>(&mut self, found: impl IntoIterator<Item = &'a (BlockRef, BlockRef)>) {
        let mut bytes = Vec::new();
        for (lazy, block) in found {
            if self.blocks.insert(lazy.key, *block) != Some(*block) {
                record(lazy, block, &mut bytes);
            }
        }
        if let Some(file) = &mut self.found
            && !bytes.is_empty()
            && file.write_all(&bytes).is_err()
        {
            // A full disk: nothing more is written behind what may be half a record.
            self.found = None;
        }
    }
}

fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits() as i32
}

fn record(lazy: &BlockRef, block: &BlockRef, to: &mut Vec<u8>) {
    to.extend(lazy.key.0.as_bytes());
    to.extend(block.key.0.as_bytes());
    to.extend(block.len.to_le_bytes());
}

/// Writes what all lazy blocks of the image in `directory` are.
///
/// # Errors
/// When it cannot be written.
pub fn write_known<'a>(
    directory: &Path,
    blocks: impl IntoIterator<Item = (&'a BlockRef, &'a BlockRef)>,
) -> Result<(), FileError> {
    let mut bytes = Vec::new();
    for (lazy, block) in blocks {
        record(lazy, block, &mut bytes);
    }
    file::replace(&directory.join(KNOWN_FILE), &bytes)
}

/// The blocks that lazy ones of an image turned out to be, as far as anybody knows.
pub(crate) fn known_blocks(image: &Path, blocks: &Path) -> Vec<BlockRef> {
    let mut known = Known::default();
    let found = found_folder(blocks).join(image.file_name().unwrap_or_default());
    for path in [image.join(KNOWN_FILE), found] {
        if let Ok(file) = File::open(path) {
            known.take(&file, 0);
        }
    }
    known.blocks.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(of: &[u8]) -> BlockRef {
        BlockRef::unsealed(BlockKey::of(of), of.len() as u32)
    }

    #[test]
    fn what_one_process_finds_another_one_knows() {
        let (home, blocks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let image = home.path().join("ab");
        std::fs::create_dir(&image).unwrap();
        let mut ours = Known::open(&image, blocks.path());
        let mut theirs = Known::open(&image, blocks.path());
        ours.add(&[(block(b"lazy"), block(b"content"))]);
        assert_eq!(theirs.get(&block(b"lazy")), None);
        theirs.read_on();
        assert_eq!(theirs.get(&block(b"lazy")), Some(block(b"content")));
        theirs.add(&[(block(b"lazy"), block(b"content")), (block(b"2"), block(b"two"))]);
        assert_eq!(Known::open(&image, blocks.path()).blocks.len(), 2);
        assert_eq!(known_blocks(&image, blocks.path()).len(), 2);
        write_known(&image, [(&block(b"3"), &block(b"three"))]).unwrap();
        // One that is open since before knows it as well.
        for mut known in [theirs, Known::open(&image, blocks.path())] {
            known.read_on();
            assert_eq!(known.get(&block(b"3")), Some(block(b"three")));
        }
    }

    #[test]
    fn half_a_record_is_none() {
        let (home, blocks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut ours = Known::open(&home.path().join("ab"), blocks.path());
        ours.add(&[(block(b"1"), block(b"one")), (block(b"2"), block(b"two"))]);
        let path = found_folder(blocks.path()).join("ab");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(RECORD as u64 + 7).unwrap();
        let again = Known::open(&home.path().join("ab"), blocks.path());
        assert!(again.get(&block(b"1")).is_some() && again.get(&block(b"2")).is_none());
    }
}
