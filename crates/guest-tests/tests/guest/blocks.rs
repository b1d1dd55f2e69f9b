//! Blocks: fetched when they are read, once; and what a guest sees when one can not be had.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, home, inspect, noise, sh, told, until, zmachine};

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
    zmachine(&home, &["run", "-d", "--name", "m", &image, "sleep", "1000"]).expect_success();
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
        assert_eq!(told(&home, "m", READABLE), "100000")
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
        assert_eq!(told(&home, "m", "cat /*.bin | wc -c"), "300000");
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
