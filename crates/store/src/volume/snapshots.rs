//! Snapshots of volumes: a disk as it was at an instant, in `volumes/<name>/snapshots/<tag>/`.
//!
//! ```text
//! snapshot.json     what it is; written last
//! data.img          the disk at that instant; it shares its blocks with the volume where the file system can
//! ```
//! # Invariants
//! * A folder has its name when everything in it is on the disk. What is being made, or removed, begins with a dot; it is swept by whoever
//!   holds the lock next.
//! * A restored disk takes the place of the other as a whole, and what the record says of it is never more than what it holds.
//! * They go with their volume.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_spec::volume::check_name;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;
use zmachine_sys::sparse;

use super::record::Record;
use super::store::{DATA, Volume, Volumes};
use crate::events::{self, Event, Object};
use crate::snapshot::{check_tag, make_private, next_tag};

/// Version of `snapshot.json`.
pub const SNAPSHOT_VERSION: u32 = 1;

/// What a snapshot is.
pub const DESCRIPTION: &str = "snapshot.json";

/// How folders begin in which snapshots are brought here, and what is locked in one as long as it is.
pub(super) const ARRIVING: &str = ".restore-";
pub(super) const ARRIVING_LOCK: &str = "lock";

/// A volume at an instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSnapshot {
    /// [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// The volume's name then.
    pub volume: String,
    /// Tells it from others of that volume.
    pub tag: String,
    /// The tag is not of the user's choice.
    #[serde(default)]
    pub automatic: bool,
    /// When.
    pub created_at: Timestamp,
    /// The size of the disk in bytes.
    pub size_bytes: u64,
    /// What the volume was for, and what it held.
    pub record: Record,
}

impl VolumeSnapshot {
    /// `VOLUME@TAG`.
    pub fn name(&self) -> String {
        format!("{}@{}", self.volume, self.tag)
    }
}

/// A volume, or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeName {
    /// The volume.
    pub volume: String,
    /// The tag.
    pub tag: Option<String>,
}

