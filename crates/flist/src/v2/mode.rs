//! `st_mode` type bits and glibc's `dev_t`, as format 2 stores them.

use crate::tree::NodeKind;

/// Mask of the type bits.
pub(super) const TYPE_MASK: u32 = 0o170_000;
pub(super) const SOCKET: u32 = 0o140_000;
pub(super) const SYMLINK: u32 = 0o120_000;
pub(super) const REGULAR: u32 = 0o100_000;
pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const CHAR_DEVICE: u32 = 0o020_000;
pub(super) const FIFO: u32 = 0o010_000;

/// Type bits and device number of a node.
pub(super) fn type_and_device(kind: &NodeKind) -> (u32, u64) {
    match kind {
        NodeKind::Directory(_) => (DIRECTORY, 0),
        NodeKind::Regular { .. } => (REGULAR, 0),
        NodeKind::Symlink(_) => (SYMLINK, 0),
        NodeKind::CharDevice { major, minor } => (CHAR_DEVICE, device(*major, *minor)),
        NodeKind::BlockDevice { major, minor } => (BLOCK_DEVICE, device(*major, *minor)),
        NodeKind::Fifo => (FIFO, 0),
        NodeKind::Socket => (SOCKET, 0),
    }
}

/// A node without content by its type bits and device number; `None` for bits that no file has.
pub(super) fn empty_kind(type_bits: u32, rdev: u64) -> Option<NodeKind> {
    let (major, minor) = major_minor(rdev);
    Some(match type_bits {
        DIRECTORY => NodeKind::Directory(Vec::new()),
        REGULAR => NodeKind::Regular {
            size: 0,
            blocks: Vec::new(),
        },
        SYMLINK => NodeKind::Symlink(Vec::new()),
        CHAR_DEVICE => NodeKind::CharDevice { major, minor },
        BLOCK_DEVICE => NodeKind::BlockDevice { major, minor },
        FIFO => NodeKind::Fifo,
        SOCKET => NodeKind::Socket,
        _ => return None,
    })
}

/// glibc's `makedev`: `MMMM Mmmm mmmM MMmm` in hexadecimal digits (M major, m minor).
fn device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | (minor & 0xff)
}

/// glibc's `major` and `minor`.
fn major_minor(device: u64) -> (u32, u32) {
    let major = (device >> 32 & 0xffff_f000) | (device >> 8 & 0xfff);
    let minor = (device >> 12 & 0xffff_ff00) | (device & 0xff);
    (major as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_glibc() {
        for (major, minor, number) in [(1, 3, 259), (8, 1, 2049), (300, 70_000, 286_338_160)] {
            assert_eq!(device(major, minor), number);
        }
        for (major, minor) in [(0, 0), (u32::MAX, 0), (0, u32::MAX), (0x1234_5678, 0x9abc_def0)] {
            assert_eq!(major_minor(device(major, minor)), (major, minor));
        }
    }
}
