//! The root disk's server in its jail: every way out is tried in a process of its own, since a forbidden system call ends it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use zmachine_sys::jail::{Jail, Jailed};
use zmachine_sys::process::ChildSetup;

/// A user that no machine of this host has: theirs begin at 2,000,000,000.
const USER: u32 = 1_999_999_999;

const ATTEMPTS: [&str; 35] = [
    "read-passwd",
    "read-shadow",
    "list-root",
    "list-home",
    "read-cache",
    "write-cache",
    "remove-from-cache",
    "read-image",
    "create-in-tmp",
    "create-in-root",
    "make-directory",
    "make-link",
    "connect-control",
    "connect-host",
    "connect-internet",
    "send-datagram",
    "listen",
    "packet-socket",
    "vsock",
    "run-program",
    "mount",
    "unmount",
    "change-root",
    "pivot-root",
    "make-device",
    "open-disk",
    "enter-namespace",
    "see-others",
    "kill-others",
    "become-root",
    "host-name",
    "raise-limit",
    "memory-bomb",
    "memory-file",
    "new-session",
];

/// Programs of `examples/`, beside the test program. `cargo test` builds them; `cargo test --test jail` alone does not.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/jailed")
}

fn attempt(dir: &Path, what: &str) -> Output {
    let mut command = Command::new(example());
    command
        .arg(dir)
        .arg(what)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let jail = Jail::new(dir.join("jail"), Some(USER));
    let setup = ChildSetup {
        die_with_parent: true,
        ..ChildSetup::default()
    };
    let child = Jailed::role(&jail, command)
        .unwrap()
        .spawn(setup, |mut command| command.spawn())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_server_can_do_nothing_but_serve() {
    if let Some(lack) = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]) {
        return zmachine_testkit::skip(lack);
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    for folder in ["jail", "blocks/00", "image"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for file in ["blocks/00/block", "image/root.erofs"] {
        fs::write(dir.join(file), "x").unwrap();
    }
    let _listener = UnixListener::bind(dir.join("ctl.sock")).unwrap();
    let free = |output: &Output| String::from_utf8_lossy(&output.stdout).contains("free");
    let nothing = attempt(dir, "nothing");
    assert!(free(&nothing) && nothing.status.success(), "{nothing:?}");
    for what in ATTEMPTS {
        let output = attempt(dir, what);
        assert!(!free(&output) && !output.status.success(), "{what}: {output:?}");
        assert!(
            !String::from_utf8_lossy(&output.stderr).contains("no attempt is called"),
            "{output:?}"
        );
    }
    assert_eq!(fs::read(dir.join("blocks/00/block")).unwrap(), b"x");
}
