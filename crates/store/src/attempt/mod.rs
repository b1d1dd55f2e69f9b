//! Records of start attempts: what `why` tells.
//!
//! # Format (`machines/<id>/attempts/<number>.json`, kept after removal as the graveyard keeps them)
//! One JSON object per attempt, from the command to the last state. It is written when the attempt begins, when its
//! entrypoint runs, and when it has ended; a record without an outcome is of a run that goes on, or of a monitor that was
//! killed.
//!
//! # Invariants
//! The newest [`KEPT`] are kept. A record that cannot be written never stops a machine.

mod console;
mod explain;

use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_hypervisor::ExitReason;
use zmachine_rootfs::report::Stats;
use zmachine_spec::shown::without_credentials;
use zmachine_spec::{Exit, Failure, redact};
use zmachine_sys::file::{self, FileError};

pub use self::console::ConsoleTail;
pub use self::explain::hint_for;
pub use self::explain::{Explanation, explain};

/// Version of a record.
pub const ATTEMPT_VERSION: u32 = 1;

/// Number of records that are kept of a machine.
pub const KEPT: usize = 20;

/// One start attempt and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// [`ATTEMPT_VERSION`].
    pub version: u32,
    /// Counted from 1 over the machine's life.
    pub number: u64,
    /// The machine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its flist.
    pub flist: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When the entrypoint began to run.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    /// When the run ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// How many automatic restarts came before it since a user's start.
    #[serde(default)]
    pub restarts: u64,
    /// Its steps in order.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// What the rootfs server served and fetched.
    #[serde(default)]
    pub rootfs: Stats,
    /// The hypervisor that ran it, with its version: `qemu 7.2.22`.
    #[serde(default)]
    pub hypervisor: Option<String>,
    /// The plan that was carried out, as `plan.json` has it, without secrets.
    #[serde(default)]
    pub plan: serde_json::Value,
    /// How it ended; `None` while it runs.
    #[serde(default)]
    pub outcome: Option<Outcome>,
    /// Why the virtual machine ended.
    #[serde(default)]
    pub vm_ended: Option<ExitReason>,
    /// What happened and did not end it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The last lines of the serial console.
    #[serde(default)]
    pub console: Vec<String>,
    /// The guest kernel's words when it panicked.
    #[serde(default)]
    pub panic: Vec<String>,
    /// What the guest's kernel said when it ran out of memory.
    #[serde(default)]
    pub guest_oom: Vec<String>,
    /// Processes that the host's kernel killed for lack of memory during the run (`oom_kill` of `/proc/vmstat`).
    #[serde(default)]
    pub host_oom_kills: u64,
}

/// One step of a start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// What was done: `rootfs server`, `network`, `guest boot`, and `guest: ...` for the guest's own steps.
    pub name: String,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The run ended.
    Stopped {
        /// How.
        exit: Exit,
        /// A user or the host asked for it.
        asked: bool,
    },
    /// It could not start, or ended in a way nobody asked for.
    Failed {
        /// What it was doing.
        step: String,
        /// What went wrong.
        failure: Failure,
    },
}

impl Attempt {
    /// The record of an attempt that begins now.
    pub fn begin(machine: &crate::catalog::Machine, number: u64, plan: serde_json::Value) -> Attempt {
        let plan = redact::shown(&plan);
        Attempt {
            version: ATTEMPT_VERSION,
            number,
            id: machine.id.clone(),
            name: machine.spec.name.clone(),
            flist: without_credentials(&machine.spec.flist),
            started_at: Timestamp::now(),
            ready_at: None,
            ended_at: None,
            restarts: machine.state.restarts,
            phases: Vec::new(),
            rootfs: Stats::default(),
            hypervisor: None,
            plan,
            outcome: None,
            vm_ended: None,
            warnings: Vec::new(),
            console: Vec::new(),
            panic: Vec::new(),
            guest_oom: Vec::new(),
            host_oom_kills: 0,
        }
    }

    /// Writes the record into a machine's folder, and removes those that are too many.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, machine: &Path) -> Result<(), FileError> {
        let dir = folder(machine);
        file::make_dirs(&dir)?;
        let path = dir.join(format!("{:06}.json", self.number));
        let new = dir.join(format!("{:06}.new", self.number));
        // Not synced: it is written while a machine starts, and a power cut may take the last record.
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&new, bytes))
            .and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|e| FileError::io("write", &path, e))?;
        let numbers = numbers(machine);
        for number in numbers.iter().take(numbers.len().saturating_sub(KEPT)) {
            file::remove_if_there(&dir.join(format!("{number:06}.json")))?;
        }
        Ok(())
    }

    /// The records of a machine's folder, oldest first. One that cannot be read is left out.
    pub fn all(machine: &Path) -> Vec<Attempt> {
        let dir = folder(machine);
        let read = |number: &u64| file::read_json(&dir.join(format!("{number:06}.json"))).ok();
        numbers(machine).iter().filter_map(read).collect()
    }

    /// The number of the next attempt.
    pub fn next_number(machine: &Path) -> u64 {
        numbers(machine).last().map_or(1, |number| number + 1)
    }
}

