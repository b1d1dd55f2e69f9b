//! EROFS: from a file tree to a read-only disk whose file data is somewhere else.
//!
//! [`layout()`] decides where everything is, without any file data; [`ErofsImage::write_metadata`] writes the metadata.
//! The same tree and the same uuid always give the same bytes.
//!
//! # Layout of the device (blocks of 4096 bytes)
//! ```text
//! 0                superblock (at byte 1024), then the inodes from byte 1152, the root directory first
//! ...              whole blocks of large directories and long link targets
//! metadata_blocks  every different file block once, each at the next 4 KiB boundary, in the order of the inodes
//! ```
//! Equal blocks share their device address. A file whose blocks stand behind each other (of one block: always) is a plain
//! one, of which only the first address is stored: its inode has 64 bytes where an address more would make it 96, so a third
//! more inodes come with each block that a guest reads. The other files are chunk-based: a chunk is a block of the image.
//! The format facts are those of the kernel's `fs/erofs/erofs_fs.h`.
//!
//! # Invariants
//! No inline tail crosses a 4 KiB boundary (the kernel calls that corruption). The root inode is within the first
//! 2 MiB (its number in the superblock has 16 bits). Every address fits 32 bits of blocks.

mod directory;
mod inode;
mod layout;
mod xattr;

use std::io::{self, Write};
use std::path::PathBuf;

use thiserror::Error;
use zmachine_flist::block::BlockRef;
use zmachine_flist::tree::{NodeId, Tree};

pub use layout::layout;

/// Size of a device block in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// Byte offset and size of the superblock.
const SUPERBLOCK: (usize, usize) = (1024, 128);
/// Where the first inode is: right behind the superblock, and a multiple of 32.
const FIRST_INODE: u64 = (SUPERBLOCK.0 + SUPERBLOCK.1) as u64;
/// Longest file name (`EROFS_NAME_LEN`).
const NAME_MAX: usize = 255;
/// Longest link target: Linux' `PATH_MAX` without the NUL.
const TARGET_MAX: usize = 4095;
/// A tail up to this length is put behind its inode; a longer one gets a whole block. Half a block bounds the padding
/// that the straddle rule costs.
const INLINE_MAX: usize = 2048;
/// `blkaddr` of this value means a hole, so it is no address.
const DEVICE_BLOCKS_MAX: u64 = 0xFFFF_FFFE;

/// Why a tree cannot become an EROFS image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A file name longer than 255 bytes or empty.
    #[error("a name in {} has {len} bytes; 1 to {NAME_MAX} are possible", path.display())]
    NameLength {
        /// The directory.
        path: PathBuf,
        /// Bytes of the name.
        len: usize,
    },
    /// A link target that is empty or longer than 4095 bytes.
    #[error("the target of link {} has {len} bytes; 1 to {TARGET_MAX} are possible", path.display())]
    TargetLength {
        /// The link.
        path: PathBuf,
        /// Bytes of the target.
        len: usize,
    },
    /// The blocks of a file do not fit its size, or their size is not a power of two of at least 4096.
    #[error("the blocks of {} do not fit its {size} bytes: {why}", path.display())]
    Blocks {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// A device number beyond Linux' 12 bits of major and 20 bits of minor.
    #[error("device number {major}:{minor} of {} is out of range", path.display())]
    DeviceNumber {
        /// The device node.
        path: PathBuf,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Nanoseconds of a second or more.
    #[error("the modification time of {} has {nsec} nanoseconds", path.display())]
    Nanoseconds {
        /// The file.
        path: PathBuf,
        /// The nanoseconds.
        nsec: u32,
    },
    /// An extended attribute that EROFS has no room or no name space for.
    #[error("extended attribute {name:?} of {} cannot be stored: {why}", path.display())]
    Xattr {
        /// The file.
        path: PathBuf,
        /// The attribute.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image needs more than 16 TiB.
    #[error("the image needs {blocks} blocks of 4096 bytes; {DEVICE_BLOCKS_MAX} are possible")]
    TooLarge {
        /// Blocks needed.
        blocks: u64,
    },
}

/// One file block and where it is on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First device block (units of 4096 bytes).
    pub start: u32,
    /// The file block.
    pub block: BlockRef,
}

impl Extent {
    /// Device blocks it takes.
    pub fn device_blocks(&self) -> u32 {
        self.block.len.div_ceil(BLOCK_SIZE as u32)
    }
}

/// Where one node is.
#[derive(Debug, Clone, Copy, Default)]
struct Placement {
    /// Byte offset of the inode.
    offset: u64,
    /// First of its blocks, when it has some.
    blocks_at: u32,
    /// Names that lead to it (and, for a directory, `.` and the `..` of its children).
    links: u32,
    /// Length in bytes as `stat` shows it.
    size: u64,
    /// How its content is found.
    format: Format,
    /// The directory it was first met in.
    parent: u32,
}

/// How the content of an inode is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Format {
    /// Whole blocks at `blocks_at` (or none).
    #[default]
    Plain,
    /// Whole blocks at `blocks_at`, the tail of this length behind the inode.
    Inline(u16),
    /// A table of chunk addresses behind the inode; chunks of 2^this bytes.
    Chunks(u8),
}

