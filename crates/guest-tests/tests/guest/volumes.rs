//! Volumes of containers: made at need, one writer, grown under a running guest and behind a stopped one, kept.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Checks, exec_output, home, inspect, zmachine};
use serde_json::Value;
use zmachine_testkit::{TestHome, Tree};

/// Each file system with a size that it can be made on.
const VOLUMES: [(&str, &str); 3] = [("e", "ext4"), ("b", "btrfs"), ("x", "xfs")];

#[test]
fn volumes_of_every_file_system_are_mounted_grown_and_kept() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home)
        .file("b/image/conf", "from the image\n")
        .file("x/conf", "from the image\n")
        .file("deep/er/e/conf", "from the image\n")
        .file("own/conf", "from the image\n");
    for directory in ["b", "x", "deep/er/e"] {
        let path = tree.root().join(directory);
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).expect("root may");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2750)).expect("its mode");
    }
    let image = tree.pack(&home, "box");
    let mut checks = Checks::default();
    checks.that("what makes no sense is refused and nothing is made", || {
        refusals(&home, &image)
    });
    zmachine(&home, &["volume", "create", "e", "--size", "64M"]).expect_success();
    // As earlier versions made it: the kernel never lets a btrfs of this size grow, not even to the size that it has.
    zmachine(&home, &["volume", "create", "b", "--fs", "btrfs", "--size", "256M"]).expect_success();
    let small = std::fs::File::options()
        .write(true)
        .open(home.path().join("volumes/b/data.img"));
    small
        .and_then(|file| file.set_len(128 << 20))
        .expect("a smaller volume");
    let long = "a-volume-with-a-long-name";
    let words = [
        "run",
        "-d",
        "--name",
        "v",
        "--network",
        "none",
        "-v",
        "e:/deep/er/e",
        "-v",
        "b:/b:fs=btrfs",
        "-v",
        "x:/x:size=320M,fs=xfs",
        "-v",
        "/own:size=32M,nocopy",
        "-v",
        &format!("{long}:/long:size=16M"),
        &image,
        "sleep",
        "10000",
    ];
    zmachine(&home, &words).expect_success();
    checks.that("each is mounted with its file system on a path that was made", || {
        for (target, fstype) in [
            ("/deep/er/e", "ext4"),
            ("/b", "btrfs"),
            ("/x", "xfs"),
            ("/own", "ext4"),
            ("/long", "ext4"),
        ] {
            let line = exec_output(&home, "v", &format!("grep ' {target} ' /proc/mounts"));
            assert_eq!(line.split(' ').nth(2), Some(fstype), "{line}");
        }
        exec_output(
            &home,
            "v",
            "for d in /deep/er/e /b /x /own; do echo kept > $d/file; done; sync",
        );
    });
    checks.that("a fresh one has what the image has in its place, or nothing", || {
        let look = "stat -c '%u:%g %a' /b /x /deep/er/e /own; ls -A /x /deep/er/e /own; cat /b/image/conf";
        let taken = "1000:1000 2750\n".repeat(3);
        assert_eq!(
            exec_output(&home, "v", look),
            format!("{taken}0:0 755\n/deep/er/e:\nconf\nfile\n\n/own:\nfile\n\n/x:\nconf\nfile\nfrom the image")
        );
        exec_output(&home, "v", "rm /x/conf");
    });
    checks.that(
        "the serial number of the disk is the volume's name, or a short form of it",
        || {
            let serials = exec_output(&home, "v", "for f in /sys/block/vd*/serial; do cat $f; echo; done");
            let serials: Vec<&str> = serials.lines().collect();
            assert!(["e", "b", "x"].iter().all(|name| serials.contains(name)), "{serials:?}");
            assert!(
                serials.iter().any(|s| s.starts_with("a-volume-wi-") && s.len() == 20),
                "{serials:?}"
            );
        },
    );
    checks.that("a second machine does not get it, and is told who has it", || {
        let second = zmachine(
            &home,
            &["run", "--rm", "--network", "none", "-v", "e:/e", &image, "true"],
        );
        assert!(
            second.expect_code(125).stderr().contains("in use by the machine 'v'"),
            "{}",
            second.stderr()
        );
        zmachine(
            &home,
            &[
                "create",
                "--name",
                "w",
                "--network",
                "none",
                "-v",
                "e:/e",
                &image,
                "true",
            ],
        )
        .expect_success();
        let second = zmachine(&home, &["start", "w"]);
        assert!(
            second.expect_code(4).stderr().contains("zmachine stop v"),
            "{}",
            second.stderr()
        );
        let removed = zmachine(&home, &["volume", "rm", "e"]);
        assert!(
            removed.expect_code(4).stderr().contains("belongs to the machine"),
            "{}",
            removed.stderr()
        );
        zmachine(&home, &["rm", "w"]).expect_success();
    });
    checks.that("what is deleted in the guest is given back to the host", || {
        let used = || volume(&home, "e")["used_bytes"].as_u64().unwrap();
        exec_output(
            &home,
            "v",
            "dd if=/dev/urandom of=/deep/er/e/big bs=1M count=30 2>/dev/null; sync",
        );
        let full = used();
        exec_output(&home, "v", "rm /deep/er/e/big; sync");
        let trimmed = zmachine(&home, &["exec", "v", "fstrim", "/deep/er/e"]);
        if trimmed.code == 0 {
            assert!(used() + (25 << 20) < full, "{} of {full}", used());
        } else {
            println!("  (this busybox has no fstrim)");
        }
    });
    checks.that("it grows under the guest", || {
        for (name, _) in VOLUMES {
            zmachine(&home, &["volume", "grow", name, "700M"]).expect_success();
            assert!(
                size_kib(&home, name) > 580 << 10,
                "{name} has {} KiB",
                size_kib(&home, name)
            );
        }
        zmachine(&home, &["volume", "grow", "e", "100M"]).expect_code(2);
    });
    checks.that(
        "a snapshot under a guest that writes has a file system that was not in use",
        || {
            snapshots_while_it_writes(&home);
        },
    );
    zmachine(&home, &["kill", "v"]).expect_success();
    for (name, _) in VOLUMES {
        zmachine(&home, &["volume", "grow", name, "1G"]).expect_success();
    }
    zmachine(&home, &["start", "v"]).expect_success();
    checks.that(
        "it grew while the machine was off, and a power cut lost nothing that was synced",
        || {
            for (name, _) in VOLUMES {
                assert!(
                    size_kib(&home, name) > 900 << 10,
                    "{name} has {} KiB",
                    size_kib(&home, name)
                );
            }
            assert_eq!(
                exec_output(&home, "v", "cat /deep/er/e/file /b/file /x/file /own/file"),
                "kept\n".repeat(4).trim_end()
            );
            assert_eq!(exec_output(&home, "v", "ls -A /x"), "file", "what was deleted stays so");
        },
    );
    let restored = zmachine(&home, &["volume", "restore", "e@one"]);
    restored.expect_code(4);
    assert!(restored.stderr().contains("in use by the machine 'v'"), "{restored}");
    zmachine(&home, &["stop", "-t", "1", "v"]).expect_success();
    checks.that("a volume is what it was, and a backup becomes one like it", || {
        restore_and_back_up(&home)
    });
    checks.that("two machines read one volume, and cannot write to it", || {
        let words = ["run", "-d", "--network", "none", "-v", "e:/e:ro", "-v", "copy:/c:ro"];
        for name in ["r1", "r2"] {
            zmachine(
                &home,
                &[&words[..], &["--name", name, &image, "sleep", "10000"]].concat(),
            )
            .expect_success();
            assert_eq!(
                exec_output(&home, name, "cat /e/file; touch /e/no 2>/dev/null || echo refused"),
                "kept\nrefused"
            );
            // Of one instant, and of before the restore.
            let apart = "ls /e/later 2>/dev/null; a=$(cat /c/a) z=$(cat /c/z); echo $((a - z))";
            let apart = exec_output(&home, name, apart);
            assert!(apart == "0" || apart == "1", "{apart}");
        }
        let writer = zmachine(&home, &["start", "v"]);
        assert!(
            writer.expect_code(4).stderr().contains("in use by the machine 'r"),
            "{}",
            writer.stderr()
        );
        zmachine(&home, &["rm", "-f", "r1", "r2"]).expect_success();
    });
    checks.that(
        "what was written just before rm -f is there for the next machine",
        || {
            let volume = ["--network", "none", "-v", "e:/e"];
            let writer = [&["run", "-d", "--name", "w"], &volume[..], &[&image, "sleep", "10000"]].concat();
            zmachine(&home, &writer).expect_success();
            exec_output(&home, "w", "echo just written >/e/late");
            zmachine(&home, &["rm", "-f", "w"]).expect_success();
            let reader = [&["run", "--rm"], &volume[..], &[&image, "cat", "/e/late"]].concat();
            assert_eq!(zmachine(&home, &reader).expect_success().stdout(), "just written\n");
        },
    );
    checks.that("a machine's own volume goes with rm -v, named ones stay", || {
        let id = inspect(&home, "v")["id"].as_str().unwrap().to_owned();
        assert!(names(&home).contains(&format!("{id}-3")));
        zmachine(&home, &["rm", "-v", "v"]).expect_success();
        assert_eq!(names(&home), [long, "b", "back", "copy", "e", "x"]);
        zmachine(&home, &["volume", "rm", long, "b", "back", "copy", "e", "x"]).expect_success();
        zmachine(&home, &["volume", "rm", "e"]).expect_code(3);
    });
}

