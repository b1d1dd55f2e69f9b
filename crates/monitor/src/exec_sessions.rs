//! Starts processes that have an id, and lets clients follow them; see [`super::execs`].

use jiff::Timestamp;
use tokio::sync::watch;
use zmachine_agent_client::session::{AgentStream, Session};
use zmachine_agent_protocol::{
    self as protocol, AgentError, Container, ContainerProcess, ErrorKind, ExitStatus, Frame, Process,
};
use zmachine_spec::control::{ExecEnd, ExecRecord, Reply};
use zmachine_spec::{Class, Failure};

use super::execs::Reserved;
use super::streams::{Reader, Shared, Writer, begin, relay};

/// Starts a process that has an id.
pub(super) async fn start(shared: &Shared, id: Option<String>, process: Process, discard: bool) -> Reply {
    let reserved = match shared.execs.reserve(id) {
        Ok(reserved) => reserved,
        Err(failure) => return Reply::Failed(failure),
    };
    let args = process.args.clone();
    let request = protocol::Request::ExecSession {
        id: reserved.id.clone(),
        process,
    };
    begin_session(shared, reserved, args, request, discard).await
}

/// Starts a process of a container, which has an id as well.
pub(super) async fn start_in_container(
    shared: &Shared,
    id: String,
    container: String,
    new: Option<Box<Container>>,
    process: Box<ContainerProcess>,
) -> Reply {
    let reserved = match shared.execs.reserve(Some(id)) {
        Ok(reserved) => reserved,
        Err(failure) => return Reply::Failed(failure),
    };
    let args = process.args.clone();
    let request = protocol::Request::ContainerSession {
        id: reserved.id.clone(),
        container,
        new,
        process,
    };
    begin_session(shared, reserved, args, request, false).await
}

async fn begin_session(
    shared: &Shared,
    reserved: Reserved,
    args: Vec<String>,
    request: protocol::Request,
    discard: bool,
) -> Reply {
    let refused = |kind, message| Reply::Failed(AgentError { kind, message }.into());
    let (stream, first) = match begin(shared, &request).await {
        Ok(begun) => begun,
        Err(message) => return Reply::Failed(Failure::new(Class::Conflict, message)),
    };
    let pid = match first.parse() {
        Ok(protocol::Reply::Started { pid }) => pid,
        Ok(protocol::Reply::Error(error))
            if error.kind == ErrorKind::BadRequest && error.message.contains("variant") =>
        {
            let message = "the agent in this VM is older than this command: install today's zmachine-agent in it";
            return refused(ErrorKind::BadRequest, message.to_owned());
        }
        Ok(protocol::Reply::Error(error)) => return Reply::Failed(error.into()),
        _ => {
            return refused(
                ErrorKind::Internal,
                "the agent gave an answer that does not fit".to_owned(),
            );
        }
    };
    let known = reserved.started(args, pid);
    let record = known.borrow().clone();
    // The session is there: it was begun with.
    if let Some(session) = shared.session.borrow().clone() {
        tokio::spawn(follow(session, known, discard.then_some(stream)));
    }
    Reply::Execs(vec![record])
}

/// Writes down how a process ended. Its output is read and dropped, where nobody else takes the stream over.
async fn follow(session: Session, known: watch::Sender<ExecRecord>, discarded: Option<AgentStream>) {
    if let Some(mut stream) = discarded {
        tokio::spawn(async move {
            while let Ok(Some(_)) = stream.reader.next().await {}
            stream.writer.close().await;
        });
    }
    let id = known.borrow().id.clone();
    let status: Option<ExitStatus> = match session.ask(&protocol::Request::WaitSession { id }).await {
        Ok(protocol::Reply::Exited(status)) => Some(status),
        _ => None,
    };
    known.send_modify(|record| {
        record.ended = Some(ExecEnd {
            at: Timestamp::now(),
            status,
        });
    });
}

/// Lets a client follow a process, in the place of whoever does so far.
pub(super) async fn attach(reader: Reader, mut writer: Writer, shared: Shared, id: String, received: u64) {
    let record = match shared.execs.get(&id) {
        Ok(record) => record,
        Err(failure) => return drop(writer.send(&Frame::message(&Reply::Failed(failure))).await),
    };
    let request = protocol::Request::Resume { id: Some(id), received };
    let begun = begin(&shared, &request).await;
    let is_refused = match &begun {
        Ok((_, first)) => matches!(first.parse(), Ok(protocol::Reply::Error(_))),
        Err(_) => true,
    };
    match (begun, record.ended) {
        // The agent does not keep the last output for ever; how it ended is known here.
        (
            _,
            Some(ExecEnd {
                status: Some(status), ..
            }),
        ) if is_refused => {
            let resumed = protocol::Reply::Resumed {
                pid: record.pid,
                lost: 0,
            };
            for reply in [resumed, protocol::Reply::Exited(status)] {
                let _ = writer.send(&Frame::message(&reply)).await;
            }
            writer.close().await;
        }
        (Ok(begun), _) => relay(reader, writer, begun).await,
        (Err(message), _) => {
            let error = AgentError {
                kind: ErrorKind::Internal,
                message,
            };
            let _ = writer.send(&Frame::message(&protocol::Reply::Error(error))).await;
        }
    }
}
