//! Whether firmware finds a program to start where there is no GPT: the file that it looks for on every FAT file system, as on a stick
//! (UEFI specification 3.5.1.1). OVMF does so on a disk that is one such file system, and on the partitions of the old kind.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::gpt::mbr;
use crate::source::Source;

/// The file for x86-64.
const PROGRAM: [&str; 3] = ["EFI", "BOOT", "BOOTX64.EFI"];

/// What is read to find it at most, in bytes: a table that leads in circles ends there.
const READ_BYTES: u64 = 8 << 20;

/// Whether there is such a program on the FAT file system that begins at `offset` and has `len` bytes.
fn has_program(source: &mut dyn Source, offset: u64, len: u64) -> bool {
    let part = Part {
        source,
        offset,
        len,
        at: 0,
        left: READ_BYTES,
    };
    find(part).unwrap_or(false)
}

fn find(part: Part<'_>) -> io::Result<bool> {
    let fs = fatfs::FileSystem::new(part, fatfs::FsOptions::new())?;
    let mut dir = fs.root_dir();
    for name in &PROGRAM[..2] {
        let Some(entry) = entry(&dir, name)? else {
            return Ok(false);
        };
        if !entry.is_dir() {
            return Ok(false);
        }
        dir = entry.to_dir();
    }
    Ok(entry(&dir, PROGRAM[2])?.is_some_and(|entry| entry.is_file()))
}

fn entry<'a, 'b>(dir: &fatfs::Dir<'a, Part<'b>>, name: &str) -> io::Result<Option<fatfs::DirEntry<'a, Part<'b>>>> {
    for entry in dir.iter() {
        let entry = entry?;
        if entry.file_name().eq_ignore_ascii_case(name) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Whether a disk whose first sector is `first` has such a program on one of its partitions of the old kind.
pub(crate) fn starts_mbr(source: &mut dyn Source, first: &[u8]) -> bool {
    let partitions = mbr::entries(first).into_iter().filter(|(kind, ..)| *kind != 0);
    let mut partitions = partitions.collect::<Vec<_>>().into_iter();
    partitions.any(|(_, start, sectors)| has_program(source, start * 512, sectors * 512))
}

/// Whether a disk without partitions is a FAT file system with such a program.
pub(crate) fn starts_bare(source: &mut dyn Source) -> bool {
    let len = source.len();
    has_program(source, 0, len)
}

/// Whether a first sector is one of a FAT file system.
pub(crate) fn is_fat(first: &[u8]) -> bool {
    let is_jump = matches!(first[..3], [0xeb, _, 0x90] | [0xe9, ..]);
    let sector = u16::from_le_bytes([first[11], first[12]]);
    let is_named = first[54..].starts_with(b"FAT") || first[82..].starts_with(b"FAT");
    is_jump && is_named && [512, 1024, 2048, 4096].contains(&sector) && first[13].is_power_of_two()
}

/// A part of a disk, read until the budget is used up.
struct Part<'a> {
    source: &'a mut dyn Source,
    offset: u64,
    len: u64,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.len.min(self.source.len().saturating_sub(self.offset));
        let n = end.saturating_sub(self.at).min(buffer.len() as u64);
        self.left = self.left.checked_sub(n).ok_or(io::ErrorKind::InvalidData)?;
        self.source.read_at(&mut buffer[..n as usize], self.offset + self.at)?;
        self.at += n;
        Ok(n as usize)
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        // Also a seek costs, or a chain of clusters in a circle would cost nothing.
        self.left = self.left.checked_sub(64).ok_or(io::ErrorKind::InvalidData)?;
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The library wants to write when it lets go of a file system; nothing is written here.
impl Write for Part<'_> {
    fn write(&mut self, _buffer: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
