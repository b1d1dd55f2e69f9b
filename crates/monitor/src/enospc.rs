//! A guest that stands still because there is no room for what it writes: it is let go on when there may be.
//!
//! The hypervisor stops the guest instead of giving it an error, so no file system of a guest is ever damaged by a full
//! disk of its host. Whether there is room again shows only by trying.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two tries.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

/// Whether the guest waits for room.
#[derive(Debug, Default)]
pub(super) struct Enospc {
    pub(super) next_try: Option<Instant>,
    /// The user knows.
    pub(super) reported: bool,
}

impl Enospc {
    /// When the guest is to be let go on.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.next_try
    }

    /// Somebody else decides now whether the guest runs.
    pub(super) fn forget(&mut self) {
        self.next_try = None;
    }
}
