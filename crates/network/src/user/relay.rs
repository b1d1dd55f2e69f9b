//! Carries frames between a hypervisor and passt: four bytes of length (big endian), then the frame (`-netdev stream` of
//! QEMU). Those of the guest that the [`Guard`] refuses end here.
//!
//! Two threads, since each of them may have to wait for its receiver. The hypervisor's connection lives as long as the guest;
//! that of passt may be replaced, at the border of two frames: a passt that dies in the middle of one leaves nothing behind.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::guard::Guard;

/// QEMU's own limit is 68 KiB; passt's frames have at most 65520 bytes behind the Ethernet header.
const MAX_FRAME: usize = 68 * 1024;
/// Taken from a sender at once.
const BUFFER: usize = 256 * 1024;
const PREFIX: usize = 4;

/// Totals since the machine's start, as the guest counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes to the guest.
    pub received_bytes: u64,
    /// Frames to the guest.
    pub received_packets: u64,
    /// Bytes from the guest.
    pub sent_bytes: u64,
    /// Frames from the guest.
    pub sent_packets: u64,
    /// Frames from the guest that were refused.
    pub refused_packets: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received_bytes: AtomicU64,
    received_packets: AtomicU64,
    sent_bytes: AtomicU64,
    sent_packets: AtomicU64,
    refused_packets: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    guard: Guard,
    guest: UnixStream,
    passt: Mutex<Option<Arc<UnixStream>>>,
    counters: Counters,
    /// The hypervisor has closed its end.
    is_over: AtomicBool,
}

/// A running relay. Dropping it ends both connections.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

impl Relay {
    /// Starts it; the hypervisor's end of its connection. Until [`Relay::connect`], what the guest sends is lost.
    ///
    /// # Errors
    /// When there are no descriptors or threads left.
    pub fn start(guard: Guard) -> io::Result<(Relay, OwnedFd)> {
        let (guest, theirs) = UnixStream::pair()?;
        let shared = Arc::new(Shared {
            guard,
            guest,
            passt: Mutex::default(),
            counters: Counters::default(),
            is_over: AtomicBool::new(false),
        });
        let up = shared.clone();
        thread("relay-up", move || {
            up.carry_up();
            up.end();
        })?;
        Ok((Relay { shared }, theirs.into()))
    }

    /// Makes a new connection to passt in place of the one before; passt's end.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let (mut passt, theirs) = UnixStream::pair()?;
        let announcement = self.shared.guard.announcement();
        passt.write_all(&(announcement.len() as u32).to_be_bytes())?;
        passt.write_all(&announcement)?;
        let passt = Arc::new(passt);
        let (shared, stream) = (self.shared.clone(), passt.clone());
        thread("relay-down", move || shared.carry_down(&stream))?;
        let before = self.shared.slot().replace(passt);
        if let Some(before) = before {
            let _ = before.shutdown(Shutdown::Both);
        }
        Ok(theirs.into())
    }

    /// Whether the hypervisor is still there.
    pub fn is_open(&self) -> bool {
        !self.shared.is_over.load(Ordering::Acquire)
    }

    /// What went through.
    pub fn traffic(&self) -> Traffic {
        let counters = &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            received_bytes: value(&counters.received_bytes),
            received_packets: value(&counters.received_packets),
            sent_bytes: value(&counters.sent_bytes),
            sent_packets: value(&counters.sent_packets),
            refused_packets: value(&counters.refused_packets),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end();
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024);
    builder.spawn(work).map(drop)
}

impl Shared {
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.passt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.guest.shutdown(Shutdown::Both);
        if let Some(passt) = self.slot().take() {
            // It ends by itself then.
            let _ = passt.shutdown(Shutdown::Both);
        }
    }

    /// Until the hypervisor is gone, or sends what are no frames.
    fn carry_up(&self) {
        let mut frames = Frames::new();
        let mut batch = Vec::with_capacity(BUFFER);
        while let Ok(true) = frames.fill(&mut &self.guest) {
            batch.clear();
            while let Some(whole) = frames.next() {
                let frame = &whole[PREFIX..];
                if !self.guard.passes(frame) {
                    self.counters.refused_packets.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                self.counters.sent_packets.fetch_add(1, Ordering::Relaxed);
                self.counters
                    .sent_bytes
                    .fetch_add(frame.len() as u64, Ordering::Relaxed);
                batch.extend_from_slice(whole);
            }
            if frames.is_broken {
                return;
            }
            // While passt is being started again the network is down: what is sent is lost, as on a cable that is out.
            let passt = self.slot().clone();
            if let (Some(passt), false) = (passt, batch.is_empty()) {
                let _ = (&*passt).write_all(&batch);
            }
        }
    }

    /// Until passt is gone.
    fn carry_down(&self, passt: &UnixStream) {
        let mut frames = Frames::new();
        let mut batch = Vec::with_capacity(BUFFER);
        while let Ok(true) = frames.fill(&mut &*passt) {
            batch.clear();
            while let Some(whole) = frames.next() {
                let frame = &whole[PREFIX..];
                self.guard.note(frame);
                self.counters.received_packets.fetch_add(1, Ordering::Relaxed);
                self.counters
                    .received_bytes
                    .fetch_add(frame.len() as u64, Ordering::Relaxed);
                batch.extend_from_slice(whole);
            }
            if frames.is_broken || (&self.guest).write_all(&batch).is_err() {
                break;
            }
        }
        let _ = passt.shutdown(Shutdown::Both);
    }
}

