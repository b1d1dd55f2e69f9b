//! What a program finds in a container: file systems, names, users, environment, the process tree.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, exec_output, home, home_with_box, inspect, sh, until, until_logged, zmachine};

#[test]
fn a_container_has_everything_a_program_expects() {
    let Some((home, image)) = home_with_box() else { return };
    let flags = [
        "run",
        "-d",
        "--init",
        "--name",
        "r",
        "--hostname",
        "web.example",
        "-w",
        "/tmp",
        "-e",
        "A=b c",
        "--dns",
        "192.0.2.53",
    ];
    let words = flags
        .iter()
        .copied()
        .chain([image.as_str(), "sh", "-c", "pwd; sleep 1000"]);
    home.zmachine(words).finish().expect_success();
    let mut checks = Checks::default();
    checks.that("file systems", || file_systems(&home));
    checks.that("names", || names(&home));
    checks.that("environment", || environment(&home));
    checks.that("zombies are reaped", || zombies(&home));
    checks.that("the root is writable and has room", || {
        exec_output(
            &home,
            "r",
            "echo x > /new && rm /new && echo x >> /etc/passwd && mkdir -p /var/a/b",
        );
        let free: u64 = exec_output(&home, "r", "df -k / | tail -n 1 | awk '{print $4}'")
            .parse()
            .expect("a number");
        assert!(free > 400 << 10, "{free} KiB free of 500 MiB");
    });
    zmachine(&home, &["rm", "-f", "r"]).expect_success();
}

fn file_systems(home: &TestHome) {
    let mounts = exec_output(home, "r", "awk '{print $2, $3}' /proc/mounts");
    for mount in [
        "/proc proc",
        "/sys sysfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/sys/fs/cgroup cgroup2",
        "/ overlay",
    ] {
        assert!(mounts.lines().any(|line| line == mount), "no {mount} in\n{mounts}");
    }
    assert_eq!(
        exec_output(home, "r", "echo through | cat /dev/fd/0; readlink /dev/stdout"),
        "through\n/proc/self/fd/1"
    );
    exec_output(
        home,
        "r",
        "echo x > /dev/shm/x && echo y > /dev/null && head -c 4 /dev/urandom | wc -c | grep -qx 4",
    );
    exec_output(
        home,
        "r",
        "test -c /dev/tty && test -c /dev/ptmx && test -w /sys/fs/cgroup/cgroup.procs",
    );
}

fn names(home: &TestHome) {
    assert_eq!(
        exec_output(home, "r", "hostname; cat /etc/hostname"),
        "web.example\nweb.example"
    );
    let address = inspect(home, "r")["state"]["addresses"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let hosts = exec_output(home, "r", "cat /etc/hosts");
    assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
    assert!(
        hosts.lines().any(|l| l.contains(&address) && l.contains("web.example")),
        "no {address} in\n{hosts}"
    );
    assert_eq!(
        exec_output(home, "r", "grep nameserver /etc/resolv.conf"),
        "nameserver 192.0.2.53"
    );
}

fn environment(home: &TestHome) {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(exec_output(home, "r", "echo $HOME:$PATH"), format!("/root:{path}"));
    assert_eq!(exec_output(home, "r", "echo $A; pwd"), "b c\n/tmp");
    // The entrypoint's own, not only what exec makes of it.
    let own = exec_output(
        home,
        "r",
        "tr '\\0' '\\n' < /proc/$(pidof sleep | awk '{print $1}')/environ",
    );
    assert!(
        own.lines().any(|l| l == "A=b c") && own.lines().any(|l| l == "HOME=/root"),
        "{own}"
    );
    assert_eq!(zmachine(home, &["logs", "r"]).stdout(), "/tmp\n");
}

fn zombies(home: &TestHome) {
    // Grandchildren whose parent is gone end later than it: only PID 1 can reap them.
    exec_output(home, "r", "for i in 1 2 3 4 5; do (sleep 0.3 &); done");
    until("no zombies", Duration::from_secs(10), || {
        let states = exec_output(
            home,
            "r",
            "cat /proc/[0-9]*/status 2>/dev/null | grep -c '^State:.Z'; pidof sleep | wc -w",
        );
        (states == "0\n1").then_some(())
    });
}

#[test]
fn a_read_only_root_refuses_writes_and_an_ordinary_user_is_one() {
    let Some((home, image)) = home_with_box() else { return };
    let script = "id -u; id -g; echo $HOME; pwd; touch /x 2>&1; echo x > /dev/shm/x && ip -o link | grep -c .; ip -o addr show up | grep -c eth";
    let run = zmachine(
        &home,
        &[
            "run",
            "--rm",
            "--read-only",
            "--network",
            "none",
            "-u",
            "web",
            "-w",
            "/work",
            &image,
            "sh",
            "-c",
            script,
        ],
    );
    // Only the loopback with --network none.
    let want = "1000\n1000\n/home/web\n/work\ntouch: /x: Read-only file system\n1\n0\n";
    assert_eq!(run.stdout(), want, "{run}");
}

#[test]
fn an_init_in_the_image_is_process_one() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home).folder("sbin", 0o755).script("sbin/init", INIT);
    let image = tree.pack(&home, "init");
    zmachine(&home, &["run", "-d", "--name", "i", &image]).expect_success();
    until_logged(&home, "i", "init is 1\n");
    let orphan = sh(&home, "i", "(sleep 0.2 &); sleep 0.5; echo up");
    assert_eq!(orphan.expect_success().stdout(), "up\n");
    zmachine(&home, &["stop", "i"]).expect_success();
    assert_eq!(zmachine(&home, &["wait", "i"]).stdout(), "4\n");
    assert!(zmachine(&home, &["logs", "i"]).stdout().ends_with("asked to stop\n"));
}

const INIT: &str = "echo init is $$
trap 'echo asked to stop; exit 4' TERM
while :; do sleep 0.2; done";

/// `cap_dac_override+ep` in the format of the kernel (version 2).
const MAY_READ_ALL: [u8; 20] = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn hard_links_capabilities_and_nanoseconds_of_an_image_are_in_the_guest() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home).file("srv/a", "shared").file("secret", "hidden");
    let root = tree.root();
    fs::hard_link(root.join("srv/a"), root.join("srv/b")).expect("link");
    fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::copy(root.join("bin/busybox"), root.join("bin/busybox-reader")).expect("copy");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(
        root.join("bin/busybox-reader"),
        "security.capability",
        &MAY_READ_ALL,
        flags,
    )
    .expect("setxattr");
    let changed = fs::File::options()
        .append(true)
        .open(root.join("srv/a"))
        .expect("srv/a");
    changed
        .set_modified(UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789))
        .expect("utimens");
    let image = tree.pack(&home, "kept");
    let script = "stat -c '%h %y' /srv/a; /bin/busybox cat /secret; /bin/busybox-reader cat /secret";
    let exec_output = zmachine(
        &home,
        &[
            "run",
            "--rm",
            "--network",
            "none",
            "-u",
            "1000",
            &image,
            "sh",
            "-c",
            script,
        ],
    );
    let exec_output = exec_output.stdout();
    assert!(
        exec_output.starts_with("2 2001-09-09 01:46:40.123456789"),
        "{exec_output}"
    );
    assert_eq!(
        exec_output.matches("hidden").count(),
        1,
        "only the program with the capability reads it: {exec_output}"
    );
}
