//! Snapshots: machines as they were at an instant, in `snapshots/<machine>@<tag>/`.
//!
//! ```text
//! snapshot.json     what it is, and what has to fit; written last
//! state             the hypervisor's devices; not in a snapshot of disks alone
//! memory            the guest's memory, with holes for its zeros; not in a snapshot of disks alone
//! root.img          the machine's own disk at that instant, where it has one
//! volume-<n>.img    the disk of its volume number n, unless it only reads that
//! firmware.vars     the variables of a VM's firmware; in a snapshot of disks alone
//! ```
//! # Invariants
//! A folder has its name when everything in it is on the disk. What is being made, or removed, begins with a dot; it is swept by whoever
//! holds the lock next. Memory has the guest's secrets in it: all is its owner's alone.

pub mod holders;
pub mod memory;

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_plan::Plan;
use zmachine_spec::saved::{Saved, SavedDisks, SavedVolume};
use zmachine_spec::{Class, Failure, Home, MachineSpec, check_name};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

/// Version of `snapshot.json`.
pub const SNAPSHOT_VERSION: u32 = 1;

const DESCRIPTION: &str = "snapshot.json";
/// The hypervisor's devices.
pub const STATE: &str = "state";
/// The guest's memory.
pub const MEMORY: &str = "memory";
/// The machine's own disk.
pub const DISK: &str = "root.img";
/// The variables of its firmware.
pub const FIRMWARE: &str = "firmware.vars";

/// The disk of the machine's volume number `index`, counted from 0.
pub fn volume_file(index: usize) -> String {
    format!("volume-{index}.img")
}

/// A machine at an instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// Name of the machine it was made of.
    pub machine: String,
    /// Its id.
    pub machine_id: String,
    /// Tells it from others of that machine.
    pub tag: String,
    /// The tag is not of the user's choice.
    #[serde(default)]
    pub automatic: bool,
    /// When.
    pub created_at: Timestamp,
    /// What the machine was asked to be.
    pub spec: MachineSpec,
    /// What it was.
    pub plan: Plan,
    /// Release of the kernel that its guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
    /// What was saved of it while it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    /// What was saved of it without its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<SavedDisks>,
}

impl Snapshot {
    /// `MACHINE@TAG`.
    pub fn name(&self) -> String {
        format!("{}@{}", self.machine, self.tag)
    }

    /// What a machine goes on from; `None` for a snapshot of disks alone.
    pub fn memory(&self) -> Option<&Saved> {
        self.saved.as_ref()
    }

    /// [`Snapshot::memory`] of one that has it.
    ///
    /// # Errors
    /// [`Class::Unsupported`] when it has none.
    pub fn require_memory(&self) -> Result<&Saved, Failure> {
        self.memory().ok_or_else(|| {
            let message = format!("the snapshot '{}' has no memory: nothing goes on from it", self.name());
            Failure::new(Class::Unsupported, message)
        })
    }

    /// The volumes of its machine, in their order.
    pub fn volumes(&self) -> &[SavedVolume] {
        match (&self.saved, &self.disks) {
            (Some(saved), _) => &saved.volumes,
            (None, Some(disks)) => &disks.volumes,
            (None, None) => &[],
        }
    }

    /// The files of its disks, each with its length in bytes.
    pub fn disk_files(&self) -> Vec<(String, u64)> {
        let (disk, firmware) = match (&self.saved, &self.disks) {
            (Some(saved), _) => (saved.disk_bytes, saved.firmware_bytes),
            (None, Some(disks)) => (disks.disk_bytes, disks.firmware_bytes),
            (None, None) => (None, None),
        };
        let own = disk.map(|bytes| (DISK.to_owned(), bytes));
        let firmware = firmware.map(|bytes| (FIRMWARE.to_owned(), bytes));
        let volumes = self.volumes().iter().enumerate();
        let volumes = volumes.filter(|(_, volume)| volume.is_copied());
        let volumes = volumes.map(|(index, volume)| (volume_file(index), volume.bytes));
        own.into_iter().chain(firmware).chain(volumes).collect()
    }

    /// All of its files but the description.
    pub fn files(&self) -> Vec<String> {
        let of_memory = self.saved.iter().flat_map(|_| [STATE.to_owned(), MEMORY.to_owned()]);
        let disks = self.disk_files().into_iter().map(|(name, _)| name);
        of_memory.chain(disks).collect()
    }
}

/// What a user names: a machine's snapshot, or its newest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName {
    /// The machine.
    pub machine: String,
    /// The tag.
    pub tag: Option<String>,
}

