//! What a machine was saved to when nobody had to do with it, in `idle/` of its folder.
//!
//! ```text
//! machines/<id>/idle/{state, memory, snapshot.json}    as in a snapshot, without disks
//! machines/<id>/idle/disks.json                        what its disks were then; written last
//! machines/<id>/idle/tried                             somebody has tried to go on from there
//! ```
//! # Invariants
//! It is used once: before the guest's first instruction it is gone. Without `disks.json`, or with other disks, it is worth nothing.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_spec::{Class, Failure, Home};
use zmachine_sys::file::{self, FileError};

use crate::catalog::Machine;
use crate::snapshot::{DISK, MEMORY, Snapshot, memory};
use crate::volume::Volumes;

/// The name of the folder, and the tag of what is in it.
pub const TAG: &str = "idle";
const DESCRIPTION: &str = "snapshot.json";
const DISKS: &str = "disks.json";
const TRIED: &str = "tried";

/// A disk as it was when its machine fell asleep.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskMark {
    path: PathBuf,
    bytes: u64,
    written_at: (i64, i64),
}

impl DiskMark {
    fn of(path: PathBuf) -> Result<DiskMark, FileError> {
        let found = path.metadata().map_err(|e| FileError::io("read", &path, e))?;
        Ok(DiskMark {
            bytes: found.len(),
            written_at: (found.mtime(), found.mtime_nsec()),
            path,
        })
    }
}

/// What the disks of a machine are.
fn marks(home: &Home, machine: &Machine) -> Result<Vec<DiskMark>, Failure> {
    let plan = machine.plan()?;
    let own = machine.dir.join(DISK);
    let own = own.exists().then_some(own);
    let volumes = Volumes::new(home);
    let volumes = plan.volumes().iter().map(|volume| volumes.data(&volume.name));
    let marks = own.into_iter().chain(volumes).map(DiskMark::of);
    Ok(marks.collect::<Result<_, _>>()?)
}

/// What one machine was saved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleState {
    folder: PathBuf,
}

impl IdleState {
    /// That of the machine whose folder is `machine`, whether there is one or not.
    pub fn of(machine: &Path) -> IdleState {
        IdleState {
            folder: machine.join(TAG),
        }
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes its folder, empty.
    ///
    /// # Errors
    /// Of the file system.
    pub fn begin(&self) -> Result<(), FileError> {
        file::remove_dir_all(&self.folder)?;
        let made = DirBuilder::new().mode(0o700).create(&self.folder);
        made.map_err(|e| FileError::io("make", &self.folder, e))
    }

    /// Writes down what it is, once all of its files are on the disk.
    ///
    /// # Errors
    /// Of the file system.
    pub fn describe(&self, snapshot: &Snapshot) -> Result<(), FileError> {
        for name in snapshot.files() {
            let path = self.folder.join(name);
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(|e| FileError::io("write", &path, e))?;
        }
        file::replace_json(&self.folder.join(DESCRIPTION), snapshot)
    }

    /// Writes down what the machine's disks are, once nobody writes to them any more: from then on it counts.
    ///
    /// # Errors
    /// When they cannot be looked at, or it cannot be written.
    pub fn note_disks(&self, home: &Home, machine: &Machine) -> Result<(), Failure> {
        Ok(file::replace_json(&self.folder.join(DISKS), &marks(home, machine)?)?)
    }

    /// Whether it counts, if its disks are what they were.
    pub fn is_whole(&self) -> bool {
        self.folder.join(DISKS).exists()
    }

    /// That the machine's disks are what they were.
    ///
    /// # Errors
    /// [`Class::Conflict`] when one has been written to; when they cannot be looked at.
    pub fn require_same_disks(&self, home: &Home, machine: &Machine) -> Result<(), Failure> {
        let then: Vec<DiskMark> = file::read_json(&self.folder.join(DISKS))?;
        match marks(home, machine)? == then {
            true => Ok(()),
            false => Err(Failure::new(
                Class::Conflict,
                "one of its disks has been written to since",
            )),
        }
    }

    /// Its memory, held against what was saved.
    ///
    /// # Errors
    /// When it is not what was saved.
    pub fn memory(&self) -> Result<OwnedFd, Failure> {
        let snapshot: Snapshot = file::read_json(&self.folder.join(DESCRIPTION))?;
        let saved = snapshot.require_memory()?;
        let path = self.folder.join(MEMORY);
        let file = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
        Ok(memory::load(&file, &saved.memory, None).map_err(|e| FileError::io("read", &path, e))?)
    }

    /// Whether nobody has tried to go on from there; from now on somebody has.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn is_first_try(&self) -> Result<bool, FileError> {
        let mark = self.folder.join(TRIED);
        match File::create_new(&mark) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(FileError::io("make", &mark, e)),
        }
    }

    /// Removes it: the machine goes on, from there or from elsewhere. After a power cut it is not there either.
    ///
    /// # Errors
    /// Of the file system.
    pub fn forget(&self) -> Result<(), FileError> {
        file::remove_dir_all(&self.folder)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn it_is_tried_twice() {
        let dir = tempfile::tempdir().unwrap();
        let idle = IdleState::of(dir.path());
        idle.forget().unwrap();
        idle.begin().unwrap();
        assert!(!idle.is_whole());
        std::fs::write(idle.folder().join(DISKS), "[]").unwrap();
        assert!(idle.is_whole());
        assert!(idle.is_first_try().unwrap());
        assert!(!idle.is_first_try().unwrap());
        idle.forget().unwrap();
        assert!(!idle.folder().exists());
    }

    #[test]
    fn a_disk_that_was_written_to_is_not_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "a").unwrap();
        let mark = || DiskMark::of(path.clone()).unwrap();
        let then = mark();
        assert_eq!(mark(), then);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
        assert_ne!(mark(), then);
    }
}
