//! Machines that are saved while they run, go on from there, and are forked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use zmachine_testkit::TestHome;

use crate::snapshot_kills::restore_cut_at_every_step;
use crate::support::{Checks, exec_output, home_with_box, inspect, phase, sh, until, until_logged, zmachine};

/// Counts once in 0.2 s, and keeps a file as long as what it has counted.
const COUNT: &str = "i=0; while true; do i=$((i+1)); echo n$i; echo $i >>/count; sleep 0.2; done";

/// Refused, in words with one of `part` in them; `|` is between two.
fn refused(home: &TestHome, words: &[&str], part: &str) {
    let refused = zmachine(home, words);
    assert!(
        refused.code != 0 && part.split('|').any(|part| refused.stderr().contains(part)),
        "{words:?} should say {part}: {} {}",
        refused.code,
        refused.stderr()
    );
}

/// The last number that a machine has counted.
fn counted(home: &TestHome, machine: &str) -> u32 {
    exec_output(home, machine, "tail -n 1 /count")
        .parse()
        .expect("a number")
}

/// What no two machines have in common: host name, id, MAC, address, random numbers before and after.
fn identity(home: &TestHome, machine: &str) -> Vec<String> {
    let script = "hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address; \
        ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'; cat /proc/sys/kernel/random/uuid; \
        head -c 16 /dev/urandom | od -An -x";
    let all = exec_output(home, machine, script);
    all.lines().map(|line| line.trim().to_owned()).collect()
}

