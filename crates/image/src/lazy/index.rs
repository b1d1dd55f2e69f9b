//! `lazy.chunks`: the chunks of an image, and which of them each lazy block is made of.
//!
//! ```text
//! "zmlazy01" | number of chunks u32 | number of blocks u32 | chunks | blocks       (little-endian)
//! chunk      layer u16 | at u64 | stored u32 | skip u32 | size u32 | SHA-256 of the plaintext
//! block      key (32 bytes) | first chunk u32 | chunks u32 | skip u32 | length u32
//! ```
//! A block is `length` bytes of the plaintexts of its chunks behind each other, from `skip` on. Chunks of one block are of one layer, and
//! beside each other there.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use zmachine_flist::{BlockId, BlockKey, BlockRef, Digest};
use zmachine_sys::file::{FileError, read_regular};

const MAGIC: &[u8; 8] = b"zmlazy01";
const CHUNK: usize = 2 + 8 + 3 * 4 + 32;
const BLOCK: usize = 32 + 4 * 4;
/// The longest file that is read: a million blocks and chunks.
const LIMIT: u64 = 128 << 20;

/// The most that one fetch takes from a registry, in bytes. Chunks are 4 MiB by default, and two of them may be needed for one block.
pub const MOST_STORED: u64 = 20 << 20;
/// The most that the chunks of one fetch have when they are unpacked, in bytes.
pub const MOST_PLAIN: u64 = 18 << 20;

/// A part of a file that can be unpacked alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Which of the image's lazy layers it is in.
    pub layer: u16,
    /// Where it begins in the layer as the registry keeps it, in bytes.
    pub at: u64,
    /// The most bytes that it has there; none when it is zeros that are nowhere.
    pub stored: u32,
    /// Bytes before it in what begins at `at`, when that is unpacked.
    pub skip: u32,
    /// Bytes of its plaintext.
    pub size: u64,
    /// SHA-256 of its plaintext.
    pub sha256: [u8; 32],
}

#[derive(Debug, Clone, Copy)]
struct Made {
    first: u32,
    count: u32,
    skip: u32,
    len: u32,
}

/// The chunks of an image, and the lazy blocks that are made of them.
#[derive(Debug, Default)]
pub struct LazyIndex {
    chunks: Vec<Chunk>,
    blocks: HashMap<BlockKey, Made>,
    /// The blocks that begin in a chunk.
    by_chunk: HashMap<u32, Vec<BlockKey>>,
}

impl LazyIndex {
    /// Adds a file: its chunks in their order, which are its whole content. Its blocks; `None` when a block of it would need
    /// more than one fetch may take.
    pub fn add_file(&mut self, chunks: &[Chunk]) -> Option<Vec<BlockRef>> {
        let base = u32::try_from(self.chunks.len()).ok()?;
        let size: u64 = chunks.iter().map(|chunk| chunk.size).sum();
        // Where each chunk ends in the file.
        let ends: Vec<u64> = chunks
            .iter()
            .scan(0, |end, chunk| {
                *end += chunk.size;
                Some(*end)
            })
            .collect();
        let mut blocks = Vec::new();
        let mut made = Vec::new();
        for start in (0..size).step_by(BlockRef::SIZE) {
            let end = size.min(start + BlockRef::SIZE as u64);
            let first = ends.partition_point(|chunk_end| *chunk_end <= start);
            let last = ends.partition_point(|chunk_end| *chunk_end < end);
            let its = chunks.get(first..=last)?;
            let stored: u64 = its.iter().map(|chunk| u64::from(chunk.stored)).sum();
            let plain: u64 = its.iter().map(|chunk| chunk.size + u64::from(chunk.skip)).sum();
            if stored > MOST_STORED || plain > MOST_PLAIN {
                return None;
            }
            let chunk_start = if first == 0 { 0 } else { ends[first - 1] };
            let part = Made {
                first: base + u32::try_from(first).ok()?,
                count: u32::try_from(its.len()).ok()?,
                skip: u32::try_from(start - chunk_start).ok()?,
                len: u32::try_from(end - start).ok()?,
            };
            let block = lazy_block(its, part);
            blocks.push(block);
            made.push((block.key, part));
        }
        self.chunks.extend_from_slice(chunks);
        for (key, part) in made {
            self.insert(key, part);
        }
        Some(blocks)
    }

