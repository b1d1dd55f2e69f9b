//! A process elsewhere on the terminal here: its output and end, our input, and the size of the window.

use std::io::Write;
use std::os::fd::AsFd;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use zmachine_spec::{Class, Failure};
use zmachine_sys::tty::{self, RawMode};

use crate::connection::Socket;

/// What is read of standard input at once, in bytes.
const PIECE: usize = 16 << 10;

/// ctrl-p ctrl-q leave a process and let it run on.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How following a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// It ended, with this code.
    Exited(u8),
    /// The user left.
    Detached,
    /// The stream ended without a code: the machine ended, or the connection.
    Cut,
}

/// Whether somebody could type here.
pub fn is_terminal() -> bool {
    tty::is_terminal(std::io::stdin().as_fd())
}

/// Rows and columns of the terminal here.
pub fn size() -> Option<(u16, u16)> {
    tty::window_size(std::io::stdin().as_fd())
}

/// Follows a process until it has ended.
///
/// # Errors
/// That it could not be run; that nothing can be printed.
pub async fn follow(socket: Socket, wants_input: bool) -> Result<Followed, Failure> {
    let (mut to_host, mut from_host) = socket.split();
    // What the process is, is told first: whether the terminal here has to be raw for it.
    let mut has_terminal = false;
    let mut raw: Option<RawMode> = None;
    let (sender, mut typed) = mpsc::channel::<Option<Vec<u8>>>(4);
    let mut reading = false;
    let mut resized = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
    let mut last_key = 0;
    let mut input_is_open = wants_input;
    loop {
        let said = tokio::select! {
            message = from_host.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    print(&bytes)?;
                    continue;
                }
                Some(Ok(Message::Text(word))) => {
                    let word: Value = serde_json::from_str(&word).unwrap_or_default();
                    if let Some(end) = end_of(&word) {
                        drop(raw);
                        return end;
                    }
                    has_terminal = word["attached"]["terminal"] == true;
                    if has_terminal && wants_input && is_terminal() {
                        raw = Some(RawMode::enter(std::io::stdin().as_fd())?);
                    }
                    if wants_input && !reading {
                        reading = true;
                        let sender = sender.clone();
                        // Of its own, as a read of standard input cannot be given up; it ends with the program.
                        std::thread::spawn(move || read_input(&sender));
                    }
                    match size() {
                        Some((rows, columns)) if has_terminal => resize(rows, columns),
                        _ => continue,
                    }
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return Ok(Followed::Cut),
            },
            bytes = typed.recv(), if input_is_open => match bytes.flatten() {
                Some(bytes) => {
                    if raw.is_some() && leaves(&mut last_key, &bytes) {
                        return Ok(Followed::Detached);
                    }
                    Message::binary(bytes)
                }
                None => {
                    input_is_open = false;
                    if has_terminal {
                        continue;
                    }
                    Message::text(json!({"end": "stdin"}).to_string())
                }
            },
            _ = resized.recv() => match size() {
                Some((rows, columns)) if has_terminal => resize(rows, columns),
                _ => continue,
            },
        };
        if to_host.send(said).await.is_err() {
            return Ok(Followed::Cut);
        }
    }
}

fn resize(rows: u16, columns: u16) -> Message {
    Message::text(json!({"resize": {"rows": rows, "columns": columns}}).to_string())
}

/// Whether the keys that leave have been typed, also in two pieces.
fn leaves(last: &mut u8, bytes: &[u8]) -> bool {
    bytes.iter().any(|key| {
        let before = std::mem::replace(last, *key);
        [before, *key] == DETACH_KEYS
    })
}

fn end_of(word: &Value) -> Option<Result<Followed, Failure>> {
    if let Some(code) = word["exited"]["code"].as_i64() {
        return Some(Ok(Followed::Exited(u8::try_from(code).unwrap_or(u8::MAX))));
    }
    let why = word["failed"].as_str()?;
    Some(Err(Failure::new(Class::Failed, why)))
}

fn print(message: &[u8]) -> Result<(), Failure> {
    let Some((stream, bytes)) = message.split_first() else {
        return Ok(());
    };
    match stream {
        2 => {
            let mut out = std::io::stderr().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        _ => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
    }
    Ok(())
}

fn read_input(sender: &mpsc::Sender<Option<Vec<u8>>>) {
    use std::io::Read;
    let mut buffer = vec![0; PIECE];
    loop {
        let read = std::io::stdin().lock().read(&mut buffer);
        let piece = match read {
            Ok(count) if count > 0 => Some(buffer[..count].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            _ => None,
        };
        let is_end = piece.is_none();
        if sender.blocking_send(piece).is_err() || is_end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_others_do_not() {
        let mut last = 0;
        assert!(!leaves(&mut last, b"ls\x10"));
        assert!(leaves(&mut last, b"\x11"));
        assert!(!leaves(&mut 0, b"\x11\x10"));
    }

    #[test]
    fn an_end_is_a_code_or_a_reason() {
        let end = |text: &str| end_of(&serde_json::from_str(text).unwrap());
        assert_eq!(end(r#"{"exited": {"code": 7}}"#).unwrap().unwrap(), Followed::Exited(7));
        assert_eq!(end(r#"{"failed": "why"}"#).unwrap().unwrap_err().message, "why");
        assert!(end(r#"{"attached": {"terminal": true}}"#).is_none());
    }
}
