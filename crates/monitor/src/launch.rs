//! The launch chain: each step takes what the step before made.
//!
//! ```text
//! Backed (rootfs server) ─> Connected (taps, published ports) ─> Running (hypervisor, agent session)
//! ```
//! The rootfs server comes first, and the writable disk is made in a thread: both get ready while the network is set up.
//! Nothing here undoes: every resource is in the journal before it is made, and children die with their handles.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zmachine_hypervisor::choice::Hypervisor;
use zmachine_hypervisor::{Driver, LaunchError, LogLines, Resources, RunDir, Vm, cloud_hypervisor, qemu};
use zmachine_image::library::blocks_directory;
use zmachine_image::store::CREDENTIALS_FILE;
use zmachine_plan::{ContainerPlan, VolumeUse};
use zmachine_spec::{Class, Failure};
use zmachine_store::log::Source;
use zmachine_store::volume::{Held, Volumes};

use super::context::{AbortOnDrop, Monitor, at};
use super::networks::{Attached, NetworkHold};
use super::output::SharedLog;
use super::rootfs_child::RootfsServer;
use super::session::Session;
use super::share::Shares;
use super::{console, rootfs_child};

/// The root disk, and what else comes from this host, is served.
struct Backed {
    rootfs: Option<RootfsServer>,
    shares: Shares,
}

/// Networks are attached.
struct Connected {
    rootfs: Option<RootfsServer>,
    shares: Shares,
    taps: HashMap<String, OwnedFd>,
    hold: NetworkHold,
}

/// The hypervisor runs the guest; dropping it ends both children.
pub(super) struct Running {
    pub(super) vm: Box<dyn Vm>,
    pub(super) session: Session,
    /// `None` when the image is no disk.
    pub(super) rootfs: Option<RootfsServer>,
    pub(super) shares: Shares,
    console: Option<JoinHandle<()>>,
    pub(super) networks: NetworkHold,
    _hypervisor_log: Option<AbortOnDrop>,
}

impl Running {
    /// One without servers or networks, for tests.
    #[cfg(test)]
    pub(super) fn of(vm: Box<dyn Vm>, session: Session) -> Running {
        Running {
            vm,
            session,
            rootfs: None,
            shares: Shares::default(),
            console: None,
            networks: NetworkHold::default(),
            _hypervisor_log: None,
        }
    }

    /// Ends what still runs, and waits for it.
    pub(super) async fn end(mut self) {
        self.vm.kill();
        // The event loop may have left before the hypervisor was gone; undo needs it gone.
        let gone = async { while !matches!(self.vm.next_event().await, zmachine_hypervisor::VmEvent::Exited(_)) {} };
        let _ = tokio::time::timeout(Duration::from_secs(10), gone).await;
        if let Some(rootfs) = self.rootfs {
            rootfs.kill().await;
        }
        self.shares.end().await;
        if let Some(console) = self.console.take() {
            console.abort();
        }
    }

    /// Waits until the console is at its end, for at most `patience`.
    pub(super) async fn drain_console(&mut self, patience: Duration) {
        if let Some(console) = &mut self.console
            && tokio::time::timeout(patience, console).await.is_ok()
        {
            self.console = None;
        }
    }
}

impl Monitor<ContainerPlan> {
    /// From nothing to a guest whose agent can be asked.
    pub(super) async fn launch(&mut self, console: console::Waiting) -> Result<Running, (String, Failure)> {
        let disk = self.make_writable_disk();
        let volumes = self.prepare_volumes(self.plan.volumes.clone());
        let backed = self.start_rootfs().map_err(at("rootfs server"))?;
        self.phase("rootfs server");
        let connected = self.attach_networks(backed).await.map_err(at("network"))?;
        self.phase("network");
        self.plan.boot.first_start = joined(disk).await.map_err(at("writable disk"))?;
        self.phase("writable disk");
        self.volumes = joined(volumes).await.map_err(at("volumes"))?;
        self.phase("volumes");
        self.kill.pass("start: volumes ready");
        let driver = self.plan.hypervisor.driver.driver();
        self.boot(driver.as_ref(), connected, console)
            .await
            .map_err(at("hypervisor"))
    }

    async fn attach_networks(&mut self, backed: Backed) -> Result<Connected, Failure> {
        let attachments = self.plan.attachments.clone();
        let Attached { taps, hold, failures } = self.attach(&attachments).await?;
        let Backed { rootfs, mut shares } = backed;
        shares.also(failures);
        Ok(Connected {
            rootfs,
            shares,
            taps,
            hold,
        })
    }