    fn insert(&mut self, key: BlockKey, part: Made) {
        // The same content twice is one block.
        if self.blocks.insert(key, part).is_none() {
            self.by_chunk.entry(part.first).or_default().push(key);
        }
    }

    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.blocks.contains_key(key)
    }

    /// The chunks of a block, and which they are.
    pub(super) fn chunks_of(&self, key: &BlockKey) -> Option<(Range<u32>, &[Chunk])> {
        let made = self.blocks.get(key)?;
        let range = made.first..made.first.checked_add(made.count)?;
        let chunks = self.chunks.get(range.start as usize..range.end as usize)?;
        Some((range, chunks))
    }

    /// The lazy blocks that are whole in these chunks, and where they are in the plaintexts of these behind each other.
    pub(super) fn within(&self, chunks: Range<u32>) -> Vec<(BlockRef, Range<u64>)> {
        let mut found = Vec::new();
        let mut before = 0;
        for chunk in chunks.clone() {
            for key in self.by_chunk.get(&chunk).into_iter().flatten() {
                let Some(made) = self.blocks.get(key) else { continue };
                if made.first + made.count <= chunks.end {
                    let start = before + u64::from(made.skip);
                    found.push((reference(*key, made.len), start..start + u64::from(made.len)));
                }
            }
            before += self.chunks.get(chunk as usize).map_or(0, |chunk| chunk.size);
        }
        found
    }

    /// As it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((self.chunks.len() as u32).to_le_bytes());
        bytes.extend((self.blocks.len() as u32).to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend(chunk.layer.to_le_bytes());
            bytes.extend(chunk.at.to_le_bytes());
            bytes.extend(chunk.stored.to_le_bytes());
            bytes.extend(chunk.skip.to_le_bytes());
            bytes.extend((chunk.size as u32).to_le_bytes());
            bytes.extend(chunk.sha256);
        }
        let mut blocks: Vec<_> = self.blocks.iter().collect();
        // Equal images are equal files.
        blocks.sort_by_key(|(key, _)| **key);
        for (key, made) in blocks {
            bytes.extend(key.0.as_bytes());
            for number in [made.first, made.count, made.skip, made.len] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads what [`LazyIndex::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn read(path: &Path) -> Result<LazyIndex, FileError> {
        let bytes = read_regular(path, LIMIT).map_err(|e| FileError::io("read", path, e))?;
        LazyIndex::of_bytes(&bytes).ok_or_else(|| {
            let what = io::Error::new(io::ErrorKind::InvalidData, "it is damaged, or of another version");
            FileError::io("read", path, what)
        })
    }

    fn of_bytes(bytes: &[u8]) -> Option<LazyIndex> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (counts, rest) = rest.split_first_chunk::<8>()?;
        let (chunk_count, block_count) = (number(&counts[..4]) as usize, number(&counts[4..]) as usize);
        let (chunks, blocks) = rest.split_at_checked(chunk_count.checked_mul(CHUNK)?)?;
        if blocks.len() != block_count.checked_mul(BLOCK)? {
            return None;
        }
        let mut index = LazyIndex::default();
        for record in chunks.as_chunks::<CHUNK>().0 {
            index.chunks.push(Chunk {
                layer: u16::from_le_bytes(record[..2].try_into().ok()?),
                at: u64::from_le_bytes(record[2..10].try_into().ok()?),
                stored: number(&record[10..14]),
                skip: number(&record[14..18]),
                size: u64::from(number(&record[18..22])),
                sha256: record[22..].try_into().ok()?,
            });
        }
        for record in blocks.as_chunks::<BLOCK>().0 {
            let (key, numbers) = record.split_at(32);
            let made = Made {
                first: number(&numbers[..4]),
                count: number(&numbers[4..8]),
                skip: number(&numbers[8..12]),
                len: number(&numbers[12..]),
            };
            index.insert(BlockKey(Digest::from_bytes(key).ok()?), made);
        }
        Some(index)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The block of a part of some chunks: the same for the same content, as far as that can be told before it is here.
fn lazy_block(chunks: &[Chunk], part: Made) -> BlockRef {
    let mut bytes = b"zmachine lazy block\0".to_vec();
    for chunk in chunks {
        bytes.extend(chunk.size.to_le_bytes());
        bytes.extend(chunk.sha256);
    }
    bytes.extend(part.skip.to_le_bytes());
    bytes.extend(part.len.to_le_bytes());
    reference(BlockKey(Digest::blake2b_32(&bytes)), part.len)
}

/// The reference of a lazy block. Its id is no digest of anything that a store has, and not its key, as that of a block is which is on this
/// host alone.
fn reference(key: BlockKey, len: u32) -> BlockRef {
    let id = BlockId(Digest::blake2b_32(key.0.as_bytes()));
    BlockRef { id, key, len }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(layer: u16, at: u64, size: u64, of: u8) -> Chunk {
        Chunk {
            layer,
            at,
            stored: 100,
            skip: 0,
            size,
            sha256: [of; 32],
        }
    }

    const K: u64 = 1024;

    #[test]
    fn blocks_are_cut_across_chunks_and_found_again() {
        let mut index = LazyIndex::default();
        let small = index.add_file(&[chunk(0, 0, 10, 1)]).unwrap();
        // 512 KiB blocks over chunks of 300, 300 and 600 KiB.
        let chunks = [
            chunk(1, 0, 300 * K, 2),
            chunk(1, 50, 300 * K, 3),
            chunk(1, 90, 600 * K, 4),
        ];
        let large = index.add_file(&chunks).unwrap();
        let lengths: Vec<u64> = large.iter().map(|block| u64::from(block.len)).collect();
        assert_eq!(lengths, [512 * K, 512 * K, 176 * K]);
        assert_eq!((small.len(), small[0].len), (1, 10));
        let (range, of_first) = index.chunks_of(&large[0].key).unwrap();
        assert_eq!((range.clone(), of_first), (1..3, &chunks[..2]));
        assert_eq!(index.within(range), [(large[0], 0..512 * K)]);
        let (range, _) = index.chunks_of(&large[1].key).unwrap();
        assert_eq!(range, 2..4);
        // Its chunks have the end of the file as well, and not all of its beginning.
        let within = index.within(range);
        assert_eq!(within, [(large[1], 212 * K..724 * K), (large[2], 724 * K..900 * K)]);
        let read = LazyIndex::of_bytes(&index.to_bytes()).unwrap();
        assert_eq!((&read.chunks, read.to_bytes()), (&index.chunks, index.to_bytes()));
        assert!(large.iter().all(|block| read.has(&block.key) && !block.is_unsealed()));
    }

    #[test]
    fn the_same_content_is_one_block_wherever_it_is() {
        let mut index = LazyIndex::default();
        let one = index.add_file(&[chunk(0, 0, 10, 1)]).unwrap();
        let other = index.add_file(&[chunk(3, 77, 10, 1)]).unwrap();
        let longer = index.add_file(&[chunk(3, 99, 11, 1)]).unwrap();
        assert!(one == other && one != longer);
    }

    #[test]
    fn a_block_that_takes_too_much_is_refused() {
        let mut index = LazyIndex::default();
        assert!(index.add_file(&[chunk(0, 0, MOST_PLAIN + 1, 1)]).is_none());
        let stored = Chunk {
            stored: u32::MAX,
            ..chunk(0, 0, 1, 1)
        };
        assert!(index.add_file(&[stored]).is_none());
        assert!(index.chunks.is_empty() && index.blocks.is_empty());
        assert_eq!(index.add_file(&[]), Some(Vec::new()));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let mut index = LazyIndex::default();
        index.add_file(&[chunk(0, 0, 10, 1)]).unwrap();
        let good = index.to_bytes();
        for end in 0..good.len() {
            assert!(LazyIndex::of_bytes(&good[..end]).is_none(), "{end}");
        }
        assert!(LazyIndex::of_bytes(&[&good[..], b"x"].concat()).is_none());
    }
}
