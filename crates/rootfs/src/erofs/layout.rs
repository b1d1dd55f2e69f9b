//! The first pass: an address for every inode, directory block and file block.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use zmachine_flist::block::BlockRef;
use zmachine_flist::tree::{Metadata, NodeId, NodeKind, Tree};

use super::{
    BLOCK_SIZE, DEVICE_BLOCKS_MAX, ErofsImage, Extent, FIRST_INODE, Format, INLINE_MAX, LayoutError, NAME_MAX,
    Placement, TARGET_MAX, directory, inode, xattr,
};

/// Lays out `tree` as an EROFS image whose file-system id is `uuid`. Reads no file data.
///
/// # Errors
/// When something in the tree has no representation; the error names the file.
pub fn layout(tree: &Tree, uuid: [u8; 16]) -> Result<ErofsImage<'_>, LayoutError> {
    let mut pass = Pass::new(tree);
    pass.count_links_and_order();
    let data = FileBlocks::place(tree, &pass.order);
    let mut addresses = &data.addresses[..];
    for position in 0..pass.order.len() {
        pass.place_inode(pass.order[position], &mut addresses)?;
    }
    // `fsck.erofs` (1.5) reads the header of attributes behind every inode, also the last one that has none.
    let inode_blocks = (pass.end + xattr::HEADER as u64).div_ceil(BLOCK_SIZE);
    let metadata_blocks = pass.place_plain_blocks(inode_blocks);
    pass.finish(data, metadata_blocks, uuid, inode_blocks)
}

/// Where the blocks of files are, counted from the first of them. That comes before the inodes, whose length depends on it.
struct FileBlocks {
    /// Every different block once.
    extents: Vec<Extent>,
    /// Of all blocks of all files, in the order of the inodes.
    addresses: Vec<u64>,
    /// Blocks in all.
    end: u64,
}

impl FileBlocks {
    fn place(tree: &Tree, order: &[u32]) -> FileBlocks {
        let mut known: HashMap<BlockRef, u64> = HashMap::new();
        let (mut extents, mut addresses, mut next) = (Vec::new(), Vec::new(), 0);
        for &index in order {
            for block in file_blocks(tree, index) {
                addresses.push(*known.entry(*block).or_insert_with(|| {
                    let extent = Extent {
                        start: within(next),
                        block: *block,
                    };
                    let start = next;
                    next += u64::from(extent.device_blocks());
                    extents.push(extent);
                    start
                }));
            }
        }
        FileBlocks {
            extents,
            addresses,
            end: next,
        }
    }
}

/// An address as EROFS has it; a too large one is refused in [`Pass::finish`].
fn within(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

struct Pass<'t> {
    tree: &'t Tree,
    placements: Vec<Placement>,
    order: Vec<u32>,
    /// Where the next inode can be.
    end: u64,
    /// Addresses of the blocks of files that have a table of them.
    chunks: Vec<u64>,
}

impl<'t> Pass<'t> {
    fn new(tree: &'t Tree) -> Self {
        Pass {
            tree,
            placements: vec![Placement::default(); tree.len()],
            order: Vec::with_capacity(tree.len()),
            end: FIRST_INODE,
            chunks: Vec::new(),
        }
    }

    /// The inodes of one directory stand together, then those below its first directory, and so on: what `ls -l` and
    /// a walk read is near each other.
    fn count_links_and_order(&mut self) {
        let tree = self.tree;
        self.order.push(NodeId::ROOT.0);
        self.placements[0].links = 2;
        let mut pending = vec![NodeId::ROOT];
        while let Some(directory) = pending.pop() {
            let first_new = pending.len();
            for (_, child) in entries(tree, directory) {
                let is_directory = matches!(tree.get(*child).kind, NodeKind::Directory(_));
                let placement = &mut self.placements[child.0 as usize];
                placement.links += 1;
                if placement.links == 1 {
                    placement.parent = directory.0;
                    self.order.push(child.0);
                }
                if is_directory {
                    placement.links = 2;
                    self.placements[directory.0 as usize].links += 1;
                    pending.push(*child);
                }
            }
            pending[first_new..].reverse();
        }
    }

