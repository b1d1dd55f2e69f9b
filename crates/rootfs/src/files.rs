//! From a block back to the files that contain it, for messages.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use zmachine_flist::Flist;
use zmachine_flist::block::BlockId;
use zmachine_flist::tree::{NodeId, Tree};

/// The absolute paths, within the image, of all files that contain the block; sorted.
pub fn files_of_block(flist: &Flist, id: &BlockId) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![(PathBuf::from("/"), NodeId::ROOT)];
    while let Some((directory, node)) = pending.pop() {
        for (name, child) in flist.tree.children(node) {
            if flist.tree.get(*child).entries().is_some() {
                pending.push((directory.join(OsStr::from_bytes(name)), *child));
            } else if contains(&flist.tree, *child, id) {
                found.push(directory.join(OsStr::from_bytes(name)));
            }
        }
    }
    found.sort();
    found
}

fn contains(tree: &Tree, node: NodeId, id: &BlockId) -> bool {
    let content = tree.get(node).content();
    content.is_some_and(|(_, blocks)| blocks.iter().any(|block| block.id == *id))
}
