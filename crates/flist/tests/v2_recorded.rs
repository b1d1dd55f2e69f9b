//! Format 2 against files made by the original tool.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::support::{decoded, fixture, kind_and_detail, manifest, open, size, stored};
use rusqlite::Connection;
use zmachine_flist::{BlockRef, Flist, Route, Startup};

const TREES: [&str; 3] = ["kinds", "sizes", "rootfs-mini"];
const FILES: [&str; 6] = [
    "kinds.fl",
    "sizes.fl",
    "rootfs-mini.fl",
    "busybox.fl",
    "kinds-sharded.fl",
    "kinds-replicated.fl",
];

#[test]
fn every_recorded_flist_decodes_as_the_independent_decoder_says() {
    for tree in TREES {
        let (flist, decoded) = (open(&format!("{tree}.fl")), decoded(tree));
        let mut expected: BTreeMap<Vec<u8>, &serde_json::Value> = BTreeMap::new();
        for entry in decoded["entries"].as_array().unwrap() {
            expected.insert(entry["path"].as_str().unwrap().into(), entry);
        }
        for (path, id) in flist.tree.walk() {
            let node = flist.tree.get(id);
            let entry = expected
                .remove(&path)
                .unwrap_or_else(|| panic!("{tree}: {path:?} is not in the decoded file"));
            let (kind, detail) = kind_and_detail(node);
            let full_mode = u32::from_str_radix(entry["mode"].as_str().unwrap(), 8).unwrap();
            assert_eq!(u32::from(node.metadata.mode), full_mode & 0o7777, "{path:?}");
            assert_eq!(entry["kind"], kind, "{path:?}");
            assert_eq!(entry["uid"], node.metadata.uid, "{path:?}");
            assert_eq!(entry["gid"], node.metadata.gid, "{path:?}");
            assert_eq!(entry["mtime"], node.metadata.mtime, "{path:?}");
            assert_eq!(entry["ctime"], node.metadata.ctime, "{path:?}");
            assert_eq!(entry["size"], size(node), "{path:?}");
            if kind == "link" {
                assert_eq!(entry["target"], detail, "{path:?}");
            }
            let blocks = node.content().map_or(&[][..], |(_, blocks)| blocks);
            let blocks = blocks
                .iter()
                .map(|block| (block.id.to_string(), block.key.to_string(), block.len));
            let expected_blocks = entry.get("blocks").cloned().unwrap_or(serde_json::json!([]));
            assert_eq!(
                serde_json::json!(blocks.collect::<Vec<_>>()),
                expected_blocks,
                "{path:?}"
            );
        }
        assert!(expected.is_empty(), "{tree}: missing {:?}", expected.keys());
        assert_eq!(decoded["blocks"], flist.tree.counts().blocks);
        assert_eq!(decoded["unique"], flist.tree.unique_blocks().len());
    }
}

#[test]
fn every_recorded_flist_holds_the_tree_that_was_packed() {
    for tree in TREES {
        let (flist, mut manifest) = (open(&format!("{tree}.fl")), manifest(tree));
        for (path, id) in flist.tree.walk() {
            let node = flist.tree.get(id);
            let line = manifest
                .remove(&path)
                .unwrap_or_else(|| panic!("{tree}: {path:?} was not packed"));
            let (kind, detail) = kind_and_detail(node);
            assert_eq!(line[0], kind, "{path:?}");
            assert_eq!(
                u16::from_str_radix(&line[1], 8).unwrap(),
                node.metadata.mode,
                "{path:?}"
            );
            assert_eq!(line[2], node.metadata.uid.to_string(), "{path:?}");
            assert_eq!(line[3], node.metadata.gid.to_string(), "{path:?}");
            if kind != "dir" {
                assert_eq!(line[4], size(node).to_string(), "{path:?}");
            }
            assert_eq!(line[5], node.metadata.mtime.to_string(), "{path:?}");
            assert_eq!(crate::support::unescape(&line[8]), detail.as_bytes(), "{path:?}");
        }
        assert!(manifest.is_empty(), "{tree}: lost {:?}", manifest.keys());
    }
}

#[test]
fn every_stored_block_opens_and_seals_back_to_itself() {
    let mut references: HashMap<String, BlockRef> = HashMap::new();
    for file in FILES {
        references.extend(
            open(file)
                .tree
                .unique_blocks()
                .into_iter()
                .map(|block| (block.id.to_string(), block)),
        );
    }
    let mut opened = BTreeSet::new();
    for store in ["store", "store-shard0", "store-shard1"] {
        for shard in std::fs::read_dir(fixture(store)).unwrap() {
            for block in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                let block = block.unwrap();
                let name = block.file_name().into_string().unwrap();
                let (reference, sealed) = (references[&name], std::fs::read(block.path()).unwrap());
                let plain = reference.open(&sealed).unwrap();
                assert!(
                    BlockRef::seal(&plain) == (reference, sealed),
                    "{name} seals to something else"
                );
                opened.insert(name);
            }
        }
    }
    assert_eq!(opened.len(), references.len(), "a block of a flist is in no store");
}

