//! Tables of sgdisk: grown and mended so that sgdisk finds no fault in them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use zmachine_disk::RawFile;
use zmachine_disk::gpt::{GptError, Partition, check, fit};

use crate::has;

#[test]
fn a_table_of_sgdisk_is_grown_and_sgdisk_finds_no_fault_in_it() {
    if !has("sgdisk") {
        return;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(64 << 20).unwrap();
    let table = ["-n", "1:2048:+8M", "-t", "1:ef00", "-n", "2:0:0", "-c", "2:root"];
    sgdisk(disk.path(), &table);
    for size in [200u64 << 20, (300 << 20) + 512] {
        disk.as_file().set_len(size).unwrap();
        let mut file = File::options().read(true).write(true).open(disk.path()).unwrap();
        let partition = fit(&mut file).unwrap();
        assert_eq!(partition.number, 2);
        assert!(partition.offset + partition.bytes > size - (2 << 20), "{partition:?}");
        let reported = sgdisk(disk.path(), &["-v"]);
        assert!(reported.contains("No problems found"), "{reported}");
        let info = sgdisk(disk.path(), &["-i", "2"]);
        assert!(info.contains("'root'"), "{info}");
    }
}

/// Runs sgdisk on a disk.
fn sgdisk(disk: &Path, args: &[&str]) -> String {
    let ran = Command::new("/usr/sbin/sgdisk").args(args).arg(disk).output().unwrap();
    let reported = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        ran.status.success(),
        "{reported}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    reported
}

/// A disk of 64 MiB with two partitions by sgdisk, when it is here; `first` are arguments that come before.
fn made_by_sgdisk(first: &[&str]) -> Option<tempfile::NamedTempFile> {
    if !has("sgdisk") {
        return None;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(64 << 20).unwrap();
    let rest = [
        "-n",
        "1:4096:+8M",
        "-t",
        "1:ef00",
        "-n",
        "2:0:0",
        "-c",
        "2:r\u{f6}\u{f6}t",
    ];
    sgdisk(disk.path(), &[first, &rest].concat());
    Some(disk)
}

fn fitted(disk: &tempfile::NamedTempFile) -> Result<Partition, GptError> {
    let mut file = File::options().read(true).write(true).open(disk.path()).unwrap();
    fit(&mut file)
}

#[test]
fn any_half_that_is_damaged_or_missing_is_made_again_so_that_sgdisk_finds_no_fault() {
    const END: u64 = 64 << 20;
    // Where what is broken lies: the first header, its entries, the second header, its entries, the first MiB.
    let first: [(u64, u64); 4] = [(512, 512), (512 + 40, 1), (1024, 128), (0, 17 * 1024)];
    let second: [(u64, u64); 3] = [(END - 512, 512), (END - 512 + 40, 1), (END - 33 * 512, 128)];
    let Some(made) = made_by_sgdisk(&[]) else { return };
    // Making one takes a second; what it writes is at both ends.
    let copy = || {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(END).unwrap();
        let mut bytes = vec![0; 32 << 10];
        for at in [0, END - bytes.len() as u64] {
            made.as_file().read_exact_at(&mut bytes, at).unwrap();
            disk.as_file().write_all_at(&bytes, at).unwrap();
        }
        disk
    };
    for (at, length) in first.into_iter().chain(second) {
        for (size, is_first) in [(END, at < END / 2), (END + (100 << 20), at < END / 2)] {
            let disk = copy();
            disk.as_file().write_all_at(&vec![0xa5; length as usize], at).unwrap();
            disk.as_file().set_len(size).unwrap();
            let is_lost = at == 0 && size > END;
            let mut source = RawFile::new(disk.reopen().unwrap()).unwrap();
            if is_lost {
                // Nothing says any more how large the disk was.
                assert!(matches!(check(&mut source), Err(GptError::Missing)));
                continue;
            }
            let partition = fitted(&disk).unwrap_or_else(|e| panic!("{at} {length} {size} {is_first}: {e}"));
            assert_eq!(partition.number, 2);
            let reported = sgdisk(disk.path(), &["-v"]);
            assert!(
                reported.contains("No problems found"),
                "{at} {length} {size}: {reported}"
            );
            let info = sgdisk(disk.path(), &["-i", "2"]);
            assert!(info.contains("'r\u{f6}\u{f6}t'"), "{info}");
            check(&mut source).unwrap();
        }
    }
}

#[test]
fn when_both_halves_are_damaged_each_says_what_it_has() {
    let Some(disk) = made_by_sgdisk(&[]) else { return };
    disk.as_file().write_all_at(&[0xa5; 8], 512 + 40).unwrap();
    disk.as_file().write_all_at(&[0; 512], (64 << 20) - 512).unwrap();
    let error = fitted(&disk).unwrap_err().to_string();
    assert!(
        error.contains("checksum of its header") && error.contains("there is none"),
        "{error}"
    );
}

#[test]
fn entries_that_are_not_right_behind_the_header_stay_where_they_are() {
    let Some(disk) = made_by_sgdisk(&["-j", "2048"]) else {
        return;
    };
    // What such disks boot from.
    disk.as_file().write_all_at(&[7; 4096], 1024).unwrap();
    for (size, breaks_first) in [(100u64 << 20, false), (150 << 20, true)] {
        disk.as_file().set_len(size).unwrap();
        if breaks_first {
            fitted(&disk).unwrap();
            disk.as_file().write_all_at(&[0; 512], 512).unwrap();
        }
        assert!(fitted(&disk).unwrap().bytes > size / 2);
        let reported = sgdisk(disk.path(), &["-v"]);
        assert!(reported.contains("No problems found"), "{reported}");
        let mut there = [0; 4096];
        disk.as_file().read_exact_at(&mut there, 1024).unwrap();
        assert_eq!(there, [7; 4096]);
    }
}

/// The partitions that a first sector names for older programs: kind and number of sectors.
fn old_partitions(sector: &[u8; 512]) -> Vec<(u8, u32)> {
    assert_eq!(sector[510..], [0x55, 0xaa]);
    let entries = sector[446..510].chunks_exact(16);
    let entries = entries.map(|entry| (entry[4], u32::from_le_bytes(entry[12..].try_into().unwrap())));
    entries.filter(|(kind, _)| *kind != 0).collect()
}

#[test]
fn a_hybrid_mbr_is_kept_and_a_protective_one_grows() {
    let Some(disk) = made_by_sgdisk(&[]) else { return };
    let mbr = || {
        let mut sector = [0; 512];
        disk.as_file().read_exact_at(&mut sector, 0).unwrap();
        sector
    };
    disk.as_file().write_all_at(b"boot code", 0).unwrap();
    disk.as_file().set_len(100 << 20).unwrap();
    fitted(&disk).unwrap();
    let grown = mbr();
    assert!(grown.starts_with(b"boot code"));
    let sectors_behind_the_first = (100 << 20) / 512 - 1;
    assert_eq!(old_partitions(&grown), [(0xee, sectors_behind_the_first)]);
    sgdisk(disk.path(), &["--hybrid", "1:EE"]);
    // sgdisk has cleared it.
    disk.as_file().write_all_at(b"boot code", 0).unwrap();
    let hybrid = mbr();
    assert_eq!(old_partitions(&hybrid).len(), 2, "{:?}", old_partitions(&hybrid));
    disk.as_file().set_len(200 << 20).unwrap();
    disk.as_file().write_all_at(&[0; 512], 512).unwrap();
    // Where the second half is, nothing says any more; before the disk grew, its end did.
    assert!(fitted(&disk).is_err());
    disk.as_file().set_len(100 << 20).unwrap();
    fitted(&disk).unwrap();
    disk.as_file().set_len(200 << 20).unwrap();
    assert!(fitted(&disk).unwrap().bytes > 150 << 20);
    assert_eq!(mbr(), hybrid);
    // A disk without the first sector's word has no GPT for most systems.
    disk.as_file().write_all_at(&[0; 66], 446).unwrap();
    fitted(&disk).unwrap();
    assert!(matches!(old_partitions(&mbr())[..], [(0xee, _)]));
    assert!(mbr().starts_with(b"boot code"));
}
