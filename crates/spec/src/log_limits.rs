//! How much of a log is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bytes;
use crate::failure::{Class, Failure};

/// Smallest size of a file in bytes: one write of the largest kind must fit.
const MIN_FILE_BYTES: u64 = 1 << 20;

/// How much of a log is kept. The default keeps a gigabyte, none of it longer than thirty days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLimits {
    /// A file is full at this size in bytes.
    pub file_bytes: u64,
    /// Number of files, the one that is written among them.
    pub files: u32,
    /// A file is full after this time in seconds.
    pub file_age_s: u64,
    /// A full file is removed after this time in seconds.
    pub keep_s: u64,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits {
            file_bytes: 64 << 20,
            files: 16,
            file_age_s: 86_400,
            keep_s: 30 * 86_400,
        }
    }
}

impl LogLimits {
    /// Whether nothing was chosen.
    pub fn is_default(&self) -> bool {
        *self == LogLimits::default()
    }

    /// After this time a file is full.
    pub fn file_age(&self) -> Duration {
        Duration::from_secs(self.file_age_s)
    }

    /// After this time a full file is removed.
    pub fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_s)
    }

    /// Sets one limit from `max-size=SIZE`, `max-files=N`, `rotate-after=TIME` or `max-age=TIME`.
    ///
    /// # Errors
    /// [`Class::Usage`] for another key or a value that makes no sense.
    pub fn set(&mut self, option: &str) -> Result<(), Failure> {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let bad = |why: String| {
            Failure::new(Class::Usage, format!("the log limit '{option}' makes no sense: {why}"))
                .hint("use max-size=64M, max-files=16, rotate-after=1d, max-age=30d")
        };
        match key {
            "max-size" => {
                let size = bytes::parse(value).map_err(|e| bad(e.to_string()))?;
                if size < MIN_FILE_BYTES {
                    return Err(bad("a log file has at least 1 MiB".to_owned()));
                }
                self.file_bytes = size;
            }
            // The second is docker's.
            "max-files" | "max-file" => {
                let files = value.parse().ok().filter(|n| (2..=1000).contains(n));
                self.files = files.ok_or_else(|| bad("the number of files is from 2 to 1000".to_owned()))?;
            }
            "rotate-after" => self.file_age_s = seconds(value).ok_or_else(|| bad(format!("'{value}' is no time")))?,
            "max-age" => self.keep_s = seconds(value).ok_or_else(|| bad(format!("'{value}' is no time")))?,
            _ => return Err(bad("there is no such option".to_owned())),
        }
        Ok(())
    }
}

/// `90s`, `10m`, `2h` or `7d` in seconds; at least one.
fn seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let count: u64 = text[..text.len() - 1].parse().ok()?;
    count.checked_mul(unit).filter(|s| *s > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_set_limits_and_nonsense_is_refused() {
        let mut limits = LogLimits::default();
        for option in [
            "max-size=2M",
            "max-files=9",
            "max-file=3",
            "max-age=2h",
            "rotate-after=90s",
        ] {
            limits.set(option).unwrap();
        }
        let wanted = LogLimits {
            file_bytes: 2 << 20,
            files: 3,
            file_age_s: 90,
            keep_s: 7200,
        };
        assert_eq!(limits, wanted);
        for bad in [
            "max-size=1",
            "max-size=x",
            "max-files=1",
            "max-age=0s",
            "max-age=5",
            "speed=9",
            "",
            "max-age=ä",
        ] {
            assert_eq!(limits.set(bad).unwrap_err().class, Class::Usage, "{bad}");
        }
        assert_eq!(limits, wanted);
    }
}
