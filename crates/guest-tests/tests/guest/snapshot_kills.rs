//! The end of every process that has a part in a snapshot, a restore, a fork or the sleep of an idle machine, at every step of it.
//!
//! A process of the machine is held at a step (`ZMACHINE_ABORT_AT=monitor:stop STEP`), one of its processes is killed, and it goes on, unless
//! it was that one. Whatever comes of the operation: nothing half-made is offered, nothing is left on the host, the disks of a machine are of
//! one instant, and it can be started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zmachine_testkit::TestHome;

use crate::support::{exec_output, home_with_box, phase, sh, until, zmachine};

const VARIABLE: &str = "ZMACHINE_ABORT_AT";
const KILLED: i32 = 137;

/// How long an operation may take whose processes are killed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The monitor, which is held.
    Monitor,
    /// QEMU.
    Hypervisor,
    /// The processes that serve its root.
    Server,
    /// The monitor of the first fork, which has the memory that others share.
    Holder,
}

const OF_ONE: [Victim; 3] = [Victim::Monitor, Victim::Hypervisor, Victim::Server];
const OF_FORKS: [Victim; 4] = [Victim::Monitor, Victim::Hypervisor, Victim::Server, Victim::Holder];

/// A process: its parent, its name and the letter of its state.
fn process(pid: i32) -> Option<(i32, String, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut words = tail.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, name, state))
}

/// The processes below `ancestor` whose name begins so.
fn below(ancestor: i32, name: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("processes").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_below = |pid: &i32| {
        let mut at = *pid;
        while let Some((parent, _, _)) = process(at) {
            if parent == ancestor {
                return true;
            }
            at = parent;
        }
        false
    };
    let is_named = |pid: &i32| process(*pid).is_some_and(|(_, found, state)| found.starts_with(name) && state != 'Z');
    all.filter(is_named).filter(is_below).collect()
}

fn send(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).expect("a process"), signal);
}

/// The monitor's number, as the machine's state has it.
fn monitor_of(home: &TestHome, machine: &str) -> Option<i32> {
    let path = home.path().join("machines/by-name").join(machine).join("state.json");
    let state: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    state["monitor"]["pid"].as_i64().map(|pid| pid as i32)
}

/// An operation whose monitor is held at a step.
struct Held {
    operation: Child,
    monitor: i32,
}

