//! What a monitor knows of its machine, and what every part of it does with that: the state is advanced, a step is noted, a
//! process is confined. It knows none of its users.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::{Driver, ExitReason};
use zmachine_network::Networks;
use zmachine_spec::control::{Reply, Report, Request};
use zmachine_spec::{Class, Exit, Failure, Health, Home, Kind, Phase};
use zmachine_store::attempt::Recorder;
use zmachine_store::catalog::{self, Machine};
use zmachine_store::events;
use zmachine_store::journal::{Journal, Resource};
use zmachine_store::killpoint::Killpoints;
use zmachine_store::log::{Forwarder, Source};
use zmachine_store::volume::Held;
use zmachine_sys::host::boot_id;
use zmachine_sys::jail::{Jail, status};
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::ProcessId;
use zmachine_sys::{affinity, file};

use super::activity::Activity;
use super::backoff::{Backoff, StopReason};
use super::frozen::Restore;
use super::guest;
use super::inbox::{Event, Inbox};
use super::output::{ReportPipe, SharedLog};
use super::relays::Relays;
use super::rootfs_memory::RootfsWatch;
use super::sandbox::Sandbox;

/// How a run ended: with an exit, or at a step with a failure.
pub(super) type Outcome = Result<Exit, (String, Failure)>;

/// What starts hypervisors of a kind: the installed one, but in tests.
pub(super) type Drivers = Box<dyn Fn(Hypervisor) -> Box<dyn Driver> + Send + Sync>;

/// The monitor's own data: everything about the machine that is neither its plan nor a running child.
pub(super) struct Monitor {
    pub(super) home: Home,
    pub(super) machine: Machine,
    pub(super) journal: Journal,
    pub(super) networks: Networks,
    pub(super) log: SharedLog,
    pub(super) kill: Killpoints,
    pub(super) wait_for_owner: bool,
    pub(super) report: ReportPipe,
    pub(super) drivers: Drivers,
    /// To this monitor's own loop.
    pub(super) events: mpsc::Sender<Event>,
    /// Whether the guest stands still.
    pub(super) paused: watch::Sender<bool>,
    pub(super) watch: RootfsWatch,
    pub(super) forwarder: Option<Forwarder>,
    pub(super) recorder: Option<Recorder>,
    pub(super) backoff: Backoff,
    /// The volumes it uses; nobody else writes to them until this is gone, after the hypervisor.
    pub(super) volumes: Vec<Held>,
    /// Volumes that were held for its first run.
    pub(super) handed: HashMap<String, FileLock>,
    pub(super) relays: Relays,
    /// What its processes are locked into, while it runs.
    pub(super) sandbox: Option<Sandbox>,
    /// The CPUs that this process may run on, when nothing else is chosen.
    pub(super) host_cpus: Vec<u32>,
    /// What the health checks say, where there are any.
    pub(super) health: Option<Health>,
    /// What the next run goes on from.
    pub(super) restore: Option<Restore>,
    /// The key of the template that the next run makes.
    pub(super) template: Option<String>,
    /// The entrypoint of this run has said that it is ready.
    pub(super) is_entry_ready: bool,
    /// The guest waits to be taken for a machine like it.
    pub(super) stands_by: bool,
    /// Whether anybody has to do with the machine.
    pub(super) activity: Activity,
    /// It was saved because nobody has: its hypervisor ends, and it does not.
    pub(super) is_asleep: bool,
    /// Its taps, where packets are to wake it, by interface.
    pub(super) taps: Vec<(String, OwnedFd)>,
    /// What stays of it while it is asleep, until its next run makes that itself.
    pub(super) kept: Option<Kept>,
    /// Its control socket, over all runs between which it was asleep.
    pub(super) listener: Option<Arc<UnixListener>>,
    /// Those who wait for the machine to end.
    pub(super) waiters: Vec<oneshot::Sender<Reply>>,
}

