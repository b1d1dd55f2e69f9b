//! The limit of the block cache: what goes, in which order, and what stays whatever the limit is.

use std::fs::{self, FileTimes, OpenOptions};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::*;
use zmachine_flist::{BlockRef, Digest};
use zmachine_image::library::TrimReport;
use zmachine_image::{BlockCache, Library, PullPolicy, Reference, ResolveError, Silent};

const MINUTE: u64 = 60;

/// Puts a block of 64 KiB into the cache that was used so many minutes ago.
fn insert(cache: &BlockCache, byte: u8, minutes: u64) -> BlockRef {
    let plain = vec![byte; 65536];
    let (block, _) = BlockRef::seal(&plain);
    cache.insert(&block, &plain).unwrap();
    used(cache, &block, minutes);
    block
}

fn used(cache: &BlockCache, block: &BlockRef, minutes: u64) {
    let file = OpenOptions::new().write(true).open(cache.path_of(block)).unwrap();
    let at = SystemTime::now() - Duration::from_secs(minutes * MINUTE);
    file.set_times(FileTimes::new().set_accessed(at)).unwrap();
}

fn home() -> (tempfile::TempDir, Library) {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(&dir.path().join("home")).unwrap();
    let stores = vec![dir_url("store")];
    let library = library.with_fetch_options(zmachine_image::FetchOptions { stores, ..quick() });
    (dir, library)
}

fn trim(library: &Library, pinned: &[Digest]) -> Option<TrimReport> {
    let pinned = |_: &Path| Ok::<_, ResolveError>(pinned.iter().copied().collect());
    library.trim_cache(pinned).unwrap()
}

#[test]
fn what_was_not_read_for_the_longest_time_goes_first() {
    let (_dir, library) = home();
    let cache = library.cache();
    let blocks: Vec<BlockRef> = (0..10).map(|n| insert(cache, n, 100 - u64::from(n))).collect();
    assert_eq!(trim(&library, &[]), None, "there is no limit");
    // The oldest one is read, which makes it the youngest.
    assert!(cache.get(&blocks[0]).unwrap().is_some());
    library.set_cache_limit(Some(10 * 65536)).unwrap();
    assert_eq!(
        trim(&library, &[]),
        Some(TrimReport::default()),
        "it is within its limit"
    );
    library.set_cache_limit(Some(5 * 65536)).unwrap();
    let report = trim(&library, &[]).unwrap();
    // 90 % of the limit are four blocks and a half.
    assert_eq!((report.blocks, report.bytes, report.over), (6, 6 * 65536, 0));
    let left: Vec<usize> = (0..10).filter(|n| cache.path_of(&blocks[*n]).exists()).collect();
    assert_eq!(left, [0, 7, 8, 9]);
    let usage = library.cache_usage().unwrap();
    assert_eq!(
        (usage.blocks, usage.bytes, usage.limit),
        (4, 4 * 65536, Some(5 * 65536))
    );
    library.set_cache_limit(None).unwrap();
    insert(cache, 77, 1);
    assert_eq!(trim(&library, &[]), None);
}

#[test]
fn pinned_images_keep_their_blocks_whatever_the_limit_is() {
    let (_dir, library) = home();
    let cache = library.cache();
    let path = fixtures().canonicalize().unwrap().join("busybox.fl");
    let reference = Reference::parse(path.to_str().unwrap(), &fixtures()).unwrap();
    let image = library.resolve(&reference, PullPolicy::Missing, &Silent).unwrap();
    library.fetch_blocks(&image, &Silent).unwrap();
    let blocks = image.open_flist().unwrap().tree.unique_blocks();
    blocks.iter().for_each(|block| used(cache, block, 1000));
    let other = insert(cache, 1, 0);
    library.set_cache_limit(Some(4096)).unwrap();
    let report = trim(&library, &[image.digest]).unwrap();
    assert_eq!(report.blocks, 1, "{report:?}");
    assert!(
        report.over > 1 << 20 && cache.get(&other).unwrap().is_none(),
        "{report:?}"
    );
    for block in &blocks {
        assert!(cache.get(block).unwrap().is_some());
    }
    // An image that cannot be read might need any of them.
    let flist = fs::read(image.flist_path()).unwrap();
    fs::write(image.flist_path(), "damaged").unwrap();
    let pinned = |_: &Path| Ok::<_, ResolveError>([image.digest].into());
    assert!(library.trim_cache(pinned).is_err());
    assert!(cache.get(&blocks[0]).unwrap().is_some());
    fs::write(image.flist_path(), flist).unwrap();
    let report = trim(&library, &[]).unwrap();
    assert_eq!((report.blocks, report.over), (blocks.len() as u64, 0));
}

#[test]
fn a_limit_of_a_newer_program_is_refused_with_advice() {
    let (dir, library) = home();
    let file = dir.path().join("home/cache.json");
    fs::write(&file, r#"{"version":3,"limit":1}"#).unwrap();
    // Where the blocks are is said there as well.
    let opened = Library::open(&dir.path().join("home")).map(drop);
    for error in [library.cache_limit().unwrap_err(), opened.unwrap_err()] {
        assert!(
            error.to_string().contains("cache.json has version 3") && error.hint().is_some(),
            "{error}"
        );
    }
    library.set_cache_limit(Some(1)).unwrap();
    assert_eq!(library.cache_limit().unwrap(), Some(1));
    fs::write(&file, r#"{"version":1,"limit":7}"#).unwrap();
    assert_eq!(library.cache_limit().unwrap(), Some(7), "what was written yesterday");
}
