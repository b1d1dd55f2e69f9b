//! The volumes of a home: made, found, grown, removed, locked.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FallocateFlags;
use zmachine_spec::volume::{Content, Fs, NewVolume, check_name};
use zmachine_spec::{Class, Failure, Home};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::format;
use super::record::{RECORD_VERSION, Record};
use super::replacing;
use super::snapshots::{ARRIVING, ARRIVING_LOCK};
use crate::catalog;
use crate::catalog::{Machine, VolumeUse};
use crate::events::{self, Event, Object};

/// Sectors of 512 bytes and pages of 4 KiB both divide it, and so does what partition tools align to.
const GRAIN: u64 = 1 << 20;

/// The disk of a volume, or of a snapshot of one.
pub(super) const DATA: &str = "data.img";

/// The volumes of a home.
#[derive(Debug, Clone)]
pub struct Volumes {
    pub(super) home: Home,
}

/// Everything about the request that can be refused without trying.
///
/// # Errors
/// [`Class::Usage`] for name and size, [`Class::Unsupported`] when its file system cannot be made here.
pub fn check_new(new: &NewVolume) -> Result<(), Failure> {
    check_name(&new.name)?;
    let least = new.fs.least_bytes();
    if new.size_bytes < least {
        let (size, least) = (
            zmachine_spec::bytes::Human(new.size_bytes),
            zmachine_spec::bytes::Human(least),
        );
        let what = match new.fs {
            Fs::None => "is below the".to_owned(),
            fs => format!("is too small for {fs}, which needs"),
        };
        let message = format!("{size} for the volume '{}' {what} {least}", new.name);
        return Err(Failure::new(Class::Usage, message).hint("sizes without a unit are bytes; for example size=10G"));
    }
    format::check(new.fs)
}

/// A volume that is there.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its description.
    pub record: Record,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it takes of the host's disk in bytes.
    pub used_bytes: u64,
    dir: PathBuf,
}

/// A volume that this process may use; nobody else may write to it until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// The volume, as it was when it was locked or last recorded.
    pub volume: Volume,
    lock: FileLock,
}

impl Volumes {
    /// The volumes below `home`.
    pub fn new(home: &Home) -> Volumes {
        Volumes { home: home.clone() }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.home.data().join("volumes")
    }