/// What stays of a machine's networks while it is asleep.
pub(super) struct Kept {
    /// Its published ports, so that nobody else takes one.
    pub(super) _ports: Vec<OwnedFd>,
    /// Those who watch over its networks.
    pub(super) _watches: HashMap<String, AbortOnDrop>,
    /// Its taps, by interface.
    pub(super) taps: Vec<(String, OwnedFd)>,
}

impl Monitor {
    /// One that has nothing yet but its machine.
    pub(super) fn new(
        home: Home,
        machine: Machine,
        journal: Journal,
        networks: Networks,
        log: SharedLog,
        report: ReportPipe,
        events: mpsc::Sender<Event>,
    ) -> Monitor {
        Monitor {
            home,
            machine,
            journal,
            networks,
            log,
            kill: Killpoints::new(None),
            wait_for_owner: false,
            report,
            drivers: Box::new(Hypervisor::driver),
            events,
            paused: watch::Sender::new(false),
            watch: RootfsWatch::new(),
            forwarder: None,
            recorder: None,
            backoff: Backoff::default(),
            volumes: Vec::new(),
            handed: HashMap::new(),
            relays: Relays::default(),
            sandbox: None,
            host_cpus: affinity::allowed(),
            health: None,
            restore: None,
            template: None,
            is_entry_ready: false,
            stands_by: false,
            activity: Activity::default(),
            is_asleep: false,
            taps: Vec::new(),
            kept: None,
            listener: None,
            waiters: Vec::new(),
        }
    }

