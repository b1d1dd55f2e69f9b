//! The guest's serial console: one task between the hypervisor's stream, the log, and the attached clients.
//!
//! # Invariants
//! It is read from its first byte, whether anybody is attached or not: a full console stops the guest. Every byte goes to
//! the log first, then to the clients. As with the entrypoint's output, the client that started the machine is waited
//! for, another one that does not read is let go. A client that comes late first gets the last [`BACKLOG`] bytes, so that it
//! sees the prompt it is at.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use zmachine_agent_protocol::{Frame, Reply};
use zmachine_store::log::Source;

use super::entry::{Client, hand_out};
use super::inbox::Event;
use super::output::SharedLog;

/// What a late client is shown of what was before it, in bytes.
const BACKLOG: usize = 4096;

/// How long the client that started the machine may take to attach. It does so at once, or it is gone.
const OWNER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of a line is waited for before its beginning is logged: a prompt has none.
const LINE_TIMEOUT: Duration = Duration::from_millis(100);

/// What getty writes, of whatever make, when a system is up.
const LOGIN: &[u8] = b"login:";

/// Most bytes of a line without end that wait.
const LONGEST_WAITING: usize = 8 * 1024;

/// The handle to the task.
#[derive(Debug, Clone)]
pub(super) struct Console {
    clients: mpsc::Sender<Client>,
    input: mpsc::Sender<Vec<u8>>,
}

/// The task's side.
#[derive(Debug)]
pub(super) struct Waiting {
    clients: mpsc::Receiver<Client>,
    input: mpsc::Receiver<Vec<u8>>,
}

/// A handle, and what [`run`] needs.
pub(super) fn new() -> (Console, Waiting) {
    let (clients, clients_rx) = mpsc::channel(16);
    let (input, input_rx) = mpsc::channel(16);
    (
        Console { clients, input },
        Waiting {
            clients: clients_rx,
            input: input_rx,
        },
    )
}

impl Console {
    /// Adds a client; its stream ends with the machine.
    pub(super) async fn attach(&self, client: Client) {
        let _ = self.clients.send(client).await;
    }

    /// Types bytes.
    pub(super) async fn input(&self, bytes: Vec<u8>) {
        let _ = self.input.send(bytes).await;
    }
}

/// Pumps until the console ends. With `wait_for_owner`, not before the client that started the machine is attached. `events` are
/// told when somebody could log in.
pub(super) async fn run(
    mut waiting: Waiting,
    stream: UnixStream,
    log: SharedLog,
    events: mpsc::Sender<Event>,
    wait_for_owner: bool,
) {
    let mut clients: Vec<Client> = Vec::new();
    if wait_for_owner {
        let owner = async {
            while let Some(client) = waiting.clients.recv().await {
                let is_owner = client.owner;
                greet(&mut clients, client, &VecDeque::new());
                if is_owner {
                    break;
                }
            }
        };
        let _ = timeout(OWNER_TIMEOUT, owner).await;
    }
    let (mut reader, mut writer) = stream.into_split();
    let Waiting {
        clients: mut newcomers,
        mut input,
    } = waiting;
    let typing = async move {
        while let Some(bytes) = input.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await
    };
    let showing = async {
        let mut backlog = VecDeque::with_capacity(BACKLOG);
        let mut lines = Lines::new(log);
        let mut buffer = vec![0; 8 * 1024];
        loop {
            tokio::select! {
                Some(client) = newcomers.recv() => greet(&mut clients, client, &backlog),
                read = reader.read(&mut buffer) => match read {
                    Ok(n) if n > 0 => {
                        lines.add(&buffer[..n]);
                        remember(&mut backlog, &buffer[..n]);
                        if has_login(&backlog, n) {
                            // A loop that is that busy hears of it another time, or does without.
                            let _ = events.try_send(Event::GuestUp);
                        }
                        hand_out(&Frame::Stdout(buffer[..n].to_vec()), &mut clients).await;
                    }
                    _ => break,
                },
                () = lines.due() => lines.flush(),
            }
        }
    };
    // Beside each other: a guest that does not read what is typed must not keep its output from being read.
    tokio::select! {
        () = typing => {}
        () = showing => {}
    }
}

/// The console's bytes on their way to the log: the end of a line that comes in pieces, as from an emulated serial port,
/// is waited for a moment, and a line has the time of its first byte.
struct Lines {
    log: SharedLog,
    /// The beginning of a line.
    begun: Vec<u8>,
    /// When it began.
    at: Timestamp,
    /// Until when its end is waited for.
    until: Instant,
}

