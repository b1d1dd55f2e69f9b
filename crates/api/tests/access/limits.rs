//! Limits of rate, size and time; sockets, tokens and the record of changes on disk.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use zmachine_testkit::{Need, certificate, lacking, skip};

use crate::http::Answer;
use crate::support::{Server, VOLUME, expect};

#[test]
fn who_guesses_tokens_has_to_wait_and_others_do_not() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "viewer", "1d");
    let answers: Vec<Answer> = (0..12)
        .map(|_| server.by("zmt_ci_guess", "GET /v1/version", ""))
        .collect();
    assert_eq!(answers[0].status, 401);
    expect(&answers[11], 429, "too many requests without a valid token");
    assert!(answers[11].head.contains("retry-after: "), "{:?}", answers[11]);
    // From this address, the right one waits as well: else it would tell that it is right.
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 429);
    assert_eq!(server.local("api.sock", "GET /v1/version", &[], "").status, 200);
}

#[test]
fn a_token_that_asks_too_often_is_told_to_wait_and_others_are_not() {
    let Some(server) = Server::start() else { return };
    let (busy, other) = (
        server.token("busy", "viewer", "1d"),
        server.token("other", "viewer", "1d"),
    );
    let mut stream = server.tls("localhost");
    let one = format!("GET /v1/version HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {busy}\r\n\r\n");
    let last = one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let mut read = String::new();
    // In turn, so that neither side has to keep much.
    let mut buffer = [0; 4096];
    for _ in 0..600 {
        stream.write_all(one.as_bytes()).expect("sent");
        let count = stream.read(&mut buffer).expect("an answer");
        read.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if read.contains("HTTP/1.1 429") {
            break;
        }
    }
    stream.write_all(last.as_bytes()).expect("sent");
    stream.read_to_string(&mut read).expect("the rest");
    assert!(
        read.contains("HTTP/1.1 429") && read.contains("asks too often"),
        "{} bytes",
        read.len()
    );
    assert_eq!(server.by(&other, "GET /v1/version", "").status, 200);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_has_come() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "admin", "1d");
    let length = 1u64 << 40;
    let text = format!(
        "POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{}",
        " ".repeat(5 << 20)
    );
    let answer = server.raw(text.as_bytes());
    assert_eq!(answer.status, 413, "{answer:?}");
}

#[test]
fn a_head_that_is_too_large_or_never_ends_is_given_up() {
    let Some(server) = Server::start() else { return };
    let large = format!(
        "GET /v1/version HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(200 << 10)
    );
    let answer = server.raw(large.as_bytes());
    assert!(matches!(answer.status, 0 | 431), "{answer:?}");
    let mut stream = server.tls("localhost");
    stream
        .write_all(b"GET /v1/version HTTP/1.1\r\nHost: localhost\r\n")
        .expect("sent");
    let begun = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[test]
fn a_handshake_that_never_comes_holds_no_place() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "viewer", "1d");
    let silent: Vec<TcpStream> = (0..70)
        .map(|_| TcpStream::connect(("127.0.0.1", server.port)).expect("a connection"))
        .collect();
    // One address has so many places; after the time for a handshake they are free.
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.by(&token, "GET /v1/version", "").status != 200 {
        assert!(Instant::now() < deadline, "no place");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(server.local("api.sock", "GET /v1/version", &[], "").status, 200);
    drop(silent);
}

#[test]
fn requests_are_not_smuggled_in_others() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "viewer", "1d");
    let start = format!("POST /v1/machines/none/wait HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n");
    for framing in [
        "Content-Length: 4\r\nContent-Length: 40\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
    ] {
        let text = format!("{start}{framing}\r\n0\r\n\r\nGET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = server.raw(text.as_bytes());
        assert!(!answer.body.contains("openapi\":"), "{framing}: {answer:?}");
        assert!(matches!(answer.status, 0 | 400), "{framing}: {answer:?}");
    }
}

#[test]
fn a_token_by_a_socket_has_its_role_and_no_more() {
    let Some(server) = Server::start() else { return };
    let header = format!("Authorization: Bearer {}", server.token("eyes", "viewer", "1d"));
    expect(
        &server.local("api.sock", "POST /v1/volumes", &[&header], VOLUME),
        403,
        "needs the role admin",
    );
    expect(
        &server.local("docker.sock", "GET /containers/json", &[&header], ""),
        403,
        "needs the role admin",
    );
    expect(
        &server.local("api.sock", "GET /v1/version", &["Authorization: Bearer x"], ""),
        401,
        "not valid",
    );
    assert_eq!(server.local("api.sock", "POST /v1/volumes", &[], VOLUME).status, 201);
}

#[test]
fn the_sockets_are_for_their_owner_and_the_group_alone() {
    let Some(server) = Server::start() else { return };
    for socket in ["api.sock", "docker.sock"] {
        let mode = server.file(socket).metadata().expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{socket}");
    }
    let needs = [Need::Root, Need::Command("setpriv"), Need::Command("curl")];
    if let Some(reason) = lacking(&needs) {
        return skip(&reason);
    }
    std::fs::set_permissions(server.folder.path(), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let connects = |program: &str, before: &[&str], socket: &str| {
        let mut command = Command::new(program);
        command.args(before).args(["-s", "-o", "/dev/null", "--unix-socket"]);
        let done = command
            .arg(server.file(socket))
            .arg("http://z/v1/version")
            .output()
            .expect(program);
        done.status.code()
    };
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "curl"];
    for socket in ["api.sock", "docker.sock"] {
        assert_eq!(connects("curl", &[], socket), Some(0), "{socket}");
        // curl's code for a connection that it does not get.
        assert_eq!(connects("setpriv", &nobody, socket), Some(7), "{socket}");
    }
}

