//! The record of changes: who did what, when, and what came of it.
//!
//! # On disk
//! `audit.jsonl` of the home, mode 0600: a JSON object a line. At 16 MiB it becomes `audit.jsonl.1`, in the place of the one before, so that
//! no client fills the disk by it. There are neither bodies nor parameters nor headers in it, as those may be secret.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{Caller, Door, Role, locked};

/// The size at which a new file is begun, in bytes.
const LARGEST: u64 = 16 << 20;

/// The longest path that is written, in characters.
const LONGEST_PATH: usize = 1024;

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: Timestamp,
    /// The name of the token; `null` without one.
    token: Option<&'a str>,
    /// The user of a process of this host; `null` for who comes by TCP.
    uid: Option<u32>,
    /// `null` for who was not let in.
    role: Option<Role>,
    /// The address of the client, or `local`.
    from: String,
    method: &'a str,
    path: &'a str,
    /// The status of the answer; `null` when the client left before.
    status: Option<u16>,
    /// How long it took, in milliseconds.
    took_ms: u64,
}

/// What is to be recorded.
#[derive(Debug)]
pub struct Deed<'a> {
    /// Who asked; `None` for who was not let in.
    pub caller: Option<&'a Caller>,
    /// By which way.
    pub door: &'a Door,
    /// The method of the request.
    pub method: &'a str,
    /// Its path, without parameters.
    pub path: &'a str,
    /// The status of the answer; `None` when the client left before.
    pub status: Option<u16>,
    /// How long it took.
    pub took: Duration,
}

/// The record of a home.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Audit {
    /// That of a home whose state is at `data`.
    pub fn of(data: &Path) -> Audit {
        Audit {
            path: data.join("audit.jsonl"),
            file: Mutex::default(),
        }
    }

    /// Writes a line. What cannot be written is told on standard error: the request has been carried out by then.
    pub fn write(&self, deed: &Deed<'_>) {
        let line = Line {
            time: Timestamp::now(),
            token: deed
                .caller
                .and_then(|caller| caller.token.as_ref())
                .map(|token| token.name.as_str()),
            uid: match deed.door {
                Door::Local { uid } => *uid,
                Door::Network { .. } => None,
            },
            role: deed.caller.map(|caller| caller.role),
            from: match deed.door {
                Door::Local { .. } => "local".to_owned(),
                Door::Network { peer, .. } => peer.to_string(),
            },
            method: deed.method,
            path: shortened(deed.path),
            status: deed.status,
            took_ms: u64::try_from(deed.took.as_millis()).unwrap_or(u64::MAX),
        };
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        if let Err(error) = self.append(&bytes) {
            eprintln!("warning: {} cannot be written: {error}", self.path.display());
        }
    }

    fn append(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut kept = locked(&self.file);
        // Another server of this home may have begun a new one, or somebody has moved it.
        let is_ours = kept.as_ref().is_some_and(|file| is_at(file, &self.path));
        if !is_ours {
            *kept = Some(self.open()?);
        }
        let Some(file) = kept.as_mut() else { return Ok(()) };
        if file.metadata()?.len() >= LARGEST {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            *file = self.open()?;
        }
        // One write for a line: several servers write to the end of one file.
        file.write_all(bytes)
    }

    fn open(&self) -> std::io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same =
        |one: &std::fs::Metadata, other: &std::fs::Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    matches!((file.metadata(), path.metadata()), (Ok(one), Ok(other)) if same(&one, &other))
}

fn shortened(path: &str) -> &str {
    path.char_indices()
        .nth(LONGEST_PATH)
        .map_or(path, |(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_begins_anew_before_it_fills_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::of(folder.path());
        let door = Door::Local { uid: Some(7) };
        let deed = Deed {
            caller: None,
            door: &door,
            method: "POST",
            path: &"é".repeat(2000),
            status: Some(403),
            took: Duration::from_millis(5),
        };
        audit.write(&deed);
        let path = folder.path().join("audit.jsonl");
        let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            (&line["uid"], &line["status"], &line["from"]),
            (&7.into(), &403.into(), &"local".into())
        );
        assert_eq!(line["path"].as_str().unwrap().chars().count(), LONGEST_PATH);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(LARGEST)
            .unwrap();
        audit.write(&deed);
        assert_eq!(folder.path().join("audit.jsonl.1").metadata().unwrap().len(), LARGEST);
        assert!(path.metadata().unwrap().len() < 4096);
        // Somebody moves it away.
        std::fs::remove_file(&path).unwrap();
        audit.write(&deed);
        assert!(path.metadata().unwrap().len() > 100);
    }
}
