//! The guest's clock follows the host's: it stands still while the machine is paused and while the host sleeps.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use zmachine_agent_protocol::Request;

use super::session::{Session, SessionError};

/// How long the guest may take to set its clock.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Session {
    /// Has the guest's clock show what this host's does.
    ///
    /// # Errors
    /// When the connection is gone or the agent refuses.
    pub(super) async fn set_time(&self) -> Result<(), SessionError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.ask(&Request::SetTime { unix_nanos }).await.map(drop)
    }
}

/// Tells the guest the time; nobody waits for it. A guest whose clock cannot be set runs on.
pub(super) fn tell(session: Option<Session>) {
    if let Some(session) = session {
        tokio::spawn(async move { tokio::time::timeout(TIMEOUT, session.set_time()).await });
    }
}

/// Tells the guest the time whenever this host's clock has jumped: it was set, or the host has slept. Ends only where the
/// kernel has no timer to spare.
pub(super) async fn follow(session: watch::Receiver<Option<Session>>) {
    let Ok(timer) = never() else { return };
    while timer.readable().await.is_ok() {
        match timer.try_read(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // ECANCELED, once for each jump.
            _ => tell(session.borrow().clone()),
        }
    }
}

/// A timer that never expires. What ends the wait for it is that its clock is set, and the host's awakening counts as that.
fn never() -> io::Result<Receiver> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let at = Itimerspec {
        it_interval: time(0),
        it_value: time(i64::MAX),
    };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET,
        &at,
    )?;
    // The runtime's way to wait for any descriptor that becomes readable.
    Receiver::from_owned_fd_unchecked(timer)
}
