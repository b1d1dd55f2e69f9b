//! Snapshots of machines that run, and machines that go on from one.
//!
//! A fork is a machine of its own, made as [`Engine::create`] makes it, whose disk is that of the snapshot and whose guest does not
//! boot. When it is started again it boots, as every machine does.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use zmachine_hypervisor::{Accel, qemu};
use zmachine_image::{Progress, PullPolicy};
use zmachine_plan::Plan;
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::keep::Keep;
use zmachine_spec::saved::{HostMark, Saved};
use zmachine_spec::{Class, Failure, MachineSpec, check_name};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::snapshot::holders::Holders;
use zmachine_store::snapshot::{
    DISK, Draft, FIRMWARE, SNAPSHOT_VERSION, STATE, Snapshot, SnapshotName, Snapshots, memory,
};
use zmachine_sys::file::{self, FileError};

use crate::Engine;
use crate::clone::{image_of, spec_of_copy};
use crate::create::CreateOptions;
use crate::root::copy_file;
use crate::snapshot_disks::require_lengths;
use crate::snapshot_memory::{Reading, load};
use crate::start::Starting;
use crate::views::SnapshotView;

/// What a machine that is started goes on from.
#[derive(Debug, Clone, Copy)]
pub(super) struct RestoreFrom<'a> {
    /// The folder of the snapshot.
    pub(super) folder: &'a Path,
    /// Its memory.
    pub(super) memory: &'a OwnedFd,
    /// The memory is that of others as well, and is not written to. Those are the ones that have it.
    pub(super) shared: Option<&'a Holders>,
    /// The machine is another one than was saved.
    pub(super) is_fork: bool,
}

impl RestoreFrom<'_> {
    /// What its monitor is told.
    pub(super) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut all = vec!["--restore".into(), self.folder.into()];
        all.push("--memory-fd".into());
        all.push(self.memory.as_raw_fd().to_string().into());
        all.extend(self.shared.map(|_| "--shared-memory".into()));
        all.extend(self.is_fork.then(|| "--fork".into()));
        all
    }
}

/// What is forked.
#[derive(Debug)]
pub struct ForkSource {
    snapshot: Snapshot,
    folder: PathBuf,
    /// `None`: of disks alone, its forks boot.
    memory: Option<(Reading, Holders)>,
    /// Of a machine that runs: there is no snapshot but for its forks.
    draft: Option<Draft>,
}

impl ForkSource {
    /// The machine that was saved.
    pub fn machine(&self) -> &str {
        &self.snapshot.machine
    }
}

/// What of a machine is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Saves {
    /// All of it, while it runs.
    #[default]
    Machine,
    /// Its disks, whether it runs or not.
    Disks,
}

