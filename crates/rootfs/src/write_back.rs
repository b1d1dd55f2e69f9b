//! Blocks that are in memory alone, because the cache was full: once it has room, they are put there after all, so that a
//! machine that has read them starts again without its store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::server::queue::Device;

/// Between two tries with a cache that keeps nothing: each costs the transfer of a block.
const PAUSE: Duration = Duration::from_secs(10);
const STACK_BYTES: usize = 128 * 1024;

/// Whether a thread is at it.
#[derive(Debug, Default)]
pub struct WritingBack(AtomicBool);

/// Tries in the background, one block at a time, until no block is in memory alone. One that cannot be fetched again stays there.
pub fn start(device: &Arc<Device>) {
    if device.writing_back.0.swap(true, Ordering::AcqRel) {
        return;
    }
    let own = Arc::clone(device);
    let thread = thread::Builder::new().name("write-back".into()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        loop {
            while let Some(extent) = own.disk.in_memory_alone() {
                if !matches!(own.disk.fetch_ahead(&extent), Ok(true)) {
                    thread::sleep(PAUSE);
                }
            }
            own.writing_back.0.store(false, Ordering::Release);
            // One that came in between has found this thread at work, and started none.
            if own.disk.in_memory_alone().is_none() || own.writing_back.0.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    });
    // The next failure tries again.
    if started.is_err() {
        device.writing_back.0.store(false, Ordering::Release);
    }
}
