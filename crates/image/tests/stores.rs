//! Block stores by themselves, and the cache's promises.

mod support;

use std::os::unix::process::ExitStatusExt;

use support::*;
use zmachine_flist::BlockRef;
use zmachine_image::cache::Presence;
use zmachine_image::{BlockCache, CacheError, StoreError, Timeouts, open_store};

fn open(url: &str) -> Box<dyn zmachine_image::BlockStore> {
    open_store(url, Timeouts::default()).unwrap()
}

#[test]
fn a_block_put_into_a_directory_is_new_once_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&format!("dir://{}/made/on/demand", dir.path().display()));
    let (block, sealed) = BlockRef::seal(b"hello flist\n");
    assert!(matches!(store.get(&block.id), Err(StoreError::MissingDirectory { .. })));
    assert!(store.put(&block.id, &sealed).unwrap());
    assert!(!store.put(&block.id, &sealed).unwrap());
    assert!(store.has(&block.id).unwrap());
    assert_eq!(store.get(&block.id).unwrap(), sealed);
    store.flush().unwrap();
    let hex = block.id.to_string();
    assert_eq!(
        contents(&dir.path().join("made/on/demand")),
        [hex[..2].to_owned(), format!("{}/{hex}", &hex[..2])]
    );
}

#[test]
fn of_two_writers_that_make_a_store_together_one_stores_each_block() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("dir://{}", dir.path().display());
    let writers = [open(&url), open(&url)];
    for text in 0..600 {
        let (block, sealed) = BlockRef::seal(text.to_string().as_bytes());
        // In turns, so that either makes some of the directories.
        let first = text % 2;
        assert!(writers[first].put(&block.id, &sealed).unwrap());
        assert!(!writers[1 - first].put(&block.id, &sealed).unwrap());
        assert_eq!(writers[1 - first].get(&block.id).unwrap(), sealed);
    }
}

#[test]
fn a_torn_block_of_an_old_writer_is_replaced_and_a_whole_one_never_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&format!("dir://{}", dir.path().display()));
    let (block, sealed) = BlockRef::seal(b"hello flist\n");
    let path = dir.path().join(&block.id.to_string()[..2]).join(block.id.to_string());
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &sealed[..3]).unwrap();
    assert!(store.put(&block.id, &sealed).unwrap());
    assert_eq!(store.get(&block.id).unwrap(), sealed);
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let before = inode();
    store.put(&block.id, &sealed).unwrap();
    assert_eq!(inode(), before);
}

#[test]
fn a_block_in_the_flat_place_of_an_old_store_is_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("dir://{}", dir.path().display());
    let (block, sealed) = BlockRef::seal(b"hello flist\n");
    let (other, other_sealed) = BlockRef::seal(b"not there");
    let flat = dir.path().join(block.id.to_string());
    std::fs::write(&flat, &sealed).unwrap();
    let store = open(&url);
    assert!(store.has(&block.id).unwrap() && !store.has(&other.id).unwrap());
    assert!(!store.put(&block.id, &sealed).unwrap());
    assert!(store.put(&other.id, &other_sealed).unwrap());
    // Readers look there also when no writer had a reason to.
    std::fs::remove_file(&flat).unwrap();
    let store = open(&url);
    assert!(!store.has(&block.id).unwrap());
    std::fs::write(&flat, &sealed).unwrap();
    assert_eq!(store.get(&block.id).unwrap(), sealed);
}

#[test]
fn an_oversized_file_in_a_store_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let block = a_block();
    let file = std::fs::File::create(dir.path().join(block.id.to_string())).unwrap();
    file.set_len(1 << 40).unwrap();
    let store = open(&format!("dir://{}", dir.path().display()));
    assert!(matches!(store.get(&block.id), Err(StoreError::TooLong { .. })));
}

#[test]
fn a_web_server_has_blocks_and_takes_none() {
    let server = Server::of_store(Behaviour::Good);
    let store = open(&server.url());
    let (other, sealed) = BlockRef::seal(b"not there");
    assert!(!store.has(&other.id).unwrap());
    assert!(matches!(store.get(&other.id), Err(StoreError::NotFound { .. })));
    assert!(matches!(
        store.put(&other.id, &sealed),
        Err(StoreError::ReadOnly { .. })
    ));
    assert_eq!(
        store.get(&a_block().id).unwrap(),
        std::fs::read(stored(&a_block())).unwrap()
    );
}

