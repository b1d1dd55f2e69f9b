//! A tree as the lowest layer.

use std::collections::{BTreeMap, HashMap};

use zmachine_flist::{BlockRef, NodeId, NodeKind, Tree};

use super::{Assembly, Entry, Kind, Name};

impl Assembly {
    /// An assembly over `tree`, for one more layer of a container image, and the blocks of the tree: the serial numbers of the layer's
    /// come after them.
    pub(crate) fn over(tree: &Tree) -> (Assembly, Vec<BlockRef>) {
        let mut assembly = Assembly::new(true);
        let mut blocks = Vec::new();
        assembly.entries[0].metadata = tree.root().metadata.clone();
        // Files may have several names.
        let mut known: HashMap<NodeId, usize> = HashMap::from([(NodeId::ROOT, 0)]);
        let mut todo = vec![NodeId::ROOT];
        while let Some(directory) = todo.pop() {
            let mut children = BTreeMap::new();
            for (name, id) in tree.children(directory) {
                let entry = *known.entry(*id).or_insert_with(|| {
                    let node = tree.get(*id);
                    let kind = match &node.kind {
                        NodeKind::Directory(_) => {
                            todo.push(*id);
                            Kind::Directory(BTreeMap::new())
                        }
                        NodeKind::Regular { blocks: content, .. } => {
                            let first = blocks.len();
                            blocks.extend_from_slice(content);
                            Kind::Regular((first..blocks.len()).collect())
                        }
                        other => Kind::Other(other.clone()),
                    };
                    assembly.entries.push(Entry {
                        metadata: node.metadata.clone(),
                        kind,
                    });
                    assembly.entries.len() - 1
                });
                children.insert(name.clone(), Name { entry, layer: 0 });
            }
            if let Some(index) = known.get(&directory) {
                assembly.entries[*index].kind = Kind::Directory(children);
            }
        }
        assembly.next_layer();
        (assembly, blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{add, paths};
    use super::*;
    use crate::tar::MemberKind::{Directory, HardLink, Regular, Symlink};

    fn lower() -> Tree {
        let mut assembly = Assembly::new(false);
        for (path, kind, target) in [
            ("d", Directory, ""),
            ("d/a", Regular, ""),
            ("d/b", HardLink, "d/a"),
            ("d/sub/c", Regular, ""),
            ("link", Symlink, "d"),
        ] {
            add(&mut assembly, path, kind, target).unwrap();
        }
        assembly.finish(&[]).unwrap()
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let tree = lower();
        let (assembly, blocks) = Assembly::over(&tree);
        let again = assembly.finish(&blocks).unwrap();
        assert_eq!(again.lookup(b"d/a"), again.lookup(b"d/b"));
        let shown = |tree: &Tree| -> Vec<_> {
            tree.walk()
                .map(|(path, id)| (path, tree.get(id).metadata.clone()))
                .collect()
        };
        assert_eq!(shown(&tree), shown(&again));
    }

    #[test]
    fn a_layer_hides_and_replaces_what_the_tree_has() {
        let (mut assembly, _) = Assembly::over(&lower());
        for (path, kind) in [
            ("d/.wh.a", Regular),
            ("d/sub/", Directory),
            ("d/sub/.wh..wh..opq", Regular),
            ("link/new", Regular),
        ] {
            add(&mut assembly, path, kind, "").unwrap();
        }
        assert_eq!(paths(assembly), ["d", "d/b", "d/new", "d/sub", "link"]);
    }
}
