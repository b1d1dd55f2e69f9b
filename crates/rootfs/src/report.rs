//! What the server tells: one JSON object per line on a descriptor.
//!
//! ```text
//! {"event":"warning","message":...}
//! {"event":"ready"}
//! {"event":"block-failed","block":"<id>","device_offset":n,"length":n,"error":...,"hint":...}
//! {"event":"cache-failed","error":...,"hint":...}              blocks are served from memory; at most once a minute
//! {"event":"prefetched","what":"hints"|"all","blocks":n,"milliseconds":n,"stopped":...}
//! {"event":"first-reads","blocks":[n,...]}                     first device blocks, in the order of their first reads
//! {"event":"disconnected","error":...}
//! {"event":"stats","requests":n,"request_errors":n,"bytes_read":n,"blocks_fetched":n,...}      at most once per second
//! ```
//! Writing never fails the disk: a reader that is gone costs the lines, nothing else.

use std::fs::File;
use std::io::Write;
use std::ops::Add;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};
use zmachine_image::fetch::FetchStats;

use crate::blocks::CacheFailure;
use crate::erofs::{BLOCK_SIZE, Extent};

/// The least time between two lines of statistics.
const INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two lines about a failing cache: it fails with every block.
const CACHE_INTERVAL: Duration = Duration::from_secs(60);

/// Counters of the device.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    prefetched: AtomicU64,
}

impl Counters {
    /// Counts one block that came before anybody asked for it.
    pub fn prefetched(&self) {
        self.prefetched.fetch_add(1, Relaxed);
    }

    /// Counts one answered request and the bytes it got.
    pub fn request(&self, is_error: bool, bytes: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.errors.fetch_add(u64::from(is_error), Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// The counters of this moment, with those of the fetcher.
    pub fn snapshot(&self, fetch: FetchStats) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            request_errors: self.errors.load(Relaxed),
            bytes_read: self.bytes.load(Relaxed),
            blocks_fetched: fetch.blocks,
            bytes_fetched_stored: fetch.stored_bytes,
            bytes_fetched: fetch.plain_bytes,
            cache_hits: fetch.cache_hits,
            cache_failures: fetch.cache_failures,
            corrupt_answers: fetch.corrupt_answers,
            blocks_failed: fetch.errors,
            blocks_prefetched: self.prefetched.load(Relaxed),
        }
    }
}

