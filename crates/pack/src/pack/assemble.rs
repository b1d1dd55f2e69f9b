//! A tree that grows member by member, layer by layer: what archives bring in any order becomes a [`Tree`].
//!
//! A path is resolved inside of the tree: links of its directories are followed with the root as ceiling, the last component
//! is not followed. `..` takes back the component before it, as the text has it. A later member replaces an earlier one; a directory over
//! a directory keeps the entries.
//!
//! The layers of container images are read as containerd and umoci read them. `.wh.NAME` takes away what lower layers have under NAME, and
//! `.wh..wh..opq` all that they have in its directory; what the same layer brings stays, in whatever order it comes. What counts is which
//! layer brought a *name*: a hard link to a file of a lower layer is a name of this one, and the lower name can go. A path that
//! begins at the root (`/` or `./`) ends there whatever `..` it has, as `/..` is `/`; any other one that leads out of the tree is refused.
//! What AUFS has left at the root (`.wh..wh.*`) is no part of the image, but hard links may lead to the
//! files in its `.wh..wh.plnk`.

mod over;

use std::collections::BTreeMap;
use std::io;

use zmachine_flist::{BlockRef, Metadata, Node, NodeId, NodeKind, Tree, TreeBuilder, TreeError};

use super::xattr::{is_kept, is_of_overlay};
use crate::tar::{Member, MemberKind};

/// Links followed in one path before it counts as a loop (as Linux does).
const LINK_LIMIT: usize = 40;

/// The longest path, in bytes.
const PATH_BYTES: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS keeps for itself at the root of a layer, and the directory in it with files that have several names.
const AUFS: &[u8] = b".wh..wh.";
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// Content of a regular file: blocks by their serial numbers, which become references at the end.
pub(crate) type Content = Vec<usize>;

enum Kind {
    Directory(BTreeMap<Vec<u8>, Name>),
    Regular(Content),
    Other(NodeKind),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Name {
    /// What it leads to.
    entry: usize,
    /// The layer that brought it last.
    layer: u32,
}

struct Entry {
    metadata: Metadata,
    kind: Kind,
}

/// The tree so far.
pub(crate) struct Assembly {
    entries: Vec<Entry>,
    layer: u32,
    has_whiteouts: bool,
    /// Files of this layer that AUFS keeps under names of its own.
    aufs: BTreeMap<Vec<u8>, usize>,
    overlay_xattrs: u64,
}

fn refused(path: &[u8], why: &str) -> io::Error {
    let path = String::from_utf8_lossy(path);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("member {path:?} of the archive {why}"),
    )
}

/// Metadata of directories that no member brought.
fn implied() -> Metadata {
    Metadata {
        mode: 0o755,
        ..Metadata::default()
    }
}

impl Assembly {
    /// An empty root. `has_whiteouts`: the archives are layers of a container image.
    pub(crate) fn new(has_whiteouts: bool) -> Assembly {
        let root = Entry {
            metadata: implied(),
            kind: Kind::Directory(BTreeMap::new()),
        };
        Assembly {
            entries: vec![root],
            layer: 0,
            has_whiteouts,
            aufs: BTreeMap::new(),
            overlay_xattrs: 0,
        }
    }

