//! From a booting guest to a running entrypoint: configure, wait for the owner, run. Watches everything else meanwhile.

use std::time::Duration;

use tokio::sync::oneshot;
use zmachine_agent_client::session::{Session, SessionError};
use zmachine_agent_protocol::{READY_SOCKET, Reply as AgentReply, Request as AgentRequest};
use zmachine_hypervisor::{ExitReason, VmEvent};
use zmachine_plan::ContainerPlan;
use zmachine_spec::{Class, Exit, Failure};
use zmachine_store::log::Source;

use super::context::{Monitor, Started, at, describe};
use super::entry::{self, Entry};
use super::inbox::{Cut, Inbox};
use super::rootfs_child;
use super::rootfs_child::RootfsEvent;
use super::running::Running;
use super::sockets;

/// How long the owner may take to attach. It does so at once, or it is gone.
const OWNER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of a hypervisor may come after the end of its channels.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What the end of the rootfs server means for a step of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootfsEnd {
    /// The guest may not use the disk yet, and then QEMU 7.2 does not notice that its device is gone (it forgets to
    /// reconnect one that was never started; mended in QEMU 8.2): the guest would wait for its root for ever.
    IsFatal,
    /// The guest has mounted the disk: a new server takes over.
    IsMended,
}

/// What interrupted a step of the start.
pub(super) enum Interrupt {
    Timeout(Duration),
    VmEnded(ExitReason),
    Killed,
    Rootfs(String, Failure),
}

/// What becomes the entrypoint's stream.
pub(super) struct EntryStart {
    pub(super) entry: Entry,
    pub(super) stream: oneshot::Sender<entry::Started>,
}

impl Monitor {
    /// Waits for the client that started the machine, where there is one. `Some` when the machine was stopped meanwhile.
    pub(super) async fn await_owner(&mut self, entry: &mut Entry, inbox: &mut Inbox) -> Option<Exit> {
        if !self.wait_for_owner {
            return None;
        }
        let attached = tokio::time::timeout(OWNER_TIMEOUT, entry.owner_attached());
        match inbox.unless_stopped(attached).await {
            Ok(_) => None,
            Err(Cut) => Some(self.cut_short(inbox).await),
        }
    }

    /// Brings the guest up and starts the entrypoint. `Ok(Some(exit))` when the machine was stopped meanwhile.
    pub(super) async fn start_entrypoint(
        &mut self,
        plan: &ContainerPlan,
        running: &mut Running,
        session: &Session,
        entry: EntryStart,
        inbox: &mut Inbox,
    ) -> Started {
        let EntryStart { mut entry, stream } = entry;
        // Beside the guest's boot, so it costs nothing.
        if let Some(exit) = self.await_owner(&mut entry, inbox).await {
            return Ok(Some(exit));
        }
        let mut boot = plan.boot.clone();
        boot.secrets = zmachine_store::secret::read_all(&self.machine.spec.secrets).map_err(at("secrets"))?;
        let boot = AgentRequest::Configure(Box::new(boot));
        let template = self.begin_template(plan);
        let tells_ready = self.makes_template_of_ready(plan);
        let mut process = plan.process.clone();
        if tells_ready {
            process.env.push(("NOTIFY_SOCKET".to_owned(), READY_SOCKET.to_owned()));
        }
        let run = (!plan.is_idle()).then_some(AgentRequest::Run(process));
        // Of one whose entrypoint runs no template of its start can be made, and it is heard only where somebody listens.
        let (run, later) = match template.is_some() || tells_ready {
            true => (None, run),
            false => (run, None),
        };
        // Both at once, which saves a round trip through the guest: the agent runs nothing before it is configured.
        let asked = async {
            let mut boot = session.open(&boot).await?;
            let run = match &run {
                Some(run) => Some(session.open(run).await?),
                None => None,
            };
            Ok((boot.reader.reply().await?, run))
        };
        let limit = Duration::from_secs(plan.start_timeout_s);
        let (configured, run) = match self.during(running, inbox, RootfsEnd::IsFatal, limit, asked).await {
            Ok(Err(error)) => return Err(self.cut_off(running, error, "guest set-up").await),
            Ok(Ok(answers)) => answers,
            Err(interrupt) => return self.interrupted(interrupt, "guest boot"),
        };
        let AgentReply::Configured {
            kernel,
            phases: guest_phases,
            warnings,
            ..
        } = configured
        else {
            return Err(self.cut_off(running, SessionError::Unexpected, "guest set-up").await);
        };
        let phases: Vec<String> = guest_phases
            .iter()
            .map(|p| format!("{} {} us", p.name, p.micros))
            .collect();
        self.log
            .note(Source::Agent, &format!("configured: {}", phases.join(", ")));
        self.phase("guest boot");
        if let Some(recorder) = &mut self.recorder {
            for phase in &guest_phases {
                recorder.timed(&format!("guest: {}", phase.name), phase.micros as f64 / 1000.0);
            }
        }
        self.machine.state.guest_kernel = Some(kernel);
        warnings.into_iter().for_each(|w| self.machine.state.warn(w));
        self.kill.pass("start: guest configured");
        if let Some(draft) = template {
            let made = self.make_template(draft, plan, running, session);
            match inbox.unless_stopped(made).await {
                Err(Cut) => return Ok(Some(self.cut_short(inbox).await)),
                Ok(made) => made.map_err(at("template"))?,
            }
            self.phase("template");
        }
        if tells_ready {
            let listening = self.listen_for_ready(session);
            if let Err(Cut) = inbox.unless_stopped(listening).await {
                return Ok(Some(self.cut_short(inbox).await));
            }
        }
        let run = match later {
            Some(later) => Some(session.open(&later).await.map_err(at("entrypoint"))?),
            None => run,
        };
        sockets::forward(session, &self.machine.spec.sockets);
        let Some(mut run) = run else { return Ok(None) };
        let started = async {
            match run.reader.reply().await? {
                AgentReply::Started { pid } => Ok((run, pid)),
                _ => Err(SessionError::Unexpected),
            }
        };
        let started = match self.during(running, inbox, RootfsEnd::IsMended, limit, started).await {
            Ok(Err(error)) => return Err(self.cut_off(running, error, "entrypoint").await),
            Ok(Ok(started)) => started,
            Err(interrupt) => return self.interrupted(interrupt, "entrypoint"),
        };
        self.phase("entrypoint");
        let _ = stream.send(started);
        Ok(None)
    }

