//! What the program writes, read by a reader that was written from the format's description alone (`read_flist.py`), as the
//! whole tree and as an older reader sees it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, XattrFlags};
use zmachine_testkit::{Need, lacking, skip};

/// `cap_net_raw+ep` in the format of the kernel (version 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

struct Room(tempfile::TempDir);

impl Room {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn says(&self, command: &mut Command) -> String {
        let done = command.current_dir(&self.0).output().unwrap();
        let reported = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?}: {reported}");
        String::from_utf8(done.stdout).unwrap()
    }

    #[track_caller]
    fn zmachine(&self, args: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zmachine"));
        self.says(command.args(args).env("ZMACHINE_HOME", self.path("home")));
    }

    #[track_caller]
    fn reader(&self, args: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_flist.py");
        self.says(Command::new("python3").arg(script).args(args))
    }

    fn store(&self) -> String {
        format!("dir://{}", self.path("store").display())
    }
}

/// One of everything, and names that are no text.
fn furnish(tree: &Path) {
    fs::create_dir_all(tree.join("d/empty")).unwrap();
    fs::write(tree.join("d/small"), "content").unwrap();
    fs::write(tree.join("nothing"), "").unwrap();
    // Easy to compress: the reader decrypts slowly.
    let long: Vec<u8> = (0..150_000u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
    fs::write(tree.join("two blocks"), long).unwrap();
    fs::File::create(tree.join("hole")).unwrap().set_len(600_000).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"caf\xe9")), "latin").unwrap();
    fs::write(tree.join("ça va"), "text").unwrap();
    fs::hard_link(tree.join("d/small"), tree.join("a-name")).unwrap();
    symlink(OsStr::from_bytes(b"/nowhere/\xff"), tree.join("link")).unwrap();
    rustix::fs::mknodat(CWD, tree.join("pipe"), FileType::Fifo, 0o622.into(), 0).unwrap();
    let device = rustix::fs::makedev(300, 70_000);
    rustix::fs::mknodat(CWD, tree.join("char"), FileType::CharacterDevice, 0o600.into(), device).unwrap();
    rustix::fs::mknodat(CWD, tree.join("block"), FileType::BlockDevice, 0o600.into(), device).unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(tree.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("d/small", "user.a", b"b\0c");
    set("nothing", "security.capability", &CAPABILITY);
    set("d", "trusted.t", b"x");
    chown(tree.join("two blocks"), Some(1234), Some(70_000)).unwrap();
    fs::set_permissions(tree.join("two blocks"), PermissionsExt::from_mode(0o4751)).unwrap();
    for (name, time) in [
        ("nothing", UNIX_EPOCH - Duration::new(5, 250_000_000)),
        ("hole", UNIX_EPOCH + Duration::new(1 << 33, 1)),
    ] {
        let file = fs::File::options().append(true).open(tree.join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
}

#[test]
fn an_independent_reader_sees_the_tree_and_an_older_one_a_plain_tree() {
    if let Some(reason) = lacking(&[Need::Root, Need::Command("python3")]) {
        return skip(&reason);
    }
    let room = Room(tempfile::tempdir().unwrap());
    furnish(&room.path("tree"));
    room.zmachine(&["flist", "pack", "tree", "-o", "x.fl", "--store", &room.store()]);
    let whole = room.reader(&["tree/"]);
    assert_eq!(whole.lines().count(), 14);
    assert_eq!(room.reader(&["x.fl", "store"]), whole);
    assert_eq!(
        room.reader(&["--old", "x.fl", "store"]),
        room.reader(&["--old", "tree/"])
    );

    // The same from an archive, where only times of access are not kept, and after copying the blocks elsewhere.
    let tar = [
        "--xattrs",
        "--xattrs-include=*",
        "--format=pax",
        "--sort=name",
        "-C",
        "tree",
        "-czf",
        "tree.tgz",
        ".",
    ];
    room.says(Command::new("tar").args(tar));
    room.zmachine(&["flist", "pack", "tree.tgz", "-o", "y.fl", "--store", &room.store()]);
    assert_eq!(room.reader(&["y.fl", "store"]), whole);
    let other = format!("dir://{}", room.path("other").display());
    room.zmachine(&["flist", "push", "y.fl", "-o", "z.fl", "--store", &other]);
    assert_eq!(room.reader(&["z.fl", "other"]), whole);
}

#[test]
fn a_flist_of_format_1_is_the_same_tree_when_it_was_converted() {
    if let Some(reason) = lacking(&[Need::Root, Need::Command("python3")]) {
        return skip(&reason);
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../flist/tests/fixtures/v1")
        .canonicalize()
        .unwrap();
    let room = Room(tempfile::tempdir().unwrap());
    let blocks = format!("dir://{}", fixtures.join("blocks").display());
    let old = fixtures.join("busybox.flist").display().to_string();
    room.zmachine(&[
        "flist",
        "convert",
        &old,
        "x.fl",
        "--from",
        &blocks,
        "--store",
        &room.store(),
    ]);
    room.zmachine(&["flist", "unpack", &old, "tree", "--store", &blocks]);
    assert_eq!(room.reader(&["x.fl", "store"]), room.reader(&["tree/"]));
}
