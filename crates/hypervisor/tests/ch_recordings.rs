//! The client of Cloud Hypervisor's API against every conversation that was recorded with a real one (`tests/ch-api`): a server
//! answers word for word, and checks that it is asked the recorded thing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use zmachine_hypervisor::cloud_hypervisor::{
    AnswerDecoder, ApiError, Client, Event, EventDecoder, difference, understand,
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Every recording by its file's name.
fn recordings() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ch-api");
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            all.insert(name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        }
    }
    all
}

fn exchanges(recording: &Value) -> &Vec<Value> {
    recording["exchanges"].as_array().unwrap()
}

/// The bytes of a recorded answer; `None` when there was none in time.
fn answer_bytes(exchange: &Value) -> Option<Vec<u8>> {
    let response = &exchange["response"];
    let status = response["status"].as_u64()?;
    let body = match &response["body"] {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut text = format!("HTTP/1.1 {status} \r\n");
    for (name, value) in response["headers"].as_object().unwrap() {
        // The recorder parsed the bodies, so their white space is not the recorded one.
        let value = match name.as_str() {
            "content-length" => body.len().to_string(),
            _ => value.as_str().unwrap().to_owned(),
        };
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    Some(format!("{text}\r\n{body}").into_bytes())
}

/// Method, path and body of a request.
type Asked = (String, String, Vec<u8>);

/// Method, path and body of a request.
async fn read_request(stream: &mut UnixStream) -> Asked {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "half a request");
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "half a body");
    }
    let mut words = text.split(' ').map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap(), bytes[head..].to_vec())
}

/// Answers the exchanges of a recording in their order, and says what it was asked.
fn replay(recording: &Value) -> (TempDir, Client, mpsc::UnboundedReceiver<Asked>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let answers: Vec<_> = exchanges(recording).iter().map(answer_bytes).collect();
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            sender.send(read_request(&mut stream).await).unwrap();
            match answer {
                // In two parts, as a socket may.
                Some(bytes) => {
                    let (first, rest) = bytes.split_at(bytes.len() / 2);
                    stream.write_all(first).await.unwrap();
                    tokio::task::yield_now().await;
                    stream.write_all(rest).await.unwrap();
                }
                // The recorder gave up, and so must we.
                None => assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0),
            }
        }
    });
    (folder, Client::new(socket), asked)
}

/// Asks for what the recorder asked for.
async fn ask(client: &Client, exchange: &Value) -> Result<Value, ApiError> {
    let request = &exchange["request"];
    let route = request["path"].as_str().unwrap().strip_prefix("/api/v1/").unwrap();
    let patience = match exchange["response"]["status"] {
        Value::Null => Duration::from_millis(50),
        _ => TIMEOUT,
    };
    match (request["method"].as_str().unwrap(), &request["body"]) {
        ("GET", _) => client.get(route, patience).await,
        (_, Value::Null) => client.put(route, patience).await,
        (_, Value::String(broken)) => send_broken(client, route, broken).await,
        (_, body) => client.put_with(route, body, &[], patience).await,
    }
}

/// The client can send nothing but JSON, so what is not is sent past it.
async fn send_broken(client: &Client, route: &str, body: &str) -> Result<Value, ApiError> {
    let mut stream = UnixStream::connect(client.socket()).await.unwrap();
    let length = body.len();
    let request = format!("PUT /api/v1/{route} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut decoder = AnswerDecoder::default();
    loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await.unwrap();
        if let Some(answer) = decoder.push(&buffer[..n])? {
            return understand(&answer);
        }
    }
}

