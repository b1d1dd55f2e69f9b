//! Packing real directories into real stores.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use zmachine_flist::{BlockId, BlockRef, Digest, Flist, NodeKind, Route};
use zmachine_image::store::DirStore;
use zmachine_image::{BlockStore, Silent, StoreError};
use zmachine_pack::pack::{PackError, PackOptions, PackReport, pack};

/// A source directory and a store beside it.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Room {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("source")).unwrap();
        Room { directory }
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    fn store(&self) -> DirStore {
        DirStore::new(self.directory.path().join("store"))
    }

    fn pack(&self) -> (Flist, PackReport) {
        pack(&self.source(), &self.store(), &PackOptions::default(), &Silent).unwrap()
    }
}

/// A store in memory that does something to the world at every put.
struct Meddler<F: Fn(usize) + Send + Sync> {
    blocks: Mutex<BTreeMap<BlockId, Vec<u8>>>,
    puts: Mutex<usize>,
    meddle: F,
}

fn meddler<F: Fn(usize) + Send + Sync>(meddle: F) -> Meddler<F> {
    Meddler {
        blocks: Mutex::default(),
        puts: Mutex::default(),
        meddle,
    }
}

impl<F: Fn(usize) + Send + Sync> BlockStore for Meddler<F> {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        let found = self.blocks.lock().unwrap().get(id).cloned();
        found.ok_or(StoreError::NotFound {
            store: self.describe(),
            id: id.to_string(),
        })
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        Ok(self.blocks.lock().unwrap().contains_key(id))
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        let mut puts = self.puts.lock().unwrap();
        (self.meddle)(*puts);
        *puts += 1;
        Ok(self.blocks.lock().unwrap().insert(*id, sealed.to_vec()).is_none())
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../flist/tests/fixtures/v2")
        .join(name)
}

/// Puts the directories, regular files and links of a recorded flist below `to`.
fn unpack(flist: &Flist, to: &Path) {
    let store = DirStore::new(recorded("store"));
    for (path, id) in flist.tree.walk().skip(1) {
        let (node, to) = (flist.tree.get(id), to.join(OsStr::from_bytes(&path)));
        match &node.kind {
            NodeKind::Directory(_) => fs::create_dir(&to).unwrap(),
            NodeKind::Symlink(target) => symlink(OsStr::from_bytes(target), &to).unwrap(),
            NodeKind::Regular { blocks, .. } => {
                let plain = blocks
                    .iter()
                    .map(|block| block.open(&store.get(&block.id).unwrap()).unwrap());
                fs::write(&to, plain.collect::<Vec<_>>().concat()).unwrap();
                fs::set_permissions(&to, PermissionsExt::from_mode(node.metadata.mode.into())).unwrap();
            }
            _ => {}
        }
    }
}

#[test]
fn a_recorded_tree_packs_to_the_blocks_of_the_original_tool() {
    for name in ["kinds.fl", "sizes.fl", "rootfs-mini.fl"] {
        let (room, original) = (Room::new(), Flist::open(&recorded(name)).unwrap());
        unpack(&original, &room.source());
        let (ours, report) = room.pack();
        assert_eq!(report.unique, original.tree.unique_blocks().len() as u64);
        assert_eq!(report.stored, report.unique);
        let mut compared = 0;
        for (path, id) in original.tree.walk() {
            let node = original.tree.get(id);
            if let Some(content) = node.content() {
                let our = ours.tree.get(ours.tree.lookup(&path).unwrap());
                assert_eq!(our.content().unwrap(), content, "{path:?}");
                assert_eq!(our.metadata.mode, node.metadata.mode, "{path:?}");
                compared += 1;
            }
        }
        assert_eq!(compared, report.files);
        for block in original.tree.unique_blocks() {
            let (theirs, ours) = (
                DirStore::new(recorded("store")).get(&block.id),
                room.store().get(&block.id),
            );
            assert!(theirs.unwrap() == ours.unwrap(), "{}", block.id);
        }
    }
}

