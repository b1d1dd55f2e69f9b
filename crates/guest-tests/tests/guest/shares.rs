//! Directories of the host in machines: there before the entrypoint, read-only where the host says so, gone with the machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use zmachine_testkit::{Lack, TestHome, VmImage, skip};

use crate::support::{Checks, exec_output, home_with_box, inspect, noise, phase, sh, until, zmachine};
use crate::vms::booted;

/// A home with the busybox tree as an image, on a host that can share directories.
pub(crate) fn home_with_virtiofsd() -> Option<(TestHome, String)> {
    if !has_virtiofsd() {
        skip(Lack::provided("needs virtiofsd"));
        return None;
    }
    home_with_box()
}

/// Whether this host can share directories.
pub(crate) fn has_virtiofsd() -> bool {
    let places = [
        "/usr/lib/qemu/virtiofsd",
        "/usr/libexec/virtiofsd",
        "/usr/bin/virtiofsd",
    ];
    places.iter().any(|place| Path::new(place).exists())
}

/// The process ids of the servers of a machine that runs, by what its monitor started.
pub(crate) fn servers(home: &TestHome, machine: &str) -> Vec<i32> {
    let journal = home.path().join(format!("machines/by-name/{machine}/resources.jsonl"));
    let lines = fs::read_to_string(journal).unwrap_or_default();
    let pid = |line: &str| {
        let claim: serde_json::Value = serde_json::from_str(line).ok()?;
        let process = &claim["resource"]["process"];
        (process["role"] == "virtiofsd").then(|| process["id"]["pid"].as_i64().unwrap_or_default() as i32)
    };
    lines.lines().filter_map(pid).collect()
}

pub(crate) fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("kill");
}

#[test]
fn directories_of_the_host_are_shared_and_nothing_of_them_is_left() {
    let Some((home, image)) = home_with_virtiofsd() else {
        return;
    };
    let shared = home.file("shared");
    fs::create_dir_all(shared.join("inner")).expect("a directory");
    fs::write(shared.join("f"), "from the host\n").expect("a file");
    let mut checks = Checks::default();
    checks.that("what cannot be shared is refused and nothing is made", || {
        refusals(&home, &image, &shared)
    });
    let (all, inner) = (
        format!("{}:/data", shared.display()),
        format!("{}/inner:/data/deep/er:ro", shared.display()),
    );
    let script = "cat /data/f > /data/copy && mkdir -p /data/deep && exec sleep 10000";
    let words = [
        "run",
        "-d",
        "--name",
        "s",
        "--network",
        "none",
        "-v",
        &inner,
        "-v",
        &all,
        &image,
        "sh",
        "-c",
        script,
    ];
    zmachine(&home, &words).expect_success();
    checks.that("the entrypoint finds them, one inside of the other", || {
        until("the entrypoint's copy", Duration::from_secs(20), || {
            fs::read(shared.join("copy"))
                .ok()
                .filter(|text| text == b"from the host\n")
        });
        let lines = exec_output(&home, "s", "grep virtiofs /proc/mounts | cut -d' ' -f1-3,4");
        assert!(lines.contains("share1 /data virtiofs rw"), "{lines}");
        assert!(lines.contains("share0 /data/deep/er virtiofs ro"), "{lines}");
    });
    checks.that("each side sees what the other writes", || {
        fs::write(shared.join("later"), noise(5, 3 << 20)).expect("a file");
        exec_output(
            &home,
            "s",
            "cp /data/later /data/back && cp /bin/busybox /data/busybox && /data/busybox true",
        );
        assert_eq!(
            fs::read(shared.join("back")).expect("the guest's copy"),
            noise(5, 3 << 20)
        );
        exec_output(
            &home,
            "s",
            "mkdir /data/new && mv /data/back /data/new/moved && rm /data/later",
        );
        assert!(shared.join("new/moved").exists() && !shared.join("later").exists());
    });
    checks.that("read-only is the host's word, not the guest's", || {
        sh(&home, "s", "touch /data/deep/er/x").expect_code(1);
        exec_output(&home, "s", "mount -o remount,rw /data/deep/er");
        sh(&home, "s", "touch /data/deep/er/x").expect_code(1);
        sh(&home, "s", "mkdir /data/deep/er/x").expect_code(1);
        assert_eq!(fs::read_dir(shared.join("inner")).expect("inner").count(), 0);
    });
    checks.that("no link and no '..' leads to the rest of the host", || {
        std::os::unix::fs::symlink("../../../../../..", shared.join("up")).expect("a link");
        exec_output(&home, "s", "test -e /data/up/data/f && test -e /data/up/bin/busybox");
        sh(&home, "s", "test -e /data/up/usr/lib/qemu").expect_code(1);
        sh(&home, "s", "ls /data/../usr/lib/qemu").expect_code(1);
    });
    checks.that("they are there again after a stop and a start", || {
        zmachine(&home, &["stop", "-t", "1", "s"]).expect_success();
        assert!(servers(&home, "s").is_empty());
        zmachine(&home, &["start", "s"]).expect_success();
        assert_eq!(exec_output(&home, "s", "cat /data/f"), "from the host");
    });
    checks.that("a server that is killed is told, and fails its machine", || {
        kill(servers(&home, "s")[0]);
        until("the machine has failed", Duration::from_secs(20), || {
            (phase(&home, "s") == "failed").then_some(())
        });
        let why = zmachine(&home, &["why", "s"]).stdout();
        assert!(why.contains("the server of the shared directory"), "{why}");
    });
    checks.that("a directory that is gone at a start is named", || {
        let aside = home.file("aside");
        fs::rename(&shared, &aside).expect("rename");
        let start = zmachine(&home, &["start", "s"]);
        let text = start.expect_code(1).stderr();
        assert!(text.contains("cannot share") && text.contains("No such file"), "{text}");
        std::os::unix::fs::symlink(&aside, &shared).expect("a link");
        zmachine(&home, &["start", "s"]).expect_code(1);
        fs::remove_file(&shared).expect("the link");
        fs::rename(&aside, &shared).expect("rename");
    });
    checks.that("a monitor that is killed leaves neither server nor mount", || {
        zmachine(&home, &["start", "s"]).expect_success();
        let pids = servers(&home, "s");
        assert_eq!(pids.len(), 2);
        let monitor = inspect(&home, "s")["state"]["monitor"]["pid"].as_i64().expect("a pid");
        kill(monitor as i32);
        // Its host must be clean at the end of the test without anything else done.
        until("the servers are gone", Duration::from_secs(20), || {
            pids.iter()
                .all(|pid| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty()))
                .then_some(())
        });
    });
    zmachine(&home, &["rm", "-f", "s"]).expect_success();
}

