//! `compose logs`, and lines of several logs among each other.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_spec::Failure;
use zmachine_store::log::{Entry, LogReader, Source};

use super::{Owned, Scope, owned};
use crate::args::compose::{ComposeLogsArgs, LookArgs};
use crate::logs::{Wanted, lines, tail};
use crate::output;

/// How often followed logs are looked at.
const POLL: Duration = Duration::from_millis(100);

/// Colours of names, as numbers of terminals: none that is hard to read on black or white.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 96];

/// Writes lines with the names of their machines in front.
pub(super) struct Printer {
    look: LookArgs,
    timestamps: bool,
    is_coloured: bool,
    width: usize,
    colours: BTreeMap<String, u8>,
    /// Lines that have not ended yet.
    begun: BTreeMap<(String, bool), Vec<u8>>,
}

impl Printer {
    pub(super) fn new(look: LookArgs, timestamps: bool) -> Printer {
        let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Printer {
            is_coloured: !look.no_color && wants_colour && std::io::stdout().is_terminal(),
            look,
            timestamps,
            width: 0,
            colours: BTreeMap::new(),
            begun: BTreeMap::new(),
        }
    }

    /// Makes room for the names, so that lines begin below each other.
    pub(super) fn make_room<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.width = names
            .map(|name| name.chars().count())
            .max()
            .unwrap_or_default()
            .max(self.width);
    }

    /// Whatever a log has.
    pub(super) fn all(&mut self, name: &str, reader: &mut LogReader, is_shown: bool) -> Result<(), Failure> {
        while let Some(entry) = reader.next_entry()? {
            if is_shown && matches!(entry.source, Source::Stdout | Source::Stderr) {
                self.entry(name, &entry)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, entry: &Entry) -> Result<(), Failure> {
        let key = (name.to_owned(), entry.source == Source::Stderr);
        let begun = self.begun.entry(key).or_default();
        if begun.is_empty() && self.timestamps {
            write!(begun, "{:.9} ", entry.at)?;
        }
        begun.extend_from_slice(&entry.bytes);
        if entry.ends_line {
            let line = std::mem::take(begun);
            self.line(name, &line)?;
        }
        Ok(())
    }

    fn line(&mut self, name: &str, line: &[u8]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        if !self.look.no_log_prefix {
            self.width = self.width.max(name.chars().count());
            let next = COLOURS[self.colours.len() % COLOURS.len()];
            let colour = *self.colours.entry(name.to_owned()).or_insert(next);
            let width = self.width;
            match self.is_coloured {
                true => write!(bytes, "\x1b[{colour}m{name:width$} |\x1b[0m ")?,
                false => write!(bytes, "{name:width$} | ")?,
            }
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        output::write_bytes(&bytes)
    }

    /// Lines of a machine that end with it.
    pub(super) fn flush(&mut self, name: &str) -> Result<(), Failure> {
        for is_stderr in [false, true] {
            if let Some(line) = self
                .begun
                .remove(&(name.to_owned(), is_stderr))
                .filter(|line| !line.is_empty())
            {
                self.line(name, &line)?;
            }
        }
        Ok(())
    }

    pub(super) fn flush_all(&mut self) -> Result<(), Failure> {
        let names: Vec<String> = self.begun.keys().map(|(name, _)| name.clone()).collect();
        names.iter().try_for_each(|name| self.flush(name))
    }
}

/// A log and its next entry.
struct Log {
    id: String,
    name: String,
    entries: std::collections::VecDeque<Entry>,
    reader: LogReader,
}

impl Log {
    fn fill(&mut self) -> Result<(), Failure> {
        if self.entries.is_empty() {
            self.entries.extend(self.reader.next_entry()?);
        }
        Ok(())
    }
}

/// Shows what machines wrote, in the order in which they did.
pub(super) fn logs(engine: &Engine, scope: &Scope, args: &ComposeLogsArgs) -> Result<u8, Failure> {
    let sources = [Source::Stdout, Source::Stderr];
    let wanted = Wanted::new(&sources, args.since.as_deref(), args.until.as_deref())?;
    let lines = lines(args.tail.as_deref())?;
    let mut printer = Printer::new(args.look, args.timestamps);
    let machines = scope.of(&args.services)?;
    printer.make_room(machines.iter().map(|owned| owned.short_name(&scope.name)));
    let mut all = Vec::new();
    for owned in machines {
        all.push(open(owned, &scope.name, lines, &wanted)?);
    }
    loop {
        // The earliest of what comes next in each.
        for log in &mut all {
            log.fill()?;
        }
        let next = all
            .iter_mut()
            .filter_map(|log| Some((log.entries.front()?.at, log)))
            .min_by_key(|(at, _)| *at);
        if let Some((_, log)) = next {
            if let Some(entry) = log.entries.pop_front().filter(|entry| wanted.has(entry)) {
                printer.entry(&log.name, &entry)?;
            }
            continue;
        }
        if !args.follow {
            printer.flush_all()?;
            return Ok(0);
        }
        let current = owned(engine, &scope.name)?;
        let is_meant =
            |owned: &&Owned| !owned.is_once && (args.services.is_empty() || args.services.contains(&owned.service));
        let current: Vec<&Owned> = current.iter().filter(is_meant).collect();
        // One that was made anew goes on in a log of its own.
        for owned in &current {
            if !all.iter().any(|log| log.id == owned.machine.id) {
                all.push(open(owned, &scope.name, None, &wanted)?);
            }
        }
        if !current.iter().any(|owned| owned.is_active()) {
            let is_empty = all.iter_mut().try_fold(true, |empty, log| {
                log.fill()?;
                Ok::<bool, Failure>(empty && log.entries.is_empty())
            })?;
            if is_empty {
                printer.flush_all()?;
                return Ok(0);
            }
        }
        thread::sleep(POLL);
    }
}

fn open(owned: &Owned, project: &str, lines: Option<usize>, wanted: &Wanted) -> Result<Log, Failure> {
    let dir = &owned.machine.dir;
    let (entries, reader) = match (lines, wanted.since) {
        (Some(lines), _) => tail(dir, lines, wanted)?,
        (None, Some(since)) => (Default::default(), LogReader::open_since(dir, since)),
        (None, None) => (Default::default(), LogReader::open(dir)),
    };
    Ok(Log {
        id: owned.machine.id.clone(),
        name: owned.short_name(project).to_owned(),
        entries,
        reader,
    })
}