/// Two counters on each volume, one always the other's or one more.
fn snapshots_while_it_writes(home: &TestHome) {
    let count = "for d in /deep/er/e /b /x; do (i=0; cd $d; while :; do i=$((i+1)); echo $i >a.new; mv a.new a; echo $i >z.new; \
                 mv z.new z; done) >/dev/null 2>&1 & echo $! >>/tmp/pids; done";
    exec_output(home, "v", count);
    let counted = || {
        exec_output(home, "v", "sleep 1; cat /deep/er/e/z")
            .parse::<u64>()
            .expect("a number")
    };
    assert!(counted() > 0);
    for (name, _) in VOLUMES {
        zmachine(home, &["volume", "snapshot", "create", &format!("{name}@one")]).expect_success();
    }
    let before = counted();
    assert!(before < counted(), "it does not go on");
    let data = |name: &str| {
        let place = format!("volumes/{name}/snapshots/one/data.img");
        home.path().join(place).display().to_string()
    };
    // As after an unmount; neither changes anything. (A frozen XFS has something in its log, which the next mount takes from there.)
    for (program, arguments) in [
        ("e2fsck", vec!["-fn".to_owned(), data("e")]),
        ("btrfs", vec!["check".to_owned(), "--readonly".to_owned(), data("b")]),
    ] {
        home.command(std::path::Path::new(program), arguments)
            .finish()
            .expect_success();
    }
    let state = home
        .command(std::path::Path::new("dumpe2fs"), ["-h", &data("e")])
        .finish();
    let state = state.expect_success().stdout();
    assert!(
        state.contains("has_journal") && !state.contains("needs_recovery"),
        "{state}"
    );
    zmachine(home, &["volume", "clone", "e", "copy"]).expect_success();
    exec_output(
        home,
        "v",
        "kill $(cat /tmp/pids); rm -f /x/[az]*; touch /deep/er/e/later; sync",
    );
}

