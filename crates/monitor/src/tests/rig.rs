//! A monitor that runs a machine, its guest, and a client at its control socket.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use zmachine_agent_client::session::{FrameReader, FrameWriter};
use zmachine_agent_protocol::{Frame, Process};
use zmachine_hypervisor::fake::{Fake, Guest};
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_network::Networks;
use zmachine_plan::{ContainerPlan, Plan, VmPlan, VolumeUse};
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::restart::RestartPolicy;
use zmachine_spec::volume::{Content, Fs, NewVolume};
use zmachine_spec::{Failure, Health, HealthCheck, Home, JailChoice, Kind, LogLimits, MachineSpec, Phase, State};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::journal::Journal;
use zmachine_store::log::LogWriter;
use zmachine_store::volume::Volumes;
use zmachine_sys::lock::FileLock;

use super::FORKS;
use super::agent::{Agent, Since, play};
use crate::context::{AbortOnDrop, Monitor};
use crate::inbox::{Event, Inbox};
use crate::output::{ReportPipe, SharedLog};

pub(super) const ID: &str = "5c28ffaff6fe";

/// The volume that the machine writes to besides what it boots from.
pub(super) const VOLUME: &str = "data";

/// Longer than any deadline of a monitor, and far longer than any test: the clock jumps.
pub(super) const LIMIT: Duration = Duration::from_secs(1200);

/// Within this time a kill has ended any machine.
const KILLED: Duration = Duration::from_secs(60);

pub(super) const KINDS: [Kind; 2] = [Kind::Container, Kind::Vm];

/// How a rig is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) agent: Agent,
    pub(super) since: Since,
    pub(super) restart: RestartPolicy,
    /// The hypervisor does not come up.
    pub(super) hangs_at_launch: bool,
    pub(super) probes: Option<Probes>,
}

/// Health checks: every 10 s, or 2 s in the start period, for at most 3 s; two failures are too many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probes {
    /// What comes of each, see `agent::probe`; of all that follow, what came of the last.
    pub(super) script: &'static [&'static str],
    pub(super) start_period_s: u64,
}

impl Probes {
    fn check(self) -> HealthCheck {
        let words = ["probe"].iter().chain(self.script);
        HealthCheck {
            command: words.map(|word| (*word).to_owned()).collect(),
            interval_ms: 10_000,
            timeout_ms: 3_000,
            start_period_ms: self.start_period_s * 1000,
            start_interval_ms: 2_000,
            retries: 2,
        }
    }
}

impl Wanted {
    pub(super) fn new(kind: Kind, agent: Agent) -> Wanted {
        Wanted {
            kind,
            agent,
            since: Since::Boot,
            restart: RestartPolicy::No,
            hangs_at_launch: false,
            probes: None,
        }
    }

    /// A machine whose agent does what it is asked for, with health checks that come to this.
    pub(super) fn probed(kind: Kind, script: &'static [&'static str]) -> Wanted {
        let probes = Probes {
            script,
            start_period_s: 0,
        };
        Wanted {
            probes: Some(probes),
            ..Wanted::new(kind, Agent::Good)
        }
    }

    /// A container whose agent is so from when it has started the entrypoint.
    pub(super) fn turning(agent: Agent) -> Wanted {
        Wanted {
            since: Since::Start,
            ..Wanted::new(Kind::Container, agent)
        }
    }
}

/// A monitor of one machine.
pub(super) struct Rig {
    _dir: tempfile::TempDir,
    pub(super) home: Home,
    pub(super) wanted: Wanted,
    guest: Arc<Mutex<Option<Controls>>>,
    /// To the monitor's loop, as its other tasks have it.
    pub(super) events: mpsc::Sender<Event>,
    done: JoinHandle<Result<(), Failure>>,
    _player: AbortOnDrop,
}

/// What the test does with a guest.
#[derive(Clone)]
pub(super) struct Controls {
    pub(super) events: mpsc::UnboundedSender<VmEvent>,
    pub(super) orders: Arc<Mutex<Vec<&'static str>>>,
    hangs: Arc<AtomicBool>,
}

