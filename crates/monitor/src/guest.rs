//! Requests to a guest's agent: each is a task of its own with a deadline. A guest that is silent, slow or lies keeps nobody
//! waiting but the client that asked.

use std::time::Duration;

use tokio::sync::oneshot;
use zmachine_agent_protocol::{Reply as AgentReply, Request as AgentRequest};
use zmachine_spec::control::Reply;
use zmachine_spec::{Class, Failure};

use zmachine_agent_client::session::{Session, SessionError};

/// How long an agent may take for what it does at once. Under emulation on a loaded host seconds were seen.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long setting up or giving up an interface may take: its addresses have to settle.
pub(super) const NETWORK_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a file system may take to grow: one of many terabytes takes minutes.
pub(super) const GROW_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the event of something that the hypervisor has done may take.
pub(super) const EVENT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long anything of this host may take that a command needs: the hypervisor's answer, a rule of the firewall.
pub(super) const HOST_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the agent for something that it does, for at most `limit`.
///
/// # Errors
/// What the agent refuses, that it is gone, that it did not answer in time, or that it answered something else.
pub(super) async fn ask(session: &Session, request: &AgentRequest, limit: Duration) -> Result<(), Failure> {
    match tokio::time::timeout(limit, session.ask(request)).await {
        Ok(Ok(AgentReply::Done)) => Ok(()),
        Ok(Ok(_)) => Err(SessionError::Unexpected.into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Failure::new(
            Class::Failed,
            format!("the agent in the guest did not answer within {} s", limit.as_secs()),
        )
        .hint("a guest that hangs is ended by 'zmachine kill'")),
    }
}

/// Asks the agent in a task, and answers the client with what comes of it; `explain` says what was not done.
pub(super) fn answer(
    session: &Session,
    request: AgentRequest,
    limit: Duration,
    client: oneshot::Sender<Reply>,
    explain: impl FnOnce(Failure) -> Failure + Send + 'static,
) {
    let session = session.clone();
    tokio::spawn(async move {
        let answered = ask(&session, &request, limit).await;
        reply(client, answered.map_err(explain));
    });
}

/// Answers a client.
pub(super) fn reply(client: oneshot::Sender<Reply>, result: Result<(), Failure>) {
    // One that is gone does not mind.
    let _ = client.send(result.map_or_else(Reply::Failed, |()| Reply::Done));
}

/// Does something on this host, for at most [`HOST_TIMEOUT`].
///
/// # Errors
/// Its own, or that it took too long.
pub(super) async fn within<T, E: Into<Failure>>(
    what: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    within_time(what, HOST_TIMEOUT, work).await
}

/// The same of work that has another limit.
pub(super) async fn within_time<T, E: Into<Failure>>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => {
            let message = format!("{what}: this was not done within {} s", limit.as_secs());
            Err(Failure::new(Class::Failed, message).hint("'zmachine kill' ends the machine whatever hangs"))
        }
    }
}
