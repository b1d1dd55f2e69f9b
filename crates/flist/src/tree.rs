//! The file tree of an image, independent of the format it was read from.
//!
//! # Invariants
//! Node 0 is the root directory. A directory's entries are sorted bytewise by name and unique; a name is one path
//! component: not empty, no `/`, no NUL, neither `.` nor `..`. Two entries that lead to one node are hard links of it;
//! a directory has exactly one entry leading to it. Every node is reachable from the root. [`Tree::check`] holds these;
//! the readers of this crate only hand out trees that pass it. Two limits make every consumer safe from hostile depth and
//! length: a name has at most 255 bytes, a path from the root at most 4095 (`NAME_MAX` and `PATH_MAX` of Linux), so a tree
//! is at most 2048 levels deep.
//!
//! A path is bytes. `walk` and `path_of` give it without a leading slash, the root as the empty path.
//!
//! | submodule | what |
//! |---|---|
//! | `build` | [`TreeBuilder`], the one way to make a tree outside of this crate |
//! | `check` | the invariants |
//! | `resolve` | looking up paths, with and without symbolic links |
//! | `walk` | iteration, counts, unique blocks |

use crate::block::BlockRef;

mod build;
mod check;
mod resolve;
mod walk;

pub use build::TreeBuilder;
pub use check::TreeError;
pub(crate) use check::show;
pub use resolve::ResolveError;
pub use walk::{TreeCounts, Walk};

/// Longest name in bytes (`NAME_MAX`).
pub const NAME_BYTES: usize = 255;

/// Longest path from the root in bytes, without its leading slash (`PATH_MAX` less the NUL).
pub const PATH_BYTES: usize = 4095;

/// Longest target of a symbolic link in bytes.
pub const TARGET_BYTES: usize = 4095;

/// Index of a node in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);
}

/// A whole file tree.
///
/// Two trees are equal when they have the same paths, nodes and hard links; how their nodes are numbered does not count.
#[derive(Debug, Clone)]
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

impl Node {
    /// The entries of a directory, sorted bytewise by name; `None` for every other kind.
    #[must_use]
    pub fn entries(&self) -> Option<&[(Vec<u8>, NodeId)]> {
        match &self.kind {
            NodeKind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Size and blocks of a regular file; `None` for every other kind.
    #[must_use]
    pub fn content(&self) -> Option<(u64, &[BlockRef])> {
        match &self.kind {
            NodeKind::Regular { size, blocks } => Some((*size, blocks)),
            _ => None,
        }
    }
}

impl Tree {
    /// The root directory.
    #[must_use]
    pub fn root(&self) -> &Node {
        &self.nodes[0]
    }

    /// A node.
    ///
    /// # Panics
    /// When `id` is not of this tree.
    #[must_use]
    pub fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Number of nodes; ids are `0..len`.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a tree always has its root
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The entries of a directory, sorted bytewise by name; none for every other kind of node.
    ///
    /// # Panics
    /// When `id` is not of this tree.
    #[must_use]
    pub fn children(&self, id: NodeId) -> &[(Vec<u8>, NodeId)] {
        self.get(id).entries().unwrap_or_default()
    }

    /// The entry `name` of a directory.
    #[must_use]
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let entries = self.children(directory);
        let at = entries.binary_search_by(|(entry, _)| entry.as_slice().cmp(name)).ok()?;
        Some(entries[at].1)
    }
}
