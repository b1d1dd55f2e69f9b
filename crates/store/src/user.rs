//! The user that a machine's processes run as: one for each running machine of this host, whichever home it is of.
//!
//! ```text
//! /run/zmachine-users/<number>     locked by the monitor of the machine that has the user; the file itself says nothing
//! ```
//! Numbers are [`FIRST`] to `FIRST + COUNT - 1`: beyond those that distributions, systemd (to 1,879,048,191) and container programs
//! give away, below 2^31. No user of that number has to exist, and none should.
//!
//! # Invariants
//! The lock goes with the monitor, however it ends, and with it nothing is left to undo. No file that outlives a run belongs to
//! such a user, so it does not matter which number a machine has; it gets the same one as long as nobody else has it.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

/// The first number.
pub const FIRST: u32 = 2_000_000_000;

/// How many there are.
pub const COUNT: u32 = 100_000;

/// Where the locks are.
pub const FOLDER: &str = "/run/zmachine-users";

/// A user that nobody else on this host has now. Dropping it gives it back.
#[derive(Debug)]
pub struct UserLease {
    number: u32,
    path: PathBuf,
    _lock: FileLock,
}

impl UserLease {
    /// Takes a user for `whom` (a home and a machine, say) out of `folder`.
    ///
    /// # Errors
    /// When the folder cannot be used, or all are taken.
    pub fn take(folder: &Path, whom: &str) -> Result<UserLease, FileError> {
        file::make_dirs(folder)?;
        let digest = Sha256::digest(whom.as_bytes());
        let start = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
        for step in 0..COUNT {
            let number = FIRST + start.wrapping_add(step) % COUNT;
            let path = folder.join(number.to_string());
            let Some(lock) = FileLock::try_exclusive(&path)? else {
                continue;
            };
            // One that gives it back removes the file before it unlocks: the lock may be on a file that is gone.
            if lock.is_at(&path) {
                return Ok(UserLease {
                    number,
                    path,
                    _lock: lock,
                });
            }
        }
        let taken = std::io::Error::other("every user of machines is in use");
        Err(FileError::io("take a user in", folder, taken))
    }

    /// Its number, of the user and of the group.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for UserLease {
    fn drop(&mut self) {
        // While it is locked: nobody else has it.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_have_one_user_and_the_same_one_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = UserLease::take(dir.path(), "home machine").unwrap();
        let second = UserLease::take(dir.path(), "home machine").unwrap();
        assert_ne!(first.number(), second.number());
        assert!((FIRST..FIRST + COUNT).contains(&first.number()));
        let number = first.number();
        drop(first);
        assert_eq!(UserLease::take(dir.path(), "home machine").unwrap().number(), number);
        drop(second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
