//! The blocks used last: open files of the cache, and bytes that the cache could not keep.

use std::collections::HashMap;
use std::sync::Arc;

use zmachine_image::fetch::Fetched;

/// Open files at most, when the process may have that many. Each spares the way to the cache, which is through another
/// process in a jail; meanwhile the guest runs out of work and halts, which costs it more than the way itself. Each pins about
/// 1.5 KiB in the kernel, and there are only as many as a guest has read blocks.
const FILES_MAX: usize = 16384;
/// Descriptors that are left for all else, when there are twice as many: blocks on their way in and out among it.
const OTHER_DESCRIPTORS: u64 = 4096;
/// Bytes of blocks kept in memory at most.
const IN_MEMORY_BYTES_MAX: usize = 16 << 20;

/// Who reads one file after the other, at once.
const READERS: usize = 4;
/// Device blocks that such a reader may leave out.
const CLOSE: u32 = 64;
/// Device blocks that it may open at once.
const OPENED_MAX: u32 = 16 * 256;

/// Blocks by their first device block.
pub(crate) struct OpenBlocks {
    /// By the block's first device block: its place in `files`.
    places: HashMap<u32, usize>,
    files: Vec<(u32, Arc<Fetched>)>,
    files_max: usize,
    /// Blocks that are nowhere else, with the time of the last use. There are few.
    in_memory: HashMap<u32, (Arc<Fetched>, u64)>,
    clock: u64,
    /// Where the blocks end that were opened last, by each of a few readers.
    ends: [u32; READERS],
}

impl OpenBlocks {
    /// Empty, for a process that may have `descriptors` open.
    pub(crate) fn new(descriptors: Option<u64>) -> OpenBlocks {
        let spare = |most: u64| most - (most / 2).min(OTHER_DESCRIPTORS);
        let left = descriptors.map_or(FILES_MAX, |most| usize::try_from(spare(most)).unwrap_or(FILES_MAX));
        OpenBlocks {
            places: HashMap::new(),
            files: Vec::new(),
            files_max: left.clamp(1, FILES_MAX),
            in_memory: HashMap::new(),
            clock: 0,
            ends: [0; READERS],
        }
    }

    /// Whether one of the readers goes on here: close behind where it has come to.
    pub(crate) fn goes_on(&self, start: u32) -> bool {
        let close = |end: &u32| *end > 0 && (*end..end.saturating_add(CLOSE)).contains(&start);
        self.ends.iter().any(close)
    }

    /// Somebody has opened blocks up to this device block.
    pub(crate) fn opened_until(&mut self, end: u32) {
        // Its last place, or that of whoever was here before all others.
        let behind = self
            .ends
            .iter()
            .position(|old| *old <= end && end - *old < CLOSE + OPENED_MAX);
        self.ends[..=behind.unwrap_or(READERS - 1)].rotate_right(1);
        self.ends[0] = end;
    }

    pub(crate) fn has(&self, start: u32) -> bool {
        self.places.contains_key(&start) || self.in_memory.contains_key(&start)
    }

    pub(crate) fn get(&mut self, start: u32) -> Option<Arc<Fetched>> {
        if let Some(place) = self.places.get(&start) {
            return Some(Arc::clone(&self.files[*place].1));
        }
        self.clock += 1;
        let (block, used) = self.in_memory.get_mut(&start)?;
        *used = self.clock;
        Some(Arc::clone(block))
    }

    pub(crate) fn insert(&mut self, start: u32, block: Arc<Fetched>) {
        self.remove(start);
        self.clock += 1;
        let Fetched::Bytes(bytes) = &*block else {
            return self.insert_file(start, block);
        };
        while !self.in_memory.is_empty() && self.bytes_in_memory() + bytes.len() > IN_MEMORY_BYTES_MAX {
            let oldest = self.oldest_in_memory();
            oldest.map(|oldest| self.in_memory.remove(&oldest));
        }
        self.in_memory.insert(start, (block, self.clock));
    }

