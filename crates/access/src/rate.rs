//! How often somebody may ask: a bucket of tries for each, which fills again as time goes by.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Those who are counted at a time, so that memory has a limit.
const MOST: usize = 4096;

/// How many tries there are at once, and how long one takes to come back.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Tries at once.
    pub burst: u32,
    /// Time in which one more comes.
    pub every: Duration,
}

/// The buckets of many.
#[derive(Debug)]
pub struct Buckets<K> {
    pace: Pace,
    // When the bucket will be full again: that says how much is in it.
    full_at: HashMap<K, Instant>,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Full ones.
    pub fn new(pace: Pace) -> Buckets<K> {
        Buckets {
            pace,
            full_at: HashMap::new(),
        }
    }

    /// How long one has to wait until there is a try; `None` when there is one now.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let missing = self.full_at.get(key)?.checked_duration_since(now)?;
        // With one try left, so much is missing at most.
        let most = self.pace.every * (self.pace.burst - 1);
        missing.checked_sub(most).filter(|wait| !wait.is_zero())
    }

    /// Takes a try.
    pub fn take(&mut self, key: &K, now: Instant) {
        if self.full_at.len() >= MOST && !self.full_at.contains_key(key) {
            self.full_at.retain(|_, full_at| *full_at > now);
            // All of them are at it: who has waited longest is let go.
            if self.full_at.len() >= MOST
                && let Some(first) = self
                    .full_at
                    .iter()
                    .min_by_key(|(_, at)| **at)
                    .map(|(key, _)| key.clone())
            {
                self.full_at.remove(&first);
            }
        }
        let full_at = self.full_at.entry(key.clone()).or_insert(now);
        *full_at = (*full_at).max(now) + self.pace.every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_at_a_time() {
        let pace = Pace {
            burst: 3,
            every: Duration::from_secs(10),
        };
        let mut buckets = Buckets::new(pace);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(buckets.wait(&"a", start), None);
            buckets.take(&"a", start);
        }
        assert_eq!(buckets.wait(&"a", start), Some(pace.every));
        assert_eq!(buckets.wait(&"b", start), None);
        assert_eq!(buckets.wait(&"a", start + pace.every), None);
        buckets.take(&"a", start + pace.every);
        assert!(buckets.wait(&"a", start + pace.every).is_some());
    }

    #[test]
    fn no_crowd_takes_more_memory() {
        let mut buckets = Buckets::new(Pace {
            burst: 2,
            every: Duration::from_secs(60),
        });
        let now = Instant::now();
        for key in 0..2 * MOST {
            buckets.take(&key, now);
        }
        assert_eq!(buckets.full_at.len(), MOST);
    }
}