#[test]
fn packing_the_same_tree_again_stores_nothing() {
    let room = Room::new();
    unpack(&Flist::open(&recorded("sizes.fl")).unwrap(), &room.source());
    let (first, before) = room.pack();
    let (second, after) = room.pack();
    assert!(before.stored > 0 && before.stored_bytes > 0);
    assert_eq!((after.stored, after.stored_bytes, after.unique), (0, 0, before.unique));
    assert!(first == second);
}

#[test]
fn files_of_every_length_around_a_block_come_together_and_equal_ones_are_stored_once() {
    let room = Room::new();
    let lengths = [0, 1, BlockRef::SIZE - 1, BlockRef::SIZE, BlockRef::SIZE + 1];
    for (number, length) in lengths.iter().cycle().take(60).enumerate() {
        let content = vec![b'x'; *length];
        fs::write(room.source().join(format!("{number:02}")), content).unwrap();
    }
    let (flist, report) = room.pack();
    for (number, length) in lengths.iter().cycle().take(60).enumerate() {
        let name = format!("{number:02}");
        let node = flist.tree.get(flist.tree.lookup(name.as_bytes()).unwrap());
        let (size, blocks) = node.content().unwrap();
        let expected: Vec<BlockRef> = vec![b'x'; *length]
            .chunks(BlockRef::SIZE)
            .map(|plain| BlockRef::seal(plain).0)
            .collect();
        assert_eq!((size, blocks), (*length as u64, &expected[..]), "{name}");
    }
    // Of one byte, of one less than a block, and a whole one.
    assert_eq!((report.files, report.unique, report.stored), (60, 3, 3));
}

#[test]
fn holes_become_one_block_of_zeros() {
    let room = Room::new();
    let sparse = fs::File::create(room.source().join("sparse")).unwrap();
    sparse.set_len(8 * BlockRef::SIZE as u64 + 1).unwrap();
    let (_, report) = room.pack();
    assert_eq!((report.blocks, report.unique, report.stored), (9, 2, 2));
    assert!(report.stored_bytes < 30_000);
}

#[test]
fn names_that_are_no_text_keep_their_bytes_and_do_not_swallow_each_other() {
    let room = Room::new();
    for (name, text) in [(&b"caf\xe9"[..], "one"), (b"caf\xe8", "two")] {
        fs::write(room.source().join(OsStr::from_bytes(name)), text).unwrap();
    }
    let (flist, _) = room.pack();
    let file = room.directory.path().join("x.fl");
    flist.write(&file).unwrap();
    let tree = Flist::open(&file).unwrap().tree;
    let key = |name: &[u8]| tree.get(tree.lookup(name).unwrap()).content().unwrap().1[0].key.0;
    assert_eq!(key(b"caf\xe9"), Digest::blake2b_32(b"one"));
    assert_eq!(key(b"caf\xe8"), Digest::blake2b_32(b"two"));
}

#[test]
fn specials_and_links_are_recorded_without_being_opened() {
    let room = Room::new();
    let pipe = room.source().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(room.source().join("socket")).unwrap();
    symlink("/etc", room.source().join("link")).unwrap();
    fs::write(room.source().join("one"), "same").unwrap();
    fs::hard_link(room.source().join("one"), room.source().join("two")).unwrap();
    let (flist, report) = room.pack();
    let kind = |name: &[u8]| flist.tree.get(flist.tree.lookup(name).unwrap()).kind.clone();
    assert_eq!((kind(b"pipe"), kind(b"socket")), (NodeKind::Fifo, NodeKind::Socket));
    assert_eq!(kind(b"link"), NodeKind::Symlink(b"/etc".to_vec()));
    assert_eq!((report.hard_links, report.files, report.unique), (1, 1, 1));
}

