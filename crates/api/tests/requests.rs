//! Requests as no client should send them, and those that need no machine: each has its answer, and the server goes on.

#[path = "common/http.rs"]
mod http;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use zmachine_testkit::Mutator;

use crate::http::{Answer, exchange};

/// A server over a home with nothing in it.
struct Server {
    child: Child,
    socket: PathBuf,
    native: PathBuf,
    _home: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let home = tempfile::tempdir_in("/tmp").expect("a folder");
        let (socket, native) = (home.path().join("docker.sock"), home.path().join("api.sock"));
        let child = Command::new(env!("CARGO_BIN_EXE_zmachine-api"))
            .args(["--program", "/bin/true", "serve", "--docker"])
            .arg(&socket)
            .arg("--socket")
            .arg(&native)
            .env("ZMACHINE_HOME", home.path().join("home"))
            .stderr(Stdio::null())
            .spawn()
            .expect("the server");
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() || UnixStream::connect(&native).is_err() {
            assert!(Instant::now() < deadline, "no server");
            std::thread::sleep(Duration::from_millis(10));
        }
        Server {
            child,
            socket,
            native,
            _home: home,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        stream
    }

    /// Sends bytes, and reads to the end.
    fn raw(&self, bytes: &[u8]) -> Answer {
        exchange(self.connect(), bytes)
    }

