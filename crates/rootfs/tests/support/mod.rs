//! What the tests of this crate share: trees with real blocks, a store on disk, whole images, loop mounts.
#![allow(unreachable_pub)] // a module of a test program

pub mod vm;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use zmachine_flist::{BlockRef, Flist, Metadata, Node, NodeId, NodeKind, Route, RouteTable, Tree, TreeBuilder};
use zmachine_rootfs::erofs::ErofsImage;
use zmachine_testkit::{Need, lacking, skip};

/// The plaintext of blocks.
#[derive(Debug, Default)]
pub struct Blocks(pub HashMap<BlockRef, Vec<u8>>);

impl Blocks {
    /// A regular file of this content.
    pub fn regular(&mut self, content: &[u8]) -> NodeKind {
        let cut = content.chunks(BlockRef::SIZE).map(|plain| {
            let (block, _) = BlockRef::seal(plain);
            self.0.insert(block, plain.to_vec());
            block
        });
        NodeKind::Regular {
            size: content.len() as u64,
            blocks: cut.collect(),
        }
    }

    /// Puts the stored form of every block where a `dir://` store looks for it.
    pub fn store_in(&self, dir: &Path) {
        for plain in self.0.values() {
            let (block, sealed) = BlockRef::seal(plain);
            let path = stored_path(dir, &block);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, sealed).unwrap();
        }
    }
}

/// Where a `dir://` store keeps a block.
pub fn stored_path(dir: &Path, block: &BlockRef) -> PathBuf {
    let hex = block.id.0.to_hex();
    dir.join(&hex[..2]).join(hex)
}

pub fn metadata(mode: u16) -> Metadata {
    Metadata {
        mode,
        mtime: 1_700_000_000,
        ..Metadata::default()
    }
}

pub fn node(mode: u16, kind: NodeKind) -> Node {
    Node {
        metadata: metadata(mode),
        kind,
    }
}

pub fn directory() -> Node {
    node(0o755, NodeKind::Directory(Vec::new()))
}

pub fn builder() -> TreeBuilder {
    TreeBuilder::new(metadata(0o755))
}

pub fn flist(tree: Tree, store: &Path) -> Flist {
    Flist {
        tree,
        routes: RouteTable(vec![Route::all(format!("dir://{}", store.display()))]),
        tags: Default::default(),
    }
}

/// Bytes that look random and depend on the seed alone.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// Writes the whole device of an image, data included.
pub fn materialise(image: &ErofsImage<'_>, blocks: &Blocks, path: &Path) {
    let file = File::create(path).unwrap();
    image.write_metadata(BufWriter::new(&file)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), image.metadata_blocks() * 4096);
    for extent in image.extents() {
        file.write_all_at(&blocks.0[&extent.block], u64::from(extent.start) * 4096)
            .unwrap();
    }
    file.set_len(image.device_blocks() * 4096).unwrap();
}

/// Lets `fsck.erofs` check a whole image, reading all its data.
pub fn fsck(path: &Path) {
    let output = Command::new("fsck.erofs")
        .arg("--extract")
        .arg(path)
        .output()
        .expect("fsck.erofs is installed");
    let reported = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !reported.contains("<E>"),
        "fsck.erofs: {reported}"
    );
}

/// A loop mount, undone at the end.
pub struct Mount(pub PathBuf);

impl Mount {
    /// `None`, with the reason printed, where this host cannot mount.
    pub fn new(image: &Path, at: &Path) -> Option<Mount> {
        fs::create_dir_all(at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(image)
            .arg(at)
            .output()
            .unwrap();
        if !output.status.success() {
            // Only a host that lacks the means is an excuse; an image the kernel refuses is not.
            let lack = lacking(&[Need::Root, Need::File("/dev/loop-control")]).or_else(|| {
                let known = fs::read_to_string("/proc/filesystems").unwrap();
                (!known.contains("erofs")).then(|| "needs EROFS in the kernel".into())
            });
            match lack {
                Some(lack) => skip(lack),
                None => panic!("mount: {}", String::from_utf8_lossy(&output.stderr)),
            }
            return None;
        }
        Some(Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Number of names that lead to each node.
pub fn links(tree: &Tree) -> HashMap<NodeId, u64> {
    let mut links = HashMap::from([(NodeId::ROOT, 2)]);
    for index in 0..tree.len() as u32 {
        for (_, child) in tree.children(NodeId(index)) {
            if tree.get(*child).entries().is_some() {
                links.entry(*child).and_modify(|n| *n += 2).or_insert(2);
                *links.entry(NodeId(index)).or_insert(0) += 1;
            } else {
                *links.entry(*child).or_insert(0) += 1;
            }
        }
    }
    links
}