    /// The disk image of the volume `name`, whether it is there or not.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root().join(name).join(DATA)
    }

    /// Makes a volume that is all zeros.
    ///
    /// # Errors
    /// As `NewVolume::check`; [`Class::Conflict`] when the name is taken. Nothing is left then.
    pub fn create(&self, new: &NewVolume) -> Result<Volume, Failure> {
        check_new(new)?;
        let record = Record {
            version: RECORD_VERSION,
            fs: new.fs,
            anonymous_of: new.anonymous_of.clone(),
            labels: new.labels.clone(),
            created_at: Timestamp::now(),
            content: Content::Empty,
        };
        self.create_with(&new.name, record, |path| {
            let mut options = OpenOptions::new();
            let data = options.write(true).create_new(true).mode(0o600).open(path)?;
            data.set_len(new.size_bytes.next_multiple_of(GRAIN))?;
            Ok(data.sync_all()?)
        })
    }

    /// Makes a volume whose disk is the file that `fill` makes.
    pub(super) fn create_with(
        &self,
        name: &str,
        record: Record,
        fill: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<Volume, Failure> {
        check_name(name)?;
        let _catalog = self.lock()?;
        let dir = self.root().join(name);
        if file::is_there(&dir)? {
            let message = format!("there is a volume '{name}' already");
            return Err(Failure::new(Class::Conflict, message).hint("'zmachine volume ls' lists them"));
        }
        let staging = self.root().join(format!(".new-{name}"));
        file::remove_dir_all(&staging)?;
        let made = fill_staging(&staging, &record, fill).and_then(|()| {
            fs::rename(&staging, &dir)
                .and_then(|()| file::sync_dir(&self.root()).map_err(io::Error::other))
                .map_err(Failure::from)
        });
        if let Err(failure) = made {
            let _ = file::remove_dir_all(&staging);
            return Err(failure.context(format!("the volume '{name}' cannot be made")));
        }
        events::record(&self.home, &Event::of(Object::Volume, name, name, "created"));
        self.get(name)
    }

    /// The volume `name`.
    ///
    /// # Errors
    /// [`Class::NotFound`]; a description that cannot be read is reported, never replaced.
    pub fn get(&self, name: &str) -> Result<Volume, Failure> {
        self.find(name)?.ok_or_else(|| {
            let message = format!("there is no volume '{name}'");
            Failure::new(Class::NotFound, message).hint("'zmachine volume ls' lists them")
        })
    }

    /// The volume `name` if there is one.
    ///
    /// # Errors
    /// As [`Volumes::get`], less that it is not there.
    pub fn find(&self, name: &str) -> Result<Option<Volume>, Failure> {
        check_name(name)?;
        let dir = self.root().join(name);
        let damaged = |failure: Failure| failure.context(format!("the volume '{name}' cannot be read"));
        let record = match file::read_json::<Record>(&dir.join("volume.json")) {
            Ok(record) => record,
            Err(e) if e.is_not_found() && !file::is_there(&dir)? => return Ok(None),
            Err(e) => return Err(damaged(e.into())),
        };
        if record.version != RECORD_VERSION {
            let message = format!("the volume '{name}' has format version {}", record.version);
            return Err(
                Failure::new(Class::Unsupported, message).hint("use the zmachine that wrote it, or a newer one")
            );
        }
        let data = fs::metadata(dir.join(DATA)).map_err(|e| damaged(e.into()))?;
        Ok(Some(Volume {
            name: name.to_owned(),
            record,
            size_bytes: data.len(),
            used_bytes: data.blocks() * 512,
            dir,
        }))
    }

    /// All volumes by name; one that cannot be read is its failure.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Result<Volume, Failure>>, Failure> {
        let names = match file::names_in(&self.root()) {
            Ok(names) => names,
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        // A name that is not UTF-8 is none of ours.
        let mut names: Vec<String> = names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        Ok(names.iter().filter_map(|name| self.find(name).transpose()).collect())
    }

    /// Removes a volume with all its data.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] while a machine is made to use it. When a machine cannot be read, it might
    /// be its volume, and nothing is removed.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        // No machine that is being made may count on it.
        let _machines = catalog::lock(&self.home)?;
        self.remove_unclaimed(name)
    }

    /// [`Volumes::remove`] for a caller that holds the catalog's lock.
    pub(super) fn remove_unclaimed(&self, name: &str) -> Result<(), Failure> {
        let _catalog = self.lock()?;
        let volume = self.get(name)?;
        if let Some(user) = self.users(name)?.first() {
            let message = format!("the volume '{name}' belongs to the machine '{user}'");
            return Err(
                Failure::new(Class::Conflict, message).hint(format!("remove the machine first: zmachine rm {user}"))
            );
        }
        let _held = self.exclusive(&volume)?;
        file::remove_dir_all(&volume.dir)?;
        events::record(&self.home, &Event::of(Object::Volume, name, name, "removed"));
        Ok(())
    }

    /// Removes the volumes without a name of the user's that were made for the machine `id`, which is gone or about to go. One
    /// that another machine uses, by the name it got, stays.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_anonymous(&self, id: &str) -> Result<(), Failure> {
        let _catalog = self.lock()?;
        for volume in self.list()?.into_iter().flatten() {
            if volume.record.anonymous_of.as_deref() == Some(id) && !self.has_other_users(&volume.name, id) {
                file::remove_dir_all(&volume.dir)?;
                events::record(
                    &self.home,
                    &Event::of(Object::Volume, &volume.name, &volume.name, "removed"),
                );
            }
        }
        Ok(())
    }

    /// Makes the volume `name`, which the user gave no name, one of the machine `id` that uses it now: it goes with that from then on.
    ///
    /// # Errors
    /// When it is not there, or its record cannot be written.
    pub fn adopt(&self, name: &str, id: &str) -> Result<(), Failure> {
        let _catalog = self.lock()?;
        let volume = self.get(name)?;
        let record = Record {
            anonymous_of: Some(id.to_owned()),
            ..volume.record
        };
        Ok(file::replace_json(&volume.dir.join("volume.json"), &record)?)
    }

    /// Makes the disk larger; what is on it grows at the next start, or at once when its guest is told.
    ///
    /// # Errors
    /// [`Class::Usage`] for a size that is not larger: a volume never shrinks, as that destroys data.
    pub fn grow(&self, name: &str, size_bytes: u64) -> Result<Volume, Failure> {
        let _catalog = self.lock()?;
        let volume = self.get(name)?;
        let size_bytes = size_bytes.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX);
        if size_bytes <= volume.size_bytes {
            let (has, wanted) = (
                zmachine_spec::bytes::Human(volume.size_bytes),
                zmachine_spec::bytes::Human(size_bytes),
            );
            let message = format!("the volume '{name}' has {has} already; it cannot become {wanted}");
            return Err(Failure::new(Class::Usage, message).hint("volumes only grow; give a larger size"));
        }
        let fs = volume.record.fs;
        if size_bytes < fs.least_bytes() {
            let (wanted, least) = (
                zmachine_spec::bytes::Human(size_bytes),
                zmachine_spec::bytes::Human(fs.least_bytes()),
            );
            let message = format!("the volume '{name}' cannot become {wanted}: {fs} grows to {least} or more");
            return Err(Failure::new(Class::Usage, message).hint(format!(
                "for example: zmachine volume grow {name} {}M",
                fs.least_bytes() >> 20
            )));
        }
        let data = OpenOptions::new().write(true).open(volume.data())?;
        data.set_len(size_bytes)
            .and_then(|()| data.sync_all())
            .map_err(|e| Failure::from(e).context(format!("the volume '{name}' cannot grow")))?;
        self.get(name)
    }

    /// Takes the volume for the machine `id`, alone unless `read_only`.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] that names the machine which has it.
    pub fn hold(&self, name: &str, read_only: bool, id: &str) -> Result<Held, Failure> {
        let volume = self.get(name)?;
        let path = volume.lock_path();
        loop {
            let lock = match read_only {
                true => FileLock::try_shared(&path)?,
                false => FileLock::try_exclusive(&path)?,
            };
            let Some(lock) = lock else {
                return Err(self.in_use(name, id)?);
            };
            if !read_only {
                return self.taken(name, lock);
            }
            if !replacing::is_pending(&volume.dir)? {
                return Ok(Held::with(self.get(name)?, lock));
            }
            drop(lock);
            // Who reads it with others cannot put it right.
            match FileLock::try_exclusive(&path)? {
                Some(lock) => drop(self.taken(name, lock)?),
                None => return Err(self.in_use(name, id)?),
            }
        }
    }

    /// The volume whose `lock` was taken for this process by the one that started it.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the lock is that of another one by now.
    pub fn hold_handed(&self, name: &str, lock: FileLock) -> Result<Held, Failure> {
        match lock.is_at(&self.get(name)?.lock_path()) {
            true => self.taken(name, lock),
            false => Err(Failure::new(
                Class::Conflict,
                format!("the volume '{name}' is not the one that was restored"),
            )),
        }
    }

    /// The volume as whoever had it until now has left it.
    fn taken(&self, name: &str, lock: FileLock) -> Result<Held, Failure> {
        let mut held = Held::with(self.get(name)?, lock);
        self.settle(&mut held)?;
        held.volume = self.get(name)?;
        Ok(held)
    }

    fn exclusive(&self, volume: &Volume) -> Result<FileLock, Failure> {
        match FileLock::try_exclusive(&volume.lock_path())? {
            Some(lock) => Ok(lock),
            None => Err(self.in_use(&volume.name, "")?),
        }
    }

    fn in_use(&self, name: &str, asker: &str) -> Result<Failure, Failure> {
        let mut holder = None;
        for (machine, _) in self.machines_of(name)? {
            if machine.id != asker && FileLock::is_held(&machine.lock_path())? {
                holder = Some(machine);
                break;
            }
        }
        let failure = match holder {
            Some(machine) => {
                let holder = machine.spec.name;
                let message = format!("the volume '{name}' is in use by the machine '{holder}'");
                Failure::new(Class::Conflict, message).hint(format!("stop it first: zmachine stop {holder}"))
            }
            None => Failure::new(Class::Conflict, format!("the volume '{name}' is in use"))
                .hint("'zmachine ps' shows which machines run"),
        };
        Ok(failure)
    }

    /// Names of the machines that are made to use the volume `name`, running or not.
    ///
    /// # Errors
    /// When a machine cannot be read: it might be one of them.
    pub fn users(&self, name: &str) -> Result<Vec<String>, Failure> {
        Ok(self
            .machines_of(name)?
            .into_iter()
            .map(|(machine, _)| machine.spec.name)
            .collect())
    }

    /// Whether a machine other than `id` is made to use the volume `name`, or might be.
    fn has_other_users(&self, name: &str, id: &str) -> bool {
        let others = |users: Vec<(Machine, VolumeUse)>| users.iter().any(|(machine, _)| machine.id != id);
        self.machines_of(name).map_or(true, others)
    }

    /// The running machine that may write to the volume `name`.
    ///
    /// # Errors
    /// When a machine cannot be read: it might be the one.
    pub fn writer(&self, name: &str) -> Result<Option<Machine>, Failure> {
        for (machine, how) in self.machines_of(name)? {
            if how == VolumeUse::Writes && FileLock::is_held(&machine.lock_path())? {
                return Ok(Some(machine));
            }
        }
        Ok(None)
    }

    /// The machines that are made to use the volume `name`, and how.
    fn machines_of(&self, name: &str) -> Result<Vec<(Machine, VolumeUse)>, Failure> {
        let unknown = |id: &str, failure: Failure| {
            let hint = failure.hint.clone().unwrap_or_default();
            failure
                .context(format!(
                    "it cannot be told whether machine {id} uses the volume '{name}'"
                ))
                .hint(hint)
        };
        let mut found = Vec::new();
        for id in catalog::ids(&self.home)? {
            let machine = match Machine::load(&self.home, &id) {
                Ok(machine) => machine,
                // Removed since the listing.
                Err(failure) if failure.class == Class::NotFound => continue,
                Err(failure) => return Err(unknown(&id, failure)),
            };
            if let Some(how) = machine.volume_use(name) {
                found.push((machine, how));
            }
        }
        Ok(found)
    }

    /// Removes what an interrupted making or removal left. Nothing happens while another command makes or removes one.
    ///
    /// # Errors
    /// When it cannot be listed or removed.
    pub fn sweep(&self) -> Result<(), Failure> {
        let names = match file::names_in(&self.root()) {
            Ok(names) => names,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let marked = |name: &OsString| {
            let text = name.to_string_lossy();
            let is_arriving = || FileLock::is_held(&self.root().join(name).join(ARRIVING_LOCK)).unwrap_or(true);
            text.starts_with(".new-") || text.starts_with(".gone-") || text.starts_with(ARRIVING) && !is_arriving()
        };
        if !names.iter().any(marked) {
            return Ok(());
        }
        let Some(_catalog) = FileLock::try_exclusive(&self.root().join(".lock"))? else {
            return Ok(());
        };
        for name in names.iter().filter(|name| marked(name)) {
            let path = self.root().join(name);
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(file::FileError::io("remove", &path, e).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<FileLock, Failure> {
        file::make_dirs(&self.root())?;
        Ok(FileLock::exclusive(&self.root().join(".lock"))?)
    }
}

fn fill_staging(dir: &Path, record: &Record, fill: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    file::make_dirs(dir)?;
    fill(&dir.join(DATA))?;
    Ok(file::replace_json(&dir.join("volume.json"), record)?)
}

impl Volume {
    /// The disk image.
    pub fn data(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }
}

impl Held {
    pub(super) fn with(volume: Volume, lock: FileLock) -> Held {
        Held { volume, lock }
    }

    /// Name of the volume, and the lock, for a process that is to have it next.
    pub fn into_lock(self) -> (String, FileLock) {
        (self.volume.name, self.lock)
    }

    /// Writes down what the volume holds, before it does.
    ///
    /// # Errors
    /// When it cannot be written; the volume is to be left as it is then.
    pub fn set_content(&mut self, content: Content) -> Result<(), Failure> {
        let record = Record {
            content,
            ..self.volume.record.clone()
        };
        file::replace_json(&self.volume.dir.join("volume.json"), &record)?;
        self.volume.record = record;
        Ok(())
    }

    /// Makes this volume, which holds nothing yet, a copy of the disk `source`, which holds `content`.
    ///
    /// # Errors
    /// When it cannot be read or written; it holds nothing by its record then.
    pub fn fill(&mut self, source: &Path, content: Content) -> Result<(), Failure> {
        let target = self.volume.data();
        let open = |path: &Path, options: &mut OpenOptions| {
            options.open(path).map_err(|e| file::FileError::io("open", path, e))
        };
        let source_file = open(source, OpenOptions::new().read(true))?;
        let target_file = open(&target, OpenOptions::new().write(true).truncate(true))?;
        zmachine_sys::sparse::copy(&source_file, &target_file)
            .and_then(|()| target_file.sync_all())
            .map_err(|e| file::FileError::io("copy a volume to", &target, e))?;
        self.set_content(content)
    }

    /// Makes the whole disk zeros again, which gives its space back. Everything on it is lost.
    ///
    /// # Errors
    /// When the host's file system cannot do it.
    pub fn clear(&self) -> Result<(), Failure> {
        let data = OpenOptions::new().write(true).open(self.volume.data())?;
        punch(&data, self.volume.size_bytes)
            .and_then(|()| data.sync_all())
            .map_err(|e| Failure::from(e).context(format!("the volume '{}' cannot be cleared", self.volume.name)))
    }

    /// That a container finds a file system, which it may only read.
    ///
    /// # Errors
    /// [`Class::Conflict`] when there is none, or another machine's disk.
    pub fn require_formatted(&self) -> Result<(), Failure> {
        match &self.volume.record.content {
            Content::Formatted => Ok(()),
            other => {
                let message = format!(
                    "the volume '{}' is {other}: there is nothing to read on it",
                    self.volume.name
                );
                Err(Failure::new(Class::Conflict, message).hint("use it without ':ro' first"))
            }
        }
    }

    /// A file system for a container: made now when the volume is fresh, or when making it was interrupted.
    ///
    /// # Errors
    /// [`Class::Conflict`] when the volume holds something else, [`Class::Usage`] when it is to have no file system.
    pub fn ensure_formatted(&mut self) -> Result<(), Failure> {
        let name = self.volume.name.clone();
        match &self.volume.record.content {
            Content::Formatted => return Ok(()),
            Content::Empty | Content::Formatting => {}
            Content::Installing { .. } | Content::Installed { .. } => {
                let message =
                    format!("the volume '{name}' is the boot disk of a VM and cannot be mounted in a container");
                return Err(Failure::new(Class::Conflict, message).hint("use another volume"));
            }
            Content::Raw => {
                let message = format!("the volume '{name}' is a bare disk that a VM has used");
                return Err(Failure::new(Class::Conflict, message).hint("use another volume"));
            }
        }
        let fs = self.volume.record.fs;
        if fs == Fs::None {
            let message = format!("the volume '{name}' has no file system and cannot be mounted in a container");
            return Err(Failure::new(Class::Usage, message).hint("make one for ext4, btrfs or xfs"));
        }
        self.set_content(Content::Formatting)?;
        self.clear()?;
        format::make(fs, &self.volume.data(), &name)?;
        self.set_content(Content::Formatted)
    }
}

/// Turns `bytes` of a file into a hole; where the file system has none, into written zeros.
fn punch(file: &File, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, 0, bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < bytes {
                let n = (bytes - at).min(zeros.len() as u64);
                file.write_all_at(&zeros[..n as usize], at)?;
                at += n;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        (dir, Volumes::new(&home))
    }

    fn new(name: &str, size_bytes: u64, fs: Fs) -> NewVolume {
        NewVolume {
            name: name.into(),
            size_bytes,
            fs,
            anonymous_of: None,
            labels: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_volume_is_made_sparse_found_grown_and_removed() {
        let (_dir, volumes) = volumes();
        let made = volumes.create(&new("data", (64 << 20) + 1, Fs::Ext4)).unwrap();
        assert_eq!(made.size_bytes, 65 << 20);
        assert!(made.used_bytes < 1 << 20);
        assert_eq!(
            volumes.create(&new("data", 64 << 20, Fs::Ext4)).unwrap_err().class,
            Class::Conflict
        );
        assert_eq!(volumes.grow("data", 128 << 20).unwrap().size_bytes, 128 << 20);
        assert_eq!(volumes.grow("data", 64 << 20).unwrap_err().class, Class::Usage);
        assert_eq!(volumes.list().unwrap().len(), 1);
        volumes.remove("data").unwrap();
        assert_eq!(volumes.get("data").unwrap_err().class, Class::NotFound);
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_dir, volumes) = volumes();
        volumes.create(&new("data", 64 << 20, Fs::Ext4)).unwrap();
        let writer = volumes.hold("data", false, "0123456789ab").unwrap();
        for read_only in [false, true] {
            assert_eq!(
                volumes.hold("data", read_only, "0123456789ab").unwrap_err().class,
                Class::Conflict
            );
        }
        assert_eq!(volumes.remove("data").unwrap_err().class, Class::Conflict);
        drop(writer);
        // A child that another test is starting has a copy of the lock until it is another program.
        let read = || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            volumes.hold("data", true, "0123456789ab").ok()
        };
        let _one = (0..200).find_map(|_| read()).unwrap();
        let _two = volumes.hold("data", true, "0123456789ab").unwrap();
        assert_eq!(
            volumes.hold("data", false, "0123456789ab").unwrap_err().class,
            Class::Conflict
        );
    }

    #[test]
    fn an_interrupted_format_is_done_again_and_a_finished_one_never() {
        let (_dir, volumes) = volumes();
        volumes.create(&new("data", 64 << 20, Fs::Ext4)).unwrap();
        let mut held = volumes.hold("data", false, "0123456789ab").unwrap();
        held.set_content(Content::Formatting).unwrap();
        let data = OpenOptions::new().write(true).open(held.volume.data()).unwrap();
        data.write_all_at(b"half a file system", 4096).unwrap();
        held.ensure_formatted().unwrap();
        assert_eq!(volumes.get("data").unwrap().record.content, Content::Formatted);
        let magic = |held: &Held| {
            let mut magic = [0; 2];
            File::open(held.volume.data())
                .unwrap()
                .read_exact_at(&mut magic, 1080)
                .unwrap();
            magic
        };
        assert_eq!(magic(&held), [0x53, 0xef]);
        data.write_all_at(b"user data", 40 << 20).unwrap();
        held.ensure_formatted().unwrap();
        let mut kept = [0; 9];
        File::open(held.volume.data())
            .unwrap()
            .read_exact_at(&mut kept, 40 << 20)
            .unwrap();
        assert_eq!(&kept, b"user data");
    }

    #[test]
    fn a_btrfs_of_before_the_least_size_is_not_grown_to_where_the_kernel_does_not_grow_it() {
        let (_dir, volumes) = volumes();
        volumes.create(&new("small", 256 << 20, Fs::Btrfs)).unwrap();
        let data = OpenOptions::new().write(true).open(volumes.data("small")).unwrap();
        data.set_len(128 << 20).unwrap();
        let refused = volumes.grow("small", 200 << 20).unwrap_err();
        assert_eq!(refused.class, Class::Usage);
        assert!(refused.hint.unwrap().ends_with("grow small 256M"));
        volumes.grow("small", 256 << 20).unwrap();
    }

    #[test]
    fn a_boot_disk_and_a_bare_disk_are_not_mounted() {
        let (_dir, volumes) = volumes();
        volumes.create(&new("boot", 64 << 20, Fs::Ext4)).unwrap();
        let mut held = volumes.hold("boot", false, "0123456789ab").unwrap();
        held.set_content(Content::Installed { digest: "ab".into() }).unwrap();
        assert_eq!(held.ensure_formatted().unwrap_err().class, Class::Conflict);
        drop(held);
        volumes.create(&new("bare", 64 << 20, Fs::None)).unwrap();
        let mut held = volumes.hold("bare", false, "0123456789ab").unwrap();
        assert_eq!(held.ensure_formatted().unwrap_err().class, Class::Usage);
    }

    #[test]
    fn sizes_below_what_a_file_system_needs_are_refused_and_nothing_is_left() {
        let (_dir, volumes) = volumes();
        for (fs, size) in [
            (Fs::Ext4, 1 << 20),
            (Fs::Btrfs, 255 << 20),
            (Fs::Xfs, 64 << 20),
            (Fs::None, 1),
        ] {
            assert_eq!(volumes.create(&new("v", size, fs)).unwrap_err().class, Class::Usage);
        }
        assert!(volumes.list().unwrap().is_empty());
    }
}
