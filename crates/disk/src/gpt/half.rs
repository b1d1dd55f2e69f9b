//! One half of a GPT: a header, and the array of entries that it leads to. A disk has two, at its beginning and at its end.
//!
//! Entries are kept as bytes, so that what is written again is what was there, names and all. Everything that a header says is
//! checked before it is used for anything.

use std::io;

use flate2::Crc;

use super::GptError;
use crate::source::Source;

/// Bytes of an entry: the only size that tools write.
pub(super) const ENTRY: u64 = 128;

/// Most entries that are read; tools write 128.
const MAX_ENTRIES: u64 = 1024;

/// The smallest header; later revisions may have more, up to a sector.
const HEADER: usize = 92;

/// A half whose sums are right and whose fields make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Half {
    /// As long as it says.
    head: Vec<u8>,
    pub(super) entries: Vec<u8>,
}

/// Why there is no half at a place.
#[derive(Debug)]
pub(super) enum NoHalf {
    /// Nothing there says that it is one.
    Missing,
    /// It is damaged; the other one may be whole.
    Damaged(&'static str),
    /// It is whole, and asks for something that no tool writes.
    Refused(&'static str),
    Io(io::Error),
}

/// What is written for a half.
pub(super) struct Written {
    pub(super) head: Vec<u8>,
    pub(super) lba: u64,
    pub(super) entries_lba: u64,
}

fn le32(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
    ]))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    le32(bytes, at) | le32(bytes, at + 4) << 32
}

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The sum of a header, in which its own place counts as zero.
fn header_sum(head: &[u8]) -> u32 {
    let mut head = head.to_vec();
    head[16..20].fill(0);
    crc32(&head)
}

impl Half {
    /// The half whose header is in sector `lba`, 1 for the first one.
    pub(super) fn read(disk: &mut dyn Source, lba: u64, sector: u64) -> Result<Half, NoHalf> {
        let sectors = disk.len() / sector;
        if lba == 0 || lba >= sectors {
            return Err(NoHalf::Missing);
        }
        let mut head = vec![0; 512];
        disk.read_at(&mut head, lba * sector).map_err(NoHalf::Io)?;
        if !head.starts_with(b"EFI PART") {
            return Err(NoHalf::Missing);
        }
        let length = le32(&head, 12) as usize;
        if !(HEADER..=head.len()).contains(&length) {
            return Err(NoHalf::Damaged("the length of its header makes no sense"));
        }
        head.truncate(length);
        if header_sum(&head) != le32(&head, 16) as u32 {
            return Err(NoHalf::Damaged("the checksum of its header is wrong"));
        }
        let half = Half {
            head,
            entries: Vec::new(),
        };
        half.check(lba, sector, sectors)?;
        let mut entries = vec![0; (half.count() * ENTRY) as usize];
        disk.read_at(&mut entries, half.entries_lba() * sector)
            .map_err(NoHalf::Io)?;
        if crc32(&entries) != half.entries_sum() {
            return Err(NoHalf::Damaged("the checksum of its entries is wrong"));
        }
        Ok(Half { entries, ..half })
    }

    fn check(&self, lba: u64, sector: u64, sectors: u64) -> Result<(), NoHalf> {
        if le32(&self.head, 84) != ENTRY || !(1..=MAX_ENTRIES).contains(&self.count()) {
            return Err(NoHalf::Refused("its number or size of entries"));
        }
        let is_first = lba == 1;
        if le64(&self.head, 24) != lba || (!is_first && self.other_lba() != 1) {
            return Err(NoHalf::Refused("it says that it is elsewhere"));
        }
        // The first table's entries are right behind its header, or later, where something else needs the sectors between; those of
        // the second are before its header.
        let array = self.array_sectors(sector);
        let end = self.entries_lba().checked_add(array);
        let is_in_place = match is_first {
            true => end.is_some_and(|end| end <= self.first_usable() && end < sectors),
            false => end.is_some_and(|end| end <= lba),
        };
        if self.entries_lba() < 2 || !is_in_place {
            return Err(NoHalf::Refused("its entries are not where they belong"));
        }
        Ok(())
    }

    pub(super) fn other_lba(&self) -> u64 {
        le64(&self.head, 32)
    }

    pub(super) fn first_usable(&self) -> u64 {
        le64(&self.head, 40)
    }

    pub(super) fn last_usable(&self) -> u64 {
        le64(&self.head, 48)
    }

    pub(super) fn entries_lba(&self) -> u64 {
        le64(&self.head, 72)
    }

    pub(super) fn entries_sum(&self) -> u32 {
        le32(&self.head, 88) as u32
    }

    fn count(&self) -> u64 {
        le32(&self.head, 80)
    }

    pub(super) fn array_sectors(&self, sector: u64) -> u64 {
        (self.count() * ENTRY).div_ceil(sector)
    }

    /// Whether both are of one table.
    pub(super) fn is_of(&self, other: &Half) -> bool {
        self.head[56..72] == other.head[56..72] && self.entries == other.entries
    }

    /// The half for sector `lba` of a disk whose other half is in `other_lba`, with these entries.
    pub(super) fn written(&self, lba: u64, other_lba: u64, entries_lba: u64, last_usable: u64) -> Written {
        let mut head = self.head.clone();
        for (at, value) in [(24, lba), (32, other_lba), (48, last_usable), (72, entries_lba)] {
            head[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        head[88..92].copy_from_slice(&crc32(&self.entries).to_le_bytes());
        let sum = header_sum(&head);
        head[16..20].copy_from_slice(&sum.to_le_bytes());
        Written { head, lba, entries_lba }
    }

    /// Entries that are in use: number from 1, GUID, first and last sector.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, [u8; 16], u64, u64)> + '_ {
        let numbered = (1..).zip(self.entries.chunks_exact(ENTRY as usize));
        numbered
            .filter(|(_, entry)| entry[..16].iter().any(|byte| *byte != 0))
            .map(|(number, entry)| {
                let mut guid = [0; 16];
                guid.copy_from_slice(&entry[16..32]);
                (number, guid, le64(entry, 32), le64(entry, 40))
            })
    }

    /// Lets a partition end at another sector.
    pub(super) fn set_end(&mut self, number: u32, end: u64) {
        let at = (u64::from(number - 1) * ENTRY) as usize + 40;
        self.entries[at..at + 8].copy_from_slice(&end.to_le_bytes());
    }
}

impl From<NoHalf> for GptError {
    fn from(no: NoHalf) -> GptError {
        match no {
            NoHalf::Missing => GptError::Missing,
            NoHalf::Damaged(what) => GptError::Damaged {
                first: what,
                second: "there is none",
            },
            NoHalf::Refused(what) => GptError::Header(what),
            NoHalf::Io(error) => GptError::Io(error),
        }
    }
}
