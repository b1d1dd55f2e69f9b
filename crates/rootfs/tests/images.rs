//! The images we write against two independent readers: `fsck.erofs`, and the kernel by a loop mount.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use crate::support::{Blocks, Mount, builder, directory, fsck, links, materialise, metadata, node, noise};
use proptest::prelude::*;
use zmachine_flist::{BlockId, BlockKey, BlockRef, Digest, Metadata, Node, NodeId, NodeKind, Tree};
use zmachine_rootfs::erofs::{LayoutError, layout};

const UUID: [u8; 16] = *b"0123456789abcdef";

/// Writes the image, checks it with both readers, and holds every inode against the tree.
fn check(tree: &Tree, blocks: &Blocks) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    materialise(&layout(tree, UUID).unwrap(), blocks, &path);
    fsck(&path);
    if let Some(mount) = Mount::new(&path, &dir.path().join("mnt")) {
        compare(tree, blocks, &mount.0);
    }
}

fn compare(tree: &Tree, blocks: &Blocks, mounted: &Path) {
    let links = links(tree);
    let mut inodes = HashMap::new();
    let mut pending = vec![(mounted.to_owned(), NodeId::ROOT)];
    while let Some((path, id)) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let expected = tree.get(id);
        compare_metadata(expected, &found, &path);
        assert_eq!(found.nlink(), links[&id], "links of {path:?}");
        assert_eq!(
            *inodes.entry(id).or_insert(found.ino()),
            found.ino(),
            "inode of {path:?}"
        );
        compare_xattrs(expected, &path);
        compare_content(expected, blocks, &path, &found);
        pending.extend(
            tree.children(id)
                .iter()
                .map(|(name, child)| (path.join(OsStr::from_bytes(name)), *child)),
        );
    }
    let distinct: HashSet<_> = inodes.values().collect();
    assert_eq!(distinct.len(), tree.len());
}

fn compare_metadata(expected: &Node, found: &fs::Metadata, path: &Path) {
    let meta = &expected.metadata;
    assert_eq!(found.mode() & 0o7777, u32::from(meta.mode), "mode of {path:?}");
    assert_eq!((found.uid(), found.gid()), (meta.uid, meta.gid), "owner of {path:?}");
    assert_eq!(
        (found.mtime(), found.mtime_nsec()),
        (meta.mtime, i64::from(meta.mtime_nsec)),
        "time of {path:?}"
    );
}

fn compare_xattrs(expected: &Node, path: &Path) {
    for (name, value) in &expected.metadata.xattrs {
        let mut found = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name.as_slice(), &mut found).unwrap();
        assert_eq!(&found[..len], value, "{} of {path:?}", String::from_utf8_lossy(name));
    }
}

fn compare_content(expected: &Node, blocks: &Blocks, path: &Path, found: &fs::Metadata) {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    match &expected.kind {
        NodeKind::Directory(entries) => {
            let names: BTreeSet<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
            let wanted: BTreeSet<_> = entries
                .iter()
                .map(|(name, _)| OsStr::from_bytes(name).to_owned())
                .collect();
            assert_eq!(names, wanted, "names in {path:?}");
        }
        NodeKind::Regular { size, blocks: list } => {
            assert_eq!(found.len(), *size);
            let wanted: Vec<u8> = list.iter().flat_map(|block| blocks.0[block].iter().copied()).collect();
            assert!(fs::read(path).unwrap() == wanted, "content of {path:?}");
        }
        NodeKind::Symlink(target) => {
            assert_eq!(
                fs::read_link(path).unwrap().as_os_str().as_bytes(),
                target,
                "target of {path:?}"
            );
        }
        NodeKind::CharDevice { major, minor } => {
            assert!(kind.is_char_device());
            assert_eq!(found.rdev(), rustix::fs::makedev(*major, *minor));
        }
        NodeKind::BlockDevice { major, minor } => {
            assert!(kind.is_block_device());
            assert_eq!(found.rdev(), rustix::fs::makedev(*major, *minor));
        }
        NodeKind::Fifo => assert!(kind.is_fifo()),
        NodeKind::Socket => assert!(kind.is_socket()),
    }
}

#[test]
fn an_empty_tree_is_an_image() {
    check(&builder().finish().unwrap(), &Blocks::default());
}

