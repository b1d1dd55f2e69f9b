//! The REST API on machines that run: commands, entrypoints and consoles over WebSockets, and the examples of docs/api.md.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::support::Served;

/// What a WebSocket told: words, and the two streams.
#[derive(Debug, Default)]
struct Told {
    words: Vec<Value>,
    streams: [String; 2],
}

struct Client(WebSocket<UnixStream>);

impl Client {
    fn open(served: &Served, path: &str) -> Client {
        let stream = UnixStream::connect(&served.native).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a limit");
        let request = format!("ws://z{path}").into_client_request().expect("a request");
        let (socket, answer) = tungstenite::client(request, stream).expect("a WebSocket");
        assert_eq!(answer.status(), 101);
        Client(socket)
    }

    fn say(&mut self, word: &Value) {
        self.0.send(Message::text(word.to_string())).expect("sent");
    }

    fn input(&mut self, text: &str) {
        self.0.send(Message::binary(text.as_bytes().to_vec())).expect("sent");
    }

    /// Reads until `enough`, or to the end.
    fn until(&mut self, mut enough: impl FnMut(&Told) -> bool) -> Told {
        let mut told = Told::default();
        while !enough(&told) {
            match self.0.read() {
                Ok(Message::Text(word)) => told.words.push(serde_json::from_str(&word).expect("JSON")),
                Ok(Message::Binary(bytes)) => {
                    let (stream, text) = bytes.split_first().expect("a stream");
                    told.streams[usize::from(*stream) - 1].push_str(&String::from_utf8_lossy(text));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        told
    }

    fn rest(&mut self) -> Told {
        self.until(|_| false)
    }
}

/// What `curl` gets, as JSON.
fn ask(served: &Served, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let socket = served.native.display().to_string();
    let args = ["-s", "-X", method, "-w", "\n%{http_code}", "--unix-socket", &socket];
    let body = body.to_string();
    let mut all = args.to_vec();
    if body != "null" {
        all.extend(["-d", &body]);
    }
    let url = format!("http://z{path}");
    all.push(&url);
    let run = served.with(Path::new("curl"), &all).finish();
    run.expect_success();
    let out = run.stdout();
    let (document, status) = out.rsplit_once('\n').expect("a status");
    (
        status.parse().expect("a status"),
        serde_json::from_str(document).unwrap_or_default(),
    )
}

#[test]
fn machines_are_entered_followed_and_watched_by_the_rest_api() {
    let Some(served) = Served::new() else { return };
    served.home.zmachine(["tag", "bb", "nginx"]).finish().expect_success();
    examples(&served);
    let wanted = json!({"flist": "bb", "name": "box", "stdin": true, "command": ["sh", "-c", "echo begun; read line; echo got $line; sleep 1000"]});
    assert_eq!(ask(&served, "POST", "/v1/machines", &wanted).0, 201);

    // Who attaches before the start misses nothing.
    let mut entrypoint = Client::open(&served, "/v1/machines/box/attach?stdin=1");
    assert_eq!(ask(&served, "POST", "/v1/machines/box/start", &Value::Null).0, 200);
    let begun = entrypoint.until(|told| told.streams[0].contains("begun"));
    assert_eq!(begun.words[0]["attached"]["terminal"], false, "{begun:?}");
    entrypoint.input("words\n");
    entrypoint.until(|told| told.streams[0].contains("got words"));

    let mut command = Client::open(
        &served,
        "/v1/machines/box/exec?command=sh&command=-c&command=cat;echo%20err%20%3E%262;exit%207&stdin=1&env=A=b",
    );
    command.input("one ");
    command.input("two\n");
    command.say(&json!({"end": "stdin"}));
    let told = command.rest();
    assert_eq!(told.streams, ["one two\n", "err\n"], "{told:?}");
    assert_eq!(told.words.last(), Some(&json!({"exited": {"code": 7}})), "{told:?}");

    let mut terminal = Client::open(
        &served,
        "/v1/machines/box/exec?command=sh&tty=1&stdin=1&rows=30&columns=90",
    );
    terminal.say(&json!({"resize": {"rows": 31, "columns": 91}}));
    terminal.input("stty size; exit 3\n");
    let told = terminal.rest();
    assert!(
        told.streams[0].contains("31 91") && told.streams[1].is_empty(),
        "{told:?}"
    );
    assert_eq!(told.words.last(), Some(&json!({"exited": {"code": 3}})), "{told:?}");

    let (status, output) = ask(
        &served,
        "POST",
        "/v1/machines/box/exec",
        &json!({"command": ["cat"], "stdin": "in"}),
    );
    assert_eq!(
        (status, output),
        (
            200,
            json!({"code": 0, "stdout": "in", "stderr": "", "truncated": false})
        )
    );
    let large = json!({"command": ["head", "-c", "3000000", "/dev/zero"]});
    let (_, output) = ask(&served, "POST", "/v1/machines/box/exec", &large);
    assert_eq!(
        (output["truncated"].clone(), output["stdout"].as_str().map(str::len)),
        (true.into(), Some(1 << 20))
    );
    let (status, problem) = ask(
        &served,
        "POST",
        "/v1/machines/box/exec",
        &json!({"command": ["no-such"]}),
    );
    assert_eq!(
        (status, &problem["class"]),
        (400, &"command_not_found".into()),
        "{problem}"
    );
    assert_eq!(
        ask(&served, "GET", "/v1/machines/box/exec?command=sh", &Value::Null).0,
        426
    );

    // With its client, a command's terminal hangs up.
    let mut left = Client::open(&served, "/v1/machines/box/exec?command=sleep&command=4321&tty=1");
    left.until(|told| !told.words.is_empty());
    drop(left);
    let deadline = Instant::now() + Duration::from_secs(60);
    let listed = || {
        ask(&served, "GET", "/v1/machines/box/processes", &Value::Null)
            .1
            .to_string()
    };
    while listed().contains("4321") {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut console = Client::open(&served, "/v1/machines/box/console");
    let told = console.until(|told| !told.words.is_empty());
    assert_eq!(told.words[0], json!({"attached": {"terminal": true}}));

    let (_, kernels) = ask(&served, "GET", "/v1/kernels", &Value::Null);
    assert!(
        kernels["kernels"]
            .as_array()
            .is_some_and(|all| all.iter().any(|kernel| kernel["default"] == true)),
        "{kernels}"
    );
    let (status, doctor) = ask(&served, "GET", "/v1/doctor", &Value::Null);
    assert!(
        status == 200 && doctor["checks"].as_array().is_some_and(|all| all.len() > 5),
        "{doctor}"
    );
    for (name, document) in [("Kernels", &kernels), ("Checks", &doctor)] {
        zmachine_api::native::schemas::check(name, document).expect("its shape");
    }
    let (status, sample) = ask(&served, "GET", "/v1/machines/box/stats", &Value::Null);
    assert!(status == 200 && sample["resident_bytes"].as_u64() > Some(0), "{sample}");
    assert_eq!(ask(&served, "DELETE", "/v1/machines/box?force=1", &Value::Null).0, 204);
    let told = entrypoint.rest();
    assert!(told.words.iter().all(|word| word.get("failed").is_none()), "{told:?}");
    let (_, why) = ask(&served, "GET", "/v1/machines/box/why", &Value::Null);
    assert!(why["removed_at"].is_string(), "{why}");
}

/// Runs the examples of docs/api.md that ask this host, in their order.
fn examples(served: &Served) {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let text = fs::read_to_string(document).expect("docs/api.md");
    let socket = served.native.display().to_string();
    let mut script = String::from("set -e\n");
    let mut count = 0;
    let is_asked = |line: &&str| line.starts_with(" ") || line.starts_with("()");
    for line in text
        .lines()
        .filter_map(|line| line.strip_prefix("$ z"))
        .filter(is_asked)
    {
        let (line, _comment) = line.split_once("  # ").unwrap_or((line, ""));
        let line = format!("z{}", line.trim_end().replace("/run/zmachine/api.sock", &socket));
        // Those that would go on are ended, and had to begin.
        let is_endless = ["follow=1", "/v1/events"].iter().any(|part| line.contains(part));
        script.push_str(&match is_endless {
            true => format!("{} || test $? = 28\n", line.replacen("z ", "z --max-time 3 ", 1)),
            false => format!("{line}\n"),
        });
        count += 1;
    }
    assert!(count >= 15, "{count} examples in docs/api.md");
    let path: PathBuf = served.home.file("examples.sh");
    fs::write(&path, &script).expect("a file");
    let run = served
        .with(Path::new("bash"), &["-x", &path.display().to_string()])
        .finish();
    assert_eq!(run.code, 0, "{script}\n{run}");
}
