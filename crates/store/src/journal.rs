//! The journal of a machine's runtime resources: what must be undone when the machine ends, however it ends.
//!
//! # Format (`resources.jsonl`)
//! ```text
//! {"claim":0,"resource":{"run_dir":{"path":"/run/zmachine/0123456789ab"}}}
//! {"claim":1,"resource":{"network":{...}}}
//! {"release":1}
//! ```
//! # Invariants
//! A claim is in the file before its resource is made. Undo goes through the unreleased claims in reverse and each undo
//! is idempotent, so it may be repeated after a crash in the middle. A torn last line was never acted on and is ignored.
//! Lines are not fsynced: everything claimed here lives in the kernel of this boot, and a journal that is lost with a
//! power cut describes resources that are lost with it. What outlives a boot (leases, disks) is not claimed here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zmachine_network::Networks;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::process::ProcessId;

/// Something on the host that a running machine has and a stopped one must not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// The folder of its sockets.
    RunDir {
        /// Absolute path.
        path: PathBuf,
    },
    /// A child process. It also dies with its monitor by itself; this is the second wall.
    Process {
        /// `rootfs` or `hypervisor`.
        role: String,
        /// Which process.
        id: ProcessId,
    },
    /// The control group of its processes.
    ControlGroup {
        /// Absolute path.
        path: PathBuf,
    },
    /// A part of its network.
    Network(zmachine_network::Resource),
}

impl Resource {
    /// Undoes it; one that is not there is fine.
    ///
    /// # Errors
    /// When it is there and cannot be undone.
    pub async fn undo(&self, networks: &Networks) -> Result<(), Failure> {
        match self {
            Resource::RunDir { path } => Ok(file::discard_dir_all(path)?),
            Resource::Process { role, id } => {
                id.signal(libc_sigkill())
                    .map_err(|e| Failure::from(e).context(format!("cannot end the {role} process {}", id.pid)))?;
                if id.wait_gone(Duration::from_secs(10)) {
                    return Ok(());
                }
                Err(Failure::new(
                    Class::Failed,
                    format!("the {role} process {} does not end after SIGKILL", id.pid),
                ))
            }
            Resource::ControlGroup { path } => Ok(crate::cgroup::remove(path)?),
            Resource::Network(resource) => Ok(resource.undo(networks).await?),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Claim { claim: u64, resource: Resource },
    Release { release: u64 },
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    next: u64,
    claims: Vec<(u64, Resource)>,
}

impl Journal {
    /// Opens the journal of a machine's folder, with what an earlier run left in it.
    ///
    /// # Errors
    /// When it cannot be read or written, or holds a line that is neither torn nor ours.
    pub fn open(machine: &Path) -> Result<Journal, FileError> {
        let path = machine.join("resources.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(FileError::io("read", &path, e)),
        };
        let (claims, next) = replay(&text).map_err(|source| FileError::Malformed {
            path: path.clone(),
            source,
        })?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| FileError::io("open journal", &path, e))?;
        if !text.is_empty() && !text.ends_with('\n') {
            // Cut the torn line off, or the next one would be glued to it.
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            file.set_len(whole as u64)
                .map_err(|e| FileError::io("repair journal", &path, e))?;
        }
        Ok(Journal {
            path,
            file,
            next,
            claims,
        })
    }

    /// What is claimed and not released, oldest first.
    pub fn claims(&self) -> impl Iterator<Item = &Resource> {
        self.claims.iter().map(|(_, resource)| resource)
    }

    /// Writes a claim. Only after this may the resource be made.
    ///
    /// # Errors
    /// When the line cannot be written; the resource must not be made then.
    pub fn claim(&mut self, resource: Resource) -> Result<(), FileError> {
        let claim = self.next;
        self.append(&Line::Claim {
            claim,
            resource: resource.clone(),
        })?;
        self.next += 1;
        self.claims.push((claim, resource));
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), FileError> {
        let mut bytes = serde_json::to_vec(line).map_err(|source| FileError::Malformed {
            path: self.path.clone(),
            source,
        })?;
        bytes.push(b'\n');
        let before = self.file.metadata().map_or(0, |m| m.len());
        self.file.write_all(&bytes).map_err(|e| {
            // Half a line would be glued to the next one.
            let _ = self.file.set_len(before);
            FileError::io("write", &self.path, e)
        })
    }

    /// Undoes everything claimed, newest first. A resource that cannot be undone stays claimed and is reported; the
    /// others are undone all the same.
    ///
    /// # Errors
    /// The first failure, naming the resource.
    pub async fn undo_all(&mut self, networks: &Networks) -> Result<(), Failure> {
        let mut first = None;
        for (claim, resource) in std::mem::take(&mut self.claims).into_iter().rev() {
            match resource.undo(networks).await {
                // One that a full disk does not take is undone again at worst, which is fine.
                Ok(()) => drop(self.append(&Line::Release { release: claim })),
                Err(failure) => {
                    self.claims.insert(0, (claim, resource));
                    first.get_or_insert(failure);
                }
            }
        }
        match first {
            Some(failure) => Err(failure),
            None => {
                self.file
                    .set_len(0)
                    .map_err(|e| FileError::io("empty", &self.path, e))?;
                self.next = 0;
                Ok(())
            }
        }
    }
}

fn libc_sigkill() -> i32 {
    rustix::process::Signal::KILL.as_raw()
}

type Claims = Vec<(u64, Resource)>;

fn replay(text: &str) -> Result<(Claims, u64), serde_json::Error> {
    let mut claims: Claims = Vec::new();
    let mut next = 0;
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    for line in whole.lines() {
        match serde_json::from_str(line)? {
            Line::Claim { claim, resource } => {
                next = claim + 1;
                claims.push((claim, resource));
            }
            Line::Release { release } => claims.retain(|(claim, _)| *claim != release),
        }
    }
    Ok((claims, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir(path: &Path) -> Resource {
        Resource::RunDir { path: path.to_owned() }
    }

    #[test]
    fn what_was_claimed_before_a_crash_is_known_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let claimed = [run_dir(Path::new("/a")), run_dir(Path::new("/b"))];
        let mut journal = Journal::open(dir.path()).unwrap();
        claimed.iter().for_each(|r| journal.claim(r.clone()).unwrap());
        drop(journal);
        assert!(Journal::open(dir.path()).unwrap().claims().eq(&claimed));
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_journal_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path())
            .unwrap()
            .claim(run_dir(Path::new("/a")))
            .unwrap();
        let path = dir.path().join("resources.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"claim":1,"resou"#);
        std::fs::write(&path, text).unwrap();
        Journal::open(dir.path())
            .unwrap()
            .claim(run_dir(Path::new("/b")))
            .unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().claims().count(), 2);
    }

    #[tokio::test]
    async fn on_a_full_disk_everything_is_undone_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        let made = ["a", "b", "c"].map(|name| dir.path().join(name));
        let mut journal = Journal::open(dir.path()).unwrap();
        for path in &made {
            journal.claim(run_dir(path)).unwrap();
            std::fs::create_dir(path).unwrap();
        }
        journal.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let _ = journal.undo_all(&networks).await;
        assert!(made.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_journal_line_has_its_golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.claim(run_dir(Path::new("/run/x"))).unwrap();
        journal
            .claim(Resource::Process {
                role: "rootfs".into(),
                id: ProcessId { pid: 1, start_ticks: 2 },
            })
            .unwrap();
        let text = std::fs::read_to_string(dir.path().join("resources.jsonl")).unwrap();
        assert_eq!(text, include_str!("../tests/golden/resources-v1.jsonl"));
    }
}
