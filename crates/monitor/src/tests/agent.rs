//! The guest's agent, as the test wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use zmachine_agent_protocol::{
    AgentError, Capacity, ContainerReply, ErrorKind, ExitStatus, Frame, Input, Reply, Request,
};
use zmachine_hypervisor::{ExitReason, VmEvent};

use zmachine_agent_client::session::{ByteStream, FrameReader, FrameWriter, SessionError};

/// What an agent is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agent {
    /// It does what it is asked for.
    Good,
    /// As `Good`, but its guest never powers off.
    Stubborn,
    /// As `Good`, but its entrypoint ends at once, with the code 3.
    Brief,
    /// It reads, and answers nothing.
    Silent,
    /// It answers what it should, after five seconds.
    Slow,
    /// It sends what is no protocol of ours.
    Babbling,
    /// It answers what nobody has asked for.
    Lying,
    /// It hangs up at once.
    Gone,
}

/// Within this time the host has what was sent.
pub(super) const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// All whose answers are no good.
pub(super) const BAD: [Agent; 4] = [Agent::Silent, Agent::Babbling, Agent::Lying, Agent::Gone];

/// Since when an agent is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Boot,
    /// It is good until it has started an entrypoint: no container comes up without that.
    Start,
}

/// Plays the agent at its end of the channel.
pub(super) async fn play(agent: Agent, since: Since, stream: UnixStream, events: UnboundedSender<VmEvent>) {
    let (mut raw, stream) = twice(stream);
    if since == Since::Boot && !speaks(agent) {
        drop(stream);
        return end(agent, &mut raw).await;
    }
    let started = Arc::new(Notify::new());
    let probes = Arc::new(AtomicUsize::new(0));
    let mut connection = yamux::Connection::new(stream.compat(), yamux::Config::default(), yamux::Mode::Server);
    loop {
        tokio::select! {
            inbound = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)) => match inbound {
                Some(Ok(stream)) => {
                    let around = (events.clone(), started.clone(), probes.clone());
                    tokio::spawn(answer(agent, since, stream, around));
                }
                _ => return,
            },
            () = started.notified() => if !speaks(agent) {
                drop(connection);
                return end(agent, &mut raw).await;
            },
        }
    }
}

/// Whether it speaks our protocol at all.
fn speaks(agent: Agent) -> bool {
    !matches!(agent, Agent::Babbling | Agent::Gone)
}

/// What one does that does not, with the channel.
async fn end(agent: Agent, raw: &mut UnixStream) {
    match agent {
        Agent::Babbling => while raw.write_all(&[0x5a; 4096]).await.is_ok() {},
        // The other handles of the same socket may still be open.
        _ => drop(raw.shutdown().await),
    }
}

/// Two handles of one stream.
fn twice(stream: UnixStream) -> (UnixStream, UnixStream) {
    let one = stream.into_std().expect("a stream");
    let other = one.try_clone().expect("a descriptor");
    let back = |stream| UnixStream::from_std(stream).expect("a runtime");
    (back(one), back(other))
}

async fn answer(
    agent: Agent,
    since: Since,
    stream: yamux::Stream,
    (events, started, probes): (UnboundedSender<VmEvent>, Arc<Notify>, Arc<AtomicUsize>),
) {
    let (read, write) = tokio::io::split(stream.compat());
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let Ok(Some(frame)) = reader.next().await else { return };
    let request: Request = frame.parse().expect("a request");
    let starts = matches!(request, Request::Configure(_) | Request::Run(_));
    let agent = match agent {
        _ if starts && since == Since::Start && BAD.contains(&agent) => Agent::Good,
        agent => agent,
    };
    match agent {
        Agent::Silent => std::future::pending().await,
        Agent::Slow => tokio::time::sleep(Duration::from_secs(5)).await,
        _ => {}
    }
    if let (Request::Exec(process), false) = (&request, BAD.contains(&agent))
        && let Some(("probe", script)) = process.args.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        let nth = probes.fetch_add(1, Ordering::Relaxed).min(script.len() - 1);
        let _ = probe(&script[nth], reader, writer).await;
        return std::future::pending().await;
    }
    let reply = match (agent, &request) {
        // Nobody asks a process for a process, and nothing else for one.
        (
            Agent::Lying,
            Request::Exec(_)
            | Request::ExecSession { .. }
            | Request::ContainerSession { .. }
            | Request::Dial { .. }
            | Request::Transfer(_)
            | Request::Run(_),
        ) => Reply::Done,
        (Agent::Lying, _) => Reply::Started { pid: 9 },
        _ => honest(&request),
    };
    let _ = writer.send(&Frame::message(&reply)).await;
    match (agent, &request) {
        (Agent::Brief, Request::Run(_)) => {
            let _ = writer.send(&Frame::message(&Reply::Exited(ExitStatus::Code(3)))).await;
            tokio::time::sleep(ON_ITS_WAY).await;
            let _ = events.send(VmEvent::Exited(ExitReason::GuestShutdown));
        }
        (_, Request::Run(_)) => {
            tokio::time::sleep(ON_ITS_WAY).await;
            started.notify_one();
        }
        (Agent::Good | Agent::Slow, Request::Shutdown { .. }) => {
            let _ = events.send(VmEvent::Exited(ExitReason::GuestShutdown));
        }
        _ => {}
    }
    std::future::pending::<()>().await;
}