fn folder(machine: &Path) -> PathBuf {
    machine.join("attempts")
}

fn numbers(machine: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder(machine)).into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// How many processes the host's kernel has killed for lack of memory since boot; 0 when it does not tell.
pub fn host_oom_kills() -> u64 {
    let vmstat = file::read_text(Path::new("/proc/vmstat"), 64 * 1024).unwrap_or_default();
    let line = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Keeps the record of the attempt in progress.
#[derive(Debug)]
pub struct Recorder {
    machine: PathBuf,
    attempt: Attempt,
    last: Instant,
    oom_kills: u64,
}

impl Recorder {
    /// Begins a record and writes it.
    pub fn begin(machine: &crate::catalog::Machine, plan: serde_json::Value) -> Recorder {
        let attempt = Attempt::begin(machine, Attempt::next_number(&machine.dir), plan);
        let recorder = Recorder {
            machine: machine.dir.clone(),
            attempt,
            last: Instant::now(),
            oom_kills: host_oom_kills(),
        };
        recorder.save();
        recorder
    }

    /// A step is done: it took from the end of the one before until now.
    pub fn phase(&mut self, name: &str) {
        let took = self.last.elapsed();
        self.last = Instant::now();
        self.timed(name, took.as_secs_f64() * 1000.0);
    }

    /// A step that somebody else timed.
    pub fn timed(&mut self, name: &str, took_ms: f64) {
        self.attempt.phases.push(PhaseTime {
            name: name.to_owned(),
            took_ms: (took_ms * 1000.0).round() / 1000.0,
        });
    }

    /// The hypervisor, when it runs.
    pub fn hypervisor(&mut self, name: String) {
        self.attempt.hypervisor = Some(name);
    }

    /// Why the virtual machine ended.
    pub fn vm_ended(&mut self, reason: ExitReason) {
        self.attempt.vm_ended = Some(reason);
    }

    /// The entrypoint runs.
    pub fn ready(&mut self) {
        self.attempt.ready_at = Some(Timestamp::now());
        self.save();
    }

    /// The attempt has ended; the record as it was written.
    pub fn end(mut self, outcome: Outcome, state: &zmachine_spec::State, console: &ConsoleTail) -> Attempt {
        let attempt = &mut self.attempt;
        attempt.ended_at = Some(Timestamp::now());
        attempt.outcome = Some(outcome);
        attempt.rootfs = state.rootfs_counters;
        attempt.warnings.clone_from(&state.warnings);
        attempt.console = console.lines();
        attempt.panic = console.panic();
        attempt.guest_oom = console.oom();
        attempt.host_oom_kills = host_oom_kills().saturating_sub(self.oom_kills);
        self.save();
        self.attempt
    }

    fn save(&self) {
        let _ = self.attempt.save(&self.machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Machine;
    use zmachine_spec::MachineSpec;
    use zmachine_spec::State;

    pub(super) fn attempt(number: u64) -> Attempt {
        let machine = Machine {
            id: "0123456789ab".into(),
            dir: PathBuf::new(),
            spec: MachineSpec::new("web", "/web.fl"),
            state: State::created(Timestamp::UNIX_EPOCH, vec![]),
        };
        Attempt {
            started_at: Timestamp::UNIX_EPOCH,
            ..Attempt::begin(&machine, number, serde_json::Value::Null)
        }
    }

    #[test]
    fn the_newest_records_are_kept_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=30 {
            attempt(number).save(dir.path()).unwrap();
        }
        let numbers: Vec<u64> = Attempt::all(dir.path()).iter().map(|a| a.number).collect();
        assert_eq!(numbers, (11..=30).collect::<Vec<_>>());
        assert_eq!(Attempt::next_number(dir.path()), 31);
    }

    #[test]
    fn a_record_has_its_golden_form() {
        let mut attempt = attempt(3);
        attempt.phases.push(PhaseTime {
            name: "network".into(),
            took_ms: 1.5,
        });
        attempt.vm_ended = Some(ExitReason::GuestPanic);
        attempt.outcome = Some(Outcome::Stopped {
            exit: Exit::Code(3),
            asked: false,
        });
        let golden = include_str!("../../tests/golden/attempt-v1.json").trim();
        assert_eq!(serde_json::to_string(&attempt).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Attempt>(golden).unwrap(), attempt);
    }

    #[test]
    fn the_host_counts_its_kills() {
        // Only that the file is read: the number belongs to the host.
        assert!(
            file::read_text(Path::new("/proc/vmstat"), 64 * 1024)
                .unwrap()
                .contains("oom_kill ")
        );
        let _ = host_oom_kills();
    }
}
