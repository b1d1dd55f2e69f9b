//! Every command of a running container's monitor, with guests of every kind: good, silent, slow, babbling, lying, gone, and
//! paused. Each command is answered within its deadline, and the machine is always ended by a kill. The hypervisor is a fake;
//! the clock is tokio's and stands still but when everybody waits, so minutes of patience take no time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use zmachine_agent_protocol::{
    Capacity, ExitStatus, Frame, Process, Reply as AgentReply, Request as AgentRequest, Transfer,
};
use zmachine_hypervisor::fake::{Fake, Guest};
use zmachine_hypervisor::{Driver, ExitReason, Resources, RunDir, VmEvent};
use zmachine_network::Networks;
use zmachine_plan::{ContainerPlan, Plan, VolumeUse};
use zmachine_spec::control::{Reconnect, Reply, Request};
use zmachine_spec::volume::{Fs, NewVolume};
use zmachine_spec::{Class, Exit, Home, LogLimits, MachineSpec, Phase, State};
use zmachine_store::catalog::Machine;
use zmachine_store::journal::Journal;
use zmachine_store::killpoint::Killpoints;
use zmachine_store::log::LogWriter;
use zmachine_store::volume::Volumes;

use super::backoff::Backoff;
use super::context::{AbortOnDrop, Monitor, Outcome};
use super::enospc::Enospc;
use super::inbox::Inbox;
use super::launch::Running;
use super::output::{ReportPipe, SharedLog};
use super::relays::Relays;
use super::rootfs_memory::RootfsWatch;
use super::server;
use super::session::{FrameReader, FrameWriter, Session};
use super::streams::{Attachable, Shared};
use super::{console, entry};

const ID: &str = "5c28ffaff6fe";

/// Longer than any deadline of a monitor, and far longer than any test: the clock jumps.
const LIMIT: Duration = Duration::from_secs(1200);

/// Within this time a kill has ended any machine.
const KILLED: Duration = Duration::from_secs(60);

/// What an agent is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Good,
    Silent,
    Slow,
    Babbling,
    Lying,
    Gone,
}

const AGENTS: [Agent; 6] = [
    Agent::Good,
    Agent::Silent,
    Agent::Slow,
    Agent::Babbling,
    Agent::Lying,
    Agent::Gone,
];

/// A monitor of a container that runs, its guest, and its control socket.
struct Rig {
    _dir: tempfile::TempDir,
    home: Home,
    guest: FakeGuest,
    outcome: tokio::task::JoinHandle<Outcome>,
    _tasks: Vec<AbortOnDrop>,
}

/// What the test keeps of the fake's guest.
struct FakeGuest {
    events: tokio::sync::mpsc::UnboundedSender<VmEvent>,
    hangs: Arc<std::sync::atomic::AtomicBool>,
}