    /// What comes now is on top of what came before.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
        self.aufs.clear();
    }

    /// Attributes that were left out because they mean something to the overlay file system of the guest.
    pub(crate) fn overlay_xattrs(&self) -> u64 {
        self.overlay_xattrs
    }

    /// Adds a member; `content` is that of a regular file.
    pub(crate) fn add(&mut self, member: Member, content: Content) -> io::Result<()> {
        let components = components(&member.path, self.has_whiteouts)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root(member);
        };
        let top = components.first().copied().unwrap_or_default();
        if self.has_whiteouts && top.starts_with(AUFS) && components.as_slice() != [OPAQUE] {
            if top == AUFS_LINKS && member.kind == MemberKind::Regular {
                let metadata = self.metadata(&member);
                let index = self.push(metadata, Kind::Regular(content));
                self.aufs.insert(name.to_vec(), index);
            }
            return Ok(());
        }
        let parent = self.directory(parents, &member.path)?;
        if self.has_whiteouts && *name == OPAQUE {
            self.clear_below(parent);
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT).filter(|_| self.has_whiteouts) {
            self.hide(parent, hidden);
            return Ok(());
        }
        if member.kind == MemberKind::HardLink {
            let target = self
                .find(&member.target)
                .ok_or_else(|| refused(&member.path, "links to nothing"))?;
            if matches!(self.entries[target].kind, Kind::Directory(_)) {
                return Err(refused(&member.path, "is a hard link to a directory"));
            }
            self.name(parent, name, target);
            return Ok(());
        }
        let metadata = self.metadata(&member);
        let existing = self.children(parent).get(*name).map(|name| name.entry);
        if let (Some(index), MemberKind::Directory) = (existing, &member.kind)
            && matches!(self.entries[index].kind, Kind::Directory(_))
        {
            self.entries[index].metadata = metadata;
            self.name(parent, name, index);
            return Ok(());
        }
        let kind = match member.kind {
            MemberKind::Directory => Kind::Directory(BTreeMap::new()),
            MemberKind::Regular => Kind::Regular(content),
            MemberKind::Symlink => Kind::Other(NodeKind::Symlink(member.target)),
            MemberKind::Fifo => Kind::Other(NodeKind::Fifo),
            MemberKind::CharDevice | MemberKind::HardLink => Kind::Other(NodeKind::CharDevice {
                major: member.device.0,
                minor: member.device.1,
            }),
            MemberKind::BlockDevice => Kind::Other(NodeKind::BlockDevice {
                major: member.device.0,
                minor: member.device.1,
            }),
        };
        let index = self.push(metadata, kind);
        self.name(parent, name, index);
        Ok(())
    }

    /// Gives an entry a name, which is one of this layer.
    fn name(&mut self, parent: usize, name: &[u8], entry: usize) {
        let layer = self.layer;
        self.children(parent).insert(name.to_vec(), Name { entry, layer });
    }

    fn metadata(&mut self, member: &Member) -> Metadata {
        self.overlay_xattrs += member.xattrs.iter().filter(|(name, _)| is_of_overlay(name)).count() as u64;
        metadata(member)
    }

    fn root(&mut self, member: Member) -> io::Result<()> {
        if member.kind != MemberKind::Directory {
            return Err(refused(&member.path, "would replace the root"));
        }
        self.entries[0].metadata = self.metadata(&member);
        Ok(())
    }

    fn push(&mut self, metadata: Metadata, kind: Kind) -> usize {
        self.entries.push(Entry { metadata, kind });
        self.entries.len() - 1
    }

    /// The entries of something that is known to be a directory.
    fn children(&mut self, index: usize) -> &mut BTreeMap<Vec<u8>, Name> {
        let entry = &mut self.entries[index];
        if !matches!(entry.kind, Kind::Directory(_)) {
            entry.kind = Kind::Directory(BTreeMap::new());
        }
        match &mut entry.kind {
            Kind::Directory(children) => children,
            _ => unreachable!("it was made a directory right before"),
        }
    }

    /// The directory at a path, made as far as it is missing; links in it are followed inside of the tree.
    fn directory(&mut self, parents: &[&[u8]], path: &[u8]) -> io::Result<usize> {
        let mut todo: Vec<Vec<u8>> = parents.iter().rev().map(|name| name.to_vec()).collect();
        let mut trail = vec![0];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail[trail.len() - 1];
            let next = self.children(here).get(&name).map(|name| name.entry);
            match next.map(|index| (index, &self.entries[index].kind)) {
                Some((index, Kind::Directory(_))) => trail.push(index),
                Some((_, Kind::Other(NodeKind::Symlink(target)))) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(refused(path, "goes through a loop of links"));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    todo.extend(steps(target).rev().map(<[u8]>::to_vec));
                }
                // Something else is in the way: the member says that it is a directory now.
                _ => {
                    let index = self.push(implied(), Kind::Directory(BTreeMap::new()));
                    self.name(here, &name, index);
                    trail.push(index);
                }
            }
        }
        Ok(trail[trail.len() - 1])
    }

    /// What a hard link's target names; its directories may be links.
    fn find(&self, path: &[u8]) -> Option<usize> {
        let components = components(path, self.has_whiteouts).ok()?;
        if let [AUFS_LINKS, name] = components.as_slice()
            && self.has_whiteouts
        {
            return self.aufs.get(*name).copied();
        }
        let (name, parents) = components.split_last()?;
        let mut todo: Vec<&[u8]> = parents.iter().rev().copied().collect();
        let mut trail = vec![0];
        let mut links = 0;
        while let Some(step) = todo.pop() {
            if step == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let next = self.child(*trail.last()?, step)?;
            match &self.entries[next].kind {
                Kind::Directory(_) => trail.push(next),
                Kind::Other(NodeKind::Symlink(target)) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    todo.extend(steps(target).rev());
                }
                _ => return None,
            }
        }
        self.child(*trail.last()?, name)
    }

    /// What a name in a directory leads to.
    fn child(&self, directory: usize, name: &[u8]) -> Option<usize> {
        match &self.entries[directory].kind {
            Kind::Directory(children) => children.get(name).map(|name| name.entry),
            _ => None,
        }
    }

    /// Takes away what lower layers have under a name.
    fn hide(&mut self, parent: usize, name: &[u8]) {
        let Some(named) = self.children(parent).get(name).copied() else {
            return;
        };
        if !self.keeps_of_this_layer(named) {
            self.children(parent).remove(name);
        }
    }

    /// Takes away what lower layers have in a directory.
    fn clear_below(&mut self, directory: usize) {
        let children = std::mem::take(self.children(directory));
        let kept = children
            .into_iter()
            .filter(|(_, name)| self.keeps_of_this_layer(*name))
            .collect();
        *self.children(directory) = kept;
    }

    /// Whether a name is of this layer, or leads to some that are; in a directory, nothing else is left. As deep as a path
    /// is long.
    fn keeps_of_this_layer(&mut self, name: Name) -> bool {
        if matches!(self.entries[name.entry].kind, Kind::Directory(_)) {
            self.clear_below(name.entry);
        }
        let is_filled = matches!(&self.entries[name.entry].kind, Kind::Directory(children) if !children.is_empty());
        is_filled || name.layer == self.layer
    }

    /// The tree, with the blocks of the serial numbers.
    pub(crate) fn finish(self, blocks: &[BlockRef]) -> Result<Tree, TreeError> {
        let mut builder = TreeBuilder::new(self.entries[0].metadata.clone());
        let mut nodes: Vec<Option<NodeId>> = vec![None; self.entries.len()];
        nodes[0] = Some(NodeId::ROOT);
        let mut todo = vec![0];
        while let Some(directory) = todo.pop() {
            let (Kind::Directory(children), Some(parent)) = (&self.entries[directory].kind, nodes[directory]) else {
                continue;
            };
            for (name, Name { entry: index, .. }) in children {
                if let Some(node) = nodes[*index] {
                    builder.link(parent, name.clone(), node)?;
                    continue;
                }
                let entry = &self.entries[*index];
                let kind = match &entry.kind {
                    Kind::Directory(_) => NodeKind::Directory(Vec::new()),
                    Kind::Other(kind) => kind.clone(),
                    Kind::Regular(content) => {
                        let blocks: Vec<BlockRef> = content.iter().map(|serial| blocks[*serial]).collect();
                        let size = blocks.iter().map(|block| u64::from(block.len)).sum();
                        NodeKind::Regular { size, blocks }
                    }
                };
                let is_directory = matches!(kind, NodeKind::Directory(_));
                let metadata = entry.metadata.clone();
                let id = builder.add(parent, name.clone(), Node { metadata, kind })?;
                nodes[*index] = Some(id);
                if is_directory {
                    todo.push(*index);
                }
            }
        }
        builder.finish()
    }
}

