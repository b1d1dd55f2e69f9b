//! The protections around a machine's processes: a program that tries to get out stands in the place of each of them.
//!
//! The program is `crates/sys/examples/escape.rs`. It takes the place of QEMU, virtiofsd and dnsmasq by a bind mount in a mount namespace
//! of the test's own; of Cloud Hypervisor in `jail_of_cloud_hypervisor`. The rootfs server, which is this program itself, is tried in
//! `crates/rootfs/tests/jail.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zmachine_testkit::{Finished, TestHome};

use crate::shares::home_with_virtiofsd;
use crate::support::{Checks, exec_output, home_with_box, inspect, sh, zmachine};

fn escape() -> PathBuf {
    example("escape", "zmachine-sys")
}

/// An example beside the test programs. `cargo test` builds it; `cargo test --test guest` alone does not.
pub(crate) fn example(name: &str, package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test program");
    let path = test
        .parent()
        .and_then(Path::parent)
        .expect("its folder")
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is not there: cargo build --release -p {package} --examples",
        path.display()
    );
    path
}

/// `zmachine args...` on a host whose program `replaced` is the one that tries to get out.
fn with_escape(home: &TestHome, replaced: &str, args: &[&str]) -> Finished {
    let script = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    let (escape, zmachine) = (
        escape().display().to_string(),
        home.zmachine_path().display().to_string(),
    );
    let before = ["-m", "sh", "-c", script, &escape, replaced, &zmachine];
    let words: Vec<&str> = before.iter().chain(args).copied().collect();
    // What it looks for is at the places of a machine that boots.
    home.command(Path::new("/usr/bin/unshare"), words)
        .env("ZMACHINE_WARM", "0")
        .finish()
}

/// What each attempt came to, by its name: whether it was refused.
pub(crate) fn outcomes(text: &str) -> BTreeMap<String, bool> {
    let mut all = BTreeMap::new();
    for part in text.split("escape ").skip(1) {
        if let Some((name, outcome)) = part.split_once(": ") {
            all.insert(name.to_owned(), outcome.starts_with("refused"));
        }
    }
    all
}

pub(crate) fn escaped(outcomes: &BTreeMap<String, bool>) -> Vec<&str> {
    let escaped = outcomes.iter().filter(|(_, refused)| !**refused);
    escaped.map(|(name, _)| name.as_str()).collect()
}

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// What dnsmasq is left before it has become its own user: to read who that is, and the network it serves.
const NAME_SERVER_MAY: [&str; 7] = [
    "read-passwd",
    "become-root",
    "connect-host",
    "connect-host-6",
    "connect-internet",
    "fork-bomb",
    "raise-limit",
];

#[test]
fn nothing_gets_out_of_the_jail() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    zmachine(&home, &["run", "-d", "--name", "other", &image, "sleep", "1000"]).expect_success();
    let run = ["run", "--rm", "--network", "none", "--name", "m"];
    checks.that("every way out of the hypervisor's jail is closed", || {
        let tried = with_escape(&home, QEMU, &[&run[..], &[&image]].concat());
        let outcomes = outcomes(&tried.stderr());
        assert!(outcomes.len() >= 60, "{tried}");
        assert_eq!(escaped(&outcomes), [""; 0], "{tried}");
    });
    checks.that("without a jail the same ways are open", || {
        let tried = with_escape(&home, QEMU, &[&run[..], &["--jail", "off", &image]].concat());
        let outcomes = outcomes(&tried.stderr());
        let escaped = escaped(&outcomes);
        for name in [
            "read-shadow",
            "read-other-spec",
            "write-other-disk",
            "connect-control",
            "write-cache",
            "see-others",
            "kill-others",
            "mount",
            "connect-host",
            "fork-bomb",
            "memory-bomb",
        ] {
            assert!(
                escaped.contains(&name),
                "{name} was refused: the test tests nothing\n{tried}"
            );
        }
    });
    checks.that(
        "inspect tells which protections are active, and the processes have the machine's user",
        || {
            let all = inspect(&home, "other");
            let user = all["state"]["user"].as_u64().expect("a user");
            let protections = all["sandbox"]["hypervisor"].as_str().expect("a line").to_owned();
            for wall in [
                "no capabilities",
                "namespaces mnt pid net ipc uts",
                "own root",
                "seccomp",
                &format!("user {user}"),
            ] {
                assert!(protections.contains(wall), "{wall} in {protections}");
            }
            let served = all["sandbox"]["rootfs"].as_str().expect("a line").to_owned();
            assert!(
                served.contains("no capabilities") && served.contains("own root"),
                "{served}"
            );
            assert_eq!(
                all["state"]["warnings"].as_array().map_or(0, |w| {
                    w.iter()
                        .filter(|w| w.as_str().is_some_and(|w| w.contains("jail")))
                        .count()
                }),
                0,
                "{all}"
            );
        },
    );
    checks.that(
        "of the ways out of the name server's jail its sockets alone are open",
        || {
            zmachine(&home, &["network", "create", "out"]).expect_success();
            let words = ["run", "--rm", "--network", "out", "--name", "m", &image];
            let tried = with_escape(&home, "/usr/sbin/dnsmasq", &words);
            let outcomes = outcomes(&tried.stderr());
            assert!(outcomes.len() >= 60, "{tried}");
            let mut open = escaped(&outcomes);
            open.retain(|name| !NAME_SERVER_MAY.contains(name));
            assert_eq!(open, [""; 0], "{tried}");
            zmachine(&home, &["network", "rm", "out"]).expect_success();
        },
    );
    checks.that(
        "root that may make no namespaces has its machines, with the protections that are left",
        || {
            let program = home.zmachine_path().display().to_string();
            let less = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", &program];
            let words = ["run", "-d", "--name", "less", &image, "sleep", "1000"];
            let started = home.command(Path::new("/usr/bin/setpriv"), less.iter().chain(&words).copied());
            started.finish().expect_success();
            assert!(exec_output(&home, "less", "nslookup less").contains("less"));
            let all = inspect(&home, "less");
            assert!(
                all["state"]["warnings"].to_string().contains("no user of their own"),
                "{all}"
            );
            let protections = all["sandbox"]["hypervisor"].as_str().expect("a line");
            assert!(
                protections.contains("no capabilities") && protections.contains("own root"),
                "{protections}"
            );
            zmachine(&home, &["rm", "-f", "less"]).expect_success();
        },
    );
    checks.that("two machines have two users", || {
        zmachine(
            &home,
            &[
                "run",
                "-d",
                "--name",
                "two",
                "--network",
                "none",
                &image,
                "sleep",
                "1000",
            ],
        )
        .expect_success();
        let user = |name: &str| inspect(&home, name)["state"]["user"].clone();
        assert_ne!(user("other"), user("two"));
        zmachine(&home, &["rm", "-f", "two"]).expect_success();
    });
    checks.that("files of the host are their owner's alone", || {
        let folder = home
            .path()
            .join("machines/by-name/other")
            .canonicalize()
            .expect("the folder");
        let id = folder.file_name().expect("an id").to_owned();
        for entry in [folder, home.path().join("run").join(id)]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).expect("a folder"))
        {
            let path = entry.expect("an entry").path();
            let mode = fs::symlink_metadata(&path).expect("a file").permissions().mode() & 0o077;
            assert_eq!(mode, 0, "{} has mode {mode:o}", path.display());
        }
    });
    zmachine(&home, &["rm", "-f", "other"]).expect_success();
}

