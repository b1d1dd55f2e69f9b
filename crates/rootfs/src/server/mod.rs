//! The vhost-user-blk device that a hypervisor connects to.
//!
//! # Features
//! virtio: `VERSION_1`, `EVENT_IDX`, `INDIRECT_DESC`, and of the block device `SIZE_MAX`, `SEG_MAX`, `RO`, `BLK_SIZE`, `MQ`.
//! vhost-user: `CONFIG` (both QEMU and Cloud Hypervisor ask for the configuration), `MQ`, `REPLY_ACK`. One thread per
//! queue; each answers in order (see [`queue`]).
//!
//! # Invariants
//! One hypervisor at a time. When its connection ends, no byte is written into its guest's memory any more, and the next
//! one finds a fresh device. This process can be killed at any moment and started again on the same listening socket.

pub mod queue;
pub mod request;
mod ring;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringState, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::disk::Pinned;
use crate::erofs::Extent;
use crate::report::Reporter;
use crate::write_back;
use queue::{Device, Step, missing_ahead, step};
use ring::Ring;

/// Data segments per request: QEMU's default queue of 128 descriptors without header and status.
pub const SEG_MAX: u32 = 126;
/// Bytes per segment.
pub const SIZE_MAX: u32 = 64 * 1024;
/// Queue length offered at most.
const QUEUE_SIZE_MAX: usize = 1024;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Answers after which the guest is told, although more requests wait.
const BATCH: usize = 16;
/// Blocks fetched at once for the requests that wait behind one, in all queues.
const AHEAD_MAX: usize = 16;

/// Serves `device` on `listener` to one hypervisor after the other; returns only when the listening socket fails.
///
/// # Errors
/// When a thread cannot be started or the socket fails.
pub fn serve(
    listener: UnixListener,
    queues: u16,
    device: &Arc<Device>,
    reporter: &Arc<Reporter>,
) -> Result<(), vhost_user_backend::Error> {
    let mut listener = Listener::from(listener);
    loop {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend {
            device: Arc::clone(device),
            reporter: Arc::clone(reporter),
            memory: memory.clone(),
            is_closed: RwLock::new(false),
            queues,
        });
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), Arc::clone(&backend), memory)?;
        daemon.start(&mut listener)?;
        if let Err(error) = daemon.wait() {
            reporter.connection_ended(&error.to_string());
        }
        backend.close();
        // Dropping joins the queue threads, and one of them may be waiting for a store: the next hypervisor shall not.
        let _ = std::thread::Builder::new()
            .name("closing".into())
            .spawn(move || drop(daemon));
    }
}

/// One connection's device.
struct Backend {
    device: Arc<Device>,
    reporter: Arc<Reporter>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    /// Held for reading around every access to guest memory.
    is_closed: RwLock<bool>,
    queues: u16,
}

impl Backend {
    fn close(&self) {
        *self.is_closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Answers everything that waits in a queue.
    fn drain(&self, vring: &Ring) {
        let mut pinned = Pinned::new();
        let mut tries: Vec<u32> = Vec::new();
        loop {
            match self.answer_batch(vring, &mut pinned, &mut tries) {
                Some((extent, is_damaged)) => {
                    self.device
                        .fetch(&self.reporter, (&extent, is_damaged), &mut pinned, &mut tries)
                }
                None => return,
            }
        }
    }

    /// Answers until nothing waits (`None`) or a block is missing; tells the guest at the end.
    fn answer_batch(&self, vring: &Ring, pinned: &mut Pinned, tries: &mut Vec<u32>) -> Option<(Extent, bool)> {
        let mut answered = 0;
        loop {
            let is_closed = self.is_closed.read().unwrap_or_else(PoisonError::into_inner);
            let mut state = vring.get_mut();
            if *is_closed || !state.is_enabled() {
                return None;
            }
            let result = step(&self.device, state.get_queue_mut(), &self.memory, pinned);
            answered += usize::from(matches!(result, Step::Answered));
            if answered > 0 && (answered == BATCH || !matches!(result, Step::Answered)) {
                interrupt(&mut state);
                self.reporter.touch();
                answered = 0;
            }
            match result {
                Step::Answered => {
                    pinned.clear();
                    tries.clear();
                }
                Step::Missing { extent, is_damaged } => {
                    let free = AHEAD_MAX.saturating_sub(self.device.ahead.load(Ordering::Relaxed));
                    let ahead = missing_ahead(&self.device, state.get_queue_mut(), &self.memory, free + 1);
                    self.fetch_ahead(ahead.iter().filter(|other| **other != extent));
                    return Some((extent, is_damaged));
                }
                // Asking for kicks again may show that one was missed.
                Step::Empty if matches!(state.enable_notification(), Ok(true)) => {}
                Step::Empty | Step::Unusable => return None,
            }
        }
    }

    /// Fetches what later requests need, each block in a thread of its own: answers come in order, so without this a queue
    /// would wait for one block after the other. A failure shows when its request comes to the front.
    fn fetch_ahead<'a>(&self, extents: impl Iterator<Item = &'a Extent>) {
        for extent in extents {
            let (device, extent) = (Arc::clone(&self.device), *extent);
            device.ahead.fetch_add(1, Ordering::Relaxed);
            let thread = std::thread::Builder::new().name("ahead".into()).stack_size(256 * 1024);
            let started = thread.spawn(move || {
                if matches!(device.disk.fetch_ahead(&extent), Ok(false)) {
                    write_back::start(&device);
                }
                device.ahead.fetch_sub(1, Ordering::Relaxed);
            });
            if started.is_err() {
                self.device.ahead.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Interrupts the guest if it wants that.
fn interrupt(state: &mut VringState) {
    if matches!(state.needs_notification(), Ok(true)) {
        // It fails only when the hypervisor is gone.
        let _ = state.signal_used_queue();
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        usize::from(self.queues)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        let bits = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_RO,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_MQ,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_F_VERSION_1,
        ];
        bits.iter().fold(F_PROTOCOL_FEATURES, |all, bit| all | 1 << bit)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    // Each queue is told by the crate; the device has nothing of its own to set.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config(self.device.disk.capacity_sectors(), self.queues, offset, size)
    }

    // The memory is shared with the crate through `self.memory`.
    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&self, event: u16, _set: EventSet, vrings: &[Ring], _thread: usize) -> io::Result<()> {
        // An error would end the thread, so there is none; each thread has exactly one queue.
        if let Some(vring) = vrings.get(usize::from(event)) {
            self.drain(vring);
        }
        Ok(())
    }
}

/// `struct virtio_blk_config`, zeros behind what we know: exactly `size` bytes from `offset` on.
fn config(capacity_sectors: u64, queues: u16, offset: u32, size: u32) -> Vec<u8> {
    let mut config = [0u8; 60];
    config[0..8].copy_from_slice(&capacity_sectors.to_le_bytes());
    config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
    config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
    config[20..24].copy_from_slice(&512u32.to_le_bytes());
    config[34..36].copy_from_slice(&queues.to_le_bytes());
    // The crate refuses sizes above 256 before it asks.
    let bytes = config.iter().copied().chain(std::iter::repeat(0));
    bytes.skip(offset as usize).take(size as usize).collect()
}

#[cfg(test)]
mod tests;
