//! Batches: what one thread of a pack or an unpack takes on at a time.
//!
//! Several small files together, so that their digests are computed side by side (see [`zmachine_flist::Sealer`]); of a large
//! file, several blocks. A batch is no longer than [`BATCH_BYTES`], which bounds the memory of a thread, and there are enough of
//! them for all threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use zmachine_flist::BlockRef;

/// Blocks of a large file that are taken on together: as many as the digest of AVX2 computes side by side.
pub(crate) const LARGE_TOGETHER: u64 = 4;

/// The most bytes of plaintext in a batch.
const BATCH_BYTES: u64 = LARGE_TOGETHER * BlockRef::SIZE as u64;

/// The most files in a batch: more gain nothing.
const FILES_TOGETHER: usize = 64;

/// Batches for each thread, at the least, as long as there are files for them: the last ones are not of the same length.
const PER_THREAD: usize = 8;

/// Ranges of the files with these sizes that are taken on together; one with more than a block is alone.
pub(crate) fn batches(sizes: impl ExactSizeIterator<Item = u64>, threads: usize) -> Vec<Range<usize>> {
    let together = (sizes.len() / (threads * PER_THREAD).max(1)).clamp(1, FILES_TOGETHER);
    let mut batches: Vec<Range<usize>> = Vec::new();
    // What the last batch may still take.
    let (mut files, mut bytes) = (0, 0);
    for (at, size) in sizes.enumerate() {
        let is_small = size <= BlockRef::SIZE as u64;
        match batches.last_mut().filter(|_| is_small && files > 0 && size <= bytes) {
            Some(batch) => batch.end = at + 1,
            None => {
                batches.push(at..at + 1);
                (files, bytes) = if is_small { (together, BATCH_BYTES) } else { (1, 0) };
            }
        }
        files -= 1;
        bytes = bytes.saturating_sub(size);
    }
    batches
}

/// Things that threads keep from one batch to the next: as many as there are threads at work.
#[derive(Debug, Default)]
pub(crate) struct Spares<T>(Mutex<Vec<T>>);

impl<T: Default> Spares<T> {
    /// Lends `work` one that nobody else has.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut spare = spare.unwrap_or_default();
        let result = work(&mut spare);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BlockRef::SIZE as u64;

    #[test]
    fn a_large_file_is_alone_and_small_ones_come_together_up_to_the_limits() {
        let of = |sizes: &[u64]| batches(sizes.iter().copied(), 0);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[1, 2, BLOCK + 1, 3, 4]), [0..2, 2..3, 3..5]);
        assert_eq!(of(&[BLOCK; 6]), [0..4, 4..6]);
        assert_eq!(of(&[0; 130]), [0..64, 64..128, 128..130]);
        assert_eq!(of(&[BLOCK * 9, BLOCK * 9, 0]), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn few_files_are_spread_over_the_threads() {
        assert_eq!(batches([1; 16].into_iter(), 2).len(), 16);
        assert_eq!(batches([1; 320].into_iter(), 4).len(), 32);
    }
}
