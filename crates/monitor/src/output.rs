//! What a monitor says: the machine's log, and the report to the command that started it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use zmachine_spec::control::Report;
use zmachine_store::attempt::ConsoleTail;
use zmachine_store::log::{LogWriter, Source};

/// The log, shared by the tasks of the monitor, and the end of the console for the record of the attempt.
#[derive(Debug, Clone)]
pub(crate) struct SharedLog(Arc<Mutex<Written>>);

#[derive(Debug)]
struct Written {
    log: LogWriter,
    console: ConsoleTail,
}

impl SharedLog {
    pub(crate) fn new(writer: LogWriter) -> SharedLog {
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
    pub(crate) fn write(&self, source: Source, bytes: &[u8], at: Timestamp) {
        let mut written = self.lock();
        if source == Source::Console {
            written.console.push(bytes);
        }
        let _ = written.log.write(source, bytes, at);
    }

    /// Appends one line of ours.
    pub(crate) fn note(&self, source: Source, line: &str) {
        self.lock().log.note(source, line);
    }

    /// The end of the console since the last call.
    pub(crate) fn take_console(&self) -> ConsoleTail {
        std::mem::take(&mut self.lock().console)
    }
}

/// The pipe to the command that started us.
#[derive(Debug)]
pub(crate) struct ReportPipe(Option<std::fs::File>);

impl ReportPipe {
    pub(crate) fn new(fd: OwnedFd) -> ReportPipe {
        ReportPipe(Some(fd.into()))
    }

    /// Writes a line. The starter may be gone; that is its right.
    pub(crate) fn send(&mut self, report: &Report) {
        use std::io::Write;
        if let (Some(pipe), Ok(mut line)) = (&mut self.0, serde_json::to_vec(report)) {
            line.push(b'\n');
            let _ = pipe.write_all(&line);
        }
    }

    /// As [`ReportPipe::send`], but nothing when the starter is slow to read: more of the kind follows.
    pub(crate) fn send_if_read(&mut self, report: &Report) {
        let is_writable = |pipe: &std::fs::File| {
            let mut polled = [rustix::event::PollFd::new(pipe, rustix::event::PollFlags::OUT)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
        };
        if self.0.as_ref().is_some_and(is_writable) {
            self.send(report);
        }
    }

    pub(crate) fn close(&mut self) {
        self.0 = None;
    }
}
