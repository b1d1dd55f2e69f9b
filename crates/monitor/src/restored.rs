//! A machine that goes on from a snapshot instead of booting.
//!
//! The guest runs from the moment that its hypervisor does, but none of its processes: it was saved frozen. This host greets its agent
//! (see `takeover`), tells it who it is now, and takes over what its entrypoint writes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use zmachine_agent_client::clock::{self, GuestClock};
use zmachine_agent_client::session::{AgentStream, Session, SessionError};
use zmachine_agent_client::takeover::{begin_with_thaw, take_over};
use zmachine_agent_protocol::{Frame, Rehearsal, Reply as AgentReply, Request as AgentRequest, Thaw};
use zmachine_hypervisor::{Accel, AgentStream as AgentChannel, Saved as SavedVm};
use zmachine_plan::{ContainerPlan, Plan};
use zmachine_spec::saved::HostMark;
use zmachine_spec::{Class, Failure};
use zmachine_store::log::Source;
use zmachine_store::snapshot::{STATE, Snapshot, memory};
use zmachine_store::template::Templates;
use zmachine_sys::file::{self, FileError};

use super::agent_start::{EntryStart, RootfsEnd};
use super::context::{Monitor, Started, at};
use super::entry;
use super::frozen::Restore;
use super::inbox::{Event, Inbox};
use super::running::Running;
use super::saving::unix_nanos;

/// How long a guest may take to go on as what it is now.
const THAW_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes of the seed for the guest's random numbers.
const SEED: usize = 64;

/// The same, held against this machine.
pub(super) struct Restoring {
    name: String,
    guest_kernel: Option<String>,
    was: Box<Plan>,
    has_entrypoint: bool,
    is_fork: bool,
    /// It is nobody's, and later machines begin from it.
    is_template: bool,
    /// What its guest's clock showed when it was saved. With that its agent takes everything at once.
    monotonic: Option<u64>,
    /// Its agent takes it even before a connection begins.
    is_thawed_first: bool,
    /// The same as it was seen since.
    pub(super) seen: Option<GuestClock>,
    /// Memory that others begin with as well: they find it open here, see `zmachine_store::snapshot::holders`.
    _shared: Option<OwnedFd>,
}

impl Monitor {
    /// Opens what the machine goes on from; what does not fit is refused before anything is started.
    pub(super) fn restoring(&self, restore: Restore, plan: &Plan) -> Result<(Restoring, SavedVm), Failure> {
        let Restore {
            folder,
            memory,
            is_shared,
            is_fork,
        } = restore;
        let snapshot: Snapshot = file::read_json(&folder.join("snapshot.json"))?;
        let kept = snapshot.require_memory()?;
        if let Some(why) = plan.misfit(&snapshot.plan) {
            return Err(Failure::new(
                Class::Unsupported,
                format!("the snapshot does not fit this machine: {why}"),
            )
            .hint("start the machine without it"));
        }
        let host = HostMark::of_this_host(plan.vm().accel == Accel::Kvm);
        if let Some(why) = host.differs_from(&kept.host) {
            let message = format!("the snapshot does not fit this host: {why}");
            return Err(
                Failure::new(Class::Unsupported, message).hint("start the machine anew, or go on where it was saved")
            );
        }
        let path = folder.join(STATE);
        let state = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
        let found = memory::mark(&state).map_err(|e| FileError::io("read", &path, e))?;
        if found != kept.state {
            let message = format!("{} is not what was saved", path.display());
            return Err(Failure::new(Class::Failed, message).hint("the snapshot is damaged: remove it"));
        }
        let shared = is_shared.then(|| memory.try_clone()).transpose()?;
        let (name, guest_kernel) = (snapshot.name(), snapshot.guest_kernel.clone());
        let (has_entrypoint, version) = (kept.has_entrypoint, kept.hypervisor.clone());
        let monotonic = kept.guest_monotonic;
        let is_thawed_first = kept.is_thawed_first && monotonic.is_some();
        let saved = SavedVm {
            state: state.into(),
            memory,
            // What it reads from its state is its own, and not the file's.
            is_private: is_shared || kept.is_memory_in_state,
            version,
        };
        let restoring = Restoring {
            name,
            guest_kernel,
            was: Box::new(snapshot.plan),
            has_entrypoint,
            is_fork,
            is_template: Templates::of(&self.home).has(&folder),
            monotonic,
            is_thawed_first,
            seen: None,
            _shared: shared,
        };
        Ok((restoring, saved))
    }

