//! Blocks on their way to stable storage while others are still sealed: what is left to write at the end is little.
//!
//! The kernel begins to write on its own only when there are gigabytes to write, and until then the disk would idle. The flush at the
//! end is what makes the blocks durable; those in between only shorten it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use zmachine_image::store::{BlockStore, StoreError};

/// Bytes that are stored before they are flushed.
const BYTES: u64 = 64 << 20;

/// How often that is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Does `work`, which puts blocks into `store`, and flushes along; `stored` tells how many bytes it has put.
///
/// # Errors
/// When a flush failed: the store may tell of it only once, so it must not be forgotten.
pub(super) fn flushing<T>(
    store: &dyn BlockStore,
    stored: impl Fn() -> u64 + Send,
    work: impl FnOnce() -> T,
) -> Result<T, StoreError> {
    std::thread::scope(|scope| {
        let (working, ended) = channel::<()>();
        let flusher = scope.spawn(move || flush_along(store, stored, &ended));
        let result = work();
        drop(working);
        match flusher.join() {
            Ok(flushed) => flushed.map(|()| result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Until the other end of `ended` is gone.
fn flush_along(store: &dyn BlockStore, stored: impl Fn() -> u64, ended: &Receiver<()>) -> Result<(), StoreError> {
    let mut flushed = 0;
    while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let stored = stored();
        if stored - flushed >= BYTES {
            store.flush()?;
            flushed = stored;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use zmachine_flist::BlockId;

    use super::*;

    /// A store whose disk is broken.
    struct Broken {
        is_asked: Barrier,
    }

    impl Broken {
        fn error(&self) -> StoreError {
            StoreError::Unavailable {
                store: self.describe(),
                what: "its disk is broken".into(),
            }
        }
    }

    impl BlockStore for Broken {
        fn get(&self, _id: &BlockId) -> Result<Vec<u8>, StoreError> {
            Err(self.error())
        }

        fn has(&self, _id: &BlockId) -> Result<bool, StoreError> {
            Err(self.error())
        }

        fn put(&self, _id: &BlockId, _sealed: &[u8]) -> Result<bool, StoreError> {
            Err(self.error())
        }

        fn flush(&self) -> Result<(), StoreError> {
            self.is_asked.wait();
            Err(self.error())
        }

        fn describe(&self) -> String {
            "a store".into()
        }
    }

    #[test]
    fn a_flush_that_fails_underway_is_not_forgotten() {
        let store = Broken {
            is_asked: Barrier::new(2),
        };
        let flushed = flushing(&store, || BYTES, || store.is_asked.wait().is_leader());
        assert!(matches!(flushed, Err(StoreError::Unavailable { .. })));
        // What is not much waits for the end.
        assert!(matches!(flushing(&store, || BYTES - 1, || 7), Ok(7)));
    }
}