/// Waits until the monitor of `machine` is held; `None` when the operation ended, or `patience` was over, before.
fn held(home: &TestHome, machine: &str, mut operation: Child, patience: Duration) -> Option<Held> {
    let deadline = Instant::now() + patience;
    loop {
        let monitor = monitor_of(home, machine);
        if let Some(monitor) = monitor.filter(|pid| process(*pid).is_some_and(|(_, _, state)| state == 'T')) {
            return Some(Held { operation, monitor });
        }
        if operation.try_wait().expect("its status").is_some() || Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Held {
    /// Kills the victim, lets the monitor go on, and waits for the operation. Whether there was anybody to kill.
    fn kill(mut self, home: &TestHome, victim: Victim) -> bool {
        let victims = match victim {
            Victim::Monitor => vec![self.monitor],
            Victim::Hypervisor => below(self.monitor, "qemu-system"),
            Victim::Server => below(self.monitor, "zm-rootfs"),
            Victim::Holder => monitor_of(home, "holder").into_iter().collect(),
        };
        victims.iter().for_each(|pid| send(*pid, Signal::KILL));
        if victim != Victim::Monitor {
            send(self.monitor, Signal::CONT);
        }
        until("the operation ends", PATIENCE, || {
            self.operation.try_wait().expect("its status")
        });
        !victims.is_empty()
    }
}

/// What is on the host of snapshots and of those in progress.
fn snapshots(home: &TestHome) -> Vec<String> {
    let entries = fs::read_dir(home.path().join("snapshots"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != ".lock").collect()
}

/// Ends the machine, if it runs, and holds the host against what it was.
fn end(home: &TestHome, machine: &str) {
    zmachine(home, &["ps"]).expect_success();
    if !matches!(&*phase(home, machine), "stopped" | "failed" | "created") {
        zmachine(home, &["kill", machine]);
        until("it ends", PATIENCE, || {
            matches!(&*phase(home, machine), "stopped" | "failed").then_some(())
        });
    }
    home.assert_host_clean();
}

/// A machine with a volume, stopped, its snapshot `web@then`, and other content on both disks since.
fn saved(home: &TestHome, image: &str) {
    let volume = "data:/data:size=32M";
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "--snapshots",
        "--network",
        "none",
        "-v",
        volume,
        image,
    ];
    zmachine(home, &[&words[..], &["sleep", "10000"]].concat()).expect_success();
    exec_output(home, "web", "echo then | tee /mark >/data/mark");
    zmachine(home, &["snapshot", "create", "web@then"]).expect_success();
    exec_output(home, "web", "echo now | tee /mark >/data/mark; sync");
    zmachine(home, &["stop", "-t", "1", "web"]).expect_success();
}

/// The two disks of `web`, copied aside, to be put back.
struct Disks {
    paths: [PathBuf; 2],
    aside: [PathBuf; 2],
    now: [Vec<u8>; 2],
}

fn digest(path: &Path) -> Vec<u8> {
    // Its holes are read as zeros, half a gigabyte of them, which takes a moment.
    let mut file = fs::File::open(path).expect("a disk");
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match std::io::Read::read(&mut file, &mut buffer).expect("read") {
            0 => return hash.finalize().to_vec(),
            read => hash.update(&buffer[..read]),
        }
    }
}

impl Disks {
    fn of(home: &TestHome) -> Disks {
        let machine = fs::canonicalize(home.path().join("machines/by-name/web")).expect("its folder");
        let paths = [machine.join("root.img"), home.path().join("volumes/data/data.img")];
        let aside = ["root", "data"].map(|name| home.file(&format!("{name}.aside")));
        let disks = Disks {
            now: [digest(&paths[0]), digest(&paths[1])],
            paths,
            aside,
        };
        for (from, to) in disks.paths.iter().zip(&disks.aside) {
            disks.copy(home, from, to);
        }
        disks
    }

    fn copy(&self, home: &TestHome, from: &Path, to: &Path) {
        let words = ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()];
        home.command("cp".as_ref(), words).finish().expect_success();
    }

    /// Which are as they were put aside.
    fn are_now(&self) -> [bool; 2] {
        [0, 1].map(|at| digest(&self.paths[at]) == self.now[at])
    }

    fn put_back(&self, home: &TestHome) {
        for (to, from) in self.paths.iter().zip(&self.aside) {
            self.copy(home, from, to);
        }
    }
}

/// Restores `web@then` with the command killed at every step, and then as a whole. How many steps there were.
pub(crate) fn restore_cut_at_every_step(home: &TestHome) -> u32 {
    let disks = Disks::of(home);
    let mut finished = 0;
    for step in 0..20 {
        let run = home
            .zmachine(["restore", "web@then"])
            .env(VARIABLE, format!("engine:{step}"))
            .finish();
        if run.code != KILLED {
            run.expect_success();
            assert_eq!(exec_output(home, "web", "cat /mark /data/mark"), "then\nthen");
            assert!(finished > 0 && finished < step, "{finished} of {step}");
            return step;
        }
        println!("  {}", run.stderr().trim_end());
        // The monitor that it had spawned by then goes on without it.
        if run.stderr().contains("monitor spawned") {
            until("it runs", PATIENCE, || (phase(home, "web") == "running").then_some(()));
            zmachine(home, &["kill", "web"]).expect_success();
            disks.put_back(home);
            continue;
        }
        // Each of these commands puts right what is to be put right; another machine may be the first one.
        zmachine(home, &["ps"]).expect_success();
        let now = disks.are_now();
        assert_eq!(now[0], now[1], "the disks are of two instants after step {step}");
        finished += u32::from(!now[0]);
        home.assert_host_clean();
        let folders = [disks.paths[0].parent(), disks.paths[1].parent()];
        for folder in folders.into_iter().flatten() {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(
                    !name.contains("restor") && !name.contains("replacing"),
                    "{name} is left"
                );
            }
        }
        disks.put_back(home);
    }
    panic!("a restore has too many steps");
}

