//! Directory blocks: 12-byte entries `{inode number u64, name offset u16, type u8, 0}`, then the names, nothing between.
//!
//! `.` and `..` are ordinary entries in the one bytewise order over the whole directory: the kernel searches it binarily,
//! first for the block, then inside it. Every block is filled as far as whole entries fit.

use zmachine_flist::tree::{NodeId, NodeKind};

use super::{BLOCK_SIZE, Format, INLINE_MAX};

const ENTRY: usize = 12;

/// The entries in their order on disk, with `.` and `..`.
pub(super) fn listing(entries: &[(Vec<u8>, NodeId)], own: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut all = Vec::with_capacity(entries.len() + 2);
    all.extend([(&b"."[..], own), (&b".."[..], parent)]);
    all.extend(entries.iter().map(|(name, node)| (name.as_slice(), *node)));
    // Nearly sorted already: only names that begin with a byte below '.' have to move.
    all.sort_by_key(|(name, _)| *name);
    all
}

/// The entries of the first block of `rest`, and the bytes they take.
fn first_block<'l, 'n>(rest: &'l [(&'n [u8], NodeId)]) -> (&'l [(&'n [u8], NodeId)], usize) {
    let mut used = 0;
    for (count, (name, _)) in rest.iter().enumerate() {
        let next = used + ENTRY + name.len();
        if next > BLOCK_SIZE as usize {
            return (&rest[..count], used);
        }
        used = next;
    }
    (rest, used)
}

/// Number of blocks, and the bytes used in the last.
pub(super) fn extent(listing: &[(&[u8], NodeId)]) -> (u64, usize) {
    let (mut blocks, mut last, mut rest) = (0, 0, listing);
    while !rest.is_empty() {
        let (block, used) = first_block(rest);
        rest = &rest[block.len()..];
        (blocks, last) = (blocks + 1, used);
    }
    (blocks, last)
}

/// Where a directory of this extent has its last block.
pub(super) fn format(last_used: usize) -> Format {
    if last_used <= INLINE_MAX {
        Format::Inline(last_used as u16)
    } else {
        Format::Plain
    }
}

/// Calls `write` with the used bytes of each block, in order.
pub(super) fn blocks<E>(
    listing: &[(&[u8], NodeId)],
    number: impl Fn(NodeId) -> u64,
    kind: impl Fn(NodeId) -> u8,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = listing;
    while !rest.is_empty() {
        let (block, used) = first_block(rest);
        let mut bytes = Vec::with_capacity(used);
        let mut name_at = block.len() * ENTRY;
        for &(name, node) in block {
            bytes.extend_from_slice(&number(node).to_le_bytes());
            bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
            bytes.extend_from_slice(&[kind(node), 0]);
            name_at += name.len();
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
        write(&bytes)?;
        rest = &rest[block.len()..];
    }
    Ok(())
}

/// The type byte of an entry.
pub(super) fn entry_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::Regular { .. } => 1,
        NodeKind::Directory(_) => 2,
        NodeKind::CharDevice { .. } => 3,
        NodeKind::BlockDevice { .. } => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
        NodeKind::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_and_dotdot_stand_where_their_bytes_sort() {
        let entries = vec![
            (b"!".to_vec(), NodeId(2)),
            (b".a".to_vec(), NodeId(3)),
            (b"a".to_vec(), NodeId(4)),
        ];
        let names: Vec<_> = listing(&entries, NodeId(1), NodeId(0))
            .iter()
            .map(|e| e.0.to_vec())
            .collect();
        assert_eq!(names, [&b"!"[..], b".", b"..", b".a", b"a"]);
    }

    #[test]
    fn an_empty_directory_is_27_bytes_in_one_block() {
        assert_eq!(extent(&listing(&[], NodeId(0), NodeId(0))), (1, 27));
    }

    #[test]
    fn a_block_is_filled_to_the_last_byte() {
        // 15 entries of 12 + 255 bytes, then one that takes exactly what is left beside "." and "..".
        let mut entries: Vec<_> = (0..15u8)
            .map(|i| ([vec![b'a' + i], vec![b'x'; 254]].concat(), NodeId(1)))
            .collect();
        entries.push((vec![b'z'; 4096 - 27 - 15 * 267 - 12], NodeId(1)));
        assert_eq!(extent(&listing(&entries, NodeId(0), NodeId(0))), (1, 4096));
        entries.push((b"zzz".repeat(30), NodeId(1)));
        assert_eq!(extent(&listing(&entries, NodeId(0), NodeId(0))), (2, 12 + 90));
    }
}
