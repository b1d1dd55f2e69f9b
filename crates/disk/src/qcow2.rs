//! Reading disks in QEMU's copy-on-write format, versions 2 and 3, as `qemu-img` makes them by default.
//!
//! An image comes from anywhere, so what would make this host read other files (a backing file, an external data file) is
//! refused, and every offset is checked before it is used. Source: QEMU `docs/interop/qcow2.txt`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::source::Source;

const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Largest disk that is read.
const MAX_DISK: u64 = 1 << 47;
/// Most entries of the first table, which is kept in memory: 32 MiB of it, QEMU's own limit.
const MAX_L1: u64 = 4 << 20;

/// A disk in a qcow2 file.
#[derive(Debug)]
pub struct Qcow2 {
    file: File,
    len: u64,
    cluster_bits: u32,
    l1: Vec<u64>,
    /// The last second-level table that was read, and its offset.
    l2: (u64, Vec<u64>),
    /// The last compressed cluster that was unpacked, and its guest offset.
    unpacked: Option<(u64, Vec<u8>)>,
}

impl Qcow2 {
    /// The disk in `file`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn new(file: File) -> Result<Qcow2, String> {
        let mut head = vec![0; 112];
        let n = file.read_at(&mut head, 0).map_err(|e| e.to_string())?;
        if n < 72 {
            return Err("its header is cut off".into());
        }
        let be32 = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let be64 = |at: usize| u64::from(be32(at)) << 32 | u64::from(be32(at + 4));
        let version = be32(4);
        if !(2..=3).contains(&version) {
            return Err(format!("qcow2 version {version} is not known"));
        }
        if be64(8) != 0 || be32(16) != 0 {
            return Err("it has a backing file; make one image of both with 'qemu-img convert'".into());
        }
        if be32(32) != 0 {
            return Err("it is encrypted".into());
        }
        if version == 3 {
            let features = be64(72);
            if features & INCOMPATIBLE_DATA_FILE != 0 {
                return Err("its data is in another file; make one image with 'qemu-img convert'".into());
            }
            if features & INCOMPATIBLE_CORRUPT != 0 {
                return Err("it is marked as damaged; 'qemu-img check -r all' may mend it".into());
            }
            if features & INCOMPATIBLE_COMPRESSION != 0 && head[104] != 0 {
                return Err("it is compressed with zstd; make it anew with 'qemu-img convert'".into());
            }
            if features & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION) != 0 {
                return Err("it has features that are not known here; make it anew with 'qemu-img convert'".into());
            }
        }
        let (cluster_bits, len) = (be32(20), be64(24));
        if !(9..=21).contains(&cluster_bits) || len > MAX_DISK {
            return Err("its header makes no sense".into());
        }
        let per_l2 = 1u64 << (cluster_bits - 3);
        let entries = len.div_ceil(per_l2 << cluster_bits);
        if entries > MAX_L1 {
            return Err("its first table is larger than QEMU allows".into());
        }
        if u64::from(be32(36)) < entries {
            return Err("its first table is too short for its size".into());
        }
        let l1 =
            table(&file, be64(40), entries as usize).map_err(|e| format!("its first table cannot be read: {e}"))?;
        Ok(Qcow2 {
            file,
            len,
            cluster_bits,
            l1,
            l2: (0, Vec::new()),
            unpacked: None,
        })
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The entry of the cluster that has guest byte `offset`; 0 when nothing was ever written there.
    fn entry(&mut self, offset: u64) -> io::Result<u64> {
        let cluster = offset >> self.cluster_bits;
        let per_l2 = 1u64 << (self.cluster_bits - 3);
        let at = self.l1[(cluster / per_l2) as usize] & OFFSET_MASK;
        if at == 0 {
            return Ok(0);
        }
        if self.l2.0 != at {
            self.l2 = (at, table(&self.file, at, per_l2 as usize)?);
        }
        Ok(self.l2.1[(cluster % per_l2) as usize])
    }

    fn read_cluster(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let entry = self.entry(offset)?;
        let within = offset % self.cluster_bytes();
        if entry & COMPRESSED != 0 {
            let start = offset - within;
            if self.unpacked.as_ref().is_none_or(|(at, _)| *at != start) {
                self.unpacked = Some((start, self.unpack(entry)?));
            }
            let bytes = self.unpacked.as_ref().map_or(&[][..], |(_, bytes)| bytes);
            buffer.copy_from_slice(&bytes[within as usize..within as usize + buffer.len()]);
            return Ok(());
        }
        if entry & OFFSET_MASK == 0 || entry & ZERO != 0 {
            buffer.fill(0);
            return Ok(());
        }
        // An image may end inside of its last cluster.
        let at = (entry & OFFSET_MASK) + within;
        let n = read_up_to(&self.file, buffer, at)?;
        buffer[n..].fill(0);
        Ok(())
    }

    /// `entry`: the file offset, and in the bits above it the number of further 512-byte sectors.
    fn unpack(&self, entry: u64) -> io::Result<Vec<u8>> {
        let bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1;
        let mut packed = vec![0; (sectors * 512 - at % 512) as usize];
        let n = read_up_to(&self.file, &mut packed, at)?;
        let mut bytes = Vec::with_capacity(self.cluster_bytes() as usize);
        flate2::read::DeflateDecoder::new(&packed[..n])
            .take(self.cluster_bytes())
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.cluster_bytes() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a compressed part of it is damaged",
            ));
        }
        Ok(bytes)
    }
}

