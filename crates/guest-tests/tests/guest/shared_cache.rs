//! Two homes with one block cache: what a machine of one has fetched, a machine of the other has without its store.

use std::fs;
use std::path::Path;

use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, home, inspect, noise, zmachine};

const FILES: u64 = 8;

#[test]
fn a_machine_of_another_home_starts_from_what_the_first_one_fetched() {
    let Some(first) = home() else { return };
    let second = first.beside();
    let tree = (0..FILES).fold(Tree::busybox(&first), |tree, number| {
        tree.file(&format!("data{number}"), noise(number + 1, 200_000))
    });
    let image = tree.pack(&first, "shared");
    let cache = first.file("cache");
    for home in [&first, &second] {
        let shared = ["image", "cache", "--shared", &cache.display().to_string()];
        zmachine(home, &shared).expect_success();
    }
    let sum = sum_in(&first, &image);
    let stored = files_below(&cache.join("blocks"));
    let counters = &inspect(&first, "m")["state"]["rootfs_counters"];
    assert_eq!(counters["blocks_fetched"].as_u64(), Some(stored), "each is stored once");
    assert!(stored > FILES, "{stored}");

    let mut checks = Checks::default();
    checks.that("pruning in a home without images keeps those of the other", || {
        let pruned = zmachine(&second, &["image", "prune"]).expect_success().stdout();
        assert!(pruned.starts_with("0 images and 0 blocks"), "{pruned}");
    });
    fs::rename(first.file("store"), first.file("gone")).expect("no store");
    checks.that("the second machine asks for nothing", || {
        assert_eq!(sum_in(&second, &image), sum);
        let machine = inspect(&second, "m");
        let counters = &machine["state"]["rootfs_counters"];
        assert_eq!(counters["blocks_fetched"].as_u64(), Some(0), "{counters}");
        assert_eq!(files_below(&cache.join("blocks")), stored);
        let output = machine["block_cache"].as_str().expect("a folder");
        assert!(
            Path::new(output).starts_with(cache.canonicalize().expect("the cache")),
            "{output}"
        );
    });
    checks.that("neither home has blocks of its own, and doctor says who shares", || {
        for home in [&first, &second] {
            assert!(!home.path().join("blocks").exists());
            let output = zmachine(home, &["doctor"]).stdout();
            assert!(
                output.contains("shared by") && output.contains(&second.path().display().to_string()),
                "{output}"
            );
        }
    });
    checks.that("what neither home needs goes with the last of them", || {
        for home in [&first, &second] {
            zmachine(home, &["rm", "m"]).expect_success();
        }
        zmachine(&first, &["image", "prune"]).expect_success();
        assert_eq!(
            files_below(&cache.join("blocks")),
            stored,
            "the second home has the image"
        );
        zmachine(&second, &["image", "prune"]).expect_success();
        assert_eq!(files_below(&cache.join("blocks")), 0);
    });
}

/// A sum over all data, made by the machine `m`.
fn sum_in(home: &TestHome, image: &str) -> String {
    let script = "cat /data* | md5sum";
    let run = ["run", "--name", "m", "--network", "none", image, "sh", "-c", script];
    zmachine(home, &run).expect_success().stdout()
}

/// How many blocks there are; the file of claims is none.
fn files_below(blocks: &Path) -> u64 {
    let shards = fs::read_dir(blocks).expect("the blocks").flatten();
    let shards = shards.filter_map(|shard| Some(fs::read_dir(shard.path()).ok()?.count() as u64));
    shards.sum()
}
