//! The monitor's life: from the lock to the last line of its state.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_network::Networks;
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::ProcessId;

use super::launch::Running;
use super::rootfs_watch::RootfsWatch;
use super::server::{self, Shared};
use super::session::SessionError;
use super::{Event, MonitorArgs, ReportPipe, SharedLog, entry};
use crate::catalog::{self, Machine};
use crate::control::{Reply, Report, Request};
use crate::failure::{Class, Failure};
use crate::home::Home;
use crate::journal::{Journal, Resource};
use crate::killpoint::Killpoints;
use crate::log::{LogWriter, Source};
use crate::plan::Plan;
use crate::state::{Exit, Phase};

/// Time the guest gets to power off after its entrypoint is gone, before it is killed.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(30);

/// How a run ended: with an exit, or at a step with a failure.
pub(super) type Outcome = Result<Exit, (String, Failure)>;

/// The monitor's own data: everything about the machine that is not a running child.
pub(super) struct Monitor {
    pub(super) home: Home,
    pub(super) machine: Machine,
    pub(super) plan: Plan,
    pub(super) journal: Journal,
    pub(super) networks: Networks,
    pub(super) log: SharedLog,
    pub(super) kill: Killpoints,
    pub(super) wait_for_owner: bool,
    report: ReportPipe,
    terminate: Signal,
    pub(super) watch: RootfsWatch,
    /// Those who wait for the machine to end.
    waiters: Vec<oneshot::Sender<Reply>>,
}

impl Monitor {
    /// Runs the machine of `args` from start to end.
    pub(super) async fn run(args: MonitorArgs) -> Result<(), Failure> {
        let mut report = ReportPipe::new(args.report);
        let kill = Killpoints::new(args.abort_at);
        let claimed = claim(&args.home, &args.id).await;
        let (lock, machine, plan, journal, networks) = match claimed {
            Ok(claimed) => claimed,
            Err(failure) => {
                report.send(&Report::Failed(failure.clone()));
                return Err(failure);
            }
        };
        let log = SharedLog::new(LogWriter::open(&machine.dir)?);
        let mut monitor = Monitor {
            home: args.home,
            machine,
            plan,
            journal,
            networks,
            log,
            kill,
            wait_for_owner: args.wait_for_owner,
            report,
            terminate: signal(SignalKind::terminate())?,
            watch: RootfsWatch::new(),
            waiters: Vec::new(),
        };
        let result = monitor.life().await;
        monitor.finish(lock, result).await
    }

    async fn life(&mut self) -> Outcome {
        let state = self.machine.state.clone();
        self.machine.state = state.starting(Timestamp::now(), boot_id(), ProcessId::current());
        self.plan
            .warnings
            .clone()
            .into_iter()
            .for_each(|w| self.machine.state.warn(w));
        self.save().map_err(at("state"))?;
        self.kill.pass("start: state is starting");
        let listener = self.make_run_dir().map_err(at("run folder"))?;
        let (events, mut inbox) = mpsc::channel(64);
        let (session_sender, session) = watch::channel(None);
        let (entry, waiting) = entry::new();
        let shared = Shared {
            entry: entry.clone(),
            session,
            events: events.clone(),
            entrypoint: std::sync::Arc::new(self.plan.process.clone()),
        };
        let _server = AbortOnDrop(tokio::spawn(server::serve(listener, shared)));
        self.report.send(&Report::Listening);

        let mut running = self.launch().await?;
        let (stream_sender, stream) = oneshot::channel();
        let hub = entry::run(waiting, async move { stream.await.ok() }, self.log.clone(), events);
        let _hub = AbortOnDrop(tokio::spawn(hub));
        let started = self
            .start_entrypoint(&mut running, entry, stream_sender, &mut inbox)
            .await;
        let outcome = match started {
            Ok(None) => {
                session_sender.send_replace(Some(running.session.clone()));
                self.follow(&mut running, &mut inbox).await
            }
            Ok(Some(exit)) => Ok(exit),
            Err(failure) => Err(failure),
        };
        self.note_console_tail(&mut running).await;
        self.last_rootfs_lines(&mut running).await;
        running.end().await;
        outcome
    }

