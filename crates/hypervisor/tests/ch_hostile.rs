//! What a hypervisor that a guest has taken over may answer: whatever it is, the client neither panics nor hangs nor keeps more
//! than an answer may have. `ZMACHINE_FUZZ_SECONDS` makes it longer.

use std::fs;
use std::path::Path;

use serde_json::Value;
use zmachine_hypervisor::cloud_hypervisor::{AnswerDecoder, ApiError, EventDecoder, difference, understand};
use zmachine_testkit::Mutator;

/// Answers as they were recorded, and streams of events.
fn seeds() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ch-api");
    let (mut answers, mut events) = (Vec::new(), Vec::new());
    for name in ["basic", "full", "gq-ns", "validation", "fdnet"] {
        let text = fs::read(folder.join(format!("{name}.json"))).unwrap();
        let recording: Value = serde_json::from_slice(&text).unwrap();
        for exchange in recording["exchanges"].as_array().unwrap() {
            let response = &exchange["response"];
            let body = match &response["body"] {
                Value::Null => String::new(),
                body => body.to_string(),
            };
            let (status, length) = (&response["status"], body.len());
            answers.push(format!("HTTP/1.1 {status} \r\nContent-Length: {length}\r\n\r\n{body}").into_bytes());
        }
        let all = recording["events"].as_array().unwrap();
        let text: String = all
            .iter()
            .map(|e| serde_json::to_string_pretty(e).unwrap() + "\n\n")
            .collect();
        events.push(text.into_bytes());
    }
    (answers, events)
}

/// The promise: a whole answer, none, or an error; a refusal has a cause, and not more than the socket may send.
fn answers(input: &[u8], sent: &Value) {
    let mut decoder = AnswerDecoder::default();
    for part in input.chunks(1 + input.len() / 3) {
        let Ok(answer) = decoder.push(part) else { return };
        let Some(answer) = answer else { continue };
        assert!((200..600).contains(&answer.status) && answer.body.len() <= input.len());
        match understand(&answer) {
            Ok(value) => drop(difference(sent, &value["config"])),
            Err(ApiError::Refused { causes, .. }) => {
                assert!(!causes.is_empty() && causes.iter().map(String::len).sum::<usize>() <= 64 * 1024);
            }
            Err(_) => {}
        }
        return;
    }
}

/// The promise: however the stream is cut, the events are the same, and not more than it has room for.
fn events(input: &[u8]) {
    let whole = EventDecoder::default().push(input);
    assert!(whole.len() <= input.len() / 24);
    let mut decoder = EventDecoder::default();
    let parts: usize = input
        .chunks(1 + input.len() / 5)
        .map(|part| decoder.push(part).len())
        .sum();
    assert!(parts <= input.len() / 24);
}

#[test]
fn whatever_the_hypervisor_answers_is_understood_or_refused() {
    let (seeds, _) = seeds();
    let sent = serde_json::json!({"cpus": {"boot_vcpus": 1}, "disks": [{"id": "root"}], "platform": {"uuid": "u"}});
    let count = Mutator::new(seeds, 8).run(|input| answers(input, &sent));
    eprintln!("{count} answers");
}

#[test]
fn whatever_the_hypervisor_writes_as_events_is_read_or_skipped() {
    let (_, seeds) = seeds();
    let count = Mutator::new(seeds, 8).run(events);
    eprintln!("{count} streams of events");
}