impl Rig {
    /// A container that runs, whose agent is as told.
    async fn new(agent: Agent) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        let machine = machine(&home);
        let plan = plan(&home);
        let fake = Fake::default();
        let run = RunDir::new(home.run_dir(ID));
        let mut vm = fake.launch(&plan.vm, Resources::default(), &run).await.unwrap();
        let Guest {
            events: vm_events,
            hangs,
            agent: stream,
            ..
        } = fake.guest().unwrap();
        let session = Session::start(vm.take_agent().unwrap().connected());
        let mut tasks = vec![AbortOnDrop(tokio::spawn(play(agent, stream, vm_events.clone())))];
        let (events, mut inbox) = Inbox::new().unwrap();
        let (report, _) = std::io::pipe().map(|(reader, writer)| (writer, drop(reader))).unwrap();
        let mut monitor = Monitor {
            journal: Journal::open(&machine.dir).unwrap(),
            networks: Networks::open(home.data()).unwrap(),
            log: SharedLog::new(LogWriter::open(&machine.dir, LogLimits::default()).unwrap()),
            home: home.clone(),
            machine,
            plan,
            kill: Killpoints::new(None),
            wait_for_owner: false,
            report: ReportPipe::new(report.into()),
            events: events.clone(),
            paused: watch::Sender::new(false),
            changing: None,
            watch: RootfsWatch::new(),
            forwarder: None,
            recorder: None,
            backoff: Backoff::default(),
            volumes: Vec::new(),
            enospc: Enospc::default(),
            relays: Relays::default(),
            sandbox: None,
            waiters: Vec::new(),
        };
        std::fs::create_dir_all(home.run_dir(ID)).unwrap();
        let listener = tokio::net::UnixListener::bind(home.control_socket(ID)).unwrap();
        let shared = Shared {
            attachable: Attachable::Entrypoint(entry::new().0),
            console: console::new().0,
            session: watch::channel(Some(session.clone())).1,
            events,
            exec_base: Arc::new(process()),
            execs: super::execs::Execs::default(),
            relays: Relays::default(),
            paused: monitor.paused.subscribe(),
        };
        tasks.push(AbortOnDrop(tokio::spawn(server::serve(listener, shared))));
        let outcome = tokio::spawn(async move {
            let mut running = Running::of(vm, session);
            let outcome = monitor.follow(&mut running, &mut inbox).await;
            let exit = outcome.as_ref().map_or(Exit::Killed, |exit| *exit);
            for waiter in monitor.waiters.drain(..) {
                let _ = waiter.send(Reply::Ended(Ok(exit)));
            }
            outcome
        });
        let rig = Rig {
            _dir: dir,
            home,
            guest: FakeGuest {
                events: vm_events,
                hangs,
            },
            outcome,
            _tasks: tasks,
        };
        assert!(
            matches!(rig.ask(&Request::Resume).await, Some(Reply::Done)),
            "{agent:?}"
        );
        rig
    }

    /// What a client is answered; `None` when it gets no answer, but is let go.
    async fn ask(&self, request: &Request) -> Option<Reply> {
        let frame = self.first_frame(request).await?;
        frame.parse().ok()
    }

    async fn first_frame(&self, request: &Request) -> Option<Frame> {
        let stream = UnixStream::connect(self.home.control_socket(ID)).await.unwrap();
        let (read, write) = stream.into_split();
        let mut writer = FrameWriter(write);
        writer.send(&Frame::message(request)).await.unwrap();
        let mut reader = FrameReader::new(read);
        let answer = tokio::time::timeout(LIMIT, reader.next());
        answer.await.expect("an answer within every deadline").unwrap()
    }

    /// Kills the machine, and returns how it ended.
    async fn kill(self) -> Outcome {
        let answered = tokio::time::timeout(KILLED, self.ask(&Request::Kill)).await;
        let reply = answered.expect("a kill ends any machine");
        assert!(matches!(reply, Some(Reply::Ended(_))), "{reply:?}");
        tokio::time::timeout(KILLED, self.outcome).await.unwrap().unwrap()
    }
}

fn process() -> Process {
    serde_json::from_value(serde_json::json!({
        "args": ["true"], "env": [], "cwd": null, "user": null, "terminal": null, "stdin": false, "pid_namespace": false,
    }))
    .unwrap()
}

/// A machine on disk that is about to run.
fn machine(home: &Home) -> Machine {
    let dir = home.machine(ID);
    std::fs::create_dir_all(&dir).unwrap();
    let mut state = State::created(Timestamp::UNIX_EPOCH, vec![]);
    state.phase = Phase::Starting;
    Machine {
        id: ID.to_owned(),
        dir,
        spec: MachineSpec::new("web", "/x.fl"),
        state,
    }
}

/// A container with a volume that it writes to, in one network that has nothing on the host.
fn plan(home: &Home) -> ContainerPlan {
    let golden = serde_json::from_str(include_str!("../../plan/tests/golden/plan-v1.json")).unwrap();
    let Plan::Container(mut plan) = golden else {
        panic!("the golden plan is a container's")
    };
    let new = NewVolume {
        name: "data".into(),
        size_bytes: 64 << 20,
        fs: Fs::Ext4,
        anonymous_of: None,
    };
    Volumes::new(home).create(&new).unwrap();
    plan.volumes = vec![VolumeUse {
        name: "data".into(),
        read_only: false,
    }];
    let mount = serde_json::json!({
        "serial": zmachine_spec::volume::serial("data"), "fstype": "ext4", "target": "/data", "read_only": false,
    });
    plan.boot.mounts = vec![serde_json::from_value(mount).unwrap()];
    let attachment = serde_json::json!({
        "network": "n", "machine": ID, "interface": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "tap": "zm0",
        "addresses": [], "gateway4": "10.9.0.1", "gateway6": null, "routes": [], "nameservers": [], "search": [],
        "publish": [],
    });
    plan.attachments = vec![serde_json::from_value(attachment).unwrap()];
    *plan
}