/// What is on the host of a machine's snapshots and of those in progress.
fn snapshots(home: &TestHome) -> Vec<String> {
    let entries = fs::read_dir(home.path().join("snapshots"))
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

#[test]
fn a_machine_is_saved_forked_and_restored() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "--snapshots",
        "-p",
        "18085:80",
        "-v",
        "data:/data:size=32M",
        &image,
        "sh",
        "-c",
        COUNT,
    ];
    zmachine(&home, &words).expect_success();
    until_logged(&home, "web", "n3");
    exec_output(&home, "web", "echo then >/data/x");
    exec_output(&home, "web", "echo 0123456789abcdef0123456789abcdef >/etc/machine-id");

    let hook = "mkdir -p /etc/zmachine/freeze.d /etc/zmachine/thaw.d; cd /etc/zmachine; \
        printf '#!/bin/sh\\n[ ! -e /failing ] || exit 4\\necho f >>/hooks\\n' >freeze.d/a; \
        printf '#!/bin/sh\\necho t$ZMACHINE_COPY >>/hooks\\n[ -z \"$ZMACHINE_COPY\" ] || [ ! -e /bad ]\\n' >thaw.d/a; chmod +x */a";
    exec_output(&home, "web", hook);

    let mut at = 0;
    checks.that("it is saved while it runs, and goes on", || {
        at = counted(&home, "web");
        let made = zmachine(&home, &["snapshot", "create", "web@first"]);
        assert_eq!(made.expect_success().stdout(), "web@first\n");
        until("more is counted", Duration::from_secs(20), || {
            (counted(&home, "web") > at + 3).then_some(())
        });
        let listed = zmachine(&home, &["snapshot", "ls", "-q"]).expect_success().stdout();
        assert_eq!(listed, "web@first\n");
        let words = [
            "snapshot",
            "inspect",
            "web@first",
            "--format",
            "{{.kind}} {{json .volumes}}",
        ];
        assert_eq!(
            zmachine(&home, &words).expect_success().stdout(),
            "machine [\"data\"]\n"
        );
        exec_output(&home, "web", "echo later >/data/x");
        refused(
            &home,
            &["snapshot", "create", "web@first"],
            "a snapshot 'web@first' already",
        );
        refused(&home, &["snapshot", "create", "nobody"], "nobody");
    });

    checks.that("forks go on from there, each as a machine of its own", || {
        let made = zmachine(&home, &["fork", "web@first", "-n", "3", "--name", "f"]);
        assert_eq!(made.expect_success().stdout(), "f-1\nf-2\nf-3\n");
        until(
            "the memory is kept for the next fork",
            Duration::from_secs(20),
            || match keepers(&home)[..] {
                [keeper] => Some(keeper),
                _ => None,
            },
        );
        let all = ["web", "f-1", "f-2", "f-3"].map(|machine| identity(&home, machine));
        for index in 0..all[0].len() {
            let distinct: BTreeSet<&String> = all.iter().map(|one| &one[index]).collect();
            assert_eq!(distinct.len(), all.len(), "{all:?}");
        }
        assert_eq!(all[1][0], "f-1");
        for fork in ["f-1", "f-2", "f-3"] {
            let first = until("it counts", Duration::from_secs(20), || {
                let log = zmachine(&home, &["logs", fork]).stdout();
                log.lines().next().map(|line| line.trim_start_matches('n').to_owned())
            });
            let first: u32 = first.parse().expect("a number");
            assert!((at..at + 30).contains(&first), "{fork} began at {first}, saved at {at}");
            // The clock is the host's.
            let guest: f64 = exec_output(&home, fork, "date +%s").parse().expect("seconds");
            let host = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .expect("time");
            assert!((host.as_secs_f64() - guest).abs() < 5.0, "{guest}");
            assert_eq!(exec_output(&home, fork, "cat /data/x"), "then");
            exec_output(&home, fork, &format!("echo {fork} | tee /own >/data/x; sync"));
        }
        for fork in ["f-1", "f-2"] {
            assert_eq!(exec_output(&home, fork, "cat /own /data/x"), format!("{fork}\n{fork}"));
        }
        assert_eq!(exec_output(&home, "web", "cat /data/x"), "later");
        // A fork's agent finds the volume under the name that it has there.
        let volumes = volumes(&home);
        assert_eq!(volumes.len(), 4, "{volumes:?}");
        let own = format!("{}-0", inspect(&home, "f-1")["id"].as_str().expect("an id"));
        zmachine(&home, &["volume", "snapshot", "create", &own]).expect_success();
        assert_ne!(sh(&home, "web", "test -e /own").code, 0);
        // Names and addresses of the network are each one's own.
        let own = exec_output(&home, "f-2", "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'");
        let seen = exec_output(&home, "f-1", "nslookup f-2");
        assert!(seen.contains(&own), "{seen}: {own}");
    });

    checks.that("programs of the image run around it, and decide", || {
        assert_eq!(exec_output(&home, "web", "cat /hooks"), "f\nt");
        assert_eq!(exec_output(&home, "f-1", "cat /hooks"), "f\nt1");
        exec_output(&home, "web", "touch /failing");
        refused(
            &home,
            &["snapshot", "create", "web@no"],
            "/etc/zmachine/freeze.d/a ended with 4",
        );
        assert_eq!(snapshots(&home), ["web@first"]);
        exec_output(&home, "web", "rm /failing; touch /bad");
        refused(
            &home,
            &["fork", "web", "--name", "bad"],
            "/etc/zmachine/thaw.d/a ended with 1",
        );
        assert!(!zmachine(&home, &["ps", "-a", "-q"]).stdout().contains("bad"));
        exec_output(&home, "web", "rm /bad");
        assert_eq!(snapshots(&home), ["web@first"]);
    });

    checks.that("what cannot be done is refused by name", || {
        refused(&home, &["restore", "web@first"], "stop it first: zmachine stop web");
        refused(&home, &["restore", "web@second"], "no snapshot 'web@second'");
        refused(&home, &["fork", "web@a/b"], "cannot be the tag");
        refused(&home, &["fork", "web@first", "--name", "f-1"], "f-1");
        let folder = "/usr/share:/shared:ro";
        refused(
            &home,
            &["run", "-d", "--snapshots", "-v", folder, &image, "true"],
            "cannot be saved while it runs",
        );
        let words = [
            "run",
            "-d",
            "--name",
            "plain",
            "--network",
            "none",
            &image,
            "sleep",
            "1000",
        ];
        home.zmachine(words).env("ZMACHINE_WARM", "0").finish().expect_success();
        refused(&home, &["snapshot", "create", "plain"], "make it with --snapshots");
        refused(&home, &["fork", "plain"], "make it with --snapshots");
    });

    checks.that("disks alone are saved of any machine, and boot elsewhere", || {
        disks_alone(&home, "plain")
    });

    checks.that("a machine whose root is only read is saved and forked", || {
        let words = [
            "run",
            "-d",
            "--name",
            "ro",
            "--idle-timeout",
            "2s",
            "--read-only",
            "-p",
            "18086:80",
            &image,
        ];
        zmachine(
            &home,
            &[&words[..], &["httpd", "-f", "-p", "80", "-h", "/etc"]].concat(),
        )
        .expect_success();
        zmachine(&home, &["fork", "ro", "--name", "ro2"]).expect_success();
        assert_eq!(exec_output(&home, "ro2", "hostname; cat /etc/hostname"), "ro2\nro2");
        assert_ne!(sh(&home, "ro2", "touch /x").code, 0);
        zmachine(&home, &["rm", "-f", "ro2"]).expect_success();
    });

    checks.that(
        "one that nobody has to do with ends, and is there when somebody comes",
        || idle(&home, "ro", 18086),
    );

    checks.that(
        "a machine that runs is forked as it is, and no snapshot is left",
        || {
            let now = counted(&home, "web");
            let made = zmachine(&home, &["fork", "web"]);
            assert_eq!(made.expect_success().stdout(), "web-fork1\n");
            assert!(counted(&home, "web-fork1") >= now);
            assert_eq!(snapshots(&home), ["web@first"]);
            let run = [
                "fork",
                "web",
                "--name",
                "own",
                "-e",
                "COLOR=blue",
                "--",
                "sh",
                "-c",
                "echo $COLOR; exit 7",
            ];
            let ran = zmachine(&home, &run);
            assert_eq!(ran.expect_code(7).stdout(), "blue\n");
            zmachine(&home, &["rm", "-f", "web-fork1", "own", "f-2", "f-3"]).expect_success();
            assert_eq!(volumes(&home).len(), 2, "volumes of forks go with them");
        },
    );

    checks.that("a fork that is started again boots, with what is on its disk", || {
        // What it wrote to the memory that it shares is saved with it.
        exec_output(&home, "f-1", "echo f-1 >/dev/shm/own");
        zmachine(&home, &["snapshot", "create", "f-1@own"]).expect_success();
        zmachine(&home, &["fork", "f-1@own", "--name", "again"]).expect_success();
        assert_eq!(
            exec_output(&home, "again", "hostname; cat /own /data/x /dev/shm/own"),
            "again\nf-1\nf-1\nf-1"
        );
        zmachine(&home, &["rm", "-f", "again"]).expect_success();
        zmachine(&home, &["stop", "-t", "1", "f-1"]).expect_success();
        zmachine(&home, &["restore", "f-1@own"]).expect_success();
        assert_eq!(exec_output(&home, "f-1", "hostname; cat /dev/shm/own"), "f-1\nf-1");
        zmachine(&home, &["snapshot", "create", "f-1@more"]).expect_success();
        zmachine(&home, &["snapshot", "rm", "f-1@own", "f-1@more"]).expect_success();
        zmachine(&home, &["stop", "-t", "1", "f-1"]).expect_success();
        assert_eq!(phase(&home, "f-1"), "stopped");
        zmachine(&home, &["start", "f-1"]).expect_success();
        assert_eq!(exec_output(&home, "f-1", "cat /own /data/x"), "f-1\nf-1");
        zmachine(&home, &["rm", "-f", "f-1"]).expect_success();
    });

    checks.that("it is restored, with its disk of then, and can be saved again", || {
        zmachine(&home, &["stop", "-t", "1", "web"]).expect_success();
        let before = zmachine(&home, &["logs", "web"]).stdout().lines().count();
        {
            let lock = fs::File::open(home.path().join("volumes/data/lock")).expect("its lock");
            lock.try_lock().expect("nobody uses it");
            refused(&home, &["restore", "web@first"], "the volume 'data' is in use");
        }
        let volume = home.path().join("volumes/data");
        let aside = home.path().join("volumes/aside");
        fs::rename(&volume, &aside).expect("aside");
        refused(
            &home,
            &["restore", "web@first"],
            "'data' of the snapshot 'web@first' was removed",
        );
        fs::rename(&aside, &volume).expect("put back");
        zmachine(&home, &["start", "--from", "web@first"]).expect_success();
        let next = until("it counts", Duration::from_secs(20), || {
            let log = zmachine(&home, &["logs", "web"]).stdout();
            log.lines().nth(before).map(str::to_owned)
        });
        let next: u32 = next.trim_start_matches('n').parse().expect("a number");
        assert!((at..at + 30).contains(&next), "went on at {next}, saved at {at}");
        assert_eq!(exec_output(&home, "web", "cat /data/x"), "then");
        // Of those without a tag of the user's, one of an hour stays.
        for _ in 0..2 {
            zmachine(&home, &["snapshot", "create", "web", "--keep", "1h"]).expect_success();
        }
        assert_eq!(snapshots(&home), ["web@first", "web@snap1"]);
        zmachine(&home, &["stop", "-t", "1", "web"]).expect_success();
    });

    checks.that("what does not fit is told before anything starts", || refusals(&home));

    checks.that(
        "an archive of it is a snapshot elsewhere, and a damaged one is none",
        || {
            let archive = home.file("web.tar").display().to_string();
            zmachine(&home, &["snapshot", "export", "web@first", "-o", &archive]).expect_success();
            let made = zmachine(&home, &["snapshot", "import", &archive, "--name", "copy@x"]);
            assert_eq!(made.expect_success().stdout(), "copy@x\n");
            zmachine(&home, &["fork", "copy@x", "--name", "g"]).expect_success();
            assert_eq!(exec_output(&home, "g", "hostname; cat /data/x"), "g\nthen");
            zmachine(&home, &["rm", "-f", "g"]).expect_success();
            let file = fs::File::options().write(true).open(&archive).expect("the archive");
            file.set_len(file.metadata().expect("its length").len() / 2)
                .expect("cut");
            refused(
                &home,
                &["snapshot", "import", &archive, "--name", "half@x"],
                "no archive of a snapshot",
            );
            zmachine(&home, &["snapshot", "rm", "copy@x"]).expect_success();
            assert_eq!(snapshots(&home), ["web@first", "web@snap1"]);
        },
    );

    zmachine(&home, &["rm", "-f", "web"]).expect_success();
    zmachine(&home, &["snapshot", "rm", "web@first", "web@snap1"]).expect_success();
    assert_eq!(snapshots(&home), Vec::<String>::new());
    assert_eq!(volumes(&home), ["data"]);
    home.assert_host_clean();
}