/// What was done since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Requests of the guest that were answered.
    pub requests: u64,
    /// Those answered with an error.
    pub request_errors: u64,
    /// Bytes given to the guest.
    pub bytes_read: u64,
    /// Blocks that came from a store.
    pub blocks_fetched: u64,
    /// Their bytes as stored, compressed: what went over the network.
    pub bytes_fetched_stored: u64,
    /// Their plain bytes.
    pub bytes_fetched: u64,
    /// Blocks asked of the stores that another machine had put into the cache meanwhile.
    pub cache_hits: u64,
    /// Blocks the cache could not keep or give.
    pub cache_failures: u64,
    /// Answers of stores that were not the block asked for.
    pub corrupt_answers: u64,
    /// Blocks that no store delivered.
    pub blocks_failed: u64,
    /// Blocks that came from a store, or from another machine, before the guest asked for them.
    #[serde(skip_serializing_if = "is_zero")]
    pub blocks_prefetched: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Add for Stats {
    type Output = Stats;

    fn add(self, other: Stats) -> Stats {
        Stats {
            requests: self.requests + other.requests,
            request_errors: self.request_errors + other.request_errors,
            bytes_read: self.bytes_read + other.bytes_read,
            blocks_fetched: self.blocks_fetched + other.blocks_fetched,
            bytes_fetched_stored: self.bytes_fetched_stored + other.bytes_fetched_stored,
            bytes_fetched: self.bytes_fetched + other.bytes_fetched,
            cache_hits: self.cache_hits + other.cache_hits,
            cache_failures: self.cache_failures + other.cache_failures,
            corrupt_answers: self.corrupt_answers + other.corrupt_answers,
            blocks_failed: self.blocks_failed + other.blocks_failed,
            blocks_prefetched: self.blocks_prefetched + other.blocks_prefetched,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Warning {
        message: &'a str,
    },
    Ready,
    BlockFailed {
        block: &'a str,
        device_offset: u64,
        length: u32,
        error: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<&'a str>,
    },
    CacheFailed {
        error: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<&'a str>,
    },
    Prefetched {
        what: &'a str,
        blocks: u64,
        milliseconds: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        stopped: Option<&'a str>,
    },
    FirstReads {
        blocks: &'a [u32],
    },
    Disconnected {
        error: &'a str,
    },
    Stats(Stats),
}

/// Writes the lines.
pub struct Reporter {
    out: File,
    /// Readable when there is something new to tell.
    wake: OwnedFd,
    is_awake: AtomicBool,
    /// When a failure of the cache was told last.
    cache_failed: Mutex<Option<Instant>>,
}

impl Reporter {
    /// Lines go to `out`.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn new(out: OwnedFd) -> std::io::Result<Reporter> {
        Ok(Reporter {
            out: File::from(out),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_awake: AtomicBool::new(false),
            cache_failed: Mutex::default(),
        })
    }

    /// Something works, but not as it should.
    pub fn warning(&self, message: &str) {
        self.line(&Event::Warning { message });
    }

    /// The sandbox is closed and the device waits for its hypervisor.
    pub fn ready(&self) {
        self.line(&Event::Ready);
    }

    /// A block could not be had; the requests that need it fail.
    pub fn block_failed(&self, extent: &Extent, error: &str, hint: Option<&str>) {
        self.line(&Event::BlockFailed {
            block: &extent.block.id.to_string(),
            device_offset: u64::from(extent.start) * BLOCK_SIZE,
            length: extent.block.len,
            error,
            hint,
        });
    }

    /// The cache could not keep a block, which was served from memory.
    pub fn cache_failed(&self, failure: &CacheFailure) {
        let mut reported = self.cache_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|reported| reported.elapsed() >= CACHE_INTERVAL) {
            *reported = Some(Instant::now());
            self.line(&Event::CacheFailed {
                error: &failure.reason,
                hint: failure.hint.as_deref(),
            });
        }
    }

    /// Fetching ahead has ended, `stopped` early for that reason.
    pub fn prefetched(&self, what: &str, blocks: u64, took: Duration, stopped: Option<&str>) {
        self.line(&Event::Prefetched {
            what,
            blocks,
            milliseconds: took.as_millis() as u64,
            stopped,
        });
    }

    /// The hypervisor broke off.
    pub fn connection_ended(&self, error: &str) {
        self.line(&Event::Disconnected { error });
    }

    /// The counters have changed.
    pub fn touch(&self) {
        if !self.is_awake.swap(true, Relaxed) {
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Writes statistics whenever they changed, and what `first_reads` gives until it gives nothing, at most once per
    /// second, until `stop` is readable, and then once more.
    pub fn run(&self, stop: impl AsFd, stats: impl Fn() -> Stats, first_reads: impl Fn() -> Vec<u32>) {
        let mut last = None;
        let mut tell = || {
            loop {
                let blocks = first_reads();
                if blocks.is_empty() {
                    break;
                }
                self.line(&Event::FirstReads { blocks: &blocks });
            }
            let now = Some(stats());
            if now != last {
                last = now;
                now.iter().for_each(|stats| self.line(&Event::Stats(*stats)));
            }
        };
        while !self.wait(&stop) {
            tell();
            if is_readable_within(&stop, INTERVAL) {
                break;
            }
        }
        tell();
    }

    /// Waits until something changed (`false`) or `stop` is readable (`true`).
    fn wait(&self, stop: &impl AsFd) -> bool {
        loop {
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            if !fds[0].revents().is_empty() {
                return true;
            }
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
            // What is counted after this wakes us again.
            self.is_awake.store(false, Relaxed);
            return false;
        }
    }

    fn line(&self, event: &Event<'_>) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            // One write per line keeps lines of several threads whole on a pipe.
            let _ = (&self.out).write_all(&line);
        }
    }
}

fn is_readable_within(fd: &impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = rustix::event::Timespec::try_from(time).ok();
    matches!(poll(&mut fds, timeout.as_ref()), Ok(ready) if ready > 0)
}
