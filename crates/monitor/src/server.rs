//! The control socket's server: one task per connection.
//!
//! `attach` and `exec` are carried out here, beside the monitor's own loop, since they only move bytes. Everything that
//! changes the machine goes to the loop as an [`Event`].

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use zmachine_agent_protocol::{self as protocol, AgentError, ErrorKind, Frame, Process};
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Class, Failure};

use super::console::Console;
use super::entry::{Client, Entry, client_queue};
use super::inbox::Event;
use super::relays::Relays;
use super::session::{AgentStream, FrameReader, FrameWriter, Session, SessionError};

/// How long the agent may take to tell its capacity.
const CAPACITY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the agent may take to begin with what a client wants. Under emulation a process takes seconds to start.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What connections need.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    /// What a client follows that attaches.
    pub(super) attachable: Attachable,
    /// The serial console's hub.
    pub(super) console: Console,
    /// The session with the agent, while there is one.
    pub(super) session: watch::Receiver<Option<Session>>,
    /// The monitor's loop.
    pub(super) events: mpsc::Sender<Event>,
    /// An exec has its environment, user and working directory where it says nothing else.
    pub(super) exec_base: Arc<Process>,
    /// The interfaces through passt.
    pub(super) relays: Relays,
    /// Whether the guest stands still, and can answer nobody.
    pub(super) paused: watch::Receiver<bool>,
}

/// What `attach` follows.
#[derive(Debug, Clone)]
pub(super) enum Attachable {
    /// The entrypoint of a container.
    Entrypoint(Entry),
    /// The console of a VM.
    Console,
}

/// Accepts connections until the task is aborted.
pub(super) async fn serve(listener: UnixListener, shared: Shared) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, shared.clone()))),
            // Out of descriptors, most likely: give those that are in use time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: UnixStream, shared: Shared) {
    let (read, write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let mut writer = FrameWriter(write);
    let Ok(Some(frame)) = reader.next().await else { return };
    let request = match frame.parse::<Request>() {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::from_error(Class::Usage, &error).context("the monitor does not know this request");
            let _ = writer.send(&Frame::message(&Reply::Failed(failure))).await;
            return;
        }
    };
    match request {
        Request::Attach { stdin, owner } => {
            // As with docker's `-i`: when the client that opened the input goes, the input ends. Not so on a terminal,
            // which its user may leave and find again.
            let ends_input = stdin && owner && shared.exec_base.terminal.is_none();
            let how = Attached {
                stdin,
                owner,
                ends_input,
            };
            match shared.attachable.clone() {
                Attachable::Entrypoint(entry) => attach(reader, writer, entry, how).await,
                Attachable::Console => console(reader, writer, &shared, stdin, owner).await,
            }
        }
        Request::Console { stdin } => console(reader, writer, &shared, stdin, false).await,
        Request::Exec(process) => exec(reader, writer, shared, process).await,
        Request::Transfer(transfer) => pass(reader, writer, shared, protocol::Request::Transfer(transfer)).await,
        Request::Traffic => {
            let reply = Reply::Traffic(shared.relays.traffic());
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Capacity => {
            let reply = capacity(&shared).await.map_or_else(Reply::Failed, Reply::Capacity);
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        command => {
            let (answer, reply) = oneshot::channel();
            let sent = shared.events.send(Event::Command(command, answer)).await;
            let reply = match sent {
                Ok(()) => reply.await.unwrap_or_else(|_| Reply::Failed(ended())),
                Err(_) => Reply::Failed(ended()),
            };
            let _ = writer.send(&Frame::message(&reply)).await;
        }
    }
}

/// Asks the agent. One that is busy is not waited for.
async fn capacity(shared: &Shared) -> Result<protocol::Capacity, Failure> {
    let session = shared.session.borrow().clone();
    let session = session.ok_or_else(|| Failure::new(Class::Conflict, "the machine is not running yet"))?;
    if *shared.paused.borrow() {
        return Err(Failure::new(Class::Conflict, "the machine is paused"));
    }
    match tokio::time::timeout(CAPACITY_TIMEOUT, session.ask(&protocol::Request::Capacity)).await {
        Ok(Ok(protocol::Reply::Capacity(capacity))) => Ok(capacity),
        Ok(Ok(_)) => Err(Failure::new(
            Class::Failed,
            "the agent gave an answer that does not fit",
        )),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Failure::new(Class::Failed, "the agent did not answer in time")),
    }
}

fn ended() -> Failure {
    Failure::new(Class::Conflict, "the machine has ended")
}

type Reader = FrameReader<tokio::net::unix::OwnedReadHalf>;
type Writer = FrameWriter<tokio::net::unix::OwnedWriteHalf>;

/// What a client that attaches is to the entrypoint.
#[derive(Debug, Clone, Copy)]
struct Attached {
    /// Its input goes to the entrypoint.
    stdin: bool,
    /// It started the machine.
    owner: bool,
    /// With it, the entrypoint's input ends.
    ends_input: bool,
}

