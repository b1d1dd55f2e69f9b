//! Since when nobody has had to do with a machine, as a value.

use std::time::{Duration, Instant};

/// So many bytes may come to a machine between two looks at it: what is sent to all of a network.
const NOISE: u64 = 256;

/// How often it is looked at: ten times in what it may be idle for, but within these bounds.
const PERIODS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Since when nobody has had to do with a machine.
#[derive(Debug)]
pub(super) struct Quiet {
    timeout: Duration,
    since: Instant,
    received: u64,
    /// When it is looked at next.
    pub(super) next: tokio::time::Instant,
}

impl Quiet {
    /// From now on, for a machine that may be idle for so long.
    pub(super) fn new(timeout_ms: u64) -> Quiet {
        let timeout = Duration::from_millis(timeout_ms);
        Quiet {
            timeout,
            since: Instant::now(),
            received: 0,
            next: tokio::time::Instant::now() + period(timeout),
        }
    }

    /// It has not been quiet until now.
    pub(super) fn begin_anew(&mut self) {
        self.since = Instant::now();
    }

    /// What was seen now: bytes that have come to the machine in all, and since when no client is served, unless one is. Whether it has
    /// been quiet long enough.
    pub(super) fn look(&mut self, now: Instant, received: u64, clients: Option<Instant>) -> bool {
        self.next = tokio::time::Instant::now() + period(self.timeout);
        let came = received.saturating_sub(self.received);
        self.received = received;
        self.since = match clients {
            Some(quiet) if came <= NOISE => self.since.max(quiet),
            _ => now,
        };
        now.saturating_duration_since(self.since) >= self.timeout
    }
}

fn period(timeout: Duration) -> Duration {
    (timeout / 10).clamp(PERIODS.0, PERIODS.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_idle_when_nobody_came_for_so_long() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut quiet = Quiet::new(10_000);
        quiet.since = begin;
        assert!(!quiet.look(at(5), 100, Some(begin)));
        assert!(quiet.look(at(11), 200, Some(begin)), "noise is nothing");
        // Bytes, a client that is served, and one that was, begin it anew.
        assert!(!quiet.look(at(12), 5_000, Some(begin)));
        assert!(!quiet.look(at(21), 5_000, Some(begin)));
        assert!(!quiet.look(at(22), 5_000, None));
        assert!(!quiet.look(at(33), 5_000, Some(at(30))));
        assert!(quiet.look(at(40), 5_000, Some(at(30))));
    }
}