    /// The same, of the REST API.
    fn rest(&self, line: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let stream = UnixStream::connect(&self.native).expect("a connection");
        let text = format!(
            "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        exchange(stream, text.as_bytes())
    }

    fn ask(&self, line: &str, body: &str) -> Answer {
        let length = body.len();
        self.raw(
            format!("{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_finds_out_which_version_it_may_speak() {
    let server = Server::start();
    for line in ["GET /_ping", "HEAD /_ping", "GET /v1.24/_ping", "GET /v1.45/_ping"] {
        let answer = server.ask(line, "");
        assert!(
            answer.status == 200 && answer.head.contains("api-version: 1.45"),
            "{answer:?}"
        );
    }
    let new = server.ask("GET /v1.99/info", "");
    assert_eq!(
        (
            new.status,
            new.reason()
                .contains("is too new. Maximum supported API version is 1.45")
        ),
        (400, true)
    );
    let old = server.ask("GET /v1.12/info", "");
    assert_eq!(
        (
            old.status,
            old.reason()
                .contains("is too old. Minimum supported API version is 1.24")
        ),
        (400, true)
    );
    let version = server.ask("GET /version", "");
    let version: Value = serde_json::from_str(&version.body).expect("JSON");
    assert_eq!(
        (&version["ApiVersion"], &version["MinAPIVersion"]),
        (&"1.45".into(), &"1.24".into())
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    let server = Server::start();
    let long = "x".repeat(5000);
    let deep = format!("{{\"HostConfig\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
    let filters = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02x}")).collect() };
    let bogus = format!("GET /containers/json?filters={}", filters(r#"{"bogus":["x"]}"#));
    let broken = format!("POST /volumes/prune?filters={}", filters("{"));
    for (line, body, status, why) in [
        ("GET /no/such/path", "", 404, "page not found"),
        ("PATCH /containers/x/json", "", 404, "page not found"),
        ("GET /containers/x/json", "", 404, "No such container: x"),
        (
            "GET /containers/%2e%2e%2f%2e%2e%2fetc/json",
            "",
            404,
            "No such container",
        ),
        ("POST /containers/x/start", "", 404, "No such container: x"),
        ("POST /containers/x/stop?t=x", "", 400, "t: 'x' is no number"),
        ("POST /containers/x/kill?signal=NOPE", "", 400, "Invalid signal: NOPE"),
        (
            "POST /containers/x/wait?condition=tomorrow",
            "",
            400,
            "invalid condition",
        ),
        ("POST /containers/x/resize?h=-1&w=1", "", 400, "h: -1"),
        ("DELETE /containers/x", "", 404, "No such container: x"),
        ("GET /containers/x/archive", "", 400, "missing parameter: path"),
        ("GET /containers/x/archive?path=%00", "", 400, "no NUL"),
        (
            "PUT /containers/x/archive?path=../../..",
            "",
            404,
            "No such container: x",
        ),
        ("GET /containers/x/logs", "", 404, "No such container: x"),
        ("POST /containers/x/exec", "{}", 400, "No exec command specified"),
        ("POST /exec/0123/start", "{}", 404, "No such exec instance: 0123"),
        ("GET /exec/0123456789abcdef/json", "", 404, "No such exec instance"),
        ("POST /containers/create", "", 400, "No image specified"),
        ("POST /containers/create", "{", 400, "invalid JSON"),
        ("POST /containers/create", "[1]", 400, "invalid JSON"),
        ("POST /containers/create", r#"{"Image":1}"#, 400, "invalid JSON"),
        ("POST /containers/create", deep.as_str(), 400, "invalid JSON"),
        (
            "POST /containers/create",
            r#"{"Image":"no-such"}"#,
            404,
            "No such image: no-such:latest",
        ),
        (
            "POST /containers/create",
            r#"{"Image":"../../etc/passwd"}"#,
            400,
            "invalid reference format",
        ),
        (
            "POST /containers/create",
            r#"{"Image":"/bin/sh"}"#,
            400,
            "invalid reference format",
        ),
        (
            "POST /containers/create?platform=linux/arm64",
            r#"{"Image":"x"}"#,
            400,
            "linux/amd64",
        ),
        ("GET /images/no/such:1/json", "", 404, "No such image: no/such:1"),
        ("DELETE /images/no-such", "", 404, "No such image: no-such:latest"),
        (
            "POST /images/create?fromImage=BAD%20NAME",
            "",
            400,
            "invalid reference format",
        ),
        ("POST /images/x/tag?repo=%2f%2f", "", 404, "No such image"),
        ("POST /build", "", 501, "docker buildx"),
        ("POST /session", "", 501, "docker buildx"),
        ("GET /networks/no-such", "", 404, "network no-such not found"),
        (
            "POST /networks/create",
            r#"{"Name":"x","Driver":"overlay"}"#,
            400,
            "driver",
        ),
        ("DELETE /networks/bridge", "", 403, "pre-defined"),
        ("GET /volumes/no-such", "", 404, "get no-such: no such volume"),
        ("GET /volumes/..", "", 404, "no such volume"),
        (
            "POST /volumes/create",
            r#"{"Name":"../x"}"#,
            400,
            "cannot be a volume's name",
        ),
        ("DELETE /volumes/no-such", "", 404, "no such volume"),
        ("GET /events?since=soon", "", 400, "since: 'soon' is no time"),
        ("GET /services", "", 503, "not a swarm manager"),
        ("GET /plugins/x/json", "", 404, "plugin"),
        (bogus.as_str(), "", 400, "invalid filter 'bogus'"),
        (broken.as_str(), "", 400, "invalid filter"),
        ("POST /commit?container=x", "", 404, "No such container: x"),
        (&format!("GET /containers/{long}/json"), "", 404, "No such container"),
    ] {
        let answer = server.ask(line, body);
        assert_eq!(answer.status, status, "{line:.80}: {answer:?}");
        assert!(answer.reason().contains(why), "{line:.80}: {answer:?}");
    }
    // What leaves nothing to say, to a method that has no body.
    assert_eq!(server.ask("HEAD /containers/x/archive?path=/", "").status, 404);
}

#[test]
fn bodies_and_heads_have_limits() {
    let server = Server::start();
    let large = server.ask(
        "POST /containers/create",
        &format!("{{\"Image\":\"{}\"}}", "x".repeat(5 << 20)),
    );
    assert_eq!(large.status, 413, "{:?}", large.head);
    let mut chunks = b"POST /volumes/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..600 {
        chunks.extend_from_slice(b"2000\r\n");
        chunks.extend_from_slice(&[b' '; 0x2000]);
        chunks.extend_from_slice(b"\r\n");
    }
    assert_eq!(server.raw(&chunks).status, 413);
    let head = format!("GET /_ping HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "x".repeat(200 << 10));
    assert_eq!(server.raw(head.as_bytes()).status, 431);
    for bytes in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /auth HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        assert!(matches!(server.raw(bytes).status, 0 | 400), "{bytes:?}");
    }
    // A body that breaks off.
    let mut stream = server.connect();
    stream
        .write_all(b"POST /volumes/create HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n{")
        .expect("sent");
    stream.shutdown(Shutdown::Both).expect("closed");
    assert_eq!(server.ask("GET /_ping", "").status, 200);
}

#[test]
fn clients_that_say_nothing_are_in_nobodys_way() {
    let server = Server::start();
    let mut silent: Vec<UnixStream> = (0..200).map(|_| server.connect()).collect();
    for stream in &mut silent {
        stream
            .write_all(b"GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
            .expect("sent");
    }
    // Each has the head of its answer before anything has happened.
    let mut start = [0; 15];
    silent[0].read_exact(&mut start).expect("the head");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    let asked = Instant::now();
    assert_eq!(server.ask("GET /containers/json?all=1", "").body.trim(), "[]");
    assert!(asked.elapsed() < Duration::from_secs(5));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("its status");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    let kib: u64 = resident
        .split_whitespace()
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(kib < 60 << 10, "{kib} KiB for 200 clients");
}

#[test]
fn listings_of_nothing_are_empty_and_not_null() {
    let server = Server::start();
    for (line, body) in [
        ("GET /containers/json", "[]"),
        ("GET /images/json", "[]"),
        ("GET /volumes", r#"{"Volumes":[],"Warnings":null}"#),
        (
            "POST /containers/prune",
            r#"{"ContainersDeleted":[],"SpaceReclaimed":0}"#,
        ),
        ("POST /build/prune", r#"{"CachesDeleted":[],"SpaceReclaimed":0}"#),
        ("POST /volumes/prune", r#"{"SpaceReclaimed":0,"VolumesDeleted":[]}"#),
    ] {
        let answer = server.ask(line, "");
        assert_eq!((answer.status, answer.body.trim()), (200, body), "{line}");
    }
    let made = server.ask(
        "POST /volumes/create",
        r#"{"Name":"v1","Driver":"","DriverOpts":null,"Labels":{"a":"b"}}"#,
    );
    assert_eq!(made.status, 201, "{made:?}");
    let volume: Value = serde_json::from_str(&server.ask("GET /volumes/v1", "").body).expect("JSON");
    assert_eq!(
        (&volume["Labels"]["a"], &volume["Scope"]),
        (&"b".into(), &"local".into())
    );
    assert_eq!(server.ask("DELETE /volumes/v1", "").status, 204);
    let told = |filters: &str| {
        let until = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a time")
            .as_secs()
            + 1;
        let body = server
            .ask(&format!("GET /events?since=1&until={until}&filters={filters}"), "")
            .body;
        // Sizes of chunks are numbers.
        let lines = body.lines().filter(|line| line.starts_with('{'));
        let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let shown = events.map(|event| format!("{} {} {}", event["Type"], event["Action"], event["Actor"]["ID"]));
        shown.collect::<Vec<_>>().join(", ").replace('"', "")
    };
    assert_eq!(told(""), "volume create v1, volume destroy v1");
    assert_eq!(told("%7B%22event%22:%5B%22destroy%22%5D%7D"), "volume destroy v1");
    assert_eq!(told("%7B%22type%22:%5B%22container%22%5D%7D"), "");
}

/// What clients send to make things, as seeds.
const BODIES: [(&str, &str); 5] = [
    (
        "POST /containers/create?name=a",
        r#"{"Hostname":"","User":"0:0","Tty":false,"OpenStdin":false,"Env":["A=b"],"Cmd":["sh","-c","x"],"Image":"no-such","Volumes":{"/v":{}},"Labels":{"a":"b"},"ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["CMD","true"],"Interval":1000000000,"Retries":3},"StopTimeout":1,"HostConfig":{"Binds":["v:/data:rw"],"NetworkMode":"default","PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3},"Memory":67108864,"NanoCpus":500000000,"Tmpfs":{"/run":"size=64m"},"Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}],"Sysctls":{"a.b":"1"},"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":4096,"Mode":448}}]},"NetworkingConfig":{"EndpointsConfig":{"default":{"Aliases":["db"],"IPAMConfig":{"IPv4Address":"10.0.0.1"}}}}}"#,
    ),
    (
        "POST /volumes/create",
        r#"{"Name":"/","Driver":"local","DriverOpts":{"size":"1G"},"Labels":{"a":"b"}}"#,
    ),
    (
        "POST /networks/create",
        r#"{"Name":"/","Driver":"bridge","IPAM":{"Config":[{"Subnet":"10.9.0.0/24"}]},"Labels":{"a":"b"}}"#,
    ),
    (
        "POST /containers/none/update",
        r#"{"Memory":134217728,"NanoCpus":0,"RestartPolicy":{"Name":"no","MaximumRetryCount":0}}"#,
    ),
    (
        "POST /containers/none/exec",
        r#"{"User":"0","Tty":true,"ConsoleSize":[24,80],"Env":["X=1"],"Cmd":["sh"]}"#,
    ),
];

#[test]
fn no_body_ends_the_server_or_leaves_it_without_a_reason() {
    let server = Server::start();
    for (index, (line, body)) in BODIES.into_iter().enumerate() {
        let mutator = Mutator::new(vec![body.as_bytes().to_vec()], index as u64 + 1);
        mutator.run(|input| {
            let head = format!(
                "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                input.len()
            );
            let answer = server.raw(&[head.as_bytes(), input].concat());
            let is_told = answer.status < 500 || !answer.reason().is_empty();
            assert!(
                answer.status > 0 && is_told,
                "{line}: {:?}\n{answer:?}",
                String::from_utf8_lossy(input)
            );
            assert!(
                !answer.reason().contains("ended early"),
                "{line}: {:?}\n{answer:?}",
                String::from_utf8_lossy(input)
            );
        });
    }
    assert_eq!(server.ask("GET /_ping", "").status, 200);
}

#[test]
fn the_rest_api_makes_shows_and_removes_and_tells_why_it_does_not() {
    let server = Server::start();
    let made = server.rest(
        "POST /v1/volumes",
        "",
        r#"{"name":"v1","size_bytes":67108864,"labels":{"a":"b"}}"#,
    );
    assert_eq!(made.status, 201, "{made:?}");
    let volume: Value = serde_json::from_str(&made.body).expect("JSON");
    zmachine_api::native::schemas::check("Volume", &volume).expect("its shape");
    for (line, body, status, class, why) in [
        (
            "POST /v1/volumes",
            r#"{"name":"v1"}"#,
            409,
            "conflict",
            "there is a volume 'v1' already",
        ),
        (
            "POST /v1/volumes",
            r#"{"name":"v2","size":1}"#,
            400,
            "usage",
            "unknown field",
        ),
        (
            "GET /v1/volumes/none",
            "",
            404,
            "not_found",
            "there is no volume 'none'",
        ),
        ("GET /v1/machines/none", "", 404, "not_found", "none"),
        ("POST /v1/machines/none/start", "", 404, "not_found", "none"),
        ("POST /v1/machines", "{}", 400, "usage", "'flist' is missing"),
        (
            "POST /v1/machines",
            r#"{"flist":"x","colour":"red"}"#,
            400,
            "usage",
            "unknown field `colour`",
        ),
        (
            "POST /v1/machines",
            r#"{"flist":"x","name":"../x"}"#,
            400,
            "usage",
            "cannot be a machine's name",
        ),
        (
            "PATCH /v1/machines/none",
            r#"{"flist":"x"}"#,
            400,
            "usage",
            "'flist' of a machine cannot be changed",
        ),
        ("GET /v1/machines?limit=0", "", 400, "usage", "limit: 0"),
        ("GET /v1/machines?after=none", "", 400, "usage", "after"),
        (
            "GET /v1/machines/none/logs?source=drum",
            "",
            400,
            "usage",
            "'drum' is not a log source",
        ),
        (
            "GET /v1/machines/none/files?path=etc",
            "",
            400,
            "usage",
            "is no path in a machine",
        ),
        (
            "GET /v1/machines/none/files?path=/a&root=../b",
            "",
            400,
            "usage",
            "root: '../b'",
        ),
        (
            "PUT /v1/machines/none/files?path=/a&source=b/c",
            "",
            400,
            "usage",
            "source: 'b/c'",
        ),
        ("PUT /v1/machines/none/files?path=/a", "", 404, "not_found", "none"),
        ("GET /v1/machines/none/changes", "", 404, "not_found", "none"),
        (
            "POST /v1/machines/none/commit",
            r#"{"x":1}"#,
            400,
            "usage",
            "unknown field",
        ),
        (
            "POST /v1/machines/none/execs",
            r#"{"command":[]}"#,
            400,
            "usage",
            "'command' is missing",
        ),
        ("POST /v1/snapshots", r#"{"name":"../x"}"#, 400, "usage", "../x"),
        ("GET /v1/snapshots/none@one", "", 404, "not_found", "none@one"),
        (
            "POST /v1/forks",
            r#"{"source":"none","number":5000}"#,
            400,
            "usage",
            "number: 5000",
        ),
        (
            "POST /v1/snapshot-archive",
            "no archive",
            400,
            "usage",
            "no archive of a snapshot",
        ),
        (
            "POST /v1/image-archive",
            "no archive",
            400,
            "usage",
            "the archive is broken",
        ),
        ("GET /v1/image-archive", "", 400, "usage", "'image' is missing"),
        ("GET /v1/image-archive?image=none", "", 404, "not_found", "none"),
        ("POST /v1/images/none/push", "{}", 404, "not_found", "none"),
        (
            "POST /v1/networks/none/connect",
            r#"{"machine":"m","aliases":["a b"]}"#,
            400,
            "usage",
            "aliases",
        ),
        (
            "POST /v1/projects/p/actions",
            r#"{"action":"up"}"#,
            400,
            "usage",
            "'config' is missing",
        ),
        (
            "POST /v1/projects/p/actions",
            r#"{"action":"fly"}"#,
            400,
            "usage",
            "unknown variant",
        ),
        ("GET /v1/projects/p/logs?service=%00", "", 400, "usage", "NUL"),
        ("DELETE /v1/kernels/none", "", 404, "not_found", "none"),
        ("GET /v1/nothing", "", 404, "not_found", "there is no such path"),
        ("PUT /v1/volumes", "", 405, "not_found", "does not have this method"),
    ] {
        let answer = server.rest(line, "", body);
        let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        assert_eq!(answer.status, status, "{line}: {answer:?}");
        assert!(answer.head.contains("application/problem+json"), "{line}: {answer:?}");
        zmachine_api::native::schemas::check("Problem", &problem).expect("its shape");
        assert_eq!(problem["class"], class, "{line}: {answer:?}");
        let text = problem["text"].as_str().unwrap_or_default();
        assert!(text.starts_with("error: ") && text.contains(why), "{line}: {answer:?}");
    }
    let page: Value = serde_json::from_str(&server.rest("GET /v1/machines", "", "").body).expect("JSON");
    zmachine_api::native::schemas::check("MachinePage", &page).expect("its shape");
    for (line, schema) in [
        ("GET /v1/usage", "Usage"),
        ("GET /v1/snapshots", "Snapshots"),
        ("GET /v1/projects", "Projects"),
        ("GET /v1/stats", "Samples"),
        ("POST /v1/machines/prune", "Pruned"),
        ("POST /v1/volumes/prune", "Pruned"),
        ("POST /v1/images/prune", "PrunedImages"),
    ] {
        let answer = server.rest(line, "", "");
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        let document: Value = serde_json::from_str(&answer.body).expect("JSON");
        zmachine_api::native::schemas::check(schema, &document).expect("its shape");
    }
    for (line, body, status, schema) in [
        (
            "POST /v1/volume-snapshots",
            r#"{"name":"v1@a","keep":"7d"}"#,
            201,
            "VolumeSnapshot",
        ),
        ("POST /v1/volume-snapshots", r#"{"name":"v1@a"}"#, 409, "Problem"),
        (
            "POST /v1/volume-snapshots",
            r#"{"name":"v1","keep":"often"}"#,
            400,
            "Problem",
        ),
        ("POST /v1/volume-snapshots", r#"{"name":"../v1"}"#, 400, "Problem"),
        ("GET /v1/volume-snapshots", "", 200, "VolumeSnapshots"),
        ("POST /v1/volume-snapshots/v1@a/restore", "", 200, "Volume"),
        ("POST /v1/volume-snapshots/v1/restore", "", 400, "Problem"),
        ("POST /v1/volumes/v1@a/copy", r#"{"name":"v2"}"#, 201, "Volume"),
        ("POST /v1/volumes/v1@b/copy", r#"{"name":"v3"}"#, 404, "Problem"),
    ] {
        let answer = server.rest(line, "", body);
        assert_eq!(answer.status, status, "{line} {body}: {answer:?}");
        let document: Value = serde_json::from_str(&answer.body).expect("JSON");
        zmachine_api::native::schemas::check(schema, &document).expect("its shape");
    }
    assert_eq!(server.rest("DELETE /v1/volume-snapshots/v1@a", "", "").status, 204);
    assert_eq!(server.rest("DELETE /v1/volumes/v2", "", "").status, 204);
    let described: Value = serde_json::from_str(&server.rest("GET /v1/openapi.json", "", "").body).expect("JSON");
    assert_eq!(described["openapi"], "3.1.0");
    let long = format!("Idempotency-Key: {}\r\n", "x".repeat(200));
    assert_eq!(server.rest("POST /v1/machines", &long, r#"{"flist":"x"}"#).status, 400);
    assert_eq!(server.rest("DELETE /v1/volumes/v1", "", "").status, 204);
}

#[test]
fn a_socket_of_systemd_is_served_in_place_of_its_own() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    let home = tempfile::tempdir_in("/tmp").expect("a folder");
    let socket = home.path().join("given.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    // As systemd does: the socket is descriptor 3, and the variables say whose.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=docker exec \"$0\" --program /bin/true serve 3<&0";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_zmachine-api")])
        .env("ZMACHINE_HOME", home.path().join("home"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .expect("the server");
    let stream = UnixStream::connect(&socket).expect("a connection");
    let answer = exchange(stream, b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
    assert!(!home.path().join("home/run/docker.sock").exists());
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_server_that_is_killed_leaves_its_place_to_the_next() {
    let mut server = Server::start();
    let mut followers: Vec<UnixStream> = (0..50).map(|_| server.connect()).collect();
    for stream in &mut followers {
        stream
            .write_all(b"GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
            .expect("sent");
        stream.read_exact(&mut [0; 12]).expect("the head");
    }
    server.child.kill().expect("kill");
    server.child.wait().expect("wait");
    for mut stream in followers {
        // An end, however it is told, and no waiting.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let home = server._home.path().join("home");
    server.child = Command::new(env!("CARGO_BIN_EXE_zmachine-api"))
        .args(["--program", "/bin/true", "serve", "--docker"])
        .arg(&server.socket)
        .arg("--socket")
        .arg(&server.native)
        .env("ZMACHINE_HOME", home)
        .stderr(Stdio::null())
        .spawn()
        .expect("the server");
    let deadline = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(&server.socket).is_err() {
        assert!(Instant::now() < deadline, "no server");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.ask("GET /_ping", "").status, 200);
}
