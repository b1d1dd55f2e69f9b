//! Health checks, with docker's meaning: what is asked for, what is run, and what came of it.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Setting;
use crate::failure::{Class, Failure};

/// Results that are kept, the newest among them.
pub const LOG_LENGTH: usize = 5;

/// Of the output of a check, so many bytes are kept.
pub const OUTPUT_LIMIT: usize = 4096;

/// The exit code of a check that had none: it took too long, or was never run.
pub const NO_EXIT_CODE: i32 = -1;

const DEFAULT_INTERVAL_MS: u64 = 30_000;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const DEFAULT_START_INTERVAL_MS: u64 = 5_000;
const DEFAULT_RETRIES: u32 = 3;

/// What a check runs, written as docker's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum HealthTest {
    /// Nothing, whatever the image says: `["NONE"]`.
    Off,
    /// A program and its arguments: `["CMD", ...]`.
    Program(Vec<String>),
    /// A line for the image's shell: `["CMD-SHELL", LINE]`.
    Shell(String),
}

impl TryFrom<Vec<String>> for HealthTest {
    type Error = Failure;

    fn try_from(words: Vec<String>) -> Result<HealthTest, Failure> {
        match words.split_first() {
            Some((first, [])) if first == "NONE" => Ok(HealthTest::Off),
            Some((first, [line])) if first == "CMD-SHELL" => Ok(HealthTest::Shell(line.clone())),
            Some((first, program)) if first == "CMD" && !program.is_empty() => {
                Ok(HealthTest::Program(program.to_vec()))
            }
            _ => {
                let message = format!("{words:?} is no health check");
                let hint = "write [\"CMD\", PROGRAM, ARGUMENT...], [\"CMD-SHELL\", LINE] or [\"NONE\"]";
                Err(Failure::new(Class::Usage, message).hint(hint).about(Setting::Health))
            }
        }
    }
}

impl From<HealthTest> for Vec<String> {
    fn from(test: HealthTest) -> Vec<String> {
        match test {
            HealthTest::Off => vec!["NONE".to_owned()],
            HealthTest::Program(words) => [vec!["CMD".to_owned()], words].concat(),
            HealthTest::Shell(line) => vec!["CMD-SHELL".to_owned(), line],
        }
    }
}

impl FromStr for HealthTest {
    type Err = Failure;

    /// A line for the shell; or docker's list in JSON, as podman takes it.
    fn from_str(text: &str) -> Result<HealthTest, Failure> {
        if let Ok(words) = serde_json::from_str::<Vec<String>>(text) {
            return words.try_into();
        }
        match text.trim() {
            "" => Err(Failure::new(Class::Usage, "the health check is empty")
                .hint("give a command that succeeds when all is well; --no-healthcheck is for none")
                .about(Setting::Health)),
            _ => Ok(HealthTest::Shell(text.to_owned())),
        }
    }
}

impl fmt::Display for HealthTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthTest::Shell(line) if serde_json::from_str::<Vec<String>>(line).is_err() => f.write_str(line),
            test => {
                let words = Vec::from(test.clone());
                f.write_str(&serde_json::to_string(&words).map_err(|_| fmt::Error)?)
            }
        }
    }
}

/// What is asked for, by a user or by an image; what is `None` is left to the image, or to the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthRequest {
    /// What is run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<HealthTest>,
    /// Milliseconds between two checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Milliseconds that one may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds after a start in which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Milliseconds between two checks in that time, before the first success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval_ms: Option<u64>,
    /// So many failures in a row mean that it is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl HealthRequest {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == HealthRequest::default()
    }

    /// This, and where it says nothing `image`.
    pub fn over(&self, image: &HealthRequest) -> HealthRequest {
        HealthRequest {
            test: self.test.clone().or_else(|| image.test.clone()),
            interval_ms: self.interval_ms.or(image.interval_ms),
            timeout_ms: self.timeout_ms.or(image.timeout_ms),
            start_period_ms: self.start_period_ms.or(image.start_period_ms),
            start_interval_ms: self.start_interval_ms.or(image.start_interval_ms),
            retries: self.retries.or(image.retries),
        }
    }

    /// What is run; `None` when nothing is. `shell` is what a line is given to, `/bin/sh -c` when it is empty.
    pub fn check(&self, shell: &[String]) -> Option<HealthCheck> {
        let command = match self.test.as_ref()? {
            HealthTest::Off => return None,
            HealthTest::Program(words) => words.clone(),
            HealthTest::Shell(line) => {
                let shell = match shell {
                    [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
                    shell => shell.to_vec(),
                };
                [shell, vec![line.clone()]].concat()
            }
        };
        Some(HealthCheck {
            command,
            interval_ms: self.interval_ms.unwrap_or(DEFAULT_INTERVAL_MS),
            timeout_ms: self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS),
            start_period_ms: self.start_period_ms.unwrap_or(0),
            start_interval_ms: self.start_interval_ms.unwrap_or(DEFAULT_START_INTERVAL_MS),
            retries: self.retries.unwrap_or(DEFAULT_RETRIES),
        })
    }
}

