//! Signals, and how people and images write them: a number, or a name with or without `SIG`, in any case.
//!
//! The names are Linux's; its other names for some of them are those that other container runtimes know too. Real-time
//! signals are counted as the C libraries of guests do, which keep the kernel's first two for themselves: `SIGRTMIN` is 34
//! (systemd's stop signal is `SIGRTMIN+3`), `SIGRTMAX` is 64.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal as Known;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};

/// Second names of signals, and their first ones.
const ALIASES: [(&str, &str); 4] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO"), ("UNUSED", "SYS")];

/// The first and the last real-time signal of C libraries.
const REAL_TIME: (i32, i32) = (34, 64);

/// What to use in place of something that is no signal.
pub const HINT: &str = "use a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64";

/// A signal of Linux. Its JSON is its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signal(i32);

impl Signal {
    /// SIGTERM.
    pub const TERM: Signal = Signal(15);

    /// Its Linux number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Signal, Failure> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        number(text)
            .or_else(|| real_time(bare))
            .or_else(|| named(bare))
            .map(Signal)
            .ok_or_else(|| Failure::new(Class::Usage, format!("'{text}' is not a signal")).hint(HINT))
    }
}

/// Its name; its number where it has none.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = REAL_TIME;
        match (self.0, Known::try_from(self.0)) {
            (_, Ok(known)) => f.write_str(known.as_str()),
            (number, _) if number == first => f.write_str("SIGRTMIN"),
            (number, _) if (first..=last).contains(&number) => write!(f, "SIGRTMIN+{}", number - first),
            (number, _) => write!(f, "{number}"),
        }
    }
}

impl TryFrom<String> for Signal {
    type Error = Failure;

    fn try_from(text: String) -> Result<Signal, Failure> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> String {
        signal.to_string()
    }
}

fn number(text: &str) -> Option<i32> {
    digits(text).filter(|number| (1..=64).contains(number))
}

/// Digits alone: no sign, no space.
fn digits(text: &str) -> Option<i32> {
    let are_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| text.parse().ok()).flatten()
}

fn real_time(bare: &str) -> Option<i32> {
    let (first, last) = REAL_TIME;
    let number = match (bare.strip_prefix("RTMIN"), bare.strip_prefix("RTMAX")) {
        (Some(""), _) => first,
        (_, Some("")) => last,
        (Some(rest), _) => first.checked_add(digits(rest.strip_prefix('+')?)?)?,
        (_, Some(rest)) => last.checked_sub(digits(rest.strip_prefix('-')?)?)?,
        (None, None) => return None,
    };
    (first..=last).contains(&number).then_some(number)
}

fn named(bare: &str) -> Option<i32> {
    let first = ALIASES.iter().find(|(alias, _)| *alias == bare).map(|(_, name)| *name);
    let name = format!("SIG{}", first.unwrap_or(bare));
    Known::from_str(&name).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<i32, Failure> {
        text.parse().map(Signal::number)
    }

    #[test]
    fn every_signal_has_a_name_that_reads_back() {
        for number in 1..=64 {
            let name = Signal(number).to_string();
            assert_eq!(parse(&name).unwrap(), number, "{name}");
        }
        assert_eq!(Signal::TERM.to_string(), "SIGTERM");
        assert_eq!(Signal(37).to_string(), "SIGRTMIN+3");
    }

    #[test]
    fn every_name_of_linux_is_known() {
        // `kill -l`, in the order of the numbers.
        let names = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN \
                     TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
        for (number, name) in (1..).zip(names.split(' ')) {
            for text in [
                name.to_owned(),
                format!("SIG{name}"),
                format!("sig{}", name.to_lowercase()),
            ] {
                assert_eq!(parse(&text).unwrap(), number, "{text}");
            }
        }
        for (text, number) in [("IOT", 6), ("SIGCLD", 17), ("POLL", 29)] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn real_time_signals_are_counted_from_either_end() {
        for (text, number) in [
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmin+30", 64),
            ("RTMAX", 64),
            ("SIGRTMAX-14", 50),
            ("sigrtmax-30", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_that_the_kernel_has() {
        assert_eq!((parse("1").unwrap(), parse("64").unwrap()), (1, 64));
        for bad in [
            "",
            "SIG",
            "FOO",
            "SIGFOO",
            "0",
            "65",
            "-9",
            "+9",
            " 9",
            "9 ",
            "99999999999",
            "RTMIN-1",
            "RTMIN+31",
            "RTMIN+-1",
            "RTMAX+1",
            "RTMAX-31",
            "RTMIN3",
            "SIGSIGTERM",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