/// Finds the frames in what a connection brings.
struct Frames {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// A length that no frame has: where the next one begins is not known.
    is_broken: bool,
}

impl Frames {
    fn new() -> Frames {
        Frames {
            bytes: vec![0; BUFFER],
            start: 0,
            end: 0,
            is_broken: false,
        }
    }

    /// Takes what is there, after [`Frames::next`] has given all whole frames; `false` at the end.
    fn fill(&mut self, stream: &mut impl Read) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match stream.read(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole frame, with its length in front.
    fn next(&mut self) -> Option<&[u8]> {
        let held = &self.bytes[self.start..self.end];
        let length = u32::from_be_bytes(*held.first_chunk()?) as usize;
        if length > MAX_FRAME {
            self.is_broken = true;
            return None;
        }
        let whole = held.get(..PREFIX + length)?;
        self.start += whole.len();
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::name::Mac;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn relay() -> (Relay, UnixStream) {
        let (relay, hypervisor) = Relay::start(Guard::example(Mac(MAC))).unwrap();
        let hypervisor = UnixStream::from(hypervisor);
        hypervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (relay, hypervisor)
    }

    /// passt's end, which has been told where the guest is.
    fn connect(relay: &Relay) -> UnixStream {
        let mut passt = UnixStream::from(relay.connect().unwrap());
        passt.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        expect(&mut passt, &whole(&relay.shared.guard.announcement()));
        passt
    }

    fn whole(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    /// An ARP frame, which always passes, with a mark.
    fn arp(mark: u8) -> Vec<u8> {
        whole(&[&[9; 6], &MAC[..], &[8, 6], &[mark; 28][..]].concat())
    }

    fn expect(stream: &mut UnixStream, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn frames_pass_whole_however_they_come_and_refused_ones_do_not() {
        let (relay, mut hypervisor) = relay();
        let mut passt = connect(&relay);
        let forged = whole(&[0; 64]);
        let stream = [arp(1), forged, arp(2), arp(3)].concat();
        for piece in stream.chunks(7) {
            hypervisor.write_all(piece).unwrap();
        }
        expect(&mut passt, &[arp(1), arp(2), arp(3)].concat());
        passt.write_all(&whole(&[5; 60])).unwrap();
        expect(&mut hypervisor, &whole(&[5; 60]));
        let traffic = relay.traffic();
        assert_eq!((traffic.sent_packets, traffic.refused_packets), (3, 1));
        assert_eq!((traffic.received_bytes, traffic.sent_bytes), (60, 126));
    }

    #[test]
    fn a_passt_that_dies_in_the_middle_of_a_frame_is_replaced_unnoticed() {
        let (relay, mut hypervisor) = relay();
        let mut first = connect(&relay);
        first.write_all(&whole(&[5; 60])[..20]).unwrap();
        drop(first);
        hypervisor.write_all(&arp(1)).unwrap();
        let mut second = connect(&relay);
        second.write_all(&whole(&[6; 60])).unwrap();
        expect(&mut hypervisor, &whole(&[6; 60]));
        hypervisor.write_all(&arp(2)).unwrap();
        // What was sent in between may be lost or not.
        let mut read = vec![0; arp(2).len()];
        second.read_exact(&mut read).unwrap();
        if read == arp(1) {
            second.read_exact(&mut read).unwrap();
        }
        assert_eq!(read, arp(2));
    }

    #[test]
    fn the_end_of_the_hypervisor_is_that_of_passt() {
        let (relay, hypervisor) = relay();
        let mut passt = connect(&relay);
        assert!(relay.is_open());
        drop(hypervisor);
        assert_eq!(passt.read(&mut [0; 9]).unwrap(), 0);
        assert!(!relay.is_open());
    }

    #[test]
    fn what_is_no_frame_ends_the_connection() {
        let (relay, mut hypervisor) = relay();
        let mut passt = connect(&relay);
        hypervisor.write_all(&[0xff; 64]).unwrap();
        assert_eq!(passt.read(&mut [0; 9]).unwrap(), 0);
        drop(relay);
    }
}
