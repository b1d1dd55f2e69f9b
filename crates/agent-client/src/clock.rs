//! The guest's clock follows the host's: it stands still while the machine is paused and while the host sleeps.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use zmachine_agent_protocol::{Reply, Request};

use crate::session::{Session, SessionError};

/// How long the guest may take to set its clock.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a guest's clock is looked at: what counts is the answer that took the least time, and half of that is how wrong it can be.
const LOOKS: usize = 5;

/// An answer that took no longer is good enough.
const SHORT: Duration = Duration::from_millis(4);

impl Session {
    /// Has the guest's clock show what this host's does.
    ///
    /// # Errors
    /// When the connection is gone or the agent refuses.
    pub async fn set_time(&self) -> Result<(), SessionError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.ask(&Request::SetTime { unix_nanos }).await.map(drop)
    }
}

/// How the clock that counts from a guest's start is to the host's, while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    /// What it showed, in nanoseconds.
    monotonic: u64,
    /// When.
    at: SystemTime,
    /// Whether the agent of a copy takes a greeting with all that it is to be.
    pub is_thawed_first: bool,
}

impl GuestClock {
    /// Looks at it; `None` where the agent knows no such request.
    pub async fn read(session: &Session) -> Option<GuestClock> {
        let mut best: Option<(Duration, GuestClock)> = None;
        for _ in 0..LOOKS {
            let (asked, at) = (Instant::now(), SystemTime::now());
            let answer = tokio::time::timeout(TIMEOUT, session.ask(&Request::Clock)).await;
            let Ok(Ok(Reply::Clock {
                monotonic,
                is_thawed_first,
            })) = answer
            else {
                break;
            };
            let took = asked.elapsed();
            let clock = GuestClock {
                monotonic,
                at: at + took / 2,
                is_thawed_first,
            };
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, clock));
            }
            if took < SHORT {
                break;
            }
        }
        best.map(|(_, clock)| clock)
    }

    /// What it shows at that time.
    pub fn at(&self, time: SystemTime) -> u64 {
        match time.duration_since(self.at) {
            Ok(later) => self.monotonic.saturating_add(nanos(later)),
            Err(earlier) => self.monotonic.saturating_sub(nanos(earlier.duration())),
        }
    }

    /// When it showed nothing, in nanoseconds since the epoch.
    pub fn began(&self) -> u64 {
        began(self.at, self.monotonic)
    }
}

/// When a clock showed nothing that shows so many nanoseconds at this time, in nanoseconds since the epoch.
pub fn began(at: SystemTime, monotonic: u64) -> u64 {
    nanos(at.duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(monotonic)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells the guest the time; nobody waits for it. A guest whose clock cannot be set runs on.
pub fn tell(session: Option<Session>) {
    if let Some(session) = session {
        tokio::spawn(async move { tokio::time::timeout(TIMEOUT, session.set_time()).await });
    }
}

/// Tells the guest the time whenever this host's clock has jumped: it was set, or the host has slept. Ends only where the
/// kernel has no timer to spare.
pub async fn follow(session: watch::Receiver<Option<Session>>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_guest_follows_from_one_look_at_its_clock() {
        let clock = GuestClock {
            monotonic: 5_000_000_000,
            at: UNIX_EPOCH + Duration::from_secs(100),
            is_thawed_first: false,
        };
        assert_eq!(clock.began(), 95_000_000_000);
        // It stood still from 102 s on, and goes on at 200 s.
        let shown = clock.at(UNIX_EPOCH + Duration::from_secs(102));
        assert_eq!(shown, 7_000_000_000);
        assert_eq!(began(UNIX_EPOCH + Duration::from_secs(200), shown), 193_000_000_000);
        assert_eq!(clock.at(UNIX_EPOCH + Duration::from_secs(99)), 4_000_000_000);
    }
}
