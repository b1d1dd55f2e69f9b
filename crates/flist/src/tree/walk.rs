//! Going over a whole tree: every path, counts, unique blocks.

use std::collections::HashSet;

use super::check::push_name;
use super::{Node, NodeId, NodeKind, Tree};
use crate::block::BlockRef;

/// How many nodes of which kind a tree has, and how much content. A node with several names counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeCounts {
    /// Directories, with the root.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub specials: u64,
    /// Sum of the sizes of the regular files, in bytes.
    pub file_bytes: u64,
    /// Sum of the lengths of the block lists.
    pub blocks: u64,
}

/// Iterator of [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    path: Vec<u8>,
    /// Directories from the root to here: node, next entry, length of its path.
    stack: Vec<(NodeId, usize, usize)>,
    at_root: bool,
}

impl Iterator for Walk<'_> {
    type Item = (Vec<u8>, NodeId);

    fn next(&mut self) -> Option<(Vec<u8>, NodeId)> {
        if std::mem::take(&mut self.at_root) {
            return Some((Vec::new(), NodeId::ROOT));
        }
        loop {
            let (directory, next, path_len) = self.stack.last_mut()?;
            self.path.truncate(*path_len);
            let Some((name, id)) = self.tree.children(*directory).get(*next) else {
                self.stack.pop();
                continue;
            };
            *next += 1;
            push_name(&mut self.path, name);
            if self.tree.get(*id).entries().is_some() {
                self.stack.push((*id, 0, self.path.len()));
            }
            return Some((self.path.clone(), *id));
        }
    }
}

impl Tree {
    /// Every path and its node: the root (empty path) first, a directory before its entries, entries sorted by name.
    #[must_use]
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            tree: self,
            path: Vec::new(),
            stack: vec![(NodeId::ROOT, 0, 0)],
            at_root: true,
        }
    }

    /// The first path that leads to a node, in the order of [`Tree::walk`]; `None` when `id` is not of this tree. Linear in
    /// the size of the tree: for messages, not for loops.
    #[must_use]
    pub fn path_of(&self, id: NodeId) -> Option<Vec<u8>> {
        self.walk().find(|(_, node)| *node == id).map(|(path, _)| path)
    }

    /// Counts the nodes by kind and adds up their content.
    #[must_use]
    pub fn counts(&self) -> TreeCounts {
        let mut counts = TreeCounts::default();
        for node in &self.nodes {
            match &node.kind {
                NodeKind::Directory(_) => counts.directories += 1,
                NodeKind::Regular { size, blocks } => {
                    counts.files += 1;
                    counts.file_bytes = counts.file_bytes.saturating_add(*size);
                    counts.blocks += blocks.len() as u64;
                }
                NodeKind::Symlink(_) => counts.symlinks += 1,
                NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } | NodeKind::Fifo | NodeKind::Socket => {
                    counts.specials += 1;
                }
            }
        }
        counts
    }

    /// Every different block once, in the order in which a [`Tree::walk`] that reads each file first needs it. Two
    /// references that differ in any part are different blocks.
    #[must_use]
    pub fn unique_blocks(&self) -> Vec<BlockRef> {
        let mut seen = HashSet::new();
        let mut unique = Vec::new();
        for (_, id) in self.walk() {
            let blocks = self.get(id).content().map_or(&[][..], |(_, blocks)| blocks);
            unique.extend(blocks.iter().filter(|block| seen.insert(**block)));
        }
        unique
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Tree) -> bool {
        // Both have as many nodes and all are reachable, so a consistent map from one to the other is one to one.
        let mut twins: Vec<Option<NodeId>> = vec![None; self.len()];
        let mut twin = |id: NodeId, other: NodeId| *twins[id.0 as usize].get_or_insert(other) == other;
        self.len() == other.len()
            && self
                .walk()
                .map(Some)
                .chain([None])
                .zip(other.walk().map(Some).chain([None]))
                .all(|pair| match pair {
                    (Some((path, id)), Some((other_path, other_id))) => {
                        path == other_path && twin(id, other_id) && same(self.get(id), other.get(other_id))
                    }
                    (ours, theirs) => ours.is_none() && theirs.is_none(),
                })
    }
}

impl Eq for Tree {}

/// Whether two nodes are equal but for the entries of directories.
fn same(a: &Node, b: &Node) -> bool {
    let kinds = match (&a.kind, &b.kind) {
        (NodeKind::Directory(_), NodeKind::Directory(_)) => true,
        (a, b) => a == b,
    };
    kinds && a.metadata == b.metadata
}