fn restore_and_back_up(home: &TestHome) {
    let store = format!("dir://{}", home.file("backups").display());
    let file = home.file("e.fl").display().to_string();
    let backup = ["volume", "backup", "e", "-o", &file, "--store", &store];
    zmachine(home, &backup).expect_success();
    zmachine(home, &["volume", "restore", "back", "--from", &file]).expect_success();
    let same = |name: &str, other: &str| {
        let data = |name: &str| home.path().join(name).join("data.img").display().to_string();
        let (one, other) = (data(&format!("volumes/{name}")), data(&format!("volumes/{other}")));
        home.command(std::path::Path::new("cmp"), [&one, &other]).finish().code == 0
    };
    assert!(same("e", "back") && !same("e", "e/snapshots/one"));
    // Nothing has changed but the time, so that alone is sent; and no snapshot stays behind.
    let again = zmachine(home, &backup);
    assert!(again.expect_success().stderr().contains(" 1 of them new"), "{again}");
    let kept = zmachine(home, &["volume", "snapshot", "ls", "-q"])
        .expect_success()
        .stdout();
    assert_eq!(kept, "e@one\nb@one\nx@one\n");
    zmachine(home, &["volume", "restore", "e@one"]).expect_success();
    assert!(same("e", "e/snapshots/one"));
    let taken = zmachine(home, &["volume", "restore", "back", "--from", &file]);
    assert!(
        taken
            .expect_code(4)
            .stderr()
            .contains("there is a volume 'back' already"),
        "{taken}"
    );
    zmachine(home, &["volume", "restore", "e@two"]).expect_code(3);
    zmachine(home, &["volume", "snapshot", "create", "e@one"]).expect_code(4);
}

