//! The monitor's life: from the lock to the last line of its state.

use jiff::Timestamp;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use zmachine_hypervisor::ExitReason;
use zmachine_network::Networks;
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::ProcessId;

use super::cell::Cell;
use super::inbox::{Event, Inbox};
use super::networks::Change;
use super::restart::{Asked, Row};
use super::rootfs_watch::RootfsWatch;
use super::session::SessionError;
use super::space::Space;
use super::uplink::Relays;
use super::{MonitorArgs, ReportPipe, SharedLog};
use crate::attempt::{self, Recorder};
use crate::catalog::{self, Machine};
use crate::control::{Reply, Report};
use crate::events;
use crate::failure::{Class, Failure};
use crate::home::Home;
use crate::journal::{Journal, Resource};
use crate::killpoint::Killpoints;
use crate::leftovers;
use crate::log::{Forwarder, LogWriter, Source};
use crate::plan::Plan;
use crate::state::{Exit, Phase};
use crate::volume::{Held, Volumes};

/// How a run ended: with an exit, or at a step with a failure.
pub(super) type Outcome = Result<Exit, (String, Failure)>;

/// The monitor's own data: everything about the machine that is not a running child.
pub(super) struct Monitor<P> {
    pub(super) home: Home,
    pub(super) machine: Machine,
    pub(super) plan: P,
    pub(super) journal: Journal,
    pub(super) networks: Networks,
    pub(super) log: SharedLog,
    pub(super) kill: Killpoints,
    pub(super) wait_for_owner: bool,
    pub(super) report: ReportPipe,
    /// To this monitor's own loop.
    pub(super) events: mpsc::Sender<Event>,
    /// Whether the guest stands still.
    pub(super) paused: watch::Sender<bool>,
    /// A change of its networks that waits for the guest.
    pub(super) changing: Option<Change>,
    pub(super) watch: RootfsWatch,
    pub(super) forwarder: Option<Forwarder>,
    pub(super) recorder: Option<Recorder>,
    pub(super) row: Row,
    /// The volumes it uses; nobody else writes to them until this is gone, after the hypervisor.
    pub(super) volumes: Vec<Held>,
    pub(super) space: Space,
    pub(super) relays: Relays,
    /// What its processes are locked into, while it runs.
    pub(super) cell: Option<Cell>,
    /// Those who wait for the machine to end.
    pub(super) waiters: Vec<oneshot::Sender<Reply>>,
}

/// Runs the machine of `args` from start to end.
pub(super) async fn run(args: MonitorArgs) -> Result<(), Failure> {
    let mut report = ReportPipe::new(args.report);
    let kill = Killpoints::new(args.abort_at);
    let claimed = claim(&args.home, &args.id).await;
    let (lock, machine, mut plan, journal, networks) = match claimed {
        Ok(claimed) => claimed,
        Err(failure) => {
            report.send(&Report::Failed(failure.clone()));
            return Err(failure);
        }
    };
    let log = match LogWriter::open(&machine.dir, machine.spec.log_limits.clone()) {
        Ok(writer) => SharedLog::new(writer),
        Err(error) => {
            let failure = Failure::from(error);
            report.send(&Report::Failed(failure.clone()));
            return Err(failure);
        }
    };
    let forwarder = super::forwarding::start(&machine, &log);
    super::cache::start(args.home.clone(), log.clone());
    let (events, mut inbox) = Inbox::new()?;
    let mut monitor = Monitor {
        home: args.home,
        machine,
        plan: (),
        journal,
        networks,
        log,
        kill,
        wait_for_owner: args.wait_for_owner,
        report,
        events,
        paused: watch::Sender::new(false),
        changing: None,
        watch: RootfsWatch::new(),
        forwarder,
        recorder: None,
        row: Row::default(),
        volumes: Vec::new(),
        space: Space::default(),
        relays: Relays::default(),
        cell: None,
        waiters: Vec::new(),
    };
    monitor.machine.state.restarts = 0;
    loop {
        let outcome;
        (monitor, outcome) = monitor.live(&plan, &mut inbox).await;
        inbox.end_of_run();
        monitor.changing = None;
        let (phase, settled) = monitor.settle(outcome).await;
        let (phase, wait) = match settled.undone {
            true => monitor.decide(phase),
            // What is left over would be in the way of the next run.
            false => (phase, None),
        };
        match wait {
            Some(wait) if monitor.wait_to_restart(&phase, wait, &mut inbox).await => {
                monitor.machine.state.restarts += 1;
                monitor.wait_for_owner = false;
                monitor.watch = RootfsWatch::new();
                // It may be in other networks by now.
                if let Ok(changed) = monitor.machine.plan() {
                    plan = changed;
                }
            }
            _ => return monitor.finish(lock, phase, &settled).await,
        }
    }
}

