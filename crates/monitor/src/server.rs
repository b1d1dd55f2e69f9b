//! The control socket's server: one task per connection.
//!
//! `attach` and `exec` are carried out here, beside the monitor's own loop, since they only move bytes. Everything that
//! changes the machine goes to the loop as an [`Event`].

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use zmachine_agent_client::session::{FrameReader, FrameWriter};
use zmachine_agent_protocol::{self as protocol, Frame};
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Class, Failure};

use super::activity::{Waiting, counts};
use super::entry::{Client, Entry, client_queue};
use super::exec_sessions;
use super::inbox::Event;
use super::streams::{Attachable, Reader, Shared, Writer, in_machine, pass};

/// How long the agent may take to tell of its guest.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take for something to be done to a container: what is left of one is killed first.
const CONTAINER_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts connections until the task is aborted.
pub(super) async fn serve(listener: Arc<UnixListener>, shared: Shared) {
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
    let mut writer = FrameWriter::new(write);
    let Ok(Some(frame)) = reader.next().await else { return };
    let request = match frame.parse::<Request>() {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::from_error(Class::Usage, &error).context("the monitor does not know this request");
            let _ = writer.send(&Frame::message(&Reply::Failed(failure))).await;
            return;
        }
    };
    serve_one(
        Waiting {
            request,
            reader,
            writer,
        },
        shared,
    )
    .await;
}

/// Serves one client. As long as the machine is asleep it waits, and is a reason to wake it.
pub(super) async fn serve_one(client: Waiting, shared: Shared) {
    let served = shared.activity.serve(&client.request);
    if served.is_none() && counts(&client.request) {
        if let Err(mut refused) = shared.activity.keep(client) {
            let failure = Failure::new(Class::Conflict, "too many wait for the machine, which wakes");
            let reply = Reply::Failed(failure.hint("try again in a moment"));
            let _ = refused.writer.send(&Frame::message(&reply)).await;
        }
        return;
    }
    // Who only looks at it, or waits for its end, has nothing to do with it.
    let _served = served.filter(|_| counts(&client.request));
    let Waiting {
        request,
        reader,
        mut writer,
    } = client;
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
        Request::Exec(process) => {
            let request = protocol::Request::Exec(in_machine(&shared, process));
            pass(reader, writer, shared, request).await;
        }
        Request::StartExec { id, process, discard } => {
            let process = in_machine(&shared, process);
            let reply = exec_sessions::start(&shared, id, process, discard).await;
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::StartInContainer {
            id,
            container,
            new,
            process,
        } => {
            let reply = exec_sessions::start_in_container(&shared, id, container, new, process).await;
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Container { id, request } => {
            let asked = protocol::Request::Container { id, request };
            let reply = match ask_within(&shared, &asked, CONTAINER_TIMEOUT).await {
                Ok(protocol::Reply::Container(reply)) => Reply::Container(reply),
                Ok(_) => Reply::Failed(unfitting()),
                Err(failure) => Reply::Failed(failure),
            };
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::AttachExec { id, received } => exec_sessions::attach(reader, writer, shared, id, received).await,
        Request::WaitExec { id } => {
            let record = shared.execs.wait(&id).await;
            let reply = record.map_or_else(Reply::Failed, |record| Reply::Execs(vec![record]));
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Execs => {
            let reply = Reply::Execs(shared.execs.all());
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Dial { port } => pass(reader, writer, shared, protocol::Request::Dial { port }).await,
        Request::Hold { disks } => hold(reader, writer, shared, disks).await,
        Request::Transfer(transfer) => pass(reader, writer, shared, protocol::Request::Transfer(transfer)).await,
        Request::Traffic => {
            let reply = Reply::Traffic(shared.relays.traffic());
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Processes => {
            let reply = match ask(&shared, &protocol::Request::Processes).await {
                Ok(protocol::Reply::Processes(processes)) => Reply::Processes(processes),
                Ok(_) => Reply::Failed(unfitting()),
                Err(failure) => Reply::Failed(failure),
            };
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        Request::Capacity => {
            let reply = match ask(&shared, &protocol::Request::Capacity).await {
                Ok(protocol::Reply::Capacity(capacity)) => Reply::Capacity(capacity),
                Ok(_) => Reply::Failed(unfitting()),
                Err(failure) => Reply::Failed(failure),
            };
            let _ = writer.send(&Frame::message(&reply)).await;
        }
        request => {
            let reply = commanded(&shared, request).await;
            let _ = writer.send(&Frame::message(&reply)).await;
        }
    }
}

/// Keeps disks from being written to until the client goes: by the agent, or, in a VM without one, by halting the CPUs.
async fn hold(mut reader: Reader, mut writer: Writer, shared: Shared, disks: Vec<String>) {
    let is_paused = *shared.paused.borrow();
    let has_agent = shared.session.borrow().is_some() || matches!(shared.attachable, Attachable::Entrypoint(_));
    if has_agent && !is_paused {
        return pass(reader, writer, shared, protocol::Request::Hold { disks }).await;
    }
    let halted = match is_paused {
        true => Ok(()),
        false => command(&shared, Request::Pause).await,
    };
    let told = match &halted {
        Ok(()) => protocol::Reply::Done,
        Err(failure) => protocol::Reply::Error(protocol::AgentError {
            kind: protocol::ErrorKind::Internal,
            message: failure.to_string(),
        }),
    };
    if writer.send(&Frame::message(&told)).await.is_ok() && halted.is_ok() {
        while let Ok(Some(_)) = reader.next().await {}
    }
    if halted.is_ok() && !is_paused {
        let _ = command(&shared, Request::Resume).await;
    }
}

/// Has the monitor's loop carry a command out.
async fn command(shared: &Shared, request: Request) -> Result<(), Failure> {
    match commanded(shared, request).await {
        Reply::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}

async fn commanded(shared: &Shared, request: Request) -> Reply {
    let (answer, reply) = oneshot::channel();
    match shared.events.send(Event::Command(request, answer)).await {
        Ok(()) => reply.await.unwrap_or_else(|_| Reply::Failed(ended())),
        Err(_) => Reply::Failed(ended()),
    }
}

/// Asks the agent. One that is busy is not waited for.
async fn ask(shared: &Shared, request: &protocol::Request) -> Result<protocol::Reply, Failure> {
    ask_within(shared, request, ASK_TIMEOUT).await
}

async fn ask_within(
    shared: &Shared,
    request: &protocol::Request,
    patience: Duration,
) -> Result<protocol::Reply, Failure> {
    if shared.activity.is_asleep() {
        return Err(Failure::new(
            Class::Conflict,
            "the machine is idle: its guest does not run",
        ));
    }
    let session = shared.session.borrow().clone();
    let session = session.ok_or_else(|| Failure::new(Class::Conflict, "the machine is not running yet"))?;
    if *shared.paused.borrow() {
        return Err(Failure::new(Class::Conflict, "the machine is paused"));
    }
    match tokio::time::timeout(patience, session.ask(request)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::new(Class::Failed, "the agent did not answer in time")),
    }
}

fn unfitting() -> Failure {
    Failure::new(Class::Failed, "the agent gave an answer that does not fit")
}

fn ended() -> Failure {
    Failure::new(Class::Conflict, "the machine has ended")
}

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

#[cfg(test)]
#[path = "server/hostile.rs"]
mod hostile;
