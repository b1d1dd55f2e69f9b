//! The state of a machine: its phase and the facts of its last run. One task of the monitor writes it.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::ExitStatus;
use zmachine_rootfs::report::Stats;
use zmachine_sys::process::ProcessId;

use crate::failure::Failure;

/// Version of `state.json`.
pub const STATE_VERSION: u32 = 1;

/// Where a machine is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Made, never started.
    Created,
    /// Its monitor is bringing it up.
    Starting,
    /// Its entrypoint runs.
    Running,
    /// Its CPUs are halted.
    Paused,
    /// It was asked to end.
    Stopping,
    /// Its last run ended, and its monitor waits to start it again.
    Restarting {
        /// How the last run ended, in words.
        after: String,
        /// When it starts again.
        at: Timestamp,
    },
    /// Its last run ended.
    Stopped {
        /// How.
        exit: Exit,
    },
    /// Its last run could not start, or ended in a way nobody asked for.
    Failed {
        /// What it was doing.
        step: String,
        /// What went wrong.
        failure: Failure,
    },
}

impl Phase {
    /// Whether a monitor must be alive in this phase.
    pub fn is_active(&self) -> bool {
        matches!(
            self,
            Phase::Starting | Phase::Running | Phase::Paused | Phase::Stopping | Phase::Restarting { .. }
        )
    }

    /// The phase in one word, as listings show it.
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopping => "stopping",
            Phase::Restarting { .. } => "restarting",
            Phase::Stopped { .. } => "stopped",
            Phase::Failed { .. } => "failed",
        }
    }

    /// Whether the life of a machine may go from here to `next`.
    pub fn may_become(&self, next: &Phase) -> bool {
        use Phase::{Created, Failed, Paused, Restarting, Running, Starting, Stopped, Stopping};
        matches!(
            (self, next),
            (Created | Stopped { .. } | Failed { .. } | Restarting { .. }, Starting)
                | (Starting | Running | Paused | Stopping, Restarting { .. })
                | (Restarting { .. }, Stopped { .. } | Failed { .. })
                | (Starting, Running | Stopping | Stopped { .. } | Failed { .. })
                | (Running, Paused | Stopping | Stopped { .. } | Failed { .. })
                | (Paused, Running | Stopping | Stopped { .. } | Failed { .. })
                | (Stopping, Stopped { .. } | Failed { .. })
        )
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The entrypoint returned this code.
    Code(u8),
    /// The entrypoint was ended by this Linux signal.
    Signal(i32),
    /// The machine was killed: its entrypoint had no say.
    Killed,
    /// The guest powered off or reset by itself, without word from its entrypoint.
    PoweredOff,
}

impl Exit {
    /// The status that `run` and `wait` show.
    pub fn shell_code(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => ExitStatus::Signal(signal).shell_code(),
            Exit::Killed => 137,
            Exit::PoweredOff => 0,
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        match status {
            ExitStatus::Code(code) => Exit::Code(code),
            ExitStatus::Signal(signal) => Exit::Signal(signal),
        }
    }
}

/// What kind of machine it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A container.
    #[default]
    Container,
    /// A VM.
    Vm,
}

impl Kind {
    /// The kind in one word, as listings show it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Container => "container",
            Kind::Vm => "vm",
        }
    }

    fn is_container(&self) -> bool {
        *self == Kind::Container
    }
}

/// Everything in `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// What it is; never changes.
    #[serde(default, skip_serializing_if = "Kind::is_container")]
    pub kind: Kind,
    /// A VM's image was installed over its volume because its user asked for that; not again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reinstalled: bool,
    /// Where it is.
    #[serde(flatten)]
    pub phase: Phase,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its last start began.
    pub started_at: Option<Timestamp>,
    /// When its entrypoint began to run.
    pub ready_at: Option<Timestamp>,
    /// When the guest of a VM was up, as its agent or a login on its console tells; `None` before, and when neither is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<Timestamp>,
    /// When its last run ended.
    pub finished_at: Option<Timestamp>,
    /// Its addresses on its networks, from creation to removal.
    pub addresses: Vec<IpAddr>,
    /// How often it was started.
    pub starts: u64,
    /// The host's boot in which the last start happened.
    pub boot_id: String,
    /// The monitor of the last run.
    pub monitor: Option<ProcessId>,
    /// The hypervisor of the current run.
    pub hypervisor: Option<ProcessId>,
    /// The rootfs server of the current run.
    pub rootfs: Option<ProcessId>,
    /// The user that the processes of the current run have on this host; `None`: its starter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// What the rootfs server of the current or last run served and fetched.
    pub rootfs_counters: Stats,
    /// Release of the guest kernel that last ran.
    pub guest_kernel: Option<String>,
    /// What happened and did not end the run, newest last; at most [`State::MAX_WARNINGS`].
    pub warnings: Vec<String>,
    /// Automatic restarts since a user started it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// Its last run ended because a user wanted that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_by_user: bool,
    /// Since when it runs without a hypervisor, because nobody had to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
}

