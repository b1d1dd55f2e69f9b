//! A process that keeps a snapshot's memory open for a while, so that who begins with it next need not read it again.
//!
//! To read it is more than a third of what a warm start or a fork takes, and those come in numbers. As long as a machine runs that began with
//! it, that one's monitor has it (see `zmachine_store::snapshot::holders`); the keeper has it for a minute after the last such start. It
//! ends at once when the snapshot is removed, and where memory is short.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use zmachine_spec::Failure;
use zmachine_store::snapshot::Snapshot;
use zmachine_store::snapshot::holders::Holders;
use zmachine_sys::file;
use zmachine_sys::host::HostFacts;
use zmachine_sys::process::ProcessId;

use crate::Engine;

/// How long it is kept after it was used last.
const KEPT: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Of the host's memory so much has to be available: one part in this many.
const RESERVE: u64 = 8;

impl Engine {
    /// Has a process keep memory that was just read. A start needs none of it.
    pub(super) fn keep_memory_of(&self, folder: &Path, memory: &OwnedFd) {
        if is_short() {
            return;
        }
        let mut command = self.role("memory");
        command.arg("--folder").arg(folder);
        command.arg("--memory-fd").arg(memory.as_raw_fd().to_string());
        // It can do without, and says why in its log.
        let log = self.home.run().join("memory-keeper.log");
        let _ = Engine::start_beside(command, &log, &[memory.as_raw_fd()]);
    }

    /// Keeps the memory of the snapshot in `folder` for as long as it is used.
    ///
    /// # Errors
    /// When the snapshot cannot be read, or others cannot be told.
    pub fn keep_memory(&self, folder: &Path, memory: OwnedFd) -> Result<(), Failure> {
        let description = folder.join("snapshot.json");
        let snapshot: Snapshot = file::read_json(&description)?;
        let holders = Holders::of(&self.home, &snapshot);
        let Some(_alone) = holders.try_keep()? else {
            return Ok(());
        };
        holders.add(ProcessId::current())?;
        while description.exists() && !is_short() && holders.unused_for().is_some_and(|time| time < KEPT) {
            std::thread::sleep(PAUSE);
        }
        drop(memory);
        if !description.exists() {
            holders.forget();
        }
        Ok(())
    }
}

/// Whether the host has little memory left.
fn is_short() -> bool {
    let host = HostFacts::gather();
    host.memory_available_bytes < host.memory_total_bytes / RESERVE
}
