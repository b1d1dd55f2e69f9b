//! Times and states in docker's words.

use jiff::Timestamp;
use zmachine_engine::views::MachineSummary;
use zmachine_spec::Class;
use zmachine_spec::{Failure, Phase};

/// When something is that never was.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// A time as docker has it, with nine digits.
pub fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), |at| format!("{at:.9}"))
}

/// How long ago, in words.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// The state of a machine in docker's word.
pub fn state(phase: &Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        // It has been told to start and runs in a moment; no word of docker's is nearer.
        Phase::Starting => "created",
        Phase::Running | Phase::Stopping => "running",
        Phase::Paused => "paused",
        Phase::Restarting { .. } => "restarting",
        Phase::Stopped { .. } | Phase::Failed { .. } => "exited",
    }
}

/// The exit code of a machine in a phase; 0 for one that has not ended.
pub fn exit_code(phase: &Phase) -> i64 {
    match phase {
        Phase::Stopped { exit } => exit.shell_code().into(),
        Phase::Failed { failure, .. } => failed_code(failure),
        _ => 0,
    }
}

/// The exit code of a machine that failed.
pub fn failed_code(failure: &Failure) -> i64 {
    match failure.class {
        Class::CommandNotFound => 127,
        Class::CommandNotExecutable => 126,
        _ => 128,
    }
}

/// The state of a machine as a listing has it; `last` is how the run before ended, of one that starts again.
pub fn status(machine: &MachineSummary, phase: &Phase, last: i64, now: Timestamp) -> String {
    let since = |at: Option<Timestamp>| at.map_or_else(|| "Less than a second".to_owned(), |at| age(at, now));
    let up = since(machine.started_at);
    match phase {
        Phase::Created | Phase::Starting => "Created".to_owned(),
        Phase::Running | Phase::Stopping => match machine.health {
            None => format!("Up {up}"),
            Some("starting") => format!("Up {up} (health: starting)"),
            Some(health) => format!("Up {up} ({health})"),
        },
        Phase::Paused => format!("Up {up} (Paused)"),
        Phase::Restarting { .. } => format!("Restarting ({last}) {} ago", since(machine.finished_at)),
        Phase::Stopped { .. } | Phase::Failed { .. } => {
            format!("Exited ({}) {} ago", exit_code(phase), since(machine.finished_at))
        }
    }
}

/// What a start failed by, in words by which clients tell a missing command from one that cannot be run: they take their own exit
/// code from the text.
pub fn start_failure(failure: &Failure, program: Option<&str>) -> String {
    let text = crate::http::text_of(failure);
    let program = program.unwrap_or_default();
    match failure.class {
        Class::CommandNotFound => format!("{text}: exec: {program:?}: executable file not found in $PATH"),
        Class::CommandNotExecutable => format!("{text}: exec: {program:?}: permission denied"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_largest_unit() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ] {
            assert_eq!(age(at(0), at(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn a_time_has_nine_digits() {
        let at: Timestamp = "2026-11-28T22:39:18.5Z".parse().unwrap();
        assert_eq!(time(Some(at)), "2026-11-28T22:39:18.500000000Z");
        assert_eq!(time(None), NEVER);
    }

    #[test]
    fn a_command_that_is_not_there_is_told_from_one_that_cannot_be_run() {
        let text = |class| start_failure(&Failure::new(class, "no"), Some("foo"));
        assert!(text(Class::CommandNotFound).contains("executable file not found"));
        assert!(text(Class::CommandNotExecutable).contains("permission denied"));
        assert_eq!(text(Class::Failed), "no");
    }
}
