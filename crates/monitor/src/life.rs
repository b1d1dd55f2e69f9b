//! One run of a machine: from the first state to the end of its hypervisor.
//!
//! ```text
//! container: disks, servers, networks ──────────────────────> hypervisor ─> agent configured ─> entrypoint ─┐
//! VM:        volumes, image, seed, networks, servers ───────> hypervisor ───────────────────────────────────┴> event loop
//! ```

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use zmachine_agent_client::clock;
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::Process;
use zmachine_hypervisor::Saved as SavedVm;
use zmachine_plan::container::DEFAULT_PATH;
use zmachine_plan::{Plan, VmPlan};
use zmachine_spec::Failure;
use zmachine_spec::control::Report;
use zmachine_store::idle::IdleState;
use zmachine_store::log::Source;

use super::agent_start::EntryStart;
use super::context::{AbortOnDrop, Monitor, Outcome, Started, at};
use super::execs::Execs;
use super::follow::Follow;
use super::inbox::{Cut, Inbox};
use super::restored::{Restoring, TakenOver, agent_of};
use super::running::Running;
use super::server;
use super::standby::Stood;
use super::streams::{Attachable, Shared};
use super::{console, entry};

impl Monitor {
    /// From the first state to the end of the hypervisor.
    pub(super) async fn life(&mut self, plan: &mut Plan, inbox: &mut Inbox) -> Outcome {
        self.begin(plan.warnings()).map_err(at("state"))?;
        self.make_group(plan.vm());
        let listener = self.control_socket().map_err(at("run folder"))?;
        let (agent, session) = watch::channel(None);
        let _clock = AbortOnDrop(tokio::spawn(clock::follow(session.clone())));
        let (entry, entry_waiting) = entry::new();
        let (console, console_waiting) = console::new();
        let mut console_waiting = Some(console_waiting);
        let stood = match std::mem::take(&mut self.stands_by) {
            false => None,
            true => match self.stand_by(plan, console_waiting.take(), &listener, inbox).await {
                Ok(stood) => Some(stood),
                Err(outcome) => return outcome,
            },
        };
        let base = exec_base(plan);
        let health = self.start_health(plan.health(), &base, &session);
        let _health = health.map(|checks| AbortOnDrop(tokio::spawn(checks)));
        let shared = Shared {
            attachable: attachable(plan, &entry),
            console,
            session,
            events: self.events.clone(),
            exec_base: Arc::new(base),
            execs: Execs::default(),
            relays: self.relays.clone(),
            paused: self.paused.subscribe(),
            activity: self.activity.clone(),
        };
        let server = server::serve(Arc::clone(&listener), shared.clone());
        let _server = AbortOnDrop(tokio::spawn(server));
        self.report.send(&Report::Listening);

        if let Plan::Vm(plan) = plan
            && let Some(exit) = self.install_vm(plan, inbox).await?
        {
            return Ok(exit);
        }
        let (restoring, mut running, taken_over) = match stood {
            Some(Stood {
                restoring,
                running,
                session,
            }) => (Some(restoring), running, Some(session)),
            None => {
                let (restoring, saved) = self.take_restore(plan).map_err(at("snapshot"))?.unzip();
                let waiting = console_waiting.take().unwrap_or_else(|| console::new().1);
                match inbox.unless_stopped(self.launch(plan, waiting, saved)).await {
                    Ok(launched) => (restoring, launched?, None),
                    Err(Cut) => return Ok(self.cut_short(inbox).await),
                }
            }
        };
        let (stream, started) = oneshot::channel();
        let hub = entry::run(
            entry_waiting,
            async move { started.await.ok() },
            self.log.clone(),
            self.events.clone(),
        );
        let _hub = AbortOnDrop(tokio::spawn(hub));
        let entry = EntryStart { entry, stream };
        let how = restoring.as_ref().map(|restoring| (restoring, taken_over));
        let started = self.start_guest(plan, how, &mut running, &agent, entry, inbox);
        let outcome = match started.await {
            Ok(None) => {
                // Those who came while it was asleep.
                for client in self.activity.wake() {
                    tokio::spawn(server::serve_one(client, shared.clone()));
                }
                let mut follow = Follow::new(self, plan, &mut running, inbox, agent);
                follow.execs = shared.execs;
                follow.was_saved = restoring.is_some();
                follow.follow().await
            }
            Ok(Some(exit)) => Ok(exit),
            Err(failure) => Err(failure),
        };
        running.halt().await;
        self.last_rootfs_lines(&mut running.rootfs).await;
        if self.is_asleep {
            self.listener = Some(listener);
            let networks = std::mem::take(&mut running.networks);
            self.kept = Some(networks.kept(std::mem::take(&mut self.taps)));
        }
        running.end().await;
        outcome
    }