/// What is known of a run that has ended.
pub(super) struct Settled {
    /// Nothing of it is left on the host.
    undone: bool,
}

impl Monitor<()> {
    /// One run, as the machine's kind does it.
    async fn live(self, plan: &Plan, inbox: &mut Inbox) -> (Monitor<()>, Outcome) {
        match plan {
            Plan::Container(plan) => {
                let mut monitor = self.of((**plan).clone());
                let outcome = monitor.life(inbox).await;
                (monitor.of(()), outcome)
            }
            Plan::Vm(plan) => {
                let mut monitor = self.of((**plan).clone());
                let outcome = monitor.life(inbox).await;
                (monitor.of(()), outcome)
            }
        }
    }
}

impl<Q> Monitor<Q> {
    /// The monitor of a machine of a certain kind.
    fn of<P>(self, plan: P) -> Monitor<P> {
        Monitor {
            home: self.home,
            machine: self.machine,
            plan,
            journal: self.journal,
            networks: self.networks,
            log: self.log,
            kill: self.kill,
            wait_for_owner: self.wait_for_owner,
            report: self.report,
            events: self.events,
            paused: self.paused,
            changing: self.changing,
            watch: self.watch,
            forwarder: self.forwarder,
            recorder: self.recorder,
            row: self.row,
            volumes: self.volumes,
            space: self.space,
            relays: self.relays,
            cell: self.cell,
            waiters: self.waiters,
        }
    }
}

impl<P> Monitor<P> {
    /// The state when a start begins.
    pub(super) fn begin(&mut self, warnings: &[String]) -> Result<(), Failure> {
        let state = self.machine.state.clone();
        self.machine.state = state.starting(Timestamp::now(), boot_id(), ProcessId::current());
        warnings.iter().for_each(|w| self.machine.state.warn(w.clone()));
        self.machine.state.stopped_by_user = false;
        self.paused.send_replace(false);
        self.save()?;
        let plan = file::read_json(&self.machine.dir.join("plan.json")).unwrap_or_default();
        self.recorder = Some(Recorder::begin(&self.machine, plan));
        self.tell();
        self.kill.pass("start: state is starting");
        Ok(())
    }

    /// What the end of the hypervisor means for the machine. `exit` is what is known of its entrypoint.
    pub(super) fn ended(&mut self, reason: ExitReason, exit: Option<Exit>, killed: bool) -> Outcome {
        self.log.note(
            Source::Monitor,
            &format!("the virtual machine ended: {}", describe(&reason)),
        );
        if let Some(recorder) = &mut self.recorder {
            recorder.vm_ended(reason.clone());
        }
        match (exit, reason) {
            (Some(exit), ExitReason::GuestShutdown | ExitReason::GuestReset) => Ok(exit),
            (Some(exit), _) if killed => Ok(exit),
            (None, _) if killed => Ok(Exit::Killed),
            (None, ExitReason::GuestShutdown | ExitReason::GuestReset) => Ok(Exit::PoweredOff),
            (_, reason) => {
                let failure = Failure::new(
                    Class::Failed,
                    format!("the virtual machine ended: {}", describe(&reason)),
                )
                .hint(format!(
                    "'zmachine logs --source console {}' shows the guest's last words",
                    self.machine.spec.name
                ));
                Err(("running".to_owned(), failure))
            }
        }
    }

    /// Claims the hypervisor's process, so that another command can end it should this monitor die.
    pub(super) fn claim_hypervisor(&mut self, pid: u32) -> Result<(), Failure> {
        if let Some(id) = ProcessId::of(pid) {
            self.machine.state.hypervisor = Some(id);
            let role = "hypervisor".to_owned();
            self.journal.claim(Resource::Process { role, id })?;
        }
        Ok(())
    }

