//! Points at which a test can end the process as a power cut would.
//!
//! Every step that changes the host passes one. In normal use nothing happens there. A test counts through them:
//! "abort at the n-th", for n = 0, 1, 2, ... until the operation completes, and each time the next command must bring
//! the host back to a clean state.

use std::sync::atomic::{AtomicU32, Ordering};

/// Counts the points passed, and aborts at one.
#[derive(Debug, Default)]
pub struct Killpoints {
    abort_at: Option<u32>,
    passed: AtomicU32,
}

impl Killpoints {
    /// Aborts when the point number `abort_at` (from 0) is reached; never with `None`.
    pub fn new(abort_at: Option<u32>) -> Killpoints {
        Killpoints {
            abort_at,
            passed: AtomicU32::new(0),
        }
    }

    /// One point. `name` shows up on stderr when the process ends here.
    pub fn pass(&self, name: &str) {
        let number = self.passed.fetch_add(1, Ordering::Relaxed);
        if self.abort_at == Some(number) {
            eprintln!("killpoint {number}: {name}");
            // SIGKILL, not abort(): no handler, no core, no unwinding, exactly as `kill -9`.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
    }
}
