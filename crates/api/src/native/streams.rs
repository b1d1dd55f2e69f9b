//! What is told as time goes by: logs and events.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};
use zmachine_store::events::EventReader;
use zmachine_store::log::{Entry, LogReader, Source, tail};
use zmachine_sys::lock::FileLock;

use super::Call;
use super::machines::failing;
use super::problem::Problem;
use crate::app::{self, App};
use crate::docker::logs::time;
use crate::http::{Answer, Body, Refusal, typed};

/// Bytes that are read at once.
const CHUNK: usize = 8 << 10;

/// How often a follower looks for more.
const POLL: Duration = Duration::from_millis(100);

/// After so long without an event something is sent all the same: a client that is gone is found by that.
const BEAT: Duration = Duration::from_secs(15);

struct Reading {
    reader: LogReader,
    sources: Vec<Source>,
    span: (Option<Timestamp>, Option<Timestamp>),
}

impl Reading {
    fn has(&self, entry: &Entry) -> bool {
        let (since, until) = self.span;
        self.sources.contains(&entry.source)
            && since.is_none_or(|since| entry.at >= since)
            && until.is_none_or(|until| entry.at <= until)
    }

    fn step(&mut self) -> std::io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        while lines.len() < CHUNK {
            match self.reader.next_entry()? {
                Some(entry) if self.has(&entry) => line(&entry, &mut lines),
                Some(_) => {}
                None => break,
            }
        }
        Ok(lines)
    }
}

/// A part of a log, as clients get it.
#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    source: &'static str,
    partial: bool,
    text: Cow<'a, str>,
}

fn line(entry: &Entry, into: &mut Vec<u8>) {
    let line = Line {
        time: entry.at,
        source: entry.source.name(),
        partial: !entry.ends_line,
        text: String::from_utf8_lossy(&entry.bytes),
    };
    // Right into the chunk: logs are the most that goes through here.
    if serde_json::to_writer(&mut *into, &line).is_ok() {
        into.push(b'\n');
    }
}

/// Opens a log, at its beginning, at a time, or so many lines before its end: the id of its machine, and lines that are sent first.
fn begin(
    app: &App,
    name: &str,
    named: Vec<Source>,
    span: (Option<Timestamp>, Option<Timestamp>),
    lines: Option<usize>,
) -> Result<(String, Reading, Vec<u8>), Failure> {
    let history = app.engine.history(name)?;
    let kind = history.state.as_ref().map(|state| state.kind).unwrap_or_default();
    let sources = match named.is_empty() {
        true => Source::of_programs(kind).to_vec(),
        false => named,
    };
    let mut reading = Reading {
        reader: LogReader::open(&history.dir),
        sources,
        span,
    };
    let mut first = Vec::new();
    match (lines, span.0) {
        (Some(lines), _) => {
            let (entries, reader) = tail(&history.dir, lines, |entry| reading.has(entry))?;
            entries.iter().for_each(|entry| line(entry, &mut first));
            reading.reader = reader;
        }
        (None, Some(since)) => reading.reader = LogReader::open_since(&history.dir, since),
        (None, None) => {}
    }
    Ok((history.id, reading, first))
}

/// Shows a log, also that of a machine which was removed in the last seven days.
///
/// # Errors
/// 404; 400 for parameters that make no sense.
pub async fn logs(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let follows = call.query.flag("follow");
    let lines = call.query.number("tail")?.and_then(|lines| usize::try_from(lines).ok());
    let span = (time(&call.query, "since")?, time(&call.query, "until")?);
    let named: Vec<Source> = call
        .query
        .all("source")
        .map(|text| text.parse().map_err(|why: String| Failure::new(Class::Usage, why)))
        .collect::<Result<_, _>>()?;
    let begun = app::reading(app, move |app| Ok::<_, Refusal>(begin(app, &name, named, span, lines))).await?;
    let (id, mut reading, first) = begun?;
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if !first.is_empty() && sender.send(first.into()).await.is_err() {
            return;
        }
        loop {
            let of = id.clone();
            // Few at a time, however many followers there are: each thread keeps its memory for a while.
            let stepped = app::reading(&app, move |app| {
                // Asked before reading: whatever was written before the end is read after this.
                let is_over = !follows || is_over(&app.engine, &of);
                let lines = reading.step()?;
                Ok::<_, Failure>((reading, lines, is_over))
            })
            .await;
            let Ok((read, lines, is_over)) = stepped else { return };
            reading = read;
            let is_late = span.1.is_some_and(|until| Timestamp::now() > until);
            if lines.is_empty() {
                if is_over || is_late {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(POLL) => {}
                    () = sender.closed() => return,
                }
            } else if sender.send(lines.into_boxed_slice().into()).await.is_err() {
                return;
            }
        }
    });
    Ok(typed(StatusCode::OK, "application/x-ndjson", body))
}

fn is_over(engine: &Engine, id: &str) -> bool {
    engine.machine(id).map_or(true, |machine| {
        !machine.state.phase.is_active() && !FileLock::is_held(&machine.lock_path()).unwrap_or(false)
    })
}

/// Shows events. A client that comes again says by `Last-Event-ID` which one it had last.
///
/// # Errors
/// 400 for a time that is none.
pub async fn events(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let last = call.headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last: Option<Timestamp> = last.and_then(|id| id.parse().ok());
    let since = match call.query.get("since") {
        // 0 is no time for docker, but all that there is.
        Some(_) => time(&call.query, "since")?.unwrap_or(Timestamp::UNIX_EPOCH),
        None => last.unwrap_or_else(Timestamp::now),
    };
    let follows = call.query.get("follow").is_none() || call.query.flag("follow");
    let mut notices = app.hub.subscribe();
    let mut reader = EventReader::open(app.engine.home());
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::spawn(async move {
        loop {
            let stepped = failing(&app, move |_| {
                let mut text = String::new();
                while text.len() < CHUNK {
                    let Some(event) = reader.next_event()? else { break };
                    if event.time > since || (last.is_none() && event.time == since) {
                        let data = serde_json::to_string(&event).unwrap_or_default();
                        text.push_str(&format!("id: {}\nevent: {}\ndata: {data}\n\n", event.time, event.event));
                    }
                }
                Ok((reader, text))
            })
            .await;
            let Ok((read, text)) = stepped else { return };
            reader = read;
            if !text.is_empty() {
                if sender.send(text.into()).await.is_err() {
                    return;
                }
                continue;
            }
            if !follows {
                return;
            }
            let before = tokio::time::Instant::now();
            tokio::select! {
                () = notices.next(BEAT) => {}
                () = sender.closed() => return,
            }
            if before.elapsed() >= BEAT && sender.send(":\n\n".into()).await.is_err() {
                return;
            }
        }
    });
    Ok(typed(StatusCode::OK, "text/event-stream", body))
}
