//! The engine: every operation on machines, for the command line and any other front end.
//!
//! It parents nothing: a started machine belongs to its monitor, and outlives whoever started it. Calls block the calling
//! thread. Any program may use it: the processes of a machine are roles of the program that [`Programs`] names
//! (`examples/embed` shows one).
//!
//! # Invariants
//! Before a machine is shown or used, what crashed is put right: nobody ever sees one "running" whose monitor is dead, or a
//! resource that it left. [`Engine::open`] and [`Engine::create`] do so for all of them.

pub mod attach;
mod change;
mod client;
mod clone;
mod commit;
mod containers;
mod create;
pub mod docker_fields;
pub mod elsewhere;
mod execs;
mod health;
mod history;
mod image_facts;
pub mod image_view;
mod images;
mod measure;
mod memory_keeper;
mod metrics;
mod networks;
pub mod node;
mod pods;
mod programs;
mod prune;
mod published;
mod reconcile;
mod remove;
mod root;
mod snapshot_disks;
mod snapshot_memory;
mod snapshots;
mod snapshots_exchange;
mod ssh;
mod standby;
mod start;
pub mod stats;
pub mod transfer;
mod tree;
pub mod views;
mod vm;
mod volume_snapshots;
mod volumes;
mod warm;

use std::fs::OpenOptions;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use zmachine_hypervisor::choice::SEARCH_PATH;

use zmachine_network::Networks;
use zmachine_spec::{Class, Failure, Home};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::killpoint::{At, Killpoints};
use zmachine_store::volume::Volumes;
use zmachine_sys::file::FileError;
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::{ChildSetup, prepare_child, role_of};
use zmachine_sys::reap::reap_later;

pub use self::commit::CommitRequest;
pub use self::create::CreateOptions;
pub use self::history::History;
pub use self::images::{FoundImage, ImageRequest, RegistryFiles, Removed, guest_level, import_failure};
pub use self::programs::Programs;
pub use self::prune::Shared;
pub use self::root::{OpenRoot, RootPart};
pub use self::snapshots::{ForkSource, Saves};
pub use self::ssh::SshTarget;
pub use self::start::Starting;
pub use self::volume_snapshots::VolumeSnapshotView;
pub use self::volumes::PrunedVolumes;

/// The engine over one home.
pub struct Engine {
    home: Home,
    programs: Programs,
    kill: Killpoints,
    monitor_abort_at: Option<At>,
    registry_files: RegistryFiles,
    warn: Box<dyn Fn(&str) + Send + Sync>,
    reconciles: bool,
    reconciled: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// One machine of a listing; for one whose state cannot be read, its id and why.
pub type Listed = Result<Machine, (String, Failure)>;

/// Where a test wants a process to end or to wait; see [`zmachine_store::killpoint`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AbortAt {
    /// In the calling process.
    pub engine: Option<At>,
    /// In the monitors it starts.
    pub monitor: Option<At>,
}

