//! A machine that nobody has to do with is saved, and its hypervisor ends. Its monitor stays, with its networks, and brings it back when
//! somebody comes.
//!
//! ```text
//! running ─ quiet for so long ─> frozen ─> saved to machines/<id>/idle ─> hypervisor ends ─> asleep ─ a client, a packet ─> restored
//! ```
//! # Invariants
//! Memory and devices ([`zmachine_store::idle`]) are used once: before the guest's first instruction, or when it is started in another way,
//! they are gone. A waking that fails before leaves them for the next start, which is the last one that tries. A disk that was written to
//! since makes them worth nothing, and the machine boots.

use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::oneshot;
use zmachine_agent_client::clock::GuestClock;
use zmachine_plan::Plan;
use zmachine_spec::{Class, Exit, Failure, Phase};
use zmachine_store::idle::{IdleState, TAG};
use zmachine_store::log::Source;
use zmachine_store::snapshot::{SNAPSHOT_VERSION, Snapshot};

use super::context::Monitor;
use super::follow::Follow;
use super::frozen::{Frozen, Restore};
use super::guest::within;
use super::inbox::Event;
use super::saving::{Saving, freeze, save_still, thaw};

impl Follow<'_> {
    /// Looks whether anybody has had to do with the machine.
    pub(super) fn look_for_quiet(&mut self) {
        let received = self.received();
        // What runs without a client is somebody's as well, and is found by its id.
        let execs = self.execs.all().iter().any(|record| record.ended.is_none());
        let is_busy = execs
            || self.is_saving
            || self.is_rewired
            || self.changing.is_some()
            || self.monitor.machine.state.phase != Phase::Running
            || self.ending.deadline.is_some();
        let clients = self.monitor.activity.quiet_since().filter(|_| !is_busy);
        let Some(quiet) = &mut self.quiet else { return };
        if !quiet.look(Instant::now(), received, clients) {
            return;
        }
        let Ok(session) = self.awake_agent() else { return };
        self.is_saving = true;
        let events = self.monitor.events.clone();
        tokio::spawn(async move {
            let result = freeze(&session).await;
            let frozen = Frozen {
                folder: PathBuf::new(),
                // Nobody waits for it.
                client: oneshot::channel().0,
                result,
                to_sleep: true,
            };
            let _ = events.send(Event::Frozen(Box::new(frozen))).await;
        });
    }

    /// Bytes that its networks have sent to it.
    fn received(&self) -> u64 {
        let taps = self.plan.attachments().iter().map(|attachment| &attachment.tap);
        let sent = taps.filter_map(|tap| {
            let text = std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/tx_bytes")).ok()?;
            text.trim().parse::<u64>().ok()
        });
        sent.sum()
    }

    /// The guest stands still, and is saved to be ended, unless somebody has come meanwhile.
    pub(super) async fn go_to_sleep(&mut self, result: Result<Option<GuestClock>, Failure>) {
        self.is_saving = false;
        if let Some(quiet) = &mut self.quiet {
            quiet.begin_anew();
        }
        let log = self.monitor.log.clone();
        let clock = match result {
            Ok(clock) => clock,
            Err(failure) => return log.note(Source::Monitor, &format!("it is idle, and not saved: {failure}")),
        };
        self.monitor.kill.pass("idle: guest frozen");
        let idle = IdleState::of(&self.monitor.machine.dir);
        let saved = self.save_to_sleep(&idle, clock);
        // Otherwise the machine is about to end.
        let Ok(saved) = saved.await else { return };
        self.monitor.kill.pass("idle: machine saved");
        match saved {
            // From here on nobody is served until it runs again.
            Ok(()) if self.monitor.activity.fall_asleep() => self.monitor.is_asleep = true,
            Ok(()) => self.stay_awake().await,
            Err(failure) => {
                log.note(Source::Monitor, &format!("it is idle, and not saved: {failure}"));
                self.stay_awake().await;
            }
        }
    }

    async fn save_to_sleep(
        &mut self,
        idle: &IdleState,
        clock: Option<GuestClock>,
    ) -> Result<Result<(), Failure>, super::inbox::Cut> {
        let Plan::Container(plan) = &*self.plan else {
            return Ok(Err(Failure::new(Class::Unsupported, "only containers can be saved")));
        };
        let saving = Saving {
            // Its disks stay where they are.
            own: Vec::new(),
            volumes: Vec::new(),
            accel: plan.vm.accel,
            memory_bytes: plan.vm.memory_bytes,
            has_entrypoint: !plan.is_idle(),
            clock,
        };
        let machine = &self.monitor.machine;
        let (id, spec, guest_kernel) = (
            machine.id.clone(),
            machine.spec.clone(),
            machine.state.guest_kernel.clone(),
        );
        let plan = self.plan.clone();
        let vm = &mut *self.running.vm;
        let work = async {
            idle.begin()?;
            let saved = save_still(vm, &saving, idle.folder()).await?;
            let snapshot = Snapshot {
                version: SNAPSHOT_VERSION,
                machine: spec.name.clone(),
                machine_id: id,
                tag: TAG.to_owned(),
                automatic: true,
                created_at: Timestamp::now(),
                spec,
                plan,
                guest_kernel,
                saved: Some(saved),
                disks: None,
            };
            Ok(idle.describe(&snapshot)?)
        };
        self.inbox.unless_ended(work).await
    }

    async fn stay_awake(&mut self) {
        if let Err(failure) = IdleState::of(&self.monitor.machine.dir).forget() {
            self.monitor.log.note(Source::Monitor, &failure.to_string());
        }
        let goes_on = within("resume", self.running.vm.go_on());
        if let Ok(Err(failure)) = self.inbox.unless_ended(goes_on).await {
            let text = format!("the guest cannot be let go on: {failure}");
            self.monitor.log.note(Source::Monitor, &text);
        }
        let Some(session) = self.session() else { return };
        let log = self.monitor.log.clone();
        tokio::spawn(async move {
            if let Err(failure) = thaw(&session).await {
                log.note(Source::Monitor, &format!("the guest does not go on: {failure}"));
            }
        });
    }
}

