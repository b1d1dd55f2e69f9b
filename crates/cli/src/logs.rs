//! `zmachine logs`.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure, Kind};
use zmachine_store::log::{Entry, LogReader, Source, tail};

use crate::args::{LogFormat, LogSpanArgs, LogsArgs};
use zmachine_spec::time::parse_time;

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
    /// What is not written yet, and whether it goes to stderr.
    pending: (bool, Vec<u8>),
}

/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;

/// Which entries are shown.
pub(crate) struct Wanted {
    /// Where what the guest's programs write is, when there are none.
    sources: Vec<Source>,
    pub(crate) since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Wanted {
    pub(crate) fn new(sources: &[Source], span: &LogSpanArgs) -> Result<Wanted, Failure> {
        let time = |flag, text: &Option<String>| text.as_deref().map(|text| parse_time(flag, text)).transpose();
        Ok(Wanted {
            sources: sources.to_vec(),
            since: time("--since", &span.since)?,
            until: time("--until", &span.until)?,
        })
    }

    /// Whether this entry of a machine of that kind is.
    pub(crate) fn has(&self, kind: Kind, entry: &Entry) -> bool {
        let sources = match self.sources.as_slice() {
            [] => Source::of_programs(kind),
            sources => sources,
        };
        sources.contains(&entry.source)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at <= until)
    }
}

/// Shows a machine's log.
pub(crate) fn logs(engine: &Engine, args: &LogsArgs) -> Result<u8, Failure> {
    let wanted = Wanted::new(&args.source, &args.span)?;
    let lines = lines(args.span.tail.as_deref())?;
    let history = engine.history(&args.name)?;
    let kind = history.state.as_ref().map(|state| state.kind).unwrap_or_default();
    let is_shown = |entry: &Entry| wanted.has(kind, entry);
    let mut printer = Printer {
        timestamps: args.span.timestamps,
        format: args.output,
        at_line_start: [true; 2],
        pending: (false, Vec::new()),
    };
    let mut reader = match (lines, wanted.since) {
        (Some(lines), _) => {
            let (entries, reader) = tail(&history.dir, lines, is_shown)?;
            entries.iter().try_for_each(|entry| printer.print(entry))?;
            reader
        }
        (None, Some(since)) => LogReader::open_since(&history.dir, since),
        (None, None) => LogReader::open(&history.dir),
    };
    while let Some(entry) = reader.next_entry()? {
        if is_shown(&entry) {
            printer.print(&entry)?;
        }
    }
    printer.flush()?;
    if args.span.follow && history.removed_at.is_none() {
        follow(engine, &history.id, reader, (&wanted, kind), &mut printer)?;
    }
    Ok(0)
}

/// What `--tail` says; `None` is all.
pub(crate) fn lines(tail: Option<&str>) -> Result<Option<usize>, Failure> {
    match tail {
        None | Some("all" | "-1") => Ok(None),
        Some(text) => text.parse::<usize>().map(Some).map_err(|_| {
            Failure::new(Class::Usage, format!("--tail {text} is no number of lines")).hint("use a number, or 'all'")
        }),
    }
}

/// Passes on what comes until the machine has ended.
fn follow(
    engine: &Engine,
    id: &str,
    mut reader: LogReader,
    (wanted, kind): (&Wanted, Kind),
    printer: &mut Printer,
) -> Result<(), Failure> {
    loop {
        // Asked before reading: whatever was written before the end is read after this.
        let over = is_over(engine, id) || wanted.until.is_some_and(|until| Timestamp::now() > until);
        while let Some(entry) = reader.next_entry()? {
            if wanted.has(kind, &entry) {
                printer.print(&entry)?;
            }
        }
        printer.flush()?;
        if over {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// A machine that has ended writes no more; one that is removed neither.
fn is_over(engine: &Engine, id: &str) -> bool {
    engine.machine(id).map_or(true, |m| {
        !m.state.phase.is_active() && !zmachine_sys::lock::FileLock::is_held(&m.lock_path()).unwrap_or(false)
    })
}

impl Printer {
    fn print(&mut self, entry: &Entry) -> Result<(), Failure> {
        let to_stderr = entry.source == Source::Stderr && self.format == LogFormat::Text;
        if self.pending.0 != to_stderr || self.pending.1.len() >= BATCH {
            self.flush()?;
        }
        self.pending.0 = to_stderr;
        let bytes = &mut self.pending.1;
        match self.format {
            LogFormat::Json => {
                let text = String::from_utf8_lossy(&entry.bytes).into_owned();
                let line = JsonEntry {
                    time: entry.at,
                    source: entry.source.name(),
                    partial: !entry.ends_line,
                    text,
                };
                serde_json::to_writer(&mut *bytes, &line).map_err(std::io::Error::from)?;
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
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let bytes = std::mem::take(&mut self.pending.1);
        match self.pending.0 {
            _ if bytes.is_empty() => Ok(()),
            true => Ok(std::io::stderr().lock().write_all(&bytes)?),
            false => crate::output::write_bytes(&bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_of_a_guest_write_is_shown_unless_sources_are_named() {
        let entry = |source| Entry {
            at: Timestamp::UNIX_EPOCH,
            source,
            ends_line: true,
            bytes: Vec::new(),
        };
        let shown = |sources: &[Source], kind| -> Vec<Source> {
            let wanted = Wanted {
                sources: sources.to_vec(),
                since: None,
                until: None,
            };
            Source::ALL
                .into_iter()
                .filter(|source| wanted.has(kind, &entry(*source)))
                .collect()
        };
        assert_eq!(shown(&[], Kind::Container), [Source::Stdout, Source::Stderr]);
        assert_eq!(shown(&[], Kind::Vm), [Source::Console]);
        assert_eq!(shown(&[Source::Agent], Kind::Vm), [Source::Agent]);
    }
}
