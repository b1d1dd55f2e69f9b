//! What is different between two trees, path by path.

use std::cmp::Ordering;

use serde::Serialize;
use zmachine_flist::{Node, NodeId, NodeKind, Tree};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path without leading slash; bytes that are no text are shown as U+FFFD.
    pub path: String,
    /// What happened.
    #[serde(flatten)]
    pub change: Change,
}

/// What happened to a path from the first tree to the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Both have it, and these aspects differ: `kind`, `content`, `target`, `device`, `mode`, `owner`, `mtime`, `xattrs`,
    /// `links`.
    Changed {
        /// What differs.
        aspects: Vec<&'static str>,
    },
}

/// Every difference, sorted by path. Below a directory that only one tree has, everything is listed. Files of flists of
/// different formats have different digests, so only their sizes are compared.
#[must_use]
pub fn diff(a: &Tree, b: &Tree) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut both = Both {
        a,
        b,
        names_a: names(a),
        names_b: names(b),
        out: &mut differences,
    };
    both.compare(NodeId::ROOT, NodeId::ROOT, b"");
    let mut directories = vec![(NodeId::ROOT, NodeId::ROOT, Vec::new())];
    while let Some((x, y, path)) = directories.pop() {
        both.entries(x, y, &path, &mut directories);
    }
    differences.sort_by(|a, b| a.path.cmp(&b.path));
    differences
}

struct Both<'a> {
    a: &'a Tree,
    b: &'a Tree,
    names_a: Vec<u32>,
    names_b: Vec<u32>,
    out: &'a mut Vec<Difference>,
}

/// How many names each node has.
fn names(tree: &Tree) -> Vec<u32> {
    let mut names = vec![0; tree.len()];
    for index in 0..tree.len() {
        for (_, id) in tree.children(NodeId(index as u32)) {
            names[id.0 as usize] += 1;
        }
    }
    names
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [path, slash, name].concat()
}

impl Both<'_> {
    fn push(&mut self, path: &[u8], change: Change) {
        self.out.push(Difference {
            path: String::from_utf8_lossy(path).into_owned(),
            change,
        });
    }

    /// The entries of two directories, which are both sorted.
    fn entries(&mut self, x: NodeId, y: NodeId, path: &[u8], todo: &mut Vec<(NodeId, NodeId, Vec<u8>)>) {
        let (a, b) = (self.a, self.b);
        let (mut left, mut right) = (a.children(x).iter().peekable(), b.children(y).iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((x, _)), Some((y, _))) => x.cmp(y),
            };
            if order.is_lt() {
                left.next()
                    .into_iter()
                    .for_each(|(name, id)| self.whole(a, *id, &join(path, name), &Change::Removed));
            } else if order.is_gt() {
                right
                    .next()
                    .into_iter()
                    .for_each(|(name, id)| self.whole(b, *id, &join(path, name), &Change::Added));
            } else if let (Some((name, x)), Some((_, y))) = (left.next(), right.next()) {
                let path = join(path, name);
                self.compare(*x, *y, &path);
                match (a.get(*x).entries(), b.get(*y).entries()) {
                    (Some(_), Some(_)) => todo.push((*x, *y, path)),
                    (Some(_), None) => self.below(a, *x, &path, &Change::Removed),
                    (None, Some(_)) => self.below(b, *y, &path, &Change::Added),
                    (None, None) => {}
                }
            }
        }
    }

    fn whole(&mut self, tree: &Tree, id: NodeId, path: &[u8], change: &Change) {
        self.push(path, change.clone());
        self.below(tree, id, path, change);
    }

    fn below(&mut self, tree: &Tree, id: NodeId, path: &[u8], change: &Change) {
        let mut todo = vec![(id, path.to_vec())];
        while let Some((id, path)) = todo.pop() {
            for (name, child) in tree.children(id) {
                let path = join(&path, name);
                self.push(&path, change.clone());
                todo.push((*child, path));
            }
        }
    }

    fn compare(&mut self, x: NodeId, y: NodeId, path: &[u8]) {
        let mut aspects = aspects(self.a.get(x), self.b.get(y));
        let is_directory = self.a.get(x).entries().is_some();
        if !is_directory && self.names_a[x.0 as usize] != self.names_b[y.0 as usize] {
            aspects.push("links");
        }
        if !aspects.is_empty() {
            self.push(path, Change::Changed { aspects });
        }
    }
}