    pub(super) fn make_run_dir(&mut self) -> Result<UnixListener, Failure> {
        let path = self.home.run_dir(&self.machine.id);
        self.journal.claim(Resource::RunDir { path: path.clone() })?;
        self.kill.pass("start: run folder claimed");
        file::make_dirs(&path)?;
        self.kill.pass("start: run folder made");
        self.cell = None;
        let (cell, lacking) = Cell::make(&self.home, &self.machine.id, self.machine.spec.jail)?;
        if let Some(text) = lacking {
            self.log.note(Source::Monitor, &text);
            self.machine.state.warn(text);
        }
        self.machine.state.user = cell.user();
        self.cell = Some(cell);
        let socket = self.home.control_socket(&self.machine.id);
        UnixListener::bind(&socket)
            .map_err(|e| Failure::from(e).context(format!("can not listen on {}", socket.display())))
    }

    pub(super) fn save(&self) -> Result<(), Failure> {
        Ok(catalog::save_state(&self.machine.dir, &self.machine.state)?)
    }

    pub(super) fn advance(&mut self, phase: Phase) -> Result<(), Failure> {
        if self.machine.state.advance(phase, Timestamp::now()) {
            let is_paused = matches!(self.machine.state.phase, Phase::Paused);
            self.paused.send_replace(is_paused);
            self.save()?;
            self.tell();
        }
        Ok(())
    }

    pub(super) fn advance_if_possible(&mut self, phase: Phase) {
        if let Err(failure) = self.advance(phase) {
            self.log.note(Source::Monitor, &format!("{failure}"));
        }
    }

    /// Answers `answer` when the machine has ended.
    pub(super) fn wait_for_end(&mut self, answer: oneshot::Sender<Reply>) {
        self.waiters.push(answer);
    }

    /// Takes the event that cut a step of the start short: who wants the machine to end is known, and told when it has.
    pub(super) async fn cut_short(&mut self, inbox: &mut Inbox) -> Exit {
        match inbox.next().await {
            Event::Command(_, answer) => {
                self.asked(Asked::ByUser);
                self.wait_for_end(answer);
            }
            _ => self.asked(Asked::ByHost),
        }
        Exit::Killed
    }

    /// Somebody wants the machine to end.
    pub(super) fn asked(&mut self, by: Asked) {
        self.row.asked.get_or_insert(by);
    }

