//! Which cached blocks were found right since this host was started, so that no process hashes them again.
//!
//! ```text
//! <cache>/.verified    64 bytes: what it is, and the boot's id; then 2^16 buckets of 8 marks of 8 bytes each, 4 MiB in all
//! ```
//! A mark is part of a digest over the block's key and everything that tells the file that was hashed from any other: device, inode
//! and change time. A file that somebody has written to, replaced or restored has another one.
//!
//! # Invariants
//! * A mark saves work and decides nothing else: one that is lost, or overwritten by that of another block, costs one more hash.
//! * Marks are of one boot. What a power loss has done to the blocks is found out in the next one.
//! * No locks: a mark is written in one piece, and marks that get lost because two processes write at once are marks that get lost.
//! * Where the file cannot be had, every process remembers for itself.

use std::collections::HashSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use zmachine_flist::BlockRef;

/// Name of the file in the cache.
const NAME: &str = ".verified";
const HEADER_BYTES: usize = 64;
const BUCKETS: u64 = 1 << 16;
/// Marks of a bucket.
const MARKS: usize = 8;
const BUCKET_BYTES: usize = MARKS * 8;

/// The marks of one cache.
#[derive(Debug)]
pub(super) struct Marks {
    file: Option<File>,
    /// Without a file.
    own: Mutex<HashSet<u64>>,
}

/// What a block's mark is, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    bucket: u64,
    value: u64,
}

impl Mark {
    pub(super) fn of(block: &BlockRef, file: &Metadata) -> Mark {
        let mut state = blake2b_simd::Params::new().hash_length(16).to_state();
        state.update(block.key.0.as_bytes());
        for number in [file.dev(), file.ino(), file.len()] {
            state.update(&number.to_ne_bytes());
        }
        for number in [file.ctime(), file.ctime_nsec()] {
            state.update(&number.to_ne_bytes());
        }
        let hash = state.finalize();
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&hash.as_bytes()[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        Mark {
            bucket: number(0) % BUCKETS,
            // No mark is zero: that is where none is.
            value: number(8) | 1,
        }
    }

    fn offset(self) -> u64 {
        HEADER_BYTES as u64 + self.bucket * BUCKET_BYTES as u64
    }
}

impl Marks {
    /// The marks of the cache in `dir` in this boot of the host.
    pub(super) fn open(dir: &Path) -> Marks {
        Marks {
            file: open(&dir.join(NAME), &zmachine_sys::host::boot_id()).ok(),
            own: Mutex::default(),
        }
    }

    pub(super) fn has(&self, mark: Mark) -> bool {
        match &self.file {
            Some(file) => bucket(file, mark).is_ok_and(|marks| marks.contains(&mark.value)),
            None => self
                .own
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&mark.value),
        }
    }

    pub(super) fn set(&self, mark: Mark) {
        let Some(file) = &self.file else {
            self.own
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(mark.value);
            return;
        };
        let Ok(marks) = bucket(file, mark) else { return };
        if marks.contains(&mark.value) {
            return;
        }
        let free = marks.iter().position(|mark| *mark == 0);
        // In a full bucket any one goes; the bits of its own value choose, since nothing says which is used least.
        let place = free.unwrap_or((mark.value >> 32) as usize % MARKS);
        // One that cannot be written is one that is lost.
        let _ = file.write_all_at(&mark.value.to_ne_bytes(), mark.offset() + place as u64 * 8);
    }
}

/// Opens the file, and empties one of another boot.
fn open(path: &Path, boot: &str) -> io::Result<File> {
    let mut header = [b'\n'; HEADER_BYTES];
    let text = format!("zmachine verified 1 {boot}");
    if boot.is_empty() || text.len() > HEADER_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    header[..text.len()].copy_from_slice(text.as_bytes());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut found = [0; HEADER_BYTES];
    if file.read_exact_at(&mut found, 0).is_err() || found != header {
        file.set_len(0)?;
        file.set_len(HEADER_BYTES as u64 + BUCKETS * BUCKET_BYTES as u64)?;
        file.write_all_at(&header, 0)?;
    }
    Ok(file)
}

fn bucket(file: &File, mark: Mark) -> io::Result<[u64; MARKS]> {
    let mut bytes = [0; BUCKET_BYTES];
    file.read_exact_at(&mut bytes, mark.offset())?;
    let mut marks = [0; MARKS];
    for (mark, bytes) in marks.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *mark = u64::from_ne_bytes(*bytes);
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(bucket: u64, value: u64) -> Mark {
        Mark { bucket, value }
    }

    #[test]
    fn marks_are_seen_by_every_process_of_this_boot_and_by_none_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let of_boot = |boot| Marks {
            file: open(&path, boot).ok(),
            own: Mutex::default(),
        };
        let (one, other) = (of_boot("a"), of_boot("a"));
        one.set(mark(3, 5));
        assert!(other.has(mark(3, 5)) && !other.has(mark(4, 5)) && !other.has(mark(3, 7)));
        assert!(of_boot("a").has(mark(3, 5)));
        assert!(!of_boot("b").has(mark(3, 5)));
    }

    #[test]
    fn a_full_bucket_keeps_as_many_as_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path());
        let all: Vec<Mark> = (1..=20).map(|n| mark(9, n << 32 | 1)).collect();
        for each in &all {
            marks.set(*each);
            assert!(marks.has(*each));
        }
        assert_eq!(all.iter().filter(|each| marks.has(**each)).count(), MARKS);
    }

    #[test]
    fn without_a_file_a_process_remembers_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(NAME)).unwrap();
        let marks = Marks::open(dir.path());
        assert!(!marks.has(mark(1, 1)));
        marks.set(mark(1, 1));
        assert!(marks.has(mark(1, 1)) && !Marks::open(dir.path()).has(mark(1, 1)));
    }
}