/// The names of all volumes.
fn volumes(home: &TestHome) -> Vec<String> {
    let listed = zmachine(home, &["volume", "ls", "-q"]).expect_success().stdout();
    listed.lines().map(str::to_owned).collect()
}

/// Snapshots without memory of a machine that runs and was not built to be saved, in boots of which there are two.
fn disks_alone(home: &TestHome, machine: &str) {
    exec_output(home, machine, "echo then >/x");
    let name = format!("{machine}@disk");
    let made = zmachine(home, &["snapshot", "create", "--disk-only", &name]);
    assert_eq!(made.expect_success().stdout(), format!("{name}\n"));
    // It goes on.
    exec_output(home, machine, "echo later >/x");
    let listed = zmachine(home, &["snapshot", "ls"]).expect_success().stdout();
    assert!(
        listed
            .lines()
            .any(|line| line.contains(&name) && line.contains("disks")),
        "{listed}"
    );
    zmachine(home, &["fork", &name, "--name", "copy"]).expect_success();
    assert_eq!(exec_output(home, "copy", "hostname; cat /x"), "copy\nthen");
    zmachine(home, &["rm", "-f", "copy"]).expect_success();
    refused(home, &["restore", &name], "stop it first");
    zmachine(home, &["stop", "-t", "1", machine]).expect_success();
    zmachine(home, &["snapshot", "create", "--disk-only", machine, "--keep", "1h"]).expect_success();
    let archive = home.file("disk.tar").display().to_string();
    zmachine(home, &["snapshot", "export", &name, "-o", &archive]).expect_success();
    zmachine(home, &["snapshot", "rm", &name]).expect_success();
    zmachine(home, &["snapshot", "import", &archive]).expect_success();
    zmachine(home, &["restore", &name]).expect_success();
    assert_eq!(exec_output(home, machine, "cat /x"), "then");
    zmachine(home, &["snapshot", "rm", &name, &format!("{machine}@snap0")]).expect_success();
    zmachine(home, &["rm", "-f", machine]).expect_success();
}