impl Rig {
    /// A monitor that starts its machine: the hypervisor is being launched.
    pub(super) async fn start(wanted: Wanted) -> Rig {
        // In memory where that can be had: what is slow here is to have files on a disk for sure.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        let (machine, plan) = (machine(&home, wanted), plan(&home, wanted));
        catalog::write_networks(&machine.dir, &machine.spec, &plan).unwrap();
        catalog::save_state(&machine.dir, &machine.state).unwrap();
        let fake = Fake::default();
        if wanted.hangs_at_launch {
            fake.hang_at_launch();
        }
        let (events, mut inbox) = Inbox::new().unwrap();
        let (_, report) = std::io::pipe().unwrap();
        let lock = FileLock::try_exclusive(&machine.lock_path()).unwrap().unwrap();
        let mut monitor = Monitor::new(
            home.clone(),
            Machine::clone(&machine),
            Journal::open(&machine.dir).unwrap(),
            Networks::open(home.data()).unwrap(),
            SharedLog::new(LogWriter::open(&machine.dir, LogLimits::default()).unwrap()),
            ReportPipe::new(report.into()),
            events.clone(),
        );
        let driver = fake.clone();
        monitor.drivers = Box::new(move |_| Box::new(driver.clone()));
        let guest = Arc::new(Mutex::new(None));
        let player = AbortOnDrop(tokio::spawn(play_guests(fake.clone(), wanted, guest.clone())));
        let done = tokio::spawn(async move { monitor.runs(lock, plan, &mut inbox).await });
        patiently(LIMIT, async {
            while fake.launches() == 0 && !done.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        Rig {
            _dir: dir,
            home,
            wanted,
            guest,
            events,
            done,
            _player: player,
        }
    }

    /// A machine whose guest runs; in a VM, with the agent that it has.
    pub(super) async fn running(wanted: Wanted) -> Rig {
        let rig = Rig::start(wanted).await;
        rig.until(&Phase::Running).await;
        if wanted.kind == Kind::Vm {
            rig.agent_comes().await;
        }
        rig
    }

    /// The agent of a VM opens its port. One that answers as it should is known when this returns.
    pub(super) async fn agent_comes(&self) {
        let events = self.guest().events;
        events.send(VmEvent::AgentPort { is_open: true }).unwrap();
        if matches!(
            self.wanted.agent,
            Agent::Good | Agent::Stubborn | Agent::Slow | Agent::Brief
        ) {
            while !self.log().contains("the guest's agent is here") {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// The guest that was launched last.
    pub(super) fn guest(&self) -> Controls {
        self.guest.lock().unwrap().clone().expect("a guest was launched")
    }

    /// The hypervisor takes orders from here on, and does nothing.
    pub(super) fn hang(&self) {
        self.guest().hangs.store(true, Ordering::Relaxed);
    }

    /// The guest is gone.
    pub(super) fn exit(&self, reason: ExitReason) {
        self.guest().events.send(VmEvent::Exited(reason)).unwrap();
    }

    pub(super) fn phase(&self) -> Phase {
        self.state().phase
    }

    pub(super) fn state(&self) -> State {
        catalog::load_state(&self.home.machine(ID)).unwrap()
    }

    /// What its health checks say, as everybody reads it.
    pub(super) fn health(&self) -> Health {
        let machine = Machine::load(&self.home, ID).unwrap();
        machine.health().expect("a machine with health checks")
    }

    /// What stands in the machine's log.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.home.machine(ID).join("logs/machine.log")).unwrap()
    }

    /// Waits until the machine is in a phase of this word.
    pub(super) async fn until(&self, phase: &Phase) {
        let waiting = async {
            while self.phase().word() != phase.word() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(Duration::from_secs(30), waiting).await;
        reached.unwrap_or_else(|_| panic!("{:?}: {} instead of {}", self.wanted, self.phase().word(), phase.word()));
    }

    /// What a client is answered; `None` when it is let go without a word.
    pub(super) async fn ask(&self, request: &Request) -> Option<Reply> {
        let frame = self.first_frame(request).await?;
        frame.parse().ok()
    }

    pub(super) async fn first_frame(&self, request: &Request) -> Option<Frame> {
        let answer = timeout(LIMIT, first_frame(self.home.clone(), request.clone()));
        answer.await.expect("an answer within every deadline")
    }

    /// A client that waits beside the test.
    pub(super) fn asking(&self, request: &Request) -> JoinHandle<Option<Frame>> {
        tokio::spawn(first_frame(self.home.clone(), request.clone()))
    }

    /// Expects that this is done.
    pub(super) async fn does(&self, request: &Request) {
        let reply = self.ask(request).await;
        assert!(
            matches!(reply, Some(Reply::Done)),
            "{:?} {request:?}: {reply:?}",
            self.wanted
        );
    }

    /// Kills the machine, and returns the phase it ended in.
    pub(super) async fn kill(self) -> Phase {
        let killed = timeout(KILLED, self.ask(&Request::Kill)).await;
        let reply = killed.unwrap_or_else(|_| panic!("{:?}: a kill ends any machine", self.wanted));
        assert!(matches!(reply, Some(Reply::Ended(_))), "{:?}: {reply:?}", self.wanted);
        self.end().await
    }

    /// Waits for the monitor to be done: the phase the machine ended in. Nobody listens for it any more.
    pub(super) async fn end(self) -> Phase {
        let Rig {
            home,
            done,
            wanted,
            _dir,
            ..
        } = self;
        let ended = patiently(LIMIT, done).await;
        let _ = ended
            .unwrap_or_else(|| panic!("{wanted:?}: the monitor is done in the end"))
            .unwrap();
        assert!(UnixStream::connect(home.control_socket(ID)).await.is_err());
        catalog::load_state(&home.machine(ID)).unwrap().phase
    }
}

/// Waits for at most `limit`, a little at a time: the clock must not jump over what takes time indeed, such as a process of this
/// host.
async fn patiently<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let end = Instant::now() + limit;
    tokio::pin!(work);
    while Instant::now() < end {
        if let Ok(done) = timeout(Duration::from_millis(10), &mut work).await {
            return Some(done);
        }
    }
    None
}

async fn first_frame(home: Home, request: Request) -> Option<Frame> {
    let stream = UnixStream::connect(home.control_socket(ID)).await.unwrap();
    let (read, write) = stream.into_split();
    let mut writer = FrameWriter::new(write);
    writer.send(&Frame::message(&request)).await.unwrap();
    FrameReader::new(read).next().await.unwrap()
}

/// Plays each guest that is launched, until the next one is.
async fn play_guests(fake: Fake, wanted: Wanted, slot: Arc<Mutex<Option<Controls>>>) {
    let mut playing: Option<[AbortOnDrop; 2]> = None;
    loop {
        let Guest {
            events,
            orders,
            hangs,
            agent,
            mut console,
            ..
        } = fake.launched().await;
        drop(playing.take());
        let played = play(wanted.agent, wanted.since, agent, events.clone());
        // It says nothing, and is at its end with the machine.
        let listening = async move { while console.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {} };
        playing = Some([AbortOnDrop(tokio::spawn(played)), AbortOnDrop(tokio::spawn(listening))]);
        *slot.lock().unwrap() = Some(Controls { events, orders, hangs });
    }
}

pub(super) fn process() -> Process {
    serde_json::from_value(serde_json::json!({
        "args": ["true"], "env": [], "cwd": null, "user": null, "terminal": null, "stdin": false, "pid_namespace": false,
    }))
    .unwrap()
}

/// A machine on disk that was just created.
fn machine(home: &Home, wanted: Wanted) -> Machine {
    let dir = home.machine(ID);
    std::fs::create_dir_all(&dir).unwrap();
    let mut spec = MachineSpec::new("web", "/x.fl");
    spec.jail = JailChoice::Off;
    spec.restart = wanted.restart;
    let mut state = State::created(Timestamp::UNIX_EPOCH, vec![]);
    state.kind = wanted.kind;
    let id = ID.to_owned();
    Machine { id, dir, spec, state }
}

/// A machine with a volume that it writes to, in one network that has nothing on this host.
fn plan(home: &Home, wanted: Wanted) -> Plan {
    let health = wanted.probes.map(Probes::check);
    let attachment = serde_json::json!({
        "network": "n", "machine": ID, "interface": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "tap": "zm0",
        "addresses": [], "gateway4": "10.9.0.1", "gateway6": null, "routes": [], "nameservers": [], "search": [],
        "publish": [],
    });
    let attachments = vec![serde_json::from_value(attachment).unwrap()];
    let golden = serde_json::from_str(include_str!("../../../plan/tests/golden/plan-v1.json")).unwrap();
    let Plan::Container(mut container) = golden else {
        panic!("the golden plan is a container's")
    };
    volume(home, VOLUME, Content::Formatted);
    match wanted.kind {
        Kind::Container => {
            let mount = serde_json::json!({
                "serial": zmachine_spec::volume::serial(VOLUME), "fstype": "ext4", "target": "/data", "read_only": false,
            });
            container.boot.mounts = vec![serde_json::from_value(mount).unwrap()];
            container.vm.disks.clear();
            container.volumes = vec![used(VOLUME)];
            Plan::Container(Box::new(ContainerPlan {
                attachments,
                health,
                upper_bytes: None,
                ..*container
            }))
        }
        Kind::Vm => {
            let digest = "d".to_owned();
            volume(home, "boot", Content::Installed { digest });
            let vm = serde_json::json!({
                "version": 1, "kind": "vm", "id": ID, "vm": container.vm, "appliance": null,
                "install": {
                    "source": {"host": {"path": "/x"}}, "digest": "d", "bytes": 1, "reinstall": false,
                    "firmware_variables": null,
                },
                "volumes": [used("boot"), used(VOLUME)],
                "seed": {
                    "path": home.machine(ID).join("seed.img"), "instance_id": ID, "hostname": "web", "interfaces": [],
                    "routes": [], "nameservers": [], "search": [], "ssh_keys": [], "env": [], "command": [],
                    "user_data": null,
                },
                "attachments": attachments, "stop_grace_ms": 90_000, "warnings": [],
            });
            let mut plan: VmPlan = serde_json::from_value(vm).unwrap();
            plan.vm.disks.clear();
            plan.health = health;
            Plan::Vm(Box::new(plan))
        }
    }
}

fn used(volume: &str) -> VolumeUse {
    VolumeUse {
        name: volume.to_owned(),
        read_only: false,
    }
}

fn volume(home: &Home, name: &str, content: Content) {
    let new = NewVolume {
        name: name.to_owned(),
        size_bytes: 64 << 20,
        fs: Fs::Ext4,
        anonymous_of: None,
        labels: std::collections::BTreeMap::new(),
    };
    let volumes = Volumes::new(home);
    volumes.create(&new).unwrap();
    volumes.hold(name, false, ID).unwrap().set_content(content).unwrap();
}

/// Runs a test on a clock that jumps to whatever is due next when everybody waits.
pub(super) fn run(test: impl Future<Output = ()>) {
    let _others = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(test);
}
