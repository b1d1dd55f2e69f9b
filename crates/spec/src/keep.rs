//! Which of many snapshots are kept: `7d,4w` keeps the newest one of each of the last seven days and of each of the last four weeks that
//! have any. Days and weeks are those of UTC; the newest of all is always kept.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A span of which one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

/// How many are kept of which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep(Vec<(usize, Span)>);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Keep, String> {
        let bad = || {
            format!(
                "'{text}' does not say what to keep: '7d,4w' keeps one of each of 7 days and of each of 4 weeks (h, d, w, m, y)"
            )
        };
        let mut rules = Vec::new();
        for part in text.split(',') {
            let unit = part.chars().next_back().ok_or_else(bad)?;
            let span = match unit {
                'h' => Span::Hour,
                'd' => Span::Day,
                'w' => Span::Week,
                'm' => Span::Month,
                'y' => Span::Year,
                _ => return Err(bad()),
            };
            let number = &part[..part.len() - unit.len_utf8()];
            let number: u16 = number.parse().map_err(|_| bad())?;
            if number == 0 {
                return Err(bad());
            }
            rules.push((usize::from(number), span));
        }
        Ok(Keep(rules))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (number, span)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let unit = match span {
                Span::Hour => 'h',
                Span::Day => 'd',
                Span::Week => 'w',
                Span::Month => 'm',
                Span::Year => 'y',
            };
            write!(f, "{comma}{number}{unit}")?;
        }
        Ok(())
    }
}

impl Keep {
    /// The indices of those that are not kept, of all that were made at `times`, in any order.
    pub fn superfluous(&self, times: &[Timestamp]) -> Vec<usize> {
        let mut newest_first: Vec<usize> = (0..times.len()).collect();
        newest_first.sort_by_key(|at| std::cmp::Reverse(times[*at]));
        let mut kept: BTreeSet<usize> = newest_first.first().copied().into_iter().collect();
        for (number, span) in &self.0 {
            let mut seen = Vec::new();
            for at in &newest_first {
                let place = span.place(times[*at]);
                if seen.last() == Some(&place) {
                    continue;
                }
                if seen.len() == *number {
                    break;
                }
                seen.push(place);
                kept.insert(*at);
            }
        }
        (0..times.len()).filter(|at| !kept.contains(at)).collect()
    }
}

impl Span {
    /// Two times in the same span have the same place.
    fn place(self, time: Timestamp) -> (i32, i32, i32) {
        let zoned = time.to_zoned(TimeZone::UTC);
        let (year, month, day) = (i32::from(zoned.year()), i32::from(zoned.month()), zoned.day_of_year());
        match self {
            Span::Hour => (year, i32::from(day), i32::from(zoned.hour())),
            Span::Day => (year, i32::from(day), 0),
            Span::Week => {
                let week = zoned.date().iso_week_date();
                (i32::from(week.year()), i32::from(week.week()), 0)
            }
            Span::Month => (year, month, 0),
            Span::Year => (year, 0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keep: &str, times: &[&str]) -> Vec<usize> {
        let times: Vec<Timestamp> = times.iter().map(|time| time.parse().unwrap()).collect();
        let gone = keep.parse::<Keep>().unwrap().superfluous(&times);
        (0..times.len()).filter(|at| !gone.contains(at)).collect()
    }

    #[test]
    fn the_newest_of_each_span_is_kept() {
        let times = [
            "2026-11-29T10:00:00Z",
            "2026-11-29T23:00:00Z",
            "2026-11-28T01:00:00Z",
            "2026-11-28T02:00:00Z",
            "2026-11-20T02:00:00Z",
            "2026-10-01T02:00:00Z",
        ];
        assert_eq!(kept("2d", &times), [1, 3]);
        // Days without any do not count.
        assert_eq!(kept("3d", &times), [1, 3, 4]);
        // The 28th and 29th are of one week.
        assert_eq!(kept("2w", &times), [1, 4]);
        assert_eq!(kept("1d,2m", &times), [1, 5]);
        assert_eq!(kept("1y", &times), [1]);
        assert_eq!(kept("2h", &times), [0, 1]);
        assert!(kept("9d", &[]).is_empty());
    }

    #[test]
    fn a_week_may_be_of_two_years() {
        let times = ["2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z", "2027-01-04T00:00:00Z"];
        assert_eq!(kept("2w", &times), [1, 2]);
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for text in ["", "7", "d", "0d", "-1d", "7d,", "7x", "7 d", "99999d", "d7", "7é"] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
        assert_eq!("7d,4w,12m".parse::<Keep>().unwrap().to_string(), "7d,4w,12m");
    }
}
