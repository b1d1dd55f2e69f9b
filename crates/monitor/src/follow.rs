//! The event loop of a machine that runs, be it a container or a VM: one event, one decision, the state, the effect.
//!
//! What is different between them follows from who is process 1 of the guest ([`Init`]); what one of them does not have (an
//! entrypoint, a rootfs server) has no events.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zmachine_agent_client::clock;
use zmachine_agent_client::session::Session;
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_plan::Plan;
use zmachine_spec::{Exit, HealthStatus, Phase};
use zmachine_store::log::Source;

use super::backoff::StopReason;
use super::change::Change;
use super::context::{Monitor, Outcome, at};
use super::ending::Ending;
use super::enospc::{self, Enospc};
use super::execs::Execs;
use super::guest;
use super::inbox::{Event, Inbox};
use super::init::{Init, POWER_OFF_TIMEOUT};
use super::quiet::Quiet;
use super::rootfs_child;
use super::running::Running;

/// How long a power-off that the guest decided on may come after the end of the channel to its entrypoint; a dead agent is
/// killed then.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// Resets within this time are one restart: a kernel asks for its reset several times before it happens.
const REBOOT_PERIOD: Duration = Duration::from_secs(1);

/// A machine that runs, in the hands of its event loop.
pub(super) struct Follow<'a> {
    pub(super) monitor: &'a mut Monitor,
    /// What it was started by, with the networks that it is in now.
    pub(super) plan: &'a mut Plan,
    pub(super) running: &'a mut Running,
    pub(super) inbox: &'a mut Inbox,
    /// Where clients find the session with the guest's agent, while there is one.
    pub(super) agent: watch::Sender<Option<Session>>,
    pub(super) init: Init,
    pub(super) ending: Ending,
    /// A change of its networks that waits for the guest.
    pub(super) changing: Option<Change>,
    pub(super) enospc: Enospc,
    /// Its guest is being made to stand still, so that it can be saved.
    pub(super) is_saving: bool,
    /// An interface has come or gone since its guest began to run: its devices are not where the plan has them.
    pub(super) is_rewired: bool,
    /// Its guest went on from what was saved, with the clock of then.
    pub(super) was_saved: bool,
    /// Since when nobody has had to do with it, where that counts.
    pub(super) quiet: Option<Quiet>,
    /// The processes that have an id.
    pub(super) execs: Execs,
    /// When its guest last restarted.
    rebooted: Option<Instant>,
}

