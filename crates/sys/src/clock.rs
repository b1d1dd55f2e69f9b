//! The time stamp counter of this host's CPUs, which an emulated guest sees as its own.
//!
//! A frequency takes two looks with time between them. [`begin`] takes the first, so that whoever asks later waits less; and what one
//! process has found out, others need not wait for until this host starts again.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{file, host};

/// Time between two looks: with each good to a few tens of nanoseconds, the frequency is to a few millionths.
const APART: Duration = Duration::from_millis(20);

/// How many times a look is tried: whoever is interrupted between its two halves tries again.
const TRIES: usize = 64;

/// What part of the ticks between two looks may be uncertain; worse ones are not used.
const UNCERTAIN: u64 = 1000;

static FIRST: OnceLock<Look> = OnceLock::new();
static KHZ: OnceLock<Option<u32>> = OnceLock::new();
static NOTES: OnceLock<PathBuf> = OnceLock::new();

/// What was found out.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot_id: String,
    khz: u32,
}

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

/// Names the file in which the frequency is noted, in a folder of whoever runs this; the first one holds.
pub fn note_in(file: PathBuf) {
    NOTES.get_or_init(|| file);
}

/// The counter's frequency in kHz. Where nobody has noted it ([`note_in`]), it is measured, which waits until 20 ms have passed since
/// [`begin`]. `None` where the counter does not run at one speed all the time, or could not be measured.
pub fn tsc_khz() -> Option<u32> {
    *KHZ.get_or_init(|| {
        if !is_invariant() {
            return None;
        }
        let first = || *FIRST.get_or_init(Look::take);
        match NOTES.get() {
            Some(notes) => noted(notes, &host::boot_id(), || frequency(&first())),
            None => frequency(&first()),
        }
    })
}

/// What is noted, since this host has started, or else what `measure` says, which is noted then.
fn noted(notes: &Path, boot_id: &str, measure: impl FnOnce() -> Option<u32>) -> Option<u32> {
    if let Ok(note) = file::read_json::<Note>(notes)
        && note.boot_id == boot_id
        && !boot_id.is_empty()
    {
        return Some(note.khz);
    }
    let khz = measure()?;
    let boot_id = boot_id.to_owned();
    // Without it the next process measures again.
    let _ = file::replace_json_unsynced(notes, &Note { boot_id, khz });
    Some(khz)
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
    fn what_was_measured_holds_until_this_host_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("counter.json");
        assert_eq!(noted(&notes, "a", || None), None);
        assert_eq!(noted(&notes, "a", || Some(2_000_000)), Some(2_000_000));
        assert_eq!(noted(&notes, "a", || panic!("it is known")), Some(2_000_000));
        assert_eq!(noted(&notes, "b", || Some(1_000_000)), Some(1_000_000));
        std::fs::write(&notes, "{").unwrap();
        assert_eq!(noted(&notes, "b", || Some(3)), Some(3));
        assert_eq!(
            noted(&folder.path().join("none/counter.json"), "b", || Some(4)),
            Some(4)
        );
    }

    #[test]
    fn one_process_always_says_the_same() {
        begin();
        assert_eq!(tsc_khz(), tsc_khz());
    }
}
