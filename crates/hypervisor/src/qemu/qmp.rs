//! A client of QEMU's control protocol: one JSON object per line, answers told from events by their `id`.
//!
//! Specification: QEMU `docs/interop/qmp-spec.rst`. Every method may be cancelled between lines without losing bytes:
//! what was read stays in the buffer. An answer to an order whose future was dropped is skipped when it comes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::ControlError;

/// An answer takes milliseconds; under emulation on a busy host it once took seconds.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer we ask for is longer; a longer line means that this is not QMP.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Something QEMU reports by itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub(crate) name: String,
    /// Its data, an empty object when there is none.
    pub(crate) data: Value,
    /// When it happened, if it says so.
    pub(crate) at: Option<SystemTime>,
}

/// The control channel of one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
    next_id: u64,
    version: String,
}

impl Qmp {
    /// Waits for the greeting and enters command mode.
    pub(crate) async fn connect(stream: UnixStream) -> Result<Self, ControlError> {
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            events: VecDeque::new(),
            next_id: 1,
            version: String::new(),
        };
        let greeting = qmp.read_message().await?;
        if !greeting.contains_key("QMP") {
            return Err(garbled(&Value::Object(greeting).to_string()));
        }
        qmp.version = version(&greeting["QMP"]);
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// The version of QEMU, for people.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Gives an order and waits for its answer. Events that come meanwhile are kept.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ControlError> {
        self.ask(command, arguments, None).await
    }

    /// Hands a descriptor over, which later orders name.
    pub(crate) async fn pass_descriptor(&mut self, name: &str, descriptor: OwnedFd) -> Result<(), ControlError> {
        let arguments = json!({ "fdname": name });
        self.ask("getfd", arguments, Some(descriptor)).await.map(drop)
    }

    /// Hands a descriptor over as a set of its own, which can be opened by this number.
    pub(crate) async fn add_descriptor(&mut self, descriptor: OwnedFd) -> Result<u64, ControlError> {
        let answer = self.ask("add-fd", json!({}), Some(descriptor)).await?;
        let set = answer.get("fdset-id").and_then(Value::as_u64);
        set.ok_or_else(|| ControlError::Refused {
            command: "add-fd".to_owned(),
            reason: "there is no set in the answer".to_owned(),
        })
    }

    /// Waits for an event, for at most `patience`; `None` when it did not come. Others that come meanwhile are kept.
    pub(crate) async fn await_event(
        &mut self,
        wanted: impl Fn(&Event) -> bool,
        patience: Duration,
    ) -> Result<Option<Event>, ControlError> {
        let come = async {
            loop {
                if let Some(at) = self.events.iter().position(&wanted) {
                    return Ok(self.events.remove(at));
                }
                let message = self.read_message().await?;
                self.keep_event(message);
            }
        };
        tokio::time::timeout(patience, come).await.unwrap_or(Ok(None))
    }

    async fn ask(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, ControlError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({"execute": command, "arguments": arguments, "id": id}).to_string() + "\n";
        let answer = async {
            match &descriptor {
                Some(descriptor) => self.send_with(line.as_bytes(), descriptor).await.map_err(gone)?,
                None => self.stream.write_all(line.as_bytes()).await.map_err(gone)?,
            }
            loop {
                let message = self.read_message().await?;
                if message.get("id").and_then(Value::as_u64) == Some(id) {
                    return answer(command, message);
                }
                self.keep_event(message);
            }
        };
        tokio::time::timeout(TIMEOUT, answer)
            .await
            .map_err(|_| ControlError::Silent {
                command: command.into(),
                patience: TIMEOUT,
            })?
    }

    /// The next event.
    pub(crate) async fn next_event(&mut self) -> Result<Event, ControlError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.read_message().await?;
            self.keep_event(message);
        }
    }

    /// Sends a line and a descriptor with its first byte.
    async fn send_with(&mut self, line: &[u8], descriptor: &OwnedFd) -> io::Result<()> {
        let stream = &self.stream;
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let descriptors = [descriptor.as_fd()];
                if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                Ok(sendmsg(
                    stream,
                    &[IoSlice::new(line)],
                    &mut control,
                    SendFlags::empty(),
                )?)
            })
            .await?;
        self.stream.write_all(&line[sent..]).await
    }

    fn keep_event(&mut self, mut message: Map<String, Value>) {
        if let Some(Value::String(name)) = message.remove("event") {
            let data = message.remove("data").unwrap_or_else(|| json!({}));
            let at = message.get("timestamp").and_then(time_of);
            self.events.push_back(Event { name, data, at });
        }
    }

    async fn read_message(&mut self) -> Result<Map<String, Value>, ControlError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(Value::Object(message)) => return Ok(message),
                    _ => return Err(garbled(&String::from_utf8_lossy(&line))),
                }
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(garbled(&String::from_utf8_lossy(&self.buffer)));
            }
            if self.stream.read_buf(&mut self.buffer).await.map_err(gone)? == 0 {
                return Err(ControlError::Gone);
            }
        }
    }
}

