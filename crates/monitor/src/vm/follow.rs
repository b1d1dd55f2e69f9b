//! The event loop of a VM that runs.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use zmachine_agent_protocol::{Process, Request as AgentRequest};
use zmachine_disk::{Content as OnDisk, RawFile, identify};
use zmachine_hypervisor::{Vm, VmEvent};
use zmachine_plan::container::DEFAULT_PATH;
use zmachine_plan::{Plan, VmPlan, VolumeUse, volume_disk};
use zmachine_spec::control::{Reconnect, Reply, Report, Request};
use zmachine_spec::{Class, Exit, Failure, Phase};
use zmachine_store::log::Source;
use zmachine_store::volume::{Volume, Volumes};

use super::super::backoff::StopReason;
use super::super::clock;
use super::super::container::KILL_TIMEOUT;
use super::super::context::{Monitor, Outcome, at};
use super::super::guest::{self, within};
use super::super::inbox::{Cut, Event, Inbox};
use super::super::networks::Parts;
use super::super::session::Session;
use super::{Booted, SessionSlot};

/// How long the agent may take to answer its first question.
const AGENT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the rest of the console may take after the end of the hypervisor.
const CONSOLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Resets within this time are one restart.
const REBOOT_PERIOD: Duration = Duration::from_secs(1);

/// The power button of a guest that was asked to stop is pressed again after this time: one that is still booting has nobody
/// yet who listens, and one that is on its way down does not mind.
const PRESS_PERIOD: Duration = Duration::from_secs(10);

/// What the loop remembers.
#[derive(Default)]
struct Ending {
    /// It was ended by force.
    killed: bool,
    /// When that happens; when it has, when the hypervisor has to be gone.
    deadline: Option<Instant>,
    /// When the power button is pressed once more.
    press_again: Option<Instant>,
    /// When its guest last restarted.
    rebooted: Option<Instant>,
}

impl Ending {
    /// Ends it by force. Should the hypervisor not go, the loop is left all the same.
    fn kill(&mut self, vm: &mut dyn Vm) {
        *self = Ending {
            killed: true,
            deadline: Some(Instant::now() + KILL_TIMEOUT),
            ..Ending::default()
        };
        vm.kill();
    }
}

