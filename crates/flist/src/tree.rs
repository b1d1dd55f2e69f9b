//! The file tree of an image, independent of the format it was read from.
//!
//! # Invariants
//! Node 0 is the root directory. A directory's entries are sorted bytewise by name and unique; a name is one path
//! component: not empty, no `/`, no NUL, neither `.` nor `..`. Two entries that lead to one node are hard links of it;
//! a directory has exactly one entry leading to it. Every node is reachable from the root. [`Tree::check`] holds these;
//! the readers of this crate only hand out trees that pass it.

use crate::block::BlockRef;

/// Index of a node in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);
}

/// A whole file tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
}

/// A file of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Owner, mode, times.
    pub metadata: Metadata,
    /// What it is, with its content.
    pub kind: NodeKind,
}

/// Owner, mode, times and extended attributes of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (`st_mode & 0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch; may be negative.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// Change time in seconds since the epoch (stored by format 2, shown by nothing).
    pub ctime: i64,
    /// Extended attributes, sorted by name (`security.capability`, `user.x`, ...).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory and its entries, sorted bytewise by name.
    Directory(Vec<(Vec<u8>, NodeId)>),
    /// A regular file.
    Regular {
        /// Its length in bytes.
        size: u64,
        /// Its blocks in file order; their lengths add up to `size`. Every block but the last has the format's block size.
        blocks: Vec<BlockRef>,
    },
    /// A symbolic link with its raw target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}