    /// When there are too many, any other one goes: of a program that reads more files than that over and over, the one used
    /// last is the one needed latest.
    fn insert_file(&mut self, start: u32, block: Arc<Fetched>) {
        if self.files.len() >= self.files_max {
            // The bits of a multiplicative hash of a counter: spread evenly is all that is asked.
            let spread = self.clock.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            let (victim, _) = self.files[spread as usize % self.files.len()];
            self.remove(victim);
        }
        self.places.insert(start, self.files.len());
        self.files.push((start, block));
    }

    pub(crate) fn remove(&mut self, start: u32) {
        self.remove_from_memory(start);
        let Some(place) = self.places.remove(&start) else {
            return;
        };
        self.files.swap_remove(place);
        if let Some((moved, _)) = self.files.get(place) {
            self.places.insert(*moved, place);
        }
    }

    pub(crate) fn remove_from_memory(&mut self, start: u32) {
        self.in_memory.remove(&start);
    }

    /// The block in memory that was not used for the longest time.
    pub(crate) fn oldest_in_memory(&self) -> Option<u32> {
        let oldest = self.in_memory.iter().min_by_key(|(_, (_, used))| *used);
        oldest.map(|(start, _)| *start)
    }

    fn bytes_in_memory(&self) -> usize {
        let bytes = self.in_memory.values().map(|(block, _)| match &**block {
            Fetched::Bytes(bytes) => bytes.len(),
            Fetched::File(_) => 0,
        });
        bytes.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<Fetched> {
        Arc::new(Fetched::File(std::fs::File::open("/dev/null").unwrap()))
    }

    fn bytes(len: usize) -> Arc<Fetched> {
        Arc::new(Fetched::Bytes(vec![7; len].into()))
    }

    #[test]
    fn files_are_found_until_there_are_too_many() {
        let mut open = OpenBlocks::new(Some(20));
        for start in 0..10 {
            open.insert(start, file());
        }
        assert!((0..10).all(|start| open.get(start).is_some()));
        for start in 10..1000 {
            open.insert(start, file());
            assert!(open.get(start).is_some(), "the newest is there");
        }
        assert_eq!((0..1000).filter(|start| open.get(*start).is_some()).count(), 10);
        for start in 0..1000 {
            open.remove(start);
        }
        assert!(open.files.is_empty() && open.places.is_empty());
    }

    #[test]
    fn a_small_limit_is_halved_and_of_a_large_one_some_are_left() {
        let most = |descriptors| OpenBlocks::new(descriptors).files_max;
        assert_eq!(most(Some(1024)), 512);
        assert_eq!(most(Some(20_000)), 20_000 - 4096);
        assert_eq!((most(Some(32_768)), most(None)), (FILES_MAX, FILES_MAX));
    }

    #[test]
    fn what_is_in_memory_is_bounded_and_the_oldest_goes() {
        let mut open = OpenBlocks::new(None);
        open.insert(1, bytes(IN_MEMORY_BYTES_MAX / 2));
        open.insert(2, bytes(IN_MEMORY_BYTES_MAX / 2));
        assert!(open.get(1).is_some());
        open.insert(3, bytes(1));
        assert!(open.get(2).is_none() && open.get(1).is_some() && open.get(3).is_some());
        assert_eq!(open.oldest_in_memory(), Some(1));
        // The cache has kept it: the file takes its place.
        open.insert(1, file());
        assert!(matches!(&*open.get(1).unwrap(), Fetched::File(_)));
        assert_eq!(open.oldest_in_memory(), Some(3));
        open.insert(4, bytes(IN_MEMORY_BYTES_MAX + 1));
        assert!(open.get(4).is_some() && open.get(3).is_none(), "one is always kept");
    }

    #[test]
    fn readers_that_go_on_are_known_and_leaps_are_not() {
        let mut open = OpenBlocks::new(None);
        assert!(!open.goes_on(1), "nobody was here yet");
        for end in [100, 50_000, 90_000] {
            open.opened_until(end);
        }
        assert!(open.goes_on(100) && open.goes_on(50_010) && !open.goes_on(60_000) && !open.goes_on(99));
        open.opened_until(116);
        assert!(
            open.goes_on(120) && open.goes_on(50_000),
            "the others are not forgotten for it"
        );
        for end in [200_000, 300_000, 400_000, 500_000] {
            open.opened_until(end);
        }
        assert!(!open.goes_on(120), "there are a few only");
    }
}