async fn attach(mut reader: Reader, mut writer: Writer, entry: Entry, how: Attached) {
    let (frames, mut queue) = client_queue();
    let owner = how.owner;
    entry.attach(Client { frames, owner }).await;
    let input = async {
        while let Ok(Some(frame)) = reader.next().await {
            if how.stdin || matches!(frame, Frame::Message(_)) {
                entry.input(frame).await;
            }
        }
        if how.ends_input {
            entry.input(Frame::StdinEof).await;
        }
    };
    let output = async {
        while let Some(frame) = queue.recv().await {
            if writer.send(&frame).await.is_err() {
                break;
            }
        }
        writer.close().await;
    };
    // A client may close its sending side and go on reading; when it cannot be written to, it is gone.
    tokio::select! {
        () = output => {}
        () = async { input.await; std::future::pending::<()>().await } => {}
    }
}

/// A client at the console. A signal from the one that started the machine asks it to stop, as it would a program of this
/// host; any other client goes by one.
async fn console(mut reader: Reader, mut writer: Writer, shared: &Shared, stdin: bool, owner: bool) {
    let (frames, mut queue) = client_queue();
    shared.console.attach(Client { frames, owner }).await;
    let input = async {
        while let Ok(Some(frame)) = reader.next().await {
            match frame {
                Frame::Stdin(bytes) if stdin => shared.console.input(bytes).await,
                message if matches!(message.parse(), Ok(protocol::Input::Signal(_))) => {
                    if !owner {
                        return;
                    }
                    let (answer, _) = oneshot::channel();
                    let stop = Event::Command(Request::Stop { grace_ms: None }, answer);
                    let _ = shared.events.send(stop).await;
                }
                _ => {}
            }
        }
        // A client may close its sending side and go on reading.
        std::future::pending::<()>().await
    };
    let output = async {
        while let Some(frame) = queue.recv().await {
            if writer.send(&frame).await.is_err() {
                break;
            }
        }
        writer.close().await;
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}

async fn exec(reader: Reader, writer: Writer, shared: Shared, mut process: Process) {
    let mut env = shared.exec_base.env.clone();
    for (key, value) in std::mem::take(&mut process.env) {
        match env.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => env.push((key, value)),
        }
    }
    process.env = env;
    process.user = process.user.or_else(|| shared.exec_base.user.clone());
    process.cwd = process.cwd.or_else(|| shared.exec_base.cwd.clone());
    pass(reader, writer, shared, protocol::Request::Exec(process)).await;
}

/// Asks the agent for a process. Its stream, and the first thing that it says; or why there is none.
async fn begin(shared: &Shared, request: &protocol::Request) -> Result<(AgentStream, Frame), String> {
    if *shared.paused.borrow() {
        return Err("the machine is paused: 'zmachine resume' lets it run on".to_owned());
    }
    let session = shared.session.borrow().clone();
    let session = session.ok_or_else(|| match shared.attachable {
        Attachable::Entrypoint(_) => "the machine is not running yet".to_owned(),
        Attachable::Console => "no zmachine agent answers in this VM: install zmachine-agent in it".to_owned(),
    })?;
    let begun = async {
        let mut stream = session.open(request).await?;
        let first = stream.reader.next().await?.ok_or(SessionError::Closed)?;
        Ok::<_, SessionError>((stream, first))
    };
    match tokio::time::timeout(BEGIN_TIMEOUT, begun).await {
        Ok(begun) => begun.map_err(|error| error.to_string()),
        Err(_) => {
            let seconds = BEGIN_TIMEOUT.as_secs();
            Err(format!(
                "the agent in the guest did not answer within {seconds} s; a guest that hangs is ended by 'zmachine kill'"
            ))
        }
    }
}

/// Asks the agent for a process, and passes its stream on byte by byte.
async fn pass(mut reader: Reader, mut writer: Writer, shared: Shared, request: protocol::Request) {
    let begun = match begin(&shared, &request).await {
        Ok(begun) => begun,
        Err(message) => {
            let error = AgentError {
                kind: ErrorKind::Internal,
                message,
            };
            let _ = writer.send(&Frame::message(&protocol::Reply::Error(error))).await;
            return;
        }
    };
    let (
        AgentStream {
            reader: mut from_guest,
            writer: mut to_guest,
        },
        first,
    ) = begun;
    if writer.send(&first).await.is_err() {
        return to_guest.close().await;
    }
    let input = async {
        while let Ok(Some(frame)) = reader.next().await {
            if to_guest.send(&frame).await.is_err() {
                break;
            }
        }
        // The client is gone: the end of the stream tells the agent.
        to_guest.close().await;
    };
    let output = async {
        while let Ok(Some(frame)) = from_guest.next().await {
            if writer.send(&frame).await.is_err() {
                break;
            }
        }
        let _ = writer.0.shutdown().await;
    };
    tokio::select! {
        () = output => {}
        () = async { input.await; std::future::pending::<()>().await } => {}
    }
}

#[cfg(test)]
#[path = "server/hostile.rs"]
mod hostile;
