//! Who may do what, against a real server: by TCP with TLS and tokens, and by its sockets.
//!
//! Each request here is made by hand over a connection of its own, so that it is exactly what a client that means no good would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use zmachine_testkit::{Need, lacking, skip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_zmachine-api");

/// A server over a home with nothing in it.
struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The reason of a refusal, whichever API gives it.
    fn reason(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let text = body["detail"].as_str().or_else(|| body["message"].as_str());
        text.unwrap_or_default().to_owned()
    }
}

/// A certificate for `localhost` and 127.0.0.1, and its key.
fn certificate(folder: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=zmachine test",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
}

impl Server {
    /// `None` (with the reason printed) where there is nothing to make a certificate with.
    fn start() -> Option<Server> {
        if let Some(reason) = lacking(&[Need::Command("openssl")]) {
            skip(&reason);
            return None;
        }
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        certificate(folder.path());
        let mut server = Server {
            child: Command::new("true").spawn().expect("a process"),
            port: 0,
            folder,
        };
        server.child.wait().expect("wait");
        server.serve();
        Some(server)
    }

    /// Starts the program on a port of its choice.
    fn serve(&mut self) {
        let mut command = self.command(&["--program", "/bin/true", "serve", "--listen"]);
        command.arg(format!("127.0.0.1:{}", self.port));
        for (option, file) in [
            ("--docker", "docker.sock"),
            ("--socket", "api.sock"),
            ("--tls-cert", "cert.pem"),
            ("--tls-key", "key.pem"),
        ] {
            command.arg(option).arg(self.file(file));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server");
        let mut said = String::new();
        let mut stderr = std::io::BufReader::new(child.stderr.take().expect("its words"));
        while !said.contains("https://") {
            let count = std::io::BufRead::read_line(&mut stderr, &mut said).expect("its words");
            assert!(count > 0, "no server: {said}");
        }
        let (_, address) = said.rsplit_once("https://").expect("an address");
        self.port = address
            .trim()
            .rsplit_once(':')
            .expect("a port")
            .1
            .parse()
            .expect("a port");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        self.child = child;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("ZMACHINE_HOME", self.file("home"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program")
    }

    /// A token of a role.
    fn token(&self, name: &str, role: &str, expires: &str) -> String {
        let made = self.run(&["token", "create", name, "--role", role, "--expires", expires]);
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    }

    /// A connection, with the name that is asked for in the handshake.
    fn tls(&self, name: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.file("cert.pem")).expect("a certificate"))
            .expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(100)))
            .expect("a limit");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        StreamOwned::new(connection, stream)
    }

    /// Sends bytes, and reads to the end.
    fn raw(&self, bytes: &[u8]) -> Answer {
        exchange(self.tls("localhost"), bytes)
    }

    /// A request as it should be, with headers on top.
    fn ask(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        self.raw(request(line, &format!("localhost:{}", self.port), headers, body).as_bytes())
    }

    fn by(&self, token: &str, line: &str, body: &str) -> Answer {
        self.ask(line, &[&format!("Authorization: Bearer {token}")], body)
    }

    /// By a socket of this host.
    fn local(&self, socket: &str, line: &str, headers: &[&str], body: &str) -> Answer {
        let stream = UnixStream::connect(self.file(socket)).expect("a connection");
        exchange(stream, request(line, "z", headers, body).as_bytes())
    }

    /// The record of changes.
    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file("home/audit.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

fn request(line: &str, host: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + &format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends bytes, and reads to the end.
fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Answer {
    // The server may have enough before it has all.
    let _ = stream.write_all(bytes);
    let _ = stream.flush();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn expect(answer: &Answer, status: u16, reason: &str) {
    assert!(
        answer.status == status && answer.reason().contains(reason),
        "{status} {reason}: {answer:?}"
    );
}

const VOLUME: &str = r#"{"name":"v1","size_bytes":67108864}"#;

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
