//! The life of a container's monitor: from the first state to the end of the hypervisor.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_hypervisor::{Vm, VmEvent};
use zmachine_plan::{ContainerPlan, Plan, VolumeUse, volume_disk};
use zmachine_spec::control::{Reconnect, Reply, Report, Request};
use zmachine_spec::{Class, Exit, Failure, Phase};
use zmachine_store::log::Source;
use zmachine_store::volume::Volumes;
use zmachine_sys::process::ProcessId;

use super::backoff::StopReason;
use super::change::{Answered, Change};
use super::context::{AbortOnDrop, Monitor, Outcome, at};
use super::guest::{self, within};
use super::inbox::{Cut, Event, Inbox};
use super::launch::Running;
use super::networks::Parts;
use super::server;
use super::streams::{Attachable, Shared};
use super::{clock, console, entry, rootfs_child};

/// Time the guest gets to power off after its entrypoint is gone, before it is killed.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(30);

/// Time a killed hypervisor gets to be gone: the kernel may be waiting for a disk on its behalf.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the end of a run has come.
#[derive(Default)]
struct Ending {
    /// How the entrypoint ended.
    exit: Option<Exit>,
    /// It was ended by force.
    killed: bool,
    /// When that happens.
    deadline: Option<Instant>,
}

impl Ending {
    /// Ends it by force. Should the hypervisor not go, the loop is left all the same.
    fn kill(&mut self, vm: &mut dyn Vm) {
        self.killed = true;
        self.deadline = Some(Instant::now() + KILL_TIMEOUT);
        vm.kill();
    }