#[test]
fn a_file_that_changes_once_is_read_again() {
    let room = Room::new();
    let path = room.source().join("log");
    // Of two blocks: one that is read at once has not the time to change.
    let (first, second) = (vec![1; BlockRef::SIZE + 1], vec![2; BlockRef::SIZE + 2]);
    fs::write(&path, first).unwrap();
    let store = meddler(|puts| {
        if puts == 0 {
            fs::write(&path, &second).unwrap()
        }
    });
    let (flist, _) = pack(&room.source(), &store, &PackOptions::default(), &Silent).unwrap();
    let log = flist.tree.get(flist.tree.lookup(b"log").unwrap());
    let (size, blocks) = log.content().unwrap();
    let keys: Vec<Digest> = blocks.iter().map(|block| block.key.0).collect();
    let digest = |blocks: &[u8]| Digest::blake2b_32(blocks);
    assert_eq!(size, second.len() as u64);
    assert_eq!(
        keys,
        [digest(&second[..BlockRef::SIZE]), digest(&second[BlockRef::SIZE..])]
    );
}

#[test]
fn a_file_that_keeps_changing_is_refused_by_name() {
    let room = Room::new();
    let path = room.source().join("log");
    fs::write(&path, vec![b'x'; BlockRef::SIZE + 1]).unwrap();
    let store = meddler(|puts| fs::write(&path, vec![b'x'; BlockRef::SIZE + 10 + puts]).unwrap());
    let error = pack(&room.source(), &store, &PackOptions::default(), &Silent).unwrap_err();
    assert!(
        matches!(&error, PackError::Changed { path: named } if *named == path),
        "{error}"
    );
}

#[test]
fn a_file_that_shrinks_in_the_middle_of_reading_is_refused_or_read_again() {
    let room = Room::new();
    let path = room.source().join("big");
    let file = fs::File::create(&path).unwrap();
    for block in 0..9u64 {
        file.write_all_at(&vec![block as u8 + 1; BlockRef::SIZE], block * BlockRef::SIZE as u64)
            .unwrap();
    }
    let store = meddler(|puts| {
        if puts == 0 {
            file.set_len(10).unwrap()
        }
    });
    let (flist, report) = pack(&room.source(), &store, &PackOptions::default(), &Silent).unwrap();
    assert_eq!(report.bytes, 10);
    assert_eq!(flist.tree.check(), Ok(()));
}

#[test]
fn a_file_that_vanishes_is_an_error_that_names_it() {
    let room = Room::new();
    for name in ["a", "b"] {
        fs::write(room.source().join(name), name).unwrap();
    }
    let others = |_| {
        let remove = |name| drop(fs::remove_file(room.source().join(name)));
        ["a", "b"].into_iter().for_each(remove);
    };
    let options = PackOptions {
        threads: 1,
        ..PackOptions::default()
    };
    let error = pack(&room.source(), &meddler(others), &options, &Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot open ") && error.contains("source/"),
        "{error}"
    );
}

#[test]
fn a_store_inside_of_the_source_and_a_source_that_is_a_file_are_refused() {
    let room = Room::new();
    let inside = DirStore::new(room.source().join("not/there/yet"));
    let error = pack(&room.source(), &inside, &PackOptions::default(), &Silent).unwrap_err();
    assert!(matches!(error, PackError::StoreInside { .. }), "{error}");
    let file = room.directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = pack(&file, &room.store(), &PackOptions::default(), &Silent).unwrap_err();
    assert!(matches!(error, PackError::NotADirectory { .. }), "{error}");
}

#[test]
fn routes_and_tags_of_the_options_are_those_of_the_flist() {
    let room = Room::new();
    let options = PackOptions {
        routes: vec![Route::all("http://127.0.0.1/blocks")],
        tags: BTreeMap::from([("version".into(), "1".into())]),
        ..PackOptions::default()
    };
    let (flist, report) = pack(&room.source(), &room.store(), &options, &Silent).unwrap();
    assert_eq!((flist.routes.0, flist.tags), (options.routes, options.tags));
    assert_eq!((report.nodes, report.blocks), (1, 0));
}
