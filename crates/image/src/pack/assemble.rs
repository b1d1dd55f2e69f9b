//! A tree that grows member by member, layer by layer: what archives bring in any order becomes a [`Tree`].
//!
//! A path is resolved inside of the tree: links of its directories are followed with the root as ceiling, the last component
//! is not followed. A later member replaces an earlier one; a directory over a directory keeps the entries. With whiteouts
//! (the layers of container images) `.wh.NAME` takes away what lower layers have under NAME, and `.wh..wh..opq` all that
//! they have in its directory; what the same layer brings stays, in whatever order it comes.

use std::collections::BTreeMap;
use std::io;

use zmachine_flist::{BlockRef, Metadata, Node, NodeId, NodeKind, Tree, TreeBuilder, TreeError};

use super::is_kept_xattr;
use crate::tar::{Member, MemberKind};

/// Links followed in one path before it counts as a loop (as Linux does).
const LINK_LIMIT: usize = 40;

/// The longest path, in bytes.
const PATH_BYTES: usize = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Content of a regular file: blocks by their serial numbers, which become references at the end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Content {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

enum Kind {
    Directory(BTreeMap<Vec<u8>, usize>),
    Regular(Content),
    Other(NodeKind),
}

struct Entry {
    metadata: Metadata,
    kind: Kind,
    /// The layer that brought it last.
    layer: u32,
}

/// The tree so far.
pub(crate) struct Assembly {
    entries: Vec<Entry>,
    layer: u32,
    has_whiteouts: bool,
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
            layer: 0,
        };
        Assembly {
            entries: vec![root],
            layer: 0,
            has_whiteouts,
        }
    }

    /// What comes now is on top of what came before.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Adds a member; `content` is that of a regular file.
    pub(crate) fn add(&mut self, member: Member, content: Content) -> io::Result<()> {
        let components = components(&member.path)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root(member);
        };
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
            // A further name brought by this layer is as new as the layer, and so is the file behind it.
            self.entries[target].layer = self.layer;
            self.children(parent).insert(name.to_vec(), target);
            return Ok(());
        }
        let name = name.to_vec();
        let existing = self.children(parent).get(&name).copied();
        let metadata = metadata(&member);
        let layer = self.layer;
        if let (Some(index), MemberKind::Directory) = (existing, &member.kind)
            && matches!(self.entries[index].kind, Kind::Directory(_))
        {
            let entry = &mut self.entries[index];
            (entry.metadata, entry.layer) = (metadata, layer);
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
        self.children(parent).insert(name, index);
        Ok(())
    }

    fn root(&mut self, member: Member) -> io::Result<()> {
        if member.kind != MemberKind::Directory {
            return Err(refused(&member.path, "would replace the root"));
        }
        self.entries[0].metadata = metadata(&member);
        Ok(())
    }

    fn push(&mut self, metadata: Metadata, kind: Kind) -> usize {
        let layer = self.layer;
        self.entries.push(Entry { metadata, kind, layer });
        self.entries.len() - 1
    }

    /// The entries of something that is known to be a directory.
    fn children(&mut self, index: usize) -> &mut BTreeMap<Vec<u8>, usize> {
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
            let next = self.children(here).get(&name).copied();
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
                    let names = target.split(|byte| *byte == b'/').rev();
                    todo.extend(names.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec));
                }
                // Something else is in the way: the member says that it is a directory now.
                _ => {
                    let index = self.push(implied(), Kind::Directory(BTreeMap::new()));
                    self.children(here).insert(name, index);
                    trail.push(index);
                }
            }
        }
        Ok(trail[trail.len() - 1])
    }

    /// What a hard link's target names; its directories may be links.
    fn find(&mut self, path: &[u8]) -> Option<usize> {
        let components = components(path).ok()?;
        let (name, parents) = components.split_last()?;
        let parent = self.directory(parents, path).ok()?;
        self.children(parent).get(*name).copied()
    }

    /// Takes away what lower layers have under a name.
    fn hide(&mut self, parent: usize, name: &[u8]) {
        let Some(index) = self.children(parent).get(name).copied() else {
            return;
        };
        if !self.keeps_of_this_layer(index) {
            self.children(parent).remove(name);
        }
    }

    /// Takes away what lower layers have in a directory.
    fn clear_below(&mut self, directory: usize) {
        let children = std::mem::take(self.children(directory));
        let kept = children
            .into_iter()
            .filter(|(_, index)| self.keeps_of_this_layer(*index))
            .collect();
        *self.children(directory) = kept;
    }

    /// Whether an entry is of this layer, or leads to one that is; in a directory, nothing else is left. As deep as a path
    /// is long.
    fn keeps_of_this_layer(&mut self, index: usize) -> bool {
        if matches!(self.entries[index].kind, Kind::Directory(_)) {
            self.clear_below(index);
        }
        let is_filled = matches!(&self.entries[index].kind, Kind::Directory(children) if !children.is_empty());
        is_filled || self.entries[index].layer == self.layer
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
            for (name, index) in children {
                if let Some(node) = nodes[*index] {
                    builder.link(parent, name.clone(), node)?;
                    continue;
                }
                let entry = &self.entries[*index];
                let kind = match &entry.kind {
                    Kind::Directory(_) => NodeKind::Directory(Vec::new()),
                    Kind::Other(kind) => kind.clone(),
                    Kind::Regular(content) => {
                        let blocks = blocks[content.first..content.first + content.count].to_vec();
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

/// The components of a member's path. `..` is refused: no honest archive has it.
fn components(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    if path.len() > PATH_BYTES {
        return Err(refused(&path[..100], "has a path of more than 4096 bytes"));
    }
    let names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<&[u8]> = names.collect();
    if names.contains(&&b".."[..]) {
        return Err(refused(path, "leads out of the tree"));
    }
    Ok(names)
}

fn metadata(member: &Member) -> Metadata {
    let kept = member.xattrs.iter().filter(|(name, _)| is_kept_xattr(name));
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
        }
    }

    fn add(assembly: &mut Assembly, path: &str, kind: MemberKind, target: &str) -> io::Result<()> {
        assembly.add(member(path, kind, target), Content::default())
    }

    fn paths(assembly: Assembly) -> Vec<String> {
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
        let mut assembly = Assembly::new(true);
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
    fn absolute_names_are_below_the_root_and_hard_links_share_their_file() {
        let mut assembly = Assembly::new(false);
        add(&mut assembly, "/a", Regular, "").unwrap();
        add(&mut assembly, "./b", HardLink, "/a").unwrap();
        let tree = assembly.finish(&[]).unwrap();
        assert_eq!(tree.lookup(b"a"), tree.lookup(b"b"));
        assert!(tree.lookup(b"a").is_some());
    }
}
