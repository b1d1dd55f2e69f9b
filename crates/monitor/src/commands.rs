//! What clients ask of a machine that runs. Nothing here waits for the guest: what it is asked for is a task with a deadline.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use zmachine_hypervisor::ControlError;
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Class, Failure, Phase};
use zmachine_store::log::Source;

use super::backoff::StopReason;
use super::files::Wanted;
use super::follow::Follow;
use super::guest::{self, within};
use super::init::Stop;

/// The power button of a guest that was asked to stop is pressed again after this time: one that is still booting has nobody
/// yet who listens, and one that is on its way down does not mind.
const PRESS_PERIOD: Duration = Duration::from_secs(10);

impl Follow<'_> {
    /// Carries a command out, or has it carried out by a task that answers.
    pub(super) async fn command(&mut self, request: Request, answer: oneshot::Sender<Reply>) {
        match request {
            Request::Stop { grace_ms } => {
                self.monitor.note_stop_reason(StopReason::User);
                self.monitor.wait_for_end(answer);
                let grace_ms = grace_ms.unwrap_or_else(|| self.plan.stop_grace_ms());
                self.ask_to_stop(grace_ms).await;
            }
            Request::Wait => self.monitor.wait_for_end(answer),
            Request::Kill => {
                self.monitor.note_stop_reason(StopReason::User);
                self.monitor.wait_for_end(answer);
                self.ending.kill(&mut *self.running.vm);
            }
            Request::Signal(signal) => self.signal(signal, answer),
            Request::Save { folder } => self.save(folder, answer),
            Request::Pause => self.pause(answer).await,
            Request::Resume => self.resume(answer).await,
            Request::GrowVolume { name, size_bytes } => self.grow_volume(&name, size_bytes, answer).await,
            Request::AddImage { digest } => self.add_image(&digest, answer).await,
            Request::AddFile {
                path,
                serial,
                read_only,
            } => {
                let wanted = Wanted {
                    path,
                    serial,
                    read_only,
                };
                self.add_file(wanted, answer).await;
            }
            Request::Change(change) => self.change(*change, answer).await,
            Request::Reconnect(wanted) => self.change_networks(*wanted, answer).await,
            Request::Claim { .. } => {
                let failure = Failure::new(
                    Class::Conflict,
                    "the machine does not stand by: it is somebody's already",
                );
                guest::reply(answer, Err(failure));
            }
            Request::Attach { .. }
            | Request::Console { .. }
            | Request::Exec(_)
            | Request::StartExec { .. }
            | Request::StartInContainer { .. }
            | Request::Container { .. }
            | Request::Dial { .. }
            | Request::AttachExec { .. }
            | Request::WaitExec { .. }
            | Request::Execs
            | Request::Processes
            | Request::Transfer(_)
            | Request::Hold { .. }
            | Request::Traffic
            | Request::Capacity => {
                guest::reply(answer, Err(Failure::new(Class::Usage, "not a command for the monitor")));
            }
        }
    }

    fn signal(&mut self, signal: i32, answer: oneshot::Sender<Reply>) {
        let explain = move |failure: Failure| {
            let hint = failure.hint.clone().unwrap_or_default();
            failure.context(format!("signal {signal} was not delivered")).hint(hint)
        };
        let request = self.init.signal(signal);
        let asked = request.and_then(|request| Ok((request, self.awake_agent()?)));
        match asked {
            Ok((request, session)) => guest::answer(&session, request, guest::ANSWER_TIMEOUT, answer, explain),
            Err(failure) => guest::reply(answer, Err(failure)),
        }
    }

    async fn pause(&mut self, answer: oneshot::Sender<Reply>) {
        if matches!(self.monitor.machine.state.phase, Phase::Stopping) {
            // It would stand still until it is ended by force.
            let name = &self.monitor.machine.spec.name;
            let failure = Failure::new(Class::Conflict, format!("machine '{name}' is being stopped"));
            return guest::reply(answer, Err(failure));
        }
        self.enospc.forget();
        let pause = within("pause", self.running.vm.pause());
        if let Ok(paused) = self.inbox.unless_ended(pause).await {
            if paused.is_ok() {
                self.until_told(Phase::Running).await;
            }
            guest::reply(answer, paused);
        }
    }

    async fn resume(&mut self, answer: oneshot::Sender<Reply>) {
        let resume = within("resume", self.running.vm.resume());
        if let Ok(resumed) = self.inbox.unless_ended(resume).await {
            if resumed.is_ok() {
                self.until_told(Phase::Paused).await;
            }
            guest::reply(answer, resumed);
        }
    }

    /// Has the guest asked to stop, and lets the end by force follow.
    pub(super) async fn ask_to_stop(&mut self, grace_ms: u64) {
        if self.ending.killed {
            return;
        }
        let (how, at_most) = self.init.stop(grace_ms);
        self.ending.no_later_than(at_most);
        let is_paused = matches!(self.monitor.machine.state.phase, Phase::Paused);
        self.monitor.advance_if_possible(Phase::Stopping);
        if is_paused {
            let resume = within("resume", self.running.vm.resume());
            if let Ok(Err(failure)) = self.inbox.unless_ended(resume).await {
                let text = format!("the guest cannot be let go on: {failure}");
                self.monitor.log.note(Source::Monitor, &text);
            }
        }
        match how {
            Stop::PressButton => self.press_power_button().await,
            Stop::Ask(request) => {
                let (session, log) = (self.session(), self.monitor.log.clone());
                tokio::spawn(async move {
                    let asked = match session {
                        Some(session) => guest::ask(&session, &request, guest::ANSWER_TIMEOUT).await,
                        None => Err(no_agent()),
                    };
                    if let Err(failure) = asked {
                        log.note(Source::Monitor, &format!("the agent was not asked to stop: {failure}"));
                    }
                });
            }
        }
    }

    /// Presses the power button, now and again.
    pub(super) async fn press_power_button(&mut self) {
        let press = within::<(), ControlError>("power button", self.running.vm.power_button());
        if let Ok(Err(failure)) = self.inbox.unless_ended(press).await {
            let text = format!("the power button was not pressed: {failure}");
            self.monitor.log.note(Source::Monitor, &text);
        }
        self.ending.press_again = Some(Instant::now() + PRESS_PERIOD);
    }

    /// The agent of a guest that could answer.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it could not.
    pub(super) fn awake_agent(&self) -> Result<zmachine_agent_client::session::Session, Failure> {
        self.monitor.require_awake()?;
        self.session().ok_or_else(no_agent)
    }
}

fn no_agent() -> Failure {
    Failure::new(Class::Conflict, "no agent of ours answers in the guest")
}
