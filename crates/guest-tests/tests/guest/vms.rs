//! VMs: an image is installed once, grows with its volume, and what the guest wrote stays, whatever happens.
//!
//! The guest tells the console what it finds (see `zmachine_testkit::VmImage`).

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zmachine_testkit::{Finished, TestHome, Tree, VmImage};

use crate::support::{Checks, home, inspect, noise, phase, until, zmachine};

/// A boot under emulation on a loaded host, with an appliance before it.
const BOOT: Duration = Duration::from_secs(180);

/// The lines of the console since its `n`-th boot began to show, which has ended with its READY line.
#[track_caller]
pub(crate) fn booted(home: &TestHome, name: &str, n: u32) -> String {
    let ready = format!("READY {n}");
    let deadline = Instant::now() + BOOT;
    let text = loop {
        let is_running = ["starting", "running"].contains(&phase(home, name).as_str());
        let text = console(home, name);
        if text.lines().any(|line| line.trim_end() == ready) {
            break text;
        }
        let tail: Vec<&str> = text.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        assert!(
            is_running && Instant::now() < deadline,
            "no {ready} on the console of {name}: {}",
            tail.join("\n")
        );
        sleep(Duration::from_millis(100));
    };
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.iter().position(|line| line.trim_end() == ready).unwrap_or(0);
    let start = lines[..end].iter().rposition(|line| line.starts_with("CMDLINE "));
    lines[start.unwrap_or(0)..=end].join("\n")
}

fn console(home: &TestHome, name: &str) -> String {
    zmachine(home, &["logs", "--source", "console", name]).stdout()
}

/// What follows `word` on its lines.
pub(crate) fn exec_output<'a>(boot: &'a str, word: &str) -> Vec<&'a str> {
    let prefix = format!("{word} ");
    boot.lines()
        .filter_map(|line| line.trim_end().strip_prefix(&prefix))
        .collect()
}

/// Size of the guest's root in KiB.
#[track_caller]
fn root_kib(boot: &str) -> u64 {
    exec_output(boot, "ROOT")
        .first()
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no ROOT in {boot}"))
}

/// Runs the file system's own check on the boot volume of a machine that does not run.
#[track_caller]
fn assert_clean(home: &TestHome, fstype: &str) {
    let disk = home.path().join("volumes/boot/data.img").display().to_string();
    let words: &[&str] = match fstype {
        "ext4" => &["e2fsck", "-fn", &disk],
        "btrfs" => &["btrfs", "check", "--readonly", &disk],
        _ => &["xfs_repair", "-n", "-f", &disk],
    };
    let check = Command::new(words[0]).args(&words[1..]).output().expect(words[0]);
    assert!(
        check.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&check.stdout)
    );
}

fn vm_home() -> Option<TestHome> {
    home()
}

