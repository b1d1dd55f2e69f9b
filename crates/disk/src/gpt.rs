//! A partition table on a disk that has become larger: its second copy is moved to the end, and the last partition is grown. A copy that
//! is damaged or missing is made again from the other one.
//!
//! Everything is checked before anything is written. The second copy is written first, and both reach the disk one after the other: a
//! table can be found whatever moment the power goes. Source: UEFI specification 5.3.

mod half;
pub(crate) mod mbr;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use half::{Half, NoHalf, Written};
use mbr::Mbr;
use thiserror::Error;

use crate::source::{RawFile, Source};

/// Partitions begin and end at multiples of this many bytes.
const ALIGNMENT: u64 = 1 << 20;

/// Sectors that disks have.
const SECTORS: [u64; 2] = [512, 4096];

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

/// Why a partition table cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GptError {
    /// There is none.
    #[error("there is no GPT, neither at the beginning of the disk nor at its end")]
    Missing,
    /// Neither copy is whole.
    #[error("both copies of the GPT are damaged: of the first one, {first}; of the second one, {second}")]
    Damaged {
        /// What is wrong with the one at the beginning.
        first: &'static str,
        /// What is wrong with the one at the end.
        second: &'static str,
    },
    /// Its header asks for something that no tool writes.
    #[error("the header of the partition table is not usable: {0}")]
    Header(&'static str),
    /// A partition is not where one can be.
    #[error("the partition {number} of the table {problem}")]
    Partition {
        /// Its number.
        number: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is none.
    #[error("the partition table has no partitions")]
    Empty,
    /// The disk cannot be read or written.
    #[error("the disk cannot be used")]
    Io(#[source] io::Error),
}

/// A table, out of whichever half is whole.
struct Found {
    half: Half,
    sector: u64,
    /// Where the entries of the first half are, or belong.
    entries_lba: u64,
    /// Both halves are there and say the same, and the second one is at the end of the disk.
    is_whole: bool,
}

/// Checks the table of the disk in `source`, as [`fit`] does before it writes. One of which a half is damaged or missing can be fitted.
///
/// # Errors
/// [`GptError`].
pub fn check(source: &mut dyn Source) -> Result<(), GptError> {
    let found = find(source)?;
    check_entries(&found.half, found.half.last_usable()).map(drop)
}

/// Whether there is a GPT whose first half is lost, for the sector size it has.
pub(crate) fn second_alone(source: &mut dyn Source) -> Option<u64> {
    find(source).ok().map(|found| found.sector)
}

/// Fits the table in `disk` to the disk's length, mends a half that is damaged or missing, and lets the last partition reach to the end.
/// That partition.
///
/// # Errors
/// [`GptError`]; when the table makes no sense, nothing was written.
pub fn fit(disk: &mut File) -> Result<Partition, GptError> {
    let mut source = RawFile::new(disk.try_clone().map_err(GptError::Io)?).map_err(GptError::Io)?;
    let Found {
        mut half,
        sector,
        entries_lba,
        is_whole,
    } = find(&mut source)?;
    let sectors = source.len() / sector;
    let array = half.array_sectors(sector);
    if sectors < entries_lba + 2 * array + 2 {
        return Err(GptError::Header("the disk is too small for it"));
    }
    let last_usable = sectors - array - 2;
    let (last, start, old_end) = check_entries(&half, last_usable)?;
    let align = (ALIGNMENT / sector).max(1);
    let end = ((last_usable + 1) / align * align).saturating_sub(1).max(old_end);
    if end > old_end {
        half.set_end(last, end);
    }
    let partition = Partition {
        number: last,
        offset: start * sector,
        bytes: (end - start + 1) * sector,
    };
    if end > old_end || !is_whole {
        let second = half.written(sectors - 1, 1, last_usable + 1, last_usable);
        write(disk, &second, &half.entries, sector).map_err(GptError::Io)?;
        let first = half.written(1, sectors - 1, entries_lba, last_usable);
        write(disk, &first, &half.entries, sector).map_err(GptError::Io)?;
    }
    protect(disk, sectors).map_err(GptError::Io)?;
    Ok(partition)
}

fn write(disk: &File, half: &Written, entries: &[u8], sector: u64) -> io::Result<()> {
    disk.write_all_at(entries, half.entries_lba * sector)?;
    // The rest of the sector is reserved, and zero.
    let mut head = vec![0; sector as usize];
    head[..half.head.len()].copy_from_slice(&half.head);
    disk.write_all_at(&head, half.lba * sector)?;
    disk.sync_all()
}

/// Brings the first sector in line.
fn protect(disk: &File, sectors: u64) -> io::Result<()> {
    let mut first = [0; 512];
    disk.read_exact_at(&mut first, 0)?;
    if mbr::protect(&mut first, sectors) {
        disk.write_all_at(&first, 0)?;
        disk.sync_all()?;
    }
    Ok(())
}

/// The table of a disk.
fn find(disk: &mut dyn Source) -> Result<Found, GptError> {
    let mut failure = GptError::Missing;
    for sector in SECTORS {
        let first = match Half::read(disk, 1, sector) {
            Ok(half) => {
                let last = (disk.len() / sector).saturating_sub(1);
                let is_whole =
                    half.other_lba() == last && Half::read(disk, last, sector).is_ok_and(|second| second.is_of(&half));
                return Ok(Found {
                    sector,
                    entries_lba: half.entries_lba(),
                    half,
                    is_whole,
                });
            }
            Err(first @ (NoHalf::Missing | NoHalf::Damaged(_))) => first,
            Err(first) => return Err(first.into()),
        };
        match second(disk, sector)? {
            Ok(half) => {
                return Ok(Found {
                    sector,
                    entries_lba: entries_lba(disk, sector, &half).map_err(GptError::Io)?,
                    half,
                    is_whole: false,
                });
            }
            Err(second) => match (first, second, &failure) {
                (NoHalf::Missing, NoHalf::Missing, _) => {}
                (first, second, GptError::Missing) => {
                    let what = |half| match half {
                        NoHalf::Damaged(what) => what,
                        _ => "there is none",
                    };
                    failure = GptError::Damaged {
                        first: what(first),
                        second: what(second),
                    };
                }
                _ => {}
            },
        }
    }
    Err(failure)
}

/// The half at the end of the disk, or at the end of the smaller one that it was: where what is left of the first half says, or the
/// first sector.
fn second(disk: &mut dyn Source, sector: u64) -> Result<Result<Half, NoHalf>, GptError> {
    let sectors = disk.len() / sector;
    if sectors < 4 {
        return Ok(Err(NoHalf::Missing));
    }
    let (mut mbr, mut head) = ([0; 512], [0; 40]);
    disk.read_at(&mut mbr, 0).map_err(GptError::Io)?;
    disk.read_at(&mut head, sector).map_err(GptError::Io)?;
    let mut places = vec![sectors - 1];
    if head.starts_with(b"EFI PART") {
        let mut other = [0; 8];
        other.copy_from_slice(&head[32..40]);
        places.push(u64::from_le_bytes(other));
    }
    if let Mbr::Protective { last_lba, .. } = Mbr::of(&mbr) {
        places.push(last_lba);
    }
    let mut worst = NoHalf::Missing;
    for lba in places.into_iter().filter(|lba| *lba > 1) {
        match Half::read(disk, lba, sector) {
            Ok(half) => return Ok(Ok(half)),
            Err(NoHalf::Io(error)) => return Err(GptError::Io(error)),
            Err(NoHalf::Missing) => {}
            Err(NoHalf::Damaged(what) | NoHalf::Refused(what)) => worst = NoHalf::Damaged(what),
        }
    }
    Ok(Err(worst))
}

/// Where the entries of the first half belong, by those of the second: where they still are, else right behind the header, which is
/// where they are on all disks but those that boot from the sectors there.
fn entries_lba(disk: &mut dyn Source, sector: u64, second: &Half) -> io::Result<u64> {
    let array = second.array_sectors(sector);
    let before_usable = second.first_usable().saturating_sub(array);
    for lba in [2, before_usable] {
        let mut there = vec![0; second.entries.len()];
        let is_within = lba >= 2 && (lba + array) * sector <= disk.len();
        if is_within {
            disk.read_at(&mut there, lba * sector)?;
        }
        if is_within && half::crc32(&there) == second.entries_sum() {
            return Ok(lba);
        }
    }
    Ok(2)
}

/// Checks the entries against the sectors that they may have; number, first and last sector of the last partition on the disk.
fn check_entries(half: &Half, last_usable: u64) -> Result<(u32, u64, u64), GptError> {
    let mut ranges: Vec<(u64, u64, u32)> = Vec::new();
    let mut guids = HashSet::new();
    for (number, guid, start, end) in half.used() {
        let wrong = |problem| GptError::Partition { number, problem };
        if start > end {
            return Err(wrong("ends before it starts"));
        }
        if start < half.first_usable().max(2) || end > last_usable {
            return Err(wrong("is outside of the disk"));
        }
        if !guids.insert(guid) {
            return Err(wrong("is named like another one"));
        }
        ranges.push((start, end, number));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 <= pair[0].1 {
            let number = pair[1].2;
            return Err(GptError::Partition {
                number,
                problem: "overlaps another one",
            });
        }
    }
    let last = ranges.last().map(|(start, end, number)| (*number, *start, *end));
    last.ok_or(GptError::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes both halves of a table as the UEFI specification has them; partitions are their first and last sectors.
    fn write_table(disk: &File, parts: &[(u64, u64)]) {
        let last = disk.metadata().unwrap().len() / 512 - 1;
        let mut entries = vec![0; 128 * 128];
        for (entry, (start, end)) in entries.chunks_exact_mut(128).zip(parts) {
            entry[..16].fill(1);
            entry[16..24].copy_from_slice(&start.to_le_bytes());
            entry[32..40].copy_from_slice(&start.to_le_bytes());
            entry[40..48].copy_from_slice(&end.to_le_bytes());
            entry[56] = b'p';
        }
        for (own, other, table) in [(1, last, 2), (last, 1, last - 32)] {
            let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
            header.resize(24, 0);
            for lba in [own, other, 34, last - 33] {
                header.extend(lba.to_le_bytes());
            }
            header.extend([7; 16]);
            header.extend(table.to_le_bytes());
            for number in [128, 128, crc32(&entries)] {
                header.extend(number.to_le_bytes());
            }
            let sum = crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            disk.write_all_at(&header, own * 512).unwrap();
            disk.write_all_at(&entries, table * 512).unwrap();
        }
    }

    fn disk(parts: &[(u64, u64)], bytes: u64) -> File {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        write_table(&disk, parts);
        disk.set_len(bytes).unwrap();
        disk
    }

    #[test]
    fn the_last_partition_reaches_the_end_of_the_larger_disk() {
        let mut disk = disk(&[(2048, 4095), (4096, 100_000)], 256 << 20);
        let partition = fit(&mut disk).unwrap();
        assert_eq!((partition.number, partition.offset), (2, 4096 * 512));
        assert!(partition.bytes > (250 << 20), "{partition:?}");
        let number = |at| {
            let mut bytes = [0; 8];
            disk.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!(number(512 + 32), (256 << 20) / 512 - 1, "where the second header is");
        assert_eq!(number(1024 + 40), 4095, "where the first partition ends");
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
        let cases: [(usize, &[u8]); 9] = [
            (24, &5u64.to_le_bytes()),           // it is elsewhere
            (24, &long),                         //
            (72, &0u64.to_le_bytes()),           // entries over the MBR
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
        write_table(&disk, &[(40, 1000)]);
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
        assert!(matches!(fit(&mut disk), Err(GptError::Missing)));
    }
}