#[test]
#[ignore = "minutes: make test-long"]
fn saving_survives_the_end_of_any_process() {
    let Some((home, image)) = home_with_box() else { return };
    saved(&home, &image);
    let mut kept = 0;
    for step in ["save: guest frozen", "save: machine saved"] {
        for victim in OF_ONE {
            let start = home
                .zmachine(["start", "web"])
                .env(VARIABLE, format!("monitor:stop {step}"));
            start.finish().expect_success();
            let create = home.zmachine(["snapshot", "create", "web@more"]).start();
            let held = held(&home, "web", create, PATIENCE).unwrap_or_else(|| panic!("{step} is not reached"));
            assert!(held.kill(&home, victim), "{step}: there is no {victim:?}");
            println!("  {step}, {victim:?}: {:?} {}", snapshots(&home), phase(&home, "web"));
            if victim == Victim::Server {
                // It is started again.
                assert_eq!(exec_output(&home, "web", "cat /data/mark; ls / >/dev/null"), "now");
            }
            end(&home, "web");
            let mut found = snapshots(&home);
            found.sort();
            // As a whole, or not at all.
            if found.iter().any(|name| name == "web@more") {
                kept += 1;
                zmachine(&home, &["fork", "web@more", "--name", "f"]).expect_success();
                assert_eq!(exec_output(&home, "f", "cat /mark /data/mark"), "now\nnow");
                zmachine(&home, &["rm", "-f", "f"]).expect_success();
                zmachine(&home, &["snapshot", "rm", "web@more"]).expect_success();
                found.retain(|name| name != "web@more");
            }
            assert_eq!(found, ["web@then"]);
        }
    }
    assert!(kept >= 1, "a machine whose root server dies is saved all the same");
}

/// Where a start from a snapshot is interrupted.
const STEPS: [&str; 7] = [
    "start: state is starting",
    "start: volumes ready",
    "start: before the hypervisor",
    "start: hypervisor started",
    "restore: hypervisor goes on",
    "restore: guest goes on",
    "start: state is running",
];

#[test]
#[ignore = "minutes: make test-long"]
fn restoring_survives_the_end_of_any_process() {
    let Some((home, image)) = home_with_box() else { return };
    saved(&home, &image);
    let disks = Disks::of(&home);
    let mut rows = 0;
    for step in STEPS {
        for victim in OF_ONE {
            let restore = home.zmachine(["restore", "web@then"]);
            let restore = restore.env(VARIABLE, format!("monitor:stop {step}")).start();
            let held = held(&home, "web", restore, PATIENCE).unwrap_or_else(|| panic!("{step} is not reached"));
            let was_there = held.kill(&home, victim);
            println!("  {step}, {victim:?} ({was_there}): {}", phase(&home, "web"));
            rows += u32::from(was_there);
            end(&home, "web");
            // It boots, with both disks of then.
            zmachine(&home, &["start", "web"]).expect_success();
            assert_eq!(
                exec_output(&home, "web", "cat /mark /data/mark"),
                "then\nthen",
                "{step}, {victim:?}"
            );
            end(&home, "web");
            disks.put_back(&home);
        }
    }
    assert!(rows >= 15, "only {rows} rows");
    assert!(restore_cut_at_every_step(&home) >= 7);
    end(&home, "web");
    // Between the command and the monitor nobody else gets the volume.
    let restore = home.zmachine(["restore", "web@then"]);
    let mut restore = restore.env(VARIABLE, "engine:stop start: before the monitor").start();
    let command = restore.id() as i32;
    until("it is held", PATIENCE, || {
        process(command).filter(|(_, _, state)| *state == 'T').map(drop)
    });
    let words = ["run", "--rm", "--network", "none", "-v", "data:/data", &image, "true"];
    let other = zmachine(&home, &words);
    assert!(
        other.code != 0 && other.stderr().contains("'data' is in use"),
        "{other}"
    );
    send(command, Signal::CONT);
    until("it is restored", PATIENCE, || restore.try_wait().expect("its status"));
    assert_eq!(exec_output(&home, "web", "cat /mark /data/mark"), "then\nthen");
    end(&home, "web");
}