/// A time of a health check, as `1m30s`, in milliseconds; `None` for 0, which leaves it to the image.
///
/// # Errors
/// [`Class::Usage`] for what is no time, and for one below a millisecond.
pub fn parse_time(text: &str) -> Result<Option<u64>, Failure> {
    let wrong = |why: &str| {
        Failure::new(Class::Usage, format!("'{text}' {why}"))
            .hint("write a number with its unit, as in 500ms, 30s or 1m30s")
    };
    if text == "0" {
        return Ok(None);
    }
    let time: SignedDuration = text.parse().map_err(|_| wrong("is no time"))?;
    match (time.is_zero(), u64::try_from(time.as_millis())) {
        (true, _) => Ok(None),
        (false, Ok(ms @ 1..)) => Ok(Some(ms)),
        _ => Err(wrong("is less than a millisecond")),
    }
}

/// A time as [`parse_time`] reads it.
pub fn time_text(ms: u64) -> String {
    match ms.is_multiple_of(1000) {
        true => format!("{}s", ms / 1000),
        false => format!("{ms}ms"),
    }
}

/// A check that is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments; 0 is well, everything else is not.
    pub command: Vec<String>,
    /// Milliseconds between the end of one and the next.
    pub interval_ms: u64,
    /// Milliseconds that one may take.
    pub timeout_ms: u64,
    /// Milliseconds after a start in which failures do not count.
    pub start_period_ms: u64,
    /// Milliseconds between two in that time, before the first success.
    pub start_interval_ms: u64,
    /// So many failures in a row mean that it is unhealthy.
    pub retries: u32,
}

/// How a machine is by its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not enough of them have failed.
    Starting,
    /// The last checks did not fail too often.
    Healthy,
    /// They did, or it does not run.
    Unhealthy,
}

impl HealthStatus {
    /// The status in one word.
    pub fn word(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// When it began.
    pub start: Timestamp,
    /// When it was over.
    pub end: Timestamp,
    /// Its status, as a shell shows it; [`NO_EXIT_CODE`] when it has none.
    pub exit_code: i32,
    /// What it wrote, or why it has no status; at most [`OUTPUT_LIMIT`] bytes, and a word more.
    pub output: String,
}

/// The health of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last checks, oldest first; at most [`LOG_LENGTH`].
    pub log: Vec<Probe>,
}

impl Health {
    /// When a run begins; what was found in earlier ones is still told.
    pub fn starting(earlier: Option<Health>) -> Health {
        Health {
            status: HealthStatus::Starting,
            failing_streak: 0,
            log: earlier.map(|health| health.log).unwrap_or_default(),
        }
    }

