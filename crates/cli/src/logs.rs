//! `zmachine logs`.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure, Kind};
use zmachine_store::log::{Entry, LogReader, Source, tail};

use crate::args::{LogFormat, LogsArgs};
use crate::time::parse_time;

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
    pub(crate) sources: Vec<Source>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

impl Wanted {
    /// These sources, between two times as users write them.
    pub(crate) fn new(sources: &[Source], since: Option<&str>, until: Option<&str>) -> Result<Wanted, Failure> {
        Ok(Wanted {
            sources: sources.to_vec(),
            since: since.map(|text| parse_time("--since", text)).transpose()?,
            until: until.map(|text| parse_time("--until", text)).transpose()?,
        })
    }

    pub(crate) fn has(&self, entry: &Entry) -> bool {
        self.sources.contains(&entry.source)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at <= until)
    }
}

/// Shows a machine's log.
pub(crate) fn logs(engine: &Engine, args: &LogsArgs) -> Result<u8, Failure> {
    let mut wanted = Wanted::new(&args.source, args.since.as_deref(), args.until.as_deref())?;
    let lines = lines(args.tail.as_deref())?;
    let history = engine.history(&args.name)?;
    if wanted.sources.is_empty() {
        // What a VM writes, it writes to its console.
        let is_vm = history.state.as_ref().is_some_and(|state| state.kind == Kind::Vm);
        wanted.sources = match is_vm {
            true => vec![Source::Console],
            false => vec![Source::Stdout, Source::Stderr],
        };
    }
    let mut printer = Printer {
        timestamps: args.timestamps,
        format: args.output,
        at_line_start: [true; 2],
        pending: (false, Vec::new()),
    };
    let mut reader = match (lines, wanted.since) {
        (Some(lines), _) => {
            let (entries, reader) = tail(&history.dir, lines, |entry| wanted.has(entry))?;
            entries.iter().try_for_each(|entry| printer.print(entry))?;
            reader
        }
        (None, Some(since)) => LogReader::open_since(&history.dir, since),
        (None, None) => LogReader::open(&history.dir),
    };
    while let Some(entry) = reader.next_entry()? {
        if wanted.has(&entry) {
            printer.print(&entry)?;
        }
    }
    printer.flush()?;
    if args.follow && history.removed_at.is_none() {
        follow(engine, &history.id, reader, &wanted, &mut printer)?;
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
    wanted: &Wanted,
    printer: &mut Printer,
) -> Result<(), Failure> {
    loop {
        // Asked before reading: whatever was written before the end is read after this.
        let over = is_over(engine, id) || wanted.until.is_some_and(|until| Timestamp::now() > until);
        while let Some(entry) = reader.next_entry()? {
            if wanted.has(&entry) {
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
