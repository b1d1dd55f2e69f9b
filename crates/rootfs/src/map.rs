//! The extent table `root.map`: which file block is where on the device.
//!
//! # Layout (little-endian, pages of 4096 bytes)
//! ```text
//! page 0     header: magic "zmroomap", version u32, digest length u32, extents u64, pages u32, metadata blocks u32,
//!            device blocks u64; CRC-32C of all before at byte 4092
//! pages      records {start block u32, length in bytes u32, id, key}, as many as fit, zeros, CRC-32C at byte 4092
//! index      the first start block of each page u32, then the CRC-32C of the index u32
//! ```
//! # Invariants
//! Records are sorted by start block and leave no gap: the first starts at the metadata blocks, the last ends at the device
//! blocks. Only the index (4 bytes per page: 70 KB for a million blocks) and the pages used last are kept in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use thiserror::Error;
use zmachine_flist::block::{BlockId, BlockKey, BlockRef, Digest};

use crate::erofs::{BLOCK_SIZE, ErofsImage, Extent};

const MAGIC: &[u8; 8] = b"zmroomap";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
const PAGE: usize = 4096;
const CHECKSUM_AT: usize = PAGE - 4;
/// Pages kept in memory at most, 1 MiB when a guest reads so much: the blocks of some 14,000 files. With fewer, one that reads
/// small files in no order makes nearly every request read and check a page.
const PAGES_KEPT: usize = 256;

type Page = [u8; PAGE];