fn cache() -> (tempfile::TempDir, BlockCache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlockCache::open(&dir.path().join("blocks")).unwrap();
    (dir, cache)
}

#[test]
fn the_cache_names_blocks_by_their_key_and_leaves_nothing_else() {
    let (_dir, cache) = cache();
    let (block, _) = BlockRef::seal(b"plain");
    for _ in 0..2 {
        assert_eq!(read_all(cache.insert(&block, b"plain").unwrap()), b"plain");
    }
    let key = block.key.to_string();
    assert_eq!(
        contents(cache.directory()),
        [key[..2].to_owned(), format!("{}/{key}", &key[..2])]
    );
}

#[test]
fn bytes_that_are_not_the_block_never_get_into_the_cache() {
    let (_dir, cache) = cache();
    let (block, _) = BlockRef::seal(b"plain");
    for wrong in [&b"plaim"[..], b"", b"plain "] {
        assert!(matches!(
            cache.insert(&block, wrong),
            Err(CacheError::NotTheBlock { .. })
        ));
    }
    assert!(contents(cache.directory()).is_empty());
}

#[test]
fn whatever_has_the_wrong_length_is_no_block() {
    let (_dir, cache) = cache();
    let (block, _) = BlockRef::seal(b"plain");
    let path = cache.path_of(&block);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for wrong in [&b""[..], b"pla", b"plain and more"] {
        std::fs::write(&path, wrong).unwrap();
        assert!(cache.get(&block).unwrap().is_none());
        assert!(!path.exists());
    }
    std::fs::create_dir(&path).unwrap();
    assert!(cache.get(&block).unwrap().is_none());
    std::fs::write(&path, "torn").unwrap();
    assert_eq!(read_all(cache.insert(&block, b"plain").unwrap()), b"plain");
}

#[test]
fn verify_and_scrub_find_what_has_the_right_length_and_wrong_bytes() {
    let (_dir, cache) = cache();
    let (block, _) = BlockRef::seal(b"plain");
    let (good, _) = BlockRef::seal(b"other");
    assert_eq!(cache.verify(&block).unwrap(), Presence::Absent);
    cache.insert(&good, b"other").unwrap();
    for by_scrub in [false, true] {
        cache.insert(&block, b"plain").unwrap();
        assert_eq!(cache.verify(&block).unwrap(), Presence::Good);
        std::fs::write(cache.path_of(&block), b"PLAIN").unwrap();
        if by_scrub {
            let report = cache.scrub().unwrap();
            assert_eq!((report.good, report.removed), (1, 1));
        } else {
            assert_eq!(cache.verify(&block).unwrap(), Presence::Corrupt);
        }
        assert_eq!(cache.verify(&block).unwrap(), Presence::Absent);
    }
}

/// Set in the child of the next test: the directory it fills.
const FILL: &str = "ZMACHINE_TEST_FILL_CACHE";

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_blocks_only() {
    if let Some(dir) = std::env::var_os(FILL) {
        let cache = BlockCache::open(dir.as_ref()).unwrap();
        for n in 0u32.. {
            let plain = n.to_le_bytes().repeat(50_000);
            let (block, _) = BlockRef::seal(&plain);
            cache.insert(&block, &plain).unwrap();
        }
    }
    let (_dir, cache) = cache();
    let me = std::env::current_exe().unwrap();
    let mut blocks = 0;
    for round in 1..=8 {
        let mut child = std::process::Command::new(&me)
            .args(["--exact", "a_writer_killed_at_any_moment_leaves_whole_blocks_only"])
            .env(FILL, cache.directory())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 * round));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let report = cache.scrub().unwrap();
        assert_eq!(report.removed, 0, "round {round}");
        blocks = report.good;
    }
    assert!(blocks > 0, "the child wrote nothing, so nothing was tested");
}

#[test]
fn a_full_disk_is_told_as_such_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a small file system can not be mounted here");
        return;
    }
    let cache = BlockCache::open(&dir.path().join("blocks")).unwrap();
    let plain = vec![7; 300_000];
    let (block, _) = BlockRef::seal(&plain);
    let result = cache.insert(&block, &plain);
    let left = cache.get(&block);
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(
        matches!(&result, Err(e @ CacheError::Full { .. }) if e.hint().is_some()),
        "{result:?}"
    );
    assert!(left.unwrap().is_none());
}