impl Monitor {
    /// Writes down what the disks are, once nobody writes to them any more: from then on what was saved counts.
    pub(super) fn note_disks(&self) -> Result<(), Failure> {
        IdleState::of(&self.machine.dir).note_disks(&self.home, &self.machine)?;
        self.kill.pass("idle: saved");
        Ok(())
    }

    /// What the machine was saved to when nobody had to do with it, for the next run; `None` when there is nothing, or it is worth nothing
    /// any more.
    pub(super) fn saved_idle(&self) -> Option<Restore> {
        self.saved_to_sleep(true)
    }

    /// The same right after it was saved, without a look at the disks.
    pub(super) fn saved_just_now(&self) -> Option<Restore> {
        self.saved_to_sleep(false)
    }

    fn saved_to_sleep(&self, are_disks_compared: bool) -> Option<Restore> {
        let idle = IdleState::of(&self.machine.dir);
        if !idle.folder().exists() {
            return None;
        }
        let restore = || -> Result<Restore, Failure> {
            if are_disks_compared {
                idle.require_same_disks(&self.home, &self.machine)?;
            }
            Ok(Restore {
                folder: idle.folder().to_owned(),
                memory: idle.memory()?,
                is_shared: false,
                is_fork: false,
            })
        };
        restore()
            .inspect_err(|failure| {
                let text =
                    format!("the machine boots: what it was saved to while it was idle cannot be used: {failure}");
                self.log.note(Source::Monitor, &text);
            })
            .ok()
    }

    /// Says that what an idle machine was saved to is still there after it could not be woken.
    pub(super) fn note_kept(&self) {
        if IdleState::of(&self.machine.dir).is_whole() {
            let text = "it did not go on: the next start tries again from what it was saved to";
            self.log.note(Source::Monitor, text);
        }
    }

    /// Whether `restore` is what an idle machine was saved to.
    pub(super) fn is_of_idle(&self, restore: &Restore) -> bool {
        restore.folder == IdleState::of(&self.machine.dir).folder()
    }

    /// Ends what is asleep for good: it is not to go on from there.
    pub(super) fn end_of_sleep(&mut self, is_killed: bool) -> Exit {
        if is_killed && let Err(failure) = IdleState::of(&self.machine.dir).forget() {
            self.log.note(Source::Monitor, &failure.to_string());
        }
        self.machine.state.idle_since = None;
        Exit::Killed
    }
}