#[test]
fn tokens_are_kept_as_hashes_that_nobody_else_reads() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "admin", "30d");
    let secret = token.strip_prefix("zmt_ci_").expect("its beginning");
    let folder = server.file("home/tokens");
    let mode = |path: &Path| path.metadata().expect("it").permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join("ci.json"))), (0o700, 0o600));
    let kept = std::fs::read_to_string(folder.join("ci.json")).expect("text");
    assert!(!kept.contains(secret), "{kept}");
    let listed = server.run(&["token", "ls", "--json"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&shown[0]["name"], &shown[0]["role"]), (&"ci".into(), &"admin".into()));
    assert!(!text.contains(secret) && !text.contains("sha256"), "{text}");
}

#[test]
fn tokens_that_make_no_sense_are_not_made() {
    let Some(server) = Server::start() else { return };
    for args in [
        ["create", "a/b", "--role", "viewer", "--expires", "1d"],
        ["create", "..", "--role", "viewer", "--expires", "1d"],
        ["create", "ok", "--role", "owner", "--expires", "1d"],
        ["create", "ok", "--role", "viewer", "--expires", "0d"],
        ["create", "ok", "--role", "viewer", "--expires", "never"],
        ["create", "ok", "--role", "viewer", "--expires", "99999d"],
    ] {
        let made = server.command(&["token"]).args(args).output().expect("the program");
        assert_eq!(made.status.code(), Some(2), "{args:?}: {made:?}");
    }
    server.token("twice", "viewer", "1d");
    let again = server.run(&["token", "create", "twice", "--role", "admin"]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
}

#[test]
fn changes_are_recorded_with_who_and_what_and_what_came_of_it() {
    let Some(server) = Server::start() else { return };
    let (admin, viewer) = (
        server.token("root", "admin", "1d"),
        server.token("eyes", "viewer", "1d"),
    );
    assert_eq!(server.by(&admin, "POST /v1/volumes?secret=hush", VOLUME).status, 201);
    assert_eq!(server.by(&viewer, "DELETE /v1/volumes/v1", "").status, 403);
    assert_eq!(server.by(&viewer, "GET /v1/volumes", "").status, 200);
    assert_eq!(server.ask("DELETE /v1/volumes/v1", &[], "").status, 401);
    assert_eq!(
        server.local("docker.sock", "DELETE /v1.45/volumes/v1", &[], "").status,
        204
    );
    assert_eq!(
        server
            .local("docker.sock", "POST /v1.45/containers/none/wait", &[], "")
            .status,
        404
    );
    let lines: Vec<String> = server
        .audit()
        .iter()
        .map(|line| {
            assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
            assert!(line["took_ms"].is_u64(), "{line}");
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            let from = text("from").split(':').next().unwrap_or_default().to_owned();
            let words = [
                text("token"),
                text("role"),
                from,
                text("method"),
                text("path"),
                line["status"].to_string(),
            ];
            words.join(" ")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "root admin 127.0.0.1 POST /v1/volumes 201",
            "eyes viewer 127.0.0.1 DELETE /v1/volumes/v1 403",
            "- - 127.0.0.1 DELETE /v1/volumes/v1 401",
            "- admin local DELETE /v1.45/volumes/v1 204",
        ]
    );
    let text = std::fs::read_to_string(server.file("home/audit.jsonl")).expect("text");
    assert!(!text.contains("hush") && !text.contains(&admin), "{text}");
    let mode = server
        .file("home/audit.jsonl")
        .metadata()
        .expect("it")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn paths_in_archive_calls_name_nothing_of_this_host() {
    let Some(server) = Server::start() else { return };
    let token = server.token("root", "admin", "1d");
    for name in [
        "..%2f..%2fetc",
        "%2e%2e",
        "..",
        "a%00b",
        "%2fetc%2fpasswd",
        "x%0d%0aEvil:%201",
    ] {
        for (line, body) in [
            (format!("GET /v1.45/containers/{name}/archive?path=/etc/passwd"), ""),
            (format!("PUT /v1.45/containers/{name}/archive?path=../../etc"), "words"),
            (format!("GET /v1.45/containers/{name}/json"), ""),
            (format!("GET /v1/machines/{name}/logs"), ""),
            (format!("DELETE /v1/volumes/{name}"), ""),
        ] {
            let answer = server.by(&token, &line, body);
            assert!((400..500).contains(&answer.status), "{line}: {answer:?}");
            assert!(!answer.body.contains("root:x:"), "{line}: {answer:?}");
            assert!(!answer.head.contains("evil:"), "{line}: {answer:?}");
        }
    }
}

#[test]
fn a_certificate_that_was_renewed_is_shown_to_new_clients() {
    let Some(server) = Server::start() else { return };
    let token = server.token("ci", "viewer", "1d");
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 200);
    // Clients trust the new one alone from here on.
    certificate(server.folder.path());
    assert_eq!(server.by(&token, "GET /v1/version", "").status, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.by(&token, "GET /v1/version", "").status != 200 {
        assert!(Instant::now() < deadline, "still the old one");
        std::thread::sleep(Duration::from_millis(500));
    }
}
