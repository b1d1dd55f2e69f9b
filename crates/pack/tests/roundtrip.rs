//! From a directory to a flist and back, and what is found on the way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, XattrFlags};
use zmachine_flist::{Flist, Metadata, Node, NodeId, NodeKind, RouteTable, TreeBuilder};
use zmachine_image::store::RoutedStore;
use zmachine_image::{BlockCache, BlockStore, FetchOptions, Fetcher, Silent, Timeouts};
use zmachine_pack::copy::{convert, push};
use zmachine_pack::diff::diff;
use zmachine_pack::pack::{PackOptions, PackReport, pack};
use zmachine_pack::unpack::{UnpackError, UnpackOptions, unpack};
use zmachine_pack::verify::verify;

struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Room {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        Room { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self, name: &str) -> RoutedStore {
        RoutedStore::open(&[format!("dir://{}", self.path(name).display())], Timeouts::default()).unwrap()
    }

    fn pack(&self) -> (Flist, PackReport) {
        self.pack_with(PackOptions::default())
    }

    fn pack_with(&self, options: PackOptions) -> (Flist, PackReport) {
        let store = self.store("store");
        let options = PackOptions {
            routes: store.routes(false),
            ..options
        };
        let (flist, report) = pack(&self.path("source"), &store, &options, &Silent).unwrap();
        // Through the file, as users have it.
        flist.write(&self.path("x.fl")).unwrap();
        (Flist::open(&self.path("x.fl")).unwrap(), report)
    }

    fn fetcher(&self, flist: &Flist) -> Fetcher {
        let cache = BlockCache::open(&self.path("cache")).unwrap();
        Fetcher::new(cache, flist.routes.clone(), FetchOptions::default())
    }

    fn unpack(&self, flist: &Flist, to: &str) -> Result<(), UnpackError> {
        let options = UnpackOptions::default();
        unpack(flist, &self.path(to), &self.fetcher(flist), options, &Silent).map(drop)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything that a file system shows of a tree, times of access and change apart.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut listing = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = match () {
            () if stat.is_file() => format!("{:?}", zmachine_flist::Digest::blake2b_32(&fs::read(&path).unwrap())),
            () if stat.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => String::new(),
        };
        let (size, links) = if stat.is_dir() {
            (0, 0)
        } else {
            (stat.len(), stat.nlink())
        };
        let first = inodes
            .entry(stat.ino())
            .or_insert_with(|| path.strip_prefix(root).unwrap().to_owned())
            .clone();
        let xattr = |name: &str| {
            let mut value = [0; 256];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).ok();
            length.map(|length| value[..length].to_vec())
        };
        let xattrs = ["user.zmachine", "security.capability", "system.posix_acl_access"].map(xattr);
        let line = format!(
            "{:o} {}:{} {size} {}.{:09} {} {links} {:?} {content} {xattrs:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.rdev(),
            if stat.is_dir() { PathBuf::new() } else { first },
        );
        listing.insert(path.strip_prefix(root).unwrap().to_owned(), line);
        if stat.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    listing
}