#[test]
fn files_of_every_size_around_the_boundaries_have_their_content() {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    for len in [0, 1, 4095, 4096, 4097, 524_287, 524_288, 524_289, 1_048_576, 1_600_000] {
        let kind = blocks.regular(&noise(len as u64, len));
        tree.add(NodeId::ROOT, format!("noise{len}").into_bytes(), node(0o644, kind))
            .unwrap();
        let kind = blocks.regular(&vec![0; len]);
        tree.add(NodeId::ROOT, format!("zeros{len}").into_bytes(), node(0o600, kind))
            .unwrap();
    }
    check(&tree.finish().unwrap(), &blocks);
}

#[test]
fn equal_blocks_share_their_address() {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    let content = [noise(1, 524_288), noise(1, 524_288), noise(2, 100)].concat();
    for name in ["a", "b"] {
        let kind = blocks.regular(&content);
        tree.add(NodeId::ROOT, name.into(), node(0o644, kind)).unwrap();
    }
    let tree = tree.finish().unwrap();
    let image = layout(&tree, UUID).unwrap();
    assert_eq!(image.extents().len(), 2);
    assert_eq!(image.device_blocks() - image.metadata_blocks(), 128 + 1);
    check(&tree, &blocks);
}

#[test]
fn files_in_one_run_have_no_table_and_those_that_share_parts_have_one() {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    let (first, second, last) = (noise(1, 524_288), noise(2, 524_288), noise(3, 9000));
    let contents = [
        ("a: one", vec![&last]),
        ("b: a run", vec![&first, &second]),
        ("c: the same run", vec![&first, &second]),
        ("d: its end, then what stood before", vec![&second, &last]),
        ("e: backwards", vec![&second, &first]),
        ("f: twice", vec![&first, &first]),
    ];
    for (name, parts) in &contents {
        let kind = blocks.regular(&parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>());
        tree.add(NodeId::ROOT, name.as_bytes().to_vec(), node(0o644, kind))
            .unwrap();
    }
    let tree = tree.finish().unwrap();
    let image = layout(&tree, UUID).unwrap();
    assert_eq!(image.extents().len(), 3);
    let mut metadata = Vec::new();
    image.write_metadata(&mut metadata).unwrap();
    // The layout of each inode (bits 1 to 3 of its first word), by its number, which counts from 1 in the order of the tree.
    let mut layouts: Vec<(u32, u8)> = (1152..metadata.len() - 64)
        .step_by(32)
        .map(|at| &metadata[at..at + 64])
        .filter(|inode| inode[0] & 1 == 1 && inode[5] & 0xf0 == 0x80 && inode[44] == 1)
        .map(|inode| (inode[20].into(), inode[0] >> 1))
        .collect();
    layouts.sort_unstable();
    assert_eq!(layouts, [(2, 0), (3, 0), (4, 0), (5, 4), (6, 4), (7, 4)]);
    check(&tree, &blocks);
}

#[test]
fn a_directory_of_5000_entries_and_the_longest_names_is_found_whole() {
    let (mut tree, blocks) = (builder(), Blocks::default());
    let big = tree.add(NodeId::ROOT, b"big".to_vec(), directory()).unwrap();
    for i in 0..5000u32 {
        let name = format!("{:x}-{}", i.wrapping_mul(2_654_435_761), "n".repeat(i as usize % 240));
        tree.add(big, name.into_bytes(), node(0o644, NodeKind::Fifo)).unwrap();
    }
    for byte in (1..=255u8).filter(|b| *b != b'/') {
        tree.add(NodeId::ROOT, vec![byte; 255], node(0o644, NodeKind::Socket))
            .unwrap();
    }
    check(&tree.finish().unwrap(), &blocks);
}

#[test]
fn link_targets_of_every_length_class_are_read_back() {
    let mut tree = builder();
    for len in [1, 31, 32, 33, 2000, 2048, 2049, 4031, 4032, 4094, 4095] {
        let link = node(0o777, NodeKind::Symlink(vec![b'a' + (len % 26) as u8; len]));
        for copy in 0..3 {
            tree.add(NodeId::ROOT, format!("{len}-{copy}").into_bytes(), link.clone())
                .unwrap();
        }
    }
    check(&tree.finish().unwrap(), &Blocks::default());
}

