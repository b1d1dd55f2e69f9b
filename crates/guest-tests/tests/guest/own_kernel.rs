//! Containers with a kernel of their own: root over virtio-fs, a layer for each machine, an image that nobody changes.

use std::process::Command;
use std::time::Duration;

use zmachine_testkit::{Terminal, TestHome, VmImage};

use crate::shares::{home_with_virtiofsd, kill, servers};
use crate::support::{Checks, inspect, phase, until, zmachine};
use crate::vms::{booted, exec_output};

#[test]
fn a_container_with_its_own_kernel_has_its_tree_as_root_and_a_layer_of_its_own() {
    let Some((home, _)) = home_with_virtiofsd() else { return };
    let image = VmImage::own_kernel(&home, "own").pack(&home, "own");
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "m",
        "-e",
        "A=b",
        "-v",
        "data:/data:size=64M",
        &image,
        "serve",
        "it",
    ];
    zmachine(&home, &words).expect_success();
    let boot = booted(&home, "m", 1);
    checks.that("its kernel boots, told of its root and nothing else", || {
        let line = exec_output(&boot, "CMDLINE").join(" ");
        assert!(line.contains("root=vroot rootfstype=virtiofs"), "{line}");
        assert!(!line.contains("A=b") && !line.contains("net_"), "{line}");
        assert!(exec_output(&boot, "KERNEL")[0].starts_with("6.1."), "{boot}");
        assert_eq!(exec_output(&boot, "NOISE"), ["ok"]);
        assert_eq!(
            inspect(&home, "m")["state"]["kind"].as_str().unwrap_or("container"),
            "container"
        );
    });
    checks.that(
        "the seed tells environment and entrypoint, and its volume is formatted",
        || {
            let seed = home.path().join("machines/by-name/m/seed.img");
            let read = Command::new("mtype").arg("-i").arg(seed).arg("::zosrc").output();
            let text = String::from_utf8_lossy(&read.expect("mtype").stdout).into_owned();
            assert_eq!(text, "export A='b'\ninit='serve'\nset -- 'it'\n");
            let volume = zmachine(&home, &["volume", "inspect", "data"]).stdout();
            assert!(volume.contains("formatted"), "{volume}");
        },
    );
    checks.that("its root is the shared tree, without the image's host key", || {
        let mut screen = console(&home, "m");
        screen.type_in("grep ' / ' /proc/mounts\r");
        screen.expect("vroot / virtiofs rw");
        screen.type_in("[ -e /etc/ssh/ssh_host_ed25519_key ] || echo KEY-$((1+1))\r");
        screen.expect("KEY-2");
        leave(screen);
    });
    checks.that(
        "what it writes survives a restart from inside, and a stop and a start",
        || {
            let mut screen = console(&home, "m");
            screen.type_in("echo mine > /mine; mv /mnt /moved && rm /root/noise && sync && echo DONE-$((1+1))\r");
            screen.expect("DONE-2");
            screen.type_in("reboot -f\r");
            screen.expect("READY 2");
            leave(screen);
            assert_eq!(phase(&home, "m"), "running");
            zmachine(&home, &["stop", "m"]).expect_success();
            zmachine(&home, &["start", "m"]).expect_success();
            let boot = booted(&home, "m", 3);
            assert_eq!(exec_output(&boot, "NOISE"), ["damaged"], "it was removed");
            let mut screen = console(&home, "m");
            screen.type_in("cat /mine && [ -d /moved ] && [ ! -e /mnt ] && echo KEPT-$((1+1))\r");
            screen.expect("KEPT-2");
            leave(screen);
        },
    );
    checks.that(
        "another machine of the image, at the same time, sees nothing of it",
        || {
            zmachine(&home, &["run", "-d", "--name", "n", "--network", "none", &image]).expect_success();
            let boot = booted(&home, "n", 1);
            assert_eq!(exec_output(&boot, "NOISE"), ["ok"]);
            let mut screen = console(&home, "n");
            screen.type_in("[ ! -e /mine ] && [ -d /mnt ] && echo APART-$((1+1))\r");
            screen.expect("APART-2");
            leave(screen);
            zmachine(&home, &["rm", "-f", "n"]).expect_success();
        },
    );
    checks.that("the image's tree is as it was unpacked", || {
        let listed = std::fs::read_dir(home.path().join("images")).expect("images");
        let trees: Vec<_> = listed
            .flatten()
            .map(|entry| entry.path().join("tree/root"))
            .filter(|path| path.is_dir())
            .collect();
        assert_eq!(trees.len(), 1);
        let tree = &trees[0];
        assert!(!tree.join("mine").exists() && !tree.join("boots").exists());
        for kept in ["mnt", "root/noise", "etc/ssh/ssh_host_ed25519_key"] {
            assert!(tree.join(kept).exists(), "{kept}");
        }
    });
    checks.that(
        "when its server is killed it fails, and starts again with all it wrote",
        || {
            kill(servers(&home, "m")[0]);
            until("the machine has failed", Duration::from_secs(20), || {
                (phase(&home, "m") == "failed").then_some(())
            });
            let why = zmachine(&home, &["why", "m"]).stdout();
            assert!(why.contains("the server of the root directory"), "{why}");
            zmachine(&home, &["start", "m"]).expect_success();
            booted(&home, "m", 4);
            zmachine(&home, &["rm", "-f", "m"]).expect_success();
        },
    );
    checks.that("a sealed root cannot be written", || {
        zmachine(
            &home,
            &["run", "-d", "--name", "r", "--network", "none", "--read-only", &image],
        )
        .expect_success();
        booted(&home, "r", 1);
        let mut screen = console(&home, "r");
        screen.type_in("mount -o remount,rw /; echo x > /x || echo SEALED-$((1+1))\r");
        screen.expect("SEALED-2");
        leave(screen);
        zmachine(&home, &["rm", "-f", "r"]).expect_success();
    });
    checks.that("with a named kernel of ours it is a container like any other", || {
        let kernel = std::fs::read_link(home.path().join("kernels/default")).expect("a default kernel");
        let name = kernel.display().to_string();
        let words = [
            "run",
            "--rm",
            "--network",
            "none",
            "--kernel",
            &name,
            &image,
            "/bin/uname",
            "-r",
        ];
        let run = zmachine(&home, &words);
        assert!(run.expect_success().stdout().starts_with("6.12."), "{run}");
    });
    checks.that("what goes with other images alone is refused", || {
        for words in [&["--user", "web"][..], &["-w", "/"], &["--reinstall"], &["-v", "x:/"]] {
            let words = [&["create", "--name", "bad"], words, &[&image]].concat();
            let run = zmachine(&home, &words);
            assert!(run.expect_code(2).stderr().contains("hint: "), "{run}");
        }
    });
    zmachine(&home, &["volume", "rm", "data"]).expect_success();
}

fn console(home: &TestHome, name: &str) -> Terminal {
    let mut screen = home.zmachine(["console", name]).on_terminal();
    screen.type_in("\r");
    screen.expect("#");
    screen
}

/// Leaves the console by its keys.
#[track_caller]
fn leave(mut screen: Terminal) {
    screen.type_in("\x10\x11");
    assert_eq!(screen.finish().0, 0);
}
