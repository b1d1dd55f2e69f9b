//! The monitor: one process per running machine, which owns all of it.
//!
//! ```text
//! lock ─> journal undone (if a run crashed) ─> starting ─> launch ─> running ─> event loop ─> teardown ─> stopped
//!           launch:  run folder, network, rootfs server, disk | hypervisor | agent configured | entrypoint started
//! ```
//! # Invariants
//! It holds `machines/<id>/lock` for its whole life. One task, `run::run`, writes `state.json`. Every resource is
//! claimed in the journal before it is made; teardown undoes the journal in reverse, whatever happened. Its children die
//! with it. It has one thread (but for making the disk, forwarding the log, trimming the cache, and the frames of an
//! interface through passt), closes what it inherits, and leads a session of its own.

mod agent_start;
mod appliance;
mod cache;
mod cell;
mod clock;
#[cfg(test)]
mod commands_test;
mod confine;
mod console;
mod container;
mod entry;
mod forwarding;
mod guest;
mod inbox;
mod launch;
mod networks;
mod restart;
mod rootfs_child;
mod rootfs_watch;
mod run;
mod server;
mod session;
mod share;
mod space;
mod uplink;
mod vm;

use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use self::guest::paused;
pub(crate) use self::networks::{addresses, write_networks};
pub(crate) use self::vm::open_source;
use crate::attempt::ConsoleTail;
use crate::control::Report;
use crate::failure::Failure;
use crate::home::Home;
use crate::log::{LogWriter, Source};
use jiff::Timestamp;

/// What a monitor is started with.
#[derive(Debug)]
pub struct MonitorArgs {
    /// The state it works on.
    pub home: Home,
    /// The machine.
    pub id: String,
    /// Where [`Report`] lines go.
    pub report: OwnedFd,
    /// The entrypoint starts only when the starting client is attached.
    pub wait_for_owner: bool,
    /// See [`crate::killpoint`].
    pub abort_at: Option<u32>,
}

/// Runs one machine from start to end.
///
/// # Errors
/// When the machine could not be started; the failure is in its state, and reported, as well.
pub fn run(args: MonitorArgs) -> Result<(), Failure> {
    // Whatever it and its children make is its owner's alone, unless they say otherwise.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // Known by the time that an emulated guest is to be told of it.
    zmachine_sys::clock::begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(args))
}

/// The log, shared by the tasks of the monitor, and the end of the console for the record of the attempt.
#[derive(Debug, Clone)]
struct SharedLog(Arc<Mutex<Written>>);

#[derive(Debug)]
struct Written {
    log: LogWriter,
    console: ConsoleTail,
}

impl SharedLog {
    fn new(writer: LogWriter) -> SharedLog {
        SharedLog(Arc::new(Mutex::new(Written {
            log: writer,
            console: ConsoleTail::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // A panic while writing leaves at worst half an entry, which readers pass over.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Appends bytes of a source. A full disk must not stop the machine, so the bytes are dropped then.
    fn write(&self, source: Source, bytes: &[u8], at: Timestamp) {
        let mut written = self.lock();
        if source == Source::Console {
            written.console.push(bytes);
        }
        let _ = written.log.write(source, bytes, at);
    }

    /// Appends one line of ours.
    fn note(&self, source: Source, line: &str) {
        self.lock().log.note(source, line);
    }

    /// The end of the console since the last call.
    fn take_console(&self) -> ConsoleTail {
        std::mem::take(&mut self.lock().console)
    }
}

/// Where the roles find QEMU, nft and mkfs, whatever the user's own environment is.
const SEARCH_PATH: &str = zmachine_hypervisor::choice::SEARCH_PATH;

/// This very program in another role, even when its file was replaced since it was started.
pub(crate) fn own_program(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role).env_clear().env("PATH", SEARCH_PATH).current_dir("/");
    command
}

/// The pipe to the command that started us.
#[derive(Debug)]
struct ReportPipe(Option<std::fs::File>);

impl ReportPipe {
    fn new(fd: OwnedFd) -> ReportPipe {
        ReportPipe(Some(fd.into()))
    }

    /// Writes a line. The starter may be gone; that is its right.
    fn send(&mut self, report: &Report) {
        use std::io::Write;
        if let (Some(pipe), Ok(mut line)) = (&mut self.0, serde_json::to_vec(report)) {
            line.push(b'\n');
            let _ = pipe.write_all(&line);
        }
    }

    /// As [`ReportPipe::send`], but nothing when the starter is slow to read: more of the kind follows.
    fn send_if_read(&mut self, report: &Report) {
        let is_writable = |pipe: &std::fs::File| {
            let mut polled = [rustix::event::PollFd::new(pipe, rustix::event::PollFlags::OUT)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
        };
        if self.0.as_ref().is_some_and(is_writable) {
            self.send(report);
        }
    }

    fn close(&mut self) {
        self.0 = None;
    }
}