#[test]
fn nothing_gets_out_of_the_jail_of_a_shared_directory() {
    let Some((home, image)) = home_with_virtiofsd() else {
        return;
    };
    let shared = home.file("shared");
    fs::create_dir_all(&shared).expect("a directory");
    let volume = format!("{}:/mnt", shared.display());
    let server = [
        "/usr/local/bin/virtiofsd",
        "/usr/bin/virtiofsd",
        "/usr/libexec/virtiofsd",
        "/usr/lib/qemu/virtiofsd",
    ];
    let server = server
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("virtiofsd");
    let words = ["run", "--name", "m", "--network", "none", "-v", &volume, &image];
    with_escape(&home, server, &words);
    let log = zmachine(&home, &["logs", "--source", "monitor", "m"]);
    let outcomes = outcomes(&log.stdout());
    assert!(outcomes.len() >= 60, "{log}");
    // It serves files of every user and any size, so it is root over the tree, without any other power; how many processes
    // root has, and what it puts into files in memory, is a matter of the control group.
    let mut open = escaped(&outcomes);
    open.retain(|name| !["become-root", "fork-bomb", "raise-limit", "fill-memory-files"].contains(name));
    assert_eq!(open, [""; 0], "{log}");
}

#[test]
fn a_secret_is_in_the_guests_memory_and_in_nothing_that_is_shown() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let file = home.file("pw");
    fs::write(&file, "sesame-in-a-file").expect("a file");
    let secret = format!("db={}", file.display());
    let words = [
        "run",
        "-d",
        "--name",
        "s",
        "--network",
        "none",
        "--secret",
        &secret,
        "-e",
        "API_TOKEN=sesame-in-the-env",
    ];
    zmachine(&home, &[&words[..], &[&image, "sleep", "1000"]].concat()).expect_success();
    checks.that("the guest has both", || {
        assert_eq!(
            exec_output(&home, "s", "cat /run/secrets/db; echo; echo $API_TOKEN"),
            "sesame-in-a-file\nsesame-in-the-env"
        );
        assert!(exec_output(&home, "s", "grep ' /run/secrets ' /proc/mounts").starts_with("tmpfs "));
        assert_ne!(sh(&home, "s", "echo x > /run/secrets/db").code, 0);
    });
    checks.that("neither is shown, unless that is asked for", || {
        for words in [
            &["inspect", "s"][..],
            &["inspect", "--spec", "s"],
            &["why", "-o", "json", "s"],
            &["logs", "s"],
        ] {
            let shown = zmachine(&home, words);
            assert!(!shown.stdout().contains("sesame"), "{words:?}: {shown}");
        }
        let spec = zmachine(&home, &["inspect", "--spec", "--show-secrets", "s"]);
        assert!(
            spec.stdout().contains("sesame-in-the-env") && !spec.stdout().contains("sesame-in-a-file"),
            "{spec}"
        );
    });
    checks.that(
        "no process list and no file of the machine has the file's content",
        || {
            let lists = fs::read_dir("/proc").expect("/proc").flatten();
            for process in lists {
                let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                assert!(
                    !String::from_utf8_lossy(&line).contains("sesame-in"),
                    "{}",
                    process.path().display()
                );
            }
            let folder = home
                .path()
                .join("machines/by-name/s")
                .canonicalize()
                .expect("the folder");
            let grep = std::process::Command::new("grep")
                .args(["-r", "-l", "sesame-in-a-file"])
                .arg(&folder)
                .output();
            assert_eq!(String::from_utf8_lossy(&grep.expect("grep").stdout), "");
        },
    );
    checks.that("a secret that is gone stops a start with its name", || {
        zmachine(&home, &["stop", "-t", "1", "s"]);
        fs::remove_file(&file).expect("removed");
        let start = zmachine(&home, &["start", "s"]);
        assert!(start.stderr().contains("the secret 'db'") && start.code != 0, "{start}");
    });
    zmachine(&home, &["rm", "-f", "s"]).expect_success();
}
