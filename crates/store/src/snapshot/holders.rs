//! Memory that machines of one snapshot share, found with those of them that run.
//!
//! A monitor whose guest began with shared memory keeps it open for as long as the guest runs. Whoever starts one more opens it there
//! instead of reading the file again: that is faster, and the guests have one memory together, whichever commands started them. It
//! cannot have been changed, because it is sealed; its name says what it is of.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{SealFlags, fcntl_get_seals};
use sha2::{Digest, Sha256};
use zmachine_spec::{Failure, Home};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;
use zmachine_sys::process::ProcessId;

use super::{Snapshot, make_private};

/// The most processes that are remembered for one memory: one that runs is enough.
const MOST: usize = 16;

/// The seals of memory that nobody can change any more.
pub(super) const SEALED: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// Who has the memory of one snapshot open.
#[derive(Debug, Clone)]
pub struct Holders {
    folder: PathBuf,
    name: String,
    bytes: u64,
}

impl Holders {
    /// Of the snapshot's memory.
    pub fn of(home: &Home, snapshot: &Snapshot) -> Holders {
        let all = serde_json::to_vec(&(&snapshot.machine_id, &snapshot.created_at, &snapshot.saved));
        let digest = Sha256::digest(all.unwrap_or_default());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Holders {
            folder: home.run().join("memory"),
            name: format!("guest-memory-{hex}"),
            bytes: snapshot.memory().map_or(0, |saved| saved.memory.bytes),
        }
    }

    /// The name of the memory.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the lock of who keeps it open for others; `None` when somebody does already.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn try_keep(&self) -> Result<Option<FileLock>, Failure> {
        // Whoever is started for this may be the first who needs the folder.
        make_private(&self.folder)?;
        Ok(FileLock::try_exclusive(&self.lock_path())?)
    }

    fn lock_path(&self) -> PathBuf {
        self.folder.join(format!("{}.lock", self.name))
    }

    /// Removes what is known of a snapshot that is gone.
    pub fn forget(&self) {
        for path in [self.folder.join(&self.name), self.lock_path()] {
            let _ = fs::remove_file(path);
        }
    }

    /// How long nobody has been added; `None` when that is not known.
    pub fn unused_for(&self) -> Option<Duration> {
        let there = fs::metadata(self.folder.join(&self.name)).ok()?;
        // A clock that was set back says nothing about it.
        there.modified().ok()?.elapsed().ok().or(Some(Duration::ZERO))
    }

    /// The memory, if a process has it open.
    pub fn find(&self) -> Option<OwnedFd> {
        self.processes()
            .into_iter()
            .rev()
            .find_map(|process| self.opened_by(process))
    }

    /// Remembers that a process has it open.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn add(&self, process: ProcessId) -> std::io::Result<()> {
        make_private(&self.folder).map_err(std::io::Error::other)?;
        let known = self.processes();
        let path = self.folder.join(&self.name);
        if known.len() >= MOST {
            let kept: Vec<ProcessId> = known.into_iter().filter(|process| process.is_alive()).collect();
            let from = kept.len().saturating_sub(MOST / 2);
            return file::replace_json_unsynced(&path, &[&kept[from..], &[process]].concat())
                .map_err(std::io::Error::other);
        }
        // One write each, so that two commands at once lose nothing.
        let mut line = serde_json::to_vec(&[process])?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.write_all(&line)
    }

    /// Those that were added, oldest first.
    fn processes(&self) -> Vec<ProcessId> {
        let text = fs::read_to_string(self.folder.join(&self.name)).unwrap_or_default();
        let lists = serde_json::Deserializer::from_str(&text).into_iter::<Vec<ProcessId>>();
        lists.map_while(Result::ok).flatten().collect()
    }

    fn opened_by(&self, process: ProcessId) -> Option<OwnedFd> {
        if !process.is_alive() {
            return None;
        }
        let wanted = format!("/memfd:{} (deleted)", self.name);
        let is_it = |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.as_os_str() == wanted.as_str());
        let files = fs::read_dir(format!("/proc/{}/fd", process.pid)).ok()?;
        let path = files.flatten().map(|file| file.path()).find(is_it)?;
        // For writing, as a hypervisor opens it that maps it for itself.
        let memory = File::options().read(true).write(true).open(path).ok()?;
        let is_same = memory.metadata().is_ok_and(|there| there.len() == self.bytes);
        let is_sealed = fcntl_get_seals(&memory).is_ok_and(|seals| seals.contains(SEALED));
        (is_same && is_sealed).then(|| memory.into())
    }
}
