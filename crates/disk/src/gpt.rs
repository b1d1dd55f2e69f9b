//! A partition table on a disk that has become larger: its second copy is moved to the end, and the last partition is grown.
//!
//! Everything is checked before anything is written. Source: UEFI specification 5.3.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use gptman::GPT;
use thiserror::Error;

use crate::source::{RawFile, Source};

/// Partitions begin and end at multiples of this many bytes.
const ALIGNMENT: u64 = 1 << 20;

/// Bytes of an entry: the only size that tools write.
const ENTRY: u64 = 128;

/// Most entries that are read; tools write 128.
const MAX_ENTRIES: u64 = 1024;

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
    /// Its header asks for something that no tool writes.
    #[error("the header of the partition table is not usable: {0}")]
    Header(&'static str),
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

/// Checks the table of the disk in `source`, as [`fit`] does before it writes.
///
/// # Errors
/// [`GptError`].
pub fn check(source: &mut dyn Source) -> Result<(), GptError> {
    let len = source.len();
    check_headers(source, len)?;
    let table = GPT::find_from(&mut Reader { source, at: 0 }).map_err(GptError::Table)?;
    check_entries(&table).map(drop)
}

/// Fits the table in `disk` to the disk's length, and lets its last partition reach to the end. That partition.
///
/// # Errors
/// [`GptError`]; when the table makes no sense, nothing was written.
pub fn fit(disk: &mut File) -> Result<Partition, GptError> {
    let len = disk.metadata().map_err(GptError::Io)?.len();
    check_headers(
        &mut RawFile::new(disk.try_clone().map_err(GptError::Io)?).map_err(GptError::Io)?,
        len,
    )?;
    let mut table = GPT::find_from(disk).map_err(GptError::Table)?;
    let sector = table.sector_size;
    let sectors = len / sector;
    let array = (u64::from(table.header.number_of_partition_entries) * ENTRY).div_ceil(sector);
    if sectors < 2 * array + 4 {
        return Err(GptError::Header("the disk is too small for it"));
    }
    let is_at_end = table.header.backup_lba == sectors - 1;
    table.header.update_from(disk, sector).map_err(GptError::Table)?;
    let last = check_entries(&table)?;
    let align = (ALIGNMENT / sector).max(1);
    let end = ((table.header.last_usable_lba + 1) / align * align).saturating_sub(1);
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
    if is_grown || !is_at_end {
        GPT::write_protective_mbr_into(disk, sector).map_err(GptError::Table)?;
        table.write_into(disk).map_err(GptError::Table)?;
        disk.sync_all().map_err(GptError::Io)?;
    }
    Ok(partition)
}

/// A source as the library reads one.
struct Reader<'a> {
    source: &'a mut dyn Source,
    at: u64,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.len().saturating_sub(self.at).min(buffer.len() as u64) as usize;
        self.source.read_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl io::Seek for Reader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.source.len().checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Checks, in every header that could be used, the fields that the library takes on trust: with other values it would read
/// without end, stop the program, or write elsewhere on the disk.
fn check_headers(disk: &mut dyn Source, len: u64) -> Result<(), GptError> {
    for sector in [512, 4096] {
        let sectors = len / sector;
        for lba in [1, sectors.saturating_sub(1)] {
            let mut head = [0; 92];
            if sectors < 2 || disk.read_at(&mut head, lba * sector).is_err() || !head.starts_with(b"EFI PART") {
                continue;
            }
            check_header(disk, &head, lba, sector, sectors)?;
        }
    }
    Ok(())
}

/// Checks the header at `lba`, and that its entries begin behind it.
fn check_header(disk: &mut dyn Source, head: &[u8; 92], lba: u64, sector: u64, sectors: u64) -> Result<(), GptError> {
    let le32 = |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let le64 = |at: usize| le32(at) | le32(at + 4) << 32;
    let (own, other, entries_at, entries) = (le64(24), le64(32), le64(72), le32(80));
    if le32(84) != ENTRY || !(1..=MAX_ENTRIES).contains(&entries) {
        return Err(GptError::Header("its number or size of entries"));
    }
    let array = (entries * ENTRY).div_ceil(sector);
    let is_first = lba == 1;
    if own != lba || (!is_first && other != 1) {
        return Err(GptError::Header("it says that it is elsewhere"));
    }
    // The second table has its entries right before its header, but older ones may leave a gap.
    let is_in_place = match is_first {
        true => entries_at == 2,
        false => entries_at > 2 && entries_at.checked_add(array).is_some_and(|end| end <= lba),
    };
    if !is_in_place || 2 + array >= sectors {
        return Err(GptError::Header("its entries are not where they belong"));
    }
    let mut table = vec![0; (entries * ENTRY) as usize];
    disk.read_at(&mut table, entries_at * sector).map_err(GptError::Io)?;
    for (index, entry) in table.chunks_exact(ENTRY as usize).enumerate() {
        let is_used = entry[..16].iter().any(|b| *b != 0);
        if is_used && entry[32..40].iter().all(|b| *b == 0) {
            let (number, problem) = (index as u32 + 1, "outside of the disk");
            return Err(GptError::Partition { number, problem });
        }
    }
    Ok(())
}

/// Checks the entries against a header that fits the disk; the number of the last partition on the disk.
fn check_entries(table: &GPT) -> Result<u32, GptError> {
    let mut ranges: Vec<(u64, u64, u32)> = Vec::new();
    let mut guids = HashSet::new();
    for (number, entry) in table.iter().filter(|(_, entry)| entry.is_used()) {
        let wrong = |problem| GptError::Partition { number, problem };
        if entry.starting_lba > entry.ending_lba {
            return Err(wrong("turned around"));
        }
        if entry.starting_lba < table.header.first_usable_lba || entry.ending_lba > table.header.last_usable_lba {
            return Err(wrong("outside of the disk"));
        }
        if !guids.insert(entry.unique_partition_guid) {
            return Err(wrong("named like another one"));
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
    use std::process::Command;

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

    /// Puts `value` into the header at byte 512, its sum included.
    fn patch_header(disk: &File, at: usize, value: &[u8]) {
        let mut head = vec![0; 92];
        disk.read_exact_at(&mut head, 512).unwrap();
        head[at..at + value.len()].copy_from_slice(value);
        head[16..20].fill(0);
        let sum = crc32(&head);
        head[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&head, 512).unwrap();
    }

    #[test]
    fn a_header_that_no_tool_writes_is_named_and_nothing_is_written() {
        let long = u64::MAX.to_le_bytes();
        let cases: [(usize, &[u8]); 10] = [
            (24, &5u64.to_le_bytes()),           // it is elsewhere
            (24, &long),                         //
            (72, &0u64.to_le_bytes()),           // entries over the MBR
            (72, &34u64.to_le_bytes()),          // entries later
            (72, &long),                         //
            (80, &0u32.to_le_bytes()),           // no entries
            (80, &u32::MAX.to_le_bytes()),       // more than memory
            (84, &256u32.to_le_bytes()),         // legal, and no tool writes it
            (84, &0u32.to_le_bytes()),           //
            (84, &0x8000_0000u32.to_le_bytes()), //
        ];
        for (at, value) in cases {
            let mut disk = disk(&[(2048, 4095)], 256 << 20);
            patch_header(&disk, at, value);
            let before = sum(&disk);
            let error = fit(&mut disk).unwrap_err();
            assert!(matches!(error, GptError::Header(_)), "{at}: {error:?}");
            assert_eq!(sum(&disk), before, "{at}");
            assert_eq!(disk.metadata().unwrap().len(), 256 << 20);
        }
    }

    /// A sum of the first MiB and the last one.
    fn sum(disk: &File) -> u32 {
        let mut bytes = vec![0; 2 << 20];
        let (first, last) = bytes.split_at_mut(1 << 20);
        disk.read_exact_at(first, 0).unwrap();
        disk.read_exact_at(last, disk.metadata().unwrap().len() - (1 << 20))
            .unwrap();
        crc32(&bytes)
    }

    #[test]
    fn a_partition_that_begins_nowhere_or_reaches_into_the_second_table_is_refused() {
        let same_size = 64 << 20;
        let sectors = same_size / 512;
        for (start, end) in [(0, 100), (4096, sectors - 1), (4096, sectors - 20)] {
            let mut disk = disk(&[(4096, 9999)], same_size);
            patch(&disk, 1, start, end);
            let before = sum(&disk);
            let error = fit(&mut disk).unwrap_err();
            assert!(matches!(error, GptError::Partition { number: 1, .. }), "{error:?}");
            assert_eq!(sum(&disk), before);
        }
    }

    #[test]
    fn a_disk_below_one_mebibyte_keeps_its_partition() {
        let small = 600 << 10;
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(small).unwrap();
        let mut table = GPT::new_from(&mut disk, 512, [7; 16]).unwrap();
        table[1] = gptman::GPTPartitionEntry {
            partition_type_guid: [1; 16],
            unique_partition_guid: [1; 16],
            starting_lba: 40,
            ending_lba: 1000,
            attribute_bits: 0,
            partition_name: "p".into(),
        };
        table.write_into(&mut disk).unwrap();
        let partition = fit(&mut disk).unwrap();
        assert_eq!((partition.offset, partition.bytes), (40 * 512, 961 * 512));
    }

    #[test]
    fn no_change_of_one_byte_stops_the_program_or_lengthens_the_disk() {
        let bytes = 8 << 20;
        for at in (512..604).chain(1024..1152) {
            for value in [0u8, 1, 0xff] {
                let mut disk = disk(&[(2048, 4095)], bytes);
                let mut head = [0; 1];
                head[0] = value;
                if at < 604 {
                    patch_header(&disk, at - 512, &head);
                } else {
                    disk.write_all_at(&head, at as u64).unwrap();
                    let mut entries = vec![0; 128 * 128];
                    disk.read_exact_at(&mut entries, 1024).unwrap();
                    patch_header(&disk, 88, &crc32(&entries).to_le_bytes());
                }
                if let Ok(partition) = fit(&mut disk) {
                    assert!(
                        partition.offset + partition.bytes <= bytes,
                        "{at} {value}: {partition:?}"
                    );
                }
                assert_eq!(disk.metadata().unwrap().len(), bytes, "{at} {value}");
            }
        }
    }

    #[test]
    fn a_table_of_sgdisk_is_grown_and_sgdisk_finds_no_fault_in_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(64 << 20).unwrap();
        let sgdisk = |args: &[&str]| {
            let ran = Command::new("/usr/sbin/sgdisk")
                .args(args)
                .arg(disk.path())
                .output()
                .ok()?;
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
            Some(said)
        };
        let made = sgdisk(&["-n", "1:2048:+8M", "-t", "1:ef00", "-n", "2:0:0", "-c", "2:root"]);
        if made.is_none() {
            return eprintln!("skipped: sgdisk is not here");
        }
        for size in [200u64 << 20, (300 << 20) + 512] {
            disk.as_file().set_len(size).unwrap();
            let mut file = File::options().read(true).write(true).open(disk.path()).unwrap();
            let partition = fit(&mut file).unwrap();
            assert_eq!(partition.number, 2);
            assert!(partition.offset + partition.bytes > size - (2 << 20), "{partition:?}");
            let said = sgdisk(&["-v"]).unwrap();
            assert!(said.contains("No problems found"), "{said}");
            let info = sgdisk(&["-i", "2"]).unwrap();
            assert!(info.contains("'root'"), "{info}");
        }
    }

    #[test]
    fn a_lost_first_table_is_made_again_from_the_second() {
        let bytes = 64 << 20;
        let mut disk = disk(&[(2048, 4095), (4096, 9999)], bytes);
        disk.write_all_at(&[0; 512], 512).unwrap();
        let partition = fit(&mut disk).unwrap();
        assert_eq!((partition.number, partition.offset), (2, 4096 * 512));
        let mut head = [0; 8];
        disk.read_exact_at(&mut head, 512).unwrap();
        assert_eq!(&head, b"EFI PART");
        assert_eq!(fit(&mut disk).unwrap(), partition);
    }

    #[test]
    fn no_table_is_no_table() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(1 << 20).unwrap();
        assert!(matches!(fit(&mut disk), Err(GptError::Table(_))));
    }
}