fn aspects(x: &Node, y: &Node) -> Vec<&'static str> {
    let mut aspects = Vec::new();
    let mut note = |differs: bool, aspect| {
        if differs {
            aspects.push(aspect);
        }
    };
    match (&x.kind, &y.kind) {
        (NodeKind::Directory(_), NodeKind::Directory(_))
        | (NodeKind::Fifo, NodeKind::Fifo)
        | (NodeKind::Socket, NodeKind::Socket) => {}
        (
            NodeKind::Regular { size, blocks },
            NodeKind::Regular {
                size: other,
                blocks: others,
            },
        ) => {
            let digest = |blocks: &[zmachine_flist::BlockRef]| blocks.first().map(|block| block.key.0.as_bytes().len());
            let same_format = digest(blocks) == digest(others);
            let keys = blocks
                .iter()
                .map(|block| block.key)
                .eq(others.iter().map(|block| block.key));
            note(size != other || (same_format && !keys), "content");
        }
        (NodeKind::Symlink(target), NodeKind::Symlink(other)) => note(target != other, "target"),
        (NodeKind::CharDevice { .. }, NodeKind::CharDevice { .. })
        | (NodeKind::BlockDevice { .. }, NodeKind::BlockDevice { .. }) => note(x.kind != y.kind, "device"),
        _ => note(true, "kind"),
    }
    let (a, b) = (&x.metadata, &y.metadata);
    note(a.mode != b.mode, "mode");
    note((a.uid, a.gid) != (b.uid, b.gid), "owner");
    note((a.mtime, a.mtime_nsec) != (b.mtime, b.mtime_nsec), "mtime");
    note(a.xattrs != b.xattrs, "xattrs");
    aspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmachine_flist::{Metadata, TreeBuilder};

    fn file(mode: u16) -> Node {
        Node {
            metadata: Metadata {
                mode,
                ..Metadata::default()
            },
            kind: NodeKind::Regular {
                size: 0,
                blocks: Vec::new(),
            },
        }
    }

    fn directory() -> Node {
        Node {
            metadata: Metadata::default(),
            kind: NodeKind::Directory(Vec::new()),
        }
    }

    fn lines(a: TreeBuilder, b: TreeBuilder) -> Vec<String> {
        let found = diff(&a.finish().unwrap(), &b.finish().unwrap());
        let line = |d: &Difference| match &d.change {
            Change::Added => format!("+ {}", d.path),
            Change::Removed => format!("- {}", d.path),
            Change::Changed { aspects } => format!("* {} {}", d.path, aspects.join(",")),
        };
        found.iter().map(line).collect()
    }

    #[test]
    fn additions_removals_and_changes_are_told_by_path() {
        let (mut a, mut b) = (
            TreeBuilder::new(Metadata::default()),
            TreeBuilder::new(Metadata::default()),
        );
        let gone = a.add(NodeId::ROOT, b"gone".to_vec(), directory()).unwrap();
        a.add(gone, b"inside".to_vec(), file(0)).unwrap();
        a.add(NodeId::ROOT, b"mode".to_vec(), file(0o644)).unwrap();
        b.add(NodeId::ROOT, b"mode".to_vec(), file(0o755)).unwrap();
        a.add(NodeId::ROOT, b"kind".to_vec(), directory()).unwrap();
        let kind = b.add(NodeId::ROOT, b"kind".to_vec(), file(0)).unwrap();
        b.link(NodeId::ROOT, b"new".to_vec(), kind).unwrap();
        assert_eq!(
            lines(a, b),
            ["- gone", "- gone/inside", "* kind kind", "* mode mode", "+ new"]
        );
    }

    #[test]
    fn equal_trees_have_no_differences() {
        let tree = || {
            let mut tree = TreeBuilder::new(Metadata::default());
            tree.add(NodeId::ROOT, b"a".to_vec(), file(1)).unwrap();
            tree
        };
        assert!(lines(tree(), tree()).is_empty());
    }
}