/// The guest's agent.
async fn play(agent: Agent, mut stream: UnixStream, events: tokio::sync::mpsc::UnboundedSender<VmEvent>) {
    match agent {
        Agent::Gone => return,
        Agent::Babbling => {
            while stream.write_all(&[0x5a; 4096]).await.is_ok() {}
            return;
        }
        _ => {}
    }
    let mut connection = yamux::Connection::new(stream.compat(), yamux::Config::default(), yamux::Mode::Server);
    while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let events = events.clone();
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(stream.compat());
            let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter(write));
            let Ok(Some(frame)) = reader.next().await else { return };
            let request: AgentRequest = frame.parse().unwrap();
            match agent {
                Agent::Silent => std::future::pending().await,
                Agent::Slow => tokio::time::sleep(Duration::from_secs(5)).await,
                _ => {}
            }
            let reply = match (agent, &request) {
                // Nobody asks for that.
                (Agent::Lying, AgentRequest::Exec(_) | AgentRequest::Transfer(_)) => AgentReply::Done,
                (Agent::Lying, _) => AgentReply::Exited(ExitStatus::Code(7)),
                (_, AgentRequest::Exec(_) | AgentRequest::Transfer(_)) => AgentReply::Started { pid: 2 },
                (_, AgentRequest::Capacity) => AgentReply::Capacity(Capacity {
                    memory_total_bytes: 1,
                    memory_available_bytes: 1,
                    cpu_busy_ms: 1,
                    uptime_ms: 1,
                    cpus: 1,
                }),
                _ => AgentReply::Done,
            };
            let _ = writer.send(&Frame::message(&reply)).await;
            if matches!(request, AgentRequest::Shutdown { .. }) && agent != Agent::Lying {
                let _ = events.send(VmEvent::Exited(ExitReason::GuestShutdown));
            }
            std::future::pending::<()>().await;
        });
    }
}

