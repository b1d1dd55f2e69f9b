//! [`TreeBuilder`]: nodes in any order below their parents, sorted and checked at the end.

use crate::block::BlockRef;

use super::{Metadata, Node, NodeId, NodeKind, Tree, TreeError};

/// Makes a [`Tree`] node by node. A parent is added before its entries; entries may come in any order.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    nodes: Vec<Node>,
}

impl TreeBuilder {
    /// A tree of an empty root directory.
    #[must_use]
    pub fn new(root: Metadata) -> TreeBuilder {
        let root = Node {
            metadata: root,
            kind: NodeKind::Directory(Vec::new()),
        };
        TreeBuilder { nodes: vec![root] }
    }

    /// Adds a node under a name of a directory. Entries of a directory added this way are added by themselves: `node`
    /// itself must have none.
    ///
    /// # Errors
    /// The parent is no directory, the node is a directory that already has entries, or there are 2^32 nodes. Names and
    /// contents are checked by [`TreeBuilder::finish`].
    pub fn add(&mut self, parent: NodeId, name: Vec<u8>, node: Node) -> Result<NodeId, TreeError> {
        if node.entries().is_some_and(|entries| !entries.is_empty()) {
            return Err(TreeError::DirectoryEntered {
                path: super::show(&name),
            });
        }
        let id = u32::try_from(self.nodes.len())
            .map(NodeId)
            .map_err(|_| TreeError::TooManyNodes)?;
        self.link(parent, name, id)?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Adds one more name for a node: a hard link.
    ///
    /// # Errors
    /// The parent is no directory. A hard link of a directory is found by [`TreeBuilder::finish`].
    pub fn link(&mut self, parent: NodeId, name: Vec<u8>, target: NodeId) -> Result<(), TreeError> {
        match self.nodes.get_mut(parent.0 as usize).map(|node| &mut node.kind) {
            Some(NodeKind::Directory(entries)) => entries.push((name, target)),
            _ => {
                return Err(TreeError::ParentNotDirectory {
                    name: super::show(&name),
                });
            }
        }
        Ok(())
    }

    /// Sets metadata and blocks of a regular file that was added before its content was known; its size follows.
    ///
    /// # Errors
    /// `id` is no regular file.
    pub fn set_content(&mut self, id: NodeId, metadata: Metadata, blocks: Vec<BlockRef>) -> Result<(), TreeError> {
        let node = self.nodes.get_mut(id.0 as usize);
        let Some(node) = node.filter(|node| node.content().is_some()) else {
            return Err(TreeError::NotRegular { node: id.0 });
        };
        let size = blocks.iter().map(|block| u64::from(block.len)).sum();
        *node = Node {
            metadata,
            kind: NodeKind::Regular { size, blocks },
        };
        Ok(())
    }

    /// Replaces the metadata of a node.
    ///
    /// # Panics
    /// When `id` is not of this builder.
    pub fn set_metadata(&mut self, id: NodeId, metadata: Metadata) {
        self.nodes[id.0 as usize].metadata = metadata;
    }

    /// Sorts the entries and checks everything.
    pub fn finish(self) -> Result<Tree, TreeError> {
        Tree::from_nodes(self.nodes)
    }
}

impl Tree {
    /// The same tree with other blocks: `store` gives the new blocks of each regular file for its old ones.
    ///
    /// # Errors
    /// The first one of `store`.
    ///
    /// # Panics
    /// When the new blocks have another length in all than the old ones.
    pub fn map_contents<E>(
        mut self,
        mut store: impl FnMut(&[BlockRef]) -> Result<Vec<BlockRef>, E>,
    ) -> Result<Tree, E> {
        for node in &mut self.nodes {
            if let NodeKind::Regular { size, blocks } = &mut node.kind {
                *blocks = store(blocks)?;
                let total: u64 = blocks.iter().map(|block| u64::from(block.len)).sum();
                assert_eq!(total, *size, "the new blocks of a file have another length");
            }
        }
        Ok(self)
    }

    /// A tree from nodes whose entries may be unsorted; checks everything.
    pub(crate) fn from_nodes(mut nodes: Vec<Node>) -> Result<Tree, TreeError> {
        for node in &mut nodes {
            if let NodeKind::Directory(entries) = &mut node.kind {
                entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                entries.shrink_to_fit();
            }
        }
        let tree = Tree { nodes };
        tree.check()?;
        Ok(tree)
    }
}