impl VolumeName {
    /// Reads `VOLUME[@TAG]`.
    ///
    /// # Errors
    /// When one of them cannot be a name.
    pub fn parse(text: &str) -> Result<VolumeName, Failure> {
        let (volume, tag) = match text.split_once('@') {
            Some((volume, tag)) => (volume, Some(tag)),
            None => (text, None),
        };
        check_name(volume)?;
        tag.map_or(Ok(()), check_tag)?;
        Ok(VolumeName {
            volume: volume.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }

    /// Its tag.
    ///
    /// # Errors
    /// [`Class::Usage`] when it names no snapshot.
    pub fn require_tag(&self) -> Result<&str, Failure> {
        self.tag.as_deref().ok_or_else(|| {
            Failure::new(Class::Usage, format!("'{}' names no snapshot", self.volume))
                .hint("say which one: VOLUME@TAG; 'zmachine volume snapshot ls' shows all")
        })
    }
}

impl Volumes {
    fn folder(&self, volume: &str) -> PathBuf {
        self.root().join(volume).join("snapshots")
    }

    /// The folder of a snapshot: all that a backup of it has to have.
    pub fn snapshot_folder(&self, snapshot: &VolumeSnapshot) -> PathBuf {
        self.folder(&snapshot.volume).join(&snapshot.tag)
    }

    /// Makes a snapshot of a volume that nobody writes to meanwhile; its tag is `snap0`, `snap1`, ... when none is given.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the tag is taken. Nothing is left then.
    pub fn snapshot(&self, name: &str, tag: Option<&str>) -> Result<VolumeSnapshot, Failure> {
        tag.map_or(Ok(()), check_tag)?;
        let volume = self.get(name)?;
        let folder = self.folder(name);
        let _lock = swept(&folder)?;
        let snapshot = VolumeSnapshot {
            version: SNAPSHOT_VERSION,
            volume: name.to_owned(),
            tag: tag.map_or_else(|| free_tag(&folder), |tag| Ok(tag.to_owned()))?,
            automatic: tag.is_none(),
            created_at: Timestamp::now(),
            size_bytes: volume.size_bytes,
            record: volume.record.clone(),
        };
        let target = folder.join(&snapshot.tag);
        if file::is_there(&target)? {
            let full = snapshot.name();
            return Err(
                Failure::new(Class::Conflict, format!("there is a snapshot '{full}' already")).hint(format!(
                    "choose another tag, or remove it: zmachine volume snapshot rm {full}"
                )),
            );
        }
        let draft = folder.join(format!(".new-{:016x}", file::random_u64()));
        let made = make_private(&draft)
            .and_then(|()| copy(&volume.data(), &draft.join(DATA)))
            .and_then(|()| Ok(file::replace_json(&draft.join(DESCRIPTION), &snapshot)?))
            .and_then(|()| Ok(fs::rename(&draft, &target).map_err(|e| FileError::io("name", &target, e))?))
            .and_then(|()| Ok(file::sync_dir(&folder)?));
        if let Err(failure) = made {
            let _ = file::remove_dir_all(&draft);
            return Err(failure.context(format!("no snapshot of the volume '{name}' can be made")));
        }
        Ok(snapshot)
    }

    /// The snapshots of one volume, or of all, oldest first; one that cannot be read is its failure.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn snapshots(&self, of: Option<&str>) -> Result<Vec<Result<VolumeSnapshot, Failure>>, Failure> {
        let volumes = match of {
            Some(name) => vec![self.get(name)?.name],
            None => self.list()?.into_iter().flatten().map(|volume| volume.name).collect(),
        };
        let mut all = Vec::new();
        for volume in volumes {
            let folder = self.folder(&volume);
            for tag in tags(&folder)? {
                all.push(read(&folder.join(&tag), &volume, &tag));
            }
        }
        all.sort_by_key(|listed| listed.as_ref().map_or(Timestamp::MIN, |s| s.created_at));
        Ok(all)
    }

    /// One; without a tag the volume's newest.
    ///
    /// # Errors
    /// [`Class::NotFound`], or when it cannot be read.
    pub fn find_snapshot(&self, name: &VolumeName) -> Result<VolumeSnapshot, Failure> {
        let volume = self.get(&name.volume)?.name;
        let missing =
            |what: String| Failure::new(Class::NotFound, what).hint("'zmachine volume snapshot ls' shows all");
        match &name.tag {
            Some(tag) => match file::is_there(&self.folder(&volume).join(tag))? {
                true => read(&self.folder(&volume).join(tag), &volume, tag),
                false => Err(missing(format!("there is no snapshot '{volume}@{tag}'"))),
            },
            None => {
                let mut readable = self.snapshots(Some(&volume))?.into_iter().flatten();
                readable
                    .next_back()
                    .ok_or_else(|| missing(format!("there is no snapshot of the volume '{volume}'")))
            }
        }
    }

    /// What a snapshot takes of the host's disk in bytes, with what it shares.
    pub fn snapshot_bytes(&self, snapshot: &VolumeSnapshot) -> u64 {
        let data = fs::metadata(self.snapshot_folder(snapshot).join(DATA));
        data.map_or(0, |data| data.blocks() * 512)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed; it is not offered any more then, or as it was.
    pub fn remove_snapshot(&self, volume: &str, tag: &str) -> Result<(), Failure> {
        check_tag(tag)?;
        let volume = self.get(volume)?.name;
        let folder = self.folder(&volume);
        let path = folder.join(tag);
        if !file::is_there(&path)? {
            let message = format!("there is no snapshot '{volume}@{tag}'");
            return Err(Failure::new(Class::NotFound, message).hint("'zmachine volume snapshot ls' shows all"));
        }
        let _lock = swept(&folder)?;
        let gone = folder.join(format!(".gone-{:016x}", file::random_u64()));
        fs::rename(&path, &gone).map_err(|e| FileError::io("remove", &path, e))?;
        file::sync_dir(&folder)?;
        Ok(file::remove_dir_all(&gone)?)
    }

    /// Makes a volume, which no machine that runs uses, what it was when the snapshot was made, its size included.
    ///
    /// # Errors
    /// [`Class::Conflict`] that names the machine which uses it. The volume is as it was then.
    pub fn restore_snapshot(&self, snapshot: &VolumeSnapshot) -> Result<Volume, Failure> {
        let folder = self.snapshot_folder(snapshot);
        self.replace(&snapshot.volume, &folder, snapshot)?;
        events::record(
            &self.home,
            &Event::of(Object::Volume, &snapshot.volume, &snapshot.volume, "restored"),
        );
        self.get(&snapshot.volume)
    }

    fn replace(&self, name: &str, folder: &Path, snapshot: &VolumeSnapshot) -> Result<(), Failure> {
        let source = folder.join(DATA);
        require_length(&source, snapshot)?;
        let ready = self.replacement(name, &source, &snapshot.record.content, "")?;
        let _lock = swept(&self.folder(name))?;
        ready.put()
    }

    /// Makes the volume `new` of a snapshot.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the name is taken; what is wrong with the snapshot. Nothing is left then.
    pub fn create_from(&self, new: &str, snapshot: &VolumeSnapshot) -> Result<Volume, Failure> {
        let data = self.snapshot_folder(snapshot).join(DATA);
        require_length(&data, snapshot)?;
        self.create_with(new, fresh(&snapshot.record), |target| copy(&data, target))
    }

    /// A folder for the files of a snapshot that is brought here.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn arrival(&self) -> Result<Arrival, Failure> {
        file::make_dirs(&self.root())?;
        let folder = self.root().join(format!("{ARRIVING}{:016x}", file::random_u64()));
        make_private(&folder)?;
        let lock = FileLock::exclusive(&folder.join(ARRIVING_LOCK))?;
        Ok(Arrival { folder, _lock: lock })
    }

    /// Makes the volume `new` of a snapshot that has been brought here.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the name is taken; what is wrong with the files. Nothing is left then.
    pub fn create_arrived(&self, new: &str, arrival: &Arrival) -> Result<Volume, Failure> {
        let files = arrival.files();
        let snapshot = describe(&files)?;
        let data = files.join(DATA);
        require_length(&data, &snapshot)?;
        self.create_with(new, fresh(&snapshot.record), |target| {
            let moved = fs::set_permissions(&data, fs::Permissions::from_mode(0o600))
                .and_then(|()| File::open(&data)?.sync_all())
                .and_then(|()| fs::rename(&data, target));
            Ok(moved.map_err(|e| FileError::io("move", &data, e))?)
        })
    }

    /// Makes the volume `new` a copy of one that nobody writes to meanwhile.
    ///
    /// # Errors
    /// As [`Volumes::create_from`].
    pub fn create_copy(&self, new: &str, of: &str) -> Result<Volume, Failure> {
        let volume = self.get(of)?;
        self.create_with(new, fresh(&volume.record), |target| copy(&volume.data(), target))
    }
}

/// The record of a copy.
fn fresh(record: &Record) -> Record {
    Record {
        anonymous_of: None,
        created_at: Timestamp::now(),
        ..record.clone()
    }
}

/// The files of a snapshot that is brought here; they go with it.
#[derive(Debug)]
pub struct Arrival {
    folder: PathBuf,
    _lock: FileLock,
}

impl Arrival {
    /// Where they go; it is not there yet.
    pub fn files(&self) -> PathBuf {
        self.folder.join("files")
    }
}

impl Drop for Arrival {
    /// What a killed process leaves is swept.
    fn drop(&mut self) {
        let _ = file::remove_dir_all(&self.folder);
    }
}

/// Reads what a folder says that it is.
fn describe(folder: &Path) -> Result<VolumeSnapshot, Failure> {
    let path = folder.join(DESCRIPTION);
    let value: serde_json::Value = file::read_json(&path)?;
    if value["version"].as_u64() != Some(u64::from(SNAPSHOT_VERSION)) {
        let message = format!(
            "{} has a format version that this zmachine does not know",
            path.display()
        );
        return Err(Failure::new(Class::Unsupported, message).hint("use the zmachine that wrote it, or a newer one"));
    }
    serde_json::from_value(value).map_err(|error| {
        Failure::from_error(Class::Failed, &error).context(format!("{} cannot be understood", path.display()))
    })
}

fn read(folder: &Path, volume: &str, tag: &str) -> Result<VolumeSnapshot, Failure> {
    let snapshot = describe(folder).map_err(|f| f.context(format!("the snapshot {volume}@{tag} cannot be read")))?;
    Ok(VolumeSnapshot {
        volume: volume.to_owned(),
        tag: tag.to_owned(),
        ..snapshot
    })
}

fn require_length(data: &Path, snapshot: &VolumeSnapshot) -> Result<(), Failure> {
    let found = fs::metadata(data).map_err(|e| FileError::io("read", data, e))?.len();
    if found == snapshot.size_bytes {
        return Ok(());
    }
    let message = format!(
        "{} has {found} bytes, and had {} when the snapshot was made",
        data.display(),
        snapshot.size_bytes
    );
    Err(Failure::new(Class::Failed, message).hint("it is damaged: use another snapshot, or a backup"))
}

fn tags(folder: &Path) -> Result<BTreeSet<String>, Failure> {
    let names = match file::names_in(folder) {
        Ok(names) => names,
        Err(e) if e.is_not_found() => return Ok(BTreeSet::new()),
        Err(e) => return Err(e.into()),
    };
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

fn free_tag(folder: &Path) -> Result<String, Failure> {
    Ok(next_tag(tags(folder)?.iter().map(String::as_str)))
}

/// Takes the lock of a volume's snapshots, and removes what is half-made or half-removed.
fn swept(folder: &Path) -> Result<FileLock, Failure> {
    if !file::is_there(folder)? {
        make_private(folder)?;
    }
    let lock = FileLock::exclusive(&folder.join(".lock"))?;
    for name in file::names_in(folder)? {
        let text = name.to_string_lossy();
        if text.starts_with(".new-") || text.starts_with(".gone-") {
            file::remove_dir_all(&folder.join(&name))?;
        }
    }
    Ok(lock)
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let target = options.read(true).write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(|e| FileError::io("make", to, e))?;
    let source = File::open(from).map_err(|e| FileError::io("open", from, e))?;
    let copied = sparse::copy(&source, &target).and_then(|()| target.sync_all());
    Ok(copied.map_err(|e| FileError::io("copy", from, e))?)
}

#[cfg(test)]
mod tests;