/// No boot takes longer, in seconds. Under emulation minutes were seen.
const LONGEST_BOOT_S: i64 = 900;

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl State {
    /// How many warnings are kept.
    pub const MAX_WARNINGS: usize = 32;

    /// The state of a new container.
    pub fn created(at: Timestamp, addresses: Vec<IpAddr>) -> State {
        State {
            version: STATE_VERSION,
            kind: Kind::Container,
            reinstalled: false,
            phase: Phase::Created,
            created_at: at,
            started_at: None,
            ready_at: None,
            booted_at: None,
            finished_at: None,
            addresses,
            starts: 0,
            boot_id: String::new(),
            monitor: None,
            hypervisor: None,
            rootfs: None,
            user: None,
            rootfs_counters: Stats::default(),
            guest_kernel: None,
            warnings: Vec::new(),
            restarts: 0,
            stopped_by_user: false,
            idle_since: None,
        }
    }

    /// The state when a start begins.
    pub fn starting(mut self, at: Timestamp, boot_id: String, monitor: ProcessId) -> State {
        self.phase = Phase::Starting;
        self.started_at = Some(at);
        self.ready_at = None;
        self.booted_at = None;
        self.finished_at = None;
        self.starts += 1;
        self.boot_id = boot_id;
        self.monitor = Some(monitor);
        self.hypervisor = None;
        self.rootfs = None;
        self.user = None;
        self.rootfs_counters = Stats::default();
        self.warnings.clear();
        self.idle_since = None;
        self
    }

    /// Where it is in one word, as listings show it: the phase, or that it is idle.
    pub fn word(&self) -> &'static str {
        match (&self.phase, self.idle_since) {
            (Phase::Running, Some(_)) => "idle",
            (phase, _) => phase.word(),
        }
    }

    /// Whether it is a VM whose guest may still be booting: neither its agent nor a login was seen. One without either is taken for
    /// up after a while.
    pub fn is_booting(&self, now: Timestamp) -> bool {
        let is_new = self
            .ready_at
            .is_some_and(|at| now.duration_since(at) < SignedDuration::from_secs(LONGEST_BOOT_S));
        self.kind == Kind::Vm && self.phase == Phase::Running && self.booted_at.is_none() && is_new
    }

    /// Goes to `next`; `false` and no change when a machine's life does not go that way.
    pub fn advance(&mut self, next: Phase, at: Timestamp) -> bool {
        if !self.phase.may_become(&next) {
            return false;
        }
        match next {
            Phase::Running if self.ready_at.is_none() => self.ready_at = Some(at),
            Phase::Stopped { .. } | Phase::Failed { .. } | Phase::Restarting { .. } => {
                self.finished_at = Some(at);
                self.hypervisor = None;
                self.rootfs = None;
                self.user = None;
            }
            _ => {}
        }
        self.phase = next;
        true
    }

    /// Remembers a warning.
    pub fn warn(&mut self, text: String) {
        if self.warnings.len() == State::MAX_WARNINGS {
            self.warnings.remove(0);
        }
        self.warnings.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_state_has_its_golden_form() {
        let mut state =
            State::created(time(0), vec![]).starting(time(1), "boot".into(), ProcessId { pid: 7, start_ticks: 9 });
        assert!(state.advance(Phase::Running, time(2)));
        assert!(state.advance(Phase::Stopped { exit: Exit::Code(3) }, time(3)));
        let golden = include_str!("../tests/golden/state-v1.json").trim();
        assert_eq!(serde_json::to_string(&state).unwrap(), golden);
        assert_eq!(serde_json::from_str::<State>(golden).unwrap(), state);
    }

    #[test]
    fn a_stopped_machine_does_not_run_without_a_start() {
        let mut state = State::created(time(0), vec![]);
        assert!(!state.advance(Phase::Running, time(1)));
        assert_eq!(state.phase, Phase::Created);
    }

    #[test]
    fn a_vm_is_told_from_a_container() {
        let mut state = State::created(time(0), vec![]);
        state.kind = Kind::Vm;
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""kind":"vm""#), "{text}");
        assert_eq!(serde_json::from_str::<State>(&text).unwrap().kind, Kind::Vm);
    }

    #[test]
    fn a_vm_boots_until_somebody_has_seen_that_it_is_up() {
        let mut state = State::created(time(0), vec![]);
        state.kind = Kind::Vm;
        let mut state = state.starting(time(1), "boot".into(), ProcessId { pid: 7, start_ticks: 9 });
        assert!(!state.is_booting(time(2)));
        state.advance(Phase::Running, time(2));
        assert!(state.is_booting(time(3)) && !state.is_booting(time(2000)));
        state.booted_at = Some(time(4));
        assert!(!state.is_booting(time(5)));
        state.booted_at = None;
        state.kind = Kind::Container;
        assert!(!state.is_booting(time(3)));
    }

    #[test]
    fn warnings_are_bounded_and_the_newest_stay() {
        let mut state = State::created(time(0), vec![]);
        (0..100).for_each(|n| state.warn(n.to_string()));
        assert_eq!(state.warnings.len(), State::MAX_WARNINGS);
        assert_eq!(state.warnings.last().unwrap(), "99");
    }
}
