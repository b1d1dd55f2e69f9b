//! Machines that nobody has to do with, and what brings them back: all the ways, which take minutes. One of them is in `snapshots`.

use std::path::Path;
use std::time::Duration;

use zmachine_testkit::TestHome;

use crate::support::{Checks, exec_output, home_with_box, inspect, phase, until, zmachine};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers every connection.
const SERVE: &str = "exec httpd -f -p 80 -h /etc";

/// Sends a datagram once a second until the guest's kernel answers that nobody listens there.
const ASK_BY_UDP: &str = r"
import socket, sys
asker = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(1)
asker.connect((sys.argv[1], 53))
for attempt in range(40):
    try:
        asker.send(b'there?')
        asker.recv(100)
    except ConnectionRefusedError:
        print('answered')
        break
    except TimeoutError:
        continue
";

/// Asks for the host name by HTTP; one connection, which waits.
const ASK_BY_TCP: &str = r"
import socket, sys
asker = socket.create_connection((sys.argv[1], 80), 40)
asker.sendall(b'GET /hostname HTTP/1.0\r\n\r\n')
answer = b''
while part := asker.recv(1000):
    answer += part
print(answer.decode().splitlines()[-1])
";

fn is_idle(home: &TestHome, machine: &str) -> bool {
    !inspect(home, machine)["state"]["idle_since"].is_null()
}

#[track_caller]
fn asleep(home: &TestHome, machine: &str) {
    until("it is idle", PATIENCE, || is_idle(home, machine).then_some(()));
    assert!(inspect(home, machine)["state"]["hypervisor"].is_null());
}

fn python(home: &TestHome, script: &str, argument: &str) -> String {
    let run = home.command(Path::new("python3"), ["-c", script, argument]);
    let run = run.deadline(PATIENCE * 2).finish();
    run.expect_success();
    run.stdout().trim().to_owned()
}

/// Its memory and its disks are as it left them.
#[track_caller]
fn assert_kept(home: &TestHome, machine: &str) {
    assert_eq!(
        exec_output(home, machine, "cat /dev/shm/mark /data/mark /mark"),
        "kept\nkept\nkept"
    );
}

