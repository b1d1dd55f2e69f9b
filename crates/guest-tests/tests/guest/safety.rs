//! What docs/state.md promises when things go wrong around the program: the host was restarted, clocks jump, state is
//! damaged, two commands want the same machine.
//!
//! Power cuts of the program itself are in [`crate::killpoints`], deaths of its processes in [`crate::crashes`], full
//! disks in [`crate::full_disk`], many lives of a machine in [`crate::lifecycle`].

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use zmachine_testkit::TestHome;

use crate::life::in_background;
use crate::support::{Checks, exec_output, home_with_box, phase, zmachine};

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
fn the_host_is_restarted_and_clocks_jump() {
    let Some((home, image)) = home_with_box() else { return };
    zmachine(&home, &["create", "--init", "--name", "m", &image, "sleep", "1000"]).expect_success();
    // As a power cut leaves it while the disk is being made.
    let unfinished = home.path().join("machines/by-name/m/root.img.new-0123456789abcdef");
    fs::write(&unfinished, "half").expect("a file");
    zmachine(&home, &["start", "m"]).expect_success();
    assert!(!unfinished.exists(), "a disk half made");
    exec_output(&home, "m", "echo kept > /kept; sync");
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
            assert_eq!(exec_output(&home, "m", "cat /kept"), "kept");
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
    checks.that("state that cannot be read is reported and left alone", || {
        let good = fs::read(state_file(&home, "m")).expect("the state");
        let half = &good[..good.len() / 2];
        for (bad, code) in [(&b""[..], 1), (b"{", 1), (b"{\"version\":999}", 6), (half, 1)] {
            fs::write(state_file(&home, "m"), bad).expect("the state");
            let listed = zmachine(&home, &["ps", "-a"]);
            assert!(listed.expect_code(code).stderr().contains("cannot be read"), "{listed}");
            let start = zmachine(&home, &["start", "m"]);
            assert!(start.expect_code(code).stderr().contains("cannot be read"), "{start}");
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
        assert_eq!(exec_output(&home, "m", "cat /kept"), "kept");
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
        for _ in 0..4 {
            let create = ["create", "--init", "--name", "r", image.as_str(), "sleep", "1000"];
            let (codes, runs) = at_once(&home, &create, &create);
            assert_eq!(codes, [0, 4], "{runs}");
            assert_eq!(names_in(&home.path().join("machines")).len(), 1);
            let (codes, runs) = at_once(&home, &["rm", "r"], &["rm", "r"]);
            assert!(codes[0] == 0 && [0, 3, 4].contains(&codes[1]), "{runs}");
            assert_eq!(names_in(&home.path().join("machines")), [""; 0]);
        }
        zmachine(&home, &["create", "--init", "--name", "r", &image, "sleep", "1000"]).expect_success();
    });
    checks.that("start and start, stop and stop", || {
        for _ in 0..2 {
            let (codes, runs) = at_once(&home, &["start", "r"], &["start", "r"]);
            assert_eq!(codes, [0, 4], "{runs}");
            assert_eq!(exec_output(&home, "r", "echo one"), "one");
            let (codes, runs) = at_once(&home, &["stop", "r"], &["stop", "r"]);
            assert!(codes[0] == 0 && [0, 4].contains(&codes[1]), "{runs}");
            assert_eq!(phase(&home, "r"), "stopped");
            home.assert_host_clean();
        }
    });
    checks.that("start and rm", || {
        for _ in 0..2 {
            let (codes, runs) = at_once(&home, &["start", "r"], &["rm", "r"]);
            assert!(codes[0] == 0 && [1, 3, 4].contains(&codes[1]), "{runs}");
            zmachine(&home, &["ps", "-a"]).expect_success();
            if names_in(&home.path().join("machines")).is_empty() {
                home.assert_host_clean();
                zmachine(&home, &["create", "--init", "--name", "r", &image, "sleep", "1000"]).expect_success();
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
