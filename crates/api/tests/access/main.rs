//! Who may do what, against a real server: by TCP with TLS and tokens, and by its sockets.
//!
//! Each request here is made by hand over a connection of its own, so that it is exactly what a client that means no good would send.

mod activation;
#[path = "../common/http.rs"]
mod http;
mod limits;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use zmachine_testkit::{Need, certificate, lacking, skip};

use crate::http::exchange;
use crate::support::{PROGRAM, Server, VOLUME, expect, request};

#[test]
fn tcp_is_not_served_without_tls_also_for_this_host() {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["--program", "/bin/true", "serve"]).args(args);
        command
            .env("ZMACHINE_HOME", folder.path().join("home"))
            .output()
            .expect("the program")
    };
    let refused = run(&["--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && said.contains("TCP is served with TLS alone"),
        "{refused:?}"
    );
    let refused = run(&["--tls-cert", "/none", "--tls-key", "/none"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn a_key_that_others_may_read_or_that_is_another_ones_is_refused() {
    if let Some(reason) = lacking(&[Need::Command("openssl")]) {
        return skip(&reason);
    }
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    for folder in [&own, &other] {
        std::fs::create_dir(folder).expect("a folder");
        certificate(folder);
    }
    let run = |certificate: &Path, key: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args([
            "--program",
            "/bin/true",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
        ]);
        command.arg(certificate).arg("--tls-key").arg(key);
        let done = command
            .env("ZMACHINE_HOME", folder.path().join("home"))
            .output()
            .expect("the program");
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (code, said) = run(&own.join("cert.pem"), &other.join("key.pem"));
    assert!(code == Some(2) && said.contains("cert.pem cannot be used"), "{said}");
    let (code, said) = run(&own.join("none.pem"), &own.join("key.pem"));
    assert!(code == Some(2) && said.contains("none.pem"), "{said}");
    let (code, said) = run(&own.join("key.pem"), &own.join("key.pem"));
    assert!(code == Some(2) && said.contains("no certificate"), "{said}");
    std::fs::set_permissions(own.join("key.pem"), std::fs::Permissions::from_mode(0o644)).expect("a mode");
    let (code, said) = run(&own.join("cert.pem"), &own.join("key.pem"));
    assert!(code == Some(2) && said.contains("may be read by everybody"), "{said}");
}

#[test]
fn plain_http_on_the_port_of_tls_gets_no_answer() {
    let Some(server) = Server::start() else { return };
    let stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let answer = exchange(
        stream,
        b"GET /v1/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(!answer.body.contains("version"), "{answer:?}");
}

#[test]
fn without_a_token_nothing_is_told_by_tcp() {
    let Some(server) = Server::start() else { return };
    for line in [
        "GET /v1/version",
        "GET /v1/openapi.json",
        "GET /v1/nothing",
        "GET /_ping",
        "GET /version",
        "GET /",
        "OPTIONS /v1/machines",
    ] {
        let answer = server.ask(line, &[], "");
        expect(&answer, 401, "a token is needed");
        assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
    }
}

#[test]
fn what_is_no_token_of_this_home_is_refused() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "admin", "1d");
    let text = format!("ci:{token}");
    for (index, header) in [
        "Authorization: Bearer".to_owned(),
        format!("Authorization: Bearer {}", &token[..token.len() - 1]),
        format!("Authorization: Bearer {token}A"),
        format!("Authorization: Bearer {}", token.replace("zmt_ci_", "zmt_other_")),
        format!(
            "Authorization: Bearer {}",
            token.replace("zmt_ci_", "zmt_../tokens/ci_")
        ),
        format!("Authorization: Basic {text}"),
        format!("Authorization: {token}"),
        format!("X-Registry-Auth: {token}"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = server.ask("GET /v1/version", &[&header], "");
        assert_eq!(answer.status, 401, "{index} {header}: {answer:?}");
        assert!(!answer.body.contains(&token), "{answer:?}");
    }
    // Neither in the query nor in a cookie.
    let answer = server.ask(&format!("GET /v1/version?token={token}&access_token={token}"), &[], "");
    expect(&answer, 401, "a token is needed");
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 200);
}

#[test]
fn two_credentials_in_one_request_are_refused() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("ci", "admin", "1d"));
    expect(
        &server.ask("GET /v1/version", &[&header, &header], ""),
        401,
        "more than one",
    );
}

