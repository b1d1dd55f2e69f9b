//! What docs/state.md promises when things go wrong around the program: the disk is full, the host was restarted, clocks
//! jump, state is damaged, two commands want the same machine, and nothing is left after many lives of one.
//!
//! Power cuts of the program itself are in [`crate::killpoints`], deaths of its processes in [`crate::crashes`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use zmachine_testkit::{Finished, TestHome};

use crate::life::in_background;
use crate::support::{Checks, home_with_box, phase, told, zmachine};

/// How many lives [`many_lives_leave_nothing`] gives a machine.
const CYCLES_VARIABLE: &str = "ZMACHINE_TEST_CYCLES";

/// Size of the small disk. A writable root takes some of it when it is made, and the guest more while it runs.
const DISK_BYTES: u64 = 96 << 20;

const PAGE: u64 = 4096;

/// A home on a disk of its own that can be filled to the page.
struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    /// Puts a small disk under the home; what was in it is copied there.
    fn under(home: &mut TestHome) -> SmallDisk {
        let point = home.path();
        let beside = home.file("old-home");
        let run = |program: &str, args: &[&Path]| {
            let status = Command::new(program).args(args).status();
            assert!(status.expect("it can be started").success(), "{program} {args:?}");
        };
        run("cp", &[Path::new("-a"), &point, &beside]);
        let size = format!("-osize={DISK_BYTES}");
        let options = ["-ttmpfs", &size, "zmachine-test"].map(Path::new);
        run("mount", &[options[0], options[1], options[2], &point]);
        let disk = SmallDisk { point };
        home.take_as_given();
        run("cp", &[Path::new("-a"), &beside.join("."), &disk.point]);
        disk
    }

    fn filler(&self) -> PathBuf {
        self.point.join("filler")
    }

    /// Leaves so many pages free.
    fn leave(&self, pages: u64) {
        self.free();
        let free = rustix::fs::statvfs(&self.point).expect("the disk").f_bavail * PAGE;
        let file = fs::File::create(self.filler()).expect("a file");
        let taken = free - pages * PAGE;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).expect("space for it");
    }

    fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a machine in it, which its home ends later.
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}

/// What a full disk does to a command: it fails with the reason, or it never noticed.
fn told_of_full_disk(run: &Finished) {
    let text = run.expect_code(1).stderr();
    assert!(text.starts_with("error: "), "{run}");
    assert!(text.contains("No space left on device"), "{run}");
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name != ".lock" && name != "by-name").collect();
    names.sort();
    names
}

fn state_file(home: &TestHome, name: &str) -> PathBuf {
    home.path().join("machines/by-name").join(name).join("state.json")
}

fn state(home: &TestHome, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(state_file(home, name)).expect("the state")).expect("JSON")
}

/// Changes fields of a machine's state, as if it had been written so.
fn rewrite(home: &TestHome, name: &str, fields: &[(&str, Value)]) {
    let mut state = state(home, name);
    for (field, value) in fields {
        state[*field] = value.clone();
    }
    fs::write(state_file(home, name), state.to_string()).expect("the state");
}

#[test]
fn a_full_disk_fails_commands_with_its_name_and_leaves_nothing_half_done() {
    let Some((mut home, image)) = home_with_box() else {
        return;
    };
    // The image and all that is made from it once.
    zmachine(&home, &["create", "--name", "first", &image]).expect_success();
    zmachine(&home, &["rm", "first"]).expect_success();
    let disk = SmallDisk::under(&mut home);
    let mut checks = Checks::default();
    checks.that("create, with one page more each time", || {
        let create = ["create", "--name", "f", image.as_str(), "sleep", "1000"];
        let mut refused = 0;
        for pages in 0.. {
            disk.leave(pages);
            let run = zmachine(&home, &create);
            disk.free();
            if run.code == 0 {
                break;
            }
            refused += 1;
            told_of_full_disk(&run);
            assert_eq!(
                zmachine(&home, &["ps", "-a", "-q"]).expect_success().stdout(),
                "",
                "{pages} pages"
            );
            assert_eq!(names_in(&home.path().join("machines")), [""; 0], "{pages} pages");
            home.assert_host_clean();
            assert!(pages < 200, "{run}");
        }
        println!("  create refused {refused} times");
        assert!(refused >= 3, "the disk was never full");
    });
    checks.that("start, with more each time", || {
        let few = (0..8).chain([12, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096]);
        let mut refused = 0;
        for pages in few {
            disk.leave(pages);
            let run = zmachine(&home, &["start", "f"]);
            let now = phase(&home, "f");
            println!(
                "  start with {pages} pages: code {}, {now}: {}",
                run.code,
                run.stderr().replace('\n', " | ")
            );
            if run.code == 0 {
                let kill = zmachine(&home, &["kill", "f"]);
                disk.free();
                kill.expect_success();
                home.assert_host_clean();
                continue;
            }
            disk.free();
            refused += 1;
            run.expect_code(1);
            zmachine(&home, &["ps"]).expect_success();
            assert!(
                ["created", "failed"].contains(&phase(&home, "f").as_str()),
                "{pages} pages"
            );
            home.assert_host_clean();
        }
        println!("  start refused {refused} times");
        assert!(refused >= 3, "the disk was never full");
    });
    checks.that("a machine runs on, and stops, while the disk is full", || {
        zmachine(&home, &["start", "f"]).expect_success();
        disk.leave(0);
        assert_eq!(told(&home, "f", "echo fine"), "fine");
        let stop = zmachine(&home, &["stop", "f"]);
        println!("  stop: {stop}");
        let listed = zmachine(&home, &["ps", "-a"]);
        println!("  {listed}");
        home.assert_host_clean();
        disk.free();
        zmachine(&home, &["ps"]).expect_success();
        assert!(["stopped", "failed"].contains(&phase(&home, "f").as_str()));
        zmachine(&home, &["start", "f"]).expect_success();
        assert_eq!(told(&home, "f", "echo again"), "again");
    });
    checks.that("rm frees space when there is none", || {
        disk.leave(0);
        zmachine(&home, &["rm", "-f", "f"]).expect_success();
        disk.free();
        assert_eq!(names_in(&home.path().join("machines")), [""; 0]);
        home.assert_host_clean();
    });
}