#[test]
fn a_bare_image_lives_from_its_installation_to_its_removal() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M").pack(&home, "vm");
    let mut checks = Checks::default();
    checks.that("what makes no sense is refused before anything is made", || {
        refusals(&home, &image)
    });
    let started = zmachine(
        &home,
        &["run", "-d", "--name", "m", "-v", "boot:/:size=2G", "-e", "A=b", &image],
    );
    assert_eq!(started.expect_success().stdout(), "m\n");
    let boot = booted(&home, "m", 1);
    checks.that("the root is as large as its volume, and its data whole", || {
        assert!(root_kib(&boot) > 1900 << 10, "{boot}");
        assert_eq!(exec_output(&boot, "NOISE"), ["ok"], "{boot}");
    });
    checks.that(
        "environment and network are on the command line, as inspect has them",
        || {
            let line = exec_output(&boot, "CMDLINE").join(" ");
            let words: Vec<&str> = line.split(' ').collect();
            for word in ["A=b", "root=/dev/vda", "rw", "console=ttyS0"] {
                assert!(words.contains(&word), "{word} in {line}");
            }
            let state = inspect(&home, "m");
            let addresses = state["state"]["addresses"].as_array().expect("addresses").clone();
            assert!(addresses.len() >= 2, "{addresses:?}");
            let found = exec_output(&boot, "ADDRESS");
            for address in addresses {
                let address = address.as_str().unwrap_or_default();
                assert!(
                    found.iter().any(|cidr| cidr.split('/').next() == Some(address)),
                    "{address} in {found:?}"
                );
            }
            assert!(words.iter().any(|word| word.starts_with("net_r4=default,")), "{line}");
        },
    );
    checks.that(
        "the seed is there, for its owner only, and is what cloud-init reads",
        || {
            let seed = home.path().join("machines/by-name/m/seed.img");
            let mode = std::os::unix::fs::PermissionsExt::mode(&seed.metadata().expect("a seed").permissions());
            assert_eq!(mode & 0o777, 0o600);
            let read = |file: &str| {
                let out = Command::new("mtype")
                    .arg("-i")
                    .arg(&seed)
                    .arg(format!("::{file}"))
                    .output()
                    .expect("mtype");
                String::from_utf8_lossy(&out.stdout).into_owned()
            };
            assert!(
                read("meta-data").contains("\"local-hostname\": \"m\""),
                "{}",
                read("meta-data")
            );
            assert!(
                read("network-config").contains("ethernets"),
                "{}",
                read("network-config")
            );
            assert!(read("user-data").starts_with("#cloud-config"), "{}", read("user-data"));
            assert!(read("zosrc").contains("export A='b'"), "{}", read("zosrc"));
        },
    );
    checks.that("the volume belongs to it alone", || {
        let other = zmachine(&home, &["create", "--name", "n", "-v", "boot:/", &image]);
        other.expect_success();
        let start = zmachine(&home, &["start", "n"]);
        assert!(
            start.expect_code(4).stderr().contains("in use by the machine 'm'"),
            "{}",
            start.stderr()
        );
        zmachine(&home, &["rm", "n"]).expect_success();
    });
    checks.that("a guest that restarts itself goes on", || {
        let starts = inspect(&home, "m")["state"]["starts"].clone();
        let mut screen = home.zmachine(["console", "m"]).on_terminal();
        screen.type_in("\r");
        screen.expect("#");
        screen.type_in("echo typed > /typed; sync; reboot -f\r");
        screen.expect("READY 2");
        screen.type_in("\x10\x11");
        assert_eq!(screen.finish().0, 0);
        assert_eq!(phase(&home, "m"), "running");
        assert_eq!(inspect(&home, "m")["state"]["starts"], starts);
    });
    checks.that("stop presses the power button", || {
        zmachine(&home, &["stop", "m"]).expect_success();
        assert_eq!(phase(&home, "m"), "stopped");
        assert!(console(&home, "m").contains("POWER BUTTON"));
        assert_clean(&home, "ext4");
    });
    zmachine(&home, &["volume", "grow", "boot", "3G"]).expect_success();
    zmachine(&home, &["start", "m"]).expect_success();
    checks.that("it grew with its volume, and was not installed again", || {
        let boot = booted(&home, "m", 3);
        assert!(root_kib(&boot) > 2750 << 10, "{boot}");
        assert_eq!(exec_output(&boot, "NOISE"), ["ok"]);
    });
    checks.that(
        "a kernel that panics fails the machine, and its last words are kept",
        || {
            let mut screen = home.zmachine(["console", "m"]).on_terminal();
            screen.type_in("\recho c > /proc/sysrq-trigger\r");
            until("the machine fails", BOOT, || {
                (phase(&home, "m") == "failed").then_some(())
            });
            drop(screen);
            assert!(
                console(&home, "m").contains("sysrq triggered crash"),
                "{}",
                console(&home, "m")
            );
            home.assert_host_clean();
        },
    );
    zmachine(&home, &["start", "m"]).expect_success();
    checks.that("a power cut leaves a file system that comes back", || {
        booted(&home, "m", 4);
        zmachine(&home, &["kill", "m"]).expect_success();
        zmachine(&home, &["start", "m"]).expect_success();
        assert_eq!(exec_output(&booted(&home, "m", 5), "NOISE"), ["ok"]);
    });
    checks.that("a guest that switches itself off is stopped", || {
        let mut screen = home.zmachine(["console", "m"]).on_terminal();
        screen.type_in("\rsync; mount -o remount,ro /; poweroff -f\r");
        until("the machine stops", BOOT, || {
            (phase(&home, "m") == "stopped").then_some(())
        });
        drop(screen);
        assert_clean(&home, "ext4");
    });
    checks.that(
        "rm leaves the volume; another image does not go on it unless told so",
        || {
            zmachine(&home, &["rm", "m"]).expect_success();
            zmachine(&home, &["volume", "inspect", "boot"]).expect_success();
            let other = VmImage::bare(&home, "other", "ext4", "64M").pack(&home, "other");
            let refused = zmachine(&home, &["create", "-v", "boot:/", &other]);
            assert!(
                refused.expect_code(4).stderr().contains("--reinstall"),
                "{}",
                refused.stderr()
            );
            zmachine(&home, &["create", "--name", "o", "--reinstall", "-v", "boot:/", &other]).expect_success();
            zmachine(&home, &["rm", "o"]).expect_success();
            zmachine(&home, &["volume", "rm", "boot"]).expect_success();
        },
    );
}

