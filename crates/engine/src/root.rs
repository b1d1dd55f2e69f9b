//! The root of a container: what it has other than its image, and all of it.
//!
//! Whatever a guest wrote on its disk is only ever read by a guest. That of a machine which runs is asked; for one that does not, a machine
//! without an entrypoint is started on a copy of its writable disk, and is gone with the [`OpenRoot`]. So nothing that is asked here
//! changes anything in the machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use zmachine_agent_protocol::Transfer;
use zmachine_flist::Digest;
use zmachine_image::{Progress, PullPolicy};
use zmachine_plan::Plan;
use zmachine_spec::guest::GuestSettings;
use zmachine_spec::{Class, Failure, MachineSpec, RestartPolicy};
use zmachine_store::catalog::Machine;
use zmachine_sys::file::FileError;
use zmachine_sys::lock::FileLock;
use zmachine_sys::sparse;

use crate::create::CreateOptions;
use crate::transfer::FromGuest;
use crate::{Engine, Starting};

/// The disk of a machine with what its guest wrote.
const DISK: &str = "root.img";

/// What of a root is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootPart {
    /// The list of what changed; [`zmachine_agent_protocol::Transfer::Changes`] has its form.
    Changes,
    /// What changed, as a layer of an OCI image.
    Layer {
        /// The container's processes stand still meanwhile.
        paused: bool,
    },
    /// All of it, as a tar archive.
    All,
}

/// A root that can be read.
#[derive(Debug)]
pub struct OpenRoot<'a> {
    engine: &'a Engine,
    /// The machine that shows it.
    name: String,
    /// Ends that machine, when it was started for this.
    _helper: Option<Helper<'a>>,
}

/// A machine that is here for a moment.
#[derive(Debug)]
struct Helper<'a> {
    engine: &'a Engine,
    name: String,
    starting: Option<Starting>,
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        if let Some(mut starting) = self.starting.take() {
            // It is worth nothing any more, and removes itself at its end.
            let _ = self.engine.kill(&self.name);
            starting.wait_gone();
        }
        // Where that went wrong, and where it was never started.
        if self.engine.machine(&self.name).is_ok() {
            let _ = self.engine.remove(&self.name, true, true);
        }
    }
}

impl Engine {
    /// Opens the root of a container, be it running or not. `progress` is told of a machine that has to be started for that.
    ///
    /// # Errors
    /// [`Class::Unsupported`] for a VM, [`Class::Conflict`] for a machine that is paused, or starts or stops meanwhile.
    pub fn open_root(&self, name: &str, progress: &dyn Progress) -> Result<OpenRoot<'_>, Failure> {
        let machine = self.machine(name)?;
        let Plan::Container(plan) = machine.plan()? else {
            let message = format!(
                "'{}' is a VM: it has a disk of its own, and no image below its root",
                machine.spec.name
            );
            return Err(Failure::new(Class::Unsupported, message)
                .hint("copy files out of it with 'zmachine cp', or keep its boot volume"));
        };
        if machine.state.phase.is_active() {
            return Ok(OpenRoot {
                engine: self,
                name: machine.spec.name,
                _helper: None,
            });
        }
        let image: Digest = plan
            .image
            .parse()
            .map_err(|_| Failure::new(Class::Failed, format!("the plan of '{name}' names no image")))?;
        progress.message(&format!(
            "'{}' does not run: its disk is read in a machine of its own",
            machine.spec.name
        ));
        let helper = self.help(&machine, &image, progress, false)?;
        Ok(OpenRoot {
            engine: self,
            name: helper.name.clone(),
            _helper: Some(helper),
        })
    }

    /// Has `write` change the root of a container that does not run, in a machine of its own whose name it is told. What it wrote is
    /// the container's when it succeeds, all of it or nothing.
    ///
    /// # Errors
    /// Those of `write`; as [`Engine::open_root`]; [`Class::Unsupported`] for a root that cannot be written; [`Class::Conflict`] for a
    /// container that runs, or is started meanwhile.
    pub fn write_root(
        &self,
        name: &str,
        progress: &dyn Progress,
        write: impl FnOnce(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        let Plan::Container(plan) = machine.plan()? else {
            let message = format!("'{}' is a VM: its disk is its own", machine.spec.name);
            return Err(Failure::new(Class::Unsupported, message).hint("start it, and copy with 'zmachine cp'"));
        };
        if machine.spec.read_only {
            let message = format!("the root of '{}' cannot be written", machine.spec.name);
            return Err(Failure::new(Class::Unsupported, message).hint("make it without --read-only"));
        }
        let image: Digest = plan
            .image
            .parse()
            .map_err(|_| Failure::new(Class::Failed, format!("the plan of '{name}' names no image")))?;
        // Nobody starts it until what was written is in its place.
        let _lock = self.held(&machine)?;
        let mut helper = self.help(&machine, &image, progress, true)?;
        write(&helper.name)?;
        let kept = self.keep_disk(&mut helper, &machine);
        kept.map_err(|failure| failure.context(format!("what was written cannot be kept for '{}'", machine.spec.name)))
    }

    /// Ends the helper in an orderly way, and puts its disk in the place of the machine's.
    fn keep_disk(&self, helper: &mut Helper<'_>, machine: &Machine) -> Result<(), Failure> {
        let written = self.machine(&helper.name)?;
        self.stop(&written.id, None)?;
        if let Some(mut starting) = helper.starting.take() {
            starting.wait_gone();
        }
        let (from, to) = (written.dir.join(DISK), machine.dir.join(DISK));
        std::fs::rename(&from, &to).map_err(|e| FileError::io("replace", &to, e))?;
        Ok(zmachine_sys::file::sync_dir(&machine.dir)?)
    }

    /// With `keeps`, its disk is there when it has ended; the caller has the lock of `machine` then.
    fn help(
        &self,
        machine: &Machine,
        image: &Digest,
        progress: &dyn Progress,
        keeps: bool,
    ) -> Result<Helper<'_>, Failure> {
        let options = CreateOptions {
            cwd: Path::new("/"),
            pull: PullPolicy::Never,
            installs_kernel: false,
            progress,
        };
        let spec = MachineSpec {
            auto_remove: !keeps,
            ..helper_spec(&machine.spec)
        };
        let created = self.create_from(&spec, &options, Some(image), |_| Ok(()))?;
        let mut helper = Helper {
            engine: self,
            name: created.spec.name.clone(),
            starting: None,
        };
        match keeps {
            true => copy_file(&machine.dir.join(DISK), &created.dir.join(DISK))?,
            false => copy_disk(machine, &created)?,
        }
        let mut starting = self.start_for_now(&created.id)?;
        starting.wait_ready(progress)?;
        helper.starting = Some(starting);
        Ok(helper)
    }
}