#[test]
fn a_vm_mounts_directories_of_the_host_by_their_tags() {
    let Some((home, _)) = home_with_virtiofsd() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M").pack(&home, "vm");
    let shared = home.file("shared");
    fs::create_dir_all(&shared).expect("a directory");
    fs::write(shared.join("f"), "from the host\n").expect("a file");
    let (writable, sealed) = (
        format!("{}:/srv/it's", shared.display()),
        format!("{}:/sealed:ro", shared.display()),
    );
    let words = [
        "run",
        "-d",
        "--name",
        "m",
        "--network",
        "none",
        "-v",
        "boot:/:size=256M",
        "-v",
        &writable,
        "-v",
        &sealed,
        &image,
    ];
    zmachine(&home, &words).expect_success();
    let mut checks = Checks::default();
    booted(&home, "m", 1);
    checks.that("the guest reads and writes as far as it may", || {
        let mut screen = home.zmachine(["console", "m"]).on_terminal();
        screen.type_in("\r");
        screen.expect("#");
        screen.type_in("mkdir /a /b; mount -t virtiofs share0 /a && mount -t virtiofs share1 /b && cp /b/f /a/g && echo DONE-$((1+1))\r");
        screen.expect("DONE-2");
        screen.type_in("touch /b/x || echo SEALED-$((1+1))\r");
        screen.expect("SEALED-2");
        screen.type_in("\x10\x11");
        assert_eq!(screen.finish().0, 0);
        assert_eq!(fs::read(shared.join("g")).expect("the guest's copy"), b"from the host\n");
    });
    checks.that("its cloud-init is told where they belong", || {
        let seed = home.path().join("machines/by-name/m/seed.img");
        let read = Command::new("mtype").arg("-i").arg(seed).arg("::user-data").output();
        let text = String::from_utf8_lossy(&read.expect("mtype").stdout).into_owned();
        let config: serde_json::Value =
            serde_json::from_str(text.strip_prefix("#cloud-config\n").expect("a cloud-config")).expect("JSON");
        let commands = config["bootcmd"].as_array().expect("commands");
        assert_eq!(commands.len(), 2, "{text}");
        assert!(commands.iter().any(|c| {
            c[2].as_str()
                .unwrap_or_default()
                .ends_with("-o ro 'share1' '/sealed'; }")
        }));
    });
    checks.that("the machine stops by its power button and nothing is left", || {
        zmachine(&home, &["stop", "m"]).expect_success();
        assert!(servers(&home, "m").is_empty());
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    zmachine(&home, &["volume", "rm", "boot"]).expect_success();
}

fn refusals(home: &TestHome, image: &str, shared: &Path) {
    let here = shared.display();
    for (argument, word) in [
        (format!("{here}/none:/x"), "there is no directory"),
        (format!("{here}/f:/proc/x"), "no file can be at"),
        (format!("{here}:/"), "root"),
        (format!("{here}:/proc/x"), "/proc"),
        (format!("{here}:/a/../b"), ".."),
        (format!("{here}:/x:size=1G"), "size"),
        (format!("{}:/x", home.path().display()), "state of zmachine"),
    ] {
        let run = zmachine(home, &["create", "--name", "bad", "-v", &argument, image]);
        let text = run.expect_code(2).stderr();
        assert!(text.contains(word) && text.contains("hint: "), "{argument}: {text}");
    }
    let twice = zmachine(
        home,
        &[
            "create",
            "--name",
            "bad",
            "-v",
            &format!("{here}:/x"),
            "-v",
            "data:/x",
            image,
        ],
    );
    assert!(
        twice.expect_code(2).stderr().contains("cannot be at '/x' too"),
        "{twice}"
    );
    assert!(zmachine(home, &["ps", "-aq"]).stdout().is_empty());
}