/// A machine that serves `/etc` on `port` of the host, and has an idle timeout.
fn idle(home: &TestHome, machine: &str, port: u16) {
    let hypervisor = || inspect(home, machine)["state"]["hypervisor"].clone();
    let is_idle = || !inspect(home, machine)["state"]["idle_since"].is_null();
    let asleep = || {
        until("it is idle", Duration::from_secs(30), || is_idle().then_some(()));
        assert_eq!(hypervisor(), serde_json::Value::Null);
    };
    exec_output(home, machine, "echo kept >/dev/shm/mark");
    asleep();
    // Looking at it wakes nobody.
    zmachine(home, &["ps"]).expect_success();
    assert_ne!(zmachine(home, &["top", machine]).code, 0);
    assert!(is_idle());
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let answer = home.command("timeout".as_ref(), ["30", "bash", "-c", &script]).finish();
    let answer = answer.expect_success().stdout();
    assert!(answer.ends_with(&format!("\r\n\r\n{machine}\n")), "{answer}");
    assert_ne!(hypervisor(), serde_json::Value::Null);
    assert_eq!(exec_output(home, machine, "cat /dev/shm/mark"), "kept");
    // All the other ways are in `idle`.
    zmachine(home, &["rm", "-f", machine]).expect_success();
}

/// The processes that keep memory of snapshots open for a while.
fn keepers(home: &TestHome) -> Vec<u32> {
    let run = home.path().join("run");
    let run = run.to_str().expect("a path");
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.starts_with(&[b"zmachine", b"memory"]) && words.contains(&run.as_bytes())
        })
        .collect()
}