    /// Takes the addresses of the file's blocks off `addresses`.
    fn place_inode(&mut self, index: u32, addresses: &mut &[u64]) -> Result<(), LayoutError> {
        let node = self.tree.get(NodeId(index));
        let xattrs = self.check_metadata(index, &node.metadata)?;
        let (size, mut format) = self.content(index, &node.kind)?;
        let blocks = file_blocks(self.tree, index);
        let (own, others) = addresses.split_at(blocks.len());
        *addresses = others;
        if matches!(format, Format::Chunks(_)) {
            match is_one_run(blocks, own) {
                true => format = Format::Plain,
                false => self.chunks.extend(own),
            }
        }
        let header = inode::SIZE + xattrs as u64;
        let mut offset = self.end.next_multiple_of(32);
        let behind = match format {
            Format::Plain => 0,
            Format::Chunks(bits) => 4 * size.div_ceil(1 << bits),
            Format::Inline(tail) => {
                let tail = u64::from(tail);
                let room = BLOCK_SIZE - (offset + header) % BLOCK_SIZE;
                if tail > room {
                    offset = (offset + room).next_multiple_of(32);
                }
                tail
            }
        };
        self.end = offset + header + behind;
        let placement = &mut self.placements[index as usize];
        (placement.offset, placement.size, placement.format) = (offset, size, format);
        placement.blocks_at = own.first().map_or(0, |first| within(*first));
        Ok(())
    }

    /// Bytes of the extended attributes.
    fn check_metadata(&self, index: u32, metadata: &Metadata) -> Result<usize, LayoutError> {
        if metadata.mtime_nsec >= 1_000_000_000 {
            return Err(LayoutError::Nanoseconds {
                path: self.path(index),
                nsec: metadata.mtime_nsec,
            });
        }
        xattr::size(&metadata.xattrs, || self.path(index))
    }

    fn content(&self, index: u32, kind: &NodeKind) -> Result<(u64, Format), LayoutError> {
        let path = || self.path(index);
        Ok(match kind {
            NodeKind::Directory(entries) => {
                if let Some((name, _)) = entries.iter().find(|(n, _)| n.is_empty() || n.len() > NAME_MAX) {
                    return Err(LayoutError::NameLength {
                        path: path(),
                        len: name.len(),
                    });
                }
                let listing = directory::listing(entries, NodeId(index), NodeId::ROOT);
                let (blocks, last_used) = directory::extent(&listing);
                (
                    (blocks - 1) * BLOCK_SIZE + last_used as u64,
                    directory::format(last_used),
                )
            }
            NodeKind::Symlink(target) if target.is_empty() || target.len() > TARGET_MAX => {
                let len = target.len();
                return Err(LayoutError::TargetLength { path: path(), len });
            }
            NodeKind::Symlink(target) if target.len() > INLINE_MAX => (target.len() as u64, Format::Plain),
            NodeKind::Symlink(target) => (target.len() as u64, Format::Inline(target.len() as u16)),
            NodeKind::Regular { size, blocks } => (*size, chunk_format(*size, blocks, path)?),
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                if *major >= 1 << 12 || *minor >= 1 << 20 {
                    return Err(LayoutError::DeviceNumber {
                        path: path(),
                        major: *major,
                        minor: *minor,
                    });
                }
                (0, Format::Plain)
            }
            NodeKind::Fifo | NodeKind::Socket => (0, Format::Plain),
        })
    }

    /// Gives addresses to directory blocks and long link targets, from block `next` on; the block behind the last.
    fn place_plain_blocks(&mut self, mut next: u64) -> u64 {
        for &index in &self.order {
            let placement = &mut self.placements[index as usize];
            let blocks = inode::plain_blocks(placement, &self.tree.get(NodeId(index)).kind);
            if blocks > 0 {
                // A too large value is refused in `place_file_blocks`.
                placement.blocks_at = u32::try_from(next).unwrap_or(u32::MAX);
                next += blocks;
            }
        }
        next
    }

    /// Puts the blocks of files behind the metadata.
    fn finish(
        mut self,
        data: FileBlocks,
        metadata_blocks: u64,
        uuid: [u8; 16],
        inode_blocks: u64,
    ) -> Result<ErofsImage<'t>, LayoutError> {
        let device_blocks = metadata_blocks + data.end;
        if device_blocks > DEVICE_BLOCKS_MAX {
            return Err(LayoutError::TooLarge { blocks: device_blocks });
        }
        let moved = |address: u64| within(metadata_blocks + address);
        for &index in &self.order {
            if !file_blocks(self.tree, index).is_empty() {
                let placement = &mut self.placements[index as usize];
                placement.blocks_at = moved(placement.blocks_at.into());
            }
        }
        let moved_extent = |extent: Extent| Extent {
            start: moved(extent.start.into()),
            ..extent
        };
        Ok(ErofsImage {
            tree: self.tree,
            uuid,
            placements: self.placements,
            order: self.order,
            chunks: self.chunks.into_iter().map(moved).collect(),
            extents: data.extents.into_iter().map(moved_extent).collect(),
            inode_blocks,
            metadata_blocks,
            device_blocks,
        })
    }

    /// Some path of a node, for messages.
    fn path(&self, mut index: u32) -> PathBuf {
        let mut names = Vec::new();
        while index != NodeId::ROOT.0 {
            let parent = self.placements[index as usize].parent;
            let name = entries(self.tree, NodeId(parent))
                .iter()
                .find(|(_, node)| node.0 == index);
            names.push(name.map_or_else(OsString::new, |(name, _)| OsString::from_vec(name.clone())));
            index = parent;
        }
        names.push("/".into());
        names.into_iter().rev().collect()
    }
}

