//! The event loop of a VM that runs.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use zmachine_agent_protocol::{Process, Request as AgentRequest};
use zmachine_disk::{Content as OnDisk, RawFile, identify};
use zmachine_hypervisor::VmEvent;

use super::super::Event;
use super::super::clock;
use super::super::networks::Parts;
use super::super::restart::Asked;
use super::super::run::{Monitor, Outcome, at};
use super::super::session::Session;
use super::{Booted, SessionSlot};
use crate::control::{Reconnect, Reply, Report, Request};
use crate::failure::{Class, Failure};
use crate::log::Source;
use crate::plan::container::{DEFAULT_PATH, VolumeUse, volume_disk};
use crate::plan::{Plan, VmPlan};
use crate::state::Phase;
use crate::volume::{Volume, Volumes};

/// How long the agent may take to answer its first question.
const AGENT_PATIENCE: Duration = Duration::from_secs(20);

/// How long the rest of the console may take after the end of the hypervisor.
const CONSOLE_PATIENCE: Duration = Duration::from_millis(500);

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
    /// When that happens.
    deadline: Option<Instant>,
    /// When the power button is pressed once more.
    press_again: Option<Instant>,
    /// When its guest last restarted.
    rebooted: Option<Instant>,
}

impl Monitor<VmPlan> {
    /// Watches the guest until its hypervisor is gone.
    pub(super) async fn follow(
        &mut self,
        booted: &mut Booted,
        inbox: &mut mpsc::Receiver<Event>,
        session: &SessionSlot,
    ) -> Outcome {
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
            let retry = self.space.next_try();
            let retry_at = retry.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(retry_at.into()), if retry.is_some() => {
                    self.try_again(&mut *booted.vm).await;
                }
                event = booted.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason, None, ending.killed),
                    // A full disk stops the guest; that the state can not be written then must not end it.
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
                    VmEvent::AgentPort { is_open } => self.agent_port(booted, is_open, session).await,
                    other => self.note_event(&other),
                },
                failure = booted.shares.ended() => {
                    let reason = self.share_ended(&mut *booted.vm, failure).await?;
                    return self.ended(reason, None, ending.killed);
                }
                Some(event) = inbox.recv() => if let Event::Command(request, answer) = event {
                    let (request, answer) = match request {
                        Request::GrowVolume { name, size_bytes } => {
                            let grown = self.grow_volume(booted, &name, size_bytes, session).await;
                            let _ = answer.send(grown.map_or_else(Reply::Failed, |()| Reply::Done));
                            continue;
                        }
                        other => (other, answer),
                    };
                    self.command(booted, request, answer, &mut ending).await;
                },
                () = self.terminated() => {
                    self.asked(Asked::ByHost);
                    self.ask_to_stop(booted, self.plan.stop_grace_ms, &mut ending).await;
                }
                () = tokio::time::sleep_until(press_at.into()), if ending.press_again.is_some() => {
                    let _ = booted.vm.power_button().await;
                    ending.press_again = Some(Instant::now() + PRESS_PERIOD);
                }
                () = tokio::time::sleep_until(until.into()), if ending.deadline.is_some() => {
                    self.log.note(Source::Monitor, "the guest did not power off in time: killed");
                    ending = Ending { killed: true, ..Ending::default() };
                    booted.vm.kill();
                }
            }
        }
    }

    /// Joins or leaves a network; the guest sees an interface come or go, and asks the network about it.
    async fn change_networks(&mut self, booted: &mut Booted, wanted: &Reconnect) -> Result<(), Failure> {
        let present = self.plan.attachments.clone();
        let parts = Parts {
            vm: &mut *booted.vm,
            session: None,
            hold: &mut booted.networks,
        };
        self.reconnect(parts, &present, wanted).await?;
        self.plan
            .set_attachments(&self.machine.spec, wanted.attachments.clone())?;
        let plan = Plan::Vm(Box::new(self.plan.clone()));
        self.write_networks(wanted, &plan)
    }

    async fn command(
        &mut self,
        booted: &mut Booted,
        request: Request,
        answer: oneshot::Sender<Reply>,
        ending: &mut Ending,
    ) {
        let control = |e| Failure::from_error(Class::Failed, &e);
        let result = match request {
            Request::Stop { grace_ms } => {
                self.asked(Asked::ByUser);
                self.wait_for_end(answer);
                let grace_ms = grace_ms.unwrap_or(self.plan.stop_grace_ms);
                return self.ask_to_stop(booted, grace_ms, ending).await;
            }
            Request::Wait => return self.wait_for_end(answer),
            Request::Kill => {
                self.asked(Asked::ByUser);
                ending.killed = true;
                self.wait_for_end(answer);
                return booted.vm.kill();
            }
            Request::Signal(signal) => Err(no_entrypoint(signal)),
            Request::Pause => {
                self.space.forget();
                booted.vm.pause().await.map_err(control)
            }
            Request::Resume => booted.vm.resume().await.map_err(control),
            Request::Reconnect(wanted) => self.change_networks(booted, &wanted).await,
            Request::Attach { .. }
            | Request::Console { .. }
            | Request::Exec(_)
            | Request::Transfer(_)
            | Request::Traffic
            | Request::Capacity
            | Request::GrowVolume { .. } => Err(Failure::new(Class::Usage, "not a command for the monitor")),
        };
        let _ = answer.send(result.map_or_else(Reply::Failed, |()| Reply::Done));
    }

    /// Makes a volume larger while the guest has it: its file, and the disk that the guest sees.
    async fn grow_volume(
        &mut self,
        booted: &mut Booted,
        name: &str,
        size_bytes: u64,
        session: &SessionSlot,
    ) -> Result<(), Failure> {
        let writable = |volume: &VolumeUse| volume.name == name && !volume.read_only;
        let Some(index) = self.plan.volumes.iter().position(writable) else {
            let message = format!("the machine does not write to a volume '{name}'");
            return Err(Failure::new(Class::Conflict, message));
        };
        let volume = Volumes::new(&self.home).grow(name, size_bytes)?;
        let told = booted.vm.resize_disk(&volume_disk(index), volume.size_bytes).await;
        told.map_err(|e| {
            Failure::from_error(Class::Failed, &e)
                .context("the guest was not told")
                .hint("the volume is larger; the machine sees it at its next start")
        })?;
        // With our agent in the guest the file system grows at once, else at the next start.
        let agent = session.borrow().clone();
        if let (Some(agent), Some((partition, fstype))) = (agent, root_of(&volume)) {
            let request = AgentRequest::Grow {
                serial: crate::volume::serial(name),
                partition,
                fstype: fstype.to_owned(),
                disk_bytes: volume.size_bytes,
            };
            if let Err(error) = agent.ask(&request).await {
                self.log
                    .note(Source::Monitor, &format!("the file system did not grow: {error}"));
            }
        }
        Ok(())
    }

    /// Presses the power button, and lets the end by force follow.
    async fn ask_to_stop(&mut self, booted: &mut Booted, grace_ms: u64, ending: &mut Ending) {
        if matches!(self.machine.state.phase, Phase::Paused) {
            let _ = booted.vm.resume().await;
        }
        self.advance_if_possible(Phase::Stopping);
        if let Err(error) = booted.vm.power_button().await {
            self.log
                .note(Source::Monitor, &format!("the power button was not pressed: {error}"));
        }
        ending.press_again = Some(Instant::now() + PRESS_PERIOD);
        // A second request may shorten the time, not lengthen it.
        let deadline = Instant::now() + Duration::from_millis(grace_ms);
        ending.deadline = Some(ending.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
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
                let text = format!("the guest's agent can not be reached: {error}");
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
            match tokio::time::timeout(AGENT_PATIENCE, session.ask(&AgentRequest::Ping)).await {
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
    let message = format!("signal {signal} can not be sent: a VM has no entrypoint");
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
        if tokio::time::timeout(CONSOLE_PATIENCE, &mut self.console).await.is_err() {
            self.console.abort();
        }
        self.shares.end().await;
    }
}
