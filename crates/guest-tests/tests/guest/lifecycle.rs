//! What operators rely on: logs that lose nothing, records of every start, restarts, copies, many commands at once.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use serde_json::Value;
use zmachine_testkit::{Finished, TestHome};

use crate::life::in_background;
use crate::support::{Checks, exec_output, home_with_box, inspect, noise, phase, until, until_logged, zmachine};

/// A number from the environment, for long runs by hand.
fn count(variable: &str, usual: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

fn json(run: &Finished) -> Value {
    serde_json::from_str(&run.expect_success().stdout()).expect("JSON")
}

fn why(home: &TestHome, machine: &str) -> Value {
    json(&zmachine(home, &["why", "-o", "json", machine]))[0].clone()
}

#[test]
fn a_failing_service_is_restarted_explained_and_remembered() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    checks.that(
        "on-failure:3 restarts three times, then it is failed with its logs intact",
        || {
            let run = [
                "run",
                "-d",
                "--name",
                "f",
                "--restart",
                "on-failure:3",
                &image,
                "sh",
                "-c",
                "echo run; exit 7",
            ];
            zmachine(&home, &run).expect_success();
            until("it has failed", Duration::from_secs(120), || {
                (phase(&home, "f") == "failed").then_some(())
            });
            let state = &inspect(&home, "f")["state"];
            assert_eq!(
                (&state["restarts"], &state["starts"]),
                (&Value::from(3), &Value::from(4))
            );
            assert!(
                state["failure"]["message"]
                    .as_str()
                    .expect("a message")
                    .contains("after 3 restarts"),
                "{state}"
            );
            assert_eq!(zmachine(&home, &["logs", "f"]).stdout(), "run\n".repeat(4));
            let listed = zmachine(&home, &["ps", "-a"]).stdout();
            assert!(
                listed.contains("Failed ") && listed.contains(", 3 restarts"),
                "{listed}"
            );
            home.assert_host_clean();
        },
    );
    checks.that("the waits grow", || {
        let times: Vec<f64> = zmachine(&home, &["events", "-o", "json"])
            .stdout()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .filter(|event| matches!(event["event"].as_str(), Some("restarting" | "starting")))
            .map(|event| {
                event["time"]
                    .as_str()
                    .expect("a time")
                    .parse::<jiff::Timestamp>()
                    .expect("a time")
                    .as_millisecond() as f64
            })
            .collect();
        let waits: Vec<f64> = times[1..]
            .chunks_exact(2)
            .map(|pair| (pair[1] - pair[0]) / 1000.0)
            .collect();
        for (wait, least) in waits.iter().zip([1.0, 2.0, 4.0]) {
            assert!((least - 0.1..least + 2.0).contains(wait), "{waits:?}");
        }
        assert_eq!(waits.len(), 3, "{waits:?}");
    });
    checks.that(
        "why tells the steps, what it ran on and what it means, also after rm",
        || {
            let exec_output = why(&home, "f");
            assert_eq!(
                exec_output["explanation"]["what"],
                "its entrypoint ended by itself, with code 7"
            );
            assert_eq!(
                (&exec_output["number"], &exec_output["restarts"]),
                (&Value::from(4), &Value::from(3))
            );
            assert!(
                exec_output["hypervisor"]
                    .as_str()
                    .expect("a version")
                    .starts_with("qemu "),
                "{exec_output}"
            );
            let phases: Vec<&str> = exec_output["phases"]
                .as_array()
                .expect("phases")
                .iter()
                .filter_map(|p| p["name"].as_str())
                .collect();
            for name in ["rootfs server", "hypervisor", "guest boot", "guest: root", "entrypoint"] {
                assert!(phases.contains(&name), "{phases:?}");
            }
            zmachine(&home, &["rm", "f"]).expect_success();
            assert_eq!(why(&home, "f"), exec_output);
            assert_eq!(zmachine(&home, &["logs", "f"]).stdout(), "run\n".repeat(4));
            zmachine(&home, &["why", "nobody"]).expect_code(3);
        },
    );
    checks.that("always: stop ends the row, start --all-enabled begins it again", || {
        zmachine(
            &home,
            &["run", "-d", "--name", "a", "--restart", "always", &image, "true"],
        )
        .expect_success();
        until("it waits", Duration::from_secs(60), || {
            (phase(&home, "a") == "restarting").then_some(())
        });
        zmachine(&home, &["start", "a"]).expect_code(4);
        zmachine(&home, &["stop", "a"]).expect_success();
        assert_eq!(phase(&home, "a"), "stopped");
        home.assert_host_clean();
        assert_eq!(
            zmachine(&home, &["start", "--all-enabled"]).expect_success().stdout(),
            "a\n"
        );
        zmachine(&home, &["rm", "-f", "a"]).expect_success();
        home.assert_host_clean();
    });
    checks.that("a panic and a lack of memory are told apart from other ends", || {
        let run = |name: &str, script: &str| {
            zmachine(
                &home,
                &["run", "--name", name, "-m", "128M", &image, "sh", "-c", script],
            );
            why(&home, name)["explanation"].to_string()
        };
        let panicked = run("p", "echo c > /proc/sysrq-trigger; sleep 100");
        assert!(
            panicked.contains("kernel panicked: sysrq triggered crash"),
            "{panicked}"
        );
        let eaten = run(
            "o",
            "for n in 1 2 3 4 5; do dd if=/dev/zero of=/dev/null bs=40M & done; sleep 15; exit 9",
        );
        assert!(
            eaten.contains("ran out of memory") && eaten.contains("give it more memory"),
            "{eaten}"
        );
    });
}