#[test]
fn devices_hard_links_owners_and_times_are_kept() {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    for (name, major, minor) in [("null", 1, 3), ("wide", 4095, 1_048_575), ("mid", 259, 256)] {
        let kind = NodeKind::CharDevice { major, minor };
        tree.add(NodeId::ROOT, name.into(), node(0o666, kind)).unwrap();
        let kind = NodeKind::BlockDevice { major, minor };
        tree.add(NodeId::ROOT, format!("b{name}").into(), node(0o660, kind))
            .unwrap();
    }
    let odd = Metadata {
        mode: 0o6751,
        uid: 4_000_000_000,
        gid: 65_536,
        mtime: -86_400 * 365,
        mtime_nsec: 999_999_999,
        ..Metadata::default()
    };
    let sub = tree
        .add(
            NodeId::ROOT,
            b"sub".to_vec(),
            Node {
                metadata: odd.clone(),
                kind: NodeKind::Directory(vec![]),
            },
        )
        .unwrap();
    let file = Node {
        metadata: odd,
        kind: blocks.regular(b"content"),
    };
    let file = tree.add(sub, b"first".to_vec(), file).unwrap();
    tree.link(NodeId::ROOT, b"second".to_vec(), file).unwrap();
    tree.link(sub, b"third".to_vec(), file).unwrap();
    check(&tree.finish().unwrap(), &blocks);
}

#[test]
fn extended_attributes_are_kept_also_beside_inline_tails_and_chunks() {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    for len in [0, 1, 3, 20, 300, 4000, 9000, 60_000] {
        let xattrs = vec![
            (b"security.zmachine".to_vec(), noise(len, len as usize)),
            (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        ];
        for (name, kind) in [
            ("d", NodeKind::Directory(vec![])),
            ("l", NodeKind::Symlink(vec![b't'; 1000])),
            ("f", blocks.regular(&noise(len + 1, 700_000))),
        ] {
            let mut node = node(0o644, kind);
            node.metadata.xattrs = xattrs.clone();
            tree.add(NodeId::ROOT, format!("{name}{len}").into_bytes(), node)
                .unwrap();
        }
    }
    check(&tree.finish().unwrap(), &blocks);
}

/// A block that is only a reference.
fn fake_block(number: u64, len: u32) -> BlockRef {
    let digest = |tag: u8| {
        let mut bytes = [tag; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Digest::from_bytes(&bytes).unwrap()
    };
    BlockRef {
        id: BlockId(digest(1)),
        key: BlockKey(digest(2)),
        len,
    }
}

#[test]
fn what_has_no_representation_is_an_error_that_names_the_file() {
    let layout_of = |kind: NodeKind, metadata: Metadata| {
        let mut tree = builder();
        let sub = tree.add(NodeId::ROOT, b"etc".to_vec(), directory()).unwrap();
        tree.add(sub, b"odd".to_vec(), Node { metadata, kind }).unwrap();
        tree.finish().map(|tree| layout(&tree, UUID).map(|_| ()).unwrap_err())
    };
    let bad = |kind| layout_of(kind, metadata(0o644));
    let error = bad(NodeKind::CharDevice { major: 4096, minor: 0 }).unwrap();
    assert!(
        matches!(&error, LayoutError::DeviceNumber { path, .. } if path == Path::new("/etc/odd")),
        "{error}"
    );
    let small_blocks = vec![fake_block(1, 100), fake_block(2, 100)];
    let error = bad(NodeKind::Regular {
        size: 200,
        blocks: small_blocks,
    });
    assert!(error.is_err() || matches!(error, Ok(LayoutError::Blocks { .. })));
    let nsec = Metadata {
        mtime_nsec: 1_000_000_000,
        ..metadata(0o644)
    };
    let error = layout_of(NodeKind::Fifo, nsec);
    assert!(error.is_err() || matches!(error, Ok(LayoutError::Nanoseconds { .. })));
    let xattr = Metadata {
        xattrs: vec![(b"odd.name".to_vec(), vec![])],
        ..metadata(0o644)
    };
    let error = layout_of(NodeKind::Fifo, xattr);
    assert!(error.is_err() || matches!(error, Ok(LayoutError::Xattr { .. })));
}

#[test]
fn twelve_thousand_files_are_laid_out_fast_and_always_the_same() {
    let tree = wide_tree(120, 100);
    let started = Instant::now();
    let write = || {
        let mut bytes = Vec::new();
        layout(&tree, UUID).unwrap().write_metadata(&mut bytes).unwrap();
        bytes
    };
    let first = write();
    let per_inode = first.len() / tree.len();
    println!(
        "{} inodes: {} bytes ({per_inode} each) in {:?}",
        tree.len(),
        first.len(),
        started.elapsed()
    );
    // 64 of the inode, 34 of the name, and some that the ends of blocks leave.
    assert!(per_inode < 110, "{per_inode} bytes per inode");
    assert!(first == write());
}

#[test]
#[ignore = "takes a GB of memory; run by hand"]
fn a_million_inodes_are_laid_out() {
    let tree = wide_tree(1000, 1000);
    let started = Instant::now();
    let image = layout(&tree, UUID).unwrap();
    image.write_metadata(std::io::sink()).unwrap();
    println!(
        "{} inodes, {} metadata blocks in {:?}",
        tree.len(),
        image.metadata_blocks(),
        started.elapsed()
    );
}

fn wide_tree(directories: u64, files: u64) -> Tree {
    let mut tree = builder();
    for d in 0..directories {
        let dir = tree
            .add(NodeId::ROOT, format!("directory-{d}").into_bytes(), directory())
            .unwrap();
        for f in 0..files {
            let kind = NodeKind::Regular {
                size: 5000,
                blocks: vec![fake_block(d * files + f, 5000)],
            };
            tree.add(dir, format!("some-file-name-{f}.txt").into_bytes(), node(0o644, kind))
                .unwrap();
        }
    }
    tree.finish().unwrap()
}

/// One step of making a random tree.
#[derive(Debug, Clone)]
struct Step {
    parent: prop::sample::Index,
    name: Vec<u8>,
    what: What,
    metadata: Metadata,
}

#[derive(Debug, Clone)]
enum What {
    Directory,
    File(usize),
    Symlink(Vec<u8>),
    Device(u32, u32),
    Fifo,
    HardLink(prop::sample::Index),
}

fn byte() -> impl Strategy<Value = u8> {
    any::<u8>().prop_filter("a byte of a name", |b| *b != 0 && *b != b'/')
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        3 => Just(What::Directory),
        3 => prop_oneof![Just(0usize), 1..9000usize, Just(524_288), Just(524_300)].prop_map(What::File),
        2 => prop::collection::vec(byte(), 1..600).prop_map(What::Symlink),
        1 => (0..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| What::Device(major, minor)),
        1 => Just(What::Fifo),
        1 => any::<prop::sample::Index>().prop_map(What::HardLink),
    ];
    let metadata = (
        0..0o10000u16,
        any::<u32>(),
        any::<u32>(),
        -(1i64 << 40)..(1 << 40),
        0..1_000_000_000u32,
    );
    let xattr = prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..200));
    (
        any::<prop::sample::Index>(),
        prop::collection::vec(byte(), 1..40),
        what,
        metadata,
        xattr,
    )
        .prop_map(|(parent, name, what, (mode, uid, gid, mtime, mtime_nsec), xattr)| {
            let xattrs = xattr.map(|value| (b"trusted.x".to_vec(), value)).into_iter().collect();
            let metadata = Metadata {
                mode,
                uid,
                gid,
                mtime,
                mtime_nsec,
                ctime: 0,
                xattrs,
            };
            Step {
                parent,
                name,
                what,
                metadata,
            }
        })
}

