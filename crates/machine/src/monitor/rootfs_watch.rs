//! What the monitor makes of its rootfs server: counters, failed blocks with the files they belong to, restarts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use zmachine_flist::{BlockId, Flist};
use zmachine_rootfs::files_of_block;
use zmachine_rootfs::report::Stats;
use zmachine_sys::process::ProcessId;

use super::launch::Running;
use super::run::{Monitor, at};
use crate::failure::{Class, Failure};
use crate::journal::Resource;
use crate::log::Source;
use crate::plan::ContainerPlan;

/// How often a rootfs server may be started again within [`RESTART_WINDOW`] before the machine fails.
const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// How often the counters are written into the state, at the most.
const COUNTERS_PERIOD: Duration = Duration::from_secs(5);

/// How long the rootfs server may take to end by itself. It has nothing to do then but to write a line.
const LAST_LINES_PATIENCE: Duration = Duration::from_secs(1);

/// For how many blocks the files are looked up in one run: each look-up reads the whole flist.
const LOOKUPS: usize = 16;

/// What is remembered about the server in one run.
#[derive(Debug)]
pub(super) struct RootfsWatch {
    /// The counters of servers that ended; those of the current one come on top.
    earlier: Stats,
    /// Last time the counters were written into the state.
    saved: Instant,
    /// They changed since.
    changed: bool,
    restarts: Vec<Instant>,
    failed_blocks: BTreeSet<String>,
}

impl RootfsWatch {
    pub(super) fn new() -> RootfsWatch {
        RootfsWatch {
            earlier: Stats::default(),
            saved: Instant::now(),
            changed: false,
            restarts: Vec::new(),
            failed_blocks: BTreeSet::new(),
        }
    }

    /// When the counters are to be written; `None` when they are.
    pub(super) fn counters_due(&self) -> Option<Instant> {
        self.changed.then(|| self.saved + COUNTERS_PERIOD)
    }
}

/// The lines that mean something to us; see `zmachine_rootfs::report`.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line {
    Stats(Stats),
    BlockFailed {
        block: String,
        error: String,
    },
    #[serde(other)]
    Other,
}

impl Monitor<ContainerPlan> {
    /// A line of the server, or its end, after which it is started again.
    pub(super) fn rootfs_event(
        &mut self,
        running: &mut Running,
        event: Result<String, String>,
    ) -> Result<(), (String, Failure)> {
        let status = match event {
            Ok(line) => {
                self.rootfs_line(&line);
                return Ok(());
            }
            Err(status) => status,
        };
        let text = format!("the rootfs server ended ({status}); it is started again");
        self.log.note(Source::Monitor, &text);
        self.machine.state.warn(text);
        self.watch.earlier = self.machine.state.rootfs_counters;
        let restarts = &mut self.watch.restarts;
        restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
        if restarts.len() >= RESTARTS {
            let message = format!("the rootfs server ended {} times in a minute", RESTARTS + 1);
            return Err(("running".to_owned(), Failure::new(Class::Failed, message)));
        }
        restarts.push(Instant::now());
        if let Some(rootfs) = &mut running.rootfs {
            rootfs.restart().map_err(at("rootfs server"))?;
            self.claim_rootfs(rootfs.id()).map_err(at("rootfs server"))?;
        }
        // Now: the state names a process that is gone.
        self.save_counters();
        Ok(())
    }

    /// One line of the server: counters, a block that could not be had, or something to log.
    fn rootfs_line(&mut self, line: &str) {
        match serde_json::from_str::<Line>(line) {
            Ok(Line::Stats(stats)) => {
                self.machine.state.rootfs_counters = self.watch.earlier + stats;
                self.watch.changed = true;
                if self.watch.counters_due().is_some_and(|due| due <= Instant::now()) {
                    self.save_counters();
                }
                return;
            }
            Ok(Line::BlockFailed { block, error }) => self.block_failed(block, error),
            Ok(Line::Other) | Err(_) => {}
        }
        self.log.note(Source::Monitor, &format!("rootfs: {line}"));
    }

    /// Tells which files can not be read. The guest asks again and again for the same block, so it is told once.
    fn block_failed(&mut self, block: String, error: String) {
        let known = &mut self.watch.failed_blocks;
        if known.len() >= LOOKUPS || !known.insert(block.clone()) {
            return;
        }
        self.machine
            .state
            .warn(format!("block {block} can not be read: {error}"));
        self.watch.changed = true;
        let flist = self.home.data().join("images").join(&self.plan.image).join("image.fl");
        let log = self.log.clone();
        // In a thread: a large flist takes seconds to read, and the machine must not wait for a message.
        std::thread::spawn(move || {
            let Ok(id) = block.parse().map(BlockId) else { return };
            if let Ok(flist) = Flist::open(&flist) {
                for file in files_of_block(&flist, &id) {
                    log.note(
                        Source::Monitor,
                        &format!("{} can not be read: block {block}: {error}", file.display()),
                    );
                }
            }
            zmachine_sys::heap::trim();
        });
    }

    /// Writes the counters into the state.
    pub(super) fn save_counters(&mut self) {
        self.watch.changed = false;
        self.watch.saved = Instant::now();
        let _ = self.save();
    }

    /// Asks the server to end and reads what it still has to say, its last counters among it.
    pub(super) async fn last_rootfs_lines(&mut self, running: &mut Running) {
        let Some(rootfs) = &mut running.rootfs else {
            return;
        };
        let term = rustix::process::Signal::TERM.as_raw();
        if let Some(Err(error)) = rootfs.id().map(|id| id.signal(term)) {
            let text = format!("the rootfs server was not asked to end: {error}");
            self.log.note(Source::Monitor, &text);
        }
        let lines = async {
            while let Ok(line) = rootfs.next_event().await {
                self.rootfs_line(&line);
            }
        };
        let _ = tokio::time::timeout(LAST_LINES_PATIENCE, lines).await;
    }

    /// Claims the server's process, so that another command can end it should this monitor die.
    pub(super) fn claim_rootfs(&mut self, id: Option<ProcessId>) -> Result<(), Failure> {
        self.machine.state.rootfs = id;
        if let Some(id) = id {
            let role = "rootfs".to_owned();
            self.journal.claim(Resource::Process { role, id })?;
            self.confine(id.pid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_lines_are_told_apart() {
        let stats = r#"{"event":"stats","requests":7,"blocks_fetched":2,"bytes_fetched":9}"#;
        assert!(matches!(
            serde_json::from_str(stats),
            Ok(Line::Stats(Stats {
                requests: 7,
                bytes_fetched: 9,
                ..
            }))
        ));
        let failed = r#"{"event":"block-failed","block":"ab","device_offset":1,"length":2,"error":"gone"}"#;
        assert!(matches!(serde_json::from_str(failed), Ok(Line::BlockFailed { .. })));
        assert!(matches!(serde_json::from_str(r#"{"event":"ready"}"#), Ok(Line::Other)));
    }
}