#[test]
fn the_host_is_restarted_and_clocks_jump() {
    let Some((home, image)) = home_with_box() else { return };
    zmachine(&home, &["run", "-d", "--name", "m", &image, "sleep", "1000"]).expect_success();
    told(&home, "m", "echo kept > /kept; sync");
    let mut checks = Checks::default();
    checks.that(
        "another boot: runtime resources are gone, the machine has failed with that reason",
        || {
            let monitor = state(&home, "m")["monitor"]["pid"].as_i64().expect("a monitor");
            kill_process(Pid::from_raw(monitor as i32).expect("an id"), Signal::KILL).expect("the monitor");
            std::thread::sleep(std::time::Duration::from_secs(1));
            // A restart takes the runtime folder along, and the numbers of processes mean others.
            fs::remove_dir_all(home.path().join("run")).expect("the runtime folder");
            rewrite(
                &home,
                "m",
                &[
                    ("boot_id", json!("00000000-0000-4000-8000-000000000000")),
                    ("hypervisor", json!({"pid": std::process::id(), "start_ticks": 1})),
                ],
            );
            let listed = zmachine(&home, &["ps", "-a"]);
            assert!(
                listed.expect_success().stderr().contains("the host was restarted"),
                "{listed}"
            );
            assert_eq!(phase(&home, "m"), "failed");
            home.assert_host_clean();
            zmachine(&home, &["start", "m"]).expect_success();
            assert_eq!(told(&home, "m", "cat /kept"), "kept");
        },
    );
    checks.that(
        "times of a running machine that lie in the future, and in the far past",
        || {
            for time in ["2099-01-01T00:00:00Z", "1970-01-01T00:00:01Z"] {
                let times = ["created_at", "started_at", "ready_at"].map(|field| (field, json!(time)));
                rewrite(&home, "m", &times);
                for words in [
                    &["ps"][..],
                    &["ps", "-o", "json"],
                    &["inspect", "m"],
                    &["logs", "--since", "1h", "m"],
                    &["why", "m"],
                    &["stats", "--no-stream", "m"],
                    &["exec", "m", "true"],
                ] {
                    zmachine(&home, words).expect_success();
                }
            }
            zmachine(&home, &["stop", "m"]).expect_success();
            assert_eq!(phase(&home, "m"), "stopped");
            rewrite(&home, "m", &[("finished_at", json!("2099-01-01T00:00:00Z"))]);
            zmachine(&home, &["start", "m"]).expect_success();
            zmachine(&home, &["stop", "m"]).expect_success();
        },
    );
    checks.that("state that can not be read is reported and left alone", || {
        let good = fs::read(state_file(&home, "m")).expect("the state");
        for bad in [&b""[..], b"{", b"{\"version\":999}", &good[..good.len() / 2]] {
            fs::write(state_file(&home, "m"), bad).expect("the state");
            let listed = zmachine(&home, &["ps", "-a"]);
            assert!(listed.expect_success().stderr().contains("can not be read"), "{listed}");
            let start = zmachine(&home, &["start", "m"]);
            assert!(start.expect_code(1).stderr().contains("can not be read"), "{start}");
            assert_eq!(fs::read(state_file(&home, "m")).expect("the state"), bad);
        }
        fs::write(state_file(&home, "m"), good).expect("the state");
        zmachine(&home, &["start", "m"]).expect_success();
    });
    checks.that("a home with a feature of the future is refused whole", || {
        let path = home.path().join("format");
        let good = fs::read_to_string(&path).expect("the format");
        fs::write(&path, good.replace("[]", "[\"shared-disks\"]")).expect("the format");
        let refused = zmachine(&home, &["rm", "-f", "m"]);
        fs::write(&path, good).expect("the format");
        assert!(refused.expect_code(6).stderr().contains("shared-disks"), "{refused}");
        assert_eq!(told(&home, "m", "cat /kept"), "kept");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}

/// Two commands at once; their exit codes, the smaller one first.
fn at_once(home: &TestHome, one: &[&str], other: &[&str]) -> (Vec<i32>, String) {
    let both = [one, other].map(|words| in_background(home.zmachine(words)));
    let both = both.map(|thread| thread.join().expect("a command"));
    let mut codes: Vec<i32> = both.iter().map(|run| run.code).collect();
    codes.sort_unstable();
    (codes, format!("{}\n{}", both[0], both[1]))
}

#[test]
fn of_two_commands_on_one_machine_one_wins_and_the_other_says_so() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    checks.that("create and create", || {
        for _ in 0..5 {
            let create = ["create", "--name", "r", image.as_str(), "sleep", "1000"];
            let (codes, runs) = at_once(&home, &create, &create);
            assert_eq!(codes, [0, 4], "{runs}");
            assert_eq!(names_in(&home.path().join("machines")).len(), 1);
            let (codes, runs) = at_once(&home, &["rm", "r"], &["rm", "r"]);
            assert!(codes[0] == 0 && [0, 3, 4].contains(&codes[1]), "{runs}");
            assert_eq!(names_in(&home.path().join("machines")), [""; 0]);
        }
        zmachine(&home, &["create", "--name", "r", &image, "sleep", "1000"]).expect_success();
    });
    checks.that("start and start, stop and stop", || {
        for _ in 0..3 {
            let (codes, runs) = at_once(&home, &["start", "r"], &["start", "r"]);
            assert_eq!(codes, [0, 4], "{runs}");
            assert_eq!(told(&home, "r", "echo one"), "one");
            let (codes, runs) = at_once(&home, &["stop", "r"], &["stop", "r"]);
            assert!(codes[0] == 0 && [0, 4].contains(&codes[1]), "{runs}");
            assert_eq!(phase(&home, "r"), "stopped");
            home.assert_host_clean();
        }
    });
    checks.that("start and rm", || {
        for _ in 0..3 {
            let (codes, runs) = at_once(&home, &["start", "r"], &["rm", "r"]);
            assert!(codes[0] == 0 && [1, 3, 4].contains(&codes[1]), "{runs}");
            zmachine(&home, &["ps", "-a"]).expect_success();
            if names_in(&home.path().join("machines")).is_empty() {
                home.assert_host_clean();
                zmachine(&home, &["create", "--name", "r", &image, "sleep", "1000"]).expect_success();
            } else {
                zmachine(&home, &["stop", "r"]).expect_success();
            }
        }
    });
    checks.that("stop and kill and rm -f", || {
        zmachine(&home, &["start", "r"]).expect_success();
        let kill = in_background(home.zmachine(["kill", "r"]));
        let (codes, runs) = at_once(&home, &["stop", "r"], &["rm", "-f", "r"]);
        let kill = kill.join().expect("kill");
        assert!(codes[0] == 0, "{runs}");
        assert!([0, 3, 4].contains(&kill.code), "{kill}");
        assert_eq!(names_in(&home.path().join("machines")), [""; 0], "{runs}");
        home.assert_host_clean();
    });
}

/// Files below `folder` with their disk use in bytes, but for the records of removed machines and the list of events,
/// which are kept for a while by design.
fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        if path.ends_with("removed") || entry.file_name().to_string_lossy().starts_with("events") {
            continue;
        }
        if metadata.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path, metadata.blocks() * 512);
    }
    found
}