impl Engine {
    /// The snapshots of its home.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::of(&self.home)
    }

    /// Saves a machine as it is, without ending it. With `keep`, older snapshots of it of the same kind whose tags were not chosen are
    /// removed.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the tag is taken, or, unless its disks alone are saved, the machine does not run or was not built to be
    /// saved.
    pub fn create_snapshot(&self, name: &SnapshotName, what: Saves, keep: Option<&Keep>) -> Result<Snapshot, Failure> {
        let snapshots = self.snapshots();
        let machine = self.machine(&name.machine)?;
        let of = &machine.spec.name;
        if let Some(tag) = &name.tag
            && snapshots.has(of, tag)?
        {
            return Err(Snapshots::taken(&format!("{of}@{tag}")));
        }
        let draft = snapshots.begin()?;
        let tag = match &name.tag {
            Some(tag) => tag.clone(),
            None => snapshots.free_tag(of)?,
        };
        let snapshot = Snapshot {
            automatic: name.tag.is_none(),
            ..self.save(&machine, what, &draft, tag)?
        };
        self.kill.pass("snapshot: saved");
        snapshots.publish(draft, &snapshot)?;
        self.kill.pass("snapshot: published");
        if let Some(keep) = keep {
            let mut automatic = snapshots.readable(Some(of))?;
            let is_same = |other: &Snapshot| other.disks.is_some() == snapshot.disks.is_some();
            automatic.retain(|other| other.automatic && other.machine_id == machine.id && is_same(other));
            let times: Vec<Timestamp> = automatic.iter().map(|snapshot| snapshot.created_at).collect();
            for at in keep.superfluous(&times) {
                snapshots.remove(&automatic[at].name())?;
            }
        }
        Ok(snapshot)
    }

    /// Saves the machine, or its disks, into the folder of `draft`.
    fn save(&self, machine: &Machine, what: Saves, draft: &Draft, tag: String) -> Result<Snapshot, Failure> {
        let (saved, disks) = match what {
            Saves::Machine => (Some(self.save_running(machine, draft)?), None),
            Saves::Disks => (None, Some(self.save_disks(machine, &draft.folder)?)),
        };
        Ok(Snapshot {
            version: SNAPSHOT_VERSION,
            machine: machine.spec.name.clone(),
            machine_id: machine.id.clone(),
            tag,
            automatic: true,
            created_at: Timestamp::now(),
            spec: machine.spec.clone(),
            plan: machine.plan()?,
            guest_kernel: machine.state.guest_kernel.clone(),
            saved,
            disks,
        })
    }

    /// Has the monitor save the machine into the folder of `draft`.
    fn save_running(&self, machine: &Machine, draft: &Draft) -> Result<Saved, Failure> {
        let request = Request::Save {
            folder: draft.folder.clone(),
        };
        match self.reply(machine, &request)? {
            Some(Reply::Saved(saved)) => Ok(*saved),
            Some(Reply::Failed(failure)) => Err(failure),
            Some(_) => Err(Failure::new(Class::Failed, "the monitor's answer does not fit")),
            None => {
                let message = format!("machine '{}' ended before it was saved", machine.spec.name);
                Err(Failure::new(Class::Conflict, message))
            }
        }
    }

    /// Removes a snapshot. Machines that were made from it go on.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    pub fn remove_snapshot(&self, name: &SnapshotName) -> Result<(), Failure> {
        let Some(tag) = &name.tag else {
            let message = format!("'{}' names no snapshot", name.machine);
            return Err(Failure::new(Class::Usage, message).hint("say which one: MACHINE@TAG"));
        };
        self.snapshots().remove(&format!("{}@{tag}", name.machine))
    }

    /// Lets a machine that does not run go on from a snapshot of it: its disk and its volumes are what they were then. From one of disks
    /// alone it boots.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Conflict`] when it runs, or is another machine, or another one uses a volume of it; and what does not
    /// fit.
    pub fn restore(&self, name: &SnapshotName) -> Result<Starting, Failure> {
        let snapshot = self.snapshots().get(name)?;
        let machine = self.machine(&name.machine)?;
        let (full, own) = (snapshot.name(), &machine.spec.name);
        if machine.id != snapshot.machine_id {
            let message = format!("the snapshot '{full}' was made of another machine, whose name '{own}' has now");
            return Err(
                Failure::new(Class::Conflict, message).hint(format!("make a machine from it: zmachine fork {full}"))
            );
        }
        if machine.state.phase.is_active() {
            let message = format!("machine '{own}' is {}", machine.state.phase.word());
            return Err(Failure::new(Class::Conflict, message).hint(format!(
                "stop it first: zmachine stop {own}; or make another machine: zmachine fork {full}"
            )));
        }
        let folder = self.snapshots().folder(&snapshot);
        self.require_image(&snapshot)?;
        let memory = match snapshot.memory() {
            Some(saved) => {
                self.require_fit(&machine, &snapshot, saved, &folder)?;
                require_version(&snapshot, saved)?;
                Some(load(&snapshot, &folder, None)?)
            }
            None => {
                self.require_disks(&machine, &snapshot, &folder)?;
                None
            }
        };
        let volumes = {
            let _held = self.held(&machine)?;
            self.ready_disks(&machine, &snapshot, &folder)?.put(&self.kill)?
        };
        let from = memory.as_ref().map(|memory| RestoreFrom {
            folder: &folder,
            memory,
            shared: None,
            is_fork: false,
        });
        // Nobody else has the volumes until the machine does.
        self.start_holding(&machine.id, from.as_ref(), volumes)
    }

    /// What forks are made of: a snapshot; or, without a tag, the machine as it is now.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or the machine cannot be saved.
    pub fn fork_source(&self, name: &SnapshotName) -> Result<ForkSource, Failure> {
        let (snapshot, folder, draft) = match &name.tag {
            Some(_) => {
                let snapshot = self.snapshots().get(name)?;
                if snapshot.memory().is_some() {
                    require_forkable(&snapshot.plan, &snapshot.name(), &snapshot.machine)?;
                }
                let folder = self.snapshots().folder(&snapshot);
                (snapshot, folder, None)
            }
            None => {
                let machine = self.machine(&name.machine)?;
                if !machine.state.phase.is_active() {
                    let message = format!("machine '{}' does not run", machine.spec.name);
                    return Err(Failure::new(Class::Conflict, message).hint(format!(
                        "fork a snapshot of it: {}@TAG; or copy it: zmachine clone {0}",
                        machine.spec.name
                    )));
                }
                let of = &machine.spec.name;
                require_forkable(&machine.plan()?, of, of)?;
                let draft = self.snapshots().begin()?;
                let snapshot = self.save(&machine, Saves::Machine, &draft, "now".to_owned())?;
                file::replace_json_unsynced(&draft.folder.join("snapshot.json"), &snapshot)?;
                (snapshot, draft.folder.clone(), Some(draft))
            }
        };
        let memory = match snapshot.memory() {
            Some(_) => {
                let holders = Holders::of(&self.home, &snapshot);
                Some((Reading::begin(&snapshot, &folder, &holders)?, holders))
            }
            None => None,
        };
        Ok(ForkSource {
            snapshot,
            folder,
            memory,
            draft,
        })
    }

    /// Makes one more machine of `source`, and starts it. What is started in it from then on has `env` beside the variables of `source`.
    ///
    /// # Errors
    /// As [`Engine::create`], and what does not fit. Nothing is left then.
    pub fn fork(
        &self,
        source: &ForkSource,
        new: &str,
        env: &[(String, String)],
        progress: &dyn Progress,
    ) -> Result<(Machine, Starting), Failure> {
        check_name(new)?;
        let snapshot = &source.snapshot;
        self.require_image(snapshot)?;
        require_lengths(snapshot, &source.folder)?;
        let copied = spec_of_copy(&snapshot.spec, new);
        let spec = MachineSpec {
            env: copied.env.iter().chain(env).cloned().collect(),
            volumes: Engine::volumes_of_copy(&snapshot.spec.volumes, snapshot.volumes()),
            // It has its own.
            hostname: None,
            auto_remove: false,
            // It was installed.
            reinstall: false,
            // Memory that is that of others as well cannot be saved; what it was built as is part of what has to fit.
            idle_timeout_ms: copied.idle_timeout_ms.filter(|_| source.memory.is_none()),
            snapshots: copied.snapshots || source.memory.is_some(),
            ..copied
        };
        let options = CreateOptions {
            cwd: Path::new("/"),
            pull: PullPolicy::Never,
            installs_kernel: false,
            progress,
        };
        let image = image_of(&snapshot.plan);
        let created = self.create_from(&spec, &options, image.as_ref(), |new| {
            let copy = |file: &&str| copy_file(&source.folder.join(file), &new.join(file));
            [DISK, FIRMWARE].iter().try_for_each(copy)
        })?;
        let filled = self.fill_volumes(&created, snapshot, &source.folder);
        let started = filled.and_then(|()| self.start_fork(source, &created));
        match started {
            Ok(starting) => Ok((created, starting)),
            Err(failure) => {
                let _ = self.remove(&created.id, true, true);
                Err(failure)
            }
        }
    }

    fn start_fork(&self, source: &ForkSource, created: &Machine) -> Result<Starting, Failure> {
        let (Some((memory, holders)), Some(saved)) = (&source.memory, source.snapshot.memory()) else {
            self.kill.pass("fork: created");
            return self.start(&created.id, false);
        };
        self.require_fit(created, &source.snapshot, saved, &source.folder)?;
        let (reading, memory) = (memory, memory.end()?);
        // What is saved for these forks alone is gone with this command.
        if source.draft.is_none() && reading.was_read() {
            self.keep_memory_of(&source.folder, &memory);
        }
        self.kill.pass("fork: created");
        let from = RestoreFrom {
            folder: &source.folder,
            memory: &memory,
            shared: Some(holders),
            is_fork: true,
        };
        self.start_from(&created.id, Some(&from))
    }

    /// That the image is here from which the guest reads on.
    fn require_image(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let Some(image) = snapshot.plan.image() else {
            return Ok(());
        };
        if file::is_there(&self.home.data().join("images").join(image))? {
            return Ok(());
        }
        let (name, flist) = (snapshot.name(), &snapshot.spec.flist);
        let message = format!("the image of the snapshot '{name}' is not here: {flist} ({image})");
        Err(Failure::new(Class::NotFound, message).hint(format!("get it: zmachine image pull {flist}")))
    }

    /// That machine and files fit the snapshot.
    fn require_fit(&self, machine: &Machine, snapshot: &Snapshot, saved: &Saved, folder: &Path) -> Result<(), Failure> {
        let name = snapshot.name();
        let plan = machine.plan()?;
        if let Some(why) = plan.misfit(&snapshot.plan) {
            let message = format!(
                "the snapshot '{name}' does not fit the machine '{}': {why}",
                machine.spec.name
            );
            return Err(Failure::new(Class::Unsupported, message).hint("start the machine without it"));
        }
        let (kept, wanted) = (saved.memory.bytes, plan.vm().memory_bytes);
        if kept != wanted {
            let message = format!("the snapshot '{name}' has {kept} bytes of memory, and the machine has {wanted}");
            return Err(Failure::new(Class::Unsupported, message).hint("start the machine without it"));
        }
        if let Some(why) = HostMark::of_this_host(plan.vm().accel == Accel::Kvm).differs_from(&saved.host) {
            let message = format!("the snapshot '{name}' does not fit this host: {why}");
            return Err(
                Failure::new(Class::Unsupported, message).hint("go on where it was saved, or start the machine anew")
            );
        }
        let damaged = |what: String| {
            Failure::new(Class::Failed, format!("the snapshot '{name}' is damaged: {what}"))
                .hint(format!("remove it: zmachine snapshot rm {name}"))
        };
        let found = memory::mark(&open(folder, STATE).map_err(|e| damaged(e.to_string()))?)?;
        if found != saved.state {
            return Err(damaged(format!("its file '{STATE}' is not what was saved")));
        }
        require_lengths(snapshot, folder)
    }

    /// A name that no machine has, for a fork of `machine`.
    ///
    /// # Errors
    /// When the machines cannot be looked at.
    pub fn free_fork_name(&self, machine: &str) -> Result<String, Failure> {
        // The longest name has 63 characters.
        let stem: String = machine.chars().take(50).collect();
        for number in 1..=100_000 {
            let name = format!("{stem}-fork{number}");
            if catalog::require_free(&self.home, &name).is_ok() {
                return Ok(name);
            }
        }
        Err(
            Failure::new(Class::Conflict, format!("no name is free for a fork of '{machine}'"))
                .hint("give one with --name"),
        )
    }
}