/// The machine that shows the root of another one: the same image on the same kind of machine, and nothing of what is mounted.
fn helper_spec(spec: &MachineSpec) -> MachineSpec {
    let random = zmachine_sys::file::random_u64();
    MachineSpec {
        name: format!("root-of-{:.32}-{:08x}", spec.name, random as u32),
        // In its root are files with its name.
        hostname: Some(spec.hostname.clone().unwrap_or_else(|| spec.name.clone())),
        idle: true,
        auto_remove: true,
        read_only: false,
        restart: RestartPolicy::No,
        networks: Vec::new(),
        network_aliases: Vec::new(),
        publish: Vec::new(),
        publish_all: false,
        volumes: Vec::new(),
        secrets: Vec::new(),
        sockets: Vec::new(),
        ssh_keys: Vec::new(),
        // It is nobody's: no project of compose may take it for one of its machines.
        labels: BTreeMap::new(),
        env: Vec::new(),
        entrypoint: None,
        command: Vec::new(),
        workdir: None,
        user: None,
        terminal: false,
        stdin: false,
        log_to: None,
        pod: None,
        guest: GuestSettings::default(),
        ..spec.clone()
    }
}

/// Copies what the guest of `from` wrote, while nobody starts it.
fn copy_disk(from: &Machine, to: &Machine) -> Result<(), Failure> {
    let lock = FileLock::try_exclusive(&from.lock_path())?;
    if lock.is_none() {
        let message = format!("the machine '{}' is being started", from.spec.name);
        return Err(Failure::new(Class::Conflict, message).hint("try again when it runs"));
    }
    // When it is not there, it never ran, or its root cannot be written.
    copy_file(&from.dir.join(DISK), &to.dir.join(DISK))
}

/// Copies a file of a machine, when it is there.
pub(super) fn copy_file(source: &Path, target: &Path) -> Result<(), Failure> {
    let file = match File::open(source) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::io("open", source, error).into()),
    };
    let mode = file.metadata().map(|metadata| metadata.permissions());
    let copied = File::create_new(target).and_then(|copy| {
        copy.set_permissions(mode?)?;
        sparse::copy(&file, &copy)
    });
    Ok(copied.map_err(|e| FileError::io("copy a disk to", target, e))?)
}

impl OpenRoot<'_> {
    /// The machine that shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The stream of a part.
    ///
    /// # Errors
    /// When the guest cannot be asked.
    pub fn stream(&self, part: RootPart) -> Result<FromGuest, Failure> {
        let transfer = match part {
            RootPart::Changes => Transfer::Changes {
                list: true,
                paused: false,
            },
            RootPart::Layer { paused } => Transfer::Changes { list: false, paused },
            RootPart::All => Transfer::Root,
        };
        let (_input, output) = self.engine.transfer(&self.name, transfer)?;
        Ok(FromGuest::new(output))
    }

    /// What changed, in the order of the tree.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn changes(&self) -> Result<Vec<(zmachine_transfer::Change, std::path::PathBuf)>, Failure> {
        let mut stream = self.stream(RootPart::Changes)?;
        let mut bytes = Vec::new();
        (&mut stream).read_to_end(&mut bytes)?;
        stream.end(|_| ())?;
        zmachine_transfer::read_list(&bytes)
            .ok_or_else(|| Failure::new(Class::Failed, "the guest's list of changes cannot be read"))
    }
}
