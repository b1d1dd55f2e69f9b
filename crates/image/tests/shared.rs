//! Two homes with one block cache: fetched once, stored once, and what one of them needs is not removed by the other.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::support::*;
use zmachine_flist::{BlockRef, Digest};
use zmachine_image::cache::Adopted;
use zmachine_image::library::{PruneReport, ShareChange, ShareError, blocks_directory};
use zmachine_image::{
    BlockCache, FetchOptions, Fetcher, Image, ImageName, Library, PullPolicy, Reference, ResolveError, Silent,
};

/// Homes `a` and `b` beside the folder `cache`.
struct House {
    dir: tempfile::TempDir,
}

impl House {
    /// Both share the cache.
    fn shared() -> House {
        let house = House::apart();
        for home in ["a", "b"] {
            house.share(home, "cache").unwrap();
        }
        house
    }

    fn apart() -> House {
        let house = House {
            dir: tempfile::tempdir().unwrap(),
        };
        house.library("a");
        house.library("b");
        house
    }

    /// Without links, as homes are known to each other.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn library(&self, home: &str) -> Library {
        Library::open(&self.path(home)).unwrap()
    }

    fn share(&self, home: &str, folder: &str) -> Result<Adopted, ResolveError> {
        ShareChange::begin(&self.path(home), Some(&self.path(folder)))?.make()
    }

    fn leave(&self, home: &str) {
        ShareChange::begin(&self.path(home), None).unwrap().make().unwrap();
    }

    /// The recorded flist as an image of the home, with all its blocks.
    fn pull(&self, home: &str, flist: &str) -> (Image, Vec<BlockRef>) {
        let library = self.library(home).with_fetch_options(FetchOptions {
            stores: vec![dir_url("store")],
            ..quick()
        });
        let path = fixtures().canonicalize().unwrap().join(flist);
        let reference = Reference::parse(path.to_str().unwrap(), &fixtures()).unwrap();
        let image = library.resolve(&reference, PullPolicy::Missing, &Silent).unwrap();
        library.set_name(&ImageName::new("it").unwrap(), &image.digest).unwrap();
        library.fetch_blocks(&image, &Silent).unwrap();
        let blocks = image.open_flist().unwrap().tree.unique_blocks();
        (image, blocks)
    }

    fn prune(&self, home: &str) -> Result<PruneReport, ResolveError> {
        let library = self.library(home);
        let prune = library.begin_prune()?.expect("nobody else is here");
        prune.run(|_| Ok(HashSet::new()))
    }

    /// How many blocks a cache has.
    fn stored(&self, folder: &str) -> usize {
        let shards = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let shards = shards.filter(|shard| shard.path().is_dir());
        shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum()
    }
}

fn are_all_in(cache: &BlockCache, blocks: &[BlockRef]) -> bool {
    blocks.iter().all(|block| cache.get(block).unwrap().is_some())
}

#[test]
fn fifty_machines_of_two_homes_fetch_and_store_each_block_once() {
    let server = Server::of_store(Behaviour::Slow);
    let house = House::shared();
    let blocks = blocks();
    let together = Barrier::new(50);
    std::thread::scope(|scope| {
        for machine in 0..50 {
            let (house, blocks, together, server) = (&house, &blocks, &together, &server);
            scope.spawn(move || {
                // As in a process of its own: nothing is shared but the folder that its home names.
                let folder = blocks_directory(&house.path(["a", "b"][machine % 2])).unwrap();
                let fetcher = Fetcher::new(BlockCache::open(&folder).unwrap(), routes(&[server.url()]), quick());
                together.wait();
                for at in 0..blocks.len() {
                    let block = blocks[(at + machine) % blocks.len()];
                    let plain = fetcher.fetch(&block).unwrap().into_bytes(block.len).unwrap();
                    block.verify_plain(&plain).unwrap();
                }
            });
        }
    });
    assert_eq!(server.requests().len(), blocks.len());
    assert_eq!(house.stored("cache/blocks"), blocks.len());
    assert_eq!((house.stored("a/blocks"), house.stored("b/blocks")), (0, 0));
}

#[test]
fn pruning_in_one_home_keeps_what_the_other_one_has() {
    let house = House::shared();
    let (_, theirs) = house.pull("a", "busybox.fl");
    let (ours, mine) = house.pull("b", "sizes.fl");
    let library = house.library("b");
    library.remove_name(&ImageName::new("it").unwrap()).unwrap();
    let report = house.prune("b").unwrap();
    assert!(report.images == 1 && report.blocks > 0, "{report:?}");
    assert!(!ours.directory.exists() && !are_all_in(library.cache(), &mine));
    assert!(are_all_in(library.cache(), &theirs), "an image of the other home");
    // One without a name is the other home's to remove.
    house.library("a").remove_name(&ImageName::new("it").unwrap()).unwrap();
    assert_eq!(house.prune("b").unwrap(), PruneReport::default());
    let report = house.prune("a").unwrap();
    assert!(report.images == 1 && report.blocks == theirs.len() as u64, "{report:?}");
    assert_eq!(house.stored("cache/blocks"), 0);
}

