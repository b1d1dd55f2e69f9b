//! The life of a container's monitor: from the first state to the end of the hypervisor.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_hypervisor::VmEvent;
use zmachine_sys::process::ProcessId;

use super::launch::Running;
use super::networks::Parts;
use super::restart::Asked;
use super::run::{AbortOnDrop, Monitor, Outcome, at};
use super::server::{self, Attachable, Shared};
use super::{Event, clock, console, entry, rootfs_child};
use crate::control::{Reconnect, Reply, Report, Request};
use crate::failure::{Class, Failure};
use crate::log::Source;
use crate::plan::container::{VolumeUse, volume_disk};
use crate::plan::{ContainerPlan, Plan};
use crate::state::{Exit, Phase};
use crate::volume::Volumes;

/// Time the guest gets to power off after its entrypoint is gone, before it is killed.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(30);

impl Monitor<ContainerPlan> {
    /// From the first state to the end of the hypervisor.
    pub(super) async fn life(&mut self) -> Outcome {
        let warnings = self.plan.warnings.clone();
        self.begin(&warnings).map_err(at("state"))?;
        let vm = self.plan.vm.clone();
        self.make_group(&vm);
        let listener = self.make_run_dir().map_err(at("run folder"))?;
        let (events, mut inbox) = mpsc::channel(64);
        let (session_sender, session) = watch::channel(None);
        let _clock = AbortOnDrop(tokio::spawn(clock::follow(session.clone())));
        let (entry, waiting) = entry::new();
        let (console, console_waiting) = console::new();
        let shared = Shared {
            attachable: Attachable::Entrypoint(entry.clone()),
            console,
            session,
            events: events.clone(),
            exec_base: std::sync::Arc::new(self.plan.process.clone()),
            relays: self.relays.clone(),
        };
        let _server = AbortOnDrop(tokio::spawn(server::serve(listener, shared)));
        self.report.send(&Report::Listening);

        let mut running = self.launch(console_waiting).await?;
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
        self.ready();
        self.watch.entrypoint_started();
        self.kill.pass("start: state is running");
        self.report.send(&Report::Ready);
        self.report.close();
        let mut exit: Option<Exit> = None;
        let mut deadline: Option<Instant> = None;
        let mut killed = false;
        loop {
            let until = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let counters_due = self.watch.due();
            let counters_at = counters_due.unwrap_or_else(Instant::now);
            let retry = self.space.next_try();
            let retry_at = retry.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(retry_at.into()), if retry.is_some() => {
                    self.try_again(&mut *running.vm).await;
                }
                event = running.vm.next_event() => match event {
                    VmEvent::Exited(reason) => return self.ended(reason, exit, killed),
                    // A full disk stops the guest; that the state can not be written then must not end it.
                    VmEvent::Paused => self.advance_if_possible(Phase::Paused),
                    VmEvent::Resumed => {
                        self.advance_if_possible(Phase::Running);
                        clock::tell(Some(running.session.clone()));
                    }
                    other => self.note_event(&other),
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
                event = rootfs_child::next_event(&mut running.rootfs) => self.rootfs_event(running, event)?,
                failure = running.shares.ended() => {
                    let reason = self.share_ended(&mut *running.vm, failure).await?;
                    return self.ended(reason, exit, killed);
                }
                _ = self.terminate.recv() => {
                    self.asked(Asked::ByHost);
                    let grace = self.ask_to_stop(running, self.plan.stop_grace_ms).await;
                    deadline = Some(Instant::now() + grace + POWER_OFF_PATIENCE);
                }
                () = tokio::time::sleep_until(counters_at.into()), if counters_due.is_some() => self.save_due(),
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
                self.asked(Asked::ByUser);
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
                self.asked(Asked::ByUser);
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
            Request::Pause => {
                self.space.forget();
                let paused = running.vm.pause().await;
                paused.map_err(|e| Failure::from_error(Class::Failed, &e))
            }
            Request::Resume => running
                .vm
                .resume()
                .await
                .map_err(|e| Failure::from_error(Class::Failed, &e)),
            Request::GrowVolume { name, size_bytes } => self.grow_volume(running, &name, size_bytes).await,
            Request::Reconnect(wanted) => self.change_networks(running, &wanted).await,
            Request::Attach { .. }
            | Request::Console { .. }
            | Request::Exec(_)
            | Request::Transfer(_)
            | Request::Traffic
            | Request::Capacity => Err(Failure::new(Class::Usage, "not a command for the monitor")),
        };
        let _ = answer.send(result.map_or_else(Reply::Failed, |()| Reply::Done));
        None
    }

    /// Joins or leaves a network.
    async fn change_networks(&mut self, running: &mut Running, wanted: &Reconnect) -> Result<(), Failure> {
        if self.plan.attachments.is_empty() {
            // What drives interfaces is loaded at the start, when there is one.
            let message = "the machine runs without any network, so its guest has no driver for one";
            return Err(Failure::new(Class::Conflict, message).hint("stop it, and do it then"));
        }
        let present = self.plan.attachments.clone();
        let parts = Parts {
            vm: &mut *running.vm,
            session: Some(&running.session),
            hold: &mut running.networks,
        };
        self.reconnect(parts, &present, wanted).await?;
        self.plan
            .set_attachments(&self.machine.spec, wanted.attachments.clone());
        let plan = Plan::Container(Box::new(self.plan.clone()));
        self.write_networks(wanted, &plan)
    }

    /// Makes a volume larger: its file, the disk that the guest sees, the file system on it.
    async fn grow_volume(&mut self, running: &mut Running, name: &str, size_bytes: u64) -> Result<(), Failure> {
        let writable = |volume: &VolumeUse| volume.name == name && !volume.read_only;
        let Some(index) = self.plan.volumes.iter().position(writable) else {
            let message = format!("the machine does not write to a volume '{name}'");
            return Err(Failure::new(Class::Conflict, message));
        };
        let volume = Volumes::new(&self.home).grow(name, size_bytes)?;
        let told = running.vm.resize_disk(&volume_disk(index), volume.size_bytes).await;
        let later = "the volume is larger; the machine sees it at its next start";
        told.map_err(|e| {
            Failure::from_error(Class::Failed, &e)
                .context("the guest was not told")
                .hint(later)
        })?;
        let serial = crate::volume::serial(name);
        let Some(mount) = self.plan.boot.mounts.iter().find(|mount| mount.serial == serial) else {
            return Ok(());
        };
        let request = AgentRequest::Grow {
            serial: mount.serial.clone(),
            partition: None,
            fstype: mount.fstype.clone(),
            disk_bytes: volume.size_bytes,
        };
        let grown = running.session.ask(&request).await;
        grown.map(drop).map_err(|e| Failure::from(e).hint(later))
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

    /// Lets the last console output arrive, so that a panic's text is in the log.
    async fn note_console_tail(&mut self, running: &mut Running) {
        running.drain_console(Duration::from_millis(200)).await;
    }
}