/// Open files of this host's processes that name the home, beyond those of this test.
fn open_files(home: &TestHome) -> usize {
    let folder = home.path();
    let of = |pid: fs::DirEntry| fs::read_dir(pid.path().join("fd")).into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|pid| pid.file_name().to_string_lossy() != own)
        .flat_map(of)
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(&folder)))
        .count()
}

#[test]
fn many_lives_leave_nothing() {
    let Some((home, image)) = home_with_box() else { return };
    let cycles: u32 = std::env::var(CYCLES_VARIABLE)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3);
    let cycle = || {
        let create = ["create", "--name", "c", "-p", "18082:80", &image, "sleep", "1000"];
        zmachine(&home, &create).expect_success();
        zmachine(&home, &["start", "c"]).expect_success();
        assert_eq!(told(&home, "c", "echo alive"), "alive");
        zmachine(&home, &["stop", "-t", "1", "c"]).expect_success();
        zmachine(&home, &["rm", "c"]).expect_success();
    };
    // Once, for what is made once: blocks, the network.
    cycle();
    let before = files(&home.path());
    let started = std::time::Instant::now();
    for number in 1..=cycles {
        cycle();
        home.assert_host_clean();
        assert_eq!(open_files(&home), 0, "after {number} cycles");
    }
    let after = files(&home.path());
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(new.is_empty(), "{new:?}");
    let used = |files: &BTreeMap<PathBuf, u64>| files.values().sum::<u64>();
    assert_eq!(used(&after), used(&before));
    println!(
        "{cycles} cycles in {:.0} s; {} files of {} KiB before and after",
        started.elapsed().as_secs_f64(),
        after.len(),
        used(&after) / 1024
    );
}
