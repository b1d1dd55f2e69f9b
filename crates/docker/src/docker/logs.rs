//! `logs`: what the entrypoint of a container wrote, and what it writes.
//!
//! Read from the files of the log, so it is the same whoever started the container, and a client that reads slowly holds nobody up:
//! its own reader waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use jiff::Timestamp;
use zmachine_spec::Class;
use zmachine_store::catalog::Machine;
use zmachine_store::log::{Entry, LogReader, Source, tail};
use zmachine_sys::lock::FileLock;

use super::query::Query;
use super::stream::{Shown, header};
use super::{Call, ids};
use crate::app::{App, blocking, reading as reading_files};
use crate::http::{Answer, Body, Refusal, typed};

/// Bytes that are read at once.
const CHUNK: usize = 8 << 10;

/// How often a follower looks for more.
const POLL: Duration = Duration::from_millis(50);

/// After so many looks for nothing a follower asks whether the container still runs, also when nothing is heard of its end.
const LOOKS: u32 = 40;

/// So often it asks when something has happened: a container takes a moment to end.
const LAST_LOOKS: u32 = 10;

/// What is wanted of a log.
#[derive(Debug, Clone)]
struct Wanted {
    shown: Shown,
    timestamps: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<usize>,
    follows: bool,
}

impl Wanted {
    fn read(query: &Query, terminal: bool) -> Result<Wanted, Refusal> {
        let shown = Shown {
            terminal,
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
        };
        if !shown.stdout && !shown.stderr {
            return Err(Refusal::bad("Bad parameters: you must choose at least one stream"));
        }
        let lines = match query.get("tail") {
            None | Some("all") => None,
            Some(text) if text.starts_with('-') => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Refusal::bad(format!("tail: '{text}' is no number of lines")))?,
            ),
        };
        Ok(Wanted {
            shown,
            timestamps: query.flag("timestamps"),
            since: time(query, "since")?,
            until: time(query, "until")?,
            lines,
            follows: query.flag("follow"),
        })
    }

    fn has(&self, entry: &Entry) -> bool {
        let is_shown = match entry.source {
            Source::Stdout => self.shown.stdout,
            Source::Stderr => self.shown.stderr,
            _ => false,
        };
        is_shown && self.since.is_none_or(|since| entry.at >= since) && self.until.is_none_or(|until| entry.at <= until)
    }
}

