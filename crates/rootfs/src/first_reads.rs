//! Which blocks of an image are read, in the order of their first reads.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::prefetch_list::BLOCKS_MAX;

/// Blocks given out at once: a line of them is a few kilobytes.
const TAKE_MAX: usize = 256;

/// The record; the default one records nothing.
#[derive(Debug, Default)]
pub(crate) struct FirstReads {
    record: Option<Mutex<Record>>,
}

#[derive(Debug, Default)]
struct Record {
    /// First device blocks; never more than [`BLOCKS_MAX`], whatever the guest reads.
    seen: HashSet<u32>,
    news: Vec<u32>,
}

impl FirstReads {
    pub(crate) fn recording() -> FirstReads {
        FirstReads {
            record: Some(Mutex::default()),
        }
    }

    /// The block that begins at this device block is read.
    pub(crate) fn note(&self, start: u32) {
        let Some(record) = &self.record else { return };
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        if record.seen.len() < BLOCKS_MAX && record.seen.insert(start) {
            record.news.push(start);
        }
    }

    /// What is new since the last time.
    pub(crate) fn take(&self) -> Vec<u32> {
        let Some(record) = &self.record else {
            return Vec::new();
        };
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        let count = record.news.len().min(TAKE_MAX);
        record.news.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_told_once_in_its_order_and_a_guest_can_not_make_it_grow() {
        let reads = FirstReads::recording();
        [7, 3, 7, 9, 3].into_iter().for_each(|start| reads.note(start));
        assert_eq!(reads.take(), [7, 3, 9]);
        assert!(reads.take().is_empty());
        (0..100_000).for_each(|start| reads.note(start));
        let mut taken = 0;
        loop {
            match reads.take().len() {
                0 => break,
                count if count <= TAKE_MAX => taken += count,
                _ => panic!("more at once than a line holds"),
            }
        }
        assert_eq!(taken, BLOCKS_MAX - 3);
        let off = FirstReads::default();
        off.note(1);
        assert!(off.take().is_empty());
    }
}
