//! What `up` shows until all machines have ended: their logs, each line with the name of its machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use zmachine_compose::{Project, Service};
use zmachine_engine::Engine;
use zmachine_spec::{Failure, Phase};
use zmachine_store::log::{LogReader, tail};

use crate::logs::{Look, Printer};
use crate::owned::{Owned, owned};
use crate::{Front, converge, end};

/// How often logs are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How often machines are: that costs more.
const LOOK: Duration = Duration::from_millis(400);

/// What is followed, and what comes of the end of one.
pub struct Following<'a> {
    /// Whose machines.
    pub engine: &'a Engine,
    /// Where they are shown.
    pub front: &'a dyn Front,
    /// Of which project.
    pub project: &'a Project,
    /// Of which services.
    pub services: &'a BTreeSet<String>,
    /// How lines are shown.
    pub look: Look,
    /// All are stopped when one ends.
    pub ends_with_one: bool,
    /// The service whose status is the command's.
    pub status_of: Option<&'a str>,
    /// Time to stop, in place of that of each machine.
    pub grace: Option<Duration>,
}

/// The thread that starts machines.
pub struct Starting<'scope> {
    /// The thread.
    pub thread: ScopedJoinHandle<'scope, Result<(), Failure>>,
    /// Set by it when it has failed by itself.
    pub has_failed: &'scope AtomicBool,
    /// Has it start nothing more: what fails from then on was stopped.
    pub stop: &'scope (dyn Fn() + Sync),
}

/// Where the logs of machines ended that were there before: what they wrote then is not shown again.
pub struct Begun(BTreeMap<String, LogReader>);

impl Begun {
    /// They ended here.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn now(engine: &Engine, project: &Project) -> Result<Begun, Failure> {
        let mut readers = BTreeMap::new();
        for owned in owned(engine, &project.name)? {
            let (_, reader) = tail(&owned.machine.dir, 0, |_| true)?;
            readers.insert(owned.machine.id.clone(), reader);
        }
        Ok(Begun(readers))
    }
}

impl Following<'_> {
    /// Shows logs until `starting` is through and no machine runs any more, or it has failed; the status to exit with.
    ///
    /// # Errors
    /// When machines cannot be listed, or a log cannot be read.
    pub fn run(&self, begun: Begun, interrupts: &AtomicU32, starting: &Starting<'_>) -> Result<u8, Failure> {
        let Begun(mut readers) = begun;
        let mut printer = Printer::new(self.front, self.look);
        let names = self.names();
        let prefix = format!("{}-", self.project.name);
        printer.make_room(names.iter().map(|name| name.strip_prefix(&prefix).unwrap_or(name)));
        let mut ended_first: Option<u8> = None;
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut ended: BTreeSet<String> = BTreeSet::new();
        let mut looked: Option<Instant> = None;
        let mut machines: Vec<Owned> = Vec::new();
        loop {
            let is_through = starting.thread.is_finished();
            if looked.is_none_or(|at| at.elapsed() >= LOOK) || is_through {
                machines = self.machines()?;
                looked = Some(Instant::now());
            }
            let mut is_active = false;
            for owned in &machines {
                let id = &owned.machine.id;
                let shown = owned.short_name(&self.project.name);
                let service = self.project.services.get(&owned.service);
                let reader = readers
                    .entry(id.clone())
                    .or_insert_with(|| LogReader::open(&owned.machine.dir));
                let is_shown = service.is_none_or(|service| service.attach);
                printer.all(shown, owned.machine.state.kind, reader, is_shown)?;
                is_active |= owned.is_active();
                if owned.is_active() {
                    seen.insert(id.clone());
                    ended.remove(id);
                } else if (seen.contains(id) || is_through) && ended.insert(id.clone()) {
                    let Some(code) = status(owned) else { continue };
                    printer.flush(shown)?;
                    self.front.done(shown, &format!("exited with code {code}"));
                    if self.status_of.is_none_or(|name| name == owned.service) {
                        ended_first.get_or_insert(code);
                    }
                    if self.ends_with_one && interrupts.load(Ordering::SeqCst) == 0 {
                        (starting.stop)();
                        end::stop_all(self.engine, self.front, self.project, self.grace);
                    }
                }
            }
            let is_left = starting.has_failed.load(Ordering::SeqCst) && interrupts.load(Ordering::SeqCst) == 0;
            if is_through && (!is_active || is_left) {
                printer.flush_all()?;
                return Ok(match self.ends_with_one {
                    true => ended_first.unwrap_or(0),
                    false => 0,
                });
            }
            thread::sleep(POLL);
        }
    }

    /// The machines that there will be.
    fn names(&self) -> Vec<String> {
        let services = self.services.iter().filter_map(|name| self.project.services.get(name));
        let numbered = |service: &Service| -> Vec<String> {
            (1..=service.scale)
                .map(|number| converge::name(self.project, service, number))
                .collect()
        };
        services.flat_map(numbered).collect()
    }

    fn machines(&self) -> Result<Vec<Owned>, Failure> {
        let mut all = owned(self.engine, &self.project.name)?;
        all.retain(|owned| !owned.is_once && self.services.contains(&owned.service));
        Ok(all)
    }
}

/// How a machine ended; `None` for one that never ran.
fn status(owned: &Owned) -> Option<u8> {
    match &owned.machine.state.phase {
        Phase::Stopped { exit } => Some(exit.shell_code()),
        Phase::Failed { .. } => Some(1),
        _ => None,
    }
}