impl Source for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let left = self.cluster_bytes() - at % self.cluster_bytes();
            let n = (buffer.len() - done).min(left as usize);
            self.read_cluster(&mut buffer[done..done + n], at)?;
            done += n;
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let mut at = offset;
        let covered = self.cluster_bytes() << (self.cluster_bits - 3);
        while at < self.len {
            // Where there is no second table, nothing was ever written.
            if self.l1[(at / covered) as usize] & OFFSET_MASK == 0 {
                at = (at / covered + 1) * covered;
                continue;
            }
            let entry = self.entry(at)?;
            if entry & COMPRESSED != 0 || (entry & OFFSET_MASK != 0 && entry & ZERO == 0) {
                return Ok(Some(at));
            }
            at = (at | (self.cluster_bytes() - 1)) + 1;
        }
        Ok(None)
    }
}

fn table(file: &File, at: u64, entries: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; entries * 8];
    file.read_exact_at(&mut bytes, at)?;
    let entry = |b: &[u8]| u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    Ok(bytes.chunks_exact(8).map(entry).collect())
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 2 header with these fields and nothing behind it.
    fn header(cluster_bits: u32, len: u64, l1_entries: u32, l1_at: u64) -> File {
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&2u32.to_be_bytes());
        head[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
        head[24..32].copy_from_slice(&len.to_be_bytes());
        head[36..40].copy_from_slice(&l1_entries.to_be_bytes());
        head[40..48].copy_from_slice(&l1_at.to_be_bytes());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&head, 0).unwrap();
        file.set_len(64 << 20).unwrap();
        file
    }

    #[test]
    fn a_header_can_not_ask_for_more_memory_than_qemu_allows() {
        let error = Qcow2::new(header(9, 1 << 47, u32::MAX, 512)).unwrap_err();
        assert!(error.contains("larger than QEMU allows"), "{error}");
        for at in [1 << 40, u64::MAX, u64::MAX - 511] {
            Qcow2::new(header(16, 1 << 30, 2, at)).unwrap_err();
        }
        for bits in [0, 8, 22, u32::MAX] {
            Qcow2::new(header(bits, 1 << 20, 1, 512)).unwrap_err();
        }
        Qcow2::new(header(16, u64::MAX, u32::MAX, 512)).unwrap_err();
    }

    #[test]
    fn a_huge_disk_without_data_is_looked_through_at_once() {
        // 128 GiB of 512-byte clusters would be 2^28 steps, one by one.
        let mut disk = Qcow2::new(header(9, 1 << 37, 4 << 20, 512)).unwrap();
        assert_eq!(disk.next_data(0).unwrap(), None);
        assert_eq!(disk.next_data(12345).unwrap(), None);
    }
}
