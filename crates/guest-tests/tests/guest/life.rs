//! One machine through its whole life, and everything a user asks of it on the way.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;
use zmachine_testkit::{Finished, Invocation, TestHome, Tree};

use crate::support::{Checks, exec_output, home, inspect, noise, phase, sh, until, until_logged, zmachine};

/// Tells what it gets. TERM ends it with 9 after it wrote a file; USR2 makes it deaf to TERM.
const SERVICE: &str = "trap 'echo got term; echo kept > /kept; exit 9' TERM
trap 'echo got usr1' USR1
trap 'trap \"\" TERM; echo deaf' USR2
echo to stdout
echo to stderr >&2
while :; do sleep 0.2; done";

#[test]
fn a_service_lives_from_create_to_rm() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home)
        .script("bin/service", SERVICE)
        .file("bin/plain", "no program\n");
    let image = tree.entrypoint("/bin/service", &[]).pack(&home, "service");
    let mut checks = Checks::default();
    checks.that("create prints the name and starts nothing", || {
        let made = zmachine(&home, &["create", "--name", "s", "-e", "FROM=spec", &image]);
        assert_eq!(made.expect_success().stdout(), "s\n");
        assert_eq!(phase(&home, "s"), "created");
        assert_eq!(zmachine(&home, &["ps", "-q"]).stdout(), "");
        assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "s\n");
    });
    assert_eq!(zmachine(&home, &["start", "s"]).expect_success().stdout(), "s\n");
    until_logged(&home, "s", "to stdout");
    checks.that("ps and inspect", || listed(&home));
    checks.that("a second start, create or run of it is a conflict", || {
        zmachine(&home, &["start", "s"]).expect_code(4);
        zmachine(&home, &["create", "--name", "s", &image]).expect_code(4);
        zmachine(&home, &["run", "--name", "s", &image]).expect_code(125);
        assert!(zmachine(&home, &["rm", "s"]).expect_code(4).stderr().contains("rm -f"));
    });
    checks.that("logs", || logs(&home));
    exec_checks(&mut checks, &home);
    checks.that("pause and resume", || {
        zmachine(&home, &["pause", "s"]).expect_success();
        assert_eq!(phase(&home, "s"), "paused");
        // Longer than the clocks may differ afterwards.
        thread::sleep(Duration::from_secs(3));
        zmachine(&home, &["resume", "s"]).expect_success();
        assert_eq!(exec_output(&home, "s", "echo awake"), "awake");
        until("its clock is the host's", Duration::from_secs(30), || {
            has_the_hosts_time(&home)
        });
    });
    checks.that("an emulated guest is told how fast its clock runs", || {
        let line = exec_output(&home, "s", "cat /proc/cmdline");
        assert!(
            !line.contains("tsc=reliable") || line.contains("tsc_early_khz="),
            "{line}"
        );
    });
    checks.that("kill -s reaches the entrypoint", || {
        zmachine(&home, &["kill", "-s", "USR1", "s"]).expect_success();
        until_logged(&home, "s", "got usr1");
    });
    checks.that("stop: the handler runs, everybody who waits is told", || stopped(&home));
    checks.that("the writable layer is whole after a stop", || {
        assert_eq!(fsck(&home, "s", "-fn"), 0)
    });
    checks.that("start again: the writable layer is kept", || {
        zmachine(&home, &["start", "s"]).expect_success();
        assert_eq!(exec_output(&home, "s", "cat /kept /mine"), "kept\nmine");
    });
    checks.that("stop -t: a deaf service is killed after its grace", || {
        zmachine(&home, &["kill", "-s", "SIGUSR2", "s"]).expect_success();
        until_logged(&home, "s", "deaf");
        let started = Instant::now();
        zmachine(&home, &["stop", "-t", "1", "s"]).expect_success();
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        assert_eq!(zmachine(&home, &["wait", "s"]).stdout(), "137\n");
        assert_eq!(fsck(&home, "s", "-fn"), 0);
    });
    checks.that("kill keeps what was written, and a power cut what was synced", || {
        killed(&home);
    });
    checks.that("restart and rm -f", || {
        assert_eq!(zmachine(&home, &["restart", "s"]).expect_success().stdout(), "s\n");
        assert_eq!(exec_output(&home, "s", "cat /kept /late /synced"), "kept\nlate\nsynced");
        assert_eq!(inspect(&home, "s")["state"]["starts"], 5);
        assert_eq!(zmachine(&home, &["rm", "-f", "s"]).expect_success().stdout(), "s\n");
        assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "");
        home.assert_host_clean();
    });
}

fn json(run: &Finished) -> Value {
    serde_json::from_str(&run.expect_success().stdout()).expect("JSON")
}