fn kill(pid: u32) {
    let _ = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
}

/// Everything that does not fit, each refused by name before anything is started. The machine `web` is stopped.
fn refusals(home: &TestHome) {
    let folder = home.path().join("snapshots/web@first");
    // A fork would be right to begin with memory that is open, whatever became of the file.
    keepers(home).into_iter().for_each(kill);
    let mut count = 0;
    let mut attempt = |part: &str| {
        count += 1;
        refused(home, &["restore", "web@first"], part);
        // It looks at the same; some of them are enough.
        if count % 3 == 0 {
            refused(home, &["fork", "web@first", "--name", "broken"], part);
        }
        let machines = zmachine(home, &["ps", "-a", "-q"]).stdout();
        assert_eq!(machines, "web\n", "{part}");
        assert_eq!(phase(home, "web"), "stopped", "{part}");
    };
    // Files that are not what was saved: cut, altered, missing.
    let mut with = |name: &str, change: &dyn Fn(&fs::File), part: &str| {
        let path = folder.join(name);
        let kept = folder.join("kept");
        fs::copy(&path, &kept).expect("a copy");
        let file = fs::File::options().read(true).write(true).open(&path);
        change(&file.expect("the file"));
        attempt(part);
        fs::rename(&kept, &path).expect("put back");
    };
    let cut = |file: &fs::File| file.set_len(1000).expect("cut");
    let altered = |file: &fs::File| file.write_all_at(b"?", 1000).expect("written");
    with("state", &altered, "'state' is not what was saved");
    with("state", &cut, "'state' is not what was saved");
    with("memory", &cut, "another length");
    with("memory", &|file| alter_memory(file), "is not what was saved");
    with("root.img", &cut, "'root.img' has another length");
    with("volume-0.img", &cut, "'volume-0.img' has another length");
    with("snapshot.json", &cut, "snapshot.json");
    // What it says of itself, of this host, of the machine.
    let text = |old: &'static str, new: &'static str| {
        move |file: &fs::File| {
            let mut bytes = vec![0; file.metadata().expect("its length").len() as usize];
            file.read_exact_at(&mut bytes, 0).expect("read");
            let text = String::from_utf8(bytes).expect("text");
            assert!(text.contains(old), "{old} is not in {text}");
            let changed = text.replace(old, new);
            file.set_len(0).expect("emptied");
            file.write_all_at(changed.as_bytes(), 0).expect("written");
        }
    };
    let cases = [
        ("{\n  \"version\": 1", "{\n  \"version\": 9", "format version 9"),
        (
            "\"memory_bytes\": 536870912",
            "\"memory_bytes\": 268435456",
            "bytes of memory",
        ),
        ("\"cpus\": 1", "\"cpus\": 2", "CPUs|2 queues"),
        (
            "\"hypervisor\": \"qemu ",
            "\"hypervisor\": \"qemu 1",
            "was saved by qemu 1",
        ),
        (
            "\"cpu\": null",
            "\"cpu\": \"Xeon (flags 12ab)\"",
            "saved with the CPU 'Xeon (flags 12ab)'",
        ),
        ("\"tsc_khz\": ", "\"tsc_khz\": 1", "does not fit this host"),
        ("zm-upper", "zm-other", "it was saved with the devices"),
        (
            "\"id\": \"volume0\"",
            "\"id\": \"volume7\"",
            "it was saved with the devices",
        ),
        (
            "\"is_saveable\": true",
            "\"is_saveable\": false",
            "not built to be saved",
        ),
    ];
    for (old, new, part) in cases {
        with("snapshot.json", &text(old, new), part);
    }
    let mut without = |path: &Path, part: &str| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).expect("aside");
        attempt(part);
        fs::rename(&aside, path).expect("put back");
    };
    without(&folder.join("state"), "damaged");
    without(&folder.join("root.img"), "'root.img' is missing");
    let image = inspect(home, "web")["plan"]["image"]
        .as_str()
        .expect("a digest")
        .to_owned();
    without(
        &home.path().join("images").join(image),
        "the image of the snapshot 'web@first' is not here",
    );
    assert!(count >= 15, "only {count} refusals");
}

