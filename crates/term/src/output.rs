//! Tables and JSON on stdout. A reader that stops reading early is a success, as everywhere on Unix.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_spec::Failure;
use zmachine_sys::tty;

/// Writes to stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    write_bytes(text.as_bytes())
}

/// Writes bytes to stdout.
pub fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Asks before what cannot be undone; whether it is to be done.
pub fn confirm(what: &str, force: bool) -> Result<bool, Failure> {
    if force {
        return Ok(true);
    }
    eprint!("{what}\nAre you sure? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Writes a value as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    text.push('\n');
    print(&text)
}

/// Spaces between two columns.
const GAP: usize = 3;

/// What a column keeps of its width when a terminal is narrow.
const LEAST_WIDTH: usize = 12;

/// Writes rows under a header, each column as wide as its widest cell. On a terminal, the widest columns are cut so that a row
/// is a line.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let columns = tty::window_size(io::stdout().as_fd()).map(|(_, columns)| usize::from(columns));
    print(&fitted(header, rows, columns))
}

/// The same, cut for nothing.
pub fn whole_table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    print(&fitted(header, rows, None))
}

fn fitted(header: &[&str], rows: &[Vec<String>], columns: Option<usize>) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(columns) = columns {
        let all = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while all(&widths) > columns {
            match widths.iter_mut().max() {
                Some(widest) if *widest > LEAST_WIDTH => *widest -= 1,
                _ => break,
            }
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(&widths) {
            let cell: Cow<'_, str> = match cell.chars().count() > *width {
                true => cell.chars().take(width - 1).chain(['…']).collect(),
                false => cell.into(),
            };
            let _ = write!(row, "{cell:width$}{:GAP$}", "");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
    text
}

/// How long ago, as docker says it: `About a minute`, `3 weeks`.
pub fn human_age(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(at.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, (seconds + 1800) / 3600, seconds / 86400);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if days < 14 => format!("{days} days"),
        _ if days < 60 => format!("{} weeks", days / 7),
        _ if days < 730 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_line_of_the_terminal() {
        let rows = [vec!["web".to_owned(), "a".repeat(80), "b".repeat(40)]];
        let text = fitted(&["NAME", "COMMAND", "PORTS"], &rows, Some(60));
        let line = text.lines().nth(1).unwrap();
        assert_eq!(line.chars().count(), 60, "{line}");
        assert!(
            line.starts_with("web    aaa") && line.contains("a…   b") && line.ends_with("b…"),
            "{line}"
        );
        assert_eq!(
            fitted(&["NAME"], &[vec!["a".repeat(90)]], None)
                .lines()
                .nth(1)
                .unwrap()
                .len(),
            90
        );
        // What cannot be shown is not made unreadable.
        let rows = [vec!["a".repeat(30); 9]];
        assert!(
            fitted(&["N"; 9], &rows, Some(20))
                .lines()
                .nth(1)
                .unwrap()
                .contains("aaaaaaaaaaa…")
        );
    }

    #[test]
    fn ages_are_in_dockers_words() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3599, "59 minutes"),
            (3700, "About an hour"),
            (2 * 86400 - 2000, "47 hours"),
            (13 * 86400, "13 days"),
            (21 * 86400, "3 weeks"),
            (100 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(human_age(at(0), at(seconds)), text);
        }
    }
}