impl SnapshotName {
    /// Reads `MACHINE[@TAG]`.
    ///
    /// # Errors
    /// When one of them cannot be a name.
    pub fn parse(text: &str) -> Result<SnapshotName, Failure> {
        let (machine, tag) = match text.split_once('@') {
            Some((machine, tag)) => (machine, Some(tag)),
            None => (text, None),
        };
        check_name(machine)?;
        tag.map_or(Ok(()), check_tag)?;
        Ok(SnapshotName {
            machine: machine.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }
}

/// Checks what tells a snapshot from others of the same thing.
///
/// # Errors
/// [`Class::Usage`] when it cannot be that.
pub fn check_tag(tag: &str) -> Result<(), Failure> {
    check_name(tag).map_err(|_| {
        Failure::new(Class::Usage, format!("'{tag}' cannot be the tag of a snapshot"))
            .hint("use letters, digits, '_', '.' and '-', starting with a letter or digit, at most 63 characters")
    })
}

/// The tag behind all of `tags` that were not chosen.
pub(crate) fn next_tag<'a>(tags: impl Iterator<Item = &'a str>) -> String {
    let number = |tag: &str| tag.strip_prefix("snap")?.parse::<u64>().ok();
    let next = tags.filter_map(number).max().map_or(0, |last| last.saturating_add(1));
    format!("snap{next}")
}

/// One of a listing; for one that cannot be read, its name and why.
pub type Listed = Result<Snapshot, (String, Failure)>;

/// The snapshots of a home.
#[derive(Debug, Clone)]
pub struct Snapshots {
    folder: PathBuf,
}

/// A snapshot that is being made: no other one is begun meanwhile, and what is not published goes with it.
#[derive(Debug)]
pub struct Draft {
    /// Where its files go.
    pub folder: PathBuf,
    _lock: FileLock,
}

impl Drop for Draft {
    /// One that was published has another name by now; what a killed process leaves is swept.
    fn drop(&mut self) {
        let _ = file::remove_dir_all(&self.folder);
    }
}

impl Snapshots {
    /// Those of `home`.
    pub fn of(home: &Home) -> Snapshots {
        Snapshots {
            folder: home.data().join("snapshots"),
        }
    }

    /// The folder of a snapshot.
    pub fn folder(&self, snapshot: &Snapshot) -> PathBuf {
        self.folder.join(snapshot.name())
    }

    /// All, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Listed>, Failure> {
        if !file::is_there(&self.folder)? {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for name in file::names_in(&self.folder)? {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with('.') || !name.contains('@') {
                continue;
            }
            all.push(self.read(&name).map_err(|failure| (name, failure)));
        }
        all.sort_by_key(|listed| listed.as_ref().map_or(Timestamp::MIN, |s| s.created_at));
        Ok(all)
    }

    /// Those that can be read, of one machine or of all, oldest first.
    ///
    /// # Errors
    /// As [`Snapshots::list`].
    pub fn readable(&self, machine: Option<&str>) -> Result<Vec<Snapshot>, Failure> {
        let all = self.list()?.into_iter().flatten();
        Ok(all.filter(|s| machine.is_none_or(|name| s.machine == name)).collect())
    }

    /// One; without a tag the machine's newest.
    ///
    /// # Errors
    /// [`Class::NotFound`], or when it cannot be read.
    pub fn get(&self, name: &SnapshotName) -> Result<Snapshot, Failure> {
        let machine = &name.machine;
        let all_hint = "'zmachine snapshot ls' shows all";
        match &name.tag {
            Some(tag) => {
                let full = format!("{machine}@{tag}");
                match file::is_there(&self.folder.join(&full))? {
                    true => self.read(&full),
                    false => Err(Snapshots::missing(&full)),
                }
            }
            None => self.readable(Some(machine))?.pop().ok_or_else(|| {
                let message = format!("there is no snapshot of '{machine}'");
                Failure::new(Class::NotFound, message).hint(all_hint)
            }),
        }
    }

    fn read(&self, name: &str) -> Result<Snapshot, Failure> {
        let path = self.folder.join(name).join(DESCRIPTION);
        let version: serde_json::Value = file::read_json(&path)?;
        match version["version"].as_u64() {
            Some(version) if version == u64::from(SNAPSHOT_VERSION) => {}
            other => {
                let found = other.map_or_else(|| "none".to_owned(), |version| version.to_string());
                let message = format!(
                    "{} has format version {found}, which this zmachine does not know",
                    path.display()
                );
                return Err(
                    Failure::new(Class::Unsupported, message).hint("use the zmachine that wrote it, or a newer one")
                );
            }
        }
        let read: Snapshot = serde_json::from_value(version).map_err(|error| {
            Failure::from_error(Class::Failed, &error).context(format!("{} cannot be understood", path.display()))
        })?;
        match read.memory().is_some() != read.disks.is_some() {
            true => Ok(read),
            false => Err(Failure::new(
                Class::Failed,
                format!("{} says neither of memory nor of disks what was saved", path.display()),
            )),
        }
    }