fn listed(home: &TestHome) {
    let table = zmachine(home, &["ps"]).stdout();
    let row = table.lines().find(|line| line.starts_with("s ")).expect("a row");
    assert!(
        row.contains(" Up ") && row.contains("service.fl") && row.contains("\"/bin/service\""),
        "{table}"
    );
    let rows = json(&zmachine(home, &["ps", "-o", "json"]));
    assert_eq!(
        (&rows[0]["name"], &rows[0]["state"]),
        (&Value::from("s"), &Value::from("running"))
    );
    assert_eq!(rows[0]["memory_bytes"], 512 << 20);
    let all = inspect(home, "s");
    assert!(
        row.contains(all["state"]["addresses"][0].as_str().expect("an address")),
        "{table}"
    );
    assert!(
        all["state"]["guest_kernel"]
            .as_str()
            .is_some_and(|k| k.starts_with(char::is_numeric)),
        "{all}"
    );
    until("bytes fetched in inspect", Duration::from_secs(20), || {
        let fetched = inspect(home, "s")["state"]["rootfs_counters"]["bytes_fetched"].as_u64();
        (fetched > Some(500_000)).then_some(())
    });
}

fn logs(home: &TestHome) {
    let all = zmachine(home, &["logs", "s"]);
    assert_eq!(
        (all.stdout().as_str(), all.stderr().as_str()),
        ("to stdout\n", "to stderr\n")
    );
    let stamped = zmachine(home, &["logs", "-t", "--source", "stdout", "s"]).stdout();
    assert!(
        stamped.ends_with("Z to stdout\n") && stamped.starts_with("20"),
        "{stamped}"
    );
    assert_eq!(zmachine(home, &["logs", "-n", "0", "s"]).stdout(), "");
    let line: Value =
        serde_json::from_str(&zmachine(home, &["logs", "-o", "json", "--source", "stderr", "s"]).stdout())
            .expect("JSON");
    assert_eq!(
        (&line["source"], &line["text"]),
        (&Value::from("stderr"), &Value::from("to stderr"))
    );
    assert!(
        zmachine(home, &["logs", "--source", "agent", "s"])
            .expect_success()
            .stdout()
            .contains("configured: ")
    );
    zmachine(home, &["logs", "--source", "nonsense", "s"]).expect_code(2);
}

fn exec_checks(checks: &mut Checks, home: &TestHome) {
    let exec = |words: &[&str]| zmachine(home, &[&["exec"], words].concat());
    checks.that("exec: exit codes and signals", || {
        assert_eq!(sh(home, "s", "exit 77").code, 77);
        assert_eq!(sh(home, "s", "kill -KILL $$").code, 137);
        assert_eq!(sh(home, "s", "kill -TERM $$").code, 143);
        let both = sh(home, "s", "echo out; echo err >&2");
        assert_eq!((both.stdout().as_str(), both.stderr().as_str()), ("out\n", "err\n"));
    });
    checks.that("exec: environment, directory, user", || {
        assert_eq!(exec_output(home, "s", "echo $FROM"), "spec");
        assert_eq!(
            exec(&["-e", "FROM=exec", "-e", "NEW=1", "s", "sh", "-c", "echo $FROM$NEW"]).stdout(),
            "exec1\n"
        );
        assert_eq!(exec(&["-w", "/work", "s", "pwd"]).stdout(), "/work\n");
        for (user, ids) in [
            ("web", "1000:1000\n"),
            ("1000", "1000:1000\n"),
            ("4242:4343", "4242:4343\n"),
            ("web:root", "1000:0\n"),
        ] {
            assert_eq!(
                exec(&["-u", user, "s", "sh", "-c", "echo $(id -u):$(id -g)"]).stdout(),
                ids,
                "{user}"
            );
        }
        assert_eq!(
            exec(&["-u", "web", "-w", "/work", "s", "sh", "-c", "touch x && touch /x"]).code,
            1
        );
    });
    checks.that("exec: what cannot be run", || {
        for (words, code) in [
            (&["s", "no-such-command"][..], 127),
            (&["s", "/bin/plain"], 126),
            (&["-u", "nobody99", "s", "true"], 125),
            (&["-w", "/nowhere", "s", "true"], 125),
        ] {
            let run = exec(words);
            assert!(run.expect_code(code).stderr().contains("\nhint: "), "{run}");
        }
    });
    checks.that("exec: input, and its end", || {
        let bytes = noise(7, 3_000_000);
        let run = home.zmachine(["exec", "-i", "s", "cat"]).input(&bytes).finish();
        assert!(run.expect_success().stdout_bytes == bytes, "the bytes differ");
        // Without -i there is no input, whatever ours is.
        assert_eq!(
            home.zmachine(["exec", "s", "cat"])
                .input(b"x")
                .finish()
                .expect_success()
                .stdout(),
            ""
        );
    });
    checks.that("exec: twenty at once", || {
        let one = |n: usize| {
            let run = home.zmachine(["exec", "s", "sh", "-c", &format!("sleep 0.2; echo {n}; exit {n}")]);
            (n, in_background(run))
        };
        for (n, run) in (1..=20).map(one).collect::<Vec<_>>() {
            let run = run.join().expect("an exec");
            assert_eq!(run.expect_code(n as i32).stdout(), format!("{n}\n"));
        }
    });
    checks.that("exec: leaves nothing running in the guest", || {
        assert_eq!(exec_output(home, "s", "ps | grep -c '[s]leep 0.2; echo' || true"), "0");
        exec_output(home, "s", "echo mine > /mine");
    });
}