/// Changes one byte of memory that is used.
fn alter_memory(file: &fs::File) {
    let byte_at = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        byte[0]
    };
    let used = (1 << 20..64 << 20).step_by(512).find(|at| byte_at(*at) != 0);
    let used = used.expect("memory that is used");
    file.write_all_at(&[byte_at(used) ^ 1], used).expect("written");
}

#[test]
fn saving_and_forking_survive_a_power_cut_at_every_point() {
    const VARIABLE: &str = "ZMACHINE_ABORT_AT";
    const KILLED: i32 = 137;
    let Some((home, image)) = home_with_box() else { return };
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "--snapshots",
        "--network",
        "none",
        "-v",
        "data:/data:size=32M",
        &image,
        "sleep",
        "1000",
    ];
    zmachine(&home, &run).expect_success();
    exec_output(&home, "web", "echo then | tee /mark >/data/mark");
    let cut = |words: &[&str], after: &dyn Fn()| {
        for point in 0..40 {
            let run = home.zmachine(words).env(VARIABLE, format!("engine:{point}")).finish();
            if run.code != KILLED {
                run.expect_success();
                return point;
            }
            println!("  {}", run.stderr().trim_end());
            zmachine(&home, &["ps"]).expect_success();
            after();
        }
        panic!("{words:?} passes too many points");
    };
    let points = cut(&["snapshot", "create", "web@a"], &|| {
        // It is there as a whole, or not at all.
        for name in snapshots(&home) {
            assert_eq!(name, "web@a");
            zmachine(&home, &["snapshot", "rm", "web@a"]).expect_success();
        }
        assert_eq!(exec_output(&home, "web", "echo fine"), "fine");
    });
    assert!(points >= 1, "only {points} points in snapshot");
    let points = cut(&["fork", "web@a", "--name", "f"], &|| {
        let machines = zmachine(&home, &["ps", "-a", "-q"]).stdout();
        if machines.lines().any(|name| name == "f") {
            assert!(
                home.path().join("machines/by-name/f/root.img").exists(),
                "it has its disk"
            );
            zmachine(&home, &["rm", "-f", "f"]).expect_success();
        }
        assert_eq!(snapshots(&home), ["web@a"]);
    });
    assert!(points >= 6, "only {points} points in fork");
    zmachine(&home, &["rm", "-f", "f"]).expect_success();
    zmachine(&home, &["snapshot", "create", "web@then"]).expect_success();
    exec_output(&home, "web", "echo now | tee /mark >/data/mark; sync");
    zmachine(&home, &["stop", "-t", "1", "web"]).expect_success();
    let points = restore_cut_at_every_step(&home);
    assert!(points >= 7, "only {points} points in restore");
    zmachine(&home, &["rm", "-f", "web"]).expect_success();
    home.assert_host_clean();
}