    /// Takes a result. `in_start_period`: the check began in that time.
    pub fn record(&mut self, probe: Probe, check: &HealthCheck, in_start_period: bool) {
        let has_succeeded = probe.exit_code == 0;
        let surplus = (self.log.len() + 1).saturating_sub(LOG_LENGTH);
        self.log.drain(..surplus);
        self.log.push(probe);
        if has_succeeded {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
            return;
        }
        // The first success ends the start period: from then on failures count.
        if self.status == HealthStatus::Starting && in_start_period {
            return;
        }
        self.failing_streak = self.failing_streak.saturating_add(1);
        if self.failing_streak >= check.retries {
            self.status = HealthStatus::Unhealthy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(retries: u32) -> HealthCheck {
        let test = HealthTest::Program(vec!["true".into()]);
        let request = HealthRequest {
            test: Some(test),
            retries: Some(retries),
            ..HealthRequest::default()
        };
        request.check(&[]).unwrap()
    }

    fn probe(exit_code: i32) -> Probe {
        Probe {
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            exit_code,
            output: String::new(),
        }
    }

    /// The status after each of these results; `Err` in the start period.
    fn statuses(retries: u32, results: &[Result<i32, i32>]) -> Vec<(HealthStatus, u32)> {
        let mut health = Health::starting(None);
        let after = |result: &Result<i32, i32>| {
            let (Ok(code) | Err(code)) = *result;
            health.record(probe(code), &check(retries), result.is_err());
            (health.status, health.failing_streak)
        };
        results.iter().map(after).collect()
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(
            statuses(2, &[Ok(1), Ok(1), Ok(1), Ok(0), Ok(-1), Ok(0), Ok(137), Ok(2)]),
            [
                (Starting, 1),
                (Unhealthy, 2),
                (Unhealthy, 3),
                (Healthy, 0),
                (Healthy, 1),
                (Healthy, 0),
                (Healthy, 1),
                (Unhealthy, 2)
            ]
        );
    }

    #[test]
    fn failures_of_the_start_period_do_not_count_before_the_first_success() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(
            statuses(1, &[Err(1), Err(1), Ok(1)]),
            [(Starting, 0), (Starting, 0), (Unhealthy, 1)]
        );
        assert_eq!(
            statuses(1, &[Err(1), Err(0), Err(1)]),
            [(Starting, 0), (Healthy, 0), (Unhealthy, 1)]
        );
    }

    #[test]
    fn the_last_results_are_kept_also_across_runs() {
        let mut health = Health::starting(None);
        (0..9).for_each(|code| health.record(probe(code), &check(1), false));
        let codes: Vec<i32> = health.log.iter().map(|probe| probe.exit_code).collect();
        assert_eq!(codes, [4, 5, 6, 7, 8]);
        let next = Health::starting(Some(health));
        assert_eq!(
            (next.status, next.failing_streak, next.log.len()),
            (HealthStatus::Starting, 0, 5)
        );
    }

    #[test]
    fn what_the_user_says_is_over_what_the_image_says() {
        let image = HealthRequest {
            test: Some(HealthTest::Shell("curl localhost".into())),
            interval_ms: Some(1),
            retries: Some(9),
            ..HealthRequest::default()
        };
        let user = HealthRequest {
            interval_ms: Some(2),
            ..HealthRequest::default()
        };
        let check = user.over(&image).check(&[]).unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "curl localhost"]);
        assert_eq!((check.interval_ms, check.retries, check.timeout_ms), (2, 9, 30_000));
        let ash = user.over(&image).check(&["/bin/ash".into(), "-ec".into()]).unwrap();
        assert_eq!(ash.command, ["/bin/ash", "-ec", "curl localhost"]);
        let off = HealthRequest {
            test: Some(HealthTest::Off),
            ..HealthRequest::default()
        };
        assert_eq!(off.over(&image).check(&[]), None);
        assert_eq!(user.check(&[]), None);
    }

    #[test]
    fn checks_and_times_are_read_as_users_write_them() {
        let read = |text: &str| text.parse::<HealthTest>();
        assert_eq!(read("curl -f x").unwrap(), HealthTest::Shell("curl -f x".into()));
        assert_eq!(
            read(r#"["CMD","a","b c"]"#).unwrap(),
            HealthTest::Program(vec!["a".into(), "b c".into()])
        );
        for text in [
            "curl -f x",
            r#"["CMD","a"]"#,
            r#"["NONE"]"#,
            "[ -f /x ]",
            r#"["CMD-SHELL","[\"a\"]"]"#,
        ] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for text in ["", " ", r#"["CMD"]"#, r#"["a"]"#, "[]"] {
            let failure = read(text).unwrap_err();
            assert!(failure.class == Class::Usage && failure.hint.is_some(), "{text}");
        }
        let times = ["0", "0s", "500ms", "30s", "1m30s", "1.5h"].map(|text| parse_time(text).unwrap());
        assert_eq!(
            times,
            [None, None, Some(500), Some(30_000), Some(90_000), Some(5_400_000)]
        );
        for text in ["30", "", "-3s", "1us", "soon"] {
            assert_eq!(parse_time(text).unwrap_err().class, Class::Usage, "{text}");
        }
        assert_eq!([1500, 90_000].map(time_text), ["1500ms", "90s"]);
    }
}
