//! Process streams between clients and the guest: asked for, and passed on frame by frame.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use zmachine_agent_client::session::{AgentStream, Session, SessionError};
use zmachine_agent_protocol::{self as protocol, AgentError, ErrorKind, Frame, Process};

use super::activity::Activity;
use super::console::Console;
use super::entry::Entry;
use super::execs::Execs;
use super::inbox::Event;
use super::relays::Relays;

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
    /// The processes that have an id.
    pub(super) execs: Execs,
    /// The interfaces through passt.
    pub(super) relays: Relays,
    /// Whether the guest stands still, and can answer nobody.
    pub(super) paused: watch::Receiver<bool>,
    /// Whether anybody has to do with the machine.
    pub(super) activity: Activity,
}

/// What `attach` follows.
#[derive(Debug, Clone)]
pub(super) enum Attachable {
    /// The entrypoint of a container.
    Entrypoint(Entry),
    /// The console of a VM.
    Console,
}

pub(super) use zmachine_agent_client::session::{Reader, Writer};

/// A process as the machine starts it: with the entrypoint's environment, user, folder and restrictions where it says
/// nothing else.
pub(super) fn in_machine(shared: &Shared, mut process: Process) -> Process {
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
    process.restrictions = process.restrictions.or_else(|| shared.exec_base.restrictions.clone());
    process
}

/// Asks the agent for a process. Its stream, and the first thing that it says; or why there is none.
pub(super) async fn begin(shared: &Shared, request: &protocol::Request) -> Result<(AgentStream, Frame), String> {
    if *shared.paused.borrow() {
        return Err("the machine is paused: 'zmachine resume' lets it run on".to_owned());
    }
    let session = shared.session.borrow().clone();
    let session = session.ok_or_else(|| match shared.attachable {
        Attachable::Entrypoint(_) => "the machine is not running yet".to_owned(),
        Attachable::Console => "no zmachine agent answers in this VM yet: wait until it has booted ('zmachine console' shows how far it is), or \
             install zmachine-agent in it".to_owned(),
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
pub(super) async fn pass(reader: Reader, mut writer: Writer, shared: Shared, request: protocol::Request) {
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
    relay(reader, writer, begun).await;
}

/// Passes the frames of a client and of a process on, until either side ends.
pub(super) async fn relay(mut reader: Reader, mut writer: Writer, begun: (AgentStream, Frame)) {
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
        let _ = writer.close().await;
    };
    tokio::select! {
        () = output => {}
        () = async { input.await; std::future::pending::<()>().await } => {}
    }
}