/// A time of a parameter: seconds since 1970 with a fraction, or as RFC 3339 has it; `None` for 0 and for nothing.
///
/// # Errors
/// 400 for anything else.
pub fn time(query: &Query, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = query.get(name).filter(|text| *text != "0") else {
        return Ok(None);
    };
    let wrong = || Refusal::bad(format!("{name}: '{text}' is no time"));
    if text.contains('T') {
        return text.parse().map(Some).map_err(|_| wrong());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let seconds: i64 = seconds.parse().map_err(|_| wrong())?;
    let is_fraction = !fraction.is_empty() && fraction.len() <= 9 && fraction.bytes().all(|b| b.is_ascii_digit());
    let nanos: i32 = match is_fraction {
        true => format!("{fraction:0<9}").parse().map_err(|_| wrong())?,
        false => return Err(wrong()),
    };
    Timestamp::new(seconds, nanos).map(Some).map_err(|_| wrong())
}

/// Bytes of entries for a client, and whether the next one begins a line.
#[derive(Debug)]
struct Printer {
    shown: Shown,
    timestamps: bool,
    at_line_start: [bool; 2],
}

impl Printer {
    fn new(wanted: &Wanted) -> Printer {
        Printer {
            shown: wanted.shown,
            timestamps: wanted.timestamps,
            at_line_start: [true; 2],
        }
    }

    fn print(&mut self, entry: &Entry, into: &mut Vec<u8>) {
        let is_error = entry.source == Source::Stderr;
        let mut line = Vec::with_capacity(entry.bytes.len() + 1);
        let at_start = &mut self.at_line_start[usize::from(is_error)];
        if self.timestamps && *at_start {
            line.extend_from_slice(format!("{:.9} ", entry.at).as_bytes());
        }
        *at_start = entry.ends_line;
        line.extend_from_slice(&entry.bytes);
        line.extend(entry.ends_line.then_some(b'\n'));
        if !self.shown.terminal {
            into.extend_from_slice(&header(if is_error { 2 } else { 1 }, line.len()));
        }
        into.extend_from_slice(&line);
    }
}

/// A reader and what it prints; it goes from thread to thread.
struct Reading {
    reader: LogReader,
    printer: Printer,
    wanted: Wanted,
}

impl Reading {
    /// From the place where what is wanted begins; the lines before it that are wanted are printed already.
    fn begin(machine: &Machine, wanted: Wanted) -> std::io::Result<(Reading, Vec<u8>)> {
        let mut printer = Printer::new(&wanted);
        let mut bytes = Vec::new();
        let reader = match (wanted.lines, wanted.since) {
            (Some(lines), _) => {
                let (entries, reader) = tail(&machine.dir, lines, |entry| wanted.has(entry))?;
                entries.iter().for_each(|entry| printer.print(entry, &mut bytes));
                reader
            }
            (None, Some(since)) => LogReader::open_since(&machine.dir, since),
            (None, None) => LogReader::open(&machine.dir),
        };
        Ok((
            Reading {
                reader,
                printer,
                wanted,
            },
            bytes,
        ))
    }

    /// The next bytes; none at the end for now.
    fn step(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < CHUNK {
            match self.reader.next_entry()? {
                Some(entry) if self.wanted.has(&entry) => self.printer.print(&entry, &mut bytes),
                Some(_) => {}
                None => break,
            }
        }
        Ok(bytes)
    }
}

/// What a container wrote until now.
///
/// # Errors
/// When the log cannot be read.
pub async fn past(app: &Arc<App>, machine: &Machine, shown: Shown) -> Result<Vec<u8>, Refusal> {
    let wanted = Wanted {
        shown,
        timestamps: false,
        since: None,
        until: Some(Timestamp::now()),
        lines: Some(10_000),
        follows: false,
    };
    let machine = machine.clone();
    blocking(app, move |_| Reading::begin(&machine, wanted).map(|(_, bytes)| bytes)).await
}

/// Shows a log, and follows it until the container ends or the client leaves.
///
/// # Errors
/// 404; 400 for parameters that make no sense.
pub async fn logs(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let machine = reading_files(app, move |app| ids::machine(&app.engine, &name)).await?;
    let wanted = Wanted::read(&call.query, machine.spec.terminal)?;
    let kind = wanted.shown.content_type(call.version);
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    let mut events = app.hub.subscribe();
    tokio::spawn(async move {
        let id = machine.id.clone();
        let begun = reading_files(&app, move |_| Reading::begin(&machine, wanted)).await;
        let Ok((mut reading, bytes)) = begun else { return };
        if !bytes.is_empty() && sender.send(bytes.into_boxed_slice().into()).await.is_err() {
            return;
        }
        let mut looks = 0;
        let mut told = 0;
        loop {
            // Asked before reading: whatever was written before the end is read after this.
            let asks = !reading.wanted.follows || told > 0 || looks >= LOOKS;
            told = u32::saturating_sub(told, 1);
            let until = reading.wanted.until;
            let of = id.clone();
            let stepped = reading_files(&app, move |app| {
                let is_over = asks && (!reading.wanted.follows || is_over(app, &of));
                let is_over = is_over || until.is_some_and(|until| Timestamp::now() > until);
                reading.step().map(|bytes| (reading, bytes, is_over))
            })
            .await;
            let Ok((read, bytes, is_over)) = stepped else { return };
            reading = read;
            if bytes.is_empty() {
                if is_over {
                    return;
                }
                looks = if asks { 0 } else { looks + 1 };
                let began = tokio::time::Instant::now();
                tokio::select! {
                    () = events.next(POLL) => {}
                    () = sender.closed() => return,
                }
                // Something has happened to some machine; this one may be on its last way.
                if began.elapsed() < POLL {
                    told = LAST_LOOKS;
                }
            } else if sender.send(Bytes::from(bytes.into_boxed_slice())).await.is_err() {
                return;
            }
        }
    });
    Ok(typed(StatusCode::OK, kind, body))
}

/// A container that has ended writes no more; one that is removed neither. One that starts again does.
fn is_over(app: &App, id: &str) -> bool {
    match app.engine.machine(id) {
        Ok(machine) => !machine.state.phase.is_active() && !FileLock::is_held(&machine.lock_path()).unwrap_or(false),
        Err(failure) => failure.class == Class::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_with_a_fraction_or_texts() {
        let read = |text: &str| time(&Query::parse(&format!("since={text}")), "since");
        assert_eq!(read("0").unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("10.5").unwrap().unwrap().as_millisecond(), 10_500);
        assert_eq!(read("1970-01-01T00:00:07Z").unwrap().unwrap().as_second(), 7);
        for text in ["x", "1.", "1.1234567890", "10m", "99999999999999"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_has_its_time_once_and_its_stream() {
        let wanted = Wanted::read(&Query::parse("stdout=1&stderr=1&timestamps=1"), false).unwrap();
        let mut printer = Printer::new(&wanted);
        let at: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let entry = |source, text: &str, ends_line| Entry {
            at,
            source,
            ends_line,
            bytes: text.into(),
        };
        let mut bytes = Vec::new();
        printer.print(&entry(Source::Stdout, "a", false), &mut bytes);
        printer.print(&entry(Source::Stderr, "e", true), &mut bytes);
        printer.print(&entry(Source::Stdout, "b", true), &mut bytes);
        let stamp = "2026-01-02T03:04:05.600000000Z ";
        let expected = format!("\x01\0\0\0\0\0\0\x20{stamp}a\x02\0\0\0\0\0\0\x21{stamp}e\n\x01\0\0\0\0\0\0\x02b\n");
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        assert!(Wanted::read(&Query::parse("follow=1"), false).is_err());
    }
}