    /// The state when a start begins.
    pub(super) fn begin(&mut self, warnings: &[String]) -> Result<(), Failure> {
        self.watch = RootfsWatch::new();
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

    /// Its control socket: that of the run before, if it was asleep since.
    ///
    /// # Errors
    /// As [`Monitor::make_run_dir`].
    pub(super) fn control_socket(&mut self) -> Result<Arc<UnixListener>, Failure> {
        match self.listener.take() {
            Some(listener) => {
                self.remove_old_sockets()?;
                Ok(listener)
            }
            None => self.make_run_dir().map(Arc::new),
        }
    }

    /// Removes the sockets that processes of the run before have left beside the control socket.
    fn remove_old_sockets(&self) -> Result<(), Failure> {
        let own = self.home.control_socket(&self.machine.id);
        for entry in std::fs::read_dir(self.home.run_dir(&self.machine.id))? {
            let entry = entry?;
            if entry.file_type()?.is_socket() && entry.path() != own {
                file::remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn make_run_dir(&mut self) -> Result<UnixListener, Failure> {
        let path = self.home.run_dir(&self.machine.id);
        self.journal.claim(Resource::RunDir { path: path.clone() })?;
        self.kill.pass("start: run folder claimed");
        file::make_dirs(&path)?;
        self.kill.pass("start: run folder made");
        self.sandbox = None;
        let (sandbox, lacking) = Sandbox::make(&self.home, &self.machine.id, self.machine.spec.jail)?;
        if let Some(text) = lacking {
            self.log.note(Source::Monitor, &text);
            self.machine.state.warn(text);
        }
        self.machine.state.user = sandbox.user();
        self.sandbox = Some(sandbox);
        let socket = self.home.control_socket(&self.machine.id);
        UnixListener::bind(&socket)
            .map_err(|e| Failure::from(e).context(format!("cannot listen on {}", socket.display())))
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
        let event = inbox.next().await;
        let _ = self.without_guest(event, "the machine is about to end");
        Exit::Killed
    }

    /// An event while there is no guest that could do anything: whoever wants more than the machine's end is told why not.
    /// `Break` when the machine is to end.
    pub(super) fn without_guest(&mut self, event: Event, why_not: &str) -> ControlFlow<()> {
        match event {
            Event::Command(Request::Stop { .. } | Request::Kill, answer) => {
                self.note_stop_reason(StopReason::User);
                self.wait_for_end(answer);
                return ControlFlow::Break(());
            }
            Event::Terminate => {
                self.note_stop_reason(StopReason::Host);
                return ControlFlow::Break(());
            }
            Event::Command(Request::Wait, answer) => self.wait_for_end(answer),
            Event::Command(Request::Change(change), answer) if change.is_of_restarts() => {
                guest::reply(answer, self.change_policy(&change));
            }
            Event::Command(_, answer) => {
                let failure = Failure::new(Class::Conflict, why_not).hint("try again when it runs");
                let _ = answer.send(Reply::Failed(failure));
            }
            // Before the loop of this run begins, which asks for it.
            Event::EntryReady => self.is_entry_ready = true,
            // Of a run before this one.
            Event::EntryEnded(_) | Event::NetworkAnswered(_) | Event::Probed(_) | Event::GuestUp | Event::Frozen(_) => {
            }
        }
        ControlFlow::Continue(())
    }

    /// Somebody wants the machine to end.
    pub(super) fn note_stop_reason(&mut self, by: StopReason) {
        self.backoff.stop_reason.get_or_insert(by);
    }

    /// A step of the start is done.
    pub(super) fn phase(&mut self, name: &str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.phase(name);
        }
    }

    /// The entrypoint, or the guest of a VM, runs.
    ///
    /// # Errors
    /// When its state cannot be written.
    pub(super) fn ready(&mut self) -> Result<(), Failure> {
        self.advance(Phase::Running)?;
        self.backoff.ready = Some(std::time::Instant::now());
        if let Some(recorder) = &mut self.recorder {
            recorder.ready();
        }
        self.watch.entrypoint_started();
        self.kill.pass("start: state is running");
        self.report.send(&Report::Ready);
        self.report.close();
        Ok(())
    }

    /// Somebody has seen whether the guest of a VM is up.
    pub(super) fn guest_is_up(&mut self, is_up: bool) {
        let state = &mut self.machine.state;
        if state.kind == Kind::Vm && state.booted_at.is_some() != is_up {
            state.booted_at = is_up.then(Timestamp::now);
            if let Err(failure) = self.save() {
                self.log.note(Source::Monitor, &failure.to_string());
            }
        }
    }

    /// Writes the phase down among the events.
    pub(super) fn tell(&self) {
        let (id, name) = (&self.machine.id, &self.machine.spec.name);
        events::record(&self.home, &events::Event::of_phase(id, name, &self.machine.state));
    }

    /// What a process of this machine is locked into; `None`: nothing.
    pub(super) fn jail(&self) -> Option<Jail> {
        self.sandbox.as_ref()?.jail()
    }

    /// Warns of what does not stand around the process `pid` although there is a jail. `has_network`: it is to have the host's.
    pub(super) fn check_protections(&mut self, role: &str, pid: u32, has_network: bool) {
        if self.sandbox.as_ref().is_none_or(|sandbox| sandbox.is_off()) {
            return;
        }
        let missing = status::of(pid)
            .map(|protections| protections.missing(has_network))
            .unwrap_or_default();
        if missing.is_empty() {
            return;
        }
        let text = format!("the jail of the {role} lacks on this host: {}", missing.join(", "));
        self.log.note(Source::Monitor, &text);
        self.machine.state.warn(text);
    }

    /// That the guest could answer at all.
    ///
    /// # Errors
    /// [`Class::Conflict`] for one whose virtual CPUs are halted.
    pub(super) fn require_awake(&self) -> Result<(), Failure> {
        match self.machine.state.phase {
            Phase::Paused => Err(zmachine_spec::control::paused(&self.machine.spec.name)),
            _ => Ok(()),
        }
    }
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

/// A task that ends with its owner.
pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a start may end before the entrypoint runs: not at all, or with an exit.
pub(super) type Started = Result<Option<Exit>, (String, Failure)>;
