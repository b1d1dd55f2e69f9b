//! Advisory locks on files (`flock`): they go with the process that holds them, however it ends.
//!
//! Liveness in this project is a lock, never a process id: whoever can take a machine's lock knows that its monitor is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
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
    /// When the file cannot be opened or locked.
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
    /// When the file cannot be opened or locked for another reason.
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
    /// When the file is there and cannot be asked.
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

    /// The lock that this process was handed as an open file: that of whoever took it, and held until the last one lets it go.
    pub fn handed(file: std::os::fd::OwnedFd) -> FileLock {
        FileLock { file: file.into() }
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Many small locks in one file, each a byte of it (`F_OFD_SETLK`): they too go with the process that holds them. The file
/// stays empty; a lock needs no byte to be there.
#[derive(Debug)]
pub struct ByteLocks {
    file: File,
}

/// A held byte; dropping it releases it.
#[derive(Debug)]
pub struct ByteLock<'a> {
    locks: &'a ByteLocks,
    at: u64,
}

impl ByteLocks {
    /// Opens the file, which is made when missing.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<ByteLocks, FileError> {
        Ok(ByteLocks { file: open(path)? })
    }

    /// Takes the lock number `at` (its two highest bits do not count) when no other [`ByteLocks`] holds it; `None` when one
    /// does. Whoever shares this value has to keep its own order: it can take what it holds.
    ///
    /// # Errors
    /// When the file system knows no such locks.
    pub fn try_take(&self, at: u64) -> io::Result<Option<ByteLock<'_>>> {
        match self.set(at, libc::F_WRLCK) {
            Ok(()) => Ok(Some(ByteLock { locks: self, at })),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn set(&self, at: u64, kind: libc::c_int) -> io::Result<()> {
        // SAFETY: `flock` is a plain structure of integers, for which zeros are a value.
        let mut range: libc::flock = unsafe { std::mem::zeroed() };
        range.l_type = kind as libc::c_short;
        range.l_whence = libc::SEEK_SET as libc::c_short;
        // The end of the range must be an offset too.
        range.l_start = (at & (i64::MAX as u64 >> 1)) as libc::off_t;
        range.l_len = 1;
        // SAFETY: the descriptor is open, and the kernel reads one `flock`, which lives until the call returns.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for ByteLock<'_> {
    fn drop(&mut self) {
        // It cannot fail on a range that is held; at the worst the lock ends with the process.
        let _ = self.locks.set(self.at, libc::F_UNLCK);
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
    #[test]
    fn bytes_are_locked_one_by_one_between_openings_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        let (ours, theirs) = (ByteLocks::open(&path).unwrap(), ByteLocks::open(&path).unwrap());
        let held = ours.try_take(7).unwrap().unwrap();
        assert!(theirs.try_take(7).unwrap().is_none());
        assert!(theirs.try_take(8).unwrap().is_some());
        assert!(theirs.try_take(u64::MAX).unwrap().is_some());
        drop(held);
        assert!(theirs.try_take(7).unwrap().is_some());
        let kept = ByteLocks::open(&path).unwrap();
        std::mem::forget(kept.try_take(9).unwrap());
        assert!(theirs.try_take(9).unwrap().is_none());
        drop(kept);
        assert!(theirs.try_take(9).unwrap().is_some(), "it went with its holder");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