#[test]
fn copies_and_many_commands() {
    let Some((home, image)) = home_with_box() else { return };
    zmachine(&home, &["run", "-d", "--name", "m", &image, "sleep", "1000"]).expect_success();
    let mut checks = Checks::default();
    checks.that(
        "cp: a tree there and back, with modes, times, links and an empty directory",
        || {
            let tree = home.file("tree");
            std::fs::create_dir_all(tree.join("sub/empty")).expect("folders");
            std::fs::write(tree.join("big"), noise(3, 5_000_000)).expect("a file");
            std::fs::write(tree.join("sub/run"), "#!").expect("a file");
            std::fs::set_permissions(tree.join("sub/run"), std::fs::Permissions::from_mode(0o751)).expect("a mode");
            symlink("../big", tree.join("sub/link")).expect("a link");
            let (to, from) = (tree.to_str().expect("a path"), home.file("back"));
            zmachine(&home, &["cp", to, "m:/copied"]).expect_success();
            assert_eq!(
                exec_output(&home, "m", "stat -c %a /copied/sub/run; readlink /copied/sub/link"),
                "751\n../big"
            );
            zmachine(&home, &["cp", "m:/copied", from.to_str().expect("a path")]).expect_success();
            assert!(std::fs::read(from.join("big")).expect("a file") == noise(3, 5_000_000));
            let (there, back) = (
                tree.join("sub/run").metadata().expect("a file"),
                from.join("sub/run").metadata().expect("a file"),
            );
            assert_eq!((there.mode(), there.mtime()), (back.mode(), back.mtime()));
            assert_eq!(
                std::fs::read_link(from.join("sub/link")).expect("a link").to_str(),
                Some("../big")
            );
            assert!(from.join("sub/empty").is_dir());
        },
    );
    checks.that("cp: into a directory, contents alone, and what cannot be", || {
        let file = home.file("one");
        std::fs::write(&file, "one").expect("a file");
        let one = file.to_str().expect("a path");
        zmachine(&home, &["cp", one, "m:/tmp"]).expect_success();
        zmachine(&home, &["cp", "m:/copied/sub/.", "m:/x"]).expect_code(2);
        assert_eq!(exec_output(&home, "m", "cat /tmp/one"), "one");
        zmachine(&home, &["cp", "m:/nothing", "."]).expect_code(3);
        zmachine(&home, &["cp", one, "m:/no/where"]).expect_code(3);
        zmachine(&home, &["cp", one, "nobody:/"]).expect_code(3);
        zmachine(&home, &["cp", "/nothing/here", "m:/"]).expect_code(3);
    });
    checks.that("exec: a hundred at once", || {
        let one = |n: usize| {
            let script = format!("sleep 0.5; echo {n}; exit {n}");
            (n, in_background(home.zmachine(["exec", "m", "sh", "-c", &script])))
        };
        for (n, run) in (1..=100).map(one).collect::<Vec<_>>() {
            let run = run.join().expect("an exec");
            assert_eq!(run.expect_code(n as i32).stdout(), format!("{n}\n"));
        }
    });
    checks.that("cp: into and out of a machine that does not run", || {
        zmachine(&home, &["stop", "-t", "0", "m"]).expect_success();
        let (one, out) = (home.file("one").display().to_string(), home.file("out"));
        zmachine(&home, &["cp", &one, "m:/late"]).expect_success();
        zmachine(&home, &["cp", "m:/late", &out.display().to_string()]).expect_success();
        assert_eq!(std::fs::read_to_string(out).expect("a file"), "one");
        zmachine(&home, &["cp", &one, "m:/no/where"]).expect_code(3);
        assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "m\n");
    });
    checks.that("of several starts at once one wins, the others are conflicts", || {
        zmachine(&home, &["stop", "-t", "0", "m"]).expect_success();
        let starts: Vec<_> = (0..4).map(|_| in_background(home.zmachine(["start", "m"]))).collect();
        let codes: Vec<i32> = starts
            .into_iter()
            .map(|start| start.join().expect("a start").code)
            .collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == 4).count(), 3, "{codes:?}");
        assert_eq!(exec_output(&home, "m", "cat /late"), "one");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}

