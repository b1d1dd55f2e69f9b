//! One download of a block at a time on this host: what processes tell each other before they ask a store.
//!
//! ```text
//! <cache>/.claims    empty; a lock on byte number n of it is held by the one process that fetches the blocks whose key
//!                    begins with n
//! ```
//! # Invariants
//! * A claim saves work and decides nothing: whoever has waited for [`TIMEOUT`] fetches the block itself, so a process that
//!   is stopped or asks a dead store holds up nobody for long. Blocks appear in the cache in one piece whoever brings them.
//! * A claim ends with its process; there is nothing to clean up.
//! * Where claims cannot be made (a file system without such locks), every process fetches for itself.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use zmachine_flist::BlockRef;
use zmachine_sys::lock::{ByteLock, ByteLocks};

/// How long another process's download is waited for.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause between two looks; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Name of the file in the cache.
const NAME: &str = ".claims";

/// The claims of one cache.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// `None` inside when they cannot be made.
    locks: OnceLock<Option<ByteLocks>>,
}

/// How a wait for a block ended.
#[derive(Debug)]
pub(crate) enum Turn<'a> {
    /// It is ours to fetch, or nobody can say; the claim is kept meanwhile.
    Fetch(#[allow(dead_code)] Option<ByteLock<'a>>),
    /// Somebody else has brought it.
    Arrived,
}

impl Claims {
    /// Waits until `block` is there or ours to fetch, until `deadline` at the most.
    pub(crate) fn wait(
        &self,
        cache: &Path,
        block: &BlockRef,
        deadline: Instant,
        is_there: impl Fn() -> bool,
    ) -> Turn<'_> {
        let locks = self.locks.get_or_init(|| ByteLocks::open(&cache.join(NAME)).ok());
        let Some(locks) = locks else {
            return Turn::Fetch(None);
        };
        let end = deadline.min(Instant::now() + TIMEOUT);
        let mut pause = PAUSE;
        loop {
            let taken = match locks.try_take(number(block)) {
                Ok(taken) => taken,
                Err(_) => return Turn::Fetch(None),
            };
            // In this order: whoever held the claim has put the block into the cache before letting go.
            if is_there() {
                return Turn::Arrived;
            }
            if taken.is_some() || Instant::now() >= end {
                return Turn::Fetch(taken);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn number(block: &BlockRef) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&block.key.0.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fetches_and_the_other_waits_for_it_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (block, _) = BlockRef::seal(b"one");
        let (ours, theirs) = (Claims::default(), Claims::default());
        let soon = || Instant::now() + Duration::from_millis(50);
        let claim = ours.wait(dir.path(), &block, soon(), || false);
        assert!(matches!(claim, Turn::Fetch(Some(_))));
        let started = Instant::now();
        let turn = theirs.wait(dir.path(), &block, soon(), || false);
        assert!(matches!(turn, Turn::Fetch(None)), "nobody waits past the deadline");
        assert!(started.elapsed() >= Duration::from_millis(50));
        let looks = std::cell::Cell::new(0);
        let arrives = || looks.replace(looks.get() + 1) == 3;
        let turn = theirs.wait(dir.path(), &block, soon(), arrives);
        assert!(matches!(turn, Turn::Arrived));
        let (other, _) = BlockRef::seal(b"two");
        let turn = theirs.wait(dir.path(), &other, soon(), || false);
        assert!(matches!(turn, Turn::Fetch(Some(_))), "another block is another claim");
        drop(claim);
        let turn = theirs.wait(dir.path(), &block, soon(), || false);
        assert!(matches!(turn, Turn::Fetch(Some(_))));
    }

    #[test]
    fn without_a_place_for_claims_everybody_fetches() {
        let (block, _) = BlockRef::seal(b"one");
        let claims = Claims::default();
        let turn = claims.wait(Path::new("/nonexistent"), &block, Instant::now(), || false);
        assert!(matches!(turn, Turn::Fetch(None)));
    }
}