fn grow(steps: Vec<Step>) -> (Tree, Blocks) {
    let (mut tree, mut blocks) = (builder(), Blocks::default());
    let (mut directories, mut others) = (vec![NodeId::ROOT], Vec::new());
    let mut taken = HashSet::new();
    for step in steps {
        let parent = *step.parent.get(&directories);
        let is_special = step.name == b"." || step.name == b"..";
        if is_special || !taken.insert((parent, step.name.clone())) {
            continue;
        }
        let kind = match step.what {
            What::Directory => NodeKind::Directory(vec![]),
            What::File(len) => blocks.regular(&noise(len as u64 % 7, len)),
            What::Symlink(target) => NodeKind::Symlink(target),
            What::Device(major, minor) => NodeKind::CharDevice { major, minor },
            What::Fifo => NodeKind::Fifo,
            What::HardLink(_) if others.is_empty() => continue,
            What::HardLink(target) => {
                tree.link(parent, step.name, *target.get(&others)).unwrap();
                continue;
            }
        };
        let is_directory = matches!(kind, NodeKind::Directory(_));
        let id = tree
            .add(
                parent,
                step.name,
                Node {
                    metadata: step.metadata,
                    kind,
                },
            )
            .unwrap();
        if is_directory {
            directories.push(id)
        } else {
            others.push(id)
        }
    }
    (tree.finish().unwrap(), blocks)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_tree_reads_back_as_it_was(steps in prop::collection::vec(step(), 0..120)) {
        let (tree, blocks) = grow(steps);
        check(&tree, &blocks);
    }
}
