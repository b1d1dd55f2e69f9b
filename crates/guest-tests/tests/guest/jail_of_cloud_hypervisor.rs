//! Cloud Hypervisor's jail, on hosts that have none and whose KVM is too weak for it: another program stands in its place.
//!
//! The mount namespace of the test shows zmachine a host where it could run: a program of that name in the search path, a CPU with
//! `vmx`, no software variant of KVM. Planner, monitor, driver, jail, root disk, volume and tap are those of every machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zmachine_testkit::{Invocation, TestHome, skip};

use crate::jail::{escaped, example, outcomes};
use crate::support::{Checks, home_with_box, inspect, until, zmachine};

/// A home, on a host whose `/dev/kvm` can be opened: that it works is pretended.
fn home_with_kvm() -> Option<(TestHome, String)> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        skip(&format!("/dev/kvm: {error}"));
        return None;
    }
    home_with_box()
}

/// `zmachine args...` on a host that has `program` as its Cloud Hypervisor.
fn with_program(home: &TestHome, program: &Path, args: &[&str]) -> Invocation {
    let script = "mount --bind \"$0\" /proc/cpuinfo && mount -t tmpfs none /sys/module && mount -t tmpfs none /usr/local/sbin \
        && cp \"$1\" /usr/local/sbin/cloud-hypervisor && shift && exec \"$@\"";
    let cpu = home.file("cpuinfo");
    fs::write(&cpu, "processor\t: 0\nflags\t\t: fpu vmx\n").expect("a file");
    let words = [cpu.as_path(), program, home.zmachine_path()].map(|path| path.display().to_string());
    let before = ["-m", "sh", "-c", script].into_iter();
    let words = before
        .chain(words.iter().map(String::as_str))
        .chain(args.iter().copied());
    home.command(Path::new("/usr/bin/unshare"), words)
}

/// The process that has the API of the home's one machine. The machine's state has it only once its guest answers.
fn process_of(home: &TestHome) -> Option<u32> {
    let folder = home.path().join("run").display().to_string();
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.starts_with("/usr/local/sbin/cloud-hypervisor") && line.contains(&folder)
    })
}

const RUN: [&str; 5] = ["run", "--name", "m", "--hypervisor", "cloud-hypervisor"];

#[test]
fn nothing_gets_out_of_the_jail_of_cloud_hypervisor() {
    let Some((home, image)) = home_with_kvm() else { return };
    let escape = example("escape", "zmachine-sys");
    zmachine(&home, &["run", "-d", "--name", "other", &image, "sleep", "1000"]).expect_success();
    let mut checks = Checks::default();
    checks.that("every way out is closed", || {
        let tried = with_program(
            &home,
            &escape,
            &[&RUN[..], &["--rm", "--network", "none", &image]].concat(),
        )
        .finish();
        let outcomes = outcomes(&tried.stderr());
        assert!(outcomes.len() >= 62, "{tried}");
        assert_eq!(escaped(&outcomes), [""; 0], "{tried}");
    });
    checks.that("without a jail the same ways are open", || {
        let words = [&RUN[..], &["--rm", "--network", "none", "--jail", "off", &image]].concat();
        let tried = with_program(&home, &escape, &words).finish();
        let outcomes = outcomes(&tried.stderr());
        let open = escaped(&outcomes);
        for name in [
            "read-shadow",
            "read-other-spec",
            "write-other-disk",
            "connect-control",
            "fill-run-folder",
            "see-others",
            "mount",
            "connect-host",
            "memory-bomb",
        ] {
            assert!(
                open.contains(&name),
                "{name} was refused: the test tests nothing\n{tried}"
            );
        }
    });
    zmachine(&home, &["rm", "-f", "other"]).expect_success();
}

#[test]
fn cloud_hypervisor_has_all_of_its_machine_in_its_jail() {
    let Some((home, image)) = home_with_kvm() else { return };
    let program = example("recorded-vmm", "zmachine-hypervisor");
    let mut checks = Checks::default();
    zmachine(&home, &["network", "create", "n"]).expect_success();
    let more = [
        "-d",
        "--network",
        "n",
        "-v",
        "v:/data:size=64M",
        &image,
        "sleep",
        "1000",
    ];
    // Its guest never calls as ours do, so the command waits for it.
    let mut command = with_program(&home, &program, &[&RUN[..], &more].concat()).start();
    let pid = until("a guest that runs", Duration::from_secs(120), || {
        let ended = command.try_wait().expect("a status");
        assert!(ended.is_none(), "it ended: {}", zmachine(&home, &["why", "m"]));
        // The guest ticks when all that its hypervisor was told of could be opened and connected to.
        let log = zmachine(&home, &["logs", "--source", "console", "m"]);
        log.stdout().contains("TICK").then(|| process_of(&home)).flatten()
    });
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().split('\t').next().unwrap_or_default()
    };
    let user: u32 = field("Uid").parse().expect("a number");
    checks.that("its protections are active", || {
        assert!(user >= 2_000_000_000, "{status}");
        assert_eq!([field("CapEff"), field("CapBnd")], ["0000000000000000"; 2], "{status}");
        assert_eq!([field("NoNewPrivs"), field("Seccomp")], ["1", "2"], "{status}");
        for space in ["mnt", "pid", "net", "ipc", "uts"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{space}")).expect("a namespace");
            assert_ne!(of(&pid.to_string()), of("self"), "{space}");
        }
    });
    let all = inspect(&home, "m");
    assert_eq!(all["plan"]["hypervisor"]["driver"], "cloud-hypervisor");
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let seen = |path: &Path| root.join(path.strip_prefix("/").expect("an absolute path"));
    checks.that("its disks are its user's there and root's here", || {
        let machine = home.path().join("machines/by-name/m").canonicalize().expect("a folder");
        for disk in [machine.join("root.img"), home.path().join("volumes/v/data.img")] {
            let disk = disk.canonicalize().expect("a disk");
            let owner = |path: &Path| fs::metadata(path).expect("a disk").uid();
            assert_eq!([owner(&disk), owner(&seen(&disk))], [0, user], "{}", disk.display());
        }
        assert!(!seen(&machine.join("spec.json")).exists());
    });
    checks.that("its tap came as a descriptor", || {
        let id = all["id"].as_str().expect("an id");
        let folder = seen(&home.path().join("run").join(id).join("ch"));
        let asked = fs::read_to_string(folder.join("requests.jsonl")).expect("requests");
        let tap = asked.lines().find(|line| line.contains("vm.add-net")).expect("the tap");
        assert!(tap.contains("\"fds\":1"), "{tap}");
    });
    zmachine(&home, &["rm", "-f", "m"]).expect_success();
    command.wait().expect("its end");
    checks.that("nothing of it is left", || {
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    });
    zmachine(&home, &["volume", "rm", "v"]).expect_success();
    zmachine(&home, &["network", "rm", "n"]).expect_success();
}
