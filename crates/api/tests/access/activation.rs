//! Sockets of systemd: what it hands over is served, and TCP among it only with a certificate and for tokens.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{PROGRAM, Server, expect};

/// The program with a socket as descriptor 3, as systemd starts it.
fn activated(listener: TcpListener, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    // The number of the process is known only in it, and stays by `exec`.
    let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=tls exec \"$0\" --program /bin/true serve \"$@\"";
    command
        .args(["-c", script, PROGRAM])
        .args(args)
        .env("ZMACHINE_HOME", home)
        .stdin(Stdio::from(OwnedFd::from(listener)));
    command
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_port_of_systemd_is_served_with_tls_and_for_tokens_alone() {
    let Some(mut server) = Server::start() else { return };
    let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let home = server.file("home");

    let refused: Output = activated(listener(), &home, &[]).output().expect("the program");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && said.contains("TCP is served with TLS alone"),
        "{refused:?}"
    );

    let token = server.token("eyes", "viewer", "1h");
    let port = listener();
    // Whoever connects before it runs waits, as systemd promises.
    server.port = port.local_addr().expect("its address").port();
    let (certificate, key) = (server.file("cert.pem"), server.file("key.pem"));
    let args = [
        "--tls-cert",
        &certificate.display().to_string(),
        "--tls-key",
        &key.display().to_string(),
    ];
    let _ended = Ended(
        activated(port, &home, &args)
            .stderr(Stdio::null())
            .spawn()
            .expect("the program"),
    );
    expect(&server.ask("GET /v1/version", &[], ""), 401, "token");
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 200);
    expect(&server.by(&token, "POST /v1/machines/prune", ""), 403, "admin");
}
