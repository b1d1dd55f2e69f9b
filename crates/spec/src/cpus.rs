//! CPUs of a machine: how many it has, how much of this host's time they get, and on which of this host's they run.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Setting;
use crate::failure::{Class, Failure};

/// Thousandths of a CPU.
const MILLI: u32 = 1000;

/// Least share of a CPU that the kernel enforces, in thousandths: 1 ms in 100 ms.
const LEAST_MILLI: u32 = 10;

/// Numbers of CPUs end here.
const MOST_CPUS: u32 = 1024;

/// So many CPUs, as `--cpus` has it: a part of one is one whose time is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// Virtual CPUs.
    pub count: u32,
    /// The time that they get together, in thousandths of a CPU of this host; `None`: as much as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_milli: Option<u32>,
}

impl FromStr for Cpus {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Cpus, Failure> {
        let wrong = |why: &str| {
            Failure::new(Class::Usage, format!("'{text}' {why}"))
                .hint("write a number of CPUs, as in 2, 1.5 or 0.5; at least 0.01")
                .about(Setting::Cpus)
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |part: &str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) {
            return Err(wrong("is no number of CPUs"));
        }
        let whole: u32 = whole.parse().map_err(|_| wrong("is no number of CPUs"))?;
        let thousandths: u32 = format!("{fraction:0<3}")[..3].parse().unwrap_or_default();
        if whole > MOST_CPUS * 1000 {
            return Err(wrong("is more CPUs than any host has"));
        }
        match (whole * MILLI).checked_add(thousandths) {
            Some(0) | None => Err(wrong("is no number of CPUs")),
            Some(milli) if milli < LEAST_MILLI => Err(wrong("is too little for a CPU")),
            Some(milli) => Ok(Cpus {
                count: milli.div_ceil(MILLI),
                limit_milli: (!milli.is_multiple_of(MILLI)).then_some(milli),
            }),
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit_milli {
            None => write!(f, "{}", self.count),
            Some(milli) => {
                let text = format!("{}.{:03}", milli / MILLI, milli % MILLI);
                f.write_str(text.trim_end_matches('0'))
            }
        }
    }
}

/// CPUs of this host, by their numbers; none are all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// Whether it is all of them.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Their numbers, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<T: IntoIterator<Item = u32>>(numbers: T) -> CpuSet {
        CpuSet(numbers.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = Failure;

    /// `0-3,6`; nothing is all.
    fn from_str(text: &str) -> Result<CpuSet, Failure> {
        let wrong = || {
            Failure::new(Class::Usage, format!("'{text}' is no list of CPUs"))
                .hint("write their numbers, as in 0-3,6; 'lscpu' shows those of this host")
                .about(Setting::CpuSet)
        };
        let number = |text: &str| -> Result<u32, Failure> {
            let number = text.trim().parse::<u32>().ok().filter(|n| *n < MOST_CPUS);
            number.ok_or_else(wrong)
        };
        let mut numbers = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            numbers.extend(first..=last);
        }
        Ok(CpuSet(numbers))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in self.numbers() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        let text = |(first, last): &(u32, u32)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

impl TryFrom<String> for CpuSet {
    type Error = Failure;

    fn try_from(text: String) -> Result<CpuSet, Failure> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> String {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_cpu_is_one_whose_time_is_limited() {
        let read = |text: &str| text.parse::<Cpus>().map(|cpus| (cpus.count, cpus.limit_milli)).unwrap();
        assert_eq!(read("2"), (2, None));
        assert_eq!(read("2.000"), (2, None));
        assert_eq!(read("0.5"), (1, Some(500)));
        assert_eq!(read("1.5"), (2, Some(1500)));
        assert_eq!(read("0.0123456"), (1, Some(12)));
        for text in ["2", "0.5", "1.25", "0.01"] {
            assert_eq!(text.parse::<Cpus>().unwrap().to_string(), text);
        }
        for text in [
            "0",
            "0.0",
            "0.009",
            "",
            "1.",
            ".5",
            "-1",
            "1e3",
            "two",
            "99999999999",
            "1048577",
        ] {
            let failure = text.parse::<Cpus>().unwrap_err();
            assert!(failure.class == Class::Usage && failure.hint.is_some(), "{text}");
        }
    }

    #[test]
    fn cpus_of_the_host_are_numbers_and_ranges() {
        let read = |text: &str| text.parse::<CpuSet>().unwrap();
        assert_eq!(read("3,0-2, 7").numbers().collect::<Vec<_>>(), [0, 1, 2, 3, 7]);
        assert_eq!(read("3,0-2,7").to_string(), "0-3,7");
        assert!(read("").is_all());
        assert_eq!(serde_json::to_string(&read("1,2")).unwrap(), "\"1-2\"");
        assert_eq!(serde_json::from_str::<CpuSet>("\"1-2\"").unwrap(), read("1,2"));
        for text in ["a", "1-", "-1", "3-1", "1,,2", "0-99999999999", "5000"] {
            assert_eq!(text.parse::<CpuSet>().unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