impl<'a> Follow<'a> {
    /// A machine whose guest has just begun to run.
    pub(super) fn new(
        monitor: &'a mut Monitor,
        plan: &'a mut Plan,
        running: &'a mut Running,
        inbox: &'a mut Inbox,
        agent: watch::Sender<Option<Session>>,
    ) -> Follow<'a> {
        Follow {
            init: Init::of(plan),
            monitor,
            plan,
            running,
            inbox,
            agent,
            ending: Ending::default(),
            changing: None,
            enospc: Enospc::default(),
            is_saving: false,
            is_rewired: false,
            was_saved: false,
            quiet: None,
            execs: Execs::default(),
            rebooted: None,
        }
    }

    /// Follows the machine until its hypervisor is gone.
    pub(super) async fn follow(mut self) -> Outcome {
        self.monitor.ready().map_err(at("state"))?;
        self.expect_quiet();
        if std::mem::take(&mut self.monitor.is_entry_ready) {
            self.template_of_ready();
        }
        loop {
            if self.monitor.is_asleep {
                return Ok(Exit::Killed);
            }
            tokio::select! {
                event = self.running.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason),
                    event => self.vm_event(&event).await,
                },
                event = self.inbox.next() => self.event(event).await,
                event = rootfs_child::next_event(&mut self.running.rootfs) => {
                    self.monitor.rootfs_event(&mut self.running.rootfs, event)?;
                }
                (at, event) = self.running.images.next_event() => self.image_event(at, event)?,
                failure = self.running.shares.ended() => {
                    let reason = self.monitor.share_ended(&mut *self.running.vm, failure).await?;
                    return self.ended(reason);
                }
                () = due(self.monitor.watch.due().map(Instant::from_std)) => self.monitor.save_due(),
                () = due(self.enospc.next_try()) => self.try_again().await,
                () = due(self.quiet.as_ref().map(|quiet| quiet.next)) => self.look_for_quiet(),
                () = due(self.ending.press_again) => self.press_power_button().await,
                () = due(self.ending.deadline) => {
                    if let Some(exit) = self.overdue() {
                        return Ok(exit);
                    }
                }
            }
        }
    }

    /// Counts, from now on, for how long nobody has to do with it, where that is of any use: one that shares its memory has little to give
    /// back.
    pub(super) fn expect_quiet(&mut self) {
        let timeout = self.monitor.machine.spec.idle_timeout_ms;
        let is_possible = self.plan.vm().is_saveable && self.running.vm.memory().is_some();
        self.quiet = timeout.filter(|_| is_possible).map(Quiet::new);
    }

    /// What comes from clients, from the host, and from the tasks that wait for the guest.
    async fn event(&mut self, event: Event) {
        match event {
            Event::Command(request, answer) => self.command(request, answer).await,
            Event::Terminate => {
                self.monitor.note_stop_reason(StopReason::Host);
                self.ask_to_stop(self.plan.stop_grace_ms()).await;
            }
            Event::NetworkAnswered(answered) => self.go_on_changing(answered).await,
            Event::Frozen(frozen) => self.frozen(*frozen).await,
            Event::GuestUp => self.monitor.guest_is_up(true),
            Event::Probed(health) => {
                let is_healthy = health.status == HealthStatus::Healthy;
                self.monitor.probed(*health);
                if is_healthy {
                    self.template_of_ready();
                }
            }
            Event::EntryReady => self.template_of_ready(),
            Event::EntryEnded(Ok(status)) => {
                self.monitor.advance_if_possible(Phase::Stopping);
                self.ending.entrypoint_ended(status.into(), POWER_OFF_TIMEOUT);
            }
            Event::EntryEnded(Err(error)) => {
                let text = format!("the channel to the entrypoint ended: {error}");
                self.monitor.log.note(Source::Monitor, &text);
                self.ending
                    .deadline
                    .get_or_insert_with(|| Instant::now() + CHANNEL_TIMEOUT);
            }
        }
    }

    /// An event of the hypervisor that does not end the machine.
    async fn vm_event(&mut self, event: &VmEvent) {
        match event {
            // A full disk stops the guest; that the state cannot be written then must not end it.
            VmEvent::Paused => self.monitor.advance_if_possible(Phase::Paused),
            VmEvent::Resumed => {
                self.monitor.advance_if_possible(Phase::Running);
                clock::tell(self.session());
            }
            VmEvent::Rebooted => {
                if self.rebooted.is_none_or(|at| at.elapsed() > REBOOT_PERIOD) {
                    self.monitor.log.note(Source::Monitor, "the guest restarts");
                }
                self.rebooted = Some(Instant::now());
                self.monitor.guest_is_up(false);
            }
            VmEvent::AgentPort { is_open } => self.agent_port(*is_open).await,
            VmEvent::DiskError {
                disk, no_space: true, ..
            } => {
                self.monitor.log.note(Source::Hypervisor, &format!("{event:?}"));
                self.wait_for_space(disk);
            }
            other => self.monitor.log.note(Source::Hypervisor, &format!("{other:?}")),
        }
    }

    /// Waits for the event by which the machine leaves the phase `left`, if it is in it: whoever asked for a pause, or for its
    /// end, must find the machine so with the next command.
    pub(super) async fn until_told(&mut self, left: Phase) {
        let until = Instant::now() + guest::EVENT_TIMEOUT;
        while self.monitor.machine.state.phase == left {
            match tokio::time::timeout_at(until, self.running.vm.next_event()).await {
                // The loop sees it again.
                Ok(VmEvent::Exited(_)) | Err(_) => return,
                Ok(event) => self.vm_event(&event).await,
            }
        }
    }

    /// The session with the guest's agent, when there is one.
    pub(super) fn session(&self) -> Option<Session> {
        self.agent.borrow().clone()
    }

    fn ended(&mut self, reason: ExitReason) -> Outcome {
        self.monitor.ended(reason, self.ending.exit, self.ending.killed)
    }

    /// The time for an orderly end is over, or that of a killed hypervisor is.
    fn overdue(&mut self) -> Option<Exit> {
        let log = &self.monitor.log;
        if self.ending.killed {
            log.note(Source::Monitor, "the hypervisor does not end after SIGKILL");
            return Some(self.ending.exit.unwrap_or(Exit::Killed));
        }
        log.note(Source::Monitor, "the guest did not power off in time: killed");
        self.ending.kill(&mut *self.running.vm);
        None
    }

    /// There is no room for what the guest writes: it stands still, and is let go on when there may be.
    fn wait_for_space(&mut self, disk: &str) {
        self.enospc.next_try = Some(Instant::now() + enospc::PAUSE);
        if !std::mem::replace(&mut self.enospc.reported, true) {
            let warning = format!("there is no room on this host for what the guest writes to its disk '{disk}'");
            self.monitor
                .machine
                .state
                .warn(format!("{warning}: it waits until there is"));
            self.monitor.log.note(Source::Monitor, &warning);
        }
    }

    /// Lets a guest that waits for room go on. Without room it stops again at its next write.
    async fn try_again(&mut self) {
        self.enospc.next_try = None;
        // Cut short by what is the next event.
        let tried = self.inbox.unless_ended(self.running.vm.resume()).await;
        if let Ok(Err(error)) = tried {
            let text = format!("the guest cannot be let go on: {error}");
            self.monitor.log.note(Source::Monitor, &text);
        }
    }
}

/// Resolves at that time; never when there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