    /// What this run goes on from, if it does; the next one boots.
    pub(super) fn take_restore(&mut self, plan: &Plan) -> Result<Option<(Restoring, SavedVm)>, Failure> {
        let restore = self.restore.take();
        let is_of_idle = restore.as_ref().is_some_and(|restore| self.is_of_idle(restore));
        let taken = restore.map(|restore| self.restoring(restore, plan)).transpose();
        let idle = IdleState::of(&self.machine.dir);
        if !(is_of_idle && taken.is_ok() && idle.is_first_try()?) {
            idle.forget()?;
        }
        match taken {
            Err(failure) if is_of_idle => {
                let text =
                    format!("the machine boots: what it was saved to while it was idle cannot be used: {failure}");
                self.log.note(Source::Monitor, &text);
                Ok(None)
            }
            taken => taken,
        }
    }

    /// From what its plan says to a guest that boots.
    pub(super) async fn launch(
        &mut self,
        plan: &mut Plan,
        console: console::Waiting,
        saved: Option<SavedVm>,
    ) -> Result<Running, (String, Failure)> {
        let (mut backed, wait_for_owner) = match plan {
            // The entrypoint waits for the owner, not the boot.
            Plan::Container(plan) => (self.back_container(plan).await?, false),
            Plan::Vm(plan) => (self.back_vm(plan, saved.is_some()).await?, self.wait_for_owner),
        };
        backed.saved = saved;
        let on = plan.hypervisor().driver;
        let booted = self.boot(on, plan.vm(), backed, console, wait_for_owner).await;
        booted.map_err(at("hypervisor"))
    }

    /// From a guest that boots to one that runs: a container has its entrypoint then, and clients find its agent. A VM is left to
    /// itself. `Ok(Some(exit))` when the machine was stopped meanwhile.
    async fn start_guest(
        &mut self,
        plan: &Plan,
        restoring: Option<(&Restoring, Option<Session>)>,
        running: &mut Running,
        agent: &watch::Sender<Option<Session>>,
        entry: EntryStart,
        inbox: &mut Inbox,
    ) -> Started {
        let Plan::Container(plan) = plan else {
            if let Some((restoring, _)) = restoring {
                self.went_on(restoring);
            }
            return Ok(None);
        };
        let (session, started) = match restoring {
            None => {
                let session = Session::start(agent_of(running)?.connected());
                let started = self.start_entrypoint(plan, running, &session, entry, inbox).await?;
                (session, started)
            }
            Some((restoring, taken_over)) => {
                let taken = match taken_over {
                    Some(session) => TakenOver { session, first: None },
                    None => restoring.take_over(running)?,
                };
                let session = taken.session.clone();
                let started = self.go_on(restoring, plan, running, taken, entry, inbox).await?;
                (session, started)
            }
        };
        if started.is_none() {
            agent.send_replace(Some(session));
        }
        Ok(started)
    }
}

/// What a client follows that attaches.
fn attachable(plan: &Plan, entry: &entry::Entry) -> Attachable {
    match plan {
        Plan::Container(_) => Attachable::Entrypoint(entry.clone()),
        Plan::Vm(_) => Attachable::Console,
    }
}

/// What a process started in the guest has where nothing else is said: what the entrypoint has, if there is one.
fn exec_base(plan: &Plan) -> Process {
    match plan {
        Plan::Container(plan) => plan.process.clone(),
        Plan::Vm(plan) => exec_base_of_vm(plan),
    }
}

fn exec_base_of_vm(plan: &VmPlan) -> Process {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    env.extend(plan.seed.env.iter().filter(|(key, _)| key != "PATH").cloned());
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
