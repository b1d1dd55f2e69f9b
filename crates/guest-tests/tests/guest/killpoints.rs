//! Power cuts of the program itself, one at every point where it changes the host.
//!
//! `ZMACHINE_ABORT_AT=engine:N` (or `monitor:N`) ends that process at its N-th point; N grows until the operation
//! completes. After each the next command must find, or make, a clean host.

use std::path::PathBuf;

use zmachine_testkit::{Finished, TestHome};

use crate::shares::has_virtiofsd;
use crate::support::{home_with_box, phase, sh, zmachine};

const VARIABLE: &str = "ZMACHINE_ABORT_AT";

/// More points than any operation has.
const ENOUGH: u32 = 60;

/// The code of a process that ended by SIGKILL.
const KILLED: i32 = 137;

/// Runs `words` with the engine's points 0, 1, 2... until it completes, and `after` each. How many points it has.
fn at_every_point(home: &TestHome, words: &[&str], mut after: impl FnMut(&Finished)) -> u32 {
    for point in 0..ENOUGH {
        let run = home.zmachine(words).env(VARIABLE, format!("engine:{point}")).finish();
        if run.code != KILLED {
            run.expect_success();
            return point;
        }
        println!("  {}", run.stderr().trim_end());
        zmachine(home, &["ps"]).expect_success();
        home.assert_host_clean();
        no_lease_without_machine(home);
        after(&run);
    }
    panic!("{words:?} passes more than {ENOUGH} points");
}

/// Every lease is of a machine that exists, and every machine folder has a name.
fn no_lease_without_machine(home: &TestHome) {
    let machines = home.path().join("machines");
    let leases = files(&home.path().join("networks/default/leases"));
    for lease in leases {
        let owner = std::fs::read_to_string(&lease).unwrap_or_default();
        assert!(
            machines.join(owner.trim()).is_dir(),
            "{} is of {owner}, which is gone",
            lease.display()
        );
    }
    let named = files(&machines.join("by-name")).len();
    let folders = files(&machines)
        .into_iter()
        .filter(|path| !path.ends_with("by-name"))
        .count();
    assert_eq!(named, folders, "names and folders in {}", machines.display());
}

/// What is in a folder, but for hidden files.
fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .collect()
}

fn remove_if_there(home: &TestHome, name: &str) {
    if zmachine(home, &["ps", "-a", "-q"])
        .stdout()
        .lines()
        .any(|line| line == name)
    {
        zmachine(home, &["rm", name]).expect_success();
    }
}

#[test]
fn creating_and_removing_survive_a_power_cut_at_every_point() {
    let Some((home, image)) = home_with_box() else { return };
    let create = ["create", "--name", "c", "-v", "/own:size=16M", image.as_str()];
    let points = at_every_point(&home, &create, |_| remove_if_there(&home, "c"));
    assert!(points >= 4, "only {points} points in create");
    let points = at_every_point(&home, &["rm", "-v", "c"], |_| {
        // Removed halfway is removed: the name may be used again.
        remove_if_there(&home, "c");
        zmachine(&home, &create).expect_success();
    });
    assert!(points >= 3, "only {points} points in rm");
    assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "");
    no_lease_without_machine(&home);
    zmachine(&home, &create).expect_success();
    let points = at_every_point(&home, &["rename", "c", "d"], |_| {
        // It has one of the two names, and everything else that it had.
        let name = zmachine(&home, &["ps", "-a", "-q"]).expect_success().stdout();
        match name.trim() {
            "c" => {}
            "d" => drop(zmachine(&home, &["rename", "d", "c"]).expect_success()),
            other => panic!("the machine is called {other:?}"),
        }
    });
    assert!(points >= 3, "only {points} points in rename");
    zmachine(&home, &["rm", "d"]).expect_success();
}

#[test]
fn starting_and_stopping_survive_a_power_cut_at_every_point() {
    let Some((home, image)) = home_with_box() else { return };
    let shared = format!("{}:/shared:ro", home.file("").display());
    let mut words = vec!["create", "--init", "--name", "k", "-p", "18081:80"];
    words.extend(["-v", "kept:/kept:size=16M", "-v", "/own:size=16M"]);
    if has_virtiofsd() {
        words.extend(["-v", &shared]);
    }
    words.extend([&image, "sleep", "1000"]);
    zmachine(&home, &words).expect_success();
    let passed = (0..ENOUGH).find(|point| !start_and_stop_cut_at(&home, *point));
    let points = passed.unwrap_or_else(|| panic!("more than {ENOUGH} points"));
    assert!(points >= 12, "only {points} points in start and stop");
    assert_eq!(phase(&home, "k"), "stopped");

    // The engine dies after it spawned the monitor: the machine belongs to its monitor, and runs.
    let run = home.zmachine(["start", "k"]).env(VARIABLE, "engine:1").finish();
    run.expect_code(KILLED);
    crate::support::until(
        "the machine runs without its starter",
        std::time::Duration::from_secs(60),
        || (phase(&home, "k") == "running").then_some(()),
    );
    assert_eq!(sh(&home, "k", "echo fine").expect_success().stdout(), "fine\n");
    reconciling_survives(&home);
    zmachine(&home, &["rm", "-f", "k"]).expect_success();
}

/// One start and stop with the monitor's `point` cut; whether it was reached.
fn start_and_stop_cut_at(home: &TestHome, point: u32) -> bool {
    let messages = home.path().join("machines/by-name/k/logs/monitor.stderr");
    let start = home
        .zmachine(["start", "k"])
        .env(VARIABLE, format!("monitor:{point}"))
        .finish();
    if start.code == 0 {
        zmachine(home, &["stop", "k"]);
    } else {
        assert!(
            start.expect_code(1).stderr().contains("ended without a word"),
            "{start}"
        );
    }
    zmachine(home, &["ps"]).expect_success();
    home.assert_host_clean();
    no_lease_without_machine(home);
    let output = std::fs::read_to_string(&messages).unwrap_or_default();
    let line = output
        .lines()
        .find(|line| line.starts_with(&format!("killpoint {point}:")));
    println!("  {}", line.unwrap_or("completed"));
    line.is_some()
}

/// A crash of the machine, then of the commands that clean up after it.
fn reconciling_survives(home: &TestHome) {
    let state = std::fs::read_to_string(home.path().join("machines/by-name/k/state.json")).expect("the state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    let pid = state["monitor"]["pid"]
        .as_i64()
        .and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
    rustix::process::kill_process(pid.expect("a monitor"), rustix::process::Signal::KILL).expect("the monitor");
    for point in 0..2 {
        let ps = home.zmachine(["ps"]).env(VARIABLE, format!("engine:{point}")).finish();
        assert!(ps.expect_code(KILLED).stderr().contains("reconcile"), "{ps}");
    }
    let ps = zmachine(home, &["ps"]);
    assert!(ps.expect_success().stderr().contains("machine 'k' failed"), "{ps}");
    home.assert_host_clean();
}
