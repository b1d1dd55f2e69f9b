//! Lines of several logs among each other, each with the name of its machine.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use zmachine_engine::Engine;
use zmachine_spec::{Failure, Kind};
use zmachine_store::log::{Entry, LogReader, Source, tail};

use crate::Front;
use crate::owned::{Owned, owned};

/// How often followed logs are looked at.
const POLL: Duration = Duration::from_millis(100);

/// Colours of names, as numbers of terminals: none that is hard to read on black or white.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 96];

/// How lines are shown.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// With the names of their machines in front.
    pub has_names: bool,
    /// With these in colours.
    pub is_coloured: bool,
    /// With the time of each.
    pub has_times: bool,
}

/// Writes lines.
pub(crate) struct Printer<'a> {
    front: &'a dyn Front,
    look: Look,
    width: usize,
    colours: BTreeMap<String, u8>,
    /// Lines that have not ended yet.
    begun: BTreeMap<(String, bool), Vec<u8>>,
}

impl<'a> Printer<'a> {
    pub(crate) fn new(front: &'a dyn Front, look: Look) -> Printer<'a> {
        Printer {
            front,
            look,
            width: 0,
            colours: BTreeMap::new(),
            begun: BTreeMap::new(),
        }
    }

    /// Makes room for the names, so that lines begin below each other.
    pub(crate) fn make_room<'b>(&mut self, names: impl Iterator<Item = &'b str>) {
        self.width = names
            .map(|name| name.chars().count())
            .max()
            .unwrap_or_default()
            .max(self.width);
    }

    /// Whatever a log has.
    pub(crate) fn all(
        &mut self,
        name: &str,
        kind: Kind,
        reader: &mut LogReader,
        is_shown: bool,
    ) -> Result<(), Failure> {
        while let Some(entry) = reader.next_entry()? {
            if is_shown && Source::of_programs(kind).contains(&entry.source) {
                self.entry(name, &entry)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, entry: &Entry) -> Result<(), Failure> {
        let key = (name.to_owned(), entry.source == Source::Stderr);
        let begun = self.begun.entry(key).or_default();
        if begun.is_empty() && self.look.has_times {
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
        if self.look.has_names {
            self.width = self.width.max(name.chars().count());
            let next = COLOURS[self.colours.len() % COLOURS.len()];
            let colour = *self.colours.entry(name.to_owned()).or_insert(next);
            let width = self.width;
            match self.look.is_coloured {
                true => write!(bytes, "\x1b[{colour}m{name:width$} |\x1b[0m ")?,
                false => write!(bytes, "{name:width$} | ")?,
            }
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        self.front.write(&bytes)
    }

    /// Lines of a machine that end with it.
    pub(crate) fn flush(&mut self, name: &str) -> Result<(), Failure> {
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

    pub(crate) fn flush_all(&mut self) -> Result<(), Failure> {
        let names: Vec<String> = self.begun.keys().map(|(name, _)| name.clone()).collect();
        names.iter().try_for_each(|name| self.flush(name))
    }
}

/// A log and its next entry.
struct Log {
    id: String,
    name: String,
    kind: Kind,
    entries: VecDeque<Entry>,
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

/// Which logs are shown, and what of them.
pub struct Request<'a> {
    /// How.
    pub look: Look,
    /// What comes, too.
    pub follows: bool,
    /// Only the last lines of each.
    pub lines: Option<usize>,
    /// Nothing that is older counts.
    pub since: Option<Timestamp>,
    /// What is shown of a machine of that kind.
    pub wanted: &'a dyn Fn(Kind, &Entry) -> bool,
    /// Of these services; of all when none is named.
    pub services: &'a [String],
}

impl Request<'_> {
    fn machines(&self, engine: &Engine, project: &str) -> Result<Vec<Owned>, Failure> {
        let mut all = owned(engine, project)?;
        all.retain(|owned| !owned.is_once && (self.services.is_empty() || self.services.contains(&owned.service)));
        Ok(all)
    }

    fn open(&self, owned: &Owned, project: &str, lines: Option<usize>) -> Result<Log, Failure> {
        let dir = &owned.machine.dir;
        let kind = owned.machine.state.kind;
        let (entries, reader) = match (lines, self.since) {
            (Some(lines), _) => tail(dir, lines, |entry| (self.wanted)(kind, entry))?,
            (None, Some(since)) => (VecDeque::new(), LogReader::open_since(dir, since)),
            (None, None) => (VecDeque::new(), LogReader::open(dir)),
        };
        Ok(Log {
            id: owned.machine.id.clone(),
            name: owned.short_name(project).to_owned(),
            kind,
            entries,
            reader,
        })
    }
}

/// Shows what the machines of a project wrote, in the order in which they did.
///
/// # Errors
/// When a log cannot be read.
pub fn show(engine: &Engine, front: &dyn Front, project: &str, request: &Request<'_>) -> Result<(), Failure> {
    let mut printer = Printer::new(front, request.look);
    let machines = request.machines(engine, project)?;
    printer.make_room(machines.iter().map(|owned| owned.short_name(project)));
    let mut all = Vec::new();
    for owned in &machines {
        all.push(request.open(owned, project, request.lines)?);
    }
    loop {
        show_what_is_there(&mut all, &mut printer, request)?;
        if !request.follows {
            return printer.flush_all();
        }
        // Asked before reading: whatever was written before the end is read after this.
        let current = request.machines(engine, project)?;
        let is_over = !current.iter().any(Owned::is_active);
        for owned in &current {
            // One that was made anew goes on in a log of its own.
            if !all.iter().any(|log| log.id == owned.machine.id) {
                all.push(request.open(owned, project, None)?);
            }
        }
        if is_over {
            show_what_is_there(&mut all, &mut printer, request)?;
            return printer.flush_all();
        }
        thread::sleep(POLL);
    }
}

/// The earliest of what comes next in each log, until none has more.
fn show_what_is_there(all: &mut [Log], printer: &mut Printer<'_>, request: &Request<'_>) -> Result<(), Failure> {
    loop {
        all.iter_mut().try_for_each(Log::fill)?;
        let next = all.iter_mut().filter_map(|log| Some((log.entries.front()?.at, log)));
        let Some((_, log)) = next.min_by_key(|(at, _)| *at) else {
            return Ok(());
        };
        if let Some(entry) = log
            .entries
            .pop_front()
            .filter(|entry| (request.wanted)(log.kind, entry))
        {
            printer.entry(&log.name, &entry)?;
        }
    }
}
