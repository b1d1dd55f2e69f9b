//! Restart policies: what the user wants when a run ends, and the waiting times between runs. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::state::{Exit, Phase, State};

/// Waiting time before the first restart; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Longest waiting time.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A run of this length was healthy: the next restart is a first one again.
const HEALTHY: Duration = Duration::from_secs(600);

/// What happens when a run ends without anybody's asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again when it failed, at most so often in a row.
    OnFailure {
        /// `None`: for ever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<NonZeroU32>,
    },
    /// It is started again, and at boot.
    Always,
    /// As `Always`, but at boot only when its user did not stop it.
    UnlessStopped,
}

impl RestartPolicy {
    /// Whether it is never started again.
    pub fn is_no(&self) -> bool {
        *self == RestartPolicy::No
    }

    /// Whether `zmachine start --all-enabled` starts a machine in this state.
    pub fn starts_at_boot(self, state: &State) -> bool {
        if state.phase.is_active() {
            return false;
        }
        match self {
            RestartPolicy::No => false,
            RestartPolicy::Always => state.starts > 0,
            RestartPolicy::UnlessStopped => state.starts > 0 && !state.stopped_by_user,
            RestartPolicy::OnFailure { .. } => matches!(state.phase, Phase::Failed { .. }) && !state.stopped_by_user,
        }
    }

    /// What follows a run that nobody asked to end, after `restarts` restarts in a row before it.
    pub fn after(self, ended: Ended, restarts: u32) -> Next {
        let wanted = match self {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure { .. } => ended.failed,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        // A machine that never came up in its user's own start is a mistake to be told, not to be repeated.
        if !wanted || (ended.ran.is_none() && restarts == 0) {
            return Next::End;
        }
        let restarts = match ended.ran {
            Some(time) if time >= HEALTHY => 0,
            _ => restarts,
        };
        if let RestartPolicy::OnFailure { most: Some(most) } = self
            && restarts >= most.get()
        {
            return Next::GiveUp;
        }
        Next::Restart {
            wait: wait(restarts),
            restarts: restarts.saturating_add(1),
        }
    }
}

/// Waiting time before the restart after `restarts` others.
fn wait(restarts: u32) -> Duration {
    let factor = 1u32.checked_shl(restarts).unwrap_or(u32::MAX);
    FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT)
}

/// A run that nobody asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// It ended with anything but success.
    pub failed: bool,
    /// How long its entrypoint ran; `None` when it never did.
    pub ran: Option<Duration>,
}

impl Ended {
    /// Whether a phase is the end of a run that failed.
    pub fn is_failure(phase: &Phase) -> bool {
        match phase {
            Phase::Stopped { exit } => !matches!(exit, Exit::Code(0) | Exit::PoweredOff),
            Phase::Failed { .. } => true,
            _ => false,
        }
    }
}

/// What follows the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// Nothing, since it was restarted as often as it may be.
    GiveUp,
    /// Another run.
    Restart {
        /// Time before it.
        wait: Duration,
        /// Its number in the row.
        restarts: u32,
    },
}

impl FromStr for RestartPolicy {
    type Err = Failure;

    fn from_str(text: &str) -> Result<RestartPolicy, Failure> {
        let policy = match text.split_once(':') {
            None => match text {
                "no" => Some(RestartPolicy::No),
                "on-failure" => Some(RestartPolicy::OnFailure { most: None }),
                "always" => Some(RestartPolicy::Always),
                "unless-stopped" => Some(RestartPolicy::UnlessStopped),
                _ => None,
            },
            Some(("on-failure", most)) => {
                let most = most.parse().ok();
                most.map(|most| RestartPolicy::OnFailure { most: Some(most) })
            }
            Some(_) => None,
        };
        policy.ok_or_else(|| {
            Failure::new(Class::Usage, format!("there is no restart policy '{text}'"))
                .hint("use no, on-failure, on-failure:3, always or unless-stopped")
        })
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestartPolicy::No => f.write_str("no"),
            RestartPolicy::OnFailure { most: None } => f.write_str("on-failure"),
            RestartPolicy::OnFailure { most: Some(most) } => write!(f, "on-failure:{most}"),
            RestartPolicy::Always => f.write_str("always"),
            RestartPolicy::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_secs(3));

    fn waits(policy: RestartPolicy, ended: Ended, runs: usize) -> Vec<u64> {
        let mut restarts = 0;
        let mut waits = Vec::new();
        for _ in 0..runs {
            match policy.after(ended, restarts) {
                Next::Restart { wait, restarts: next } => {
                    waits.push(wait.as_secs());
                    restarts = next;
                }
                Next::End | Next::GiveUp => break,
            }
        }
        waits
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let ended = Ended {
            failed: true,
            ran: SHORT,
        };
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300];
        assert_eq!(waits(RestartPolicy::Always, ended, 11), expected);
        assert_eq!(wait(u32::MAX), LONGEST_WAIT);
    }

    #[test]
    fn a_healthy_run_begins_the_row_anew() {
        let ended = Ended {
            failed: true,
            ran: Some(HEALTHY),
        };
        let policy = RestartPolicy::OnFailure {
            most: NonZeroU32::new(2),
        };
        assert_eq!(
            policy.after(ended, 2),
            Next::Restart {
                wait: FIRST_WAIT,
                restarts: 1
            }
        );
        assert_eq!(
            policy.after(
                Ended {
                    failed: true,
                    ran: SHORT
                },
                2
            ),
            Next::GiveUp
        );
    }

    #[test]
    fn policies_differ_in_what_they_restart() {
        let good = Ended {
            failed: false,
            ran: SHORT,
        };
        let bad = Ended {
            failed: true,
            ran: SHORT,
        };
        for (policy, after_good, after_bad) in [
            ("no", 0, 0),
            ("on-failure", 0, 5),
            ("on-failure:3", 0, 3),
            ("always", 5, 5),
        ] {
            let policy: RestartPolicy = policy.parse().unwrap();
            assert_eq!(waits(policy, good, 5).len(), after_good, "{policy}");
            assert_eq!(waits(policy, bad, 5).len(), after_bad, "{policy}");
        }
    }

    #[test]
    fn a_start_that_never_came_up_is_not_repeated_unless_it_was_a_restart() {
        let ended = Ended {
            failed: true,
            ran: None,
        };
        assert_eq!(RestartPolicy::Always.after(ended, 0), Next::End);
        assert!(matches!(RestartPolicy::Always.after(ended, 1), Next::Restart { .. }));
    }

    #[test]
    fn at_boot_only_what_its_user_wants_is_started() {
        let mut state = State::created(jiff::Timestamp::UNIX_EPOCH, vec![]);
        assert!(!RestartPolicy::Always.starts_at_boot(&state), "never started");
        state.starts = 1;
        state.phase = Phase::Stopped { exit: Exit::Code(0) };
        assert!(RestartPolicy::Always.starts_at_boot(&state) && RestartPolicy::UnlessStopped.starts_at_boot(&state));
        state.stopped_by_user = true;
        assert!(RestartPolicy::Always.starts_at_boot(&state) && !RestartPolicy::UnlessStopped.starts_at_boot(&state));
        assert!(!RestartPolicy::No.starts_at_boot(&state));
    }

    #[test]
    fn policies_are_read_and_written() {
        for text in ["no", "on-failure", "on-failure:7", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:0", "on-failure:x", "always:3"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }
}