    /// Runs `step` within the start's time limit, while the rest of the machine is watched.
    pub(super) async fn during<T>(
        &mut self,
        running: &mut Running,
        inbox: &mut Inbox,
        rootfs_end: RootfsEnd,
        limit: Duration,
        step: impl Future<Output = T>,
    ) -> Result<T, Interrupt> {
        let deadline = tokio::time::Instant::now() + limit;
        tokio::pin!(step);
        loop {
            tokio::select! {
                done = &mut step => return Ok(done),
                event = running.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return Err(Interrupt::VmEnded(reason)),
                    other => self.log.note(Source::Hypervisor, &format!("{other:?}")),
                },
                event = inbox.next() => {
                    if self.without_guest(event, "the machine is still starting").is_break() {
                        return Err(Interrupt::Killed);
                    }
                }
                failure = running.shares.ended() => return Err(Interrupt::Rootfs("guest boot".to_owned(), failure)),
                event = rootfs_child::next_event(&mut running.rootfs) => {
                    if let (RootfsEvent::Ended(status), RootfsEnd::IsFatal) = (&event, rootfs_end) {
                        let failure = Failure::new(Class::Failed, format!("the rootfs server ended while the guest started ({status})"));
                        return Err(Interrupt::Rootfs("guest boot".to_owned(), failure.hint("start the machine again")));
                    }
                    self.rootfs_event(&mut running.rootfs, event).map_err(|(step, failure)| Interrupt::Rootfs(step, failure))?;
                }
                () = tokio::time::sleep_until(deadline) => return Err(Interrupt::Timeout(limit)),
            }
        }
    }

    /// A failed step. When the hypervisor is gone, that is the reason, though the end of its channel was seen first.
    pub(super) async fn cut_off(&self, running: &mut Running, error: SessionError, step: &str) -> (String, Failure) {
        if !matches!(error, SessionError::Agent(_)) {
            let ended = async {
                loop {
                    if let VmEvent::Exited(reason) = running.vm.next_event().await {
                        return reason;
                    }
                }
            };
            if let Ok(reason) = tokio::time::timeout(END_TIMEOUT, ended).await
                && let Err(failure) = self.interrupted(Interrupt::VmEnded(reason), step)
            {
                return failure;
            }
        }
        at(step)(error)
    }

    pub(super) fn interrupted(&self, interrupt: Interrupt, step: &str) -> Started {
        let name = &self.machine.spec.name;
        let console = format!("'zmachine logs --source console,hypervisor {name}' shows how far it came");
        let failure = match interrupt {
            // Nothing of the user's ran yet, so nothing is lost by not asking the guest.
            Interrupt::Killed => return Ok(Some(Exit::Killed)),
            Interrupt::Rootfs(step, failure) => return Err((step, failure)),
            Interrupt::Timeout(limit) => {
                let message = format!("the guest was not up within {} s", limit.as_secs());
                Failure::new(Class::Failed, message).hint(console)
            }
            Interrupt::VmEnded(reason) => Failure::new(
                Class::Failed,
                format!("the virtual machine ended while it started: {}", describe(&reason)),
            )
            .hint(console),
        };
        Err((step.to_owned(), failure))
    }
}
