//! Volumes of machines that are saved as wholes: what is written down of one, and how it becomes again what it was.
//!
//! # Invariants
//! A disk takes the place of another one as a whole, and what the record says of it is never more than what it holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zmachine_spec::saved::SavedVolume;
use zmachine_spec::volume::Content;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::{self, FileError};

use super::replacing::{Replacing, forget, new_disk, put};
use super::snapshots::copy;
use super::store::{Held, Volume, Volumes};

impl Volume {
    /// What is written down of it in a snapshot of its machine.
    ///
    /// # Errors
    /// When its disk cannot be looked at.
    pub fn saved(&self, read_only: bool) -> Result<SavedVolume, Failure> {
        let (bytes, written_at) = looked_at(&self.data())?;
        Ok(SavedVolume {
            name: self.name.clone(),
            fs: self.record.fs,
            content: self.record.content.clone(),
            bytes,
            written_at: read_only.then_some(written_at),
        })
    }
}

/// Length in bytes, and nanoseconds since 1970 of the last change.
fn looked_at(disk: &Path) -> Result<(u64, u64), FileError> {
    let found = fs::metadata(disk).map_err(|e| FileError::io("read", disk, e))?;
    let (seconds, nanos) = (found.mtime().max(0) as u64, found.mtime_nsec().max(0) as u64);
    Ok((found.len(), seconds.saturating_mul(1_000_000_000).saturating_add(nanos)))
}

/// A disk that is ready to take the place of a volume's. What is not put there goes with it, unless others go with it there: see
/// [`super::replacing`].
#[derive(Debug)]
pub struct Replacement {
    held: Option<Held>,
    new: PathBuf,
    content: Content,
    is_announced: bool,
}

impl Drop for Replacement {
    /// A full disk is not to stay so. One that was put in its place has another name by now.
    fn drop(&mut self) {
        if !self.is_announced {
            let _ = file::remove_if_there(&self.new);
        }
    }
}

impl Volumes {
    /// Copies the disk `from`, which holds `content`, to be put in the place of that of the volume `name`. Nobody else uses the volume until
    /// then. `id` is the machine that it is for.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Conflict`] that names the machine which uses it; when it cannot be copied. Nothing is changed then.
    pub fn replacement(&self, name: &str, from: &Path, content: &Content, id: &str) -> Result<Replacement, Failure> {
        let held = self.hold(name, false, id)?;
        let new = new_disk(&held.volume.data());
        file::remove_if_there(&new)?;
        let ready = Replacement {
            held: Some(held),
            new,
            content: content.clone(),
            is_announced: false,
        };
        let copied = copy(from, &ready.new);
        copied.map_err(|failure| failure.context(format!("the volume '{name}' cannot be restored")))?;
        Ok(ready)
    }

    /// That a volume which a machine only read is what it was then: its guest has parts of it in its memory.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Conflict`] when it has been written to.
    pub fn require_unchanged(&self, saved: &SavedVolume) -> Result<(), Failure> {
        let (name, Some(written_at)) = (&saved.name, saved.written_at) else {
            return Ok(());
        };
        let found = looked_at(&self.get(name)?.data())?;
        if found == (saved.bytes, written_at) {
            return Ok(());
        }
        let message = format!("the volume '{name}' has been written to since the machine that reads it was saved");
        Err(Failure::new(Class::Conflict, message).hint("start the machine without the snapshot"))
    }
}

impl Replacement {
    /// Puts it there.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn put(self) -> Result<(), Failure> {
        self.put_in_place().map(drop)
    }

    /// The same; the volume stays this process's.
    pub(crate) fn put_in_place(mut self) -> Result<Held, Failure> {
        let gone = || Failure::new(Class::Failed, "the volume was let go");
        let mut held = self.held.take().ok_or_else(gone)?;
        put(&mut held, &self.content)?;
        Ok(held)
    }

    /// Writes down to which restore it belongs, which is about to be decided: from then on it is that which says what becomes of it.
    pub(crate) fn announce(&mut self, replacing: impl FnOnce(Content) -> Replacing) -> Result<(), Failure> {
        if let Some(held) = &self.held {
            self.is_announced = true;
            let data = held.volume.data();
            replacing(self.content.clone()).write(data.parent().unwrap_or(&data))?;
        }
        Ok(())
    }

    /// As when the process is killed: nothing is removed.
    #[cfg(test)]
    pub(crate) fn forget_as_killed(&mut self) {
        self.is_announced = true;
    }

    /// Takes that back.
    pub(crate) fn discard(mut self) {
        if let Some(held) = &self.held
            && std::mem::take(&mut self.is_announced)
        {
            let data = held.volume.data();
            // Without a decision it counts for nothing.
            let _ = forget(data.parent().unwrap_or(&data));
        }
    }
}

#[cfg(test)]
mod tests {
    use zmachine_spec::Home;
    use zmachine_spec::volume::{Fs, NewVolume};

    use super::*;

    fn volumes(dir: &tempfile::TempDir) -> Volumes {
        let volumes = Volumes::new(&Home::open(&dir.path().join("data"), &dir.path().join("run")).unwrap());
        volumes
            .create(&NewVolume {
                name: "data".into(),
                size_bytes: 1 << 20,
                fs: Fs::None,
                anonymous_of: None,
                labels: Default::default(),
            })
            .unwrap();
        volumes
    }

    #[test]
    fn a_disk_takes_the_place_of_a_volumes_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = volumes(&dir);
        let from = dir.path().join("from");
        fs::write(&from, "then").unwrap();
        drop(volumes.replacement("data", &from, &Content::Raw, "").unwrap());
        let volume = volumes.get("data").unwrap();
        assert_eq!((volume.size_bytes, volume.record.content), (1 << 20, Content::Empty));
        let ready = volumes.replacement("data", &from, &Content::Raw, "").unwrap();
        // Nobody uses it meanwhile.
        assert_eq!(volumes.hold("data", false, "").unwrap_err().class, Class::Conflict);
        ready.put().unwrap();
        let volume = volumes.get("data").unwrap();
        assert_eq!(fs::read(volume.data()).unwrap(), b"then");
        assert_eq!(volume.record.content, Content::Raw);
        let missing = volumes.replacement("none", &from, &Content::Raw, "").unwrap_err();
        assert_eq!(missing.class, Class::NotFound);
        assert!(
            volumes
                .replacement("data", &dir.path().join("gone"), &Content::Raw, "")
                .is_err()
        );
        assert_eq!(fs::read(volume.data()).unwrap(), b"then");
    }

    #[test]
    fn one_that_is_only_read_is_to_stay_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = volumes(&dir);
        let volume = volumes.get("data").unwrap();
        assert!(volume.saved(false).unwrap().is_copied());
        let saved = volume.saved(true).unwrap();
        assert!(!saved.is_copied());
        volumes.require_unchanged(&saved).unwrap();
        let disk = fs::File::options().write(true).open(volume.data()).unwrap();
        disk.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1))
            .unwrap();
        let refused = volumes.require_unchanged(&saved).unwrap_err();
        assert!(refused.message.contains("'data' has been written to"), "{refused}");
        volumes.remove("data").unwrap();
        assert_eq!(volumes.require_unchanged(&saved).unwrap_err().class, Class::NotFound);
    }
}
