//! Blocks: fetched when they are read, once; and what a guest sees when one cannot be had.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, exec_output, home, inspect, noise, sh, until, zmachine};

const READABLE: &str = "cat /good.bin | wc -c";

#[test]
fn a_bad_block_costs_one_file_until_the_store_is_mended() {
    let Some(home) = home() else { return };
    let corrupt = only_block(&home, "corrupt", 1);
    let missing = only_block(&home, "missing", 2);
    let tree = ["corrupt", "missing"]
        .iter()
        .zip(1..)
        .fold(Tree::busybox(&home), |tree, (name, seed)| {
            tree.file(&format!("{name}.bin"), noise(seed, 100_000))
        });
    let image = tree.file("good.bin", noise(3, 100_000)).pack(&home, "blocks");
    zmachine(&home, &["run", "-d", "--init", "--name", "m", &image, "sleep", "1000"]).expect_success();
    let healthy = fs::read(&corrupt).expect("a stored block");
    let mut damaged = healthy.clone();
    damaged[50] ^= 1;
    fs::write(&corrupt, damaged).expect("a damaged block");
    let away = home.file("away");
    fs::rename(&missing, &away).expect("a block less");

    let mut checks = Checks::default();
    checks.that("a damaged block is an error of its file", || {
        unreadable(&home, "corrupt", &corrupt)
    });
    checks.that("so is a missing one", || unreadable(&home, "missing", &missing));
    checks.that("other files are fine", || {
        assert_eq!(exec_output(&home, "m", READABLE), "100000")
    });
    checks.that("inspect counts them", || {
        until("failed blocks in the counters", Duration::from_secs(20), || {
            let counters = &inspect(&home, "m")["state"]["rootfs_counters"];
            (counters["blocks_failed"].as_u64() >= Some(2)).then_some(())
        });
    });
    fs::write(&corrupt, healthy).expect("a mended block");
    fs::rename(&away, &missing).expect("the block again");
    checks.that("a mended store is read again", || {
        for (name, seed) in [("corrupt", 1), ("missing", 2)] {
            // A failed block is left alone for a moment before it is asked for again.
            until(&format!("{name}.bin as it was"), Duration::from_secs(20), || {
                let read = zmachine(&home, &["exec", "m", "cat", &format!("/{name}.bin")]);
                (read.code == 0 && read.stdout_bytes == noise(seed, 100_000)).then_some(())
            });
        }
    });
    zmachine(&home, &["stop", "m"]).expect_success();
    fs::rename(home.file("store"), home.file("gone")).expect("no store");
    checks.that("without its store, what was read once is there", || {
        zmachine(&home, &["start", "m"]).expect_success();
        assert_eq!(exec_output(&home, "m", "cat /*.bin | wc -c"), "300000");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}

/// The error reaches the guest, the log names the block.
fn unreadable(home: &TestHome, name: &str, block: &Path) {
    let read = sh(home, "m", &format!("cat /{name}.bin > /dev/null"));
    assert!(read.expect_code(1).stderr().contains("Input/output error"), "{read}");
    let id = block
        .file_name()
        .expect("a block's name")
        .to_string_lossy()
        .into_owned();
    // The files are looked up in the background.
    until(
        &format!("/{name}.bin in the monitor's log"),
        Duration::from_secs(20),
        || {
            let log = zmachine(home, &["logs", "--source", "monitor", "m"]).stdout();
            assert!(log.contains(&id), "no block {id} in the monitor's log:\n{log}");
            log.contains(&format!("/{name}.bin")).then_some(())
        },
    );
}

/// Stores a file's only block alone, to know which one it is.
fn only_block(home: &TestHome, name: &str, seed: u64) -> PathBuf {
    let before = stored(home);
    Tree::empty(home, name)
        .file("file", noise(seed, 100_000))
        .pack(home, name);
    let new: Vec<PathBuf> = stored(home).difference(&before).cloned().collect();
    assert_eq!(new.len(), 1, "{new:?}");
    new[0].clone()
}

fn stored(home: &TestHome) -> BTreeSet<PathBuf> {
    let folders = fs::read_dir(home.file("store")).into_iter().flatten().flatten();
    folders
        .flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten())
        .map(|file| file.path())
        .collect()
}

#[test]
fn a_large_image_starts_with_a_small_part_of_it_and_then_offline() {
    const FILES: u64 = 100;
    const FILE_BYTES: u64 = 4 << 20;
    const BLOCK: u64 = 512 << 10;
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home).folder("big", 0o755);
    for file in 0..FILES {
        distinct_blocks(
            &tree.root().join(format!("big/{file}")),
            file,
            FILE_BYTES / BLOCK,
            BLOCK,
        );
    }
    let image = tree.pack(&home, "large");
    assert!(
        stored(&home).len() as u64 > FILES * FILE_BYTES / BLOCK,
        "the blocks are distinct"
    );
    zmachine(&home, &["run", "--name", "once", &image, "true"]).expect_success();
    let fetched = inspect(&home, "once")["state"]["rootfs_counters"]["bytes_fetched"]
        .as_u64()
        .expect("a number");
    let limit = FILES * FILE_BYTES * 4 / 100;
    assert!(
        fetched > 1_000_000 && fetched <= limit,
        "{fetched} bytes fetched, {limit} allowed"
    );

    fs::rename(home.file("store"), home.file("gone")).expect("no store");
    zmachine(&home, &["run", "--rm", &image, "true"]).expect_success();
    fs::rename(home.file("gone"), home.file("store")).expect("the store again");
    // An image nobody ran before, without its store: the machine says so, and is gone.
    fs::remove_dir_all(home.path().join("blocks")).expect("an empty cache");
    fs::rename(home.file("store"), home.file("gone")).expect("no store");
    let run = zmachine(&home, &["run", "--name", "twice", &image, "true"]);
    assert_ne!(run.code, 0, "{run}");
    assert!(run.stderr().starts_with("error: "), "{run}");
    zmachine(&home, &["rm", "once"]).expect_success();
}

