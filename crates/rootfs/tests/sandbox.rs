//! What the sandbox forbids, tried in a process of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use zmachine_flist::BlockRef;

/// Programs of `examples/`, beside the test program. `cargo test` builds them; `cargo test --test sandbox` alone does not.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

fn attempt(what: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cache", "image"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("image/file"), "x").unwrap();
    fs::write(dir.path().join("secret"), "x").unwrap();
    let output = Command::new(example("caged"))
        .arg(dir.path())
        .arg(what)
        .output()
        .unwrap();
    let reported = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, reported)
}

fn has_landlock(reported: &str) -> bool {
    if reported.contains("no Landlock") {
        zmachine_testkit::skip(reported);
    }
    !reported.contains("no Landlock")
}

#[test]
fn its_own_work_is_possible() {
    for what in ["nothing", "work"] {
        let (output, reported) = attempt(what);
        assert!(
            output.status.success() && reported.contains("survived"),
            "{what}: {:?} {reported}",
            output.status
        );
    }
}

#[test]
fn a_system_call_off_the_list_ends_the_process() {
    for what in ["exec", "mount", "chroot", "packet-socket", "touch-by-name"] {
        let (output, reported) = attempt(what);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{what}: {:?} {reported}",
            output.status
        );
    }
}

#[test]
fn files_outside_can_not_be_read_and_the_image_not_written() {
    for what in ["read-outside", "write-image"] {
        let (output, reported) = attempt(what);
        if has_landlock(&reported) {
            assert!(
                !output.status.success() && reported.contains("PermissionDenied"),
                "{what}: {:?} {reported}",
                output.status
            );
        }
    }
}

#[test]
fn nothing_can_listen_on_the_network() {
    let (output, reported) = attempt("listen");
    assert!(
        !output.status.success() && !reported.contains("survived"),
        "{:?} {reported}",
        output.status
    );
}

/// A web server that gives one block to whoever asks; its port.
fn store_on_loopback() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, sealed) = BlockRef::seal(b"over the network");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = write!(
                client,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                sealed.len()
            );
            let _ = client.write_all(&sealed);
        }
    });
    port
}

#[test]
fn a_block_is_fetched_by_name_over_http_and_cached() {
    let (output, reported) = attempt(&format!("http://localhost:{}", store_on_loopback()));
    let is_fetched = reported.contains("over the network")
        && reported.contains("blocks: 1")
        && reported.contains("cache_failures: 0");
    assert!(output.status.success() && is_fetched, "{:?} {reported}", output.status);
}

#[test]
fn a_failed_tls_handshake_is_an_error_and_not_the_end() {
    let (output, reported) = attempt(&format!("https://localhost:{}", store_on_loopback()));
    assert_eq!(output.status.code(), Some(1), "{:?} {reported}", output.status);
    assert!(reported.contains("is not available"), "{reported}");
}