/// A laid-out image: its metadata can be written, and its data blocks have addresses.
#[derive(Debug)]
pub struct ErofsImage<'t> {
    tree: &'t Tree,
    uuid: [u8; 16],
    /// By node index.
    placements: Vec<Placement>,
    /// Node indices in the order of their inodes.
    order: Vec<u32>,
    /// Chunk addresses of all files that have them, in the order of their inodes.
    chunks: Vec<u32>,
    extents: Vec<Extent>,
    inode_blocks: u64,
    metadata_blocks: u64,
    device_blocks: u64,
}

impl ErofsImage<'_> {
    /// The different file blocks in ascending device order, without gaps from [`ErofsImage::metadata_blocks`] on.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Blocks of 4096 bytes that hold metadata: the length of what [`ErofsImage::write_metadata`] writes.
    pub fn metadata_blocks(&self) -> u64 {
        self.metadata_blocks
    }

    /// Blocks of 4096 bytes of the whole device.
    pub fn device_blocks(&self) -> u64 {
        self.device_blocks
    }

    /// Number of inodes.
    pub fn inodes(&self) -> usize {
        self.order.len()
    }

    /// Writes the metadata: exactly `metadata_blocks * 4096` bytes, from the start of the device.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_metadata(&self, out: impl Write) -> io::Result<()> {
        let mut out = Emitter::new(out);
        out.write(&self.superblock())?;
        let mut chunks = self.chunks.iter();
        for &index in &self.order {
            out.pad_to(self.placement(index).offset)?;
            self.write_inode(index, &mut chunks, &mut out)?;
        }
        out.pad_to(self.inode_blocks * BLOCK_SIZE)?;
        for &index in &self.order {
            self.write_plain_blocks(index, &mut out)?;
        }
        out.pad_to(self.metadata_blocks * BLOCK_SIZE)
    }

    fn placement(&self, index: u32) -> &Placement {
        &self.placements[index as usize]
    }

    /// The number by which directories and the superblock name an inode.
    fn nid(&self, index: u32) -> u64 {
        self.placement(index).offset / 32
    }

    /// Bytes 0..1152 of the device, checksum still zero.
    fn superblock(&self) -> [u8; FIRST_INODE as usize] {
        let mut bytes = [0; FIRST_INODE as usize];
        let sb = &mut bytes[SUPERBLOCK.0..];
        sb[0..4].copy_from_slice(&0xE0F5_E1E2u32.to_le_bytes());
        // Compatible features: the superblock has a checksum (1), inodes have their own mtime (2).
        sb[8..12].copy_from_slice(&3u32.to_le_bytes());
        sb[12] = BLOCK_SIZE.ilog2() as u8;
        // The root is the first inode, so its number always fits.
        sb[14..16].copy_from_slice(&(self.nid(NodeId::ROOT.0) as u16).to_le_bytes());
        sb[16..24].copy_from_slice(&(self.order.len() as u64).to_le_bytes());
        sb[36..40].copy_from_slice(&(self.device_blocks as u32).to_le_bytes());
        sb[48..64].copy_from_slice(&self.uuid);
        // Incompatible feature: chunk-based files (4).
        sb[80..84].copy_from_slice(&4u32.to_le_bytes());
        bytes
    }
}

/// A writer that knows its position and puts the checksum into the superblock once the first block is complete.
struct Emitter<W> {
    out: W,
    position: u64,
    first_block: Vec<u8>,
}

impl<W: Write> Emitter<W> {
    fn new(out: W) -> Self {
        Emitter {
            out,
            position: 0,
            first_block: Vec::with_capacity(BLOCK_SIZE as usize),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        let missing = BLOCK_SIZE as usize - self.first_block.len();
        if missing > 0 {
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            self.first_block.extend_from_slice(head);
            if head.len() == missing {
                self.finish_first_block()?;
            }
            bytes = rest;
        }
        self.out.write_all(bytes)
    }

    fn finish_first_block(&mut self) -> io::Result<()> {
        // EROFS seeds with ~0 and does not invert at the end; the library does both inversions.
        let checksum = !crc32c::crc32c(&self.first_block[SUPERBLOCK.0..]);
        self.first_block[SUPERBLOCK.0 + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        self.out.write_all(&self.first_block)
    }

    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];
        debug_assert!(offset >= self.position, "the layout runs backwards");
        while self.position < offset {
            let len = (offset - self.position).min(BLOCK_SIZE) as usize;
            self.write(&ZEROS[..len])?;
        }
        Ok(())
    }
}