/// A sparse file whose blocks all differ: quick to make, and to pack.
fn distinct_blocks(path: &Path, file: u64, blocks: u64, block_bytes: u64) {
    use std::os::unix::fs::FileExt;
    let made = fs::File::create(path).expect("a file");
    made.set_len(blocks * block_bytes).expect("its length");
    for block in 0..blocks {
        made.write_all_at(&(file << 32 | block | 1 << 31).to_le_bytes(), block * block_bytes)
            .expect("a block");
    }
}

#[test]
fn the_second_start_has_its_blocks_before_the_guest_asks() {
    let Some(home) = home() else { return };
    let tree = (0..30).fold(Tree::busybox(&home), |tree, number| {
        tree.file(&format!("data{number}"), noise(number + 1, 60_000))
    });
    let image = tree.pack(&home, "hinted");
    let read = [
        "run",
        "--name",
        "m",
        "--network",
        "none",
        &image,
        "sh",
        "-c",
        "cat /data* | md5sum",
    ];
    let counters = || {
        let counters = inspect(&home, "m")["state"]["rootfs_counters"].clone();
        zmachine(&home, &["rm", "m"]).expect_success();
        (
            counters["blocks_fetched"].as_u64(),
            counters["blocks_prefetched"].as_u64().unwrap_or(0),
        )
    };
    let sum = zmachine(&home, &read).expect_success().stdout();
    let (fetched, ahead) = counters();
    assert!(fetched >= Some(31) && ahead == 0, "{fetched:?} {ahead}");

    let empty = || fs::remove_dir_all(home.path().join("blocks")).expect("an empty cache");
    empty();
    assert_eq!(zmachine(&home, &read).expect_success().stdout(), sum);
    let (again, ahead) = counters();
    assert!(ahead >= 28, "{ahead} of {again:?} blocks came ahead of the guest");

    // What this host has learnt goes into the flist, and serves a host that never ran it.
    let hints = zmachine(&home, &["image", "hints", &image]).expect_success().stdout();
    assert!(hints.contains("/data7 0\n") && hints.contains("busybox"), "{hints}");
    fs::write(home.file("hints"), &hints).expect("the hints");
    let packed = home.file("with-hints.fl").to_string_lossy().into_owned();
    let tree = tree.root().to_string_lossy().into_owned();
    let hints = home.file("hints").to_string_lossy().into_owned();
    let pack = [
        "flist",
        "pack",
        &tree,
        "-o",
        &packed,
        "--store",
        &home.store(),
        "--hints",
        &hints,
    ];
    zmachine(&home, &pack).expect_success();
    empty();
    let mut first = read;
    first[5] = &packed;
    assert_eq!(zmachine(&home, &first).expect_success().stdout(), sum);
    let (_, ahead) = counters();
    assert!(ahead >= 28, "{ahead} blocks came ahead of a first start with hints");
}

