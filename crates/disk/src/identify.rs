//! What a disk holds, found out from fixed places alone: superblocks and partition tables. Nothing is followed.
//!
//! Sources: ext4 `fs/ext4/ext4.h` (superblock at 1024, little endian), Btrfs `include/uapi/linux/btrfs_tree.h` (at 64 KiB, little
//! endian), XFS `fs/xfs/libxfs/xfs_format.h` (at 0, big endian), UEFI specification 5.3 (GPT header in the second sector).

use std::fmt;
use std::io;

use crate::firmware;
use crate::foreign::Foreign;
use crate::gpt::{self, mbr::Mbr};
use crate::source::Source;

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros, as far as this module looks.
    Empty,
    /// A file system over the whole disk.
    Filesystem(Filesystem),
    /// A GPT, with sectors of this many bytes.
    Gpt {
        /// 512 or 4096.
        sector_bytes: u64,
    },
    /// A partition table of the old kind.
    Mbr {
        /// Whether firmware finds a program to start on one of the partitions.
        boots: bool,
    },
    /// A FAT file system over the whole disk, as on a stick.
    Fat {
        /// Whether firmware finds a program to start on it.
        boots: bool,
    },
    /// A disk image of another form, or something compressed.
    Foreign(Foreign),
    /// Something that is not known here.
    Unknown,
}

impl Content {
    /// Whether firmware starts a disk with this although it has no GPT.
    pub fn boots_without_gpt(&self) -> bool {
        matches!(self, Content::Mbr { boots: true } | Content::Fat { boots: true })
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// Which.
    pub kind: FilesystemKind,
    /// Its own size in bytes, which may differ from that of the disk.
    pub size_bytes: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
}

/// File systems that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemKind {
    /// ext2, ext3 or ext4.
    Ext4,
    /// Btrfs.
    Btrfs,
    /// XFS.
    Xfs,
}

impl FilesystemKind {
    /// Its name, as `mount -t` has it.
    pub fn name(self) -> &'static str {
        match self {
            FilesystemKind::Ext4 => "ext4",
            FilesystemKind::Btrfs => "btrfs",
            FilesystemKind::Xfs => "xfs",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Empty => f.write_str("nothing"),
            Content::Filesystem(fs) => write!(f, "a bare {} file system", fs.kind.name()),
            Content::Gpt { .. } => f.write_str("a GPT"),
            Content::Mbr { boots: true } => f.write_str("a partition table of the old kind (MBR)"),
            Content::Mbr { boots: false } => f.write_str(
                "a partition table of the old kind (MBR) without a boot loader for UEFI (EFI/BOOT/BOOTX64.EFI on a FAT partition)",
            ),
            Content::Fat { boots: true } => f.write_str("a bare FAT file system"),
            Content::Fat { boots: false } => {
                f.write_str("a bare FAT file system without a boot loader for UEFI (EFI/BOOT/BOOTX64.EFI)")
            }
            Content::Foreign(foreign) => foreign.fmt(f),
            Content::Unknown => f.write_str("no partition table and no file system that is known here"),
        }
    }
}

/// What `source` holds from byte `offset` on: 0 for a whole disk, or where a partition begins.
///
/// # Errors
/// When it cannot be read.
pub fn identify(source: &mut dyn Source, offset: u64) -> io::Result<Content> {
    let mut head = vec![0; 8192];
    let mut btrfs = vec![0; 4096];
    let is_whole = read(source, offset, &mut head)? & read(source, offset.saturating_add(65536), &mut btrfs)?;
    let mbr = Mbr::of(&head);
    // A protective MBR is written last, so a superblock beside it is what an earlier use of the disk has left.
    let is_protective = matches!(mbr, Mbr::Protective { .. } | Mbr::Hybrid);
    if let (true, Some(sector_bytes)) = (is_protective, gpt_sector(&head)) {
        return Ok(Content::Gpt { sector_bytes });
    }
    let found = filesystem(&head, &btrfs);
    if let Some(fs) = found.filter(|fs| fs.size_bytes > 0) {
        return Ok(Content::Filesystem(fs));
    }
    if offset > 0 {
        return Ok(match is_whole && is_zero(&head, &btrfs) {
            true => Content::Empty,
            false => Content::Unknown,
        });
    }
    if let Some(foreign) = Foreign::of(source)? {
        return Ok(Content::Foreign(foreign));
    }
    if is_protective {
        // The first half of the table is lost; the second one tells the size of sectors, or what is wrong is told when it is read.
        let sector_bytes = gpt::second_alone(source).unwrap_or(512);
        return Ok(Content::Gpt { sector_bytes });
    }
    // Partitions of the old kind alone: a GPT beside them is what an earlier use has left, for every system and firmware.
    if mbr == Mbr::Partitions && !firmware::is_fat(&head) {
        let boots = firmware::starts_mbr(source, &head);
        return Ok(Content::Mbr { boots });
    }
    if let Some(sector_bytes) = gpt_sector(&head) {
        return Ok(Content::Gpt { sector_bytes });
    }
    Ok(match firmware::is_fat(&head) {
        true => Content::Fat {
            boots: firmware::starts_bare(source),
        },
        false if is_whole && is_zero(&head, &btrfs) => Content::Empty,
        false => Content::Unknown,
    })
}

