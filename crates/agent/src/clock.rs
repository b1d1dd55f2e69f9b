//! The guest's clock, which stands still while the machine is paused and while its host sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A difference that is left alone: it is what the message took, or less than programs care for, and a clock that is set
/// back for it would go through the same moment twice.
const TOLERANCE: Duration = Duration::from_millis(250);

/// Sets `CLOCK_REALTIME` to the host's, when they differ by more than [`TOLERANCE`]. `CLOCK_MONOTONIC` goes on as it did.
///
/// # Errors
/// The kernel's.
pub(crate) fn set(host: Duration) -> Result<(), Errno> {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if host.abs_diff(own) <= TOLERANCE {
        return Ok(());
    }
    set_exactly(host)
}

/// Sets `CLOCK_REALTIME` to the host's, which was `began`, in nanoseconds since the epoch, when `CLOCK_MONOTONIC` was 0.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_by_monotonic(began: u64) -> Result<(), Errno> {
    set_exactly(Duration::from_nanos(began.saturating_add(monotonic())))
}

/// What `CLOCK_MONOTONIC` shows, in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is ever negative.
    (now.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as u64)
}

/// Sets `CLOCK_REALTIME` to the host's, however little they differ: of a guest whose programs have not seen its own yet.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_exactly(host: Duration) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: host.as_secs().try_into().map_err(|_| Errno::INVAL)?,
        tv_nsec: host.subsec_nanos().into(),
    };
    clock_settime(ClockId::Realtime, time)
}
