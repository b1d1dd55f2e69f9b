//! `why` after failures of every kind: each is told in words, with what to do.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zmachine_testkit::{TestHome, Tree};

use crate::support::{Checks, home, inspect, noise, phase, until, until_logged, zmachine};

/// What `why` says of the last start of `machine`, as one text: what, because, hint.
fn why(home: &TestHome, machine: &str) -> String {
    let run = zmachine(home, &["why", "-o", "json", machine]);
    let exec_output: Value = serde_json::from_str(&run.expect_success().stdout()).expect("JSON");
    let explanation = &exec_output[0]["explanation"];
    assert!(
        explanation["what"].as_str().is_some_and(|what| what.len() > 10),
        "{exec_output}"
    );
    // The words for people are made of the same record.
    let text = zmachine(home, &["why", machine]).expect_success().stdout();
    assert!(
        text.contains(explanation["what"].as_str().unwrap_or_default()),
        "{text}"
    );
    explanation.to_string()
}

/// The machine's process of a role.
fn process(home: &TestHome, machine: &str, role: &str) -> Pid {
    let pid = inspect(home, machine)["state"][role]["pid"].as_i64();
    Pid::from_raw(pid.expect("a process") as i32).expect("a process")
}

fn ended(home: &TestHome, machine: &str) {
    until("it has ended", Duration::from_secs(60), || {
        matches!(phase(home, machine).as_str(), "failed" | "stopped").then_some(())
    });
}

