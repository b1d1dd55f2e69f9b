//! A partition table on a disk that has become larger: its second copy is moved to the end, and the last partition is grown.
//!
//! Everything is checked before anything is written. Source: UEFI specification 5.3.

use std::fs::File;
use std::io;

use gptman::GPT;
use thiserror::Error;

/// Partitions begin and end at multiples of this many bytes.
const ALIGNMENT: u64 = 1 << 20;

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1: what Linux appends to the disk's name.
    pub number: u32,
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why a partition table can not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GptError {
    /// It can not be read or written, or is none.
    #[error("the partition table can not be used")]
    Table(#[source] gptman::Error),
    /// A partition is not where one can be.
    #[error("the partition {number} of the table is {problem}")]
    Partition {
        /// Its number.
        number: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is none.
    #[error("the partition table has no partitions")]
    Empty,
    /// The disk can not be read or written.
    #[error("the disk can not be used")]
    Io(#[source] io::Error),
}

/// Fits the table in `disk` to the disk's length, and lets its last partition reach to the end. That partition.
///
/// # Errors
/// [`GptError`]; when the table makes no sense, nothing was written.
pub fn fit(disk: &mut File) -> Result<Partition, GptError> {
    let mut table = GPT::find_from(disk).map_err(GptError::Table)?;
    let sector = table.sector_size;
    let sectors = disk.metadata().map_err(GptError::Io)?.len() / sector;
    let last = check(&table, sectors)?;
    table.header.update_from(disk, sector).map_err(GptError::Table)?;
    let align = (ALIGNMENT / sector).max(1);
    let end = (table.header.last_usable_lba + 1) / align * align - 1;
    let entry = &mut table[last];
    let is_grown = end > entry.ending_lba;
    if is_grown {
        entry.ending_lba = end;
    }
    let partition = Partition {
        number: last,
        offset: entry.starting_lba * sector,
        bytes: (entry.ending_lba - entry.starting_lba + 1) * sector,
    };
    if is_grown || table.header.backup_lba != sectors - 1 {
        GPT::write_protective_mbr_into(disk, sector).map_err(GptError::Table)?;
        table.write_into(disk).map_err(GptError::Table)?;
        disk.sync_all().map_err(GptError::Io)?;
    }
    Ok(partition)
}

/// Checks the entries; the number of the last partition on the disk.
fn check(table: &GPT, sectors: u64) -> Result<u32, GptError> {
    let mut ranges: Vec<(u64, u64, u32)> = Vec::new();
    for (number, entry) in table.iter().filter(|(_, entry)| entry.is_used()) {
        let wrong = |problem| GptError::Partition { number, problem };
        if entry.starting_lba > entry.ending_lba {
            return Err(wrong("turned around"));
        }
        if entry.starting_lba < table.header.first_usable_lba || entry.ending_lba >= sectors {
            return Err(wrong("outside of the disk"));
        }
        ranges.push((entry.starting_lba, entry.ending_lba, number));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 <= pair[0].1 {
            let number = pair[1].2;
            return Err(GptError::Partition {
                number,
                problem: "on top of another one",
            });
        }
    }
    ranges.last().map(|(_, _, number)| *number).ok_or(GptError::Empty)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn disk(parts: &[(u64, u64)], bytes: u64) -> File {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        let mut table = GPT::new_from(&mut disk, 512, [7; 16]).unwrap();
        for (index, (start, end)) in parts.iter().enumerate() {
            table[index as u32 + 1] = gptman::GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [index as u8 + 1; 16],
                starting_lba: *start,
                ending_lba: *end,
                attribute_bits: 0,
                partition_name: "p".into(),
            };
        }
        table.write_into(&mut disk).unwrap();
        disk.set_len(bytes).unwrap();
        disk
    }

    #[test]
    fn the_last_partition_reaches_the_end_of_the_larger_disk() {
        let mut disk = disk(&[(2048, 4095), (4096, 100_000)], 256 << 20);
        let partition = fit(&mut disk).unwrap();
        assert_eq!((partition.number, partition.offset), (2, 4096 * 512));
        assert!(partition.bytes > (250 << 20), "{partition:?}");
        let table = GPT::find_from(&mut disk).unwrap();
        assert_eq!(table.header.backup_lba, (256 << 20) / 512 - 1);
        assert_eq!(table[1].ending_lba, 4095);
        assert_eq!(fit(&mut disk).unwrap(), partition, "once more changes nothing");
    }

    /// CRC-32 as the UEFI specification has it (that of Ethernet).
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        !bytes.iter().fold(!0, |crc, b| (0..8).fold(crc ^ u32::from(*b), step))
    }

    /// Puts an entry into the first table, sums included, that no tool would write.
    fn patch(disk: &File, number: usize, start: u64, end: u64) {
        let mut head = vec![0; 512];
        let mut entries = vec![0; 128 * 128];
        disk.read_exact_at(&mut head, 512).unwrap();
        disk.read_exact_at(&mut entries, 1024).unwrap();
        let at = (number - 1) * 128;
        entries[at + 32..at + 40].copy_from_slice(&start.to_le_bytes());
        entries[at + 40..at + 48].copy_from_slice(&end.to_le_bytes());
        head[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        head[16..20].fill(0);
        let sum = crc32(&head[..92]);
        head[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&head, 512).unwrap();
        disk.write_all_at(&entries, 1024).unwrap();
    }

    #[test]
    fn a_table_that_makes_no_sense_is_left_as_it_is() {
        let empty = disk(&[], 256 << 20);
        let mut bad = vec![empty];
        for (start, end) in [
            (5000, 4000),
            (3000, 9999),
            (4096, 10_000_000),
            (4096, u64::MAX),
            (1, 100),
        ] {
            let disk = disk(&[(2048, 4095), (4096, 9999)], 256 << 20);
            patch(&disk, 2, start, end);
            bad.push(disk);
        }
        for mut disk in bad {
            let mut before = vec![0; 1 << 20];
            disk.read_exact_at(&mut before, 0).unwrap();
            fit(&mut disk).unwrap_err();
            let mut after = vec![0; 1 << 20];
            disk.read_exact_at(&mut after, 0).unwrap();
            assert!(before == after);
        }
    }

    #[test]
    fn no_table_is_no_table() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(1 << 20).unwrap();
        assert!(matches!(fit(&mut disk), Err(GptError::Table(_))));
    }
}
