//! One queue: requests in, answers out, in order.
//!
//! # Why in order
//! After a crash of this process, the hypervisor continues at the number of answers it finds in the guest's memory. That
//! is right exactly when the answers were given in the order of the requests: what was not answered is asked again.
//!
//! # Locking
//! [`step`] holds the queue's lock for one request and never waits for a network. A request whose block is not on this
//! host is left in the queue, the lock is released, the block fetched, and the request read **again** from the queue: in
//! between the hypervisor may have stopped the queue or the guest may have been reset, and its memory may be used for
//! something else. Stopping a queue therefore never waits for a fetch, and loses no request.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::request::{
    BYTES_MAX, GuestSlice, Kind, Malformed, Request, STATUS_IOERR, STATUS_OK, STATUS_UNSUPPORTED, parse,
};
use crate::disk::{LazyDisk, Outcome, Pinned};
use crate::erofs::Extent;
use crate::report::{Counters, Reporter};
use crate::write_back::{self, WritingBack};

/// Chains that are looked at for what they will need, while the first one waits.
const CHAINS_AHEAD: usize = 16;
/// Parts of the disk that are looked at for it: a guest can ask for many small files at once.
const PIECES_AHEAD: usize = 256;
/// Length of the serial in a `GET_ID` answer.
pub const SERIAL_LEN: usize = 20;

/// What the queues of a device share.
pub struct Device {
    /// The content.
    pub disk: LazyDisk,
    /// The answer to `GET_ID`, padded with zeros.
    pub serial: [u8; SERIAL_LEN],
    /// What was done.
    pub counters: Counters,
    /// Threads that fetch for requests behind the one that is waited for.
    pub ahead: AtomicUsize,
    /// Whether blocks in memory are being put into the cache.
    pub writing_back: WritingBack,
}

/// Tries to get one unreadable block for one request.
const DAMAGED_TRIES: usize = 2;

impl Device {
    /// Gets a block that a request waits for, and tells of what went wrong. What the cache could not keep is added to `pinned`; `tries`
    /// are the blocks that were fetched for this request.
    pub fn fetch(
        self: &Arc<Self>,
        reporter: &Reporter,
        (extent, is_damaged): (&Extent, bool),
        pinned: &mut Pinned,
        tries: &mut Vec<u32>,
    ) {
        let disk = &self.disk;
        tries.push(extent.start);
        if is_damaged && tries.iter().filter(|start| **start == extent.start).count() > DAMAGED_TRIES {
            disk.give_up(extent);
            reporter.block_failed(extent, "the cached block cannot be read", None);
        } else if let Err(error) = disk.fetch(extent, is_damaged, pinned) {
            reporter.block_failed(extent, &error.reason, error.hint.as_deref());
        }
        if let Some(failure) = disk.take_cache_failure() {
            reporter.cache_failed(&failure);
            write_back::start(self);
        }
        reporter.touch();
    }
}

/// What a step did.
#[derive(Debug)]
pub enum Step {
    /// One chain was answered.
    Answered,
    /// The first chain needs this block.
    Missing {
        /// The block.
        extent: Extent,
        /// The cached one is unreadable.
        is_damaged: bool,
    },
    /// No chain is waiting.
    Empty,
    /// The queue is not in use, or the guest has broken its rings: nothing can be done until it is set up again.
    Unusable,
}

/// Answers the first waiting chain of `queue`, if everything it needs is on this host.
pub fn step(device: &Device, queue: &mut Queue, memory: &GuestMemoryAtomic<GuestMemoryMmap>, pinned: &Pinned) -> Step {
    let memory = memory.memory();
    if !queue.ready() || !queue.is_valid(memory.deref()) {
        return Step::Unusable;
    }
    let chain = match queue.iter(memory.clone()) {
        Ok(mut waiting) => waiting.next(),
        Err(_) => return Step::Unusable,
    };
    let Some(chain) = chain else {
        return match queue.avail_idx(memory.deref(), Ordering::Relaxed) {
            Ok(index) if index.0 == queue.next_avail() => Step::Empty,
            // Something waits, but its ring entry is outside of the guest's memory.
            _ => Step::Unusable,
        };
    };
    let head = chain.head_index();
    let written = match answer(device, parse(chain, &memory), pinned) {
        Ok(written) => written,
        Err((extent, is_damaged)) => {
            queue.go_to_previous_position();
            return Step::Missing { extent, is_damaged };
        }
    };
    match queue.add_used(memory.deref(), head, written) {
        Ok(()) => Step::Answered,
        Err(_) => Step::Unusable,
    }
}

