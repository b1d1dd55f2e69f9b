//! A disk that takes the place of a volume's together with other disks of its machine, or not at all.
//!
//! ```text
//! volumes/<name>/data.img.new-restored    the disk that is to be there
//! volumes/<name>/replacing.json           whose restore it belongs to, and what it holds; written when that disk is whole
//! ```
//! # Invariants
//! Both are there only while a restore has the volume's lock, or after one that was cut off. Whoever gets the lock then looks whether that
//! restore had been decided ([`crate::restoring`]), puts the disk there or removes it, and only then uses the volume.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zmachine_spec::volume::Content;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use super::store::{Held, Volumes};
use crate::restoring;

const FILE: &str = "replacing.json";

/// How long whoever has the volume may take to put its disk right.
const PATIENCE: Duration = Duration::from_secs(30);

/// `replacing.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replacing {
    /// The machine that is being restored.
    pub(crate) machine: String,
    /// Which restore of it.
    pub(crate) token: String,
    /// What the disk holds.
    pub(crate) content: Content,
}

/// Where the disk lies until it is the volume's.
pub(super) fn new_disk(data: &Path) -> PathBuf {
    data.with_extension("img.new-restored")
}

impl Replacing {
    fn read(folder: &Path) -> Result<Option<Replacing>, Failure> {
        match file::read_json(&folder.join(FILE)) {
            Ok(read) => Ok(Some(read)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(Failure::from(e)),
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), FileError> {
        file::replace_json(&folder.join(FILE), self)
    }
}

/// Whether whoever gets the volume's lock has something to put right.
pub(super) fn is_pending(folder: &Path) -> Result<bool, FileError> {
    file::is_there(&folder.join(FILE))
}

/// Puts the disk of a decided restore in the place of the volume's.
///
/// # Errors
/// When that cannot be written; it can be tried again.
pub(super) fn put(held: &mut Held, content: &Content) -> Result<(), Failure> {
    let target = held.volume.data();
    let new = new_disk(&target);
    let folder = target.parent().unwrap_or(&target);
    // An interruption must never leave data that the record takes for an empty disk.
    let is_first = *content != Content::Empty;
    if is_first {
        held.set_content(content.clone())?;
    }
    match std::fs::rename(&new, &target) {
        // It was put there before the interruption.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(|e| FileError::io("replace", &target, e))?,
    }
    file::sync_dir(folder)?;
    if !is_first {
        held.set_content(content.clone())?;
    }
    forget(folder)
}

/// Removes what says that a disk is to be replaced.
pub(super) fn forget(folder: &Path) -> Result<(), Failure> {
    file::remove_if_there(&folder.join(FILE))?;
    Ok(file::sync_dir(folder)?)
}

impl Volumes {
    /// Finishes or undoes what an interrupted restore was to make of a volume that this process has alone.
    pub(super) fn settle(&self, held: &mut Held) -> Result<(), Failure> {
        let data = held.volume.data();
        let folder = data.parent().unwrap_or(&data);
        match Replacing::read(folder)? {
            Some(is) if restoring::is_decided(&self.home, &is.machine, &is.token)? => put(held, &is.content),
            Some(_) => {
                file::remove_if_there(&new_disk(&data))?;
                forget(folder)
            }
            None => Ok(file::remove_if_there(&new_disk(&data))?),
        }
    }

    /// [`Volumes::settle`] of a volume that was part of the restore `token`, by whoever cleans up after it. One that was removed since, or that
    /// somebody else has put right, is left alone.
    pub(crate) fn settle_part(&self, name: &str, token: &str) -> Result<(), Failure> {
        let Some(volume) = self.find(name)? else {
            return Ok(());
        };
        let data = volume.data();
        let folder = data.parent().unwrap_or(&data);
        let is_part = || Ok::<_, Failure>(Replacing::read(folder)?.is_some_and(|is| is.token == token));
        let patience = if is_part()? { PATIENCE } else { Duration::ZERO };
        match FileLock::exclusive_within(&volume.lock_path(), patience)? {
            Some(lock) => self.settle(&mut Held::with(self.get(name)?, lock)),
            // Who has it has put it right before it did anything else.
            None if !is_part()? => Ok(()),
            None => Err(
                Failure::new(Class::Conflict, format!("the volume '{name}' is still being restored"))
                    .hint("try again in a moment"),
            ),
        }
    }
}