#[test]
fn sharded_and_replicated_flists_name_the_stores_that_have_each_block() {
    let route = |first, last, store: &str| Route {
        first,
        last,
        url: format!("dir:///srv/flist/{store}"),
    };
    let (plain, sharded, replicated) = (open("kinds.fl"), open("kinds-sharded.fl"), open("kinds-replicated.fl"));
    assert_eq!(plain.routes.0, [route(0, 255, "store")]);
    assert_eq!(
        sharded.routes.0,
        [route(0, 0x7f, "store-shard0"), route(0x80, 0xff, "store-shard1")]
    );
    assert_eq!(
        replicated.routes.0,
        [route(0, 255, "store"), route(0, 0x0f, "store-shard0")]
    );
    assert_eq!(sharded.tags["description"], "kinds sharded");
    assert_eq!((sharded.tags.len(), plain.tags.len()), (3, 0));
    for flist in [&sharded, &replicated] {
        assert_eq!(flist.tree.unique_blocks().len(), plain.tree.unique_blocks().len());
        for block in flist.tree.unique_blocks() {
            for route in flist.routes.for_block(&block.id) {
                let store = route.url.rsplit('/').next().unwrap();
                block.open(&stored(store, &block).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn paths_of_the_bootable_image_resolve_inside_of_it() {
    let tree = open("busybox.fl").tree;
    let hello = tree.resolve(b"work/hello.txt").unwrap();
    let (size, blocks) = tree.get(hello).content().unwrap();
    let plain = blocks[0].open(&stored("store", &blocks[0]).unwrap()).unwrap();
    assert_eq!((plain.as_slice(), size), (&b"hello from a flist\n"[..], 19));
    let shell = tree.resolve(b"/bin/sh").unwrap();
    assert!(tree.get(shell).content().is_some());
    assert_eq!(tree.path_of(shell).unwrap(), b"bin/busybox");
    let startup = tree.lookup(zmachine_flist::startup::PATH).unwrap();
    let block = tree.get(startup).content().unwrap().1[0];
    let text = block.open(&stored("store", &block).unwrap()).unwrap();
    let startup = Startup::parse("busybox.fl:/.startup.toml", &text).unwrap().unwrap();
    assert_eq!(startup.program.as_deref(), Some("/bin/sh"));
    assert_eq!((startup.args.len(), startup.dir.as_deref()), (2, Some("/work")));
    assert_eq!(startup.env["GREETING"], "hi");
}

#[test]
fn a_rewritten_flist_is_the_same_flist_for_us_and_for_readers_of_the_tables() {
    let directory = tempfile::tempdir().unwrap();
    for file in FILES {
        let (flist, copy) = (open(file), directory.path().join(file));
        flist.write(&copy).unwrap();
        assert!(Flist::open(&copy).unwrap() == flist, "{file} changed");
        for query in [
            "SELECT name, size, uid, gid, mode, rdev, ctime, mtime FROM inode ORDER BY 1, 7, 8, 2, 5",
            "SELECT i.name, e.data, typeof(e.data) FROM extra e JOIN inode i USING (ino) ORDER BY 1, 2",
            "SELECT hex(id), hex(key), typeof(id), typeof(key) FROM block ORDER BY 1",
            "SELECT start, \"end\", url FROM route ORDER BY rowid",
            "SELECT key, value FROM tag ORDER BY 1",
            "SELECT name, parent FROM inode WHERE ino = 1",
        ] {
            assert_eq!(rows(&copy, query), rows(&fixture(file), query), "{file}: {query}");
        }
        assert!(
            !rows(&copy, "PRAGMA table_list")
                .iter()
                .any(|row| row.contains("name_bytes")),
            "{file}"
        );
    }
}

fn rows(path: &std::path::Path, query: &str) -> Vec<String> {
    let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut query = db.prepare(query).unwrap();
    let columns = query.column_count();
    let text = |row: &rusqlite::Row<'_>| {
        (0..columns)
            .map(|at| format!("{:?};", row.get_ref(at).unwrap()))
            .collect()
    };
    query
        .query_map([], |row| Ok(text(row)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[test]
fn equal_flists_are_equal_files_and_nothing_else_is_left_beside_them() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("a.fl"), directory.path().join("b.fl"));
    open("kinds-sharded.fl").write(&first).unwrap();
    std::fs::write(&second, "an older file").unwrap();
    Flist::open(&first).unwrap().write(&second).unwrap();
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
    let names: BTreeSet<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, BTreeSet::from(["a.fl".into(), "b.fl".into()]));
}

#[test]
fn a_failed_write_leaves_the_older_file() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("taken.fl");
    std::fs::create_dir(&target).unwrap();
    let error = open("kinds.fl").write(&target).unwrap_err().to_string();
    assert!(error.contains("taken.fl"), "{error}");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn reading_makes_no_file_and_needs_no_write_permission() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a strange %3f?name#.fl");
    std::fs::copy(fixture("kinds.fl"), &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o555)).unwrap();
    let before = std::fs::metadata(&directory).unwrap().modified().unwrap();
    assert!(Flist::open(&path).unwrap() == open("kinds.fl"));
    assert_eq!(std::fs::metadata(&directory).unwrap().modified().unwrap(), before);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}