/// The commands that ask the guest for something.
fn of_the_guest() -> Vec<Request> {
    vec![
        Request::Signal(1),
        Request::Exec(process()),
        Request::Transfer(Transfer::Send { path: "/x".into() }),
        Request::Capacity,
        Request::GrowVolume {
            name: "data".into(),
            size_bytes: 96 << 20,
        },
        Request::Reconnect(Box::new(Reconnect {
            attachments: Vec::new(),
            networks: Vec::new(),
        })),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

#[test]
fn whatever_the_guest_is_like_every_command_is_answered_and_a_kill_ends_it() {
    runtime().block_on(async {
        for agent in AGENTS {
            for request in of_the_guest() {
                let rig = Rig::new(agent).await;
                let frame = rig.first_frame(&request).await;
                let frame = frame.unwrap_or_else(|| panic!("{agent:?} {request:?}: no answer"));
                let is_good = matches!(
                    (frame.parse::<Reply>(), frame.parse::<AgentReply>()),
                    (Ok(Reply::Done | Reply::Capacity(_)), _) | (_, Ok(AgentReply::Started { .. }))
                );
                let is_bearable = match (agent, &request) {
                    (Agent::Good, _) => is_good,
                    // It is not waited for so long.
                    (Agent::Slow, Request::Capacity) => !is_good,
                    (Agent::Slow, _) => is_good,
                    // What a stream carries is the client's to judge; a reply of the agent's is as good as any other.
                    (Agent::Lying, _) => true,
                    _ => !is_good,
                };
                assert!(is_bearable, "{agent:?} {request:?}: {frame:?}");
                assert!(
                    matches!(rig.ask(&Request::Pause).await, Some(Reply::Done)),
                    "{agent:?} {request:?}"
                );
                assert!(
                    matches!(rig.ask(&Request::Resume).await, Some(Reply::Done)),
                    "{agent:?} {request:?}"
                );
                assert!(rig.kill().await.is_ok(), "{agent:?} {request:?}");
            }
        }
    });
}

#[test]
fn a_paused_machine_refuses_at_once_what_its_guest_would_have_to_do() {
    runtime().block_on(async {
        for request in of_the_guest() {
            let rig = Rig::new(Agent::Silent).await;
            assert!(matches!(rig.ask(&Request::Pause).await, Some(Reply::Done)));
            let begun = tokio::time::Instant::now();
            let frame = rig.first_frame(&request).await.expect("an answer");
            let text = match (frame.parse::<Reply>(), frame.parse::<AgentReply>()) {
                (Ok(Reply::Failed(failure)), _) => {
                    assert_eq!(failure.class, Class::Conflict, "{request:?}");
                    failure.to_string()
                }
                (_, Ok(AgentReply::Error(error))) => error.message,
                other => panic!("{request:?}: {other:?}"),
            };
            assert!(text.contains("paused"), "{request:?}: {text}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{request:?}");
            assert!(rig.kill().await.is_ok());
        }
    });
}

#[test]
fn whoever_paused_or_resumed_a_machine_finds_it_so() {
    runtime().block_on(async {
        let rig = Rig::new(Agent::Good).await;
        let phase = || {
            zmachine_store::catalog::load_state(&rig.home.machine(ID))
                .unwrap()
                .phase
        };
        for _ in 0..20 {
            assert!(matches!(rig.ask(&Request::Pause).await, Some(Reply::Done)));
            assert_eq!(phase(), Phase::Paused);
            assert!(matches!(rig.ask(&Request::Resume).await, Some(Reply::Done)));
            assert_eq!(phase(), Phase::Running);
        }
    });
}

#[test]
fn a_stop_ends_every_guest_in_its_time_and_a_paused_one_too() {
    runtime().block_on(async {
        for agent in AGENTS {
            for pauses in [false, true] {
                let rig = Rig::new(agent).await;
                if pauses {
                    assert!(matches!(rig.ask(&Request::Pause).await, Some(Reply::Done)));
                }
                let stopped = rig.ask(&Request::Stop { grace_ms: Some(2000) }).await;
                assert!(matches!(stopped, Some(Reply::Ended(Ok(_)))), "{agent:?}: {stopped:?}");
                let outcome = rig.outcome.await.unwrap().unwrap();
                let is_orderly = matches!(agent, Agent::Good | Agent::Slow);
                assert_eq!(outcome == Exit::PoweredOff, is_orderly, "{agent:?}: {outcome:?}");
            }
        }
    });
}

#[test]
fn a_hypervisor_that_hangs_holds_up_neither_a_command_nor_a_kill() {
    runtime().block_on(async {
        let commands = [
            Request::Pause,
            Request::Resume,
            Request::GrowVolume {
                name: "data".into(),
                size_bytes: 96 << 20,
            },
        ];
        for request in commands {
            let rig = Rig::new(Agent::Good).await;
            rig.guest.hangs.store(true, Ordering::Relaxed);
            let reply = rig.ask(&request).await;
            assert!(matches!(reply, Some(Reply::Failed(_))), "{request:?}: {reply:?}");
            // Not even its process goes: the monitor ends all the same.
            assert_eq!(rig.kill().await.unwrap(), Exit::Killed, "{request:?}");
        }
        // A kill does not wait for the command before it.
        let rig = Rig::new(Agent::Good).await;
        rig.guest.hangs.store(true, Ordering::Relaxed);
        let begun = tokio::time::Instant::now();
        let (paused, killed) = tokio::join!(rig.ask(&Request::Pause), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            rig.ask(&Request::Kill).await
        });
        assert!(matches!(paused, Some(Reply::Failed(_))), "{paused:?}");
        assert!(matches!(killed, Some(Reply::Ended(_))), "{killed:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    });
}

#[test]
fn a_guest_that_ends_meanwhile_ends_what_waits_for_it() {
    runtime().block_on(async {
        let rig = Rig::new(Agent::Silent).await;
        let (waited, signalled, ()) = tokio::join!(rig.ask(&Request::Wait), rig.ask(&Request::Signal(1)), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            rig.guest
                .events
                .send(VmEvent::Exited(ExitReason::GuestShutdown))
                .unwrap();
        });
        assert!(matches!(waited, Some(Reply::Ended(Ok(Exit::PoweredOff)))), "{waited:?}");
        assert!(matches!(signalled, Some(Reply::Failed(_))), "{signalled:?}");
    });
}