#[test]
#[ignore = "minutes: make test-long"]
fn forking_survives_the_end_of_any_process() {
    let Some((home, image)) = home_with_box() else { return };
    saved(&home, &image);
    let mut rows = 0;
    for step in STEPS {
        for victim in OF_FORKS {
            zmachine(&home, &["fork", "web@then", "--name", "holder"]).expect_success();
            let fork = home.zmachine(["fork", "web@then", "--name", "f"]);
            let fork = fork.env(VARIABLE, format!("monitor:stop {step}")).start();
            let held = held(&home, "f", fork, PATIENCE).unwrap_or_else(|| panic!("{step} is not reached"));
            let was_there = held.kill(&home, victim);
            rows += u32::from(was_there);
            let machines = zmachine(&home, &["ps", "-a", "-q"]).expect_success().stdout();
            let is_there = machines.lines().any(|name| name == "f");
            println!(
                "  {step}, {victim:?} ({was_there}): {}",
                if is_there { "is there" } else { "is gone" }
            );
            if victim == Victim::Holder {
                // It has the memory too, and is none the worse.
                assert_eq!(
                    exec_output(&home, "f", "hostname; cat /mark /data/mark"),
                    "f\nthen\nthen"
                );
                zmachine(&home, &["fork", "web@then", "--name", "g"]).expect_success();
                assert_eq!(exec_output(&home, "g", "cat /mark"), "then");
                zmachine(&home, &["rm", "-f", "g"]).expect_success();
            }
            if is_there {
                zmachine(&home, &["rm", "-f", "f"]).expect_success();
            }
            zmachine(&home, &["rm", "-f", "holder"]).expect_success();
            home.assert_host_clean();
            assert_eq!(snapshots(&home), ["web@then"]);
            let volumes = zmachine(&home, &["volume", "ls", "-q"]).stdout();
            assert_eq!(volumes, "data\n", "{step}, {victim:?}");
        }
    }
    assert!(rows >= 22, "only {rows} rows");
}

#[test]
#[ignore = "minutes: make test-long"]
fn an_idle_machine_survives_the_end_of_any_process() {
    let Some((home, image)) = home_with_box() else { return };
    let volume = "data:/data:size=32M";
    let words = [
        "create",
        "--name",
        "i",
        "--idle-timeout",
        "1s",
        "-v",
        volume,
        &image,
        "sleep",
        "10000",
    ];
    zmachine(&home, &words).expect_success();
    let idle = || {
        let state = fs::read(home.path().join("machines/by-name/i/state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        (!state["idle_since"].is_null()).then_some(())
    };
    // Steps of falling asleep, and of waking; whether its memory is there after a kill at it.
    let steps = [
        ("idle: guest frozen", false),
        ("idle: machine saved", false),
        ("idle: saved", true),
        ("start: volumes ready#1", true),
        ("start: before the hypervisor#1", true),
        ("start: hypervisor started#1", true),
        ("restore: hypervisor goes on", false),
        ("restore: guest goes on", false),
    ];
    let mut rows = 0;
    for (step, is_kept) in steps {
        for victim in OF_ONE {
            let start = home
                .zmachine(["start", "i"])
                .env(VARIABLE, format!("monitor:stop {step}"));
            start.finish().expect_success();
            exec_output(&home, "i", "echo kept >/dev/shm/mark; echo kept >/data/mark; sync");
            let is_waking = !step.starts_with("idle");
            if is_waking {
                until("it is idle", PATIENCE, idle);
            }
            // Whoever comes while it falls asleep waits, and wakes it.
            let operation = match is_waking {
                true => home.zmachine(["exec", "i", "true"]).start(),
                false => home.command("sleep".as_ref(), ["60"]).start(),
            };
            let mut held = held(&home, "i", operation, PATIENCE).unwrap_or_else(|| panic!("{step} is not reached"));
            if !is_waking {
                let _ = held.operation.kill();
            }
            let was_there = held.kill(&home, victim);
            rows += u32::from(was_there);
            zmachine(&home, &["ps"]).expect_success();
            let runs = until("it goes on, or has ended", PATIENCE, || match &*phase(&home, "i") {
                "stopped" | "failed" => Some(false),
                _ => (sh(&home, "i", "true").code == 0).then_some(true),
            });
            if !runs {
                home.assert_host_clean();
                zmachine(&home, &["start", "i"]).expect_success();
            }
            let marks = exec_output(&home, "i", "cat /data/mark /dev/shm/mark 2>/dev/null || true");
            println!("  {step}, {victim:?} ({was_there}): {marks:?}");
            assert!(marks.starts_with("kept"), "{step}, {victim:?}: its disks");
            if is_kept || runs {
                assert_eq!(marks, "kept\nkept", "{step}, {victim:?}: its memory");
            }
            end(&home, "i");
            let folder = home.path().join("machines/by-name/i");
            for name in ["idle", ".idle"] {
                assert!(!folder.join(name).exists(), "{step}, {victim:?}: {name} is left");
            }
        }
    }
    assert!(rows >= 14, "only {rows} rows");
}