#[test]
fn a_flood_of_lines_is_logged_in_order_forwarded_and_followed() {
    let Some((home, image)) = home_with_box() else { return };
    let lines = count("ZMACHINE_TEST_LINES", 100_000);
    let receiver = home.file("forwarded");
    let to = format!("file://{}", receiver.display());
    let script = format!("seq 1 {lines} & seq 1 {lines} >&2; wait; sleep 1000");
    let run = [
        "run",
        "-d",
        "--name",
        "l",
        "--log-to",
        &to,
        "--log-opt",
        "max-size=1M",
        "--log-opt",
        "max-files=1000",
        &image,
        "sh",
        "-c",
        &script,
    ];
    zmachine(&home, &run).expect_success();
    let monitor = inspect(&home, "l")["state"]["monitor"]["pid"]
        .as_u64()
        .expect("a monitor");
    let follow = in_background(home.zmachine(["logs", "-f", "l"]));
    // What it has of its own; the pages of its program are the host's, and as many as the program has.
    let own_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{monitor}/status")).expect("the monitor");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.expect("RssAnon").trim().trim_end_matches("kB").trim();
        kib.parse::<u64>().expect("a number")
    };
    let mut most = 0;
    until("all lines are there", Duration::from_secs(600), || {
        most = most.max(own_kib());
        let last = zmachine(&home, &["logs", "-n", "1", "--source", "stdout", "l"]).stdout();
        let error = zmachine(&home, &["logs", "-n", "1", "--source", "stderr", "l"]).stderr();
        (last.trim() == lines.to_string() && error.trim() == lines.to_string()).then_some(())
    });
    assert!(most < 4 << 10, "the monitor took {most} kB");
    zmachine(&home, &["kill", "l"]).expect_success();
    let followed = follow.join().expect("logs -f");
    let all = zmachine(&home, &["logs", "l"]);
    for (what, text) in [
        ("stdout", all.stdout()),
        ("stderr", all.stderr()),
        ("followed", followed.stdout()),
        ("followed", followed.stderr()),
    ] {
        assert!(
            text.lines().enumerate().all(|(n, line)| line == (n + 1).to_string()),
            "{what}"
        );
        assert_eq!(text.lines().count(), lines, "{what}");
    }
    let forwarded = BufReader::new(std::fs::File::open(&receiver).expect("the file"));
    let mut next = [1, 1];
    let mut begun = [String::new(), String::new()];
    for line in forwarded.lines() {
        let entry: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let stream = match entry["source"].as_str() {
            Some("stdout") => 0,
            Some("stderr") => 1,
            _ => continue,
        };
        begun[stream].push_str(entry["text"].as_str().expect("a text"));
        if entry["partial"] == false {
            assert_eq!(std::mem::take(&mut begun[stream]), next[stream].to_string());
            next[stream] += 1;
        }
    }
    assert_eq!(next, [lines + 1; 2]);
    println!("  {lines} lines to both streams: monitor at most {most} kB");
    zmachine(&home, &["rm", "l"]).expect_success();
}