impl Lines {
    fn new(log: SharedLog) -> Lines {
        Lines {
            log,
            begun: Vec::new(),
            at: Timestamp::now(),
            until: Instant::now(),
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        let now = Timestamp::now();
        if !self.begun.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
            self.begun.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end..];
            if self.begun.ends_with(b"\n") || self.begun.len() >= LONGEST_WAITING {
                self.flush();
            }
        }
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.log.write(Source::Console, &bytes[..whole], now);
        if whole < bytes.len() {
            self.begun.extend_from_slice(&bytes[whole..]);
            (self.at, self.until) = (now, Instant::now() + LINE_TIMEOUT);
        }
    }

    /// Ends when the beginning of a line has waited long enough.
    async fn due(&self) {
        match self.begun.is_empty() {
            true => std::future::pending().await,
            false => sleep_until(self.until).await,
        }
    }

    fn flush(&mut self) {
        self.log.write(Source::Console, &self.begun, self.at);
        self.begun.clear();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

fn greet(clients: &mut Vec<Client>, client: Client, backlog: &VecDeque<u8>) {
    // The queue of a new client is empty: this neither waits nor fails.
    let _ = client.frames.try_send(Frame::message(&Reply::Started { pid: 0 }));
    if !backlog.is_empty() {
        let _ = client.frames.try_send(Frame::Stdout(backlog.iter().copied().collect()));
    }
    clients.push(client);
}

/// Whether the last `n` bytes have brought a prompt to log in.
fn has_login(backlog: &VecDeque<u8>, n: usize) -> bool {
    // It may have begun before.
    let tail: Vec<u8> = backlog.iter().rev().take(n + LOGIN.len() - 1).rev().copied().collect();
    tail.windows(LOGIN.len()).any(|window| window == LOGIN)
}

fn remember(backlog: &mut VecDeque<u8>, bytes: &[u8]) {
    backlog.extend(bytes);
    backlog.drain(..backlog.len().saturating_sub(BACKLOG));
}

#[cfg(test)]
mod tests {
    use super::super::entry::client_queue;
    use super::*;
    use zmachine_spec::LogLimits;
    use zmachine_store::log::{LogReader, LogWriter};

    fn stdout(frame: Option<Frame>) -> Vec<u8> {
        match frame {
            Some(Frame::Stdout(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_line_in_pieces_is_one_entry_and_a_prompt_is_not_kept_back() {
        let dir = tempfile::tempdir().unwrap();
        let log = SharedLog::new(LogWriter::open(dir.path(), LogLimits::default()).unwrap());
        let mut lines = Lines::new(log);
        for piece in ["[  0.", "1] b", "oot", "ing\nsecond\nlog", "in: "] {
            lines.add(piece.as_bytes());
        }
        timeout(Duration::from_secs(10), lines.due()).await.unwrap();
        lines.flush();
        lines.add(b"the last");
        drop(lines);
        let mut reader = LogReader::open(dir.path());
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            found.push((String::from_utf8(entry.bytes).unwrap(), entry.ends_line));
        }
        let expected = [
            ("[  0.1] booting", true),
            ("second", true),
            ("login: ", false),
            ("the last", false),
        ];
        assert_eq!(found, expected.map(|(text, partial)| (text.to_owned(), partial)));
    }

    #[tokio::test]
    async fn a_late_client_sees_the_prompt_types_and_reads_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let log = SharedLog::new(LogWriter::open(dir.path(), LogLimits::default()).unwrap());
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (console, waiting) = new();
        let (events, mut told) = mpsc::channel(4);
        let hub = tokio::spawn(run(waiting, ours, log, events, false));
        guest.write_all(b"log").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        guest.write_all(b"in: ").await.unwrap();
        assert!(matches!(told.recv().await, Some(Event::GuestUp)));
        let mut reader = LogReader::open(dir.path());
        while reader.next_entry().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (frames, mut queue) = client_queue();
        console.attach(Client { frames, owner: false }).await;
        assert!(matches!(queue.recv().await, Some(Frame::Message(_))));
        assert_eq!(stdout(queue.recv().await), b"login: ");
        console.input(b"root\n".to_vec()).await;
        let mut typed = [0; 5];
        guest.read_exact(&mut typed).await.unwrap();
        guest.write_all(b"welcome").await.unwrap();
        assert_eq!((&typed, stdout(queue.recv().await)), (b"root\n", b"welcome".to_vec()));
        drop(guest);
        assert!(
            queue.recv().await.is_none(),
            "the end of the console is the end of the stream"
        );
        hub.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_read_before_the_owner_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = SharedLog::new(LogWriter::open(dir.path(), LogLimits::default()).unwrap());
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (console, waiting) = new();
        tokio::spawn(run(waiting, ours, log, mpsc::channel(1).0, true));
        guest.write_all(b"SeaBIOS").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (frames, mut queue) = client_queue();
        console.attach(Client { frames, owner: true }).await;
        queue.recv().await;
        assert_eq!(stdout(queue.recv().await), b"SeaBIOS");
    }
}
