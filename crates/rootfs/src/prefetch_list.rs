//! What the starts of an image read, kept beside it on this host.
//!
//! ```text
//! <image>/prefetch.json    {"version":1,"recorded":2,"blocks":[412,415,...]}
//! ```
//! `blocks` are first device blocks of `root.map`, those read first first; `recorded` is the number of starts that were
//! listened to. The list begins with what the flist brings ([`zmachine_flist::hints`]). It is advice: one that is missing or
//! cannot be read is an empty one, and a number at which no block begins is passed over.
//!
//! # Invariants
//! The numbers come from a guest, which may read what it likes: they are bounded, and only ever make other machines of the
//! same image fetch that image's own blocks early.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use zmachine_flist::block::BlockRef;
use zmachine_flist::{Flist, Hints};
use zmachine_sys::file::{FileError, read_json, replace_json};

use crate::erofs::ErofsImage;
use crate::map::{ExtentMap, MapError};
use crate::prepare::MAP_NAME;

/// Name of the list in an image directory.
pub const NAME: &str = "prefetch.json";
/// Blocks of a list at most: two gigabytes.
pub const BLOCKS_MAX: usize = zmachine_flist::hints::LINES_MAX;
/// Starts that are listened to: the first of a service does more than the later ones, and one may be an odd one.
pub const RECORDINGS: u32 = 3;
/// The numbers are those of the `root.map` beside it, however that was laid out.
const VERSION: u32 = 1;

/// The list of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchList {
    version: u32,
    recorded: u32,
    blocks: Vec<u32>,
}

impl Default for PrefetchList {
    fn default() -> PrefetchList {
        PrefetchList {
            version: VERSION,
            recorded: 0,
            blocks: Vec::new(),
        }
    }
}

impl PrefetchList {
    /// The list in the directory `image`.
    pub fn read(image: &Path) -> PrefetchList {
        let list = read_json::<PrefetchList>(&image.join(NAME)).unwrap_or_default();
        match list.version == VERSION && list.blocks.len() <= BLOCKS_MAX {
            true => list,
            false => PrefetchList::default(),
        }
    }

    /// First device blocks, those needed first first.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Whether another start should be listened to.
    pub fn wants_recording(&self) -> bool {
        self.recorded < RECORDINGS
    }

    /// Adds what one more start has read: what is new comes behind what is known. Nothing read is no recording.
    pub fn add_recording(&mut self, read: &[u32]) {
        self.add(read.iter().copied());
        self.recorded = self.recorded.saturating_add(u32::from(!read.is_empty()));
    }

    fn add(&mut self, blocks: impl IntoIterator<Item = u32>) {
        let mut known: HashSet<u32> = self.blocks.iter().copied().collect();
        let new = blocks.into_iter().filter(|start| known.insert(*start));
        self.blocks.extend(new);
        self.blocks.truncate(BLOCKS_MAX);
    }

    /// Writes the list into the directory `image`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, image: &Path) -> Result<(), FileError> {
        replace_json(&image.join(NAME), self)
    }

    /// The list that the flist brings, in the numbers of its device.
    pub(crate) fn of_flist(flist: &Flist, device: &ErofsImage<'_>) -> PrefetchList {
        let (blocks, _) = Hints::from_tags(&flist.tags).blocks_in(&flist.tree);
        let mut list = PrefetchList::default();
        if !blocks.is_empty() {
            let starts: HashMap<&BlockRef, u32> = device.extents().iter().map(|e| (&e.block, e.start)).collect();
            list.add(blocks.iter().filter_map(|block| starts.get(block).copied()));
        }
        list
    }

    /// The list by the files of the flist, for other hosts: what `flist pack --hints` takes. `image` is prepared.
    ///
    /// # Errors
    /// When the image's extent table cannot be read.
    pub fn hints(&self, image: &Path, flist: &Flist) -> Result<Hints, MapError> {
        let map = ExtentMap::open(&image.join(MAP_NAME))?;
        let mut blocks = Vec::new();
        for start in &self.blocks {
            let extent = map.lookup(*start)?.filter(|extent| extent.start == *start);
            blocks.extend(extent.map(|extent| extent.block));
        }
        Ok(Hints::of_blocks(&flist.tree, &blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_merged_counted_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = PrefetchList::read(dir.path());
        assert_eq!((list.blocks(), list.wants_recording()), (&[][..], true));
        list.add_recording(&[5, 3, 5]);
        list.add_recording(&[]);
        list.add_recording(&[4, 3]);
        assert_eq!(list.blocks(), [5, 3, 4]);
        assert!(list.wants_recording());
        list.add_recording(&(0..10_000).collect::<Vec<_>>());
        assert_eq!((list.blocks().len(), list.wants_recording()), (BLOCKS_MAX, false));
        list.save(dir.path()).unwrap();
        assert_eq!(PrefetchList::read(dir.path()), list);
    }

    #[test]
    fn what_was_written_first_is_read_and_what_is_broken_is_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            PrefetchList::read(dir.path())
        };
        let list = read(r#"{"version":1,"recorded":2,"blocks":[412,415]}"#);
        assert_eq!((list.blocks(), list.recorded), (&[412, 415][..], 2));
        for broken in ["", "{}", r#"{"version":2,"recorded":0,"blocks":[1]}"#] {
            assert_eq!(read(broken), PrefetchList::default(), "{broken}");
        }
    }
}
