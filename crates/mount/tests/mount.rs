//! A mounted flist is the tree that was packed, and says so when it cannot be.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use zmachine_flist::Flist;
use zmachine_image::store::RoutedStore;
use zmachine_image::{BlockCache, FetchOptions, Fetcher, Silent, Timeouts};
use zmachine_mount::{Mount, MountError, Unmounter};
use zmachine_pack::diff::diff;
use zmachine_pack::pack::{PackOptions, pack};

/// A folder with a packed tree and a place to mount it on.
struct Room {
    dir: tempfile::TempDir,
    flist: Flist,
}

impl Room {
    fn new(fill: impl FnOnce(&Path)) -> Room {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "place"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fill(&dir.path().join("source"));
        let flist = packed(dir.path(), "source");
        Room { dir, flist }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> Mounted {
        let cache = BlockCache::open(&self.path("cache")).unwrap();
        let fetcher = Fetcher::new(cache, self.flist.routes.clone(), FetchOptions::default());
        let reported = Arc::new(Mutex::new(Vec::new()));
        let teller = Arc::clone(&reported);
        let mut mount = Mount::new(
            self.flist.tree.clone(),
            fetcher,
            &self.path("place"),
            "a,name",
            move |problem| teller.lock().unwrap().push(problem.to_owned()),
        )
        .unwrap();
        let unmounter = mount.unmounter();
        let server = Some(thread::spawn(move || mount.serve()));
        Mounted {
            unmounter,
            server,
            reported,
        }
    }
}

fn packed(dir: &Path, name: &str) -> Flist {
    let store = RoutedStore::open(&[format!("dir://{}", dir.join("store").display())], Timeouts::default()).unwrap();
    let options = PackOptions {
        routes: store.routes(false),
        ..PackOptions::default()
    };
    pack(&dir.join(name), &store, &options, &Silent).unwrap().0
}

/// A mount that a failed test does not leave behind.
struct Mounted {
    unmounter: Unmounter,
    server: Option<JoinHandle<Result<(), MountError>>>,
    reported: Arc<Mutex<Vec<String>>>,
}

impl Mounted {
    fn end(mut self) -> Vec<String> {
        self.unmounter.end().unwrap();
        self.server.take().unwrap().join().unwrap().unwrap();
        std::mem::take(&mut *self.reported.lock().unwrap())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.server.is_some() {
            // Of no more use to a test that failed already.
            let _ = self.unmounter.end();
        }
    }
}

#[test]
fn packing_a_mount_gives_the_same_flist() {
    let room = Room::new(|source| {
        let big: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
        fs::write(source.join("big"), &big).unwrap();
        fs::hard_link(source.join("big"), source.join("twin")).unwrap();
        fs::write(source.join("empty"), "").unwrap();
        fs::write(source.join("program"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(source.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("big", source.join("link")).unwrap();
        fs::create_dir_all(source.join("a/b/c")).unwrap();
        for number in 0..3000 {
            fs::write(source.join(format!("a/b/{number}")), number.to_string()).unwrap();
        }
        let old = filetime(1_000_000_000, 123_456_789);
        fs::File::open(source.join("program"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        rustix::fs::setxattr(
            source.join("empty"),
            "user.note",
            b"kept",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let fifo = Command::new("mkfifo").arg(source.join("fifo")).status().unwrap();
        assert!(fifo.success());
    });
    let mounted = room.mount();
    let place = room.path("place");
    let again = packed(room.dir.path(), "place");
    let differences = diff(&room.flist.tree, &again.tree);
    assert!(differences.is_empty(), "{differences:?}");

    let program = fs::metadata(place.join("program")).unwrap();
    assert_eq!((program.mtime(), program.mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!(program.mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(place.join("big")).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(place.join("big")).unwrap().ino(),
        fs::metadata(place.join("twin")).unwrap().ino()
    );
    for refused in [
        fs::write(place.join("new"), ""),
        fs::write(place.join("big"), ""),
        fs::remove_file(place.join("big")),
        fs::create_dir(place.join("dir")),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(mounted.end(), [""; 0]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "the place is empty again");
}

#[test]
fn a_block_that_is_gone_is_an_io_error_that_is_told() {
    let room = Room::new(|source| {
        fs::write(source.join("lost"), "content of one block").unwrap();
        fs::write(source.join("empty"), "").unwrap();
    });
    fs::remove_dir_all(room.path("store")).unwrap();
    let mounted = room.mount();
    let error = fs::read(room.path("place/lost")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(fs::read(room.path("place/empty")).unwrap(), b"");
    let reported = mounted.end();
    assert!(!reported.is_empty() && reported[0].contains("lost"), "{reported:?}");
}

#[test]
fn only_a_directory_can_be_mounted_on() {
    let room = Room::new(|_| ());
    fs::write(room.path("file"), "").unwrap();
    for name in ["file", "absent"] {
        let cache = BlockCache::open(&room.path("cache")).unwrap();
        let fetcher = Fetcher::new(cache, room.flist.routes.clone(), FetchOptions::default());
        let refused = Mount::new(room.flist.tree.clone(), fetcher, &room.path(name), "x", |_| ());
        assert!(matches!(refused, Err(MountError::NotADirectory { .. })));
    }
}

fn filetime(seconds: u64, nanoseconds: u32) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::new(seconds, nanoseconds)
}
