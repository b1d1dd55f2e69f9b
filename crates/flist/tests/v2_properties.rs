//! Format 2 for arbitrary trees and arbitrary damage.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::fixture;
use proptest::collection::vec;
use proptest::prelude::*;
use zmachine_flist::{
    BlockId, BlockKey, BlockRef, Digest, Flist, Metadata, Node, NodeId, NodeKind, Route, RouteTable, TreeBuilder,
};

/// Names with bytes that text cannot hold, and ones that collide as text.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(0xff),
        Just(0xfe),
        Just(0xc3),
        Just(0xa9),
        Just(b'a'),
        Just(b'\n'),
        1u8..=255
    ];
    vec(byte, 1..6).prop_filter("a file name", |name| {
        !name.contains(&b'/') && name.as_slice() != b"." && name.as_slice() != b".."
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let times = (any::<i64>(), any::<i64>(), prop_oneof![Just(0u32), 0u32..1_000_000_000]);
    let xattrs = prop::collection::btree_map(vec(1u8..=255, 1..12), vec(any::<u8>(), 0..30), 0..3);
    (0u16..=0o7777, any::<u32>(), any::<u32>(), times, xattrs).prop_map(
        |(mode, uid, gid, (mtime, ctime, mtime_nsec), xattrs)| Metadata {
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            ctime,
            xattrs: xattrs.into_iter().collect(),
        },
    )
}

fn content() -> impl Strategy<Value = NodeKind> {
    (vec(any::<u64>(), 0..4), 1..=BlockRef::SIZE as u32).prop_map(|(seeds, last)| {
        let count = seeds.len();
        let block = |(at, seed): (usize, u64)| BlockRef {
            id: BlockId(Digest::blake2b_32(&seed.to_le_bytes())),
            key: BlockKey(Digest::blake2b_32(&seed.to_be_bytes())),
            len: if at + 1 == count { last } else { BlockRef::SIZE as u32 },
        };
        let blocks: Vec<BlockRef> = seeds.into_iter().enumerate().map(block).collect();
        NodeKind::Regular {
            size: blocks.iter().map(|block| u64::from(block.len)).sum(),
            blocks,
        }
    })
}

fn kind() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        3 => Just(NodeKind::Directory(Vec::new())),
        3 => content(),
        1 => vec(1u8..=255, 1..50).prop_map(NodeKind::Symlink),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| NodeKind::CharDevice { major, minor }),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| NodeKind::BlockDevice { major, minor }),
        1 => prop_oneof![Just(NodeKind::Fifo), Just(NodeKind::Socket)],
    ]
}

prop_compose! {
    fn flist()(
        root in metadata(),
        nodes in vec((any::<prop::sample::Index>(), name(), metadata(), kind()), 0..40),
        links in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), name()), 0..6),
        urls in vec((any::<u8>(), any::<u8>(), "[ -~]{0,20}"), 0..4),
        tags in prop::collection::btree_map("\\PC{0,8}", "\\PC{0,20}", 0..4),
    ) -> Flist {
        let mut builder = TreeBuilder::new(root);
        let (mut directories, mut files, mut taken) = (vec![NodeId::ROOT], Vec::new(), BTreeSet::new());
        for (parent, name, metadata, kind) in nodes {
            let parent = *parent.get(&directories);
            if taken.insert((parent, name.clone())) {
                let is_directory = matches!(kind, NodeKind::Directory(_));
                let id = builder.add(parent, name, Node { metadata, kind }).unwrap();
                if is_directory { directories.push(id) } else { files.push(id) }
            }
        }
        for (parent, file, name) in links {
            let parent = *parent.get(&directories);
            if !files.is_empty() && taken.insert((parent, name.clone())) {
                builder.link(parent, name, *file.get(&files)).unwrap();
            }
        }
        let route = |(a, b, url): (u8, u8, String)| Route { first: a.min(b), last: a.max(b), url };
        let tags: BTreeMap<String, String> = tags;
        Flist { tree: builder.finish().unwrap(), routes: RouteTable(urls.into_iter().map(route).collect()), tags }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_what_is_read(flist in flist()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.fl");
        flist.write(&path).unwrap();
        let read = Flist::open(&path).unwrap();
        prop_assert_eq!(&read, &flist);
        read.write(&path).unwrap();
        prop_assert!(Flist::open(&path).unwrap() == read);
    }

    #[test]
    fn damage_never_panics_and_never_makes_an_impossible_tree(
        file in prop::sample::select(vec!["kinds.fl", "kinds-sharded.fl", "rootfs-mini.fl"]),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.fl");
        let mut bytes = std::fs::read(fixture(file)).unwrap();
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        let started = std::time::Instant::now();
        if let Ok(flist) = Flist::open(&path) {
            prop_assert_eq!(flist.tree.check(), Ok(()));
        }
        prop_assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn any_piece_of_a_file_survives_the_codec(plain in vec(any::<u8>(), 0..5000), repeat in 1usize..20) {
        let plain = plain.repeat(repeat);
        let (block, sealed) = BlockRef::seal(&plain);
        prop_assert_eq!(block.open(&sealed), Ok(plain));
    }
}