    /// A second request may shorten the time, not lengthen it.
    fn no_later_than(&mut self, from_now: Duration) {
        let deadline = Instant::now() + from_now;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

impl Monitor<ContainerPlan> {
    /// From the first state to the end of the hypervisor.
    pub(super) async fn life(&mut self, inbox: &mut Inbox) -> Outcome {
        let warnings = self.plan.warnings.clone();
        self.begin(&warnings).map_err(at("state"))?;
        let vm = self.plan.vm.clone();
        self.make_group(&vm);
        let listener = self.make_run_dir().map_err(at("run folder"))?;
        let (session_sender, session) = watch::channel(None);
        let _clock = AbortOnDrop(tokio::spawn(clock::follow(session.clone())));
        let (entry, waiting) = entry::new();
        let (console, console_waiting) = console::new();
        let shared = Shared {
            attachable: Attachable::Entrypoint(entry.clone()),
            console,
            session,
            events: self.events.clone(),
            exec_base: std::sync::Arc::new(self.plan.process.clone()),
            execs: super::execs::Execs::default(),
            relays: self.relays.clone(),
            paused: self.paused.subscribe(),
        };
        let _server = AbortOnDrop(tokio::spawn(server::serve(listener, shared)));
        self.report.send(&Report::Listening);

        let mut running = match inbox.unless_stopped(self.launch(console_waiting)).await {
            Ok(launched) => launched?,
            Err(Cut) => return Ok(self.cut_short(inbox).await),
        };
        let (stream_sender, stream) = oneshot::channel();
        let hub = entry::run(
            waiting,
            async move { stream.await.ok() },
            self.log.clone(),
            self.events.clone(),
        );
        let _hub = AbortOnDrop(tokio::spawn(hub));
        let started = self.start_entrypoint(&mut running, entry, stream_sender, inbox).await;
        let outcome = match started {
            Ok(None) => {
                session_sender.send_replace(Some(running.session.clone()));
                self.follow(&mut running, inbox).await
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
    pub(super) async fn follow(&mut self, running: &mut Running, inbox: &mut Inbox) -> Outcome {
        self.machine.state.hypervisor = ProcessId::of(running.vm.pid());
        self.advance(Phase::Running).map_err(at("state"))?;
        self.ready();
        self.watch.entrypoint_started();
        self.kill.pass("start: state is running");
        self.report.send(&Report::Ready);
        self.report.close();
        let mut ending = Ending::default();
        loop {
            let until = ending
                .deadline
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let counters_due = self.watch.due();
            let counters_at = counters_due.map_or_else(Instant::now, Instant::from_std);
            let retry = self.enospc.next_try();
            let retry_at = retry.map_or_else(Instant::now, Instant::from_std);
            tokio::select! {
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => {
                    // Cut short by what is the next event.
                    let _ = inbox.unless_ended(self.try_again(&mut *running.vm)).await;
                }
                event = running.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason, ending.exit, ending.killed),
                    event => self.vm_event(running, &event),
                },
                event = inbox.next() => match event {
                    Event::EntryEnded(Ok(status)) => {
                        ending.exit = Some(status.into());
                        self.advance_if_possible(Phase::Stopping);
                        ending.deadline = Some(Instant::now() + POWER_OFF_TIMEOUT);
                    }
                    Event::EntryEnded(Err(error)) => {
                        self.log.note(Source::Monitor, &format!("the channel to the entrypoint ended: {error}"));
                        // A power-off that the guest decided on follows at once; a dead agent is killed.
                        ending.deadline.get_or_insert(Instant::now() + Duration::from_secs(10));
                    }
                    Event::Terminate => {
                        self.note_stop_reason(StopReason::Host);
                        self.ask_to_stop(running, inbox, self.plan.stop_grace_ms, &mut ending).await;
                    }
                    Event::NetworkAnswered(answered) => {
                        self.go_on_changing(running, inbox, answered).await;
                    }
                    Event::Command(request, answer) => {
                        self.command(running, inbox, request, answer, &mut ending).await;
                    }
                },
                event = rootfs_child::next_event(&mut running.rootfs) => self.rootfs_event(running, event)?,
                failure = running.shares.ended() => {
                    let reason = self.share_ended(&mut *running.vm, failure).await?;
                    return self.ended(reason, ending.exit, ending.killed);
                }
                () = tokio::time::sleep_until(counters_at), if counters_due.is_some() => self.save_due(),
                () = tokio::time::sleep_until(until), if ending.deadline.is_some() => {
                    if ending.killed {
                        self.log.note(Source::Monitor, "the hypervisor does not end after SIGKILL");
                        return Ok(ending.exit.unwrap_or(Exit::Killed));
                    }
                    self.log.note(Source::Monitor, "the guest did not power off in time: killed");
                    ending.kill(&mut *running.vm);
                }
            }
        }
    }

    /// Carries a command out, or has it carried out by a task that answers.
    async fn command(
        &mut self,
        running: &mut Running,
        inbox: &mut Inbox,
        request: Request,
        answer: oneshot::Sender<Reply>,
        ending: &mut Ending,
    ) {
        match request {
            Request::Stop { grace_ms } => {
                self.note_stop_reason(StopReason::User);
                self.wait_for_end(answer);
                let grace_ms = grace_ms.unwrap_or(self.plan.stop_grace_ms);
                self.ask_to_stop(running, inbox, grace_ms, ending).await;
            }
            Request::Wait => self.wait_for_end(answer),
            Request::Kill => {
                self.note_stop_reason(StopReason::User);
                self.wait_for_end(answer);
                ending.kill(&mut *running.vm);
            }
            Request::Signal(signal) => match self.require_awake() {
                Err(failure) => guest::reply(answer, Err(failure)),
                Ok(()) => {
                    let explain = move |failure: Failure| {
                        let hint = failure.hint.clone().unwrap_or_default();
                        failure.context(format!("signal {signal} was not delivered")).hint(hint)
                    };
                    let request = AgentRequest::Signal { signal };
                    guest::answer(&running.session, request, guest::ANSWER_TIMEOUT, answer, explain);
                }
            },
            Request::Pause => {
                self.enospc.forget();
                if let Ok(paused) = inbox.unless_ended(within("pause", running.vm.pause())).await {
                    if paused.is_ok() {
                        self.until_told(running, Phase::Running).await;
                    }
                    guest::reply(answer, paused);
                }
            }
            Request::Resume => {
                if let Ok(resumed) = inbox.unless_ended(within("resume", running.vm.resume())).await {
                    if resumed.is_ok() {
                        self.until_told(running, Phase::Paused).await;
                    }
                    guest::reply(answer, resumed);
                }
            }
            Request::GrowVolume { name, size_bytes } => {
                self.grow_volume(running, inbox, &name, size_bytes, answer).await;
            }
            Request::Reconnect(wanted) => self.change_networks(running, inbox, *wanted, answer).await,
            Request::Attach { .. }
            | Request::Console { .. }
            | Request::Exec(_)
            | Request::StartExec { .. }
            | Request::AttachExec { .. }
            | Request::WaitExec { .. }
            | Request::Execs
            | Request::Processes
            | Request::Transfer(_)
            | Request::Traffic
            | Request::Capacity => {
                guest::reply(answer, Err(Failure::new(Class::Usage, "not a command for the monitor")));
            }
        }
    }

    /// An event of the hypervisor that does not end the machine.
    fn vm_event(&mut self, running: &Running, event: &VmEvent) {
        match event {
            // A full disk stops the guest; that the state cannot be written then must not end it.
            VmEvent::Paused => self.advance_if_possible(Phase::Paused),
            VmEvent::Resumed => {
                self.advance_if_possible(Phase::Running);
                clock::tell(Some(running.session.clone()));
            }
            other => self.note_event(other),
        }
    }

    /// Waits for the event by which the machine leaves the phase `left`, if it is in it: whoever asked for a pause, or for its
    /// end, must find the machine so with the next command.
    async fn until_told(&mut self, running: &mut Running, left: Phase) {
        let until = Instant::now() + guest::EVENT_TIMEOUT;
        while self.machine.state.phase == left {
            match tokio::time::timeout_at(until, running.vm.next_event()).await {
                // The loop sees it again.
                Ok(VmEvent::Exited(_)) | Err(_) => return,
                Ok(event) => self.vm_event(running, &event),
            }
        }
    }

    /// Joins or leaves a network.
    async fn change_networks(
        &mut self,
        running: &mut Running,
        inbox: &mut Inbox,
        wanted: Reconnect,
        answer: oneshot::Sender<Reply>,
    ) {
        if self.plan.attachments.is_empty() {
            // What drives interfaces is loaded at the start, when there is one.
            let message = "the machine runs without any network, so its guest has no driver for one";
            let failure = Failure::new(Class::Conflict, message).hint("stop it, and do it then");
            return guest::reply(answer, Err(failure));
        }
        let present = self.plan.attachments.clone();
        let parts = Parts {
            vm: &mut *running.vm,
            session: Some(&running.session),
            hold: &mut running.networks,
        };
        let begun = inbox
            .unless_ended(self.begin_change(parts, &present, wanted, answer))
            .await;
        if let Ok(Some(change)) = begun {
            self.finish_change(change).await;
        }
    }

    /// The guest has done its part of a change of its networks, or has not.
    async fn go_on_changing(&mut self, running: &mut Running, inbox: &mut Inbox, answered: Answered) {
        let parts = Parts {
            vm: &mut *running.vm,
            session: Some(&running.session),
            hold: &mut running.networks,
        };
        let done = inbox.unless_ended(self.answered_change(parts, answered)).await;
        if let Ok(Some(change)) = done {
            self.finish_change(change).await;
        }
    }

    /// Writes down the networks that the machine is in now.
    async fn finish_change(&mut self, change: Change) {
        let attachments = change.wanted.attachments.clone();
        self.plan.set_attachments(&self.machine.spec, attachments);
        let plan = Plan::Container(Box::new(self.plan.clone()));
        let written = self.write_networks(&change.wanted, &plan);
        change.answer(written);
    }

    /// Makes a volume larger: its file, the disk that the guest sees, the file system on it.
    async fn grow_volume(
        &mut self,
        running: &mut Running,
        inbox: &mut Inbox,
        name: &str,
        size_bytes: u64,
        answer: oneshot::Sender<Reply>,
    ) {
        const LATER: &str = "the volume is larger; the machine sees it at its next start";
        let later = |failure: Failure| failure.context("the guest was not told").hint(LATER);
        let writable = |volume: &VolumeUse| volume.name == name && !volume.read_only;
        let grown = match self.plan.volumes.iter().position(writable) {
            None => {
                let message = format!("the machine does not write to a volume '{name}'");
                Err(Failure::new(Class::Conflict, message))
            }
            Some(index) => self
                .require_awake()
                .and_then(|()| Volumes::new(&self.home).grow(name, size_bytes))
                .map(|volume| (index, volume.size_bytes)),
        };
        let (index, disk_bytes) = match grown {
            Ok(grown) => grown,
            Err(failure) => return guest::reply(answer, Err(failure)),
        };
        let id = volume_disk(index);
        let reported = inbox.unless_ended(within("resize disk", running.vm.resize_disk(&id, disk_bytes)));
        match reported.await {
            Err(Cut) => return,
            Ok(Err(failure)) => return guest::reply(answer, Err(later(failure))),
            Ok(Ok(())) => {}
        }
        let serial = zmachine_spec::volume::serial(name);
        let Some(mount) = self.plan.boot.mounts.iter().find(|mount| mount.serial == serial) else {
            return guest::reply(answer, Ok(()));
        };
        let request = AgentRequest::Grow {
            serial: mount.serial.clone(),
            partition: None,
            fstype: mount.fstype.clone(),
            disk_bytes,
        };
        let explain = |failure: Failure| failure.hint(LATER);
        guest::answer(&running.session, request, guest::GROW_TIMEOUT, answer, explain);
    }

    /// Has the agent asked to shut down, and lets the end by force follow.
    async fn ask_to_stop(&mut self, running: &mut Running, inbox: &mut Inbox, grace_ms: u64, ending: &mut Ending) {
        if matches!(self.machine.state.phase, Phase::Paused) {
            let resumed = inbox.unless_ended(within("resume", running.vm.resume())).await;
            if let Ok(Err(failure)) = resumed {
                self.log
                    .note(Source::Monitor, &format!("the guest cannot be let go on: {failure}"));
            }
        }
        self.advance_if_possible(Phase::Stopping);
        let request = AgentRequest::Shutdown {
            signal: self.plan.stop_signal,
            grace_ms,
        };
        let (session, log) = (running.session.clone(), self.log.clone());
        tokio::spawn(async move {
            if let Err(failure) = guest::ask(&session, &request, guest::ANSWER_TIMEOUT).await {
                log.note(Source::Monitor, &format!("the agent was not asked to stop: {failure}"));
            }
        });
        ending.no_later_than(Duration::from_millis(grace_ms) + POWER_OFF_TIMEOUT);
    }

    /// Lets the last console output arrive, so that a panic's text is in the log.
    async fn note_console_tail(&mut self, running: &mut Running) {
        running.drain_console(Duration::from_millis(200)).await;
    }
}