/// The components of a path or of a link's target, without those that say nothing.
fn steps(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
}

/// The components of a member's path; `..` takes back the one before. One that leads out of the tree is refused, unless it begins at the
/// root of a layer, above which there is nothing.
fn components(path: &[u8], is_layer: bool) -> io::Result<Vec<&[u8]>> {
    if path.len() > PATH_BYTES {
        return Err(refused(&path[..100], "has a path of more than 4096 bytes"));
    }
    let is_held = is_layer && (path.starts_with(b"/") || path.starts_with(b"./"));
    let mut names = Vec::new();
    for step in steps(path) {
        match step {
            b".." if names.pop().is_none() && !is_held => return Err(refused(path, "leads out of the tree")),
            b".." => {}
            name => names.push(name),
        }
    }
    Ok(names)
}

fn metadata(member: &Member) -> Metadata {
    let kept = member.xattrs.iter().filter(|(name, _)| is_kept(name));
    Metadata {
        mode: if member.kind == MemberKind::Symlink {
            0o777
        } else {
            member.mode
        },
        uid: member.uid,
        gid: member.gid,
        mtime: member.mtime,
        mtime_nsec: member.mtime_nsec,
        ctime: member.mtime,
        xattrs: kept.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, kind: MemberKind, target: &str) -> Member {
        Member {
            path: path.into(),
            kind,
            target: target.into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            device: (0, 0),
            size: 0,
            xattrs: Vec::new(),
            lost_acls: 0,
        }
    }

    pub(super) fn add(assembly: &mut Assembly, path: &str, kind: MemberKind, target: &str) -> io::Result<()> {
        assembly.add(member(path, kind, target), Content::default())
    }

    pub(super) fn paths(assembly: Assembly) -> Vec<String> {
        let tree = assembly.finish(&[]).unwrap();
        tree.walk()
            .skip(1)
            .map(|(path, _)| String::from_utf8(path).unwrap())
            .collect()
    }

    use MemberKind::{Directory, HardLink, Regular, Symlink};

    /// Layers of (path, kind, target) to the paths of the tree.
    fn layers(layers: &[&[(&str, MemberKind, &str)]]) -> Vec<String> {
        let mut assembly = Assembly::new(true);
        for layer in layers {
            assembly.next_layer();
            for (path, kind, target) in *layer {
                add(&mut assembly, path, kind.clone(), target).unwrap();
            }
        }
        paths(assembly)
    }

    #[test]
    fn a_whiteout_hides_lower_layers_only() {
        let lower = [("a/x", Regular, ""), ("a/y", Regular, ""), ("b", Regular, "")];
        let upper = [
            ("a/.wh.x", Regular, ""),
            ("a/z", Regular, ""),
            (".wh.z", Regular, ""),
            (".wh.b", Regular, ""),
        ];
        assert_eq!(layers(&[&lower, &upper]), ["a", "a/y", "a/z"]);
        // Before or after what the same layer brings under the name.
        for upper in [
            [("b", Regular, ""), (".wh.b", Regular, "")],
            [(".wh.b", Regular, ""), ("b", Regular, "")],
        ] {
            assert_eq!(layers(&[&[("b", Directory, ""), ("b/in", Regular, "")], &upper]), ["b"]);
        }
    }

    #[test]
    fn an_opaque_directory_keeps_what_its_own_layer_brings() {
        let lower = [("d/old", Regular, ""), ("d/sub/old", Regular, "")];
        for upper in [
            [
                ("d/", Directory, ""),
                ("d/.wh..wh..opq", Regular, ""),
                ("d/sub/new", Regular, ""),
            ],
            [
                ("d/", Directory, ""),
                ("d/sub/new", Regular, ""),
                ("d/.wh..wh..opq", Regular, ""),
            ],
        ] {
            assert_eq!(layers(&[&lower, &upper])[..2], ["d", "d/sub"]);
            assert!(!layers(&[&lower, &upper]).contains(&"d/old".to_owned()));
            assert!(layers(&[&lower, &upper]).contains(&"d/sub/new".to_owned()));
        }
    }

    #[test]
    fn links_of_directories_are_followed_inside_of_the_tree() {
        let lower = [
            ("usr/lib", Directory, ""),
            ("lib", Symlink, "/../usr/lib"),
            ("up", Symlink, "../../usr"),
        ];
        let upper = [("lib/a", Regular, ""), ("up/b", Regular, "")];
        assert_eq!(
            layers(&[&lower, &upper]),
            ["lib", "up", "usr", "usr/b", "usr/lib", "usr/lib/a"]
        );
    }

    #[test]
    fn a_plain_archive_has_no_whiteouts() {
        let mut assembly = Assembly::new(false);
        add(&mut assembly, ".wh.a", Regular, "").unwrap();
        assert_eq!(paths(assembly), [".wh.a"]);
    }

    #[test]
    fn a_directory_that_a_file_replaces_is_gone_and_the_other_way_round() {
        assert_eq!(layers(&[&[("a/b", Regular, "")], &[("a", Regular, "")]]), ["a"]);
        assert_eq!(layers(&[&[("a", Regular, "")], &[("a/b", Regular, "")]]), ["a", "a/b"]);
    }

    #[test]
    fn members_that_lead_out_or_nowhere_are_refused() {
        let mut assembly = Assembly::new(false);
        add(&mut assembly, "l", Symlink, "l").unwrap();
        for (path, kind, target) in [
            ("../x", Regular, ""),
            ("a/../../x", Regular, ""),
            ("h", HardLink, "nothing"),
            ("h", HardLink, "../x"),
            ("l/x", Regular, ""),
            ("/", Regular, ""),
        ] {
            assert!(
                add(&mut assembly, path, kind.clone(), target).is_err(),
                "{path} {target}"
            );
        }
        add(&mut assembly, "d", Directory, "").unwrap();
        assert!(add(&mut assembly, "h", HardLink, "d").is_err());
    }

    #[test]
    fn a_path_with_dots_stays_where_it_leads() {
        let lower = [("c", Directory, ""), ("a/x", Regular, ""), ("link", Symlink, "a/sub")];
        let upper = [
            ("a/../b", Regular, ""),
            ("c/y", HardLink, "c/../a/x"),
            // As the text has it: the link is not followed.
            ("link/../z", Regular, ""),
            // Above the root is nothing.
            ("./../d", Regular, ""),
            ("e", HardLink, "/../../d"),
        ];
        assert_eq!(
            layers(&[&lower, &upper]),
            ["a", "a/x", "b", "c", "c/y", "d", "e", "link", "z"]
        );
        let mut layer = Assembly::new(true);
        for (path, kind, target) in [
            ("../x", Regular, ""),
            ("a/../../x", Regular, ""),
            ("h", HardLink, "../x"),
        ] {
            assert!(add(&mut layer, path, kind, target).is_err(), "{path} {target}");
        }
        let mut plain = Assembly::new(false);
        assert!(add(&mut plain, "./../b", Regular, "").is_err());
        add(&mut plain, "a/../b", Regular, "").unwrap();
        assert_eq!(paths(plain), ["b"]);
    }

    #[test]
    fn a_hard_link_keeps_a_file_and_not_the_names_that_its_layer_takes_away() {
        let lower = [("a", Regular, ""), ("d/a", Regular, ""), ("d/old", Regular, "")];
        assert_eq!(
            layers(&[&lower, &[("b", HardLink, "a"), (".wh.a", Regular, "")]]),
            ["b", "d", "d/a", "d/old"]
        );
        for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1]] {
            let members = [
                ("b", HardLink, "a"),
                ("d/", Directory, ""),
                ("d/.wh..wh..opq", Regular, ""),
            ];
            let upper = order.map(|at| members[at].clone());
            assert_eq!(layers(&[&lower, &upper]), ["a", "b", "d"], "{order:?}");
        }
        let upper = [
            ("b", HardLink, "d/a"),
            ("d/", Directory, ""),
            ("d/.wh..wh..opq", Regular, ""),
        ];
        assert_eq!(layers(&[&lower, &upper]), ["a", "b", "d"]);
        // A name that the layer brings anew is its own, although a lower one had it.
        let upper = [("a", HardLink, "d/a"), (".wh.a", Regular, "")];
        assert_eq!(layers(&[&lower, &upper]), ["a", "d", "d/a", "d/old"]);
    }

    #[test]
    fn what_aufs_has_left_is_not_there_but_its_files_can_be_linked_to() {
        let layer = [
            ("a", Regular, ""),
            (".wh..wh.aufs", Regular, ""),
            (".wh..wh.orph/", Directory, ""),
            (".wh..wh.plnk/", Directory, ""),
            (".wh..wh.plnk/12.34", Regular, ""),
            ("b", HardLink, ".wh..wh.plnk/12.34"),
            ("c", HardLink, "/.wh..wh.plnk/12.34"),
        ];
        assert_eq!(layers(&[&layer]), ["a", "b", "c"]);
        // Of one layer only.
        let mut assembly = Assembly::new(true);
        add(&mut assembly, ".wh..wh.plnk/1", Regular, "").unwrap();
        assembly.next_layer();
        assert!(add(&mut assembly, "b", HardLink, ".wh..wh.plnk/1").is_err());
        // The root may be opaque.
        assert_eq!(
            layers(&[
                &[("a", Regular, "")],
                &[(".wh..wh..opq", Regular, ""), ("b", Regular, "")]
            ]),
            ["b"]
        );
        // A whiteout of nothing takes nothing away.
        assert_eq!(
            layers(&[&[("d/a", Regular, "")], &[("d/.wh.", Regular, "")]]),
            ["d", "d/a"]
        );
    }

    #[test]
    fn a_link_to_what_is_not_there_makes_no_directory_on_its_way() {
        let mut assembly = Assembly::new(true);
        assert!(add(&mut assembly, "h", HardLink, "no/such/file").is_err());
        assert!(paths(assembly).is_empty());
    }

    #[test]
    fn attributes_of_overlayfs_are_left_out_and_counted() {
        let mut assembly = Assembly::new(true);
        let mut marked = member("d", Directory, "");
        for name in ["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.own"] {
            marked.xattrs.push((name.into(), b"y".to_vec()));
        }
        assembly.add(marked, Content::default()).unwrap();
        assert_eq!(assembly.overlay_xattrs(), 2);
        let tree = assembly.finish(&[]).unwrap();
        let node = tree.get(tree.lookup(b"d").unwrap());
        assert_eq!(node.metadata.xattrs, [(b"trusted.own".to_vec(), b"y".to_vec())]);
    }

    #[test]
    fn absolute_names_are_below_the_root_and_hard_links_share_their_file() {
        let mut assembly = Assembly::new(false);
        add(&mut assembly, "/a", Regular, "").unwrap();
        add(&mut assembly, "./b", HardLink, "/a").unwrap();
        let tree = assembly.finish(&[]).unwrap();
        assert_eq!(tree.lookup(b"a"), tree.lookup(b"b"));
        assert!(tree.lookup(b"a").is_some());
    }
}