/// A tree with one of everything that the format can hold.
fn furnish(source: &Path) {
    fs::create_dir_all(source.join("d/empty")).unwrap();
    fs::write(source.join("d/small"), "content").unwrap();
    fs::write(source.join("big"), vec![7; 1_300_000]).unwrap();
    fs::write(source.join("empty"), "").unwrap();
    let holes = fs::File::create(source.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"end", 3 << 20).unwrap();
    fs::hard_link(source.join("d/small"), source.join("other-name")).unwrap();
    symlink("/nowhere/../else", source.join("link")).unwrap();
    rustix::fs::mknodat(CWD, source.join("pipe"), FileType::Fifo, 0o622.into(), 0).unwrap();
    rustix::fs::lsetxattr(source.join("big"), "user.zmachine", b"value\0\n", XattrFlags::empty()).unwrap();
    fs::set_permissions(source.join("d"), PermissionsExt::from_mode(0o555)).unwrap();
    fs::set_permissions(source.join("d/small"), PermissionsExt::from_mode(0o4750)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(source.join("big"), Some(1234), Some(70_000)).unwrap();
        fs::set_permissions(source.join("big"), PermissionsExt::from_mode(0o2755)).unwrap();
        // `cap_net_raw+ep` in the format of the kernel (version 2).
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::lsetxattr(
            source.join("empty"),
            "security.capability",
            &capability,
            XattrFlags::empty(),
        )
        .unwrap();
        let device = rustix::fs::makedev(300, 70_000);
        rustix::fs::mknodat(
            CWD,
            source.join("device"),
            FileType::CharacterDevice,
            0o600.into(),
            device,
        )
        .unwrap();
    }
    let time = Timespec {
        tv_sec: -5,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    for name in ["link", "big", "d"] {
        rustix::fs::utimensat(CWD, source.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let room = Room::new();
    furnish(&room.path("source"));
    let (flist, report) = room.pack();
    assert_eq!(report.hard_links, 1);
    if is_root() {
        room.unpack(&flist, "target").unwrap();
        assert_eq!(listing(&room.path("target")), listing(&room.path("source")));
    } else {
        let options = UnpackOptions {
            unprivileged: true,
            ..UnpackOptions::default()
        };
        unpack(&flist, &room.path("target"), &room.fetcher(&flist), options, &Silent).unwrap();
    }
    let holes = fs::metadata(room.path("target/holes")).unwrap();
    assert!(holes.blocks() * 512 < 1 << 20, "holes were filled");
}

#[test]
fn a_second_pack_with_the_first_one_at_hand_seals_and_stores_nothing() {
    let room = Room::new();
    furnish(&room.path("source"));
    let (first, report) = room.pack();
    assert!(report.stored > 0);
    let known = first.tree.unique_blocks();
    let (second, report) = room.pack_with(PackOptions {
        known: known.clone(),
        ..PackOptions::default()
    });
    assert_eq!((report.stored, &second), (0, &first));
    // A block that the store has lost is stored again, whatever the earlier flist says.
    fs::remove_dir_all(room.path("store")).unwrap();
    let (third, report) = room.pack_with(PackOptions {
        known,
        ..PackOptions::default()
    });
    assert_eq!((report.stored, &third), (report.unique, &first));
}

#[test]
fn unpacking_into_something_is_refused_and_a_failed_one_leaves_nothing() {
    let room = Room::new();
    fs::write(room.path("source/a"), "a").unwrap();
    fs::write(room.path("source/b"), "b").unwrap();
    let (flist, _) = room.pack();
    let refused = room.unpack(&flist, "source");
    assert!(matches!(refused, Err(UnpackError::NotEmpty { .. })));
    let block = flist.tree.unique_blocks()[1].id.to_string();
    fs::remove_file(room.path("store").join(&block[..2]).join(&block)).unwrap();
    assert!(matches!(room.unpack(&flist, "new"), Err(UnpackError::Fetch { .. })));
    assert!(!room.path("new").exists());
    fs::create_dir(room.path("made")).unwrap();
    assert!(room.unpack(&flist, "made").is_err());
    assert_eq!(fs::read_dir(room.path("made")).unwrap().count(), 0);
}

#[test]
fn links_of_a_tree_lead_nothing_outside_of_the_target() {
    let room = Room::new();
    fs::create_dir(room.path("outside")).unwrap();
    let node = |kind| Node {
        metadata: Metadata {
            mode: 0o777,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: 7,
            ..Metadata::default()
        },
        kind,
    };
    let outside = room.path("outside").into_os_string().into_encoded_bytes();
    let mut builder = TreeBuilder::new(node(NodeKind::Fifo).metadata);
    builder
        .add(NodeId::ROOT, b"a".to_vec(), node(NodeKind::Symlink(outside)))
        .unwrap();
    builder
        .add(
            NodeId::ROOT,
            b"loop".to_vec(),
            node(NodeKind::Symlink(b"loop".to_vec())),
        )
        .unwrap();
    builder
        .add(
            NodeId::ROOT,
            b"up".to_vec(),
            node(NodeKind::Symlink(b"../outside".to_vec())),
        )
        .unwrap();
    let flist = Flist {
        tree: builder.finish().unwrap(),
        routes: RouteTable::default(),
        tags: BTreeMap::new(),
    };
    let before = fs::metadata(room.path("outside")).unwrap();
    room.unpack(&flist, "target").unwrap();
    let after = fs::metadata(room.path("outside")).unwrap();
    assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
    assert_eq!(fs::read_dir(room.path("outside")).unwrap().count(), 0);
    assert_eq!(fs::symlink_metadata(room.path("target/up")).unwrap().mtime(), 7);
}

#[test]
fn verify_names_every_bad_copy_with_its_file() {
    let room = Room::new();
    fs::write(room.path("source/good"), "good").unwrap();
    fs::write(room.path("source/bad"), "bad").unwrap();
    fs::write(room.path("source/missing"), "missing").unwrap();
    let (mut flist, _) = room.pack();
    let whole = verify(&flist, &[], Timeouts::default(), &Silent).unwrap();
    assert_eq!((whole.blocks, whole.good, whole.bad), (3, 3, 0));
    let stored = |name: &[u8]| {
        let id = flist.tree.lookup(name).unwrap();
        let id = flist.tree.get(id).content().unwrap().1[0].id.to_string();
        room.path("store").join(&id[..2]).join(id)
    };
    let mut bytes = fs::read(stored(b"bad")).unwrap();
    bytes[3] ^= 1;
    fs::write(stored(b"bad"), bytes).unwrap();
    fs::remove_file(stored(b"missing")).unwrap();
    flist.routes.0.push(zmachine_flist::Route::all("http://127.0.0.1:1/"));
    let report = verify(&flist, &[], Timeouts::default(), &Silent).unwrap();
    assert_eq!((report.good, report.bad), (1, 5));
    let of_store = report.list.iter().filter(|bad| bad.store.starts_with("dir:"));
    let named: Vec<_> = of_store
        .map(|bad| (bad.file.as_str(), bad.problem.contains("digest")))
        .collect();
    assert_eq!(named, [("/bad", true), ("/missing", false)]);
    assert_eq!(report.dead_stores.len(), 1);
}

#[test]
fn a_pushed_flist_needs_the_old_store_no_longer() {
    let room = Room::new();
    furnish(&room.path("source"));
    let (flist, _) = room.pack();
    let store = room.store("new");
    let (pushed, report) = push(&flist, &room.fetcher(&flist), &store, store.routes(false), &Silent).unwrap();
    assert_eq!(report.stored, report.blocks);
    fs::remove_dir_all(room.path("store")).unwrap();
    assert_eq!(verify(&pushed, &[], Timeouts::default(), &Silent).unwrap().bad, 0);
    assert!(diff(&flist.tree, &pushed.tree).is_empty());
    let (_, again) = push(&pushed, &room.fetcher(&pushed), &store, store.routes(false), &Silent).unwrap();
    assert_eq!(again.stored, 0);
}

#[test]
fn a_recorded_flist_of_format_1_converts_to_the_same_files() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flist/tests/fixtures/v1");
    let room = Room::new();
    for tree in ["kinds", "sizes", "busybox", "rootfs-mini"] {
        let old = Flist::open(&recorded.join(format!("{tree}.flist"))).unwrap();
        let options = FetchOptions {
            stores: vec![format!(
                "dir://{}",
                recorded.canonicalize().unwrap().join("blocks").display()
            )],
            ..FetchOptions::default()
        };
        let cache = BlockCache::open(&room.path("cache")).unwrap();
        let fetcher = Fetcher::new(cache, old.routes.clone(), options);
        let store = room.store("store");
        let (new, report) = convert(&old, &fetcher, &store, store.routes(false), &Silent).unwrap();
        assert!(diff(&old.tree, &new.tree).is_empty());
        assert_eq!((&old.tags, report.files), (&new.tags, old.tree.counts().files));
        for (path, id) in old.tree.walk() {
            let Some((_, blocks)) = old.tree.get(id).content() else {
                continue;
            };
            let plain: Vec<u8> = blocks
                .iter()
                .flat_map(|block| fetcher.fetch_uncached(block).unwrap().1)
                .collect();
            let new_id = new.tree.lookup(&path).unwrap();
            let new_blocks = new.tree.get(new_id).content().unwrap().1;
            let open = |block: &zmachine_flist::BlockRef| block.open(&store.get(&block.id).unwrap()).unwrap();
            assert!(new_blocks.iter().flat_map(open).eq(plain), "{path:?}");
        }
    }
}
