//! The digest of the agent, without reading all of it for every machine that starts: it is that of the last time as long as the file is the same.
//!
//! The same is: on the same device by the same inode number, of the same length, and neither changed nor renamed since. A program that
//! is written to within the tick of the clock in which it was looked at would keep those times, so one that changed a moment ago is not noted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zmachine_sys::file;

use crate::install::hex;

/// Seconds that a file must have been left alone.
const SETTLED: i64 = 2;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    path: String,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    sha256: String,
}

/// The SHA-256 of the file at `path`, in hex digits, noted in the file `notes`. That it cannot be noted is no error.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn sha256(path: &Path, notes: &Path) -> io::Result<String> {
    let before = fs::metadata(path)?;
    let mut known = Known {
        path: path.to_string_lossy().into_owned(),
        device: before.dev(),
        inode: before.ino(),
        bytes: before.len(),
        modified: (before.mtime(), before.mtime_nsec()),
        changed: (before.ctime(), before.ctime_nsec()),
        sha256: String::new(),
    };
    if let Ok(noted) = file::read_json::<Known>(notes) {
        known.sha256.clone_from(&noted.sha256);
        if noted == known && known.sha256.len() == 64 {
            return Ok(known.sha256);
        }
    }
    known.sha256 = hex(&Sha256::digest(fs::read(path)?));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if known.changed.0 + SETTLED <= now.as_secs() as i64 {
        let _ = file::replace_json_unsynced(notes, &known);
    }
    Ok(known.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    #[test]
    fn a_digest_is_noted_once_a_file_is_left_alone_and_holds_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, notes) = (folder.path().join("agent"), folder.path().join("agent.json"));
        fs::write(&agent, "one").unwrap();
        assert_eq!(sha256(&agent, &notes).unwrap(), digest(b"one"));
        assert!(!notes.exists(), "it has changed a moment ago");
        std::thread::sleep(std::time::Duration::from_secs(SETTLED as u64 + 1));
        assert_eq!(sha256(&agent, &notes).unwrap(), digest(b"one"));
        // What is noted is taken, and not the file.
        let text = fs::read_to_string(&notes).unwrap();
        let other = digest(b"other");
        fs::write(&notes, text.replace(&digest(b"one"), &other)).unwrap();
        assert_eq!(sha256(&agent, &notes).unwrap(), other);
        fs::write(&agent, "two").unwrap();
        assert_eq!(sha256(&agent, &notes).unwrap(), digest(b"two"));
        fs::write(&notes, "{").unwrap();
        assert_eq!(sha256(&agent, &notes).unwrap(), digest(b"two"));
        assert!(sha256(&folder.path().join("none"), &notes).is_err());
    }
}