fn is_zero(head: &[u8], more: &[u8]) -> bool {
    head.iter().chain(more).all(|byte| *byte == 0)
}

/// Sector size of the GPT at the beginning of a disk, if there is one.
fn gpt_sector(head: &[u8]) -> Option<u64> {
    let sector = [512, 4096]
        .into_iter()
        .find(|sector| head[*sector..].starts_with(b"EFI PART"));
    sector.map(|sector| sector as u64)
}

/// Reads what there is; whether that was all. The rest stays zero.
fn read(source: &mut dyn Source, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let there = source.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
    if there > 0 {
        source.read_at(&mut buffer[..there], offset)?;
    }
    Ok(there == buffer.len())
}

fn filesystem(head: &[u8], btrfs: &[u8]) -> Option<Filesystem> {
    let le16 = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let le32 = |b: &[u8], at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let be32 = |b: &[u8], at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let uuid = |b: &[u8], at: usize| {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&b[at..at + 16]);
        uuid
    };
    if btrfs[64..72] == *b"_BHRfS_M" {
        return Some(Filesystem {
            kind: FilesystemKind::Btrfs,
            size_bytes: u64::from(le32(btrfs, 0x70)) | u64::from(le32(btrfs, 0x74)) << 32,
            uuid: uuid(btrfs, 0x20),
        });
    }
    if head.starts_with(b"XFSB") {
        let blocks = u64::from(be32(head, 8)) << 32 | u64::from(be32(head, 12));
        return Some(Filesystem {
            kind: FilesystemKind::Xfs,
            size_bytes: blocks.checked_mul(u64::from(be32(head, 4)))?,
            uuid: uuid(head, 32),
        });
    }
    let ext = &head[1024..2048];
    if le16(ext, 0x38) == 0xef53 {
        let is_64bit = le32(ext, 0x60) & 0x80 != 0;
        let high = if is_64bit { u64::from(le32(ext, 0x150)) } else { 0 };
        let blocks = u64::from(le32(ext, 4)) | high << 32;
        return Some(Filesystem {
            kind: FilesystemKind::Ext4,
            size_bytes: blocks.checked_mul(1024u64.checked_shl(le32(ext, 0x18)).filter(|b| *b != 0)?)?,
            uuid: uuid(ext, 0x68),
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::RawFile;

    fn made(program: &str, args: &[&str], bytes: u64) -> Option<Content> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let ran = Command::new(program).args(args).arg(file.path()).output().ok()?;
        assert!(
            ran.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
        Some(identify(&mut RawFile::new(file.reopen().unwrap()).unwrap(), 0).unwrap())
    }

    #[test]
    fn file_systems_made_by_their_own_tools_are_known_with_their_size() {
        let cases: [(&str, &[&str], u64, FilesystemKind); 3] = [
            (
                "/usr/sbin/mke2fs",
                &["-q", "-t", "ext4"],
                64 << 20,
                FilesystemKind::Ext4,
            ),
            ("/usr/bin/mkfs.btrfs", &["-q"], 256 << 20, FilesystemKind::Btrfs),
            ("/usr/sbin/mkfs.xfs", &["-q"], 512 << 20, FilesystemKind::Xfs),
        ];
        for (program, args, bytes, kind) in cases {
            // A tool that this host lacks has nothing to say here; ext4's is always needed.
            match made(program, args, bytes) {
                Some(Content::Filesystem(fs)) => assert_eq!((fs.kind, fs.size_bytes), (kind, bytes)),
                None => assert_ne!(kind, FilesystemKind::Ext4),
                other => panic!("{program}: {other:?}"),
            }
        }
    }

    #[test]
    fn short_and_strange_disks_are_no_file_systems() {
        let content = |bytes: &[u8]| identify(&mut bytes.to_vec(), 0).unwrap();
        assert_eq!(content(&[]), Content::Unknown);
        assert_eq!(content(&[0; 100]), Content::Unknown);
        assert_eq!(content(&vec![0; 1 << 20]), Content::Empty);
        assert_eq!(content(&vec![7; 1 << 20]), Content::Unknown);
        let mut mbr = vec![0; 1 << 20];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(content(&mbr), Content::Unknown);
        mbr[450] = 0x83;
        assert_eq!(content(&mbr), Content::Mbr { boots: false });
        // What an earlier use of the disk has left is no GPT: no system takes it for one.
        mbr[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(content(&mbr), Content::Mbr { boots: false });
        mbr[446..512].fill(0);
        assert_eq!(content(&mbr), Content::Gpt { sector_bytes: 512 });
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        mbr[450] = 0xee;
        mbr[512..520].fill(0);
        assert_eq!(
            content(&mbr),
            Content::Gpt { sector_bytes: 512 },
            "its first half is lost"
        );
        assert_eq!(content(b"KDMV"), Content::Foreign(Foreign::Vmdk));
    }

    /// A FAT file system of 8 MiB with these files.
    fn fat(files: &[&str]) -> Vec<u8> {
        use std::io::{Cursor, Write};
        let mut bytes = vec![0; 8 << 20];
        let mut disk = Cursor::new(&mut bytes[..]);
        fatfs::format_volume(&mut disk, fatfs::FormatVolumeOptions::new()).unwrap();
        let fs = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
        for file in files {
            let (path, _) = file.rsplit_once('/').unwrap();
            let mut dir = fs.root_dir();
            for name in path.split('/') {
                dir = dir.create_dir(name).unwrap();
            }
            fs.root_dir().create_file(file).unwrap().write_all(b"MZ").unwrap();
        }
        drop(fs);
        bytes
    }

    #[test]
    fn what_firmware_starts_without_a_gpt_is_told_from_what_it_does_not() {
        let loader = fat(&["EFI/BOOT/BOOTX64.EFI"]);
        let without = fat(&["EFI/debian/shimx64.efi", "EFI/BOOT.TXT/BOOTX64.EFI"]);
        for (fs, boots) in [(&loader, true), (&without, false)] {
            assert_eq!(identify(&mut fs.clone(), 0).unwrap(), Content::Fat { boots });
            for kind in [0xef, 0x0c, 0x83] {
                let mut disk = vec![0; 1 << 20];
                disk.extend(fs);
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
                disk[450] = kind;
                disk[454..458].copy_from_slice(&2048u32.to_le_bytes());
                disk[458..462].copy_from_slice(&((8u32 << 20) / 512).to_le_bytes());
                let content = identify(&mut disk, 0).unwrap();
                assert_eq!(
                    (content, content.boots_without_gpt()),
                    (Content::Mbr { boots }, boots),
                    "{kind:#x}"
                );
            }
        }
    }

    #[test]
    fn a_fat_file_system_that_leads_in_circles_ends() {
        let mut disk = fat(&["EFI/BOOT/OTHER.EFI"]);
        let tables = u16::from_le_bytes([disk[14], disk[15]]) as usize * 512;
        // Every cluster is followed by the third one.
        for at in (tables..tables + 4096).step_by(2) {
            disk[at..at + 2].copy_from_slice(&[3, 0]);
        }
        assert_eq!(identify(&mut disk, 0).unwrap(), Content::Fat { boots: false });
    }

    #[test]
    fn a_partition_table_counts_and_not_the_superblock_that_was_there_before() {
        let mut disk = vec![0; 1 << 20];
        disk[65536 + 64..65536 + 72].copy_from_slice(b"_BHRfS_M");
        disk[65536 + 0x70] = 1;
        assert!(matches!(identify(&mut disk, 0).unwrap(), Content::Filesystem(_)));
        disk[450] = 0xee;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(identify(&mut disk, 0).unwrap(), Content::Gpt { sector_bytes: 512 });
    }

    #[test]
    fn any_place_of_any_disk_can_be_asked_for() {
        for offset in [1, 511, 8191, 1 << 20, u64::MAX - 1, u64::MAX] {
            for byte in [0u8, 0x55, 0xff] {
                identify(&mut vec![byte; 100_000], offset).unwrap();
            }
        }
    }

    #[test]
    fn a_hostile_superblock_gives_no_size_instead_of_a_wrong_one() {
        let mut disk = vec![0; 1 << 20];
        disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
        disk[1024 + 4..1024 + 8].fill(0xff);
        disk[1024 + 0x18..1024 + 0x1c].fill(0xff);
        assert_eq!(identify(&mut disk, 0).unwrap(), Content::Unknown);
    }
}
