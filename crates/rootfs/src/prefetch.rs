//! Fetching ahead of the guest: the list of what starts read, in parallel, and then, when asked, everything else.
//!
//! # Invariants
//! What the guest asks for does not wait behind this: it is fetched by the guest's own queue, or is under way here already
//! and then shared. A block that cannot be had is nobody's error before somebody reads it. Nothing is fetched that the
//! cache could not keep.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::erofs::Extent;
use crate::report::Reporter;
use crate::server::queue::Device;
use crate::write_back;

/// How much is fetched without being asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// What earlier starts have read.
    #[default]
    Hints,
    /// That, and the rest when the guest waits for nothing.
    All,
}

impl Prefetch {
    /// Its word, as [`Prefetch::from_str`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Prefetch::None => "none",
            Prefetch::Hints => "hints",
            Prefetch::All => "all",
        }
    }

    /// Whether it is what is done when nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Prefetch::default()
    }
}

impl FromStr for Prefetch {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Prefetch, &'static str> {
        let all = [Prefetch::None, Prefetch::Hints, Prefetch::All];
        let found = all.into_iter().find(|prefetch| prefetch.name() == word);
        found.ok_or("it is none, hints or all")
    }
}

/// Downloads at once from the list: enough to hide tens of milliseconds of distance to a store.
const LIST_THREADS: usize = 8;
/// Downloads at once of what nobody waits for.
const REST_THREADS: usize = 2;
/// Failures after which a store is left alone.
const FAILURES_MAX: usize = 8;
/// How long no guest has waited for a block before the rest goes on.
const IDLE: Duration = Duration::from_millis(250);
const STACK_BYTES: usize = 256 * 1024;

/// Starts fetching in the background. `list` are first device blocks, in the order of their need.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(device: &Arc<Device>, reporter: &Arc<Reporter>, mode: Prefetch, list: Vec<u32>) -> std::io::Result<()> {
    if mode == Prefetch::None || (mode == Prefetch::Hints && list.is_empty()) {
        return Ok(());
    }
    let (device, reporter) = (Arc::clone(device), Arc::clone(reporter));
    let thread = thread::Builder::new().name("prefetch".into()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let run = Run::new(&device);
        let listed = list.iter().filter_map(|start| device.disk.extent_at(*start));
        let missing: Vec<Extent> = listed.filter(|extent| !device.disk.is_here(extent)).collect();
        let next = AtomicUsize::new(0);
        run.work(LIST_THREADS.min(missing.len()), false, || {
            missing.get(next.fetch_add(1, Relaxed)).copied()
        });
        run.tell(&reporter, "hints");
        if mode == Prefetch::All && !run.is_over() {
            let last = std::sync::Mutex::new(None);
            run.work(REST_THREADS, true, || {
                let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                loop {
                    let extent = device.disk.extent_after(last.as_ref())?;
                    *last = Some(extent);
                    if !device.disk.is_here(&extent) {
                        return Some(extent);
                    }
                }
            });
            run.tell(&reporter, "all");
        }
        zmachine_sys::heap::trim();
    })?;
    Ok(())
}

struct Run<'a> {
    device: &'a Arc<Device>,
    started: Instant,
    fetched: AtomicUsize,
    failed: AtomicUsize,
    /// The cache keeps nothing.
    is_full: AtomicBool,
}

impl<'a> Run<'a> {
    fn new(device: &'a Arc<Device>) -> Run<'a> {
        Run {
            device,
            started: Instant::now(),
            fetched: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            is_full: AtomicBool::new(false),
        }
    }

    fn is_over(&self) -> bool {
        self.is_full.load(Relaxed) || self.failed.load(Relaxed) >= FAILURES_MAX
    }

    /// Fetches what `next` gives with this many threads, only while no guest waits if `when_idle`. Threads that cannot be
    /// started leave their work to the others.
    fn work(&self, threads: usize, when_idle: bool, next: impl Fn() -> Option<Extent> + Sync) {
        let fetch = || {
            while !self.is_over() {
                let Some(extent) = next() else { return };
                if when_idle {
                    self.wait_until_idle();
                }
                match self.device.disk.fetch_ahead(&extent) {
                    Ok(true) => {
                        self.fetched.fetch_add(1, Relaxed);
                        self.device.counters.prefetched();
                    }
                    Ok(false) => {
                        self.is_full.store(true, Relaxed);
                        write_back::start(self.device);
                    }
                    Err(_) => drop(self.failed.fetch_add(1, Relaxed)),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                let thread = thread::Builder::new().name("prefetch".into()).stack_size(STACK_BYTES);
                let _ = thread.spawn_scoped(scope, fetch);
            }
            if threads > 0 {
                fetch();
            }
        });
    }

    fn wait_until_idle(&self) {
        while !self.device.disk.is_idle_for(IDLE) {
            thread::sleep(IDLE / 5);
        }
    }

    fn tell(&self, reporter: &Reporter, what: &str) {
        let reason = match (self.is_full.load(Relaxed), self.failed.load(Relaxed)) {
            (true, _) => Some("the block cache keeps nothing more"),
            (_, FAILURES_MAX..) => Some("the stores do not deliver"),
            _ => None,
        };
        let fetched = self.fetched.load(Relaxed) as u64;
        reporter.prefetched(what, fetched, self.started.elapsed(), reason);
        reporter.touch();
    }
}