#[test]
fn btrfs_and_xfs_roots_grow_and_stay_clean() {
    let Some(home) = vm_home() else { return };
    let mut checks = Checks::default();
    for (fstype, size) in [("btrfs", "160M"), ("xfs", "320M")] {
        checks.that(fstype, || {
            let image = VmImage::bare(&home, fstype, fstype, size).pack(&home, fstype);
            zmachine(&home, &["run", "-d", "--name", fstype, "-v", "boot:/:size=1G", &image]).expect_success();
            let boot = booted(&home, fstype, 1);
            assert!(root_kib(&boot) > 850 << 10, "{boot}");
            assert_eq!(exec_output(&boot, "NOISE"), ["ok"], "{boot}");
            zmachine(&home, &["kill", fstype]).expect_success();
            zmachine(&home, &["volume", "grow", "boot", "2G"]).expect_success();
            zmachine(&home, &["start", fstype]).expect_success();
            let boot = booted(&home, fstype, 2);
            assert!(root_kib(&boot) > 1850 << 10, "{boot}");
            zmachine(&home, &["stop", fstype]).expect_success();
            assert_clean(&home, fstype);
            zmachine(&home, &["rm", fstype]).expect_success();
            zmachine(&home, &["volume", "rm", "boot"]).expect_success();
        });
    }
}

