//! The invariants of a tree, and what breaks them.

use super::{Metadata, NAME_BYTES, Node, NodeId, NodeKind, PATH_BYTES, TARGET_BYTES, Tree};
use crate::block::BlockRef;

/// Nanoseconds of a second.
const SECOND_NSEC: u32 = 1_000_000_000;

/// Bytes as text for a message: printable ASCII as it is, the rest escaped, cut to a readable length.
pub(crate) fn show(bytes: &[u8]) -> String {
    let mut text = bytes.escape_ascii().to_string();
    if text.len() > 300 {
        text.truncate(300);
        text.push_str("...");
    }
    text
}

/// Why nodes are not a tree. Paths are shown with unprintable bytes escaped, cut to 300 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// There is no root, or it is no directory.
    #[error("the root is missing or no directory")]
    NoRoot,
    /// More nodes than a node id can name.
    #[error("more than 4294967295 nodes")]
    TooManyNodes,
    /// An entry leads to a node that does not exist.
    #[error("{path:?} leads to node {node}, which does not exist")]
    DanglingEntry {
        /// Path of the entry.
        path: String,
        /// The missing node.
        node: u32,
    },
    /// A name that is no path component.
    #[error("the name {name:?} in directory {directory:?} is not a file name")]
    BadName {
        /// The directory.
        directory: String,
        /// The name.
        name: String,
    },
    /// A name of more than 255 bytes.
    #[error("the name {name:?} in directory {directory:?} has {bytes} bytes; 255 are the limit")]
    NameTooLong {
        /// The directory.
        directory: String,
        /// The name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// A path of more than 4095 bytes.
    #[error("the path of {name:?} has more than 4095 bytes")]
    PathTooLong {
        /// Its last component.
        name: String,
    },
    /// Two equal names in one directory, or names out of order.
    #[error("{path:?} exists twice or is out of order")]
    DuplicateName {
        /// Path of the second entry.
        path: String,
    },
    /// A directory with several names, or one that is inside of itself.
    #[error("directory {path:?} can be reached in two ways")]
    DirectoryEntered {
        /// Path of the second way.
        path: String,
    },
    /// Nodes that no path leads to.
    #[error("{count} nodes are not reachable from the root, the first is node {node}")]
    Unreachable {
        /// The first of them.
        node: u32,
        /// How many.
        count: usize,
    },
    /// An entry below something that is no directory.
    #[error("the parent of {name:?} is not a directory")]
    ParentNotDirectory {
        /// Name of the entry.
        name: String,
    },
    /// Content for something that is no regular file.
    #[error("node {node} is not a regular file")]
    NotRegular {
        /// The node.
        node: u32,
    },
    /// Blocks that do not make up the size, or of lengths or digests that no format has.
    #[error("{path:?}: {problem}")]
    BadContent {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A symbolic link without target, with a NUL in it, or longer than 4095 bytes.
    #[error("{path:?} has no usable link target ({bytes} bytes)")]
    BadTarget {
        /// The link.
        path: String,
        /// Length of the target.
        bytes: usize,
    },
    /// Mode bits, nanoseconds or extended attributes that no file has.
    #[error("{path:?} has an impossible {what}")]
    BadMetadata {
        /// The file.
        path: String,
        /// Which part.
        what: &'static str,
    },
}

impl Tree {
    /// Holds every invariant of the [module](super) against the tree. Time and memory are linear in its size.
    pub fn check(&self) -> Result<(), TreeError> {
        if u32::try_from(self.nodes.len()).is_err() {
            return Err(TreeError::TooManyNodes);
        }
        if self.nodes.first().and_then(Node::entries).is_none() {
            return Err(TreeError::NoRoot);
        }
        let mut seen = vec![false; self.nodes.len()];
        seen[0] = true;
        check_metadata(&self.nodes[0].metadata, b"")?;
        self.check_below(&mut seen)?;
        match seen.iter().position(|seen| !seen) {
            None => Ok(()),
            Some(node) => Err(TreeError::Unreachable {
                node: node as u32,
                count: seen.iter().filter(|seen| !**seen).count(),
            }),
        }
    }

    /// Visits everything below the root, depth first. The path is bounded, so the stack is.
    fn check_below(&self, seen: &mut [bool]) -> Result<(), TreeError> {
        let mut path = Vec::new();
        let mut stack = vec![(NodeId::ROOT, 0usize, 0usize)];
        while let Some((directory, next, path_len)) = stack.last_mut() {
            path.truncate(*path_len);
            let entries = self.children(*directory);
            let Some((name, id)) = entries.get(*next) else {
                stack.pop();
                continue;
            };
            check_name(&path, name)?;
            let previous = next.checked_sub(1).map(|at| entries[at].0.as_slice());
            *next += 1;
            push_name(&mut path, name);
            if previous.is_some_and(|previous| previous >= name.as_slice()) {
                return Err(TreeError::DuplicateName { path: show(&path) });
            }
            if self.check_entry(*id, &path, seen)? {
                stack.push((*id, 0, path.len()));
            }
        }
        Ok(())
    }

    /// Checks what an entry leads to; whether it is a directory to go into.
    fn check_entry(&self, id: NodeId, path: &[u8], seen: &mut [bool]) -> Result<bool, TreeError> {
        let Some(node) = self.nodes.get(id.0 as usize) else {
            return Err(TreeError::DanglingEntry {
                path: show(path),
                node: id.0,
            });
        };
        let again = std::mem::replace(&mut seen[id.0 as usize], true);
        let directory = node.entries().is_some();
        if again && directory {
            return Err(TreeError::DirectoryEntered { path: show(path) });
        }
        if !again {
            check_node(node, path)?;
        }
        Ok(directory)
    }
}

/// Appends a component to a path without leading slash.
pub(super) fn push_name(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn check_name(directory: &[u8], name: &[u8]) -> Result<(), TreeError> {
    let special = matches!(name, b"" | b"." | b"..");
    if special || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(TreeError::BadName {
            directory: show(directory),
            name: show(name),
        });
    }
    if name.len() > NAME_BYTES {
        return Err(TreeError::NameTooLong {
            directory: show(directory),
            name: show(name),
            bytes: name.len(),
        });
    }
    if directory.len() + 1 + name.len() > PATH_BYTES {
        return Err(TreeError::PathTooLong { name: show(name) });
    }
    Ok(())
}

fn check_node(node: &Node, path: &[u8]) -> Result<(), TreeError> {
    check_metadata(&node.metadata, path)?;
    match &node.kind {
        NodeKind::Regular { size, blocks } => check_content(*size, blocks).map_err(|problem| TreeError::BadContent {
            path: show(path),
            problem,
        }),
        NodeKind::Symlink(target) if target.is_empty() || target.len() > TARGET_BYTES || target.contains(&0) => {
            Err(TreeError::BadTarget {
                path: show(path),
                bytes: target.len(),
            })
        }
        _ => Ok(()),
    }
}

fn check_metadata(metadata: &Metadata, path: &[u8]) -> Result<(), TreeError> {
    let bad = |what| Err(TreeError::BadMetadata { path: show(path), what });
    if metadata.mode > 0o7777 {
        return bad("mode");
    }
    if metadata.mtime_nsec >= SECOND_NSEC {
        return bad("modification time");
    }
    if metadata
        .xattrs
        .iter()
        .any(|(name, _)| name.is_empty() || name.contains(&0))
        || !metadata.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0)
    {
        return bad("list of extended attributes");
    }
    Ok(())
}

/// Sizes and digests of the blocks of one file. Format 1 may use another block size, but one for the whole file.
fn check_content(size: u64, blocks: &[BlockRef]) -> Result<(), String> {
    let total: u64 = blocks.iter().map(|block| u64::from(block.len)).sum();
    if total != size {
        return Err(format!(
            "its {} blocks have {total} bytes, its size is {size}",
            blocks.len()
        ));
    }
    let Some((last, full)) = blocks.split_last() else {
        return Ok(());
    };
    let digest_bytes = last.id.0.as_bytes().len();
    let block_size = match full.first() {
        Some(first) if digest_bytes == 16 => first.len,
        _ => BlockRef::SIZE as u32,
    };
    for (index, block) in blocks.iter().enumerate() {
        let short = index + 1 == blocks.len() && block.len < block_size;
        if block.len == 0 || (block.len != block_size && !short) {
            return Err(format!("its block {index} has {} bytes", block.len));
        }
        if block.id.0.as_bytes().len() != digest_bytes || block.key.0.as_bytes().len() != digest_bytes {
            return Err(format!("its block {index} has a digest of another format"));
        }
    }
    Ok(())
}
