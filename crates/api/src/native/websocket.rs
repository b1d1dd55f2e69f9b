//! Processes and consoles over WebSockets (RFC 6455).
//!
//! # Messages
//! | from | kind | what |
//! |---|---|---|
//! | client | binary | input |
//! | client | text | `{"resize": {"rows": 24, "columns": 80}}`: the size of the terminal; `{"end": "stdin"}`: the input is at its end |
//! | server | binary | output: a byte for the stream (1 standard output, 2 standard error), and what was written |
//! | server | text | `{"attached": {...}}` first; `{"exited": {"code": 0}}` or `{"failed": "why"}` last |
//!
//! With a terminal all output is of stream 1. After its last word the server closes. Who does not read is not read for: the process waits.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use zmachine_agent_protocol::{Frame, Input as Said, WindowSize};
use zmachine_spec::{Class, Failure};

use super::Call;
use super::problem::Problem;
use crate::docker::stream::{Input, ToMonitor, end_of};
use crate::http::{Answer, Body};
use crate::place::Place;

/// The largest message of a client, in bytes.
const LARGEST: usize = 256 << 10;

/// How much is kept for a client that does not read, in bytes, before it is waited for.
const KEPT: usize = 128 << 10;

/// How often a silent connection is tried: one whose client is gone without a word ends by that.
const BEAT: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A connection that becomes a WebSocket.
#[derive(Debug)]
pub struct Upgrade {
    connection: OnUpgrade,
    place: Option<Place>,
    accept: HeaderValue,
}

/// That a request asks for a WebSocket.
///
/// # Errors
/// 426 for one that does not, 400 for one that does not do it as it should.
pub fn upgrade(call: &mut Call) -> Result<Upgrade, Problem> {
    let header = |name: &str| {
        call.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let is_asked = header("upgrade").eq_ignore_ascii_case("websocket");
    let (version, key) = (header("sec-websocket-version") == "13", header("sec-websocket-key"));
    let refused = |status, message: &str| {
        let failure = Failure::new(Class::Usage, message).hint("docs/api.md tells what goes over it");
        Problem::with_status(failure, status)
    };
    if !is_asked {
        return Err(refused(
            StatusCode::UPGRADE_REQUIRED,
            "this is to be asked for as a WebSocket",
        ));
    }
    if !version || key.len() != 24 {
        return Err(refused(
            StatusCode::BAD_REQUEST,
            "the WebSocket's version is not 13, or its key is none",
        ));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|e| Failure::new(Class::Failed, e.to_string()))?;
    let connection = call.upgrade.take();
    let connection =
        connection.ok_or_else(|| refused(StatusCode::UPGRADE_REQUIRED, "the connection cannot be upgraded"))?;
    Ok(Upgrade {
        connection,
        place: call.place.clone(),
        accept,
    })
}

impl Upgrade {
    /// The answer; what goes over the WebSocket is up to `then`.
    pub fn answer<F>(self, then: impl FnOnce(Socket) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = ()> + Send,
    {
        let Upgrade {
            connection,
            place,
            accept,
        } = self;
        tokio::spawn(async move {
            let _place = place;
            let Ok(connection) = connection.await else { return };
            let config = WebSocketConfig::default()
                .max_message_size(Some(LARGEST))
                .max_frame_size(Some(LARGEST))
                .read_buffer_size(16 << 10)
                .write_buffer_size(0)
                .max_write_buffer_size(KEPT);
            then(WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(config)).await).await;
        });
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("sec-websocket-accept", accept);
        answer
    }
}

/// What a client says besides input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Word {
    Resize { rows: u16, columns: u16 },
    End(Ended),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Stdin,
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

/// Carries a process, or a console, until it has ended or the client is gone.
pub async fn carry(socket: Socket, monitor: ToMonitor, attached: Value, input: Input) {
    let Ok((mut reader, mut writer)) = monitor.split() else {
        return;
    };
    let (mut to_client, mut from_client) = socket.split();
    let output = async {
        if to_client.send(text(&json!({"attached": attached}))).await.is_err() {
            return;
        }
        loop {
            let frame = tokio::select! {
                frame = reader.next() => frame,
                () = tokio::time::sleep(BEAT) => {
                    if to_client.send(Message::Ping(tungstenite::Bytes::new())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(frame) = frame else { break };
            if let Some(end) = end_of(&frame) {
                let last = match end {
                    Ok(status) => json!({"exited": {"code": status.shell_code()}}),
                    Err(why) => json!({"failed": why}),
                };
                let _ = to_client.send(text(&last)).await;
                break;
            }
            let (stream, bytes) = match frame {
                Frame::Stdout(bytes) => (1, bytes),
                Frame::Stderr(bytes) => (2, bytes),
                _ => continue,
            };
            let message = [&[stream], bytes.as_slice()].concat();
            if to_client.send(Message::binary(message)).await.is_err() {
                return;
            }
        }
        let _ = to_client.close().await;
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            let frame = match message {
                Message::Binary(bytes) if input.wanted => Frame::Stdin(bytes.into()),
                Message::Text(word) => match serde_json::from_str(&word) {
                    Ok(Word::Resize { rows, columns }) => Frame::message(&Said::Resize(WindowSize { rows, columns })),
                    Ok(Word::End(Ended::Stdin)) if input.wanted => Frame::StdinEof,
                    Ok(Word::End(Ended::Stdin)) => continue,
                    // A client that says what is none is not one of ours.
                    Err(_) => return,
                },
                Message::Close(_) => return,
                _ => continue,
            };
            if writer.write_all(&frame.to_bytes()).await.is_err() {
                // The process is gone: its end comes by the other direction.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = output => {}
        // The client is gone, and with its stream what was started for it.
        () = input => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_client_are_read_and_others_are_not() {
        let word = |text: &str| serde_json::from_str::<Word>(text);
        assert!(matches!(
            word(r#"{"resize": {"rows": 24, "columns": 80}}"#),
            Ok(Word::Resize { rows: 24, columns: 80 })
        ));
        assert!(matches!(word(r#"{"end": "stdin"}"#), Ok(Word::End(Ended::Stdin))));
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"resize": {"rows": -1, "columns": 80}}"#,
            r#"{"end": "all"}"#,
            r#"{"exec": "sh"}"#,
        ] {
            assert!(word(wrong).is_err(), "{wrong}");
        }
    }
}