#[test]
fn a_whole_disk_boots_by_firmware_and_keeps_the_kernel_it_is_given() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::disk(&home, "disk");
    let flist = image.pack(&home, "disk");
    let mut checks = Checks::default();
    checks.that("a flist with nothing but the disk is one", || {
        let plan = zmachine(&home, &["run", "--dry-run", "-v", "f:/:size=1G", &flist]);
        let plan: Value = serde_json::from_str(&plan.expect_success().stdout()).expect("a plan");
        assert!(
            plan["vm"]["boot"].to_string().contains("OVMF_CODE"),
            "{}",
            plan["vm"]["boot"]
        );
    });
    let (raw, qcow2) = (
        image.folder().join("image.raw"),
        home.file("disk.qcow2").display().to_string(),
    );
    let words = ["convert", "-O", "qcow2", &raw.display().to_string(), &qcow2];
    home.command(Path::new("/usr/bin/qemu-img"), words)
        .finish()
        .expect_success();
    zmachine(
        &home,
        &[
            "run",
            "-d",
            "--name",
            "d",
            "--network",
            "none",
            "-v",
            "boot:/:size=1G",
            &qcow2,
        ],
    )
    .expect_success();
    let first = booted(&home, "d", 1);
    let release = |boot: &str| exec_output(boot, "KERNEL").join("");
    checks.that("the last partition and its file system fill the volume", || {
        assert!(root_kib(&first) > 800 << 10, "{first}");
        assert_eq!(exec_output(&first, "NOISE"), ["ok"]);
        let disk = home.path().join("volumes/boot/data.img").display().to_string();
        let table = Command::new("sgdisk").args(["-v", &disk]).output().expect("sgdisk");
        assert!(
            String::from_utf8_lossy(&table.stdout).contains("No problems found"),
            "{table:?}"
        );
    });
    checks.that("a kernel that is replaced from inside is the next one to boot", || {
        let mut screen = home.zmachine(["console", "d"]).on_terminal();
        screen.type_in("\rnew-kernel\r");
        screen.expect("REPLACED");
        screen.type_in("\x10\x11");
        screen.finish();
        zmachine(&home, &["stop", "d"]).expect_success();
        zmachine(&home, &["start", "d"]).expect_success();
        let second = booted(&home, "d", 2);
        assert!(
            release(&first).starts_with("6.12.") && release(&second).starts_with("6.1.0"),
            "{first}\n{second}"
        );
    });
    zmachine(&home, &["rm", "-f", "d"]).expect_success();
    zmachine(&home, &["volume", "rm", "boot"]).expect_success();
}

#[test]
fn a_vm_has_a_disk_without_being_given_one_and_can_be_cloned() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M").pack(&home, "vm");
    let mut checks = Checks::default();
    let small = zmachine(&home, &["run", "-d", "--disk-size", "64M", &image]);
    assert!(
        small.expect_code(125).stderr().contains("smaller than the image"),
        "{}",
        small.stderr()
    );
    let words = ["run", "-d", "--name", "m", "--snapshots", "--disk-size", "256M", &image];
    zmachine(&home, &words).expect_success();
    checks.that(
        "its disk is as large as was asked for, and its log is its console",
        || {
            let kib = root_kib(&booted(&home, "m", 1));
            assert!((200 << 10..=256 << 10).contains(&kib), "{kib}");
            assert!(zmachine(&home, &["logs", "m"]).stdout().contains("READY 1"));
        },
    );
    checks.that("a machine that runs is not copied", || {
        zmachine(&home, &["clone", "m", "n"]).expect_code(4);
    });
    checks.that("its disk is saved while it runs, and others boot from there", || {
        zmachine(&home, &["snapshot", "create", "--disk-only", "m@disk"]).expect_success();
        assert_eq!(phase(&home, "m"), "running");
        zmachine(&home, &["fork", "m@disk", "--name", "f"]).expect_success();
        booted(&home, "f", 2);
        zmachine(&home, &["rm", "-f", "f"]).expect_success();
    });
    checks.that("it is saved with its memory, and goes on", || {
        saved_with_memory(&home, "m")
    });
    zmachine(&home, &["kill", "m"]).expect_success();
    checks.that("it goes on from there, and does not boot", || restored(&home, "m"));
    zmachine(&home, &["stop", "m"]).expect_success();
    checks.that("the copy goes on where the machine was, with a disk of its own", || {
        zmachine(&home, &["clone", "m", "n"]).expect_success();
        zmachine(&home, &["start", "n"]).expect_success();
        booted(&home, "n", 2);
        zmachine(&home, &["rm", "-f", "n"]).expect_success();
        zmachine(&home, &["start", "--from", "m@disk"]).expect_success();
        booted(&home, "m", 2);
    });
    zmachine(&home, &["snapshot", "rm", "m@disk", "m@memory"]).expect_success();
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    let volumes = zmachine(&home, &["volume", "ls", "-q"]).expect_success().stdout();
    assert_eq!(volumes, "", "their disks go with them");
}