impl Engine {
    /// An engine over `home`, after it put right what crashed since the last command. `warn` is told of that, a line each, now
    /// and later.
    ///
    /// # Errors
    /// When the folder of machines cannot be read.
    pub fn open(
        home: Home,
        programs: Programs,
        abort_at: AbortAt,
        warn: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Engine, Failure> {
        let mut engine = Engine::new(home, programs);
        engine.kill = Killpoints::new(abort_at.engine);
        engine.monitor_abort_at = abort_at.monitor;
        engine.warn = Box::new(warn);
        engine.reconciles = true;
        engine.reconcile()?;
        Ok(engine)
    }

    /// An engine over `home` as it is, for who looks at what is wrong with it: it puts nothing right and warns of nothing.
    pub fn new(home: Home, programs: Programs) -> Engine {
        // A start may want to know the speed of this host's counter.
        zmachine_sys::clock::begin();
        zmachine_sys::clock::note_in(home.counter());
        Engine {
            registry_files: RegistryFiles::of(&home),
            home,
            programs,
            kill: Killpoints::new(None),
            monitor_abort_at: None,
            warn: Box::new(|_| ()),
            reconciles: false,
            reconciled: Mutex::default(),
        }
    }

    /// The state it works on.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// A process of its host program for this home, in the place of `name`'s role.
    fn role(&self, name: &str) -> Command {
        let mut command = role_of(self.programs.host(), name, SEARCH_PATH);
        command
            .arg("--data")
            .arg(self.home.data())
            .arg("--run")
            .arg(self.home.run());
        command.arg0("zmachine").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a process that outlives this one, has the descriptors `keep`, and says what goes wrong in the file `log`.
    fn start_beside(mut command: Command, log: &Path, keep: &[RawFd]) -> Result<(), Failure> {
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(log);
        command.stderr(opened.map_err(|e| FileError::io("open", log, e))?);
        let setup = ChildSetup {
            keep: keep.to_vec(),
            new_session: true,
            ..ChildSetup::default()
        };
        prepare_child(&mut command, setup);
        reap_later(command.spawn()?);
        Ok(())
    }

    /// The programs that its machines are made of.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// One machine, by name, id or unique prefix of its id.
    ///
    /// # Errors
    /// When there is none, or its state cannot be read.
    pub fn machine(&self, name: &str) -> Result<Machine, Failure> {
        self.current(&catalog::find(&self.home, name)?)
    }

    /// One machine by its whole id, which is no name's to find.
    ///
    /// # Errors
    /// As [`Engine::machine`].
    pub fn machine_by_id(&self, id: &str) -> Result<Machine, Failure> {
        self.current(id)
    }

    /// A machine as it is, after what it left is put right in case it crashed.
    fn current(&self, id: &str) -> Result<Machine, Failure> {
        let machine = Machine::load(&self.home, id)?;
        if !self.reconciles || !machine.state.phase.is_active() || FileLock::is_held(&machine.lock_path())? {
            return Ok(machine);
        }
        match self.reconcile_one(id) {
            Ok(Some(line)) => (self.warn)(&line),
            Ok(None) => {}
            // On a full disk, say: it is shown as it was, and the reconciliation of all has warned of it.
            Err(_) => return Ok(machine),
        }
        Machine::load(&self.home, id)
    }

    /// All machines, oldest first; for one whose state cannot be read, its id and why.
    ///
    /// # Errors
    /// When the folder of machines cannot be read.
    pub fn machines(&self) -> Result<Vec<Listed>, Failure> {
        let mut all: Vec<Listed> = Vec::new();
        for id in catalog::ids(&self.home)? {
            match self.current(&id) {
                Ok(machine) => all.push(Ok(machine)),
                // Removed since the listing.
                Err(failure) if failure.class == Class::NotFound => {}
                Err(failure) => all.push(Err((id, failure))),
            }
        }
        all.sort_by_key(|m| m.as_ref().map_or(jiff::Timestamp::MIN, |m| m.state.created_at));
        Ok(all)
    }

    /// What is wrong with the names of machines, a line each; nothing when all is well. No machine is lost by it.
    ///
    /// # Errors
    /// When names or machines cannot be listed.
    pub fn name_findings(&self) -> Result<Vec<String>, Failure> {
        let line = |id: String| {
            let name = Machine::load(&self.home, &id).map(|machine| format!(" ('{}')", machine.spec.name));
            format!("machine {id}{} has lost the link of its name", name.unwrap_or_default())
        };
        Ok(catalog::nameless(&self.home)?.into_iter().map(line).collect())
    }

    /// Gives machines that lost their name the one of their spec again: a line for each.
    ///
    /// # Errors
    /// When machines cannot be listed, or one cannot have its name: it is kept, and goes by its id.
    pub fn repair_names(&self) -> Result<Vec<String>, Failure> {
        let _catalog = catalog::lock(&self.home)?;
        let mut lines = Vec::new();
        let mut first = None;
        for repaired in catalog::repair_names(&self.home)? {
            match repaired {
                Ok(name) => lines.push(format!("machine '{name}' has its name again")),
                Err((id, failure)) => {
                    let failure = failure.context(format!("machine {id} cannot have its name again"));
                    first.get_or_insert(failure.hint(format!("'zmachine inspect {id}' shows it; it goes by its id")));
                }
            }
        }
        match first {
            Some(failure) => Err(failure),
            None => Ok(lines),
        }
    }

    /// The failure with machines' names in place of their ids, which is all that networks know.
    pub fn with_names(&self, mut failure: Failure) -> Failure {
        let readable = self.machines().unwrap_or_default().into_iter().flatten();
        for machine in readable {
            let (id, name) = (&machine.id, &machine.spec.name);
            let message = failure
                .message
                .replace(&format!("machine {id}"), &format!("the machine '{name}'"));
            failure.message = message.replace(id, &format!("'{name}'"));
        }
        failure
    }

    fn networks(&self) -> Result<Networks, Failure> {
        let networks = Networks::open(self.home.data())?.with_jail();
        Ok(networks.with_launcher(self.programs.host()))
    }

    /// The volumes of its home.
    pub fn volumes(&self) -> Volumes {
        Volumes::new(&self.home)
    }

    /// Runs a future of the network crate to its end.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        Ok(tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(future))
    }
}
