//! Advisory locks on files (`flock`): they go with the process that holds them, however it ends.
//!
//! Liveness in this project is a lock, never a process id: whoever can take a machine's lock knows that its monitor is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::file::FileError;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

fn open(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| FileError::io("open lock", path, e))
}

impl FileLock {
    /// Takes the lock, waiting as long as it takes. The file is made when missing.
    ///
    /// # Errors
    /// When the file can not be opened or locked.
    pub fn exclusive(path: &Path) -> Result<FileLock, FileError> {
        let file = open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(FileLock { file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(FileError::io("lock", path, e.into())),
            }
        }
    }

    /// Whether the locked file is the one that has the name `path` now.
    pub fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let which = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let locked = self.file.metadata().map(which).ok();
        locked.is_some() && path.metadata().map(which).ok() == locked
    }

    /// Takes the lock together with others who take it so, waiting as long as it takes. The file is made when missing.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(path: &Path) -> Result<FileLock, FileError> {
        let file = open(path)?;
        loop {
            match flock(&file, FlockOperation::LockShared) {
                Ok(()) => return Ok(FileLock { file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(FileError::io("lock", path, e.into())),
            }
        }
    }

    /// Takes the lock when it is free; `None` when somebody holds it.
    ///
    /// # Errors
    /// When the file can not be opened or locked for another reason.
    pub fn try_exclusive(path: &Path) -> Result<Option<FileLock>, FileError> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(FileLock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(FileError::io("lock", path, e.into())),
        }
    }

    /// Takes the lock together with others who take it so; `None` when somebody holds it exclusively.
    ///
    /// # Errors
    /// As [`FileLock::try_exclusive`].
    pub fn try_shared(path: &Path) -> Result<Option<FileLock>, FileError> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(FileLock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(FileError::io("lock", path, e.into())),
        }
    }

    /// Takes the lock, trying for `patience`; `None` when somebody still holds it then.
    ///
    /// # Errors
    /// As [`FileLock::try_exclusive`].
    pub fn exclusive_within(path: &Path, patience: Duration) -> Result<Option<FileLock>, FileError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = FileLock::try_exclusive(path)? {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether somebody holds the lock right now. A file that is not there is not locked.
    ///
    /// # Errors
    /// When the file is there and can not be asked.
    pub fn is_held(path: &Path) -> Result<bool, FileError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(FileError::io("open lock", path, e)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(FileError::io("lock", path, e.into())),
        }
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_seen_and_goes_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!FileLock::is_held(&path).unwrap());
        let held = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(FileLock::try_shared(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
        let readers = [
            FileLock::try_shared(&path).unwrap(),
            FileLock::try_shared(&path).unwrap(),
        ];
        assert!(readers.iter().all(Option::is_some));
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    }
}
