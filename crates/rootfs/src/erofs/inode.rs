//! The second pass: the bytes of inodes and of plain blocks.
//!
//! Every inode is an extended one (64 bytes): only those have their own mtime and 32-bit owners.

use std::io::{self, Write};
use std::slice::Iter;

use zmachine_flist::tree::{NodeId, NodeKind};

use super::{BLOCK_SIZE, Emitter, ErofsImage, Format, Placement, directory, xattr};

/// Bytes of an extended inode.
pub(super) const SIZE: u64 = 64;

/// Chunk format of a table of plain 32-bit block addresses: only the chunk size, in bits above 4096.
fn chunk_field(bits: u8) -> u32 {
    u32::from(bits) - BLOCK_SIZE.ilog2()
}

/// Whole blocks that a node has outside of its inode.
pub(super) fn plain_blocks(placement: &Placement, kind: &NodeKind) -> u64 {
    match (kind, placement.format) {
        (NodeKind::Directory(_) | NodeKind::Symlink(_), Format::Plain) => placement.size.div_ceil(BLOCK_SIZE),
        (NodeKind::Directory(_), Format::Inline(_)) => placement.size.div_ceil(BLOCK_SIZE) - 1,
        _ => 0,
    }
}

/// The type bits of `st_mode`.
fn type_bits(kind: &NodeKind) -> u16 {
    match kind {
        NodeKind::Fifo => 0o010_000,
        NodeKind::CharDevice { .. } => 0o020_000,
        NodeKind::Directory(_) => 0o040_000,
        NodeKind::BlockDevice { .. } => 0o060_000,
        NodeKind::Regular { .. } => 0o100_000,
        NodeKind::Symlink(_) => 0o120_000,
        NodeKind::Socket => 0o140_000,
    }
}

impl ErofsImage<'_> {
    /// Writes the inode and what stands behind it: attributes, then the inline tail or the chunk addresses.
    pub(super) fn write_inode<W: Write>(
        &self,
        index: u32,
        chunks: &mut Iter<'_, u32>,
        out: &mut Emitter<W>,
    ) -> io::Result<()> {
        let node = self.tree.get(NodeId(index));
        let xattrs = xattr::encode(&node.metadata.xattrs);
        out.write(&self.inode(index, xattrs.len()))?;
        out.write(&xattrs)?;
        match (&node.kind, self.placement(index).format) {
            (NodeKind::Regular { blocks, .. }, Format::Chunks(_)) => {
                for address in chunks.by_ref().take(blocks.len()) {
                    out.write(&address.to_le_bytes())?;
                }
                Ok(())
            }
            (NodeKind::Symlink(target), Format::Inline(_)) => out.write(target),
            (NodeKind::Directory(_), Format::Inline(_)) => {
                let whole = plain_blocks(self.placement(index), &node.kind);
                self.directory_blocks(index, |number, bytes| match number == whole {
                    true => out.write(bytes),
                    false => Ok(()),
                })
            }
            _ => Ok(()),
        }
    }

    /// The 64 bytes of an inode.
    fn inode(&self, index: u32, xattr_bytes: usize) -> [u8; SIZE as usize] {
        let (node, placement) = (self.tree.get(NodeId(index)), self.placement(index));
        let layout = match placement.format {
            Format::Plain => 0u16,
            Format::Inline(_) => 2,
            Format::Chunks(_) => 4,
        };
        let content = match (&node.kind, placement.format) {
            (NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }, _) => {
                // The kernel's `new_encode_dev`.
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            (_, Format::Chunks(bits)) => chunk_field(bits),
            _ => placement.blocks_at,
        };
        let mut bytes = [0; SIZE as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(1 | layout << 1).to_le_bytes());
        put(2, &xattr::count_field(xattr_bytes).to_le_bytes());
        put(4, &(type_bits(&node.kind) | node.metadata.mode & 0o7777).to_le_bytes());
        put(8, &placement.size.to_le_bytes());
        put(16, &content.to_le_bytes());
        put(20, &(index + 1).to_le_bytes());
        put(24, &node.metadata.uid.to_le_bytes());
        put(28, &node.metadata.gid.to_le_bytes());
        put(32, &node.metadata.mtime.to_le_bytes());
        put(40, &node.metadata.mtime_nsec.to_le_bytes());
        put(44, &placement.links.to_le_bytes());
        bytes
    }

    /// Writes the whole blocks of a directory or long link, each padded to its 4096 bytes.
    pub(super) fn write_plain_blocks<W: Write>(&self, index: u32, out: &mut Emitter<W>) -> io::Result<()> {
        let (kind, placement) = (&self.tree.get(NodeId(index)).kind, self.placement(index));
        let whole = plain_blocks(placement, kind);
        if whole == 0 {
            return Ok(());
        }
        let start = u64::from(placement.blocks_at);
        if let NodeKind::Symlink(target) = kind {
            out.write(target)?;
            return out.pad_to((start + 1) * BLOCK_SIZE);
        }
        self.directory_blocks(index, |number, bytes| {
            if number == whole {
                return Ok(());
            }
            out.write(bytes)?;
            out.pad_to((start + number + 1) * BLOCK_SIZE)
        })
    }

    /// Calls `each` with the number and the used bytes of every block of a directory.
    fn directory_blocks(&self, index: u32, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let NodeKind::Directory(entries) = &self.tree.get(NodeId(index)).kind else {
            return Ok(());
        };
        let parent = NodeId(self.placement(index).parent);
        let listing = directory::listing(entries, NodeId(index), parent);
        let mut number = 0;
        directory::blocks(
            &listing,
            |node| self.nid(node.0),
            |node| directory::entry_type(&self.tree.get(node).kind),
            |bytes| {
                number += 1;
                each(number - 1, bytes)
            },
        )
    }
}