type Reader = FrameReader<tokio::io::ReadHalf<ByteStream>>;
type Writer = FrameWriter<tokio::io::WriteHalf<ByteStream>>;

/// A health check that comes to this: an exit code; `missing`, there is no such program; `hang`, until it is killed; `stuck`, also
/// then; `flood`, it writes and writes.
async fn probe(comes_to: &str, mut reader: Reader, mut writer: Writer) -> Result<(), SessionError> {
    if comes_to == "missing" {
        let error = AgentError {
            kind: ErrorKind::CommandNotFound,
            message: "there is no program 'check'".to_owned(),
        };
        return writer.send(&Frame::message(&Reply::Error(error))).await;
    }
    writer.send(&Frame::message(&Reply::Started { pid: 9 })).await?;
    let status = match comes_to {
        "hang" => {
            let killed = Frame::message(&Input::Signal(9));
            while reader.next().await?.is_some_and(|frame| frame != killed) {}
            ExitStatus::Signal(9)
        }
        "stuck" => return std::future::pending().await,
        "flood" => loop {
            writer.send(&Frame::Stderr(vec![b'x'; 4096])).await?;
            // The clock stands still while anybody is busy.
            tokio::time::sleep(Duration::from_millis(10)).await;
        },
        code => {
            writer.send(&Frame::Stdout(b"checked: ".to_vec())).await?;
            writer.send(&Frame::Stderr(code.as_bytes().to_vec())).await?;
            ExitStatus::Code(code.parse().expect("a code"))
        }
    };
    writer.send(&Frame::message(&Reply::Exited(status))).await
}

fn honest(request: &Request) -> Reply {
    match request {
        Request::Configure(_) => Reply::Configured {
            protocol: zmachine_agent_protocol::PROTOCOL_VERSION,
            kernel: "6.12-test".to_owned(),
            phases: Vec::new(),
            warnings: Vec::new(),
        },
        Request::Run(_)
        | Request::Exec(_)
        | Request::ExecSession { .. }
        | Request::ContainerSession { .. }
        | Request::Transfer(_) => Reply::Started { pid: 2 },
        Request::Resume { .. } => Reply::Resumed { pid: 2, lost: 0 },
        Request::WaitSession { .. } => Reply::Exited(ExitStatus::Code(0)),
        Request::Sessions => Reply::Sessions(Vec::new()),
        Request::Processes => Reply::Processes(Vec::new()),
        Request::Container { .. } => Reply::Container(ContainerReply::Done),
        Request::Clock => Reply::Clock {
            monotonic: 1,
            is_thawed_first: true,
        },
        Request::Capacity => Reply::Capacity(Capacity {
            memory_total_bytes: 1,
            memory_available_bytes: 1,
            cpu_busy_ms: 1,
            uptime_ms: 1,
            cpus: 1,
        }),
        Request::Signal { .. }
        | Request::Accept { .. }
        | Request::Dial { .. }
        | Request::Shutdown { .. }
        | Request::Grow { .. }
        | Request::Hold { .. }
        | Request::Connect(_)
        | Request::Disconnect(_)
        | Request::SetTime { .. }
        | Request::Freeze
        | Request::Thaw(_)
        | Request::Rehearse(_)
        | Request::AwaitReady
        | Request::Ping => Reply::Done,
    }
}
