//! The life of a VM's monitor.
//!
//! ```text
//! volumes locked ─> image installed (once) ─> file system grown ─> seed, firmware's variables ─> networks ─> hypervisor
//! ```
//! The guest is an operating system of its own: it is asked to stop by its power button, may restart as often as it likes,
//! and ends the machine when it switches itself off. Its agent, when it runs ours, comes and goes with it.

mod fit;
mod follow;
mod install;
mod prepare;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use zmachine_hypervisor::{Resources, RunDir, Vm};
use zmachine_plan::VmPlan;
use zmachine_spec::Failure;
use zmachine_spec::control::Report;

use super::clock;
use super::console;
use super::context::{AbortOnDrop, Monitor, Outcome, at};
use super::inbox::{Cut, Inbox};
use super::launch::{not_launched, note_lines};
use super::networks::{Attached, NetworkHold};
use super::server;
use super::session::Session;
use super::share::Shares;
use super::streams::{Attachable, Shared};

/// The hypervisor runs the guest; dropping it ends it.
struct Booted {
    vm: Box<dyn Vm>,
    console: JoinHandle<()>,
    shares: Shares,
    networks: NetworkHold,
    _hypervisor_log: Option<AbortOnDrop>,
}

/// Where the session with the guest's agent is, when there is one.
type SessionSlot = watch::Sender<Option<Session>>;

impl Monitor<VmPlan> {
    /// From the first state to the end of the hypervisor.
    pub(super) async fn life(&mut self, inbox: &mut Inbox) -> Outcome {
        let warnings = self.plan.warnings.clone();
        self.begin(&warnings).map_err(at("state"))?;
        let listener = self.make_run_dir().map_err(at("run folder"))?;
        let vm = self.plan.vm.clone();
        self.make_group(&vm);
        let (session_slot, session) = watch::channel(None);
        let _clock = AbortOnDrop(tokio::spawn(clock::follow(session.clone())));
        let (console, waiting) = console::new();
        let shared = Shared {
            attachable: Attachable::Console,
            console,
            session,
            events: self.events.clone(),
            paused: self.paused.subscribe(),
            exec_base: std::sync::Arc::new(self.exec_base()),
            execs: super::execs::Execs::default(),
            relays: self.relays.clone(),
        };
        let _server = AbortOnDrop(tokio::spawn(server::serve(listener, shared)));
        self.report.send(&Report::Listening);

        // A run before this one had them.
        self.volumes.clear();
        let taken = match inbox.unless_stopped(self.take_volumes()).await {
            Ok(taken) => taken.map_err(at("volumes"))?,
            Err(Cut) => return Ok(self.cut_short(inbox).await),
        };
        self.volumes = taken;
        if let Some(exit) = self.install(inbox).await.map_err(at("install"))? {
            return Ok(exit);
        }
        self.phase("image");
        let mut booted = match inbox.unless_stopped(self.launch(waiting)).await {
            Ok(booted) => booted?,
            Err(Cut) => return Ok(self.cut_short(inbox).await),
        };
        let outcome = self.follow(&mut booted, inbox, &session_slot).await;
        booted.end().await;
        outcome
    }

    /// From a boot volume with the image on it to a running hypervisor.
    async fn launch(&mut self, console: console::Waiting) -> Result<Booted, (String, Failure)> {
        self.fit().await.map_err(at("grow"))?;
        self.make_seed().map_err(at("seed"))?;
        self.make_firmware_variables().map_err(at("firmware"))?;
        self.phase("disks");
        let attachments = self.plan.attachments.clone();
        let attached = self.attach(&attachments).await.map_err(at("network"))?;
        self.phase("network");
        let wanted = self.plan.shares.clone();
        let shares = self.start_shares(&wanted).map_err(at("shared directories"))?;
        self.boot(attached, shares, console).await.map_err(at("hypervisor"))
    }

    async fn boot(
        &mut self,
        attached: Attached,
        mut shares: Shares,
        waiting: console::Waiting,
    ) -> Result<Booted, Failure> {
        let run = RunDir::new(self.home.run_dir(&self.machine.id));
        let Attached { taps, hold, failures } = attached;
        shares.also(failures);
        self.kill.pass("start: before the hypervisor");
        let driver = self.plan.hypervisor.driver.driver();
        let resources = Resources {
            taps,
            jail: self.jail(),
        };
        let launched = driver.launch(&self.plan.vm, resources, &run).await;
        let mut vm = match launched {
            Ok(vm) => vm,
            Err(error) => {
                return Err(shares
                    .reason()
                    .await
                    .unwrap_or_else(|| not_launched(self.plan.hypervisor.driver, &error)));
            }
        };
        self.kill.pass("start: hypervisor started");
        self.confine(vm.pid());
        self.check_walls("hypervisor", vm.pid(), false);
        self.phase("hypervisor");
        if let Some(recorder) = &mut self.recorder {
            recorder.hypervisor(vm.version());
        }
        self.claim_hypervisor(vm.pid())?;
        let stream = vm.take_console();
        let (log, wait_for_owner) = (self.log.clone(), self.wait_for_owner);
        let console = tokio::spawn(async move {
            if let Some(stream) = stream {
                console::run(waiting, stream, log, wait_for_owner).await;
            }
        });
        let messages = vm
            .take_log()
            .map(|lines| tokio::spawn(note_lines(lines, self.log.clone())));
        Ok(Booted {
            vm,
            console,
            shares,
            networks: hold,
            _hypervisor_log: messages.map(AbortOnDrop),
        })
    }
}