impl Engine {
    /// All snapshots, oldest first, and why others cannot be read.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn snapshot_list(&self) -> Result<(Vec<SnapshotView>, Vec<Failure>), Failure> {
        let (mut views, mut failures) = (Vec::new(), Vec::new());
        for listed in self.snapshots().list()? {
            match listed {
                Ok(snapshot) => views.push(self.view_of(&snapshot)),
                Err((name, failure)) => failures.push(failure.context(format!("the snapshot {name} cannot be read"))),
            }
        }
        Ok((views, failures))
    }

    /// One snapshot; without a tag the machine's newest.
    ///
    /// # Errors
    /// When there is none.
    pub fn snapshot_view(&self, name: &SnapshotName) -> Result<SnapshotView, Failure> {
        Ok(self.view_of(&self.snapshots().get(name)?))
    }

    fn view_of(&self, snapshot: &Snapshot) -> SnapshotView {
        let folder = self.snapshots().folder(snapshot);
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let used = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512));
        SnapshotView {
            name: snapshot.name(),
            machine: snapshot.machine.clone(),
            machine_id: snapshot.machine_id.clone(),
            tag: snapshot.tag.clone(),
            created_at: snapshot.created_at,
            kind: match snapshot.memory() {
                Some(_) => "machine",
                None => "disks",
            },
            image: snapshot.plan.image().unwrap_or_default().to_owned(),
            memory_bytes: snapshot.saved.as_ref().map_or(0, |saved| saved.memory.bytes),
            used_bytes: used.sum(),
            volumes: snapshot.volumes().iter().map(|volume| volume.name.clone()).collect(),
            paused_us: match (&snapshot.saved, &snapshot.disks) {
                (Some(saved), _) => saved.paused_us,
                (None, disks) => disks.as_ref().map_or(0, |disks| disks.paused_us),
            },
            hypervisor: snapshot.saved.as_ref().map(|saved| saved.hypervisor.clone()),
            path: folder.display().to_string(),
        }
    }
}