#[test]
fn a_token_that_has_expired_is_told_so() {
    let Some(server) = Server::start() else { return };
    let token = server.token("short", "admin", "1s");
    std::thread::sleep(Duration::from_millis(1100));
    expect(&server.by(&token, "GET /v1/version", ""), 401, "has expired");
    let listed = server.run(&["token", "ls"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("expired"),
        "{listed:?}"
    );
}

#[test]
fn a_token_that_is_removed_is_refused_from_the_next_request_on() {
    let Some(server) = Server::start() else { return };
    let token = server.token("gone", "viewer", "1d");
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 200);
    assert!(server.run(&["token", "rm", "gone"]).status.success());
    expect(&server.by(&token, "GET /v1/version", ""), 401, "not valid");
    assert_eq!(server.run(&["token", "rm", "gone"]).status.code(), Some(3));
    // A new one of the same name does not bring the old one back.
    server.token("gone", "viewer", "1d");
    expect(&server.by(&token, "GET /v1/version", ""), 401, "not valid");
}

#[test]
fn a_stream_ends_with_its_token() {
    let Some(server) = Server::start() else { return };
    let token = server.token("follower", "viewer", "1d");
    let mut stream = server.tls("localhost");
    let headers = [&*format!("Authorization: Bearer {token}")];
    let text = request("GET /v1/events", "localhost", &headers, "");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut start = [0; 15];
    stream.read_exact(&mut start).expect("the head");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    assert!(server.run(&["token", "rm", "follower"]).status.success());
    let removed = Instant::now();
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(removed.elapsed() < Duration::from_secs(8), "{:?}", removed.elapsed());
}

#[test]
fn a_viewer_looks_and_changes_nothing() {
    let Some(server) = Server::start() else { return };
    let token = server.token("eyes", "viewer", "1d");
    for line in [
        "GET /v1/machines",
        "GET /v1/volumes",
        "GET /v1/networks",
        "GET /v1/images",
        "GET /v1/metrics",
    ] {
        assert_eq!(server.by(&token, line, "").status, 200, "{line}");
    }
    for (line, needed) in [
        ("POST /v1/machines", "admin"),
        ("POST /v1/plans", "admin"),
        ("PATCH /v1/machines/web", "admin"),
        ("DELETE /v1/machines/web", "admin"),
        ("DELETE /v1/machines/web?force=1", "admin"),
        ("POST /v1/machines/web/start", "operator"),
        ("POST /v1/machines/web/stop", "operator"),
        ("POST /v1/machines/web/kill", "operator"),
        ("POST /v1/volumes", "admin"),
        ("DELETE /v1/volumes/v1", "admin"),
        ("POST /v1/networks", "admin"),
        ("DELETE /v1/networks/n1", "admin"),
        ("DELETE /v1/images/i1", "admin"),
    ] {
        let answer = server.by(&token, line, VOLUME);
        expect(
            &answer,
            403,
            &format!("needs the role {needed}, and the token 'eyes' has the role viewer"),
        );
        assert!(answer.head.contains("application/problem+json"), "{answer:?}");
    }
    let volumes = server.by(&token, "GET /v1/volumes", "");
    assert!(!volumes.body.contains("v1"), "{volumes:?}");
}

#[test]
fn an_operator_starts_and_stops_and_makes_nothing() {
    let Some(server) = Server::start() else { return };
    let token = server.token("hands", "operator", "1d");
    // Let in, and told that there is no such machine.
    for action in ["start", "stop", "restart", "kill", "pause", "resume", "wait"] {
        let answer = server.by(&token, &format!("POST /v1/machines/none/{action}"), "");
        assert_eq!(answer.status, 404, "{action}: {answer:?}");
    }
    for line in [
        "POST /v1/machines",
        "POST /v1/volumes",
        "DELETE /v1/machines/none",
        "PATCH /v1/machines/none",
    ] {
        expect(&server.by(&token, line, "{}"), 403, "needs the role admin");
    }
}

#[test]
fn an_admin_makes_and_removes() {
    let Some(server) = Server::start() else { return };
    let token = server.token("root", "admin", "1d");
    assert_eq!(server.by(&token, "POST /v1/volumes", VOLUME).status, 201);
    assert_eq!(server.by(&token, "DELETE /v1/volumes/v1", "").status, 204);
}

