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

/// A disk that is ready to take the place of a volume's. What is not put there goes with it.
#[derive(Debug)]
pub struct Replacement {
    held: Held,
    new: PathBuf,
    content: Content,
}

impl Drop for Replacement {
    /// A full disk is not to stay so. One that was put in its place has another name by now.
    fn drop(&mut self) {
        let _ = file::remove_if_there(&self.new);
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
        let new = held.volume.data().with_extension("img.new-restored");
        file::remove_if_there(&new)?;
        let ready = Replacement {
            held,
            new,
            content: content.clone(),
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
    pub fn put(mut self) -> Result<(), Failure> {
        let target = self.held.volume.data();
        // An interruption must never leave data that the record takes for an empty disk.
        let before = self.content != Content::Empty;
        if before {
            self.held.set_content(self.content.clone())?;
        }
        fs::rename(&self.new, &target).map_err(|e| FileError::io("replace", &target, e))?;
        file::sync_dir(target.parent().unwrap_or(&target))?;
        if !before {
            self.held.set_content(self.content.clone())?;
        }
        Ok(())
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