#[test]
fn the_limit_is_that_of_the_cache_and_takes_nothing_from_machines_of_any_home() {
    let house = House::shared();
    let (image, running) = house.pull("a", "busybox.fl");
    let (_, stopped) = house.pull("b", "sizes.fl");
    let (a, b) = (house.library("a"), house.library("b"));
    a.set_cache_limit(Some(4096)).unwrap();
    assert_eq!(b.cache_limit().unwrap(), Some(4096));
    let home = house.path("a");
    let pinned = |asked: &Path| {
        Ok::<_, ResolveError>(if asked == home {
            [image.digest].into()
        } else {
            [].into()
        })
    };
    let report = b.trim_cache(pinned).unwrap().unwrap();
    assert!(report.blocks > 0 && report.over > 0, "{report:?}");
    assert!(are_all_in(b.cache(), &running) && !are_all_in(b.cache(), &stopped));
    // When the pinned image of the other home is damaged, nothing goes, and the home is named.
    let kept = house.stored("cache/blocks");
    fs::write(image.flist_path(), "damaged").unwrap();
    let error = b.trim_cache(pinned).unwrap_err();
    assert!(error.to_string().contains(home.to_str().unwrap()), "{error}");
    assert_eq!(house.stored("cache/blocks"), kept);
    let usage = b.cache_usage().unwrap();
    assert_eq!(usage.homes, [house.path("a"), house.path("b")]);
    assert_eq!(usage.folder, house.path("cache/blocks"));
}

#[test]
fn nothing_is_removed_while_a_home_can_not_be_read_and_one_that_is_gone_is_forgotten() {
    let house = House::shared();
    let (image, theirs) = house.pull("a", "busybox.fl");
    let flist = fs::read(image.flist_path()).unwrap();
    fs::write(image.flist_path(), "damaged").unwrap();
    let (nobodys, _) = BlockRef::seal(b"of no image");
    let library = house.library("b");
    library.cache().insert(&nobodys, b"of no image").unwrap();
    let refused = |why: &str| {
        let error = house.prune("b").unwrap_err();
        let text = with_causes(&error);
        let home = house.path("a");
        assert!(text.contains(home.to_str().unwrap()) && text.contains(why), "{text}");
        assert!(error.hint().is_some_and(|hint| hint.contains("forgotten")));
        assert_eq!(house.stored("cache/blocks"), theirs.len() + 1);
    };
    refused("image.fl");
    fs::write(image.flist_path(), flist).unwrap();
    // Its disk is not mounted: the folder is there, and empty.
    fs::rename(house.path("a"), house.path("away")).unwrap();
    fs::create_dir(house.path("a")).unwrap();
    refused("images");
    fs::remove_dir(house.path("a")).unwrap();
    fs::write(house.path("cache/homes/broken.json"), "{").unwrap();
    assert!(house.prune("b").unwrap_err().to_string().contains("broken.json"));
    assert_eq!(house.stored("cache/blocks"), theirs.len() + 1);
    fs::remove_file(house.path("cache/homes/broken.json")).unwrap();

    let report = house.prune("b").unwrap();
    assert_eq!(report.forgotten, [house.path("a")]);
    assert_eq!(report.blocks, theirs.len() as u64 + 1);
    assert_eq!(library.homes().unwrap(), [house.path("b")]);
    // Under its new name the home is regarded again, from its first command on.
    house.library("away");
    assert_eq!(library.homes().unwrap(), [house.path("away"), house.path("b")]);
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn pruning_takes_nothing_from_a_home_that_pulls_meanwhile() {
    let house = House::shared();
    let name = ImageName::new("it").unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut pruned = 0;
            while !is_over.load(SeqCst) {
                pruned += house.prune("b").unwrap().blocks;
            }
            assert!(pruned > 0, "it never met a block of nobody's");
        });
        // Blocks of no image: fetched all the same, whenever they vanish.
        scope.spawn(|| {
            let cache = house.library("b").cache().clone();
            let fetcher = Fetcher::new(cache, routes(&[dir_url("store")]), quick());
            while !is_over.load(SeqCst) {
                for block in flist("sizes.fl").tree.unique_blocks() {
                    let plain = fetcher.fetch(&block).unwrap().into_bytes(block.len).unwrap();
                    block.verify_plain(&plain).unwrap();
                }
            }
        });
        for _ in 0..20 {
            let library = house.library("a").with_fetch_options(FetchOptions {
                stores: vec![dir_url("store")],
                ..quick()
            });
            let path = fixtures().canonicalize().unwrap().join("busybox.fl");
            let reference = Reference::parse(path.to_str().unwrap(), &fixtures()).unwrap();
            let image = library.pull(&reference, &name, &Silent).unwrap();
            library.fetch_blocks(&image, &Silent).unwrap();
            let blocks = image.open_flist().unwrap().tree.unique_blocks();
            let is_there = are_all_in(library.cache(), &blocks);
            is_over.fetch_or(!is_there, SeqCst);
            assert!(is_there, "a block of a named image is gone");
            library.remove_name(&name).unwrap();
            house.prune("a").unwrap();
        }
        is_over.store(true, SeqCst);
    });
}