    /// Lets the guest go on, and takes its entrypoint over.
    pub(super) async fn go_on(
        &mut self,
        restoring: &Restoring,
        plan: &ContainerPlan,
        running: &mut Running,
        TakenOver { session, first }: TakenOver,
        entry: EntryStart,
        inbox: &mut Inbox,
    ) -> Started {
        let EntryStart { mut entry, stream } = entry;
        if let Some(exit) = self.await_owner(&mut entry, inbox).await {
            return Ok(Some(exit));
        }
        let Plan::Container(was) = &*restoring.was else {
            let failure = Failure::new(Class::Unsupported, "a container does not go on from a VM");
            return Err(at("snapshot")(failure));
        };
        let secrets = zmachine_store::secret::read_all(&self.machine.spec.secrets).map_err(at("secrets"))?;
        let identity = plan.identity(was, secrets);
        let has_entrypoint = restoring.has_entrypoint;
        let run = match has_entrypoint {
            false => (!plan.is_idle()).then(|| AgentRequest::Run(plan.process.clone())),
            // Its answer says how much of the output was read, and nobody waits for the way to the rest.
            true if first.is_some() => None,
            // What it wrote before was read by whoever it was: nothing may come between.
            true => Some(AgentRequest::Resume {
                id: None,
                received: u64::MAX,
            }),
        };
        let monotonic_began = restoring.began(running);
        let asked = async {
            if monotonic_began.is_none() {
                // The connection is there, and the guest awake, before it is told what time it is.
                session.ask(&AgentRequest::Ping).await?;
            }
            let mut seed = vec![0; SEED];
            zmachine_sys::file::fill_random(&mut seed)?;
            let thaw = Thaw {
                seed,
                unix_nanos: unix_nanos(),
                monotonic_began,
                identity: Some(Box::new(identity)),
            };
            let mut thawed = match first {
                Some(first) => {
                    let _ = first.thaw.send(thaw);
                    Thawing::First(first.answer)
                }
                None => Thawing::Asked(session.open(&AgentRequest::Thaw(Box::new(thaw))).await?),
            };
            let mut sent = None;
            if monotonic_began.is_none() {
                sent = Some(thawed.answer().await?);
            }
            // Behind each other: the guest becomes idle once.
            let mut run = match &run {
                Some(run) => Some(session.open(run).await?),
                None => None,
            };
            let sent = match sent {
                Some(sent) => sent,
                None => thawed.answer().await?,
            };
            let Some(stream) = &mut run else {
                return Ok((None, sent));
            };
            match stream.reader.reply().await? {
                AgentReply::Started { pid } | AgentReply::Resumed { pid, .. } => Ok((run.map(|run| (run, pid)), sent)),
                _ => Err(SessionError::Unexpected),
            }
        };
        let started = match self
            .during(running, inbox, RootfsEnd::IsMended, THAW_TIMEOUT, asked)
            .await
        {
            Ok(Err(error)) => return Err(self.cut_off(running, error, "guest thaw").await),
            Ok(Ok(started)) => started,
            Err(interrupt) => return self.interrupted(interrupt, "guest thaw"),
        };
        self.phase("guest thaw");
        self.kill.pass("restore: guest goes on");
        self.machine.state.guest_kernel.clone_from(&restoring.guest_kernel);
        let name = &restoring.name;
        let how = match (restoring.is_fork, restoring.is_template) {
            (false, _) => "restored from",
            (true, false) => "forked from",
            (true, true) => "began from the template",
        };
        self.log.note(Source::Monitor, &format!("{how} {name}"));
        if monotonic_began.is_none() || restoring.seen.is_some() {
            // On a busy host an emulated guest may have taken its time to hear of it; and where it was looked at before, this host's own clock
            // may have been set since.
            clock::tell(Some(session.clone()));
        }
        match started {
            (Some(started), _) => drop(stream.send(started)),
            (None, sent) if has_entrypoint => {
                tokio::spawn(resume(session, sent, stream, self.events.clone()));
            }
            (None, _) => {}
        }
        Ok(None)
    }
}