fn answer(command: &str, mut message: Map<String, Value>) -> Result<Value, ControlError> {
    if let Some(value) = message.remove("return") {
        return Ok(value);
    }
    let reason = message.get("error").and_then(|e| e.get("desc")).and_then(Value::as_str);
    Err(ControlError::Refused {
        command: command.into(),
        reason: reason.unwrap_or("no reason given").into(),
    })
}

fn garbled(line: &str) -> ControlError {
    ControlError::Garbled {
        line: line.trim_end().chars().take(200).collect(),
    }
}

/// A peer that is gone shows as one of these, depending on what was under way.
fn gone(error: io::Error) -> ControlError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Gone,
        _ => ControlError::Io(error),
    }
}

/// From the greeting's `{"version":{"qemu":{"major":7,"minor":2,"micro":22},"package":"Debian ..."}}`.
fn version(greeting: &Value) -> String {
    let version = &greeting["version"];
    let part = |name: &str| version["qemu"][name].as_u64().unwrap_or(0);
    let package = version["package"].as_str().unwrap_or_default().trim();
    let numbers = format!("qemu {}.{}.{}", part("major"), part("minor"), part("micro"));
    match package.is_empty() {
        true => numbers,
        false => format!("{numbers} ({package})"),
    }
}

/// The time of an event.
fn time_of(stamp: &Value) -> Option<SystemTime> {
    let part = |name: &str| stamp.get(name).and_then(Value::as_u64);
    let since = Duration::from_secs(part("seconds")?).checked_add(Duration::from_micros(part("microseconds")?))?;
    UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that has said all of `output` already.
    async fn client(output: &str) -> (Result<Qmp, ControlError>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(output.as_bytes()).await.unwrap();
        (Qmp::connect(ours).await, theirs)
    }

    const GREETING: &str =
        "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n{\"return\": {}, \"id\": 1}\r\n";

    #[tokio::test]
    async fn events_before_an_answer_are_kept_in_order() {
        let output = GREETING.to_owned()
            + "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 3, \"microseconds\": 5}}\r\n{\"event\": \"RESUME\", \"data\": {\"x\": 1}}\r\n{\"return\": 7, \"id\": 2}\r\n";
        let (qmp, _peer) = client(&output).await;
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.execute("query-x", json!({})).await.unwrap(), 7);
        let stop = qmp.next_event().await.unwrap();
        assert_eq!(stop.name, "STOP");
        assert_eq!(stop.at, Some(UNIX_EPOCH + Duration::from_micros(3_000_005)));
        assert_eq!(
            qmp.next_event().await.unwrap(),
            Event {
                name: "RESUME".into(),
                data: json!({"x": 1}),
                at: None,
            }
        );
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let output =
            GREETING.to_owned() + "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no such disk\"}}\n";
        let (qmp, _peer) = client(&output).await;
        let error = qmp
            .unwrap()
            .execute("device_del", json!({"id": "x"}))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "the hypervisor refused 'device_del': no such disk");
    }

    #[tokio::test]
    async fn a_late_answer_to_a_dropped_order_is_not_taken_for_the_next_one() {
        let output = GREETING.to_owned() + "{\"return\": \"late\", \"id\": 1}\n{\"return\": \"right\", \"id\": 2}\n";
        let (qmp, _peer) = client(&output).await;
        assert_eq!(qmp.unwrap().execute("query-x", json!({})).await.unwrap(), "right");
    }

    #[tokio::test]
    async fn a_closed_channel_is_gone_and_nonsense_is_quoted() {
        let (qmp, peer) = client(GREETING).await;
        drop(peer);
        assert!(matches!(qmp.unwrap().next_event().await, Err(ControlError::Gone)));
        let (qmp, _peer) = client("HTTP/1.1 400 Bad Request\n").await;
        assert!(qmp.unwrap_err().to_string().ends_with("HTTP/1.1 400 Bad Request"));
    }
}