fn refusals(home: &TestHome, image: &str) {
    for (argument, code, word) in [
        ("data", 2, "where"),
        ("data:rel", 2, "absolute"),
        ("data:/a/../b", 2, ".."),
        ("data:/", 2, "root"),
        ("data:/proc/x", 2, "/proc"),
        ("da ta:/a", 2, "da ta"),
        ("zm-root:/a", 2, "zm-"),
        ("data:/a:size=1M", 2, "1 MiB"),
        ("data:/a:size=lots", 2, "lots"),
        ("data:/a:size=64M,fs=btrfs", 2, "btrfs"),
        ("data:/a:fs=ntfs", 2, "ntfs"),
        ("data:/a:soft", 2, "soft"),
        ("data:/a:fs=none", 2, "file system"),
        ("data:/a:ro", 3, "data"),
        ("data:/a:ro:x", 2, "too many"),
        ("./dir:/a", 2, "no directory"),
    ] {
        let made = zmachine(home, &["create", "--network", "none", "-v", argument, image]);
        assert!(
            made.expect_code(code).stderr().contains(word),
            "{argument}: {}",
            made.stderr()
        );
        assert!(made.stderr().contains("hint: "), "{argument}: {}", made.stderr());
    }
    let twice = zmachine(
        home,
        &["create", "--network", "none", "-v", "d:/a", "-v", "d:/b", image],
    );
    assert!(twice.expect_code(2).stderr().contains("twice"));
    zmachine(home, &["volume", "inspect", "data"]).expect_code(3);
    zmachine(home, &["volume", "grow", "data", "1G"]).expect_code(3);
    assert!(names(home).is_empty());
    assert_eq!(zmachine(home, &["ps", "-a", "-q"]).stdout(), "");
}

fn names(home: &TestHome) -> Vec<String> {
    let listed = zmachine(home, &["volume", "ls", "-q"]);
    listed.expect_success().stdout().lines().map(str::to_owned).collect()
}

fn volume(home: &TestHome, name: &str) -> Value {
    let shown = zmachine(home, &["volume", "inspect", name]);
    let all: Value = serde_json::from_str(&shown.expect_success().stdout()).expect("JSON");
    all[0].clone()
}

/// Size of the mounted file system of a volume in KiB.
fn size_kib(home: &TestHome, name: &str) -> u64 {
    let target = if name == "e" {
        "/deep/er/e".to_owned()
    } else {
        format!("/{name}")
    };
    let exec_output = exec_output(home, "v", &format!("df -k {target} | tail -n 1"));
    exec_output
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("df")
}