#[test]
fn a_home_brings_its_blocks_along_and_leaves_without_any() {
    let house = House::apart();
    let (_, blocks) = house.pull("a", "busybox.fl");
    house.library("a").set_cache_limit(Some(1 << 30)).unwrap();
    let damaged = house.library("a").cache().path_of(&blocks[0]);
    fs::write(&damaged, vec![0; blocks[0].len as usize]).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let before = inode(&house.library("a").cache().path_of(&blocks[1]));

    let change = ShareChange::begin(&house.path("a"), Some(&house.path("new/cache"))).unwrap();
    assert!(change.is_change() && change.lost_limit() == Some(1 << 30));
    let moved = change.make().unwrap();
    assert_eq!((moved.blocks, moved.damaged), (blocks.len() as u64 - 1, 1));
    let library = house.library("a");
    assert!(are_all_in(library.cache(), &blocks[1..]) && library.cache().get(&blocks[0]).unwrap().is_none());
    assert_eq!(inode(&library.cache().path_of(&blocks[1])), before, "moved, not copied");
    assert!(!house.path("a/blocks").exists() && library.cache_limit().unwrap().is_none());
    let text = |path: &str| fs::read_to_string(house.path(path)).unwrap().replace([' ', '\n'], "");
    let folder = house.path("new/cache");
    assert_eq!(
        text("a/cache.json"),
        format!(r#"{{"version":2,"folder":"{}"}}"#, folder.display())
    );
    assert_eq!(text("new/cache/block-cache.json"), r#"{"version":1}"#);
    let entry = fs::read_dir(folder.join("homes"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let entry = fs::read_to_string(entry).unwrap().replace([' ', '\n'], "");
    assert_eq!(
        entry,
        format!(r#"{{"version":1,"home":"{}"}}"#, house.path("a").display())
    );
    // The same again is no change, and moves what an interruption left.
    let left = BlockCache::open(&house.path("a/blocks")).unwrap();
    left.insert(&BlockRef::seal(b"left").0, b"left").unwrap();
    let again = ShareChange::begin(&house.path("a"), Some(&folder)).unwrap();
    assert!(!again.is_change());
    assert_eq!(again.make().unwrap().blocks, 1);

    house.share("b", "new/cache").unwrap();
    house.leave("a");
    assert_eq!(house.library("b").homes().unwrap(), [house.path("b")]);
    assert_eq!(
        (house.stored("a/blocks"), house.stored("new/cache/blocks")),
        (0, blocks.len())
    );
    assert!(house.library("a").homes().unwrap().is_empty());
    assert_eq!(house.prune("b").unwrap().blocks, blocks.len() as u64);
}

#[test]
fn a_cache_on_another_file_system_works_as_well() {
    use std::os::unix::fs::MetadataExt;
    let house = House::apart();
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    let Ok(other) = tempfile::Builder::new().prefix("zm").tempdir_in("/dev/shm") else {
        return zmachine_testkit::skip("there is no /dev/shm");
    };
    if device(other.path()) == device(&house.path("a")) {
        return zmachine_testkit::skip("/dev/shm is no file system of its own");
    }
    let (_, blocks) = house.pull("a", "busybox.fl");
    let folder = other.path().join("cache");
    let moved = ShareChange::begin(&house.path("a"), Some(&folder))
        .unwrap()
        .make()
        .unwrap();
    assert_eq!(moved.blocks, blocks.len() as u64);
    assert!(are_all_in(house.library("a").cache(), &blocks) && !house.path("a/blocks").exists());
    for block in &blocks {
        let path = house.library("a").cache().path_of(block);
        assert!(path.starts_with(&folder));
        block.verify_plain(&fs::read(path).unwrap()).unwrap();
    }
}

#[test]
fn folders_that_are_no_place_for_a_cache_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::apart();
    fs::create_dir_all(house.path("store/blocks")).unwrap();
    let error = house.share("a", "store").unwrap_err();
    assert!(
        matches!(error, ResolveError::Share(ShareError::NotACache { .. })),
        "{error}"
    );
    // What makes a home is not this crate's: a format and machines.
    fs::write(house.path("b/format"), "{}").unwrap();
    fs::create_dir(house.path("b/machines")).unwrap();
    let error = house.share("a", "b/cache").unwrap_err();
    assert!(
        matches!(error, ResolveError::Share(ShareError::InAHome { .. })),
        "{error}"
    );
    fs::create_dir(house.path("open")).unwrap();
    fs::set_permissions(house.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = house.share("a", "open").unwrap_err();
    assert!(
        matches!(error, ResolveError::Share(ShareError::Writable { .. })),
        "{error}"
    );
    assert!(error.is_usage() && error.hint().unwrap().contains("chmod"));
    assert!(!house.path("a/cache.json").exists() && contents(&house.path("open")).is_empty());
    // One that vanishes is not made again in silence, and can be left.
    house.share("a", "cache").unwrap();
    fs::rename(house.path("cache"), house.path("away")).unwrap();
    let error = Library::open(&house.path("a")).unwrap_err();
    assert!(
        matches!(error, ResolveError::Share(ShareError::Missing { .. })),
        "{error}"
    );
    fs::create_dir(house.path("cache")).unwrap();
    assert!(Library::open(&house.path("a")).is_err(), "an empty mount point");
    house.leave("a");
    assert!(house.library("a").cache().directory().starts_with(house.path("a")));
}

#[test]
fn homes_of_two_users_share_nothing() {
    if let Some(reason) = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]) {
        return zmachine_testkit::skip(&reason);
    }
    let house = House::apart();
    house.share("a", "cache").unwrap();
    let own = |name: &str, user: u32| std::os::unix::fs::chown(house.path(name), Some(user), None).unwrap();
    own("b", 1234);
    let error = house.share("b", "cache").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("user 0") && text.contains("user 1234"), "{text}");
    assert!(house.library("a").homes().unwrap() == [house.path("a")] && !house.path("b/cache.json").exists());
    let error = house.share("b", "new").unwrap_err();
    assert!(
        matches!(error, ResolveError::Share(ShareError::Owners { .. })),
        "{error}"
    );
    assert!(contents(&house.path("new")).is_empty(), "nothing is made there");
    // Another user's home and cache: what root writes there that user cannot remove.
    own("a", 1234);
    own("cache", 1234);
    let error = Library::open(&house.path("a")).unwrap_err();
    assert!(
        matches!(
            error,
            ResolveError::Share(ShareError::OtherUser {
                owner: 1234,
                user: 0,
                ..
            })
        ),
        "{error}"
    );
}

/// A layer of one block, which no store has.
fn add_layer(library: &Library, plain: &[u8]) -> BlockRef {
    let new = library.new_layer().unwrap();
    let frame = new.frame().unwrap();
    let keeper = library.cache().keeper().unwrap();
    let blocks = keeper.keep(&[plain]).unwrap();
    keeper.settle().unwrap();
    let name = Digest::blake2b_32(plain).to_string();
    new.publish(&name, &frame, blocks.clone()).unwrap();
    assert_eq!(library.layer(&name).unwrap().unwrap().blocks, blocks);
    blocks[0]
}

#[test]
fn what_no_store_has_stays_for_every_home_and_comes_along_when_a_home_leaves() {
    let house = House::shared();
    let (a, b) = (house.library("a"), house.library("b"));
    let ours = add_layer(&a, b"a layer of a");
    let theirs = add_layer(&b, b"a layer of b");
    let plain = b"a block that a store has";
    let other = BlockRef::seal(plain).0;
    a.cache().insert(&other, plain).unwrap();
    a.set_cache_limit(Some(1)).unwrap();
    let nobody = |_: &Path| Ok::<_, ResolveError>([].into());
    let report = b.trim_cache(nobody).unwrap().unwrap();
    assert!(report.blocks == 1 && report.over > 0, "{report:?}");
    assert!(are_all_in(b.cache(), &[ours, theirs]) && !are_all_in(b.cache(), &[other]));
    // A list that cannot be read may have any block.
    let list = house
        .path("a/images/layers")
        .join(Digest::blake2b_32(b"a layer of a").to_string())
        .join("blocks");
    let whole = fs::read(&list).unwrap();
    fs::write(&list, "damaged").unwrap();
    assert!(
        b.trim_cache(nobody)
            .unwrap_err()
            .to_string()
            .contains(house.path("a").to_str().unwrap())
    );
    fs::write(&list, whole).unwrap();
    ShareChange::begin(&house.path("a"), None).unwrap().make().unwrap();
    let alone = house.library("a");
    assert!(alone.cache().directory().ends_with("a/blocks") && are_all_in(alone.cache(), &[ours]));
}