/// Takes over what the entrypoint writes, of which somebody has `received` so many bytes.
async fn resume(session: Session, received: u64, stream: oneshot::Sender<entry::Started>, events: mpsc::Sender<Event>) {
    let resumed = async {
        let mut stream = session.open(&AgentRequest::Resume { id: None, received }).await?;
        match stream.reader.reply().await? {
            AgentReply::Resumed { pid, .. } => Ok((stream, pid)),
            _ => Err(SessionError::Unexpected),
        }
    };
    match resumed.await {
        Ok(resumed) => drop(stream.send(resumed)),
        Err(error) => drop(events.send(Event::EntryEnded(Err(error))).await),
    }
}

/// The session with an agent that was somebody else's.
pub(super) struct TakenOver {
    pub(super) session: Session,
    /// It begins with what the guest is to be.
    pub(super) first: Option<ThawFirst>,
}

/// Where that goes, and where its answer comes from.
pub(super) struct ThawFirst {
    thaw: oneshot::Sender<Thaw>,
    answer: oneshot::Receiver<Frame>,
}

/// A guest that was told what it is to be.
enum Thawing {
    First(oneshot::Receiver<Frame>),
    Asked(AgentStream),
}

impl Thawing {
    /// Waits until it is that. How many bytes of its entrypoint's output somebody has read; 0 where it does not tell.
    async fn answer(&mut self) -> Result<u64, SessionError> {
        let answer = match self {
            Thawing::First(answer) => answer.await.map_err(|_| SessionError::Closed)?.parse()?,
            Thawing::Asked(stream) => stream.reader.reply().await?,
        };
        match answer {
            AgentReply::Thawed { sent } => Ok(sent),
            AgentReply::Done => Ok(0),
            AgentReply::Error(error) => Err(SessionError::Agent(error)),
            _ => Err(SessionError::Unexpected),
        }
    }
}

impl Monitor {
    /// Takes note of a VM that went on: its own init and its agent, if it has one, find out the rest by themselves.
    pub(super) fn went_on(&mut self, restoring: &Restoring) {
        self.machine.state.guest_kernel.clone_from(&restoring.guest_kernel);
        let text = format!("restored from {}", restoring.name);
        self.log.note(Source::Monitor, &text);
        self.kill.pass("restore: guest goes on");
    }
}

impl Restoring {
    /// When its guest's clock showed nothing, in nanoseconds since the epoch.
    fn began(&self, running: &Running) -> Option<u64> {
        match self.seen {
            Some(clock) => Some(clock.began()),
            None => Some(clock::began(running.vm.went_on_at()?, self.monotonic?)),
        }
    }

    /// What its guest will be asked for, if it becomes what the plan says.
    pub(super) fn rehearsal(&self, plan: &Plan) -> Option<Rehearsal> {
        let (Plan::Container(plan), Plan::Container(was)) = (plan, &*self.was) else {
            return None;
        };
        let thaw = Thaw {
            seed: vec![0; SEED],
            unix_nanos: unix_nanos(),
            monotonic_began: self.monotonic,
            identity: Some(Box::new(plan.identity(was, Vec::new()))),
        };
        let process = plan.process.clone();
        Some(Rehearsal { thaw, process })
    }

    /// The session with an agent that was somebody else's.
    pub(super) fn take_over(&self, running: &mut Running) -> Result<TakenOver, (String, Failure)> {
        if !self.is_thawed_first {
            let session = self.session(running)?;
            return Ok(TakenOver { session, first: None });
        }
        let channel = agent_of(running)?;
        let (thaw, told) = oneshot::channel();
        let (answered, answer) = oneshot::channel();
        let session = Session::start(async move {
            let gone = |_| io::Error::from(io::ErrorKind::NotConnected);
            let (channel, thaw) = (channel.connected().await?, told.await.map_err(gone)?);
            begin_with_thaw(channel, &thaw, answered).await
        });
        let first = Some(ThawFirst { thaw, answer });
        Ok(TakenOver { session, first })
    }

    /// The same, before the guest is told anything.
    pub(super) fn session(&self, running: &mut Running) -> Result<Session, (String, Failure)> {
        let channel = agent_of(running)?;
        Ok(Session::start(async { take_over(channel.connected().await?).await }))
    }
}

/// The channel to the agent of a guest that was started.
///
/// # Errors
/// When its hypervisor has none.
pub(super) fn agent_of(running: &mut Running) -> Result<AgentChannel, (String, Failure)> {
    let no_agent = || Failure::new(Class::Failed, "the hypervisor gave no channel to the agent");
    running.vm.take_agent().ok_or_else(no_agent).map_err(at("hypervisor"))
}