/// The numbers that its guest has counted on its console.
fn counted(console: &str) -> Vec<u32> {
    let numbers = console
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("COUNT "));
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// A guest counts on its console and writes what it counts to its disk; it is saved meanwhile, and counts on.
fn saved_with_memory(home: &TestHome, machine: &str) {
    let mut screen = home.zmachine(["console", machine]).on_terminal();
    screen.type_in("\r");
    screen.expect("#");
    screen.type_in("i=0; while true; do i=$((i+1)); echo COUNT $i; echo $i >/count; sleep 0.3; done &\r");
    screen.expect("COUNT 2");
    let name = format!("{machine}@memory");
    zmachine(home, &["snapshot", "create", &name]).expect_success();
    let last = counted(&console(home, machine)).pop().expect("it counts");
    until("it counts on", BOOT, || {
        (counted(&console(home, machine)).pop() > Some(last + 3)).then_some(())
    });
    screen.type_in("\x10\x11");
    screen.finish();
    let fork = zmachine(home, &["fork", &name, "--name", "f"]);
    let refused = fork.expect_code(6).stderr();
    assert!(
        refused.contains("that of a VM") && refused.contains("--disk-only"),
        "{refused}"
    );
    let fork = zmachine(home, &["fork", machine, "--name", "f"]);
    assert!(fork.expect_code(6).stderr().contains("that of a VM"), "{fork}");
}

/// It counts on from where it was saved, its disk is as it was then, and its clock is not.
fn restored(home: &TestHome, machine: &str) {
    let before = console(home, machine);
    let reached = counted(&before).pop().expect("it has counted");
    zmachine(home, &["restore", &format!("{machine}@memory")]).expect_success();
    let new = until("it counts", BOOT, || {
        let new = console(home, machine).split_off(before.len());
        (counted(&new).len() > 2).then_some(new)
    });
    let first = counted(&new)[0];
    assert!(
        first > 1 && first < reached,
        "it counts on at {first}, had reached {reached}"
    );
    assert!(!new.contains("CMDLINE"), "it booted: {new}");
    let mut screen = home.zmachine(["console", machine]).on_terminal();
    screen.expect("COUNT ");
    // Not in what the guest echoes.
    screen.type_in("\rkill %1; echo FO''UND $(cat /count)\r");
    screen.expect("FOUND ");
    screen.type_in("\x10\x11");
    screen.finish();
    // It can be saved again.
    zmachine(home, &["snapshot", "create", &format!("{machine}@again")]).expect_success();
    zmachine(home, &["snapshot", "rm", &format!("{machine}@again")]).expect_success();
}

#[test]
fn an_interrupted_installation_is_done_again_and_never_booted() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M");
    // Enough to copy that there is a middle to interrupt.
    let ballast = image.folder().join("image.raw");
    assert!(ballast.metadata().expect("the image").len() > 64 << 20);
    let image = image.pack(&home, "vm");
    zmachine(
        &home,
        &[
            "create",
            "--name",
            "m",
            "--network",
            "none",
            "-v",
            "boot:/:size=512M",
            &image,
        ],
    )
    .expect_success();
    let mut cut = 0;
    for round in 0..12u64 {
        let child = home.zmachine(["start", "m"]).start();
        let pause = u64::from_le_bytes(noise(round + 1, 8).try_into().expect("8 bytes")) % 600;
        sleep(Duration::from_millis(pause));
        cut += u32::from(kill_monitor(&home, "m"));
        let _ = child.wait_with_output();
        zmachine(&home, &["ps"]).expect_success();
        home.assert_host_clean();
        let state = volume(&home)["state"].as_str().unwrap_or_default().to_owned();
        assert!(
            ["empty", "installing", "installed"].contains(&state.as_str()),
            "{state}"
        );
        println!("  cut after {pause} ms: the volume is {state}");
        if state == "installed" && round % 2 == 0 {
            // Begin again from nothing, or the later rounds would not copy.
            zmachine(&home, &["rm", "-f", "m"]).expect_success();
            zmachine(&home, &["volume", "rm", "boot"]).expect_success();
            zmachine(
                &home,
                &[
                    "create",
                    "--name",
                    "m",
                    "--network",
                    "none",
                    "-v",
                    "boot:/:size=512M",
                    &image,
                ],
            )
            .expect_success();
        }
    }
    assert!(cut >= 6, "only {cut} of 12 runs were cut");
    zmachine(&home, &["start", "m"]).expect_success();
    let all = until("the guest's system", BOOT, || {
        let text = console(&home, "m");
        text.contains("READY ").then_some(text)
    });
    assert!(all.contains("NOISE ok") && !all.contains("NOISE damaged"), "{all}");
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
}

