//! The events that Cloud Hypervisor writes to a file: JSON objects one after the other, printed over several lines. The file
//! is a pipe with a name, so that a guest that causes events without end fills no file system.
//!
//! They are hints: the last ones may be missing when the process ends, and one may tell of something that failed. What they
//! point at is looked up in the machine's description or in the process's end.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::vm::Hint;

/// The longest event that is read; they have 150 bytes.
const MAX_EVENT: usize = 64 * 1024;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// What it is about: `vmm`, `vm`, `guest`, ...
    pub source: String,
    /// What happened: `booted`, `rebooted`, `panic`, ...
    pub event: String,
    /// More about it.
    #[serde(default)]
    pub properties: Option<serde_json::Value>,
}

impl Event {
    /// Whether the guest's kernel said that it panicked (and not only that it will load a crash kernel).
    pub(crate) fn is_panic(&self) -> bool {
        let kind = self.properties.as_ref().and_then(|p| p.get("event"));
        self.source == "guest"
            && self.event == "panic"
            && kind.and_then(serde_json::Value::as_str) != Some("crash_loaded")
    }

    /// Whether it is `source`'s event `event`.
    pub(crate) fn is(&self, source: &str, event: &str) -> bool {
        self.source == source && self.event == event
    }
}

/// Cuts a stream of bytes into events.
#[derive(Debug, Default)]
pub struct EventDecoder {
    buffer: Vec<u8>,
}

impl EventDecoder {
    /// Takes what came, and gives the events that are whole by it. What is no event is skipped.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<serde_json::Value>();
            let next = values.next();
            let used = values.byte_offset();
            match next {
                Some(Ok(value)) => {
                    events.extend(serde_json::from_value::<Event>(value));
                    self.buffer.drain(..used);
                }
                Some(Err(error)) if error.is_eof() && self.buffer.len() <= MAX_EVENT => return events,
                Some(Err(_)) => {
                    // Go on at the next object, which begins a line.
                    let next = self.buffer.iter().skip(1).position(|byte| *byte == b'{');
                    match next {
                        Some(at) => drop(self.buffer.drain(..=at)),
                        None => self.buffer.clear(),
                    }
                }
                None => {
                    self.buffer.clear();
                    return events;
                }
            }
        }
    }
}

/// The pipe of the events, which can be read from before the hypervisor writes to it.
#[derive(Debug)]
pub(super) struct EventPipe(pipe::Receiver);

impl EventPipe {
    /// Makes the pipe, for this user alone.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // For writing as well, or it would be at its end until the hypervisor has opened it.
        Ok(Self(pipe::OpenOptions::new().read_write(true).open_receiver(path)?))
    }

    /// Passes events on, for as long as somebody takes them.
    pub(super) async fn follow(mut self, hints: mpsc::Sender<Hint>) {
        let mut decoder = EventDecoder::default();
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = self.0.read(&mut buffer).await {
            for event in decoder.push(&buffer[..n]) {
                if hints.send(Hint::Event(event)).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "{\n  \"timestamp\": {\"secs\": 0, \"nanos\": 1},\n  \"source\": \"vm\",\n  \"event\": \"booted\",\n  \"properties\": null\n}\n\n\
        {\"source\": \"guest\", \"event\": \"panic\", \"properties\": {\"event\": \"panic\"}}";

    #[test]
    fn events_that_are_written_one_after_the_other_are_told_apart() {
        let mut decoder = EventDecoder::default();
        let mut events = Vec::new();
        for byte in TWO.as_bytes() {
            events.extend(decoder.push(&[*byte]));
        }
        assert!(events[0].is("vm", "booted") && !events[0].is_panic());
        assert!(events[1].is_panic());
        assert_eq!(events.len(), 2);
    }

    #[test]
    fn what_is_no_event_is_skipped_and_nothing_is_kept_of_it() {
        let mut decoder = EventDecoder::default();
        let text = format!("nonsense}} [1] {{\"source\": 5}} {TWO}");
        assert_eq!(decoder.push(text.as_bytes()).len(), 2);
        decoder.push(&vec![b'['; 3 * MAX_EVENT]);
        assert!(decoder.buffer.len() <= MAX_EVENT, "{}", decoder.buffer.len());
    }

    #[test]
    fn a_crash_kernel_that_was_loaded_is_no_panic() {
        let text = r#"{"source":"guest","event":"panic","properties":{"event":"crash_loaded"}}"#;
        assert!(!EventDecoder::default().push(text.as_bytes())[0].is_panic());
    }
}