#[test]
fn a_full_cache_disk_is_told_and_nothing_is_wrong() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
    const FILES: u64 = 24;
    let Some(home) = home() else { return };
    let tree = (0..FILES).fold(Tree::busybox(&home), |tree, number| {
        tree.file(&format!("data{number}"), noise(number + 1, 300_000))
    });
    let image = tree.pack(&home, "big");
    let blocks = home.path().join("blocks");
    fs::create_dir_all(&blocks).expect("the cache");
    mount("tmpfs", &blocks, "tmpfs", MountFlags::empty(), c"size=3m").expect("a small disk");
    zmachine(
        &home,
        &["run", "-d", "--name", "m", "--network", "none", &image, "sleep", "1000"],
    )
    .expect_success();
    let mut checks = Checks::default();
    let sums = "echo 3 > /proc/sys/vm/drop_caches; md5sum /data* | md5sum";
    let sum = exec_output(&home, "m", sums);
    checks.that("what does not fit is read all the same, again and again", || {
        let mut all: Vec<String> = (0..FILES).map(|number| format!("data{number}")).collect();
        all.sort();
        for name in all {
            let read = zmachine(&home, &["exec", "m", "cat", &format!("/{name}")]);
            let number: u64 = name[4..].parse().expect("a number");
            assert!(
                read.code == 0 && read.stdout_bytes == noise(number + 1, 300_000),
                "{name}"
            );
        }
        assert_eq!(exec_output(&home, "m", sums), sum);
    });
    checks.that("the machine says so", || {
        until("a warning", Duration::from_secs(20), || {
            let warnings = inspect(&home, "m")["state"]["warnings"].to_string();
            (warnings.contains("is full") && warnings.contains("served from memory")).then_some(())
        });
        let log = zmachine(&home, &["logs", "--source", "monitor", "m"]).stdout();
        assert!(log.contains("cache-failed"), "{log}");
    });
    checks.that("what is in the cache is whole, and with room it keeps the rest", || {
        mount_remount(&blocks, MountFlags::empty(), "size=64m").expect("a larger disk");
        // Nobody reads them again: they go there by themselves.
        until("all blocks are in the cache", Duration::from_secs(60), || {
            let shards = fs::read_dir(&blocks).ok()?.flatten();
            let files = shards.filter_map(|shard| Some(fs::read_dir(shard.path()).ok()?.count()));
            (files.sum::<usize>() as u64 >= FILES).then_some(())
        });
        assert_eq!(exec_output(&home, "m", sums), sum);
        fs::rename(home.file("store"), home.file("gone")).expect("no store");
        zmachine(&home, &["rm", "-f", "m"]).expect_success();
        zmachine(
            &home,
            &["run", "-d", "--name", "m", "--network", "none", &image, "sleep", "1000"],
        )
        .expect_success();
        assert_eq!(exec_output(&home, "m", sums), sum);
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    unmount(&blocks, UnmountFlags::DETACH).expect("unmounted");
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_hundred_killed_servers_are_not_noticed() {
    const KILLS: u32 = 100;
    let Some(home) = home() else { return };
    let tree = (0..24).fold(Tree::busybox(&home), |tree, number| {
        tree.file(&format!("data{number}"), noise(number + 1, 1_000_000))
    });
    let image = tree.pack(&home, "killed");
    zmachine(
        &home,
        &[
            "run",
            "-d",
            "--cpus",
            "2",
            "--name",
            "m",
            "--network",
            "none",
            &image,
            "sleep",
            "100000",
        ],
    )
    .expect_success();
    let sum = exec_output(&home, "m", "md5sum /data* | md5sum");
    // Two readers, one for each queue, without a moment's pause.
    let reader = "while [ ! -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; md5sum /data* 2>&1 | md5sum; done";
    let both = format!("for n in 1 2; do ({reader}) > /tmp/sums.$n & done; wait");
    let readers = home.zmachine(["exec", "m", "sh", "-c", &both]).start();
    let server = || inspect(&home, "m")["state"]["rootfs"]["pid"].as_i64();
    let requests = || {
        inspect(&home, "m")["state"]["rootfs_counters"]["requests"]
            .as_u64()
            .unwrap_or(0)
    };
    let (mut last, before) = (None, requests());
    for kill in 0..KILLS {
        let pid = until("a server", Duration::from_secs(60), || {
            server().filter(|pid| last != Some(*pid))
        });
        // Somewhere within what it does: at the start, while it answers, before and after an interrupt.
        std::thread::sleep(Duration::from_millis(u64::from(kill * 37 % 700)));
        let victim = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
        rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("killed");
        last = Some(pid);
    }
    until("a last server", Duration::from_secs(60), || {
        server().filter(|pid| last != Some(*pid))
    });
    std::thread::sleep(Duration::from_secs(10));
    exec_output(&home, "m", "touch /tmp/stop");
    let ended = readers.wait_with_output().expect("the readers");
    assert!(ended.status.success(), "{ended:?}");
    let sums = exec_output(&home, "m", "cat /tmp/sums.*");
    println!(
        "{KILLS} kills, {} requests, {} rounds of reading",
        requests() - before,
        sums.lines().count()
    );
    assert!(sums.lines().count() >= 4, "too little was read:\n{sums}");
    assert!(sums.lines().all(|line| line == sum), "{sum}\n{sums}");
    assert!(!exec_output(&home, "m", "dmesg").contains("I/O error"));
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}