/// Why an extent table cannot be written or read.
#[derive(Debug, Error)]
pub enum MapError {
    /// The operating system refused.
    #[error("cannot {action} extent table {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not an extent table of this version, or a part of it is damaged.
    #[error("extent table {} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// Records in a page for digests of this many bytes.
fn per_page(digest_len: usize) -> usize {
    CHECKSUM_AT / record_len(digest_len)
}

fn record_len(digest_len: usize) -> usize {
    8 + 2 * digest_len
}

/// Puts the checksum into a page.
fn seal(page: &mut Page) {
    let checksum = crc32c::crc32c(&page[..CHECKSUM_AT]);
    page[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn is_sealed(page: &Page) -> bool {
    crc32c::crc32c(&page[..CHECKSUM_AT]).to_le_bytes() == page[CHECKSUM_AT..]
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Writes the extent table of `image`.
///
/// # Errors
/// Those of `out`; and when the image mixes digests of different lengths, which no flist can.
pub fn write_map(image: &ErofsImage<'_>, mut out: impl Write) -> io::Result<()> {
    let extents = image.extents();
    let digest_len = extents.first().map_or(32, |e| e.block.id.0.as_bytes().len());
    let pages = extents.chunks(per_page(digest_len));
    let mut header = [0; PAGE];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(digest_len as u32).to_le_bytes());
    header[16..24].copy_from_slice(&(extents.len() as u64).to_le_bytes());
    header[24..28].copy_from_slice(&(pages.len() as u32).to_le_bytes());
    header[28..32].copy_from_slice(&(image.metadata_blocks() as u32).to_le_bytes());
    header[32..40].copy_from_slice(&image.device_blocks().to_le_bytes());
    seal(&mut header);
    out.write_all(&header)?;
    let mut index = Vec::with_capacity(4 * pages.len() + 4);
    for page in pages {
        index.extend_from_slice(&page[0].start.to_le_bytes());
        out.write_all(&encode_page(page, digest_len)?)?;
    }
    let checksum = crc32c::crc32c(&index);
    index.extend_from_slice(&checksum.to_le_bytes());
    out.write_all(&index)
}

fn encode_page(extents: &[Extent], digest_len: usize) -> io::Result<Page> {
    let mut page = [0; PAGE];
    for (record, extent) in page.chunks_exact_mut(record_len(digest_len)).zip(extents) {
        let (id, key) = (extent.block.id.0, extent.block.key.0);
        if id.as_bytes().len() != digest_len || key.as_bytes().len() != digest_len {
            return Err(io::Error::other("the image mixes digests of different lengths"));
        }
        record[..4].copy_from_slice(&extent.start.to_le_bytes());
        record[4..8].copy_from_slice(&extent.block.len.to_le_bytes());
        record[8..8 + digest_len].copy_from_slice(id.as_bytes());
        record[8 + digest_len..].copy_from_slice(key.as_bytes());
    }
    seal(&mut page);
    Ok(page)
}

/// An open extent table.
#[derive(Debug)]
pub struct ExtentMap {
    path: PathBuf,
    file: File,
    digest_len: usize,
    extents: u64,
    metadata_blocks: u32,
    device_blocks: u64,
    /// First start block of each page.
    index: Vec<u32>,
    pages: Mutex<Pages>,
}

/// The pages used last, each in the one place for its number.
#[derive(Debug)]
struct Pages([Option<Box<(usize, Page)>>; PAGES_KEPT]);

impl ExtentMap {
    /// Opens the table at `path` and reads its index.
    ///
    /// # Errors
    /// When it cannot be read or is not a whole extent table of this version.
    pub fn open(path: &Path) -> Result<ExtentMap, MapError> {
        let io = |source| MapError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let damaged = |what| MapError::Damaged {
            path: path.to_owned(),
            what,
        };
        let file = File::open(path).map_err(io)?;
        let mut header = [0; PAGE];
        file.read_exact_at(&mut header, 0).map_err(io)?;
        if &header[..8] != MAGIC || u32_at(&header, 8) != VERSION {
            return Err(damaged("its magic or version is unknown"));
        }
        let digest_len = u32_at(&header, 12) as usize;
        if !is_sealed(&header) || !matches!(digest_len, 16 | 32) {
            return Err(damaged("the header has a wrong checksum"));
        }
        let pages = u32_at(&header, 24) as usize;
        // Before anything of that size is allocated.
        if file.metadata().map_err(io)?.len() != ((1 + pages) * PAGE + 4 * pages + 4) as u64 {
            return Err(damaged("its length is another than the header says"));
        }
        let mut index = vec![0; 4 * pages + 4];
        file.read_exact_at(&mut index, ((1 + pages) * PAGE) as u64)
            .map_err(io)?;
        if crc32c::crc32c(&index[..4 * pages]) != u32_at(&index, 4 * pages) {
            return Err(damaged("the index has a wrong checksum"));
        }
        Ok(ExtentMap {
            path: path.to_owned(),
            file,
            digest_len,
            extents: u64_at(&header, 16),
            metadata_blocks: u32_at(&header, 28),
            device_blocks: u64_at(&header, 32),
            index: (0..pages).map(|page| u32_at(&index, 4 * page)).collect(),
            pages: Mutex::new(Pages(std::array::from_fn(|_| None))),
        })
    }

    /// Bytes of metadata at the start of the device.
    pub fn metadata_bytes(&self) -> u64 {
        u64::from(self.metadata_blocks) * BLOCK_SIZE
    }

    /// Bytes of the whole device, a multiple of 4096.
    pub fn device_bytes(&self) -> u64 {
        self.device_blocks * BLOCK_SIZE
    }

    /// The extent that holds the device block `block`; `None` in the metadata and past the end.
    ///
    /// # Errors
    /// When the page cannot be read or is damaged.
    pub fn lookup(&self, block: u32) -> Result<Option<Extent>, MapError> {
        if u64::from(block) >= self.device_blocks || block < self.metadata_blocks {
            return Ok(None);
        }
        let Some(number) = self.index.partition_point(|&first| first <= block).checked_sub(1) else {
            return Ok(None);
        };
        let mut pages = self.pages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let place = &mut pages.0[number % PAGES_KEPT];
        let page = match place {
            Some(kept) if kept.0 == number => kept,
            // Only a whole page gets there.
            _ => place.insert(Box::new((number, self.read_page(number)?))),
        };
        self.search(number, &page.1, block).map(Some)
    }

    fn read_page(&self, number: usize) -> Result<Page, MapError> {
        let mut page = [0; PAGE];
        self.file
            .read_exact_at(&mut page, ((1 + number) * PAGE) as u64)
            .map_err(|source| MapError::Io {
                action: "read",
                path: self.path.clone(),
                source,
            })?;
        if is_sealed(&page) {
            Ok(page)
        } else {
            Err(self.damaged("a page has a wrong checksum"))
        }
    }

    fn search(&self, number: usize, page: &Page, block: u32) -> Result<Extent, MapError> {
        let width = record_len(self.digest_len);
        let before = number * per_page(self.digest_len);
        let count = (self.extents as usize)
            .saturating_sub(before)
            .min(per_page(self.digest_len));
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = (low + high) / 2;
            if u32_at(page, middle * width) <= block {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(at) = low.checked_sub(1) else {
            return Err(self.damaged("the index does not fit its page"));
        };
        self.decode(&page[at * width..][..width])
    }

    fn decode(&self, record: &[u8]) -> Result<Extent, MapError> {
        let digest = |at: usize| {
            Digest::from_bytes(&record[at..at + self.digest_len])
                .map_err(|_| self.damaged("a digest has a wrong length"))
        };
        Ok(Extent {
            start: u32_at(record, 0),
            block: BlockRef {
                id: BlockId(digest(8)?),
                key: BlockKey(digest(8 + self.digest_len)?),
                len: u32_at(record, 4),
            },
        })
    }

    fn damaged(&self, what: &'static str) -> MapError {
        MapError::Damaged {
            path: self.path.clone(),
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::layout;
    use zmachine_flist::{Metadata, Node, NodeId, NodeKind, Tree, TreeBuilder};

    /// A tree of one-block files; digests of `digest_len` bytes.
    fn tree(files: u64, digest_len: usize) -> Tree {
        let mut tree = TreeBuilder::new(Metadata::default());
        for number in 0..files {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let digest = Digest::from_bytes(&bytes[..digest_len]).unwrap();
            let len = 1 + (number * 3001 % 20_000) as u32;
            let block = BlockRef {
                id: BlockId(digest),
                key: BlockKey(digest),
                len,
            };
            let kind = NodeKind::Regular {
                size: len.into(),
                blocks: vec![block],
            };
            let metadata = Metadata::default();
            tree.add(NodeId::ROOT, number.to_string().into(), Node { metadata, kind })
                .unwrap();
        }
        tree.finish().unwrap()
    }

    fn written(tree: &Tree, dir: &Path) -> (PathBuf, Vec<Extent>) {
        let image = layout(tree, [0; 16]).unwrap();
        let mut bytes = Vec::new();
        write_map(&image, &mut bytes).unwrap();
        let path = dir.join("root.map");
        std::fs::write(&path, bytes).unwrap();
        (path, image.extents().to_vec())
    }

    #[test]
    fn every_block_of_the_device_leads_to_its_extent() {
        for (files, digest_len) in [(0, 32), (1, 32), (56, 32), (57, 32), (500, 32), (500, 16)] {
            let dir = tempfile::tempdir().unwrap();
            let (path, extents) = written(&tree(files, digest_len), dir.path());
            let map = ExtentMap::open(&path).unwrap();
            for extent in &extents {
                for block in extent.start..extent.start + extent.device_blocks() {
                    assert_eq!(map.lookup(block).unwrap(), Some(*extent));
                }
            }
            let (metadata, end) = (map.metadata_bytes() / BLOCK_SIZE, map.device_bytes() / BLOCK_SIZE);
            for outside in [0, metadata - 1, end, u64::from(u32::MAX)] {
                assert_eq!(map.lookup(outside as u32).unwrap(), None, "{outside} of {files}");
            }
        }
    }

    #[test]
    fn a_flipped_byte_or_a_cut_end_is_noticed_and_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (path, extents) = written(&tree(200, 32), dir.path());
        let good = std::fs::read(&path).unwrap();
        let reads_all = || {
            let map = ExtentMap::open(&path)?;
            extents
                .iter()
                .try_for_each(|extent| map.lookup(extent.start).map(|_| ()))
        };
        reads_all().unwrap();
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            assert!(reads_all().is_err(), "byte {at}");
        }
        for len in [0, 100, 4096, good.len() - 1] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(reads_all().is_err(), "length {len}");
        }
    }
}
