//! One store of a route table: opened at need, and asked after the others while it fails.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::lock;
use crate::store::{BlockStore, StoreError};

/// How long a store that failed once is asked only after all others; twice as long after each further failure.
const REST: Duration = Duration::from_secs(10);

/// The longest of these.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// One store of the route table, opened at need.
pub(super) struct Source {
    pub(super) url: String,
    pub(super) store: OnceLock<Result<Box<dyn BlockStore>, Arc<StoreError>>>,
    /// Set while it fails.
    rest: Mutex<Option<Rest>>,
}

/// A store that failed, and is asked after all others.
struct Rest {
    until: Instant,
    /// One after the other.
    failures: u32,
}

impl Rest {
    /// How long a rest lasts after so many failures.
    fn length(failures: u32) -> Duration {
        let doubled = 2u32.checked_pow(failures.saturating_sub(1));
        doubled
            .and_then(|times| REST.checked_mul(times))
            .map_or(LONGEST_REST, |rest| rest.min(LONGEST_REST))
    }
}

impl Source {
    pub(super) fn new(url: String) -> Source {
        Source {
            url,
            store: OnceLock::new(),
            rest: Mutex::new(None),
        }
    }

    /// Whether others are to be asked first. When a rest is over, the first who asks tries the store again, and all
    /// others still see it resting until that has an answer: a server that swallows connections costs one of them its time.
    pub(super) fn is_resting(&self) -> bool {
        let now = Instant::now();
        match &mut *lock(&self.rest) {
            None => false,
            Some(rest) if rest.until > now => true,
            Some(rest) => {
                rest.until = now + REST;
                false
            }
        }
    }

    /// Whether its last answer was a failure that may pass.
    pub(super) fn has_failed(&self) -> bool {
        lock(&self.rest).is_some()
    }

    pub(super) fn failed(&self) {
        let mut rest = lock(&self.rest);
        let failures = rest.as_ref().map_or(1, |rest| rest.failures.saturating_add(1));
        *rest = Some(Rest {
            until: Instant::now() + Rest::length(failures),
            failures,
        });
    }

    pub(super) fn answered(&self) {
        *lock(&self.rest) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_keeps_failing_rests_longer_and_longer() {
        let seconds: Vec<u64> = [1, 2, 3, 5, 6, 40].map(|n| Rest::length(n).as_secs()).into();
        assert_eq!(seconds, [10, 20, 40, 160, 300, 300]);
    }

    #[test]
    fn one_caller_tries_a_store_whose_rest_is_over() {
        let source = Source::new("http://h".into());
        assert!(!source.is_resting());
        source.failed();
        assert!(source.is_resting());
        lock(&source.rest).as_mut().unwrap().until = Instant::now();
        assert_eq!([source.is_resting(), source.is_resting()], [false, true]);
        source.answered();
        assert!(!source.is_resting());
    }
}