#[test]
fn a_full_disk_stops_the_copy_and_spoils_nothing() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M").pack(&home, "vm");
    let volumes = home.path().join("volumes");
    std::fs::create_dir_all(&volumes).expect("the folder of volumes");
    let space = Space::new(&volumes, "6M");
    let words = [
        "create",
        "--name",
        "m",
        "--network",
        "none",
        "-v",
        "boot:/:size=512M",
        &image,
    ];
    zmachine(&home, &words).expect_success();
    let start = zmachine(&home, &["start", "m"]);
    assert!(
        start.expect_code(1).stderr().contains("no room left"),
        "{}",
        start.stderr()
    );
    assert_ne!(volume(&home)["state"], "installed");
    space.resize("1G");
    zmachine(&home, &["start", "m"]).expect_success();
    assert_eq!(exec_output(&booted(&home, "m", 1), "NOISE"), ["ok"]);
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    zmachine(&home, &["volume", "rm", "boot"]).expect_success();
    drop(space);
    home.assert_host_clean();
}

/// A little file system in memory on a folder, for as long as this lives.
struct Space<'a> {
    folder: &'a Path,
}

impl<'a> Space<'a> {
    fn new(folder: &'a Path, size: &str) -> Space<'a> {
        mount(
            &["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "none"],
            folder,
        );
        Space { folder }
    }

    fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], self.folder);
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder).status();
    }
}

fn mount(words: &[&str], folder: &Path) {
    let done = Command::new("mount").args(words).arg(folder).status().expect("mount");
    assert!(done.success(), "mount {words:?}");
}

/// The host must not look into what a guest has written: no mount, no loop device, in a whole life with growing.
#[test]
fn the_host_mounts_nothing_in_the_life_of_a_vm() {
    let Some(home) = vm_home() else { return };
    let image = VmImage::bare(&home, "vm", "ext4", "96M").pack(&home, "vm");
    let trace = home.file("trace");
    let program = home.zmachine_path();
    let script = format!(
        "set -e; z={program}; $z run -d --name m --network none -v boot:/:size=512M {image} >/dev/null; \
         i=0; until $z logs --source console m | grep -q '^READY 1'; do i=$((i+1)); [ $i -lt 900 ]; sleep 0.2; done; \
         $z stop m >/dev/null; $z volume grow boot 768M >/dev/null; $z start m >/dev/null; $z kill m >/dev/null; $z rm m >/dev/null",
        program = program.display()
    );
    let words = [
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        &trace.display().to_string(),
        "-e",
        "trace=mount,umount2,fsopen,fsmount,move_mount,open_tree,execve,unshare",
        "sh",
        "-c",
        &script,
    ];
    let strace = Path::new("/usr/bin/strace");
    home.command(strace, words)
        .deadline(Duration::from_secs(600))
        .finish()
        .expect_success();
    let traced = std::fs::read_to_string(&trace).expect("a trace");
    assert!(traced.contains("qemu-system"), "the trace has no hypervisor");
    // In a jail, and there alone, something is mounted: memory, /proc and folders of the host, nothing that has content of a guest.
    let mut jails = std::collections::HashSet::new();
    for line in traced.lines() {
        let (process, call) = line.split_once(' ').unwrap_or(("", line));
        let call = call.trim_start();
        if call.starts_with("unshare(") && call.contains("CLONE_NEWNS") && !call.contains("= -1") {
            jails.insert(process);
        }
        let mounts = ["mount(", "umount2(", "fsopen(", "fsmount(", "move_mount(", "open_tree("];
        if mounts.iter().any(|name| call.starts_with(name)) {
            assert!(jails.contains(process), "{line}");
            let kinds = ["\"ext4\"", "\"btrfs\"", "\"xfs\"", "\"vfat\"", "\"erofs\"", "fsopen("];
            assert!(!kinds.iter().any(|kind| call.contains(kind)), "{line}");
        }
        assert!(
            !["losetup", "kpartx", "/dev/loop"]
                .iter()
                .any(|word| call.contains(word)),
            "{line}"
        );
    }
    zmachine(&home, &["volume", "rm", "boot"]).expect_success();
}

