//! Points at which a test can end the process as a power cut would, or hold it while something else of the machine is ended.
//!
//! Every step that changes the host passes one. In normal use nothing happens there. A test counts through them ("at the n-th", for
//! n = 0, 1, 2, ... until the operation completes) or names one, and each time the next command must bring the host back to a clean state.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Which point, and what happens there: as text `[stop ]NUMBER` or `[stop ]NAME[#NTH]`, both counted from 0 (`NTH`: how often the point
/// of that name was passed before).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    point: Point,
    /// The process stands still until it is sent SIGCONT, and goes on; else it ends.
    is_stop: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Point {
    Number(u32),
    Name { name: String, nth: u32 },
}

impl FromStr for At {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<At, Infallible> {
        let (is_stop, text) = match text.strip_prefix("stop ") {
            Some(text) => (true, text),
            None => (false, text),
        };
        let point = match (text.parse(), text.rsplit_once('#')) {
            (Ok(number), _) => Point::Number(number),
            (_, Some((name, nth))) if nth.parse::<u32>().is_ok() => Point::Name {
                name: name.to_owned(),
                nth: nth.parse().unwrap_or_default(),
            },
            _ => Point::Name {
                name: text.to_owned(),
                nth: 0,
            },
        };
        Ok(At { point, is_stop })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_stop { "stop " } else { "" })?;
        match &self.point {
            Point::Number(number) => write!(f, "{number}"),
            Point::Name { name, nth } => write!(f, "{name}#{nth}"),
        }
    }
}

/// Counts the points passed, and ends or holds the process at one.
#[derive(Debug, Default)]
pub struct Killpoints {
    at: Option<At>,
    passed: AtomicU32,
    /// How often the named one was.
    same: AtomicU32,
}

impl Killpoints {
    /// At that point; never with `None`.
    pub fn new(at: Option<At>) -> Killpoints {
        Killpoints {
            at,
            ..Killpoints::default()
        }
    }

    /// One point. `name` shows up on stderr when the process ends or is held here.
    pub fn pass(&self, name: &str) {
        let number = self.passed.fetch_add(1, Ordering::Relaxed);
        let Some(at) = &self.at else { return };
        let is_here = match &at.point {
            Point::Number(wanted) => *wanted == number,
            Point::Name { name: wanted, nth } => wanted == name && self.same.fetch_add(1, Ordering::Relaxed) == *nth,
        };
        if !is_here {
            return;
        }
        eprintln!("killpoint {number}: {name}");
        if at.is_stop {
            let _ = kill_process(getpid(), Signal::STOP);
            return;
        }
        // SIGKILL, not abort(): no handler, no core, no unwinding, exactly as `kill -9`.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_its_text() {
        for text in ["7", "stop 7", "save: guest frozen#0", "stop start: volumes ready#1"] {
            let at: At = text.parse().unwrap();
            assert_eq!(at.to_string(), text);
        }
        let at: At = "idle: saved".parse().unwrap();
        assert_eq!(at.to_string(), "idle: saved#0");
    }

    #[test]
    fn nothing_happens_at_other_points() {
        let points = Killpoints::new(Some("b#1".parse().unwrap()));
        for name in ["a", "b", "a"] {
            points.pass(name);
        }
        assert_eq!(points.passed.load(Ordering::Relaxed), 3);
    }
}