    /// The event loop of a machine whose entrypoint runs.
    async fn follow(&mut self, running: &mut Running, inbox: &mut mpsc::Receiver<Event>) -> Outcome {
        self.machine.state.hypervisor = ProcessId::of(running.vm.pid());
        self.advance(Phase::Running).map_err(at("state"))?;
        self.kill.pass("start: state is running");
        self.report.send(&Report::Ready);
        self.report.close();
        let mut exit: Option<Exit> = None;
        let mut deadline: Option<Instant> = None;
        let mut killed = false;
        loop {
            let until = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let counters_due = self.watch.counters_due();
            let counters_at = counters_due.unwrap_or_else(Instant::now);
            tokio::select! {
                event = running.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason, exit, killed),
                    VmEvent::Paused => self.advance(Phase::Paused).map_err(at("state"))?,
                    VmEvent::Resumed => self.advance(Phase::Running).map_err(at("state"))?,
                    other => self.log.note(Source::Hypervisor, &format!("{other:?}")),
                },
                Some(event) = inbox.recv() => match event {
                    Event::EntryEnded(Ok(status)) => {
                        exit = Some(status.into());
                        self.advance_if_possible(Phase::Stopping);
                        deadline = Some(Instant::now() + POWER_OFF_PATIENCE);
                    }
                    Event::EntryEnded(Err(error)) => {
                        self.log.note(Source::Monitor, &format!("the channel to the entrypoint ended: {error}"));
                        // A power-off that the guest decided on follows at once; a dead agent is killed.
                        deadline.get_or_insert(Instant::now() + Duration::from_secs(10));
                    }
                    Event::Command(request, answer) => {
                        if let Some(grace) = self.command(running, request, answer, &mut killed).await {
                            deadline = Some(Instant::now() + grace + POWER_OFF_PATIENCE);
                        }
                    }
                },
                event = running.rootfs.next_event() => self.rootfs_event(running, event)?,
                _ = self.terminate.recv() => {
                    let grace = self.ask_to_stop(running, self.plan.stop_grace_ms).await;
                    deadline = Some(Instant::now() + grace + POWER_OFF_PATIENCE);
                }
                () = tokio::time::sleep_until(counters_at.into()), if counters_due.is_some() => self.save_counters(),
                () = tokio::time::sleep_until(until.into()) => {
                    self.log.note(Source::Monitor, "the guest did not power off in time: killed");
                    killed = true;
                    running.vm.kill();
                    deadline = None;
                }
            }
        }
    }

    /// Carries a command out; the grace period when it was a request to stop.
    async fn command(
        &mut self,
        running: &mut Running,
        request: Request,
        answer: oneshot::Sender<Reply>,
        killed: &mut bool,
    ) -> Option<Duration> {
        let result = match request {
            Request::Stop { grace_ms } => {
                self.waiters.push(answer);
                return Some(
                    self.ask_to_stop(running, grace_ms.unwrap_or(self.plan.stop_grace_ms))
                        .await,
                );
            }
            Request::Wait => {
                self.waiters.push(answer);
                return None;
            }
            Request::Kill => {
                *killed = true;
                self.waiters.push(answer);
                running.vm.kill();
                return None;
            }
            Request::Signal(signal) => match running.session.ask(&AgentRequest::Signal { signal }).await {
                Ok(_) => Ok(()),
                Err(e) => {
                    Err(Failure::from_error(Class::Failed, &e).context(format!("signal {signal} was not delivered")))
                }
            },
            Request::Pause => running
                .vm
                .pause()
                .await
                .map_err(|e| Failure::from_error(Class::Failed, &e)),
            Request::Resume => running
                .vm
                .resume()
                .await
                .map_err(|e| Failure::from_error(Class::Failed, &e)),
            Request::Attach { .. } | Request::Exec(_) => {
                Err(Failure::new(Class::Usage, "not a command for the monitor"))
            }
        };
        let _ = answer.send(result.map_or_else(Reply::Failed, |()| Reply::Done));
        None
    }

    /// Asks the agent to shut down; how long it was given.
    async fn ask_to_stop(&mut self, running: &mut Running, grace_ms: u64) -> Duration {
        if matches!(self.machine.state.phase, Phase::Paused) {
            let _ = running.vm.resume().await;
        }
        self.advance_if_possible(Phase::Stopping);
        let request = AgentRequest::Shutdown {
            signal: self.plan.stop_signal,
            grace_ms,
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), running.session.ask(&request)).await;
        match asked {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self
                .log
                .note(Source::Monitor, &format!("the agent was not asked to stop: {error}")),
            Err(_) => self
                .log
                .note(Source::Monitor, "the agent did not answer the request to stop"),
        }
        Duration::from_millis(grace_ms)
    }

    /// What the end of the hypervisor means for the machine.
    fn ended(&mut self, reason: ExitReason, exit: Option<Exit>, killed: bool) -> Outcome {
        self.log.note(
            Source::Monitor,
            &format!("the virtual machine ended: {}", describe(&reason)),
        );
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

    fn make_run_dir(&mut self) -> Result<UnixListener, Failure> {
        let path = self.home.run_dir(&self.machine.id);
        self.journal.claim(Resource::RunDir { path: path.clone() })?;
        self.kill.pass("start: run folder claimed");
        file::make_dirs(&path)?;
        self.kill.pass("start: run folder made");
        let socket = self.home.control_socket(&self.machine.id);
        UnixListener::bind(&socket)
            .map_err(|e| Failure::from(e).context(format!("can not listen on {}", socket.display())))
    }

    pub(super) fn save(&self) -> Result<(), Failure> {
        Ok(catalog::save_state(&self.machine.dir, &self.machine.state)?)
    }

    fn advance(&mut self, phase: Phase) -> Result<(), Failure> {
        if self.machine.state.advance(phase, Timestamp::now()) {
            self.save()?;
        }
        Ok(())
    }

    fn advance_if_possible(&mut self, phase: Phase) {
        if let Err(failure) = self.advance(phase) {
            self.log.note(Source::Monitor, &format!("{failure}"));
        }
    }

    /// Answers `answer` when the machine has ended.
    pub(super) fn wait_for_end(&mut self, answer: oneshot::Sender<Reply>) {
        self.waiters.push(answer);
    }

    /// Resolves when this process is asked to end by SIGTERM.
    pub(super) async fn terminated(&mut self) {
        let _ = self.terminate.recv().await;
    }

    /// Lets the last console output arrive, so that a panic's text is in the log.
    async fn note_console_tail(&mut self, running: &mut Running) {
        running.drain_console(Duration::from_millis(200)).await;
    }

    /// Undoes everything, writes the last state, tells everybody, and removes the machine when it was made so.
    async fn finish(mut self, lock: FileLock, outcome: Outcome) -> Result<(), Failure> {
        self.kill.pass("end: before undo");
        let undone = self.journal.undo_all(&self.networks).await;
        self.kill.pass("end: undone");
        if let Err(failure) = &undone {
            self.log
                .note(Source::Monitor, &format!("not everything could be undone: {failure}"));
            self.machine
                .state
                .warn(format!("not everything could be undone: {failure}"));
        }
        let (phase, result) = match outcome {
            Ok(exit) => (Phase::Stopped { exit }, Ok(())),
            Err((step, failure)) => {
                self.log.note(Source::Monitor, &format!("failed at {step}: {failure}"));
                (
                    Phase::Failed {
                        step,
                        failure: failure.clone(),
                    },
                    Err(failure),
                )
            }
        };
        self.machine.state.advance(phase.clone(), Timestamp::now());
        let saved = self.save();
        self.kill.pass("end: state written");
        if self.machine.spec.auto_remove && undone.is_ok() {
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
        catalog::remove(&self.home, &self.machine, &self.kill)
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
    let networks = Networks::open(home.data())?;
    let mut journal = Journal::open(&machine.dir)?;
    journal.undo_all(&networks).await?;
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