impl Monitor<VmPlan> {
    /// Watches the guest until its hypervisor is gone.
    pub(super) async fn follow(&mut self, booted: &mut Booted, inbox: &mut Inbox, session: &SessionSlot) -> Outcome {
        self.advance(Phase::Running).map_err(at("state"))?;
        self.ready();
        self.kill.pass("start: state is running");
        self.report.send(&Report::Ready);
        self.report.close();
        let mut ending = Ending::default();
        loop {
            let until = ending
                .deadline
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let press_at = ending.press_again.unwrap_or_else(Instant::now);
            let retry = self.enospc.next_try();
            let retry_at = retry.map_or_else(Instant::now, Instant::from_std);
            tokio::select! {
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => {
                    // Cut short by what is the next event.
                    let _ = inbox.unless_ended(self.try_again(&mut *booted.vm)).await;
                }
                event = booted.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason, None, ending.killed),
                    event => {
                        let _ = inbox.unless_ended(self.vm_event(booted, &event, &mut ending, session)).await;
                    }
                },
                failure = booted.shares.ended() => {
                    let reason = self.share_ended(&mut *booted.vm, failure).await?;
                    return self.ended(reason, None, ending.killed);
                }
                event = inbox.next() => match event {
                    Event::Command(request, answer) => {
                        self.command(booted, inbox, request, answer, &mut ending, session).await;
                    }
                    Event::Terminate => {
                        self.note_stop_reason(StopReason::Host);
                        self.ask_to_stop(booted, inbox, self.plan.stop_grace_ms, &mut ending).await;
                    }
                    // A VM has no entrypoint, and nobody asks its agent about networks.
                    Event::EntryEnded(_) | Event::NetworkAnswered(_) => {}
                },
                () = tokio::time::sleep_until(press_at), if ending.press_again.is_some() => {
                    let _ = inbox.unless_ended(within("power button", booted.vm.power_button())).await;
                    ending.press_again = Some(Instant::now() + PRESS_PERIOD);
                }
                () = tokio::time::sleep_until(until), if ending.deadline.is_some() => {
                    if ending.killed {
                        self.log.note(Source::Monitor, "the hypervisor does not end after SIGKILL");
                        return Ok(Exit::Killed);
                    }
                    self.log.note(Source::Monitor, "the guest did not power off in time: killed");
                    ending.kill(&mut *booted.vm);
                }
            }
        }
    }

    /// An event of the hypervisor that does not end the machine.
    async fn vm_event(&mut self, booted: &mut Booted, event: &VmEvent, ending: &mut Ending, session: &SessionSlot) {
        match event {
            // A full disk stops the guest; that the state cannot be written then must not end it.
            VmEvent::Paused => self.advance_if_possible(Phase::Paused),
            VmEvent::Resumed => {
                self.advance_if_possible(Phase::Running);
                clock::tell(session.borrow().clone());
            }
            VmEvent::Rebooted => {
                // A kernel asks for its reset several times before it happens.
                if ending.rebooted.is_none_or(|at| at.elapsed() > REBOOT_PERIOD) {
                    self.log.note(Source::Monitor, "the guest restarts");
                }
                ending.rebooted = Some(Instant::now());
            }
            VmEvent::AgentPort { is_open } => self.agent_port(booted, *is_open, session).await,
            other => self.note_event(other),
        }
    }

    /// Waits for the event by which the machine leaves the phase `left`, if it is in it: whoever asked for a pause, or for its
    /// end, must find the machine so with the next command.
    async fn until_told(&mut self, booted: &mut Booted, left: Phase, ending: &mut Ending, session: &SessionSlot) {
        let until = Instant::now() + guest::EVENT_TIMEOUT;
        while self.machine.state.phase == left {
            match tokio::time::timeout_at(until, booted.vm.next_event()).await {
                // The loop sees it again.
                Ok(VmEvent::Exited(_)) | Err(_) => return,
                Ok(event) => self.vm_event(booted, &event, ending, session).await,
            }
        }
    }

    /// Joins or leaves a network; the guest sees an interface come or go, and asks the network about it.
    async fn change_networks(
        &mut self,
        booted: &mut Booted,
        inbox: &mut Inbox,
        wanted: Reconnect,
        answer: oneshot::Sender<Reply>,
    ) {
        let present = self.plan.attachments.clone();
        let parts = Parts {
            vm: &mut *booted.vm,
            session: None,
            hold: &mut booted.networks,
        };
        let done = inbox
            .unless_ended(self.begin_change(parts, &present, wanted, answer))
            .await;
        if let Ok(Some(change)) = done {
            let written = self.write_change(&change.wanted);
            change.answer(written);
        }
    }

    fn write_change(&mut self, wanted: &Reconnect) -> Result<(), Failure> {
        self.plan
            .set_attachments(&self.machine.spec, wanted.attachments.clone())?;
        let plan = Plan::Vm(Box::new(self.plan.clone()));
        self.write_networks(wanted, &plan)
    }

    async fn command(
        &mut self,
        booted: &mut Booted,
        inbox: &mut Inbox,
        request: Request,
        answer: oneshot::Sender<Reply>,
        ending: &mut Ending,
        session: &SessionSlot,
    ) {
        match request {
            Request::Stop { grace_ms } => {
                self.note_stop_reason(StopReason::User);
                self.wait_for_end(answer);
                let grace_ms = grace_ms.unwrap_or(self.plan.stop_grace_ms);
                self.ask_to_stop(booted, inbox, grace_ms, ending).await;
            }
            Request::Wait => self.wait_for_end(answer),
            Request::Kill => {
                self.note_stop_reason(StopReason::User);
                self.wait_for_end(answer);
                ending.kill(&mut *booted.vm);
            }
            Request::Signal(signal) => guest::reply(answer, Err(no_entrypoint(signal))),
            Request::Pause => {
                self.enospc.forget();
                if let Ok(paused) = inbox.unless_ended(within("pause", booted.vm.pause())).await {
                    if paused.is_ok() {
                        self.until_told(booted, Phase::Running, ending, session).await;
                    }
                    guest::reply(answer, paused);
                }
            }
            Request::Resume => {
                if let Ok(resumed) = inbox.unless_ended(within("resume", booted.vm.resume())).await {
                    if resumed.is_ok() {
                        self.until_told(booted, Phase::Paused, ending, session).await;
                    }
                    guest::reply(answer, resumed);
                }
            }
            Request::Reconnect(wanted) => self.change_networks(booted, inbox, *wanted, answer).await,
            Request::GrowVolume { name, size_bytes } => {
                let grown = self.grow_volume(booted, &name, size_bytes, session);
                match inbox.unless_ended(grown).await {
                    Ok(Ok(Some((agent, request)))) => self.grow_in_guest(agent, request, answer),
                    Ok(done) => guest::reply(answer, done.map(drop)),
                    Err(Cut) => {}
                }
            }
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

    /// Makes a volume larger while the guest has it: its file, and the disk that the guest sees. What its agent is asked then,
    /// if it has one.
    async fn grow_volume(
        &mut self,
        booted: &mut Booted,
        name: &str,
        size_bytes: u64,
        session: &SessionSlot,
    ) -> Result<Option<(Session, AgentRequest)>, Failure> {
        let writable = |volume: &VolumeUse| volume.name == name && !volume.read_only;
        let Some(index) = self.plan.volumes.iter().position(writable) else {
            let message = format!("the machine does not write to a volume '{name}'");
            return Err(Failure::new(Class::Conflict, message));
        };
        let volume = Volumes::new(&self.home).grow(name, size_bytes)?;
        let disk = volume_disk(index);
        let reported = within("resize disk", booted.vm.resize_disk(&disk, volume.size_bytes)).await;
        reported.map_err(|failure| {
            failure
                .context("the guest was not told")
                .hint("the volume is larger; the machine sees it at its next start")
        })?;
        // With our agent in the guest the file system grows at once, else at the next start.
        let agent = session.borrow().clone();
        let is_awake = self.require_awake().is_ok();
        Ok(agent
            .filter(|_| is_awake)
            .zip(root_of(&volume))
            .map(|(agent, (partition, fstype))| {
                let request = AgentRequest::Grow {
                    serial: zmachine_spec::volume::serial(name),
                    partition,
                    fstype: fstype.to_owned(),
                    disk_bytes: volume.size_bytes,
                };
                (agent, request)
            }))
    }

    /// Has the guest's agent grow a file system, and answers when it has. One that cannot is no failure: the disk has grown.
    fn grow_in_guest(&self, agent: Session, request: AgentRequest, answer: oneshot::Sender<Reply>) {
        let log = self.log.clone();
        tokio::spawn(async move {
            if let Err(failure) = guest::ask(&agent, &request, guest::GROW_TIMEOUT).await {
                log.note(Source::Monitor, &format!("the file system did not grow: {failure}"));
            }
            guest::reply(answer, Ok(()));
        });
    }

    /// Presses the power button, and lets the end by force follow.
    async fn ask_to_stop(&mut self, booted: &mut Booted, inbox: &mut Inbox, grace_ms: u64, ending: &mut Ending) {
        let is_paused = matches!(self.machine.state.phase, Phase::Paused);
        self.advance_if_possible(Phase::Stopping);
        ending.press_again = Some(Instant::now() + PRESS_PERIOD);
        // A second request may shorten the time, not lengthen it.
        let deadline = Instant::now() + Duration::from_millis(grace_ms);
        ending.deadline = Some(ending.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        let pressed = async {
            if is_paused {
                booted.vm.resume().await?;
            }
            booted.vm.power_button().await
        };
        if let Ok(Err(failure)) = inbox.unless_ended(within("power button", pressed)).await {
            self.log
                .note(Source::Monitor, &format!("the power button was not pressed: {failure}"));
        }
    }

    /// Begins or ends the session with the guest's agent. Whatever happens there, the machine runs on.
    async fn agent_port(&mut self, booted: &mut Booted, is_open: bool, slot: &SessionSlot) {
        slot.send_replace(None);
        if !is_open {
            return self.log.note(Source::Monitor, "the guest's agent went");
        }
        let stream = match booted.vm.connect_agent().await {
            Ok(stream) => stream,
            Err(error) => {
                let text = format!("the guest's agent cannot be reached: {error}");
                return self.log.note(Source::Monitor, &text);
            }
        };
        let (session, slot, log) = (
            Session::start(std::future::ready(Ok(stream))),
            slot.clone(),
            self.log.clone(),
        );
        tokio::spawn(async move {
            // Only one that answers is ours: any program of the guest may open the port.
            match tokio::time::timeout(AGENT_TIMEOUT, session.ask(&AgentRequest::Ping)).await {
                Ok(Ok(_)) => {
                    log.note(Source::Monitor, "the guest's agent is here");
                    slot.send_replace(Some(session));
                }
                Ok(Err(error)) => log.note(Source::Monitor, &format!("the guest's agent is not usable: {error}")),
                Err(_) => log.note(Source::Monitor, "the guest's agent does not answer"),
            }
        });
    }

    /// What a process started in the guest has where nothing else is said.
    pub(super) fn exec_base(&self) -> Process {
        let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
        env.extend(self.plan.seed.env.iter().filter(|(key, _)| key != "PATH").cloned());
        Process {
            args: Vec::new(),
            env,
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
            init: false,
            restrictions: None,
        }
    }
}

/// The file system on a volume that a guest has mounted: a bare one. One on a partition needs the table changed first,
/// which only its guest may do while it runs.
fn root_of(volume: &Volume) -> Option<(Option<u32>, &'static str)> {
    let mut raw = RawFile::new(std::fs::File::open(volume.data()).ok()?).ok()?;
    match identify(&mut raw, 0) {
        Ok(OnDisk::Filesystem(filesystem)) => Some((None, filesystem.kind.name())),
        _ => None,
    }
}

fn no_entrypoint(signal: i32) -> Failure {
    let message = format!("signal {signal} cannot be sent: a VM has no entrypoint");
    Failure::new(Class::Conflict, message)
        .hint("'zmachine stop' presses its power button, 'zmachine kill' ends it at once")
}

impl Booted {
    /// Ends what still runs, and waits for it and for the rest of the console.
    pub(super) async fn end(mut self) {
        self.vm.kill();
        // The event loop may have left before the hypervisor was gone; undo needs it gone.
        let gone = async { while !matches!(self.vm.next_event().await, VmEvent::Exited(_)) {} };
        let _ = tokio::time::timeout(Duration::from_secs(10), gone).await;
        if tokio::time::timeout(CONSOLE_TIMEOUT, &mut self.console).await.is_err() {
            self.console.abort();
        }
        self.shares.end().await;
    }
}
