//! `zmachine logs`.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use zmachine_machine::catalog::Machine;
use zmachine_machine::log::{Entry, LogReader, Source};
use zmachine_machine::{Class, Engine, Failure};

use crate::args::{LogFormat, LogsArgs};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct JsonEntry<'a> {
    time: Timestamp,
    source: &'a str,
    partial: bool,
    text: String,
}

struct Printer {
    timestamps: bool,
    format: LogFormat,
    /// Whether the last entry of stdout and of stderr ended its line.
    at_line_start: [bool; 2],
}

/// Shows a machine's log.
pub(crate) fn logs(engine: &Engine, args: &LogsArgs) -> Result<u8, Failure> {
    let parse = |name: &String| name.parse::<Source>().map_err(|e| Failure::new(Class::Usage, e));
    let sources: Vec<Source> = args.source.iter().map(parse).collect::<Result<_, _>>()?;
    let since = args.since.as_deref().map(parse_since).transpose()?;
    let machine = engine.machine(&args.name)?;
    let mut printer = Printer {
        timestamps: args.timestamps,
        format: args.output,
        at_line_start: [true; 2],
    };
    let wanted = |entry: &Entry| sources.contains(&entry.source) && since.is_none_or(|since| entry.at >= since);
    let mut reader = LogReader::open(&machine.dir)?;
    let mut tail = VecDeque::new();
    while let Some(entry) = next(&mut reader)? {
        if !wanted(&entry) {
            continue;
        }
        match args.tail {
            None => printer.print(&entry)?,
            Some(lines) => {
                tail.push_back(entry);
                while tail.iter().filter(|e| e.ends_line).count() > lines || (lines == 0 && !tail.is_empty()) {
                    tail.pop_front();
                }
            }
        }
    }
    tail.iter().try_for_each(|entry| printer.print(entry))?;
    if args.follow {
        follow(engine, &machine, reader, |entry| {
            if wanted(entry) { printer.print(entry) } else { Ok(()) }
        })?;
    }
    Ok(0)
}

/// Passes on what comes until the machine has ended.
fn follow(
    engine: &Engine,
    machine: &Machine,
    mut reader: Option<LogReader>,
    mut show: impl FnMut(&Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        // Asked before reading: whatever was written before the end is read after this.
        let over = is_over(engine, machine);
        if reader.is_none() {
            reader = LogReader::open(&machine.dir)?;
        }
        while let Some(entry) = next(&mut reader)? {
            show(&entry)?;
        }
        if over {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// A machine that has ended writes no more; one that is removed neither.
fn is_over(engine: &Engine, machine: &Machine) -> bool {
    engine.machine(&machine.id).map_or(true, |m| {
        !m.state.phase.is_active() && !zmachine_sys::lock::FileLock::is_held(&m.lock_path()).unwrap_or(false)
    })
}

fn next(reader: &mut Option<LogReader>) -> Result<Option<Entry>, Failure> {
    Ok(match reader {
        Some(reader) => reader.next_entry()?,
        None => None,
    })
}

fn parse_since(text: &str) -> Result<Timestamp, Failure> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let seconds = |unit| match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86400),
        _ => None,
    };
    let split = text.len() - text.chars().last().map_or(0, char::len_utf8);
    let ago = text[..split].parse::<i64>().ok().zip(seconds(&text[split..]));
    ago.and_then(|(n, unit)| {
        Timestamp::now()
            .checked_sub(SignedDuration::from_secs(n.checked_mul(unit)?))
            .ok()
    })
    .ok_or_else(|| {
        Failure::new(Class::Usage, format!("--since {text} is no time"))
            .hint("use RFC 3339 (2026-11-23T03:05:00Z) or an age (10m, 2h)")
    })
}

impl Printer {
    fn print(&mut self, entry: &Entry) -> Result<(), Failure> {
        let mut bytes = Vec::with_capacity(entry.bytes.len() + 32);
        match self.format {
            LogFormat::Json => {
                let text = String::from_utf8_lossy(&entry.bytes).into_owned();
                let line = JsonEntry {
                    time: entry.at,
                    source: entry.source.name(),
                    partial: !entry.ends_line,
                    text,
                };
                serde_json::to_writer(&mut bytes, &line).map_err(std::io::Error::from)?;
                bytes.push(b'\n');
            }
            LogFormat::Text => {
                let at_start = &mut self.at_line_start[usize::from(entry.source == Source::Stderr)];
                if self.timestamps && *at_start {
                    write!(bytes, "{:.9} ", entry.at)?;
                }
                bytes.extend_from_slice(&entry.bytes);
                bytes.extend(entry.ends_line.then_some(b'\n'));
                *at_start = entry.ends_line;
            }
        }
        match entry.source {
            Source::Stderr if self.format == LogFormat::Text => Ok(std::io::stderr().lock().write_all(&bytes)?),
            _ => crate::output::write_bytes(&bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_dates_and_as_ages() {
        assert_eq!(parse_since("2026-11-23T03:05:00Z").unwrap().as_second(), 1_795_403_100);
        let ago = Timestamp::now().as_second() - parse_since("2h").unwrap().as_second();
        assert!((7199..=7201).contains(&ago));
        for bad in ["", "h", "10", "10x", "yesterday", "ä"] {
            assert!(parse_since(bad).is_err(), "{bad}");
        }
    }
}
