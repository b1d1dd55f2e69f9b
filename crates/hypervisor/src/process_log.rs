//! What a hypervisor's process says on its standard error, and what its end means.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::ChildStderr;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::lines::Lines;
use crate::{ExitReason, LogLines};

/// Lines that are kept for error texts.
const KEPT_LINES: usize = 20;
/// Lines that wait for whoever takes the log.
const WAITING_LINES: usize = 256;
/// No line is shown longer than this.
const MAX_LINE_BYTES: usize = 4096;

/// Signals that a process gets for its own faults, so that dying of one is a crash and not somebody's wish.
const FAULTS: [i32; 8] = [
    4,  // SIGILL
    5,  // SIGTRAP
    6,  // SIGABRT
    7,  // SIGBUS
    8,  // SIGFPE
    11, // SIGSEGV
    13, // SIGPIPE
    31, // SIGSYS, from its own sandbox
];

/// A hypervisor's standard error: read by a task of its own, so that the hypervisor never waits for us to read it.
#[derive(Debug)]
pub(crate) struct Log {
    kept: Arc<Mutex<VecDeque<String>>>,
    pub(crate) lines: Option<LogLines>,
    task: Option<JoinHandle<()>>,
}

impl Log {
    /// Begins to read; `program: ` at the beginning of a line is cut off.
    pub(crate) fn collect(stderr: Option<ChildStderr>, program: &'static str) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, lines) = mpsc::channel(WAITING_LINES);
        let task = stderr.map(|stderr| tokio::spawn(read_lines(stderr, program, kept.clone(), sender)));
        Self {
            kept,
            lines: Some(lines),
            task,
        }
    }

    /// The first of the kept lines with `text` in it.
    pub(crate) fn find(&self, text: &str) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|line| line.contains(text)).cloned()
    }

    /// The last lines, after the process has ended and all was read.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        self.last_lines().await
    }

    /// As [`Self::finish`]. Bounded, in case somebody else holds the standard error open.
    pub(crate) async fn last_lines(&mut self) -> Vec<String> {
        if let Some(task) = self.task.take() {
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Why a process ended that has not said why, by its status; `None` for a status that nobody could read.
    pub(crate) async fn reason_of(&mut self, status: Option<ExitStatus>) -> ExitReason {
        match status.and_then(|s| s.signal()) {
            Some(signal) if !FAULTS.contains(&signal) => ExitReason::HostSignal(signal),
            _ => ExitReason::Crashed {
                status: status.map_or_else(|| "unknown".into(), |s| s.to_string()),
                last_stderr_lines: self.last_lines().await,
            },
        }
    }
}

async fn read_lines(
    stderr: ChildStderr,
    program: &'static str,
    kept: Arc<Mutex<VecDeque<String>>>,
    sender: mpsc::Sender<String>,
) {
    let mut lines = Lines::new(stderr, MAX_LINE_BYTES);
    while let Ok(Some(text)) = lines.next_line().await {
        let text = text.trim_end();
        let text = text
            .strip_prefix(program)
            .and_then(|t| t.strip_prefix(": "))
            .unwrap_or(text)
            .to_owned();
        let _ = sender.try_send(text.clone()); // nobody may be listening, or not fast enough
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dying_of_a_fault_is_a_crash_and_of_another_signal_somebodys_wish() {
        let mut log = Log::collect(None, "x");
        assert_eq!(
            log.reason_of(Some(ExitStatus::from_raw(9))).await,
            ExitReason::HostSignal(9)
        );
        assert!(matches!(
            log.reason_of(Some(ExitStatus::from_raw(31))).await,
            ExitReason::Crashed { .. }
        ));
    }
}