/// The entries of a directory; none for anything else.
fn entries(tree: &Tree, node: NodeId) -> &[(Vec<u8>, NodeId)] {
    match &tree.get(node).kind {
        NodeKind::Directory(entries) => entries,
        _ => &[],
    }
}

/// The blocks of a file; none of anything else.
fn file_blocks(tree: &Tree, node: u32) -> &[BlockRef] {
    match &tree.get(NodeId(node)).kind {
        NodeKind::Regular { blocks, .. } => blocks,
        _ => &[],
    }
}

/// Whether a file's blocks stand behind each other at `addresses`, so that the first address is all that must be known. Of
/// those that are right, only the last one can end within a device block.
fn is_one_run(blocks: &[BlockRef], addresses: &[u64]) -> bool {
    let mut pairs = blocks.iter().zip(addresses.windows(2));
    pairs.all(|(block, pair)| pair[0] + u64::from(block.len).div_ceil(BLOCK_SIZE) == pair[1])
}

/// The chunk size of a file: its block size, or for a single block the next power of two.
fn chunk_format(size: u64, blocks: &[BlockRef], path: impl Fn() -> PathBuf) -> Result<Format, LayoutError> {
    let fail = |why| {
        Err(LayoutError::Blocks {
            path: path(),
            size,
            why,
        })
    };
    if blocks.iter().any(|b| b.len == 0) {
        return fail("one is empty");
    }
    if blocks.iter().map(|b| u64::from(b.len)).sum::<u64>() != size {
        return fail("their sum is another");
    }
    let Some((first, [middle @ .., last])) = blocks.split_first() else {
        return Ok(match blocks.first() {
            None => Format::Plain,
            Some(only) => Format::Chunks(u64::from(only.len).max(BLOCK_SIZE).next_power_of_two().ilog2() as u8),
        });
    };
    if middle.iter().any(|b| b.len != first.len) || last.len > first.len {
        return fail("they have different sizes");
    }
    if !first.len.is_power_of_two() || u64::from(first.len) < BLOCK_SIZE {
        return fail("the block size is not a power of two of at least 4096");
    }
    Ok(Format::Chunks(first.len.ilog2() as u8))
}
