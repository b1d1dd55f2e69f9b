//! From a machine whose disks, servers and networks are there to a guest that boots, whatever kind of machine it is.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use tokio::task::JoinHandle;
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::{LaunchError, LogLines, Resources, RunDir, Saved, Vm, VmSpec, cloud_hypervisor, qemu};
use zmachine_plan::VolumeUse;
use zmachine_spec::control::Report;
use zmachine_spec::{Class, Failure};
use zmachine_store::idle::IdleState;
use zmachine_store::log::Source;
use zmachine_store::volume::{Held, Volumes};
use zmachine_sys::process::ProcessId;

use super::console;
use super::context::{AbortOnDrop, Monitor};
use super::files::Files;
use super::guest::within;
use super::images::Images;
use super::networks::Attached;
use super::output::SharedLog;
use super::rootfs_child::RootfsServer;
use super::running::Running;
use super::share::Shares;

/// Everything that the hypervisor needs is there.
pub(super) struct Backed {
    /// What the guest goes on from, instead of booting.
    pub(super) saved: Option<Saved>,
    pub(super) rootfs: Option<RootfsServer>,
    pub(super) images: Images,
    pub(super) shares: Shares,
    pub(super) attached: Attached,
}

impl Monitor {
    /// Boots the guest. With `wait_for_owner` its console is not read before the client that started the machine is there.
    pub(super) async fn boot(
        &mut self,
        on: Hypervisor,
        spec: &VmSpec,
        backed: Backed,
        console: console::Waiting,
        wait_for_owner: bool,
    ) -> Result<Running, Failure> {
        let Backed {
            saved,
            rootfs,
            images,
            mut shares,
            attached: Attached { taps, hold, failures },
        } = backed;
        shares.also(failures);
        self.kill.pass("start: before the hypervisor");
        self.keep_taps(&taps);
        let is_saved = saved.is_some();
        let mut vm = match self.start_hypervisor(on, spec, taps, saved).await {
            Ok(vm) => vm,
            Err(error) => return Err(shares.reason().await.unwrap_or_else(|| not_launched(on, &error))),
        };
        self.kill.pass("start: hypervisor started");
        self.report.send(&Report::Booting);
        self.confine(vm.pid());
        self.check_protections("hypervisor", vm.pid(), false);
        self.phase("hypervisor");
        if let Some(recorder) = &mut self.recorder {
            recorder.hypervisor(vm.version());
        }
        self.claim_hypervisor(vm.pid())?;
        if is_saved {
            // A guest that never ran has written nothing, so what it was to go on from is still good.
            if !ProcessId::of(vm.pid()).is_some_and(ProcessId::is_alive) {
                return Err(Failure::new(
                    Class::Failed,
                    "the hypervisor ended before its guest went on",
                ));
            }
            // From here on it is of no use: the guest writes to its disks.
            IdleState::of(&self.machine.dir).forget()?;
            within("resume", vm.go_on()).await?;
            self.kill.pass("restore: hypervisor goes on");
        }
        let stream = vm.take_console();
        let (log, events) = (self.log.clone(), self.events.clone());
        let console = tokio::spawn(async move {
            if let Some(stream) = stream {
                console::run(console, stream, log, events, wait_for_owner).await;
            }
        });
        let hypervisor_log = self.note_hypervisor(vm.as_mut());
        Ok(Running {
            vm,
            rootfs,
            images,
            files: Files {
                places: spec.later_files,
                given: Vec::new(),
            },
            shares,
            networks: hold,
            console,
            _hypervisor_log: hypervisor_log,
        })
    }

    /// Starts a hypervisor in the machine's run folder and jail.
    pub(super) async fn start_hypervisor(
        &self,
        on: Hypervisor,
        spec: &VmSpec,
        taps: HashMap<String, OwnedFd>,
        saved: Option<Saved>,
    ) -> Result<Box<dyn Vm>, LaunchError> {
        let run = RunDir::new(self.home.run_dir(&self.machine.id));
        let jail = self.jail();
        let driver = (self.drivers)(on);
        let saves = spec.is_saveable.then(|| self.machine.dir.join("saving"));
        let resources = Resources {
            taps,
            jail,
            saved,
            saves,
        };
        driver.launch(spec, resources, &run).await
    }

    /// Logs what a hypervisor itself says.
    pub(super) fn note_hypervisor(&self, vm: &mut dyn Vm) -> Option<AbortOnDrop> {
        let lines = vm.take_log()?;
        Some(AbortOnDrop(tokio::spawn(note_lines(lines, self.log.clone()))))
    }

    /// Takes the volumes for this machine and makes file systems on fresh ones, in a thread.
    pub(super) fn prepare_volumes(&mut self, uses: Vec<VolumeUse>) -> Working<Vec<Held>> {
        // Those of an earlier run: a lock is not taken twice, even by its holder.
        self.volumes.clear();
        let volumes = Volumes::new(&self.home);
        let id = self.machine.id.clone();
        let mut handed = std::mem::take(&mut self.handed);
        in_thread(move || {
            let mut ready = |volume: &VolumeUse| {
                let mut held = match handed.remove(&volume.name) {
                    Some(lock) => volumes.hold_handed(&volume.name, lock)?,
                    None => volumes.hold(&volume.name, volume.read_only, &id)?,
                };
                match volume.read_only {
                    true => held.require_formatted()?,
                    false => held.ensure_formatted()?,
                }
                Ok(held)
            };
            uses.iter().map(&mut ready).collect()
        })
    }
}

/// Why the hypervisor did not start: what is wrong with the one installed, if that is it, or what it said itself.
pub(super) fn not_launched(hypervisor: Hypervisor, error: &LaunchError) -> Failure {
    let unsupported = |cause: &(dyn std::error::Error + 'static), hint: &str| {
        Failure::from_error(Class::Unsupported, cause).hint(hint)
    };
    let wrong = match hypervisor {
        Hypervisor::Qemu => qemu::probe(None).err().map(|e| unsupported(&e, e.hint())),
        Hypervisor::CloudHypervisor => cloud_hypervisor::probe(None).err().map(|e| unsupported(&e, e.hint())),
    };
    let class = match error {
        LaunchError::Unsupported(_) => Class::Unsupported,
        _ => Class::Failed,
    };
    wrong.unwrap_or_else(|| Failure::from_error(class, error).hint(error.hint().unwrap_or_default()))
}

/// What a thread is making.
pub(super) type Working<T> = JoinHandle<Result<T, Failure>>;

/// Does in a thread what would keep the event loop waiting. The end of the process does not wait for it.
pub(super) fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Working<T> {
    tokio::task::spawn_blocking(work)
}

pub(super) async fn joined<T>(working: Working<T>) -> Result<T, Failure> {
    working
        .await
        .unwrap_or_else(|_| Err(Failure::new(Class::Failed, "a thread of the monitor ended early")))
}

async fn note_lines(mut lines: LogLines, log: SharedLog) {
    while let Some(line) = lines.recv().await {
        log.note(Source::Hypervisor, &line);
    }
}