    /// A tag behind all that the machine has: `snap0`, `snap1`, ... One that was removed last is taken again.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn free_tag(&self, machine: &str) -> Result<String, Failure> {
        let mut names = Vec::new();
        if file::is_there(&self.folder)? {
            names = file::names_in(&self.folder)?;
        }
        let names = names
            .iter()
            .filter_map(|name| name.to_str()?.strip_prefix(machine)?.strip_prefix('@'));
        Ok(next_tag(names))
    }

    /// Begins a snapshot, after whoever is making one.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn begin(&self) -> Result<Draft, Failure> {
        let lock = self.swept()?;
        let folder = self.folder.join(format!(".new-{:016x}", file::random_u64()));
        make_private(&folder)?;
        Ok(Draft { folder, _lock: lock })
    }

    /// Gives a draft its name.
    ///
    /// # Errors
    /// [`Class::Conflict`] when that is taken.
    pub fn publish(&self, draft: Draft, snapshot: &Snapshot) -> Result<(), Failure> {
        let target = self.folder(snapshot);
        if file::is_there(&target)? {
            return Err(Snapshots::taken(&snapshot.name()));
        }
        publish_files(&draft.folder, snapshot, &target)
    }

    fn missing(name: &str) -> Failure {
        let message = format!("there is no snapshot '{name}'");
        Failure::new(Class::NotFound, message).hint("'zmachine snapshot ls' shows all")
    }

    /// That its name is taken.
    pub fn taken(name: &str) -> Failure {
        let hint = format!("choose another tag, or remove it: zmachine snapshot rm {name}");
        Failure::new(Class::Conflict, format!("there is a snapshot '{name}' already")).hint(hint)
    }

    /// Whether a machine has a snapshot with this tag.
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn has(&self, machine: &str, tag: &str) -> Result<bool, Failure> {
        Ok(file::is_there(&self.folder.join(format!("{machine}@{tag}")))?)
    }

    /// Removes one. Machines that were made from it go on.
    ///
    /// # Errors
    /// When it cannot be removed; it is not offered any more then, or as it was.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let _lock = self.swept()?;
        let gone = self.folder.join(format!(".gone-{:016x}", file::random_u64()));
        let path = self.folder.join(name);
        if !file::is_there(&path)? {
            return Err(Snapshots::missing(name));
        }
        std::fs::rename(&path, &gone).map_err(|e| FileError::io("remove", &path, e))?;
        file::sync_dir(&self.folder)?;
        Ok(file::remove_dir_all(&gone)?)
    }

    /// Removes what is half-made or half-removed, unless somebody is at it.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self) -> Result<(), Failure> {
        if !file::is_there(&self.folder)? {
            return Ok(());
        }
        match FileLock::try_exclusive(&self.lock_path())? {
            Some(_lock) => self.remove_unfinished(),
            None => Ok(()),
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.folder.join(".lock")
    }

    fn swept(&self) -> Result<FileLock, Failure> {
        if !file::is_there(&self.folder)? {
            make_private(&self.folder)?;
        }
        let lock = FileLock::exclusive(&self.lock_path())?;
        self.remove_unfinished()?;
        Ok(lock)
    }

    fn remove_unfinished(&self) -> Result<(), Failure> {
        for name in file::names_in(&self.folder)? {
            let text = name.to_string_lossy();
            if text.starts_with(".new-") || text.starts_with(".gone-") {
                file::remove_dir_all(&self.folder.join(&name))?;
            }
        }
        Ok(())
    }
}

/// Gives the folder of a draft its name, once all of it is on the disk.
///
/// # Errors
/// When something cannot be written.
pub(crate) fn publish_files(draft: &Path, snapshot: &Snapshot, target: &Path) -> Result<(), Failure> {
    for name in snapshot.files() {
        let path = draft.join(name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| FileError::io("write", &path, error))?;
    }
    file::replace_json(&draft.join(DESCRIPTION), snapshot)?;
    std::fs::rename(draft, target).map_err(|e| FileError::io("name", target, e))?;
    target.parent().map_or(Ok(()), file::sync_dir)?;
    Ok(())
}

/// Makes a folder that is its owner's alone.
///
/// # Errors
/// Of the file system.
pub(crate) fn make_private(folder: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(folder);
    Ok(made.map_err(|e| FileError::io("make", folder, e))?)
}

#[cfg(test)]
mod tests;