#[test]
fn dockers_api_by_tcp_is_for_admins() {
    let Some(server) = Server::start() else { return };
    let (viewer, operator) = (server.token("v", "viewer", "1d"), server.token("o", "operator", "1d"));
    for token in [&viewer, &operator] {
        assert_eq!(server.by(token, "GET /_ping", "").status, 200);
        assert_eq!(server.by(token, "GET /v1.45/version", "").status, 200);
        for line in [
            "GET /containers/json",
            "GET /v1.45/containers/json",
            "GET /v1.45/containers/x/json",
            "GET /v1.45/containers/x/archive?path=/etc",
            "POST /v1.45/containers/create",
            "POST /v1.45/containers/x/attach",
            "POST /exec/x/start",
            "GET /info",
            "GET /images/get?names=x",
        ] {
            expect(&server.by(token, line, "{}"), 403, "needs the role admin");
        }
    }
    let admin = server.token("a", "admin", "1d");
    assert_eq!(server.by(&admin, "GET /v1.45/containers/json", "").body.trim(), "[]");
}

#[test]
fn a_path_in_other_letters_needs_no_lesser_role() {
    let Some(server) = Server::start() else { return };
    let token = server.token("eyes", "viewer", "1d");
    for line in [
        "POST /v1//volumes",
        "POST /v1/volumes/",
        "POST /v1/%76olumes",
        "POST //v1/volumes",
        "POST /v1/./volumes",
        "POST /V1/volumes",
        "POST /v1/machines/../volumes",
        "post /v1/volumes",
        "GET /v1.45//containers/json",
        "GET //containers/json",
        "GET /v1.45/_ping/../containers/json",
        "GET /%5fping/../containers/json",
    ] {
        let answer = server.by(&token, line, VOLUME);
        assert!(matches!(answer.status, 400 | 403 | 404 | 405), "{line}: {answer:?}");
    }
    let volumes = server.by(&token, "GET /v1/volumes", "");
    assert!(!volumes.body.contains("v1"), "{volumes:?}");
}

#[test]
fn another_method_in_a_header_changes_nothing() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("eyes", "viewer", "1d"));
    let tricks = [
        "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /v1/volumes/v1",
        "X-Forwarded-For: 127.0.0.1",
    ];
    for trick in tricks {
        let answer = server.ask("POST /v1/volumes", &[&header, trick], VOLUME);
        expect(&answer, 403, "needs the role admin");
    }
}

#[test]
fn a_request_for_another_host_is_refused() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("ci", "admin", "1d"));
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1",
        "localhost@evil.example",
        "",
        " ",
    ] {
        let text = request("GET /v1/version", host, &[&header], "");
        let answer = server.raw(text.as_bytes());
        assert!(matches!(answer.status, 400 | 421), "{host}: {answer:?}");
    }
    // A client that went to an address: names are what a page would have brought.
    let by_address = |host: &str| {
        let text = request("GET /v1/version", host, &[&header], "");
        exchange(server.tls("127.0.0.1"), text.as_bytes()).status
    };
    assert_eq!(by_address("rebound.example"), 421);
    assert_eq!(by_address(&format!("127.0.0.1:{}", server.port)), 200);
    // In the request line too.
    let text = request("GET https://evil.example/v1/version", "localhost", &[&header], "");
    assert_eq!(server.raw(text.as_bytes()).status, 421);
}

#[test]
fn a_request_without_a_host_or_with_two_is_refused() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("ci", "admin", "1d"));
    let none = format!("GET /v1/version HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n");
    expect(&server.raw(none.as_bytes()), 400, "Host");
    expect(
        &server.ask("GET /v1/version", &[&header, "Host: localhost"], ""),
        400,
        "Host",
    );
    let old = format!("GET /v1/version HTTP/1.0\r\n{header}\r\n\r\n");
    expect(&server.raw(old.as_bytes()), 400, "Host");
}

#[test]
fn pages_of_browsers_are_refused_whatever_they_bring() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("ci", "admin", "1d"));
    for origin in [
        "https://evil.example",
        "null",
        &format!("https://localhost:{}", server.port),
        "",
    ] {
        let origin = format!("Origin: {origin}");
        expect(&server.ask("GET /v1/version", &[&header, &origin], ""), 403, "browsers");
        for socket in ["api.sock", "docker.sock"] {
            expect(
                &server.local(socket, "GET /v1/version", &[&origin], ""),
                403,
                "browsers",
            );
        }
    }
    // A question before the request, as a browser sends it, gets no permission.
    let preflight = server.ask(
        "OPTIONS /v1/volumes",
        &["Origin: https://evil.example", "Access-Control-Request-Method: POST"],
        "",
    );
    assert_eq!(preflight.status, 403);
    assert!(!preflight.head.contains("access-control"), "{preflight:?}");
    let plain = server.ask("GET /v1/version", &[&header], "");
    assert!(!plain.head.contains("access-control"), "{plain:?}");
}
