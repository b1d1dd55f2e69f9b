//! Block stores by themselves, and the cache's promises.

use std::os::unix::process::ExitStatusExt;

use crate::support::*;
use zmachine_flist::BlockRef;
use zmachine_image::cache::Presence;
use zmachine_image::store::DirStore;
use zmachine_image::{BlockCache, BlockStore, CacheError, Silent, StoreError, Timeouts, open_store};

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
        [
            ".verified".to_owned(),
            key[..2].to_owned(),
            format!("{}/{key}", &key[..2])
        ]
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
    assert_eq!(contents(cache.directory()), [".verified"]);
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

/// What may be in the place of a block: made at a path.
type Impostor<'a> = &'a dyn Fn(&std::path::Path);

#[test]
fn what_has_the_right_length_and_other_bytes_is_no_block_for_anybody() {
    let (_dir, cache) = cache();
    let (block, _) = BlockRef::seal(b"plain");
    let (good, _) = BlockRef::seal(b"other");
    assert_eq!(cache.verify(&block).unwrap(), Presence::Absent);
    cache.insert(&good, b"other").unwrap();
    let path = cache.path_of(&block);
    let fifo = |path: &std::path::Path| {
        std::fs::remove_file(path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap();
    };
    let impostors: [Impostor<'_>; 3] = [
        &|path| std::fs::write(path, b"PLAIN").unwrap(),
        // Whoever opens it must not wait for a writer.
        &fifo,
        &|path| {
            std::fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        },
    ];
    for impostor in impostors {
        for way in 0..5 {
            cache.insert(&block, b"plain").unwrap();
            assert_eq!(cache.verify(&block).unwrap(), Presence::Good);
            assert!(cache.get(&block).unwrap().is_some());
            impostor(&path);
            match way {
                0 => assert!(cache.get(&block).unwrap().is_none()),
                1 => assert_eq!(cache.verify(&block).unwrap(), Presence::Corrupt),
                // Another process.
                2 => assert!(
                    BlockCache::open(cache.directory())
                        .unwrap()
                        .get(&block)
                        .unwrap()
                        .is_none()
                ),
                3 => {
                    let found = cache.check(false, &Silent).unwrap();
                    assert_eq!((found.good, found.damaged.as_slice()), (1, &[path.clone()][..]));
                    assert!(path.symlink_metadata().is_ok());
                    assert_eq!(cache.check(true, &Silent).unwrap().damaged.len(), 1);
                }
                // Whoever has the bytes puts them there.
                _ => assert_eq!(read_all(cache.insert(&block, b"plain").unwrap()), b"plain"),
            }
            let is_back = way == 4;
            assert_eq!(path.symlink_metadata().is_ok(), is_back, "{way}");
        }
    }
    assert_eq!(read_all(cache.get(&good).unwrap().unwrap()), b"other");
}

#[test]
fn a_block_that_was_right_is_not_hashed_again_in_this_boot() {
    let (_dir, cache) = cache();
    let plain = vec![7; BlockRef::SIZE];
    let (block, _) = BlockRef::seal(&plain);
    cache.insert(&block, &plain).unwrap();
    let path = cache.path_of(&block);
    let bytes_read = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let read_by_get = |cache: &BlockCache| {
        let before = bytes_read();
        assert!(cache.get(&block).unwrap().is_some());
        bytes_read() - before
    };
    assert!(read_by_get(&cache) < 10_000);
    // As of another boot: nothing is known.
    std::fs::write(cache.directory().join(".verified"), "").unwrap();
    let cache = BlockCache::open(cache.directory()).unwrap();
    assert!(read_by_get(&cache) >= BlockRef::SIZE as u64);
    assert!(read_by_get(&cache) < 10_000);
    // Its access time is set now and then, which is no change of what it is.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_accessed(old)).unwrap();
    read_by_get(&cache);
    assert!(read_by_get(&BlockCache::open(cache.directory()).unwrap()) < 10_000);
}

#[test]
fn a_stored_block_is_taken_for_what_it_holds_and_not_for_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path().to_owned());
    let (block, sealed) = BlockRef::seal(b"plain");
    let hex = block.id.to_string();
    let path = dir.path().join(&hex[..2]).join(&hex);
    assert!(store.put(&block.id, &sealed).unwrap() && store.holds(&block.id).unwrap());
    assert!(!store.put(&block.id, &sealed).unwrap());
    let mut damaged = sealed.clone();
    damaged[3] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let store = DirStore::new(dir.path().to_owned());
    assert!(store.has(&block.id).unwrap() && !store.holds(&block.id).unwrap());
    assert!(store.put(&block.id, &sealed).unwrap() && store.holds(&block.id).unwrap());
    assert_eq!(store.get(&block.id).unwrap(), sealed);
    // Nobody waits for the other end of a pipe.
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    assert!(!store.has(&block.id).unwrap() && !store.holds(&block.id).unwrap());
    let error = store.get(&block.id).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io { path: at, .. } if *at == path),
        "{error}"
    );
    assert!(store.put(&block.id, &sealed).unwrap());
    assert_eq!(store.get(&block.id).unwrap(), sealed);
}

#[test]
fn a_server_that_forbids_what_it_does_not_have_is_asked_on() {
    let server = Server::of_store(Behaviour::Status(403));
    let store = open(&server.url());
    let error = store.get(&a_block().id).unwrap_err();
    assert!(
        error.may_mean_missing() && error.hint().unwrap().contains("does not have"),
        "{error}"
    );
    assert!(matches!(
        store.has(&a_block().id),
        Err(StoreError::Status { status: 403, .. })
    ));
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
            .args([
                "--exact",
                "stores::a_writer_killed_at_any_moment_leaves_whole_blocks_only",
            ])
            .env(FILL, cache.directory())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 * round));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let report = cache.check(true, &Silent).unwrap();
        assert!(report.damaged.is_empty(), "round {round}");
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
        let lack = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]);
        return zmachine_testkit::skip(lack.unwrap_or_else(|| "a small file system cannot be mounted here".into()));
    }
    let cache = BlockCache::open(&dir.path().join("blocks")).unwrap();
    let plain = vec![7; 300_000];
    let (block, _) = BlockRef::seal(&plain);
    let result = cache.insert(&block, &plain);
    let left = cache.get(&block);
    // It has a file open there.
    drop(cache);
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(
        matches!(&result, Err(e @ CacheError::Full { .. }) if e.hint().is_some()),
        "{result:?}"
    );
    assert!(left.unwrap().is_none());
}