#[test]
fn a_warm_start_is_as_a_cold_one() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let templates = || {
        let all = fs::read_dir(home.path().join("templates"))
            .into_iter()
            .flatten()
            .flatten();
        let names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).count()
    };
    let run = |words: &[&str]| {
        let ran = zmachine(&home, &[&["run", "--rm", "--warm"], words].concat());
        ran.expect_success();
        ran.stdout()
    };
    checks.that(
        "the first start makes a template, and later ones begin there with what is their own",
        || {
            assert_eq!(run(&["--network", "none", &image, "echo", "first"]), "first\n");
            assert_eq!(templates(), 1);
            let words = [
                "run",
                "--rm",
                "-i",
                "--warm",
                "--network",
                "none",
                "--hostname",
                "own",
                "-e",
                "A=b",
            ];
            let more = ["-w", "/tmp", "-u", "1:1", "--name", "w", &image];
            let script = ["sh", "-c", "hostname; echo $A; pwd; id -u; cat; exit 3"];
            let ran = home
                .zmachine([&words[..], &more, &script].concat())
                .input(b"typed\n")
                .finish();
            assert_eq!((ran.code, &*ran.stdout()), (3, "own\nb\n/tmp\n1\ntyped\n"));
            let why = zmachine(&home, &["why", "w"]).expect_success().stdout();
            assert!(
                why.contains("guest thaw") && !why.contains("guest boot"),
                "it booted: {why}"
            );
            assert_eq!(templates(), 1);
        },
    );
    checks.that(
        "what one writes the next does not find, and random numbers differ",
        || {
            let script = "ls /left 2>/dev/null; touch /left; cat /proc/sys/kernel/random/uuid";
            let of = || run(&["--network", "none", &image, "sh", "-c", script]);
            let all: BTreeSet<String> = (0..3).map(|_| of()).collect();
            assert_eq!(all.len(), 3, "{all:?}");
            assert!(all.iter().all(|text| !text.contains("/left")), "{all:?}");
        },
    );
    checks.that("networks, secrets and restarts are its own", || {
        let secret = home.file("s");
        fs::write(&secret, "hidden").expect("a secret");
        run(&[&image, "true"]);
        assert_eq!(templates(), 2, "one with a network is another one");
        let from = format!("s={}", secret.display());
        let words = [
            "run", "-d", "--warm", "--name", "net", "--secret", &from, &image, "sleep", "1000",
        ];
        zmachine(&home, &words).expect_success();
        assert_eq!(exec_output(&home, "net", "cat /run/secrets/s"), "hidden");
        let own = exec_output(&home, "net", "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'");
        assert!(exec_output(&home, "net", "nslookup net").contains(&own));
        exec_output(&home, "net", "echo kept >/kept");
        zmachine(&home, &["restart", "-t", "1", "net"]).expect_success();
        assert_eq!(exec_output(&home, "net", "cat /kept /run/secrets/s"), "kept\nhidden");
        zmachine(&home, &["rm", "-f", "net"]).expect_success();
    });
    checks.that(
        "another size is another template, and what cannot be saved starts as always",
        || {
            run(&["--network", "none", "--memory", "256M", &image, "true"]);
            assert_eq!(templates(), 3);
            let words = [
                "--network",
                "none",
                "--read-only",
                &image,
                "sh",
                "-c",
                "touch /x 2>/dev/null || echo no",
            ];
            assert_eq!(run(&words), "no\n");
            assert_eq!(templates(), 3);
        },
    );
    checks.that("a damaged template is not used", || {
        // With memory that is open already a start is right to begin, whatever became of the file.
        keepers(&home).into_iter().for_each(kill);
        for folder in fs::read_dir(home.path().join("templates"))
            .expect("templates")
            .flatten()
        {
            if folder.path().join("state").exists() {
                fs::write(folder.path().join("memory"), "x").expect("damaged");
            }
        }
        let ran = zmachine(
            &home,
            &["run", "--rm", "--warm", "--network", "none", &image, "echo", "fine"],
        );
        assert_eq!((ran.code, &*ran.stdout()), (0, "fine\n"));
        assert!(ran.stderr().contains("is not used"), "{}", ran.stderr());
        assert_eq!(run(&["--network", "none", &image, "echo", "again"]), "again\n");
    });
    home.assert_host_clean();
}
