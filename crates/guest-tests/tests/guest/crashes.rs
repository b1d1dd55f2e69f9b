//! Sudden deaths of the processes a machine is made of, at every time of its life.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use zmachine_testkit::{TestHome, Tree};

use crate::life::{fsck, in_background};
use crate::support::{Checks, exec_output, home, inspect, noise, phase, until, zmachine};

const SIZE: usize = 6_000_000;

#[test]
fn whatever_dies_the_host_is_clean_and_the_machine_starts_again() {
    let Some(home) = home() else { return };
    let image = Tree::busybox(&home).file("data.bin", noise(5, SIZE)).pack(&home, "box");
    zmachine(&home, &["run", "-d", "--init", "--name", "m", &image, "sleep", "1000"]).expect_success();
    let mut checks = Checks::default();
    checks.that("a dead rootfs server is replaced, and reads go on", || {
        rootfs_dies(&home)
    });
    checks.that("a dead hypervisor is a failure of the machine", || {
        hypervisor_dies(&home)
    });
    checks.that("a dead monitor takes all with it, and the next command says so", || {
        begin(&home, "monitor");
        kill(process(&home, "monitor"));
        reported(&home, "ended without a word");
        intact(&home, "monitor");
    });
    checks.that("all of them at once", || {
        begin(&home, "all");
        let all = ["rootfs", "hypervisor", "monitor"].map(|role| process(&home, role));
        kill_all(&all);
        reported(&home, "ended without a word");
        intact(&home, "all");
    });
    checks.that("a monitor that dies while the machine starts", || {
        let start = in_background(home.zmachine(["start", "m"]));
        claimed(&home, "hypervisor");
        kill(process(&home, "monitor"));
        let start = start.join().expect("start");
        assert!(start.expect_code(1).stderr().starts_with("error: "), "{start}");
        reported(&home, "ended without a word");
        intact(&home, "all");
    });
    checks.that("a hypervisor that dies while the machine starts", || {
        let start = in_background(home.zmachine(["start", "m"]));
        kill(claimed(&home, "hypervisor"));
        let start = start.join().expect("start");
        assert!(
            start.expect_code(1).stderr().contains("ended while it started"),
            "{start}"
        );
        assert_eq!(phase(&home, "m"), "failed");
        home.assert_host_clean();
    });
    checks.that("a rootfs server that dies while the machine starts", || {
        let start = in_background(home.zmachine(["start", "m"]));
        claimed(&home, "hypervisor");
        kill(claimed(&home, "rootfs"));
        let start = start.join().expect("start");
        let text = start.expect_code(1).stderr();
        assert!(
            text.contains("the rootfs server ended while the guest started"),
            "{start}"
        );
        assert!(start.took < Duration::from_secs(10), "{start}");
        assert_eq!(phase(&home, "m"), "failed");
        home.assert_host_clean();
        zmachine(&home, &["start", "m"]).expect_success();
        assert_eq!(exec_output(&home, "m", "cat /all"), "all");
    });
    checks.that("a monitor that dies while the machine stops", || {
        // `sleep` behind an init ends at once; a paused guest takes its time.
        let stop = in_background(home.zmachine(["stop", "m"]));
        let monitor = process(&home, "monitor");
        until("the machine is stopping", Duration::from_secs(20), || {
            let state = std::fs::read_to_string(folder(&home).join("state.json")).ok()?;
            state.contains("\"stopping\"").then_some(())
        });
        kill(monitor);
        stop.join().expect("stop");
        zmachine(&home, &["ps"]).expect_success();
        home.assert_host_clean();
        intact(&home, "all");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}

fn folder(home: &TestHome) -> PathBuf {
    home.path()
        .join("machines/by-name/m")
        .canonicalize()
        .expect("the machine's folder")
}

/// The machine runs, and has the file `/<word>` on its disk.
fn begin(home: &TestHome, word: &str) {
    zmachine(home, &["start", "m"]).expect_success();
    exec_output(
        home,
        "m",
        &format!("echo {word} > /{word}; sync; echo not yet > /unsynced"),
    );
}

fn kill(pid: Pid) {
    kill_all(&[pid]);
}

/// Kills them at once, and waits until they have ended: on a busy host a process of many threads and much memory takes a
/// while to die, and until then the machine runs, for `ps` too.
fn kill_all(pids: &[Pid]) {
    let open = |pid: &Pid| pidfd_open(*pid, PidfdFlags::empty()).expect("a process of the machine");
    let processes: Vec<OwnedFd> = pids.iter().map(open).collect();
    for pid in pids {
        kill_process(*pid, Signal::KILL).expect("a process of the machine");
    }
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    for (process, pid) in processes.iter().zip(pids) {
        let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).expect("poll");
        assert_eq!(ended, 1, "process {pid:?} lives on");
    }
}

/// The process of `role` in the machine's state.
fn process(home: &TestHome, role: &str) -> Pid {
    let state = std::fs::read_to_string(folder(home).join("state.json")).expect("the state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    let pid = state[role]["pid"]
        .as_i64()
        .unwrap_or_else(|| panic!("no {role} in {state}"));
    Pid::from_raw(pid as i32).expect("a process id")
}

/// The process of `role` as soon as the journal of a machine that starts has one.
fn claimed(home: &TestHome, role: &str) -> Pid {
    until(&format!("a {role} process"), Duration::from_secs(20), || {
        let journal = std::fs::read_to_string(folder(home).join("resources.jsonl")).ok()?;
        let line = journal
            .lines()
            .rfind(|line| line.contains(&format!("\"role\":\"{role}\"")))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Pid::from_raw(line["resource"]["process"]["id"]["pid"].as_i64()? as i32)
    })
}

/// The next command tells of the crash on stderr, once, and by then the host is clean.
fn reported(home: &TestHome, text: &str) {
    let listed = zmachine(home, &["ps", "-a"]);
    let warning = format!("warning: machine 'm' failed: its monitor {text}");
    assert!(listed.expect_success().stderr().contains(&warning), "{listed}");
    assert!(listed.stdout().contains("Failed "), "{listed}");
    home.assert_host_clean();
    assert_eq!(zmachine(home, &["ps", "-a"]).stderr(), "", "a second time");
}

/// The writable layer needs no more than its journal, and has what was synced.
fn intact(home: &TestHome, word: &str) {
    assert_eq!(fsck(home, "m", "-fy") & !1, 0);
    assert_eq!(fsck(home, "m", "-fn"), 0);
    let image = crate::life::root_image(home, "m");
    let debugfs = zmachine_testkit::Invocation::new(
        "debugfs".as_ref(),
        ["-R".as_ref(), format!("cat /upper/{word}").as_ref(), image.as_os_str()],
    );
    let found = debugfs.finish();
    assert_eq!(found.expect_success().stdout(), format!("{word}\n"), "{found}");
}

fn rootfs_dies(home: &TestHome) {
    let old = process(home, "rootfs");
    kill(old);
    let read = zmachine(home, &["exec", "m", "cat", "/data.bin"]);
    assert!(
        read.expect_success().stdout_bytes == noise(5, SIZE),
        "{} bytes differ",
        read.stdout_bytes.len()
    );
    let state = inspect(home, "m")["state"].clone();
    assert!(state["warnings"].to_string().contains("started again"), "{state}");
    assert_ne!(state["rootfs"]["pid"], old.as_raw_nonzero().get(), "{state}");
    assert_eq!(state["phase"], "running");
}

fn hypervisor_dies(home: &TestHome) {
    exec_output(home, "m", "echo hypervisor > /hypervisor; sync");
    kill(process(home, "hypervisor"));
    until("the machine has failed", Duration::from_secs(20), || {
        (phase(home, "m") == "failed").then_some(())
    });
    let state = inspect(home, "m")["state"].to_string();
    assert!(state.contains("signal 9"), "{state}");
    home.assert_host_clean();
    intact(home, "hypervisor");
}
