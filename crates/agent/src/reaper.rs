//! Reaps every child of PID 1, ours and the orphans of the guest, and tells those who wait.
//!
//! # Invariants
//! A pid in the table has not been reaped, so it is not in use for another process: signals go through the table only.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, wait, waitid};
use tokio::sync::{Notify, oneshot};
use zmachine_agent_protocol::ExitStatus;

use crate::pollable::Pollable;

/// The table of processes somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: RefCell<BTreeMap<i32, oneshot::Sender<ExitStatus>>>,
    reaped: Notify,
}

impl Reaper {
    /// Registers a child just forked; must be called before the next `await`.
    pub(crate) fn watch(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Whether the process is watched and not yet reaped.
    pub(crate) fn is_alive(&self, pid: i32) -> bool {
        self.waiting.borrow().contains_key(&pid)
    }

    /// Sends `signal` to a watched process; to one that is gone it is lost.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal.
    pub(crate) fn signal(&self, pid: i32, signal: i32) -> Result<(), Errno> {
        // SAFETY: rustix wants "not a libc-internal signal"; kill(2) itself accepts or refuses every number.
        let signal = (1..=64)
            .contains(&signal)
            .then(|| unsafe { Signal::from_raw_unchecked(signal) });
        let (Some(signal), Some(target)) = (signal, Pid::from_raw(pid)) else {
            return Err(Errno::INVAL);
        };
        match self.is_alive(pid).then(|| kill_process(target, signal)) {
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    /// Waits until something has been reaped.
    pub(crate) async fn reaped(&self) {
        self.reaped.notified().await;
    }

    /// Whether PID 1 has any child left, zombies included: without one the guest has no process at all.
    pub(crate) fn has_children() -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
    }

    /// Reaps until the end of the machine.
    ///
    /// # Errors
    /// When the kernel gives no signal descriptor.
    pub(crate) async fn run(&self) -> io::Result<()> {
        let signals = child_signals()?;
        loop {
            self.reap_all();
            poll_fn(|cx| {
                let mut info = [0u8; size_of::<libc::signalfd_siginfo>() * 4];
                signals.poll_read_with(cx, |fd| Ok(rustix::io::read(fd, &mut info)?))
            })
            .await?;
        }
    }

    fn reap_all(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = exit_status(status) else { continue };
            if let Some(sender) = self.waiting.borrow_mut().remove(&pid.as_raw_nonzero().get()) {
                let _ = sender.send(status);
            }
        }
        self.reaped.notify_waiters();
    }
}

/// How a process ended; `None` for one that only stopped or went on.
pub(crate) fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status.exit_status().map(|code| ExitStatus::Code(code as u8));
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}

/// Blocks SIGCHLD and returns a descriptor that is readable when it is pending.
fn child_signals() -> io::Result<Pollable> {
    // SAFETY: `set` is a plain bit set that sigemptyset initialises before it is read; signalfd returns a new
    // descriptor that nobody else owns, or -1.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Pollable::new(OwnedFd::from_raw_fd(fd)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_signal_is_refused_and_a_gone_process_is_not_signalled() {
        let reaper = Reaper::default();
        assert_eq!(reaper.signal(1, 0), Err(Errno::INVAL));
        assert_eq!(reaper.signal(1, 65), Err(Errno::INVAL));
        assert_eq!(reaper.signal(1, 9), Ok(()), "not in the table, so nothing is sent");
    }
}