#[test]
fn cycles_leave_the_host_as_it_was() {
    let Some((home, image)) = home_with_box() else { return };
    let cycle = || {
        zmachine(&home, &["create", "--name", "c", &image, "sleep", "1000"]).expect_success();
        zmachine(&home, &["start", "c"]).expect_success();
        zmachine(&home, &["stop", "-t", "0", "c"]).expect_success();
        zmachine(&home, &["rm", "c"]).expect_success();
    };
    // The first makes what all share: the network, the image, the initramfs, and every block in the cache, of which a machine
    // that is stopped at once reads some or others.
    zmachine(
        &home,
        &["run", "--rm", &image, "sh", "-c", "cat /bin/* /etc/* >/dev/null"],
    )
    .expect_success();
    cycle();
    home.assert_host_clean();
    let before = files(&home);
    let cycles = count("ZMACHINE_TEST_CYCLES", 3);
    let started = std::time::Instant::now();
    for number in 1..=cycles {
        cycle();
        home.assert_host_clean();
        assert_eq!(open_files(&home), 0, "after {number} cycles");
    }
    let after = files(&home);
    assert_eq!(after, before);
    println!(
        "  {cycles} cycles of create, start, stop and rm in {:.0} s; {} files with {} KiB before and after",
        started.elapsed().as_secs_f64(),
        after.len(),
        after.iter().map(|(_, bytes)| bytes).sum::<u64>() / 1024
    );
}

/// Open files of all processes but this one that lie in the home.
fn open_files(home: &TestHome) -> usize {
    let entries = |path: std::path::PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    entries("/proc".into())
        .filter(|process| process.file_name().to_string_lossy() != own)
        // It keeps a template's memory for a minute, on purpose.
        .filter(|process| std::fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name != "zm-memory\n"))
        .flat_map(|process| entries(process.path().join("fd")))
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(home.path())))
        .count()
}

/// Everything in the home with its disk use in bytes, but what is kept of removed machines and of events on purpose.
fn files(home: &TestHome) -> Vec<(String, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut waiting = vec![home.path()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
            let path = entry.path();
            if path.ends_with("removed") || path.ends_with("kernels") {
                continue;
            }
            if entry.file_type().expect("a type").is_dir() {
                waiting.push(path.clone());
            }
            // Events on purpose, and the marks of blocks that were verified, a sparse table of a fixed length.
            let name = entry.file_name();
            let is_record = name.to_string_lossy().starts_with("events.jsonl") || name == ".verified";
            let bytes = entry.metadata().expect("its size").blocks() * 512;
            found.push((path.display().to_string(), if is_record { 0 } else { bytes }));
        }
    }
    found.sort();
    found
}

#[test]
fn another_boot_of_the_host_is_noticed_and_policies_bring_machines_back() {
    let Some((home, image)) = home_with_box() else { return };
    zmachine(
        &home,
        &[
            "run",
            "-d",
            "--name",
            "u",
            "--restart",
            "unless-stopped",
            &image,
            "sh",
            "-c",
            "echo up; sleep 1000",
        ],
    )
    .expect_success();
    until_logged(&home, "u", "up");
    let folder = home
        .path()
        .join("machines/by-name/u")
        .canonicalize()
        .expect("the folder");
    let monitor = inspect(&home, "u")["state"]["monitor"]["pid"]
        .as_i64()
        .expect("a monitor");
    let pid = rustix::process::Pid::from_raw(monitor as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the monitor");
    // As after a power cut: the state says running, in a boot that is over, by a clock that was ahead.
    let path = folder.join("state.json");
    let state = std::fs::read_to_string(&path).expect("the state");
    let mut state: Value = serde_json::from_str(&state).expect("JSON");
    state["boot_id"] = "another boot".into();
    state["started_at"] = "2199-01-01T00:00:00Z".into();
    until("the lock is free", Duration::from_secs(20), || {
        std::fs::write(&path, state.to_string()).expect("the state");
        zmachine(&home, &["ps"])
            .stderr()
            .contains("the host was restarted while it ran")
            .then_some(())
    });
    home.assert_host_clean();
    let exec_output = why(&home, "u")["explanation"].to_string();
    assert!(
        exec_output.contains("the host was restarted") && exec_output.contains("--all-enabled"),
        "{exec_output}"
    );
    assert_eq!(
        zmachine(&home, &["start", "--all-enabled"]).expect_success().stdout(),
        "u\n"
    );
    zmachine(&home, &["stop", "-t", "0", "u"]).expect_success();
    // Its user stopped it, so it stays so.
    assert_eq!(
        zmachine(&home, &["start", "--all-enabled"]).expect_success().stdout(),
        ""
    );
    zmachine(&home, &["rm", "u"]).expect_success();
}