/// A program that writes to address 0: process 1 cannot end itself with a signal, but a fault ends it. An ELF file of one
/// segment, with `xor eax, eax; mov [rax], eax`.
fn crashing_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: [u8; 4] = [0x31, 0xc0, 0x89, 0x00];
    let mut file = vec![
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x3e, 0, 1, 0, 0, 0,
    ];
    let headers = 64 + 56;
    for word in [BASE + headers, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Readable and executable, the whole file.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = headers + CODE.len() as u64;
    for word in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

#[test]
fn every_kind_of_failure_is_told_in_words_with_what_to_do() {
    let Some(home) = home() else { return };
    let tree = Tree::busybox(&home)
        .file("bin/plain", "no program\n")
        .file("bin/crash", crashing_program())
        .file("data.bin", noise(9, 3_000_000));
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(tree.root().join("bin/crash"), executable).expect("its mode");
    let image = tree.pack(&home, "box");
    let mut checks = Checks::default();
    // Each runs attached, fails, and is asked about under its name.
    for (name, args, what, hint) in [
        (
            "notfound",
            &["/no/such/program"][..],
            "/no/such/program: not found",
            "flist ls",
        ),
        ("noexec", &["/bin/plain"], "/bin/plain", "execute permission"),
        (
            "code",
            &["sh", "-c", "exit 3"],
            "by itself, with code 3",
            "zmachine logs code",
        ),
        (
            "inner",
            &["sh", "-c", "no-such-command"],
            "a command was not found",
            "zmachine logs inner",
        ),
        (
            "segv",
            &["/bin/crash"],
            "SIGSEGV (it used memory it does not have)",
            "zmachine logs segv",
        ),
        ("off", &["sh", "-c", "sync; poweroff -f"], "powered itself off", ""),
    ] {
        checks.that(name, || {
            let run = [&["run", "--name", name, &image][..], args].concat();
            zmachine(&home, &run);
            let exec_output = why(&home, name);
            assert!(
                exec_output.contains(what) && exec_output.contains(hint),
                "{exec_output}"
            );
        });
    }
    checks.that("a user that is not there", || {
        zmachine(&home, &["run", "--name", "user", "-u", "nobody99", &image, "true"]).expect_code(125);
        let exec_output = why(&home, "user");
        assert!(
            exec_output.contains("nobody99") && exec_output.contains("/etc/passwd"),
            "{exec_output}"
        );
    });
    checks.that("a port that another program has", || {
        let network = home.network().expect("a network").path();
        let free = listen_in(&network, 0).local_addr().expect("an address").port();
        let publish = format!("127.0.0.1:{free}:80");
        zmachine(&home, &["create", "--name", "port", "-p", &publish, &image, "true"]).expect_success();
        let _taken = listen_in(&network, free);
        zmachine(&home, &["start", "port"]).expect_code(4);
        let exec_output = why(&home, "port");
        assert!(
            exec_output.contains(&free.to_string()) && !exec_output.contains("\"hint\":null"),
            "{exec_output}"
        );
    });
    checks.that("a host without memory for it", || {
        zmachine(&home, &["create", "--name", "big", "-m", "1G", &image, "true"]).expect_success();
        let program = std::env::current_exe().expect("own path");
        let program = program.ancestors().nth(2).expect("the target folder").join("zmachine");
        let script = format!("ulimit -v 1300000; exec {} start big", program.display());
        let run = home.command(Path::new("/bin/sh"), ["-c", &script]).finish();
        assert_ne!(run.code, 0, "{run}");
        let exec_output = why(&home, "big");
        assert!(exec_output.to_lowercase().contains("memory"), "{exec_output}");
    });
    checks.that("a stop that was asked for, and a kill", || {
        zmachine(&home, &["run", "-d", "--name", "asked", &image, "sleep", "1000"]).expect_success();
        zmachine(&home, &["stop", "-t", "0", "asked"]).expect_success();
        assert!(why(&home, "asked").contains("asked to stop"), "{}", why(&home, "asked"));
        zmachine(&home, &["start", "asked"]).expect_success();
        zmachine(&home, &["kill", "asked"]).expect_success();
        assert!(
            why(&home, "asked").contains("asked to stop, and ended by SIGKILL"),
            "{}",
            why(&home, "asked")
        );
    });
    checks.that("a hypervisor that somebody killed, and a monitor", || {
        zmachine(&home, &["start", "asked"]).expect_success();
        kill_process(process(&home, "asked", "hypervisor"), Signal::KILL).expect("the hypervisor");
        ended(&home, "asked");
        let exec_output = why(&home, "asked");
        assert!(exec_output.contains("somebody killed the hypervisor"), "{exec_output}");
        zmachine(&home, &["start", "asked"]).expect_success();
        kill_process(process(&home, "asked", "monitor"), Signal::KILL).expect("the monitor");
        ended(&home, "asked");
        let exec_output = why(&home, "asked");
        assert!(
            exec_output.contains("monitor ended without a word") && exec_output.contains("monitor.stderr"),
            "{exec_output}"
        );
    });
    checks.that("blocks that no store has", || {
        let script = "echo up; sleep 2; cat /data.bin > /dev/null || exit 5";
        zmachine(&home, &["run", "-d", "--name", "blocks", &image, "sh", "-c", script]).expect_success();
        until_logged(&home, "blocks", "up");
        // The machine's block broker holds on to the folder itself.
        let move_all = |from: &str, to: &str| {
            std::fs::create_dir_all(home.file(to)).expect("a folder");
            for entry in std::fs::read_dir(home.file(from)).expect("a store").flatten() {
                std::fs::rename(entry.path(), home.file(to).join(entry.file_name())).expect("moved");
            }
        };
        move_all("store", "away");
        ended(&home, "blocks");
        let exec_output = why(&home, "blocks");
        assert!(
            exec_output.contains("blocks could not be had") && exec_output.contains("another one can be named"),
            "{exec_output}"
        );
        move_all("away", "store");
    });
    for name in zmachine(&home, &["ps", "-a", "-q"]).stdout().lines() {
        zmachine(&home, &["rm", "-f", name]).expect_success();
    }
    home.assert_host_clean();
}

/// A port that is taken in the network of the test's machines.
fn listen_in(network: &Path, port: u16) -> TcpListener {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let network = std::fs::File::open(network).expect("the network");
    std::thread::spawn(move || {
        // Only this thread goes there; the socket stays there with it.
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
        TcpListener::bind(("127.0.0.1", port)).expect("a port")
    })
    .join()
    .expect("a listener")
}