#[tokio::test]
async fn every_recorded_answer_is_understood_word_for_word() {
    let recordings = recordings();
    assert_eq!(recordings.len(), 29, "a recording is missing, or is new");
    let mut counted = 0;
    for (name, recording) in &recordings {
        let (_folder, client, mut asked) = replay(recording);
        for (number, exchange) in exchanges(recording).iter().enumerate() {
            let what = format!("{name} {number} ({})", exchange["note"]);
            let answered = ask(&client, exchange).await;
            let (method, path, body) = asked.recv().await.unwrap();
            let request = &exchange["request"];
            assert_eq!(request["method"], method, "{what}");
            assert_eq!(request["path"], path, "{what}");
            match &request["body"] {
                Value::Null => assert_eq!(body, b"", "{what}"),
                Value::String(text) => assert_eq!(body, text.as_bytes(), "{what}"),
                sent => assert_eq!(&serde_json::from_slice::<Value>(&body).unwrap(), sent, "{what}"),
            }
            check(&exchange["response"], answered, &what);
            counted += 1;
        }
    }
    assert!(counted > 150, "{counted} exchanges");
}

fn check(response: &Value, answered: Result<Value, ApiError>, what: &str) {
    match (response["status"].as_u64(), answered) {
        (None, Err(ApiError::Silent(_))) => {}
        (Some(200..300), Ok(body)) => assert_eq!(body, response["body"], "{what}"),
        (Some(wanted), Err(ApiError::Refused { status, causes })) => {
            assert_eq!(u64::from(status), wanted, "{what}");
            let chain: Vec<Value> = causes.into_iter().map(Value::String).collect();
            assert_eq!(Value::Array(chain), response["body"], "{what}");
        }
        (status, other) => panic!("{what}: {status:?} was understood as {other:?}"),
    }
}

#[test]
fn every_recorded_event_is_read_from_the_stream_they_are_written_in() {
    for (name, recording) in recordings() {
        let recorded = recording["events"].as_array().unwrap();
        // As v53 writes them.
        let text: String = recorded
            .iter()
            .map(|event| serde_json::to_string_pretty(event).unwrap() + "\n\n")
            .collect();
        let mut decoder = EventDecoder::default();
        let read: Vec<Event> = text.as_bytes().chunks(7).flat_map(|part| decoder.push(part)).collect();
        let wanted: Vec<Event> = recorded
            .iter()
            .map(|event| serde_json::from_value(event.clone()).unwrap())
            .collect();
        assert_eq!(read, wanted, "{name}");
    }
}

#[test]
fn counters_that_were_never_set_are_the_largest_number_and_are_read_as_such() {
    let full = &recordings()["full"];
    let counters = &exchanges(full)[4]["response"]["body"];
    assert_eq!(counters["root"]["read_latency_min"].as_u64(), Some(u64::MAX));
}

#[test]
fn a_recorded_description_holds_what_was_sent_and_an_unknown_field_shows() {
    let recordings = recordings();
    let full = exchanges(&recordings["full"]);
    let (sent, info) = (&full[0]["request"]["body"], &full[1]["response"]["body"]["config"]);
    assert_eq!(difference(sent, info), None);
    let boot = exchanges(&recordings["boot1"]);
    let (sent, info) = (&boot[0]["request"]["body"], &boot[1]["response"]["body"]["config"]);
    assert_eq!(
        difference(sent, info).as_deref(),
        Some("bogus"),
        "it was dropped without a word"
    );
}

#[test]
fn a_recorded_description_of_every_file_holds_what_was_sent() {
    for (name, recording) in recordings() {
        let mut sent = None;
        for exchange in exchanges(&recording) {
            let is = |path: &str| exchange["request"]["path"] == format!("/api/v1/{path}");
            let done = exchange["response"]["status"] == 204;
            if is("vm.create") && done {
                sent = Some(exchange["request"]["body"].clone());
            } else if is("vm.info") && name != "boot1" {
                let (Some(sent), Some(info)) = (&mut sent, exchange["response"]["body"].get("config")) else {
                    continue;
                };
                // Changed meanwhile by what was added, removed and resized.
                for changing in ["cpus", "memory", "balloon", "disks", "net", "pmem", "fs"] {
                    if name == "full" || name == "vhostuser" {
                        sent.as_object_mut().unwrap().remove(changing);
                    }
                }
                assert_eq!(difference(sent, info), None, "{name}");
            }
        }
    }
}
