//! The entrypoint's output and input: one task between the agent's stream, the log, and the attached clients.
//!
//! # Invariants
//! Every byte goes to the log first, then to the clients in order. The client that started the machine (the owner) is
//! waited for as long as it takes, as a pipe would; another client that does not read for [`TIMEOUT`] is let go, so
//! that a forgotten `attach` never stops a service. A client that comes late gets the output from then on, and always
//! the end.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zmachine_agent_client::session::{AgentStream, SessionError};
use zmachine_agent_protocol::{ExitStatus, Frame, Reply};
use zmachine_store::log::Source;

use super::inbox::Event;
use super::output::SharedLog;

/// How long a client that is not the owner may take for one frame.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Frames in flight to one client: at most 16 of 64 KiB.
const CLIENT_QUEUE: usize = 16;

/// One attached client.
#[derive(Debug)]
pub(super) struct Client {
    /// Frames for it.
    pub(super) frames: mpsc::Sender<Frame>,
    /// It started the machine.
    pub(super) owner: bool,
}

/// A client's queue.
pub(super) fn client_queue() -> (mpsc::Sender<Frame>, mpsc::Receiver<Frame>) {
    mpsc::channel(CLIENT_QUEUE)
}

/// The handle to the task.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    clients: mpsc::Sender<Client>,
    input: mpsc::Sender<Frame>,
    owner: watch::Receiver<bool>,
}

/// The task's side before the entrypoint runs.
#[derive(Debug)]
pub(super) struct Waiting {
    clients: mpsc::Receiver<Client>,
    input: mpsc::Receiver<Frame>,
    owner: watch::Sender<bool>,
}

/// A handle, and what [`run`] needs.
pub(super) fn new() -> (Entry, Waiting) {
    let (clients, clients_rx) = mpsc::channel(16);
    let (input, input_rx) = mpsc::channel(16);
    let (owner, owner_rx) = watch::channel(false);
    (
        Entry {
            clients,
            input,
            owner: owner_rx,
        },
        Waiting {
            clients: clients_rx,
            input: input_rx,
            owner,
        },
    )
}

impl Entry {
    /// Adds a client. It is dropped when the entrypoint is gone already and its end was told to nobody new.
    pub(super) async fn attach(&self, client: Client) {
        let _ = self.clients.send(client).await;
    }

    /// Passes a client's frame (input, resize, signal) on to the entrypoint.
    pub(super) async fn input(&self, frame: Frame) {
        let _ = self.input.send(frame).await;
    }

    /// Waits until the owner is attached.
    pub(super) async fn owner_attached(&mut self) {
        let _ = self.owner.wait_for(|attached| *attached).await;
    }
}

/// The entrypoint's stream after the agent's `Started`, and its process id in the guest.
pub(super) type Started = (AgentStream, u32);

/// Collects clients until `stream` (the agent's answer to `Run`) is there, then pumps until the entrypoint is gone.
/// Tells the monitor how it ended.
pub(super) async fn run(
    mut waiting: Waiting,
    stream: impl Future<Output = Option<Started>>,
    log: SharedLog,
    events: mpsc::Sender<Event>,
) {
    let mut clients = Vec::new();
    tokio::pin!(stream);
    let stream = loop {
        tokio::select! {
            stream = &mut stream => break stream,
            Some(client) = waiting.clients.recv() => add(&mut clients, client, &waiting.owner),
        }
    };
    let Some((AgentStream { mut reader, mut writer }, pid)) = stream else {
        return;
    };
    let started = Frame::message(&Reply::Started { pid });
    hand_out(&started, &mut clients).await;
    let Waiting {
        clients: mut newcomers,
        mut input,
        owner,
    } = waiting;
    let feed = tokio::spawn(async move {
        while let Some(frame) = input.recv().await {
            if writer.send(&frame).await.is_err() {
                break;
            }
        }
        // Not closed here: the end of the stream would tell the agent that the machine may shut down.
        std::future::pending::<()>().await;
    });
    let (last, end) = loop {
        tokio::select! {
            Some(client) = newcomers.recv() => {
                // The queue of a new client is empty: this neither waits nor fails.
                let _ = client.frames.try_send(started.clone());
                add(&mut clients, client, &owner);
            }
            frame = reader.next() => match frame {
                Ok(Some(frame)) => {
                    log_frame(&frame, &log);
                    hand_out(&frame, &mut clients).await;
                    if let Some(end) = end_of(&frame) {
                        break (Some(frame), end);
                    }
                }
                Ok(None) => break (None, Err(SessionError::Closed)),
                Err(error) => break (None, Err(error)),
            },
        }
    };
    let _ = events.send(Event::EntryEnded(end)).await;
    feed.abort();
    drop((reader, clients));
    while let Some(client) = newcomers.recv().await {
        if let Some(frame) = &last {
            let _ = client.frames.send(frame.clone()).await;
        }
    }
}

fn add(clients: &mut Vec<Client>, client: Client, owner: &watch::Sender<bool>) {
    if client.owner {
        owner.send_replace(true);
    }
    clients.push(client);
}

fn log_frame(frame: &Frame, log: &SharedLog) {
    match frame {
        Frame::Stdout(bytes) => log.write(Source::Stdout, bytes, Timestamp::now()),
        Frame::Stderr(bytes) => log.write(Source::Stderr, bytes, Timestamp::now()),
        _ => {}
    }
}

/// How the entrypoint ended, when this frame says so.
fn end_of(frame: &Frame) -> Option<Result<ExitStatus, SessionError>> {
    match frame.parse::<Reply>() {
        Ok(Reply::Exited(status)) => Some(Ok(status)),
        Ok(Reply::Error(error)) => Some(Err(SessionError::Agent(error))),
        _ => None,
    }
}

/// Sends `frame` to all, and lets those go that are gone or do not read.
pub(super) async fn hand_out(frame: &Frame, clients: &mut Vec<Client>) {
    let mut kept = Vec::with_capacity(clients.len());
    for client in clients.drain(..) {
        let sent = match client.owner {
            true => client.frames.send(frame.clone()).await.is_ok(),
            false => matches!(timeout(TIMEOUT, client.frames.send(frame.clone())).await, Ok(Ok(()))),
        };
        if sent {
            kept.push(client);
        }
    }
    *clients = kept;
}
