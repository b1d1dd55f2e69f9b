//! The end of a log.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::{Entry, LogReader, Position};

/// The last lines of a log among those that are `wanted`, and a reader behind them. Files are read from the newest, and no more than it takes.
///
/// # Errors
/// When a file cannot be read.
pub fn tail(machine: &Path, lines: usize, wanted: impl Fn(&Entry) -> bool) -> io::Result<(VecDeque<Entry>, LogReader)> {
    let mut found: VecDeque<Entry> = VecDeque::new();
    let mut missing = lines;
    let mut behind = None;
    for number in LogReader::numbers(machine).into_iter().rev() {
        let mut of_file = VecDeque::new();
        let mut whole = 0;
        let mut reader = LogReader::open_at(machine, Position { number, offset: 0 });
        while let Some(entry) = reader.next_entry()? {
            if behind.is_some() && reader.position().number != number {
                break;
            }
            if !wanted(&entry) {
                continue;
            }
            whole += usize::from(entry.ends_line);
            of_file.push_back(entry);
            while whole > missing || (missing == 0 && !of_file.is_empty()) {
                whole -= usize::from(of_file.pop_front().is_some_and(|e| e.ends_line));
            }
        }
        behind.get_or_insert(reader);
        missing -= whole;
        of_file.append(&mut found);
        found = of_file;
        if missing == 0 {
            break;
        }
    }
    Ok((found, behind.unwrap_or_else(|| LogReader::open(machine))))
}
