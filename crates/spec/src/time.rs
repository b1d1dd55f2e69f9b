//! Points in time as people write them, in the forms that docker takes for `--since` and `--until`.

use crate::{Class, Failure};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A date, a time in seconds since 1970, or an age before now. Without a zone it is this host's time.
///
/// # Errors
/// [`Class::Usage`] for anything else, naming the flag.
pub fn parse_time(flag: &str, text: &str) -> Result<Timestamp, Failure> {
    let now = Timestamp::now();
    let ago = || now.checked_sub(age(text)?).ok();
    date(text).or_else(|| unix(text)).or_else(ago).ok_or_else(|| {
        Failure::new(Class::Usage, format!("{flag} {text} is no time"))
            .hint("use a date (2026-11-23, 2026-11-23T03:05:00Z), seconds since 1970, or an age (90s, 10m, 1h30m, 2d)")
    })
}

fn date(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // jiff takes a bare hour as the beginning of a date, and numbers as years.
    if !text.contains('-') {
        return None;
    }
    let civil = match text.parse::<DateTime>() {
        Ok(at) => at,
        Err(_) => text.parse::<Date>().ok()?.to_datetime(jiff::civil::Time::midnight()),
    };
    Some(civil.to_zoned(TimeZone::system()).ok()?.timestamp())
}

/// `1795403100` or `1795403100.000000001`. Small numbers are more likely a mistake than a second of 1970.
fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9}").parse().ok()?;
    let seconds: i64 = seconds.parse().ok()?;
    (seconds >= 86_400 * 365)
        .then(|| Timestamp::new(seconds, nanoseconds).ok())
        .flatten()
}

/// `90s`, `1h30m`, `1.5h`, `500ms`; also days, and the long names that people try.
fn age(text: &str) -> Option<SignedDuration> {
    let mut rest = text;
    let mut all = SignedDuration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit_s = match unit {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        all = all.checked_add(SignedDuration::try_from_secs_f64(number * unit_s).ok()?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_forms_that_docker_takes() {
        let at = |text: &str| parse_time("--since", text).unwrap();
        for text in [
            "2026-11-23T03:05:00Z",
            "1795403100",
            "1795403100.000000000",
            "2026-11-23T04:05:00+01:00",
        ] {
            assert_eq!(at(text).as_second(), 1_795_403_100, "{text}");
        }
        assert_eq!(at("1795403100.5").subsec_nanosecond(), 500_000_000);
        // Without a zone: this host's, whatever that is.
        for (short, long) in [
            ("2026-11-23", "2026-11-23T00:00:00"),
            ("2026-11-23 03:05", "2026-11-23T03:05:00"),
        ] {
            assert_eq!(at(short), at(long));
        }
        for (text, seconds) in [
            ("2h", 7200),
            ("1h30m", 5400),
            ("5min", 300),
            ("1.5h", 5400),
            ("2d", 172_800),
        ] {
            let ago = Timestamp::now().as_second() - at(text).as_second();
            assert!((seconds - 1..=seconds + 1).contains(&ago), "{text}");
        }
        for bad in [
            "",
            "h",
            "10",
            "10x",
            "yesterday",
            "\u{e4}",
            "1h30",
            ".",
            "..s",
            "2026-13-01",
        ] {
            assert!(parse_time("--since", bad).is_err(), "{bad}");
        }
    }
}