#[test]
#[ignore = "minutes: make test-long"]
fn idle_machines_are_brought_back_by_whoever_comes() {
    let Some((home, image)) = home_with_box() else { return };
    let mut checks = Checks::default();
    let words = [
        "run",
        "-d",
        "--name",
        "i",
        "--idle-timeout",
        "2s",
        "-v",
        "data:/data:size=32M",
        "-p",
        "18087:80",
        &image,
    ];
    zmachine(&home, &[&words[..], &["sh", "-c", SERVE]].concat()).expect_success();
    exec_output(
        &home,
        "i",
        "for file in /dev/shm/mark /data/mark /mark; do echo kept >$file; done",
    );
    let addresses = inspect(&home, "i")["state"]["addresses"]
        .as_array()
        .expect("addresses")
        .clone();
    let addresses: Vec<String> = addresses
        .iter()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect();
    let of = |is_v6: bool| {
        addresses
            .iter()
            .find(|one| one.contains(':') == is_v6)
            .expect("an address")
            .as_str()
    };
    checks.that("a connection by IPv6", || {
        asleep(&home, "i");
        assert_eq!(python(&home, ASK_BY_TCP, of(true)), "i");
        assert_kept(&home, "i");
    });
    checks.that("a connection to its IPv4 address", || {
        asleep(&home, "i");
        assert_eq!(python(&home, ASK_BY_TCP, of(false)), "i");
        assert_kept(&home, "i");
    });
    for is_v6 in [false, true] {
        checks.that(
            &format!("datagrams, the first of which is lost (IPv6: {is_v6})"),
            || {
                asleep(&home, "i");
                assert_eq!(python(&home, ASK_BY_UDP, of(is_v6)), "answered");
                assert_kept(&home, "i");
            },
        );
    }
    checks.that("a command in it, one that looks at it does not", || {
        asleep(&home, "i");
        zmachine(&home, &["ps"]).expect_success();
        zmachine(&home, &["logs", "i"]).expect_success();
        assert!(is_idle(&home, "i"));
        assert_kept(&home, "i");
    });
    checks.that("a start after its monitor was killed", || {
        asleep(&home, "i");
        let monitor = inspect(&home, "i")["state"]["monitor"]["pid"]
            .as_i64()
            .expect("a process");
        let words = ["-9".to_owned(), monitor.to_string()];
        home.command(Path::new("kill"), words).finish().expect_success();
        until("its end is seen", PATIENCE, || {
            (phase(&home, "i") == "failed").then_some(())
        });
        zmachine(&home, &["start", "i"]).expect_success();
        assert_kept(&home, "i");
    });
    checks.that("its volume may be had by nobody else meanwhile", || {
        asleep(&home, "i");
        let words = ["run", "--rm", "--network", "none", "-v", "data:/data", &image, "true"];
        assert_ne!(zmachine(&home, &words).code, 0);
        assert!(is_idle(&home, "i"));
    });
    checks.that("how long it may be idle is changed while it runs", || {
        exec_output(&home, "i", "true");
        zmachine(&home, &["update", "--idle-timeout", "0", "i"]).expect_success();
        std::thread::sleep(Duration::from_secs(6));
        assert!(!is_idle(&home, "i"));
        zmachine(&home, &["update", "--idle-timeout", "1s", "i"]).expect_success();
        asleep(&home, "i");
        assert_kept(&home, "i");
    });
    checks.that("stop is told to its programs", || {
        asleep(&home, "i");
        zmachine(&home, &["stop", "-t", "2", "i"]).expect_success();
        assert_eq!(phase(&home, "i"), "stopped");
    });
    checks.that("one that was not built for it is refused", || {
        zmachine(&home, &["create", "--name", "plain", &image, "true"]).expect_success();
        let refused = zmachine(&home, &["update", "--idle-timeout", "1s", "plain"]);
        let text = refused.expect_code(4).stderr();
        assert!(
            text.contains("was not built to be saved") && text.contains("--idle-timeout or --snapshots"),
            "{text}"
        );
    });
    zmachine(&home, &["rm", "-f", "i", "plain"]).expect_success();
    home.assert_host_clean();
}

#[test]
#[ignore = "minutes: make test-long"]
fn a_volume_that_is_only_read_is_shared_by_forks_until_it_is_written_to() {
    let Some((home, image)) = home_with_box() else { return };
    let write = |text: &str| {
        let script = format!("echo {text} >/data/x; sync");
        let words = [
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            "read:/data:size=32M",
            &image,
            "sh",
            "-c",
            &script,
        ];
        zmachine(&home, &words).expect_success();
    };
    write("then");
    let words = [
        "run",
        "-d",
        "--name",
        "r",
        "--snapshots",
        "--network",
        "none",
        "-v",
        "read:/data:ro",
        &image,
    ];
    zmachine(&home, &[&words[..], &["sleep", "10000"]].concat()).expect_success();
    assert_eq!(exec_output(&home, "r", "cat /data/x"), "then");
    zmachine(&home, &["snapshot", "create", "r@one"]).expect_success();
    zmachine(&home, &["fork", "r@one", "--name", "f"]).expect_success();
    assert_eq!(exec_output(&home, "f", "cat /data/x"), "then");
    assert_eq!(
        zmachine(&home, &["volume", "ls", "-q"]).stdout(),
        "read\n",
        "there is no copy"
    );
    zmachine(&home, &["rm", "-f", "f"]).expect_success();
    zmachine(&home, &["stop", "-t", "1", "r"]).expect_success();
    zmachine(&home, &["restore", "r@one"]).expect_success();
    assert_eq!(exec_output(&home, "r", "cat /data/x"), "then");
    zmachine(&home, &["stop", "-t", "1", "r"]).expect_success();
    write("later");
    for words in [&["restore", "r@one"][..], &["fork", "r@one", "--name", "f"]] {
        let refused = zmachine(&home, words);
        let text = refused.stderr();
        assert!(
            refused.code != 0 && text.contains("'read' has been written to since"),
            "{text}"
        );
    }
    assert_eq!(zmachine(&home, &["ps", "-a", "-q"]).stdout(), "r\n");
    zmachine(&home, &["rm", "-f", "r"]).expect_success();
    home.assert_host_clean();
}
