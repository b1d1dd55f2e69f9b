//! Disks of a machine that take the place of others all at once, whatever ends the process that puts them there.
//!
//! ```text
//! machines/<id>/restoring.json            begun: which disks; then decided: from here on they are the machine's
//! machines/<id>/root.img.new-restored     copies of the machine's own disks
//! volumes/<name>/…                        copies of its volumes: see [`crate::volume::replacing`]
//! ```
//! # Invariants
//! The file is written before the first copy is begun, and once more when all are whole: that is the instant at which the machine has the
//! other disks. Whoever has the lock of the machine, or of one of its volumes, next, finishes what was decided and removes what was not,
//! before anything is done with a disk. The file goes when nothing is left to do.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_spec::volume::Content;
use zmachine_spec::{Class, Failure, Home};
use zmachine_sys::file::{self, FileError};

use crate::catalog::Machine;
use crate::killpoint::Killpoints;
use crate::volume::replacing::Replacing;
use crate::volume::snapshots::copy;
use crate::volume::{Held, Replacement, Volumes};

const FILE: &str = "restoring.json";
const VERSION: u32 = 1;

/// `restoring.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    version: u32,
    /// Tells it from other restores of the machine.
    token: String,
    /// All copies are whole: they are the machine's disks.
    is_decided: bool,
    /// Files of the machine's folder.
    own: Vec<OwnDisk>,
    /// Names of its volumes.
    volumes: Vec<String>,
}

/// A file of a machine's folder that is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OwnDisk {
    file: String,
    /// There was none then: the machine's goes.
    is_absent: bool,
}

impl Intent {
    fn read(machine: &Path) -> Result<Option<Intent>, Failure> {
        let path = machine.join(FILE);
        let intent: Intent = match file::read_json(&path) {
            Ok(intent) => intent,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if intent.version == VERSION {
            return Ok(Some(intent));
        }
        let message = format!("{} has format version {}", path.display(), intent.version);
        Err(Failure::new(Class::Unsupported, message).hint("use the zmachine that wrote it, or a newer one"))
    }

    /// Puts the machine's own disks there, or removes the copies; whatever of it is done already stays so.
    fn settle_own(&self, machine: &Path) -> Result<(), Failure> {
        for own in &self.own {
            let target = machine.join(&own.file);
            let new = new_file(&target);
            match (self.is_decided, own.is_absent) {
                (false, _) => file::remove_if_there(&new)?,
                (true, true) => file::remove_if_there(&target)?,
                (true, false) => match std::fs::rename(&new, &target) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    renamed => renamed.map_err(|e| FileError::io("replace", &target, e))?,
                },
            }
        }
        Ok(file::sync_dir(machine)?)
    }
}

fn new_file(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".new-restored");
    target.with_file_name(name)
}

/// Whether the restore `token` of a machine has been decided. That of a machine which is gone has not.
pub(crate) fn is_decided(home: &Home, machine: &str, token: &str) -> Result<bool, Failure> {
    let intent = Intent::read(&home.machine(machine))?;
    Ok(intent.is_some_and(|intent| intent.is_decided && intent.token == token))
}

/// Whether a restore of the machine in this folder was cut off, or is under way.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_pending(machine: &Path) -> Result<bool, FileError> {
    file::is_there(&machine.join(FILE))
}

/// What became of a restore that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The machine has the disks of the snapshot.
    Finished,
    /// It has those that it had.
    Undone,
}

/// Finishes or undoes a restore of the machine `id`, whose lock the caller has, that was cut off. `None` when there was none.
///
/// # Errors
/// When something cannot be read or written; it can be tried again.
pub fn settle(home: &Home, id: &str) -> Result<Option<Settled>, Failure> {
    let folder = home.machine(id);
    let Some(intent) = Intent::read(&folder)? else {
        return Ok(None);
    };
    let volumes = Volumes::new(home);
    for name in &intent.volumes {
        volumes.settle_part(name, &intent.token)?;
    }
    intent.settle_own(&folder)?;
    file::remove_if_there(&folder.join(FILE))?;
    file::sync_dir(&folder)?;
    Ok(Some(match intent.is_decided {
        true => Settled::Finished,
        false => Settled::Undone,
    }))
}

/// A restore under way. What is not decided when this is dropped is undone.
#[derive(Debug)]
pub struct Restoring {
    home: Home,
    id: String,
    intent: Intent,
    volumes: Vec<Replacement>,
}

impl Restoring {
    /// Begins one of a machine whose lock the caller has: its `own` files and the `volumes` of these names are to be replaced.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn begin(home: &Home, machine: &Machine, own: &[&str], volumes: Vec<String>) -> Result<Restoring, Failure> {
        settle(home, &machine.id)?;
        let own = own.iter().map(|file| OwnDisk {
            file: (*file).to_owned(),
            is_absent: true,
        });
        let intent = Intent {
            version: VERSION,
            token: format!("{:016x}", file::random_u64()),
            is_decided: false,
            own: own.collect(),
            volumes,
        };
        let restoring = Restoring {
            home: home.clone(),
            id: machine.id.clone(),
            intent,
            volumes: Vec::new(),
        };
        restoring.write()?;
        Ok(restoring)
    }

    fn folder(&self) -> PathBuf {
        self.home.machine(&self.id)
    }

    fn write(&self) -> Result<(), FileError> {
        file::replace_json(&self.folder().join(FILE), &self.intent)
    }

    /// Copies the disk `from`, which holds `content`, for the volume `name`; nobody else uses that from now on.
    ///
    /// # Errors
    /// As [`Volumes::replacement`].
    pub fn volume(&mut self, name: &str, from: &Path, content: &Content) -> Result<(), Failure> {
        let replacement = Volumes::new(&self.home).replacement(name, from, content, &self.id)?;
        self.volumes.push(replacement);
        Ok(())
    }

    /// Copies the machine's own disks from `folder`; one that is not there is to be gone.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn own(&mut self, folder: &Path) -> Result<(), Failure> {
        let machine = self.folder();
        for own in &mut self.intent.own {
            let from = folder.join(&own.file);
            own.is_absent = !file::is_there(&from)?;
            if !own.is_absent {
                copy(&from, &new_file(&machine.join(&own.file)))?;
            }
        }
        Ok(())
    }

    /// Puts all there. The volumes stay this process's alone.
    ///
    /// # Errors
    /// When something cannot be written. What was decided by then is finished by the next command.
    pub fn put(mut self, kill: &Killpoints) -> Result<Vec<Held>, Failure> {
        let (machine, token) = (&self.id, &self.intent.token);
        for volume in &mut self.volumes {
            volume.announce(|content| Replacing {
                machine: machine.clone(),
                token: token.clone(),
                content,
            })?;
        }
        kill.pass("restore: disks copied");
        self.intent.is_decided = true;
        // What is there after a failure may be either, so nothing is undone here.
        self.write()?;
        kill.pass("restore: decided");
        let mut held = Vec::new();
        for volume in std::mem::take(&mut self.volumes) {
            held.push(volume.put_in_place()?);
            kill.pass("restore: a volume replaced");
        }
        self.intent.settle_own(&self.folder())?;
        kill.pass("restore: own disks replaced");
        file::remove_if_there(&self.folder().join(FILE))?;
        file::sync_dir(&self.folder())?;
        kill.pass("restore: disks replaced");
        Ok(held)
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if self.intent.is_decided {
            return;
        }
        for volume in std::mem::take(&mut self.volumes) {
            volume.discard();
        }
        // What cannot be removed now, the next command removes.
        let _ = settle(&self.home, &self.id);
    }
}

#[cfg(test)]
mod tests;
