//! Forwarding a log to somebody else, as it is written.
//!
//! A thread reads the log's own files from a kept [`Position`] and sends each entry. So an absent or slow receiver costs
//! neither memory nor the guest's time: what it has not taken waits in the files, as long as their limits keep it.
//!
//! # What a receiver gets
//! ```text
//! tcp://HOST:PORT   unix://PATH   file://PATH   one JSON object a line
//! ws://HOST:PORT/PATH                           one JSON object a text message
//! syslog://HOST:PORT                            one RFC 5424 message a UDP datagram
//! syslog                                        the host's own, through /dev/log
//! ```
//! The objects have `time`, `machine`, `id`, `source`, `partial` and `text`.
//!
//! # Invariants
//! The position that is kept (`logs/forward.json`) never passes what the receiver's side has taken, so an entry may come
//! twice after a broken connection, but none is left out. Datagrams and files have no such answer; what the kernel
//! accepted counts as taken there.

mod sink;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zmachine_spec::LogTarget;
use zmachine_sys::file;

use self::sink::Sink;
use super::{LogReader, Position};

/// How often the end of the log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Waiting times between attempts to reach a receiver.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often the position is kept.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// Who sends, as a receiver is told.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The machine's folder.
    pub machine: PathBuf,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    target: String,
    position: Position,
}

/// A thread that forwards a log.
#[derive(Debug)]
pub struct Forwarder {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// How long the receiver may take for the last entries of a run.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

impl Forwarder {
    /// Begins to forward the log of a machine, from where an earlier one stopped. `tell` gets a line when the receiver
    /// is lost and when it is there again.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(
        sender: Sender,
        target: LogTarget,
        tell: impl Fn(String) + Send + 'static,
    ) -> std::io::Result<Forwarder> {
        let ending = Arc::new(AtomicBool::new(false));
        let work = Work {
            kept: kept_position(&sender.machine, &target),
            sender,
            target,
            ending: ending.clone(),
            tell: Box::new(tell),
            was_lost: false,
        };
        let thread = std::thread::Builder::new()
            .name("zm-forward".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || work.run())?;
        Ok(Forwarder { ending, thread })
    }

    /// Sends what is left, for at most three seconds, keeps the position, and ends. A thread that a receiver holds up all the
    /// same is left behind: the machine's end does not wait for it.
    pub fn finish(self) {
        self.ending.store(true, Ordering::Release);
        let until = Instant::now() + 2 * LAST_TIMEOUT;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(POLL / 10);
        }
        if self.thread.is_finished() {
            let _ = self.thread.join();
        }
    }
}

struct Work {
    sender: Sender,
    target: LogTarget,
    ending: Arc<AtomicBool>,
    tell: Box<dyn Fn(String) + Send>,
    kept: Position,
    was_lost: bool,
}

impl Work {
    fn run(mut self) {
        let mut wait = FIRST_WAIT;
        let mut deadline = None;
        loop {
            let begun = Instant::now();
            match self.connected(&mut deadline) {
                Ok(()) => break,
                Err(error) if !self.was_lost => {
                    self.was_lost = true;
                    (self.tell)(format!(
                        "the log cannot be sent to {} now ({error}); it waits, and it is tried again",
                        self.target
                    ));
                }
                Err(_) => {}
            }
            self.keep();
            if begun.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            if !self.pause(wait, &mut deadline) {
                break;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        self.keep();
    }

    /// Sends until the end of the run; an error when the connection breaks.
    fn connected(&mut self, deadline: &mut Option<Instant>) -> std::io::Result<()> {
        let mut sink = Sink::connect(&self.target)?;
        let mut reader = LogReader::open_at(&self.sender.machine, self.kept);
        let mut unkept = Instant::now();
        loop {
            // Asked before reading: what was written before the end is read after this.
            let is_ending = self.is_ending(deadline);
            let mut idle = true;
            while let Some(entry) = reader.next_entry()? {
                idle = false;
                sink.send(&self.sender, &entry, reader.position())?;
                if sink.is_batch_full() {
                    break;
                }
            }
            sink.flush()?;
            if let Some(position) = sink.taken()? {
                self.kept = position;
                if std::mem::take(&mut self.was_lost) {
                    (self.tell)(format!("the log is sent to {} again", self.target));
                }
            }
            if unkept.elapsed() >= KEEP_EVERY {
                self.keep();
                unkept = Instant::now();
            }
            if is_ending && idle && (sink.is_all_taken() || deadline.is_some_and(|at| Instant::now() > at)) {
                sink.close();
                return Ok(());
            }
            if idle {
                std::thread::sleep(if is_ending { POLL / 10 } else { POLL });
            }
            if deadline.is_some_and(|at| Instant::now() > at) {
                return Ok(());
            }
        }
    }

    fn is_ending(&self, deadline: &mut Option<Instant>) -> bool {
        let is_ending = self.ending.load(Ordering::Acquire);
        if is_ending && deadline.is_none() {
            *deadline = Some(Instant::now() + LAST_TIMEOUT);
        }
        is_ending
    }

    /// Waits; `false` when the run ends and there is no more time.
    fn pause(&self, wait: Duration, deadline: &mut Option<Instant>) -> bool {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if self.is_ending(deadline) {
                // A receiver that was away during the run is asked once more, not waited for.
                return deadline.is_some_and(|at| Instant::now() + wait < at) && !self.was_lost;
            }
            std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now())));
        }
        true
    }

    fn keep(&self) {
        let kept = Kept {
            version: 1,
            target: self.target.to_string(),
            position: self.kept,
        };
        // Without it, entries come twice after a restart: no reason to stop.
        let _ = file::replace_json(&kept_path(&self.sender.machine), &kept);
    }
}

fn kept_path(machine: &Path) -> PathBuf {
    machine.join("logs").join("forward.json")
}

fn kept_position(machine: &Path, target: &LogTarget) -> Position {
    match file::read_json::<Kept>(&kept_path(machine)) {
        Ok(kept) if kept.target == target.to_string() => kept.position,
        _ => Position::default(),
    }
}

#[cfg(test)]
mod tests;
