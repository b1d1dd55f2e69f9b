//! The time stamp counter of this host's CPUs, which an emulated guest sees as its own.
//!
//! A frequency takes two looks with time between them. [`begin`] takes the first, so that whoever asks later waits less.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time between two looks: with each good to a few tens of nanoseconds, the frequency is to a few millionths.
const APART: Duration = Duration::from_millis(20);

/// How many times a look is tried: whoever is interrupted between its two halves tries again.
const TRIES: usize = 64;

/// What part of the ticks between two looks may be uncertain; worse ones are not used.
const UNCERTAIN: u64 = 1000;

static FIRST: OnceLock<Look> = OnceLock::new();
static KHZ: OnceLock<Option<u32>> = OnceLock::new();

/// One look at counter and clock.
#[derive(Debug, Clone, Copy)]
struct Look {
    ticks: u64,
    at: Instant,
    /// Ticks that passed during the look.
    width: u64,
}

impl Look {
    /// The best of some: the one that took the least.
    fn take() -> Look {
        let looks = (0..TRIES).map(|_| {
            let before = ticks();
            let at = Instant::now();
            let width = ticks().wrapping_sub(before);
            Look {
                ticks: before.wrapping_add(width / 2),
                at,
                width,
            }
        });
        let best = looks.min_by_key(|look| look.width);
        best.unwrap_or(Look {
            ticks: ticks(),
            at: Instant::now(),
            width: u64::MAX,
        })
    }
}

/// Takes the first look, unless that was done.
pub fn begin() {
    FIRST.get_or_init(Look::take);
}

/// The counter's frequency in kHz, measured once per process; waits until 20 ms have passed since [`begin`]. `None` where the
/// counter does not run at one speed all the time, or could not be measured.
pub fn tsc_khz() -> Option<u32> {
    *KHZ.get_or_init(|| {
        let first = *FIRST.get_or_init(Look::take);
        is_invariant().then(|| frequency(&first)).flatten()
    })
}

fn frequency(first: &Look) -> Option<u32> {
    sleep(APART.saturating_sub(first.at.elapsed()));
    let second = Look::take();
    let ticks = second.ticks.wrapping_sub(first.ticks);
    let nanos = second.at.duration_since(first.at).as_nanos();
    let is_certain = first.width.saturating_add(second.width) < ticks / UNCERTAIN;
    let khz = u128::from(ticks) * 1_000_000 / nanos.max(1);
    is_certain.then(|| u32::try_from(khz).ok()).flatten()
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it reads nothing but the counter. Linux lets every process use it.
    unsafe { _rdtsc() }
}

/// Whether the counter runs at one speed in all states of the CPU (CPUID 8000_0007h, EDX bit 8; Intel SDM 18.17.1, AMD APM 3, E.4.6).
#[allow(unused_unsafe)]
fn is_invariant() -> bool {
    const POWER: u32 = 0x8000_0007;
    // SAFETY: every x86-64 CPU has the instruction; the highest leaf is asked for first.
    unsafe { __cpuid(0x8000_0000).eax >= POWER && __cpuid(POWER).edx & 1 << 8 != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_whatever_else_this_host_does() {
        let measured: Vec<u32> = (0..5).filter_map(|_| frequency(&Look::take())).collect();
        let (Some(least), Some(most)) = (measured.iter().min(), measured.iter().max()) else {
            panic!("nothing could be measured");
        };
        assert!(*least > 100_000, "{least} kHz");
        assert!((most - least) * 500 < *most, "{least} to {most} kHz");
    }

    #[test]
    fn one_process_always_says_the_same() {
        begin();
        assert_eq!(tsc_khz(), tsc_khz());
    }
}
