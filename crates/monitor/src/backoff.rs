//! What is remembered from one run of a machine to the next.

use std::time::Instant;

/// Who wants a run to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// A user, by a command.
    User,
    /// The host, by SIGTERM to the monitor.
    Host,
}

/// What the restart policy needs to know beyond the state.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Restarts in a row without a healthy run.
    pub(super) restarts: u32,
    /// Since when the entrypoint runs, by the clock that never jumps.
    pub(super) ready: Option<Instant>,
    /// Who wants the run to end.
    pub(super) stop_reason: Option<StopReason>,
}