/// The blocks that waiting chains need and this host does not have, at most `most`: those of the first chain, then of the
/// ones behind it. Leaves the queue as it was.
pub fn missing_ahead(
    device: &Device,
    queue: &mut Queue,
    memory: &GuestMemoryAtomic<GuestMemoryMmap>,
    most: usize,
) -> Vec<Extent> {
    let memory = memory.memory();
    let mut missing = Vec::new();
    if !queue.ready() || !queue.is_valid(memory.deref()) {
        return missing;
    }
    let first = queue.next_avail();
    let mut pieces = PIECES_AHEAD;
    if let Ok(mut waiting) = queue.iter(memory.clone()) {
        for _ in 0..CHAINS_AHEAD {
            let Some(chain) = waiting.next().filter(|_| missing.len() < most) else {
                break;
            };
            if let Ok(request) = parse(chain, &memory)
                && let Kind::Read { sector } = request.kind
                && let Some((offset, len)) = range(device, sector, &request)
            {
                device.disk.missing(offset, len, &mut missing, most, &mut pieces);
            }
        }
    }
    queue.set_next_avail(first);
    missing
}

/// Writes the answer; the number of bytes written, or the block that is missing.
fn answer(device: &Device, parsed: Result<Request<'_>, Malformed<'_>>, pinned: &Pinned) -> Result<u32, (Extent, bool)> {
    let counters = &device.counters;
    let request = match parsed {
        Ok(request) => request,
        Err(malformed) => {
            counters.request(true, 0);
            return Ok(match malformed {
                Malformed::WithStatus(status) => finish(&status, STATUS_IOERR, 0),
                Malformed::WithoutStatus => 0,
            });
        }
    };
    let (status, written) = match request.kind {
        Kind::Read { sector } => match read(device, sector, &request, pinned) {
            Outcome::Done => (STATUS_OK, request.data_len()),
            Outcome::Failed => (STATUS_IOERR, 0),
            Outcome::Missing { extent, is_damaged } => return Err((extent, is_damaged)),
        },
        Kind::Flush => (STATUS_OK, 0),
        Kind::GetId => (STATUS_OK, write_serial(&device.serial, &request.data)),
        Kind::Change => (STATUS_IOERR, 0),
        Kind::Unknown => (STATUS_UNSUPPORTED, 0),
    };
    counters.request(status == STATUS_IOERR, written);
    Ok(finish(&request.status, status, written))
}

fn read(device: &Device, sector: u64, request: &Request<'_>, pinned: &Pinned) -> Outcome {
    match range(device, sector, request) {
        Some((offset, _)) => device.disk.read_local(offset, &request.data, pinned),
        None => Outcome::Failed,
    }
}

/// Offset and length of a read in bytes; `None` when it is not within the disk or not of whole sectors.
fn range(device: &Device, sector: u64, request: &Request<'_>) -> Option<(u64, u64)> {
    let len = request.data_len();
    let end = sector.checked_add(len / 512)?;
    let is_fine = len > 0 && len.is_multiple_of(512) && len <= BYTES_MAX && end <= device.disk.capacity_sectors();
    // Only then is the offset a number: a guest may name any sector.
    is_fine.then(|| (sector * 512, len))
}

fn write_serial(serial: &[u8; SERIAL_LEN], data: &[GuestSlice<'_>]) -> u64 {
    let mut rest = &serial[..];
    for slice in data {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
    }
    (SERIAL_LEN - rest.len()) as u64
}

/// Writes the status byte; the number of bytes written in all.
fn finish(status: &GuestSlice<'_>, value: u8, written: u64) -> u32 {
    // The slice is one byte within guest memory, so this cannot fail.
    let _ = status.write_obj(value, 0);
    // At most `BYTES_MAX`.
    written as u32 + 1
}