    /// Makes the writable disk when it is not there, in a thread: it takes as long as everything else before boot.
    /// Whether it is new.
    fn make_writable_disk(&self) -> Working<bool> {
        let path = self.machine.dir.join("root.img");
        let bytes = self.plan.upper_bytes;
        in_thread(move || match bytes {
            None => Ok(true),
            Some(_) if path.exists() => Ok(false),
            Some(bytes) => create_upper(path, bytes),
        })
    }

    fn start_rootfs(&mut self) -> Result<Backed, Failure> {
        let socket = self.home.run_dir(&self.machine.id).join("rootfs.sock");
        let image = self.home.data().join("images").join(&self.plan.image);
        let mut rootfs = None;
        if let Some(queues) = self.plan.image_queues() {
            let settings = rootfs_child::Settings {
                record: self.watch.record_first_reads(&image),
                image,
                blocks: blocks_directory(self.home.data())?,
                credentials: self.home.data().join(CREDENTIALS_FILE),
                stores: self.plan.stores.clone(),
                queues,
                prefetch: self.plan.prefetch,
            };
            let server = RootfsServer::start(&socket, settings, self.sandbox.as_ref())?;
            self.kill.pass("start: rootfs server started");
            self.claim_rootfs(server.id())?;
            rootfs = Some(server);
        }
        let wanted = self.plan.shares.clone();
        let shares = self.start_shares(&wanted)?;
        Ok(Backed { rootfs, shares })
    }

    async fn boot(
        &mut self,
        driver: &dyn Driver,
        mut connected: Connected,
        console: console::Waiting,
    ) -> Result<Running, Failure> {
        let run = RunDir::new(self.home.run_dir(&self.machine.id));
        let resources = Resources {
            taps: connected.taps,
            jail: self.jail(),
        };
        self.kill.pass("start: before the hypervisor");
        let launched = driver.launch(&self.plan.vm, resources, &run).await;
        let mut vm = match launched {
            Ok(vm) => vm,
            Err(error) => {
                return Err(connected
                    .shares
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
        let console = vm
            .take_console()
            .map(|stream| tokio::spawn(console::run(console, stream, self.log.clone(), false)));
        let messages = vm
            .take_log()
            .map(|lines| tokio::spawn(note_lines(lines, self.log.clone())));
        let agent = vm
            .take_agent()
            .ok_or_else(|| Failure::new(Class::Failed, "the hypervisor gave no channel to the agent"))?;
        Ok(Running {
            vm,
            session: Session::start(agent.connected()),
            rootfs: connected.rootfs,
            shares: connected.shares,
            console,
            networks: connected.hold,
            _hypervisor_log: messages.map(AbortOnDrop),
        })
    }
}

impl<P> Monitor<P> {
    /// Takes the volumes for this machine and makes file systems on fresh ones, in a thread.
    pub(super) fn prepare_volumes(&mut self, uses: Vec<VolumeUse>) -> Working<Vec<Held>> {
        // Those of an earlier run: a lock is not taken twice, even by its holder.
        self.volumes.clear();
        let volumes = Volumes::new(&self.home);
        let id = self.machine.id.clone();
        in_thread(move || {
            let ready = |volume: &VolumeUse| {
                let mut held = volumes.hold(&volume.name, volume.read_only, &id)?;
                match volume.read_only {
                    true => held.require_formatted()?,
                    false => held.ensure_formatted()?,
                }
                Ok(held)
            };
            uses.iter().map(ready).collect()
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
pub(super) type Working<T> = oneshot::Receiver<Result<T, Failure>>;

pub(super) fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Working<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
}

pub(super) async fn joined<T>(working: Working<T>) -> Result<T, Failure> {
    working
        .await
        .unwrap_or_else(|_| Err(Failure::new(Class::Failed, "a thread of the monitor ended early")))
}

/// Removes what a power cut left of a disk that was being made. Nobody else makes this machine's: its lock is ours.
fn remove_unfinished(path: &std::path::Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return;
    };
    let unfinished = format!("{}.new-", name.to_string_lossy());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&unfinished) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn create_upper(path: PathBuf, bytes: u64) -> Result<bool, Failure> {
    remove_unfinished(&path);
    zmachine_rootfs::create_upper(&path, bytes).map_err(|e| Failure::from_error(Class::Failed, &e))?;
    Ok(true)
}

pub(super) async fn note_lines(mut lines: LogLines, log: SharedLog) {
    while let Some(line) = lines.recv().await {
        log.note(Source::Hypervisor, &line);
    }
}