    /// A step of the start is done.
    pub(super) fn phase(&mut self, name: &str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.phase(name);
        }
    }

    /// The entrypoint, or the guest of a VM, runs.
    pub(super) fn ready(&mut self) {
        self.row.ready = Some(std::time::Instant::now());
        if let Some(recorder) = &mut self.recorder {
            recorder.ready();
        }
    }

    /// Writes the phase down among the events.
    fn tell(&self) {
        let (id, name) = (&self.machine.id, &self.machine.spec.name);
        events::record(&self.home, &events::Event::of_phase(id, name, &self.machine.state));
    }

    /// Undoes everything a run had on the host, and ends its record. The phase it ended in.
    async fn settle(&mut self, outcome: Outcome) -> (Phase, Settled) {
        self.kill.pass("end: before undo");
        let undone = self.journal.undo_all(&self.networks).await;
        self.kill.pass("end: undone");
        // After its processes: nobody else may have their user before.
        self.cell = None;
        if let Err(failure) = &undone {
            self.log
                .note(Source::Monitor, &format!("not everything could be undone: {failure}"));
            self.machine
                .state
                .warn(format!("not everything could be undone: {failure}"));
        }
        let (phase, ended) = match outcome {
            Ok(exit) => {
                let asked = self.row.asked.is_some();
                (Phase::Stopped { exit }, attempt::Outcome::Stopped { exit, asked })
            }
            Err((step, mut failure)) => {
                if failure.hint.is_none() {
                    failure.hint = attempt::hint_for(failure.class, &failure.to_string()).map(str::to_owned);
                }
                self.log.note(Source::Monitor, &format!("failed at {step}: {failure}"));
                let phase = Phase::Failed {
                    step: step.clone(),
                    failure: failure.clone(),
                };
                (phase, attempt::Outcome::Failed { step, failure })
            }
        };
        let console = self.log.take_console();
        if let Some(recorder) = self.recorder.take() {
            recorder.end(ended, &self.machine.state, &console);
        }
        (phase, Settled { undone: undone.is_ok() })
    }

    /// Writes the last state, tells everybody, and removes the machine when it was made so.
    async fn finish(mut self, lock: FileLock, phase: Phase, settled: &Settled) -> Result<(), Failure> {
        // Before the last state: whoever sees it may remove the files that are still to be sent.
        super::forwarding::finish(self.forwarder.take());
        let result = match &phase {
            Phase::Failed { failure, .. } => Err(failure.clone()),
            _ => Ok(()),
        };
        self.machine.state.stopped_by_user = self.row.asked == Some(Asked::ByUser);
        self.machine.state.advance(phase.clone(), Timestamp::now());
        let saved = self.save();
        self.tell();
        self.kill.pass("end: state written");
        if self.machine.spec.auto_remove && settled.undone {
            self.remove()?;
        }
        if let Err(failure) = &result {
            self.report.send(&Report::Failed(failure.clone()));
        }
        self.report.close();
        drop(lock);
        self.answer_waiters(&phase).await;
        saved.and(result)
    }

    /// Tells those who wait how the machine ended.
    async fn answer_waiters(&mut self, phase: &Phase) {
        let ended = match phase {
            Phase::Failed { failure, .. } => Err(failure.clone()),
            Phase::Stopped { exit } => Ok(*exit),
            _ => Ok(Exit::PoweredOff),
        };
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Reply::Ended(ended.clone()));
        }
        // The connections' tasks write the answers; this process ends right after.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    fn remove(&mut self) -> Result<(), Failure> {
        let _catalog = catalog::lock(&self.home)?;
        crate::engine::release_leases(&self.networks, |id| id == self.machine.id)?;
        Volumes::new(&self.home).remove_anonymous(&self.machine.id)?;
        catalog::remove(&self.home, &self.machine.id, &self.kill)
    }
}

type Claimed = (FileLock, Machine, Plan, Journal, Networks);

/// Takes the machine's lock, and undoes what a crashed run left.
async fn claim(home: &Home, id: &str) -> Result<Claimed, Failure> {
    let machine = Machine::load(home, id)?;
    let plan = machine.plan()?;
    let Some(lock) = FileLock::try_exclusive(&machine.lock_path())? else {
        return Err(Failure::new(
            Class::Conflict,
            format!("the machine '{}' is running already", machine.spec.name),
        ));
    };
    // Loaded again: the state may have changed before the lock was ours.
    let machine = Machine::load(home, id)?;
    let networks = Networks::open(home.data())?.with_jail();
    let mut journal = Journal::open(&machine.dir)?;
    journal.undo_all(&networks).await?;
    match machine.state.phase.is_active() {
        // The run before this one had no end, and a power cut may have taken its journal.
        true => leftovers::undo(home, &machine, &networks).await?,
        false => file::discard_dir_all(&home.run_dir(id))?,
    }
    Ok((lock, machine, plan, journal, networks))
}

/// Why a virtual machine ended, in words.
pub(super) fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::GuestShutdown => "the guest powered off".to_owned(),
        ExitReason::GuestReset => "the guest reset itself".to_owned(),
        ExitReason::GuestPanic => "the guest's kernel panicked".to_owned(),
        ExitReason::HostSignal(signal) => format!("the hypervisor got signal {signal}"),
        ExitReason::HostQuit => "the hypervisor was told to quit".to_owned(),
        ExitReason::Crashed {
            status,
            last_stderr_lines,
        } => format!(
            "the hypervisor ended by itself ({status}) {}",
            last_stderr_lines.join("; ")
        )
        .trim_end()
        .to_owned(),
    }
}

/// Puts the step into a failure.
pub(super) fn at<E: Into<Failure>>(step: &str) -> impl Fn(E) -> (String, Failure) + '_ {
    move |error| (step.to_owned(), error.into())
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        match error {
            SessionError::Agent(error) => error.into(),
            other => Failure::from_error(Class::Failed, &other),
        }
    }
}

/// A task that ends with its owner.
pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a start may end before the entrypoint runs: not at all, or with an exit.
pub(super) type Started = Result<Option<Exit>, (String, Failure)>;