fn volume(home: &TestHome) -> Value {
    let shown = zmachine(home, &["volume", "inspect", "boot"]);
    let all: Value = serde_json::from_str(&shown.expect_success().stdout()).expect("JSON");
    all[0].clone()
}

/// Kills the monitor of a machine when it has one; whether it had.
fn kill_monitor(home: &TestHome, name: &str) -> bool {
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        let text = std::fs::read_to_string(home.path().join(format!("machines/by-name/{name}/state.json")));
        let state: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let running = ["starting", "running"].contains(&state["phase"].as_str().unwrap_or_default());
        let pid = state["monitor"]["pid"]
            .as_i64()
            .and_then(|pid| Pid::from_raw(pid as i32));
        if let (true, Some(pid)) = (running, pid) {
            return kill_process(pid, Signal::KILL).is_ok();
        }
        sleep(Duration::from_millis(5));
    }
    false
}

/// Every rule of detection and of the request, each told before anything is made.
fn refusals(home: &TestHome, image: &str) {
    let kernel = std::fs::read(home.path().join("kernels/default/vmlinux")).expect("the test kernel");
    let tree = |name: &str| Tree::empty(home, name);
    let gpt_lie = {
        // A header that says it is a GPT, and nothing behind it.
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[450] = 0xee;
        disk[512..520].copy_from_slice(b"EFI PART");
        disk
    };
    let trees: Vec<(Tree, &[&str])> = vec![
        (tree("no-image").file("kernel", &kernel), &["image.raw"]),
        (
            tree("kernel-dir")
                .folder("kernel", 0o755)
                .file("image.raw", noise(1, 4096)),
            &["/kernel", "directory"],
        ),
        (
            tree("image-dir").file("kernel", &kernel).folder("image.raw", 0o755),
            &["/image.raw", "directory"],
        ),
        (
            tree("initrd-dir")
                .file("kernel", &kernel)
                .file("image.raw", noise(1, 4096))
                .folder("initrd", 0o755),
            &["/initrd"],
        ),
        (
            tree("away")
                .link("kernel", "../../../../boot/vmlinuz")
                .file("image.raw", noise(1, 4096)),
            &["/kernel"],
        ),
        (
            tree("loop").link("kernel", "kernel").file("image.raw", noise(1, 4096)),
            &["/kernel"],
        ),
        (
            tree("gone").link("image.raw", "nothing").file("kernel", &kernel),
            &["/image.raw"],
        ),
        (
            tree("text")
                .file("kernel", "not a kernel")
                .file("image.raw", noise(1, 8192)),
            &["kernel"],
        ),
        (
            tree("cut")
                .file("kernel", &kernel[..100])
                .file("image.raw", noise(1, 8192)),
            &["kernel"],
        ),
        (
            tree("half")
                .file("kernel", &kernel[..kernel.len() / 2])
                .file("image.raw", noise(1, 8192)),
            &["kernel"],
        ),
        (
            tree("empty-kernel")
                .file("kernel", "")
                .file("image.raw", noise(1, 8192)),
            &["kernel"],
        ),
        (
            tree("empty-image").file("kernel", &kernel).file("image.raw", ""),
            &["image"],
        ),
        (tree("noise-disk").file("image.raw", noise(1, 1 << 20)), &["firmware"]),
        (tree("zero-disk").file("image.raw", vec![0; 1 << 20]), &["firmware"]),
        (tree("lying-gpt").file("image.raw", gpt_lie), &["GPT"]),
    ];
    for (tree, words) in trees {
        let name = tree.root().file_name().expect("a name").to_string_lossy().into_owned();
        let flist = tree.pack(home, &name);
        let made = zmachine(home, &["create", "--name", "bad", "-v", "b:/:size=64M", &flist]);
        told_why(&name, &made, words);
    }
    let long = "x".repeat(2100);
    let requests: Vec<(Vec<String>, &[&str])> = [
        (vec!["--size", "64M"], &["64 MiB", "96 MiB"][..]),
        (vec!["-v", "b:/:size=64M"], &["64 MiB", "96 MiB"]),
        (vec!["-v", "b:/:size=1G,fs=ntfs"], &["ntfs"]),
        (vec!["-v", "b:/:ro"], &["b"]),
        (vec!["-v", "b:/:size=1G", "-v", "b:/x"], &["twice"]),
        (vec!["-v", "b:/:size=1G", "-e", "init=/bin/sh"], &["init"]),
        (vec!["-v", "b:/:size=1G", "-e", "root=/dev/vdb"], &["root"]),
        (vec!["-v", "b:/:size=1G", "-e", "net_eth0=1"], &["net_eth0"]),
        (vec!["-v", "b:/:size=1G", "-e", "mnt_x=1"], &["mnt_x"]),
        (vec!["-v", "b:/:size=1G", "-e", "vda=1"], &["vda"]),
        (vec!["-v", "b:/:size=1G", "-e", "panic=0"], &["panic"]),
        (vec!["-v", "b:/:size=1G", "-e", "Q=a\"b"], &["Q"]),
        (vec!["-v", "b:/:size=1G", "-e", "N=a\nb"], &["N"]),
        (vec!["-v", "b:/:size=1G", "-e", &format!("L={long}")], &["command line"]),
        (vec!["-v", "b:/:size=1G", "-u", "web"], &["--user"]),
        (vec!["-v", "b:/:size=1G", "-w", "/srv"], &["--workdir"]),
        (vec!["-v", "b:/:size=1G", "--size", "2G"], &["--size"]),
        (
            vec!["-v", "b:/:size=1G", "--user-data", "/nowhere/at/all"],
            &["/nowhere/at/all"],
        ),
        (
            vec!["-v", "b:/:size=1G", "--ssh-key", "/nowhere/at/all"],
            &["/nowhere/at/all"],
        ),
    ]
    .into_iter()
    .map(|(flags, words): (Vec<&str>, &[&str])| (flags.into_iter().map(str::to_owned).collect(), words))
    .collect();
    for (flags, words) in requests {
        let mut line = vec!["create".to_owned(), "--name".to_owned(), "bad".to_owned()];
        line.extend(flags.clone());
        line.push(image.to_owned());
        let made = home.zmachine(&line).finish();
        told_why(&format!("{flags:?}"), &made, words);
    }
    assert_eq!(zmachine(home, &["ps", "-a", "-q"]).stdout(), "");
    assert_eq!(zmachine(home, &["volume", "ls", "-q"]).stdout(), "");
}

#[track_caller]
fn told_why(what: &str, made: &Finished, words: &[&str]) {
    let reported = made.stderr();
    assert!((1..=6).contains(&made.code), "{what}: {made}");
    assert!(
        reported.starts_with("error: ") && reported.contains("hint: "),
        "{what}: {reported}"
    );
    for word in words {
        assert!(
            reported.to_lowercase().contains(&word.to_lowercase()),
            "{what}: no {word:?} in {reported}"
        );
    }
}