/// Whether the guest's clock is within a second of the host's.
fn has_the_hosts_time(home: &TestHome) -> Option<()> {
    let now = || UNIX_EPOCH.elapsed().expect("a time").as_secs();
    let before = now();
    let shown: u64 = exec_output(home, "s", "date +%s").parse().expect("a number");
    (before - 1..=now() + 1).contains(&shown).then_some(())
}

/// A command on its way.
pub(crate) fn in_background(run: Invocation) -> JoinHandle<Finished> {
    thread::spawn(move || run.finish())
}

/// `logs -f`, `attach` and `wait` all end with the machine.
fn stopped(home: &TestHome) {
    let follow = in_background(home.zmachine(["logs", "-f", "s"]));
    let attach = in_background(home.zmachine(["attach", "s"]));
    let wait = in_background(home.zmachine(["wait", "s"]));
    // All three are there when the log grows under them.
    thread::sleep(Duration::from_millis(500));
    zmachine(home, &["stop", "s"]).expect_success();
    assert_eq!(wait.join().expect("wait").expect_success().stdout(), "9\n");
    assert_eq!(attach.join().expect("attach").expect_code(9).stdout(), "got term\n");
    let followed = follow.join().expect("logs -f");
    assert!(
        followed.expect_success().stdout().ends_with("got usr1\ngot term\n"),
        "{followed}"
    );
    let state = &inspect(home, "s")["state"];
    assert_eq!(
        (&state["phase"], &state["exit"]["code"]),
        (&Value::from("stopped"), &Value::from(9))
    );
    assert!(
        state["rootfs_counters"]["bytes_fetched"].as_u64() > Some(500_000),
        "{state}"
    );
    home.assert_host_clean();
    zmachine(home, &["exec", "s", "true"]).expect_code(125);
    zmachine(home, &["attach", "s"]).expect_code(4);
    zmachine(home, &["kill", "s"]).expect_code(4);
    zmachine(home, &["stop", "s"]).expect_success();
    assert!(zmachine(home, &["ps", "-a"]).stdout().contains("Exited (9) "));
}

fn killed(home: &TestHome) {
    zmachine(home, &["start", "s"]).expect_success();
    exec_output(home, "s", "echo late > /late");
    zmachine(home, &["kill", "s"]).expect_success();
    assert_eq!(zmachine(home, &["wait", "s"]).stdout(), "137\n");
    assert_eq!(fsck(home, "s", "-fn"), 0);
    zmachine(home, &["start", "s"]).expect_success();
    exec_output(home, "s", "echo synced > /synced; sync; echo lost > /unsynced");
    let monitor = inspect(home, "s")["state"]["monitor"]["pid"].as_i64();
    crate::shares::kill(monitor.expect("a monitor") as i32);
    zmachine(home, &["ps"]).expect_success();
    assert_eq!(fsck(home, "s", "-fy") & !1, 0, "replaying the journal is all it needs");
    assert_eq!(fsck(home, "s", "-fn"), 0);
    home.assert_host_clean();
}

/// The writable layer of a machine.
pub(crate) fn root_image(home: &TestHome, machine: &str) -> PathBuf {
    let directory = inspect(home, machine)["directory"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    PathBuf::from(directory).join("root.img")
}

/// `e2fsck`'s exit code for a machine's writable layer: 0 is whole, 1 mended. What it says is shown when a test fails.
/// With `-fy` a copy is mended and put in its place.
pub(crate) fn fsck(home: &TestHome, machine: &str, how: &str) -> i32 {
    let image = root_image(home, machine);
    // ext4's magic, at byte 1080: an empty file would pass for whole otherwise.
    let mut magic = [0; 2];
    std::fs::File::open(&image)
        .and_then(|file| file.read_exact_at(&mut magic, 1080))
        .expect("a superblock");
    assert_eq!(magic, [0x53, 0xef], "{} is no ext4", image.display());
    let copy = home.file("fsck.img");
    let mended = how == "-fy";
    let target = if mended { &copy } else { &image };
    if mended {
        let sparse = ["--sparse=always".as_ref(), image.as_os_str(), copy.as_os_str()];
        Invocation::new("cp".as_ref(), sparse).finish().expect_success();
    }
    let run = Invocation::new("e2fsck".as_ref(), [how.as_ref(), target.as_os_str()]).finish();
    println!("{run}");
    if mended {
        std::fs::rename(&copy, &image).expect("the mended copy in place");
    }
    run.code
}
