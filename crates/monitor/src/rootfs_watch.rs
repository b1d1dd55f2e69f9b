//! What the monitor makes of its rootfs server: counters, failed blocks with the files they belong to, what the guest read
//! first, restarts.

use std::time::{Duration, Instant};

use serde::Deserialize;
use zmachine_flist::{BlockId, Flist};
use zmachine_rootfs::report::Stats;
use zmachine_rootfs::{PrefetchList, files_of_block};
use zmachine_spec::{Class, Failure};
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;
use zmachine_sys::process::ProcessId;

use super::context::{Monitor, at};
use super::rootfs_child::{RootfsEvent, RootfsServer};
use super::rootfs_memory::RESTARTS;

/// How many servers in a row may end before they serve, until the machine fails.
const STARTS: u32 = 5;

/// How long the rootfs server may take to end by itself. It has nothing to do then but to write a line.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// For how many blocks the files are looked up in one run: each look-up reads the whole flist.
const LOOKUPS: usize = 16;

/// The lines that mean something to us; see `zmachine_rootfs::report`.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line {
    Ready,
    Stats(Stats),
    FirstReads {
        blocks: Vec<u32>,
    },
    CacheFailed {
        error: String,
        hint: Option<String>,
    },
    BlockFailed {
        block: String,
        error: String,
    },
    #[serde(other)]
    Other,
}

impl Monitor {
    /// What happens to the server; when it ends, another one takes its place.
    pub(super) fn rootfs_event(
        &mut self,
        server: &mut Option<RootfsServer>,
        event: RootfsEvent,
    ) -> Result<(), (String, Failure)> {
        match event {
            RootfsEvent::Line(line) => self.rootfs_line(&line),
            RootfsEvent::Ended(status) => self.rootfs_ended(server, &status)?,
            RootfsEvent::Restarted => {
                let id = server.as_ref().and_then(RootfsServer::id);
                self.claim_rootfs(id).map_err(at("rootfs server"))?;
                // Now: the state names a process that is gone.
                self.save_counters();
            }
            RootfsEvent::NotRestarted(failure) => return Err(("rootfs server".to_owned(), failure)),
        }
        Ok(())
    }

    fn rootfs_ended(&mut self, server: &mut Option<RootfsServer>, status: &str) -> Result<(), (String, Failure)> {
        let text = format!("the rootfs server ended ({status}); it is started again");
        self.log.note(Source::Monitor, &text);
        if self.watch.restarts.len() < RESTARTS {
            self.machine.state.warn(text);
        }
        self.watch.earlier = self.machine.state.rootfs_counters;
        self.watch.in_vain = match std::mem::take(&mut self.watch.is_serving) {
            true => 0,
            false => self.watch.in_vain + 1,
        };
        if self.watch.in_vain > STARTS {
            let message = format!(
                "the rootfs server ended {} times before it served ({status})",
                self.watch.in_vain
            );
            return Err(("running".to_owned(), Failure::new(Class::Failed, message)));
        }
        let pause = self.watch.pause();
        if let Some(server) = server {
            server.restart_after(pause);
        }
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
            Ok(Line::FirstReads { blocks }) => return self.watch.first_reads(blocks),
            Ok(Line::Ready) => self.watch.is_serving = true,
            Ok(Line::CacheFailed { error, hint }) => self.cache_failed(&error, hint),
            Ok(Line::BlockFailed { block, error }) => self.block_failed(block, error),
            Ok(Line::Other) | Err(_) => {}
        }
        self.log.note(Source::Monitor, &format!("rootfs: {line}"));
    }

    /// The cache keeps nothing, most likely because its disk is full, or had a damaged block. The guest does not notice.
    fn cache_failed(&mut self, error: &str, hint: Option<String>) {
        let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        let text = format!("{error}{hint}");
        if !self.machine.state.warnings.contains(&text) {
            self.machine.state.warn(text);
            self.watch.changed = true;
        }
    }

    /// Tells which files cannot be read. The guest asks again and again for the same block, so it is told once.
    fn block_failed(&mut self, block: String, error: String) {
        let known = &mut self.watch.failed_blocks;
        if known.len() >= LOOKUPS || !known.insert(block.clone()) {
            return;
        }
        self.machine
            .state
            .warn(format!("block {block} cannot be read: {error}"));
        self.watch.changed = true;
        let flist = self.watch.image.join("image.fl");
        let log = self.log.clone();
        // In a thread: a large flist takes seconds to read, and the machine must not wait for a message.
        std::thread::spawn(move || {
            let Ok(id) = block.parse().map(BlockId) else { return };
            if let Ok(flist) = Flist::open(&flist) {
                for file in files_of_block(&flist, &id) {
                    log.note(
                        Source::Monitor,
                        &format!("{} cannot be read: block {block}: {error}", file.display()),
                    );
                }
            }
            zmachine_sys::heap::trim();
        });
    }

    /// Writes what is due.
    pub(super) fn save_due(&mut self) {
        let now = Instant::now();
        if self.watch.counters_due().is_some_and(|due| due <= now) {
            self.save_counters();
        }
        let recording = self.watch.recording.as_ref();
        if recording
            .and_then(|recording| recording.until)
            .is_some_and(|until| until <= now)
        {
            self.save_first_reads();
        }
    }

    /// Adds what this start read to the image's list: later machines fetch it early. Two starts that end at once lose one
    /// of both recordings, no more.
    fn save_first_reads(&mut self) {
        let Some(recording) = self.watch.recording.take() else {
            return;
        };
        let mut list = PrefetchList::read(&recording.image);
        list.add_recording(&recording.blocks);
        if let Err(error) = list.save(&recording.image) {
            self.log.note(
                Source::Monitor,
                &format!("what this start read cannot be kept: {error}"),
            );
        }
    }

    /// Writes the counters into the state.
    pub(super) fn save_counters(&mut self) {
        self.watch.changed = false;
        self.watch.saved = Instant::now();
        let _ = self.save();
    }

    /// Asks the server to end and reads what it still has to say, its last counters among it.
    pub(super) async fn last_rootfs_lines(&mut self, server: &mut Option<RootfsServer>) {
        let Some(rootfs) = server else {
            return;
        };
        let term = rustix::process::Signal::TERM.as_raw();
        if let Some(Err(error)) = rootfs.id().map(|id| id.signal(term)) {
            let text = format!("the rootfs server was not asked to end: {error}");
            self.log.note(Source::Monitor, &text);
        }
        let lines = async {
            while let RootfsEvent::Line(line) = rootfs.next_event().await {
                self.rootfs_line(&line);
            }
        };
        let _ = tokio::time::timeout(LAST_LINES_TIMEOUT, lines).await;
        // A machine that never came up has read less than it needs.
        if self
            .watch
            .recording
            .as_ref()
            .is_some_and(|recording| recording.until.is_some())
        {
            self.save_first_reads();
        }
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
        assert!(matches!(serde_json::from_str(r#"{"event":"ready"}"#), Ok(Line::Ready)));
        let reads = r#"{"event":"first-reads","blocks":[7,9]}"#;
        assert!(matches!(serde_json::from_str(reads), Ok(Line::FirstReads { blocks }) if blocks == [7, 9]));
        let full = r#"{"event":"cache-failed","error":"full"}"#;
        assert!(matches!(serde_json::from_str(full), Ok(Line::CacheFailed { .. })));
        assert!(matches!(serde_json::from_str(r#"{"event":"new"}"#), Ok(Line::Other)));
    }
}