pub(super) fn open(folder: &Path, name: &str) -> Result<File, FileError> {
    let path = folder.join(name);
    File::open(&path).map_err(|e| FileError::io("open", &path, e))
}

/// That a copy of a guest can be told who it is: a VM's own init cannot be stopped before it is.
fn require_forkable(plan: &Plan, what: &str, machine: &str) -> Result<(), Failure> {
    match plan {
        Plan::Container(_) => Ok(()),
        Plan::Vm(_) => Err(Failure::new(
            Class::Unsupported,
            format!("'{what}' cannot be forked with its memory: it is that of a VM, whose programs would run on under its name and addresses"),
        )
        .hint(format!(
            "fork its disks: zmachine snapshot create --disk-only {machine}@TAG, then zmachine fork {machine}@TAG"
        ))),
    }
}

/// That the hypervisor is the one that saved it, before anything of the machine is changed. One that differs in less is found out when it
/// is started.
fn require_version(snapshot: &Snapshot, saved: &Saved) -> Result<(), Failure> {
    let found = qemu::probe(None).map_err(|e| Failure::from_error(Class::Unsupported, &e).hint(e.hint()))?;
    let (major, minor) = found.version;
    if saved.hypervisor.starts_with(&format!("qemu {major}.{minor}.")) {
        return Ok(());
    }
    let (name, by) = (snapshot.name(), &saved.hypervisor);
    let message = format!("the snapshot '{name}' was saved by {by}, and this host has qemu {major}.{minor}");
    Err(Failure::new(Class::Unsupported, message).hint("start the machine anew, or go on where it was saved"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_is_told_what_it_goes_on_from() {
        let memory = OwnedFd::from(File::open("/dev/null").unwrap());
        let from = RestoreFrom {
            folder: Path::new("/s/web@a"),
            memory: &memory,
            shared: None,
            is_fork: true,
        };
        let text: Vec<String> = from
            .arguments()
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        let number = memory.as_raw_fd().to_string();
        assert_eq!(text, ["--restore", "/s/web@a", "--memory-fd", &number, "--fork"]);
    }
}
