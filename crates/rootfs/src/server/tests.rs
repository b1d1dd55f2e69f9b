//! The queue against a friendly and a hostile guest, both made by hand in memory.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::queue::{Device, SERIAL_LEN, Step, step};
use super::request::{STATUS_IOERR, STATUS_OK, STATUS_UNSUPPORTED};
use crate::disk::Pinned;
use crate::test_device::TestDevice;

const MEMORY: u64 = 1 << 20;
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x8_0000;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;

/// A device, and the memory of its guest.
struct Rig {
    _dir: tempfile::TempDir,
    device: Device,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    content: Vec<u8>,
    stored: std::path::PathBuf,
    data_sector: u64,
}

impl Rig {
    fn new() -> Rig {
        let TestDevice {
            dir,
            device,
            content,
            stored,
            data_sector,
        } = TestDevice::new();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        Rig {
            _dir: dir,
            device,
            memory: GuestMemoryAtomic::new(memory),
            content,
            stored,
            data_sector,
        }
    }

    /// Puts a request header into guest memory.
    fn header(&self, kind: u32, sector: u64) {
        let memory = self.memory.memory();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(0u32, GuestAddress(HEADER + 4)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xEEu8, GuestAddress(STATUS)).unwrap();
    }

    /// Offers one chain of `(address, length, flags)` and processes the queue; the status byte and the used length.
    fn run(&self, chain: &[(u64, u32, u16)]) -> (u8, u32) {
        let memory = self.memory.memory();
        let ring = MockSplitQueue::new(&*memory, 16);
        let mut queue: Queue = ring.create_queue().unwrap();
        ring.add_desc_chains(&descriptors(chain), 0).unwrap();
        self.process(&mut queue);
        assert_eq!(ring.used().idx().load(), 1, "the chain was not given back");
        let used = ring.used().ring().ref_at(0).unwrap().load();
        (memory.read_obj(GuestAddress(STATUS)).unwrap(), used.len())
    }

    fn process(&self, queue: &mut Queue) {
        let mut pinned = Pinned::new();
        for _ in 0..10 {
            match step(&self.device, queue, &self.memory, &pinned) {
                Step::Answered => {}
                Step::Missing { extent, is_damaged } => {
                    let _ = self.device.disk.fetch(&extent, is_damaged, &mut pinned);
                }
                Step::Empty | Step::Unusable => return,
            }
        }
        panic!("the queue never gets empty");
    }

    fn read(&self, sector: u64, len: u32) -> (u8, u32, Vec<u8>) {
        self.header(0, sector);
        let (status, used) = self.run(&[(HEADER, 16, NEXT), (DATA, len, NEXT | WRITE), (STATUS, 1, WRITE)]);
        let mut bytes = vec![0; len as usize];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        (status, used, bytes)
    }
}

fn descriptors(chain: &[(u64, u32, u16)]) -> Vec<RawDescriptor> {
    let number = |at: usize| at as u16 + 1;
    let all = chain.iter().enumerate();
    all.map(|(at, &(address, len, flags))| RawDescriptor::from(Descriptor::new(address, len, flags, number(at))))
        .collect()
}

#[test]
fn a_read_gives_metadata_then_the_block_then_zeros_to_the_boundary() {
    let rig = Rig::new();
    rig.memory
        .memory()
        .write_slice(&[0xAA; 12288], GuestAddress(DATA))
        .unwrap();
    let (status, used, bytes) = rig.read(rig.data_sector - 1, 512 + 8192);
    assert_eq!((status, used), (STATUS_OK, 512 + 8192 + 1));
    assert_eq!(&bytes[512..6512], rig.content);
    assert!(bytes[6512..].iter().all(|b| *b == 0));
    let (_, _, first) = rig.read(0, 4096);
    assert_eq!(first[1024..1028], 0xE0F5_E1E2u32.to_le_bytes());
}

#[test]
fn a_read_into_many_small_descriptors_is_the_same() {
    let rig = Rig::new();
    rig.header(0, rig.data_sector);
    let chain = [
        (HEADER, 7, NEXT),
        (HEADER + 7, 9, NEXT),
        (DATA, 100, NEXT | WRITE),
        (DATA + 100, 0, NEXT | WRITE),
        (DATA + 100, 924, NEXT | WRITE),
        (STATUS, 1, WRITE),
    ];
    assert_eq!(rig.run(&chain), (STATUS_OK, 1025));
    let mut bytes = vec![0; 1024];
    rig.memory.memory().read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!(bytes, &rig.content[..1024]);
}

#[test]
fn the_serial_is_given_and_flush_is_fine_and_writing_is_not() {
    let rig = Rig::new();
    let data = [
        (HEADER, 16, NEXT),
        (DATA, SERIAL_LEN as u32, NEXT | WRITE),
        (STATUS, 1, WRITE),
    ];
    rig.header(8, 0);
    assert_eq!(rig.run(&data), (STATUS_OK, 21));
    let mut serial = [0; SERIAL_LEN];
    rig.memory.memory().read_slice(&mut serial, GuestAddress(DATA)).unwrap();
    assert_eq!(&serial, b"serial-of-20-bytes..");
    rig.header(4, 0);
    assert_eq!(rig.run(&[(HEADER, 16, NEXT), (STATUS, 1, WRITE)]), (STATUS_OK, 1));
    for kind in [1, 11, 13] {
        rig.header(kind, 0);
        assert_eq!(
            rig.run(&[(HEADER, 16, NEXT), (DATA, 512, NEXT), (STATUS, 1, WRITE)]),
            (STATUS_IOERR, 1)
        );
    }
    rig.header(99, 0);
    assert_eq!(rig.run(&data), (STATUS_UNSUPPORTED, 1));
}

#[test]
fn reads_outside_of_the_disk_or_of_odd_length_fail() {
    let rig = Rig::new();
    let end = rig.device.disk.capacity_sectors();
    for (sector, len) in [
        (end, 512),
        (end - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 0),
    ] {
        assert_eq!(rig.read(sector, len).0, STATUS_IOERR, "{sector} {len}");
    }
    assert_eq!(rig.read(end - 1, 512).0, STATUS_OK);
}

#[test]
fn a_missing_block_fails_its_requests_once_by_the_clock_and_comes_back() {
    let rig = Rig::new();
    let away = rig.stored.with_extension("away");
    fs::rename(&rig.stored, &away).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(rig.read(rig.data_sector, 4096).0, STATUS_IOERR);
    let first = started.elapsed();
    for _ in 0..5 {
        assert_eq!(rig.read(rig.data_sector, 4096).0, STATUS_IOERR);
    }
    assert!(
        started.elapsed() - first < Duration::from_millis(100),
        "every retry waited"
    );
    assert_eq!(rig.device.disk.fetch_stats().errors, 1);
    assert_eq!(rig.read(0, 4096).0, STATUS_OK, "the rest of the disk is unaffected");
    fs::rename(&away, &rig.stored).unwrap();
    std::thread::sleep(crate::disk::FAILURE_REST);
    assert_eq!(rig.read(rig.data_sector, 4096).0, STATUS_OK);
}

#[test]
fn chains_of_a_hostile_guest_are_given_back_and_harm_nothing() {
    let rig = Rig::new();
    let far = MEMORY + 4096;
    let bad: [&[(u64, u32, u16)]; 10] = [
        &[(HEADER, 16, 0)],                                                          // no place for the status
        &[(HEADER, 16, WRITE)],                                                      // no header
        &[(HEADER, 8, NEXT), (STATUS, 1, WRITE)],                                    // half a header
        &[(far, 16, NEXT), (DATA, 512, NEXT | WRITE), (STATUS, 1, WRITE)],           // header outside
        &[(HEADER, 16, NEXT), (far, 512, NEXT | WRITE), (STATUS, 1, WRITE)],         // data outside
        &[(HEADER, 16, NEXT), (MEMORY - 16, 512, NEXT | WRITE), (STATUS, 1, WRITE)], // data across the end
        &[(HEADER, 16, NEXT), (DATA, u32::MAX, NEXT | WRITE), (STATUS, 1, WRITE)],   // 4 GiB
        &[
            (HEADER, 16, NEXT),
            (u64::MAX - 8, 512, NEXT | WRITE),
            (STATUS, 1, WRITE),
        ], // address overflow
        &[(DATA, 512, NEXT | WRITE), (HEADER, 16, NEXT), (STATUS, 1, WRITE)],        // wrong order
        &[(HEADER, 0, NEXT), (STATUS, 0, WRITE)],                                    // nothing at all
    ];
    for chain in bad {
        rig.header(0, 0);
        let (status, _) = rig.run(chain);
        assert_ne!(status, STATUS_OK, "{chain:?}");
    }
    assert_eq!(rig.read(0, 512).0, STATUS_OK);
}

#[test]
fn what_waiting_chains_need_is_known_and_the_queue_stays_as_it_was() {
    let rig = Rig::new();
    let memory = rig.memory.memory();
    let ring = MockSplitQueue::new(&*memory, 16);
    let mut queue: Queue = ring.create_queue().unwrap();
    // Metadata first, then the block, twice; the last one is nonsense.
    for (at, sector) in [(0u64, 0u64), (1, rig.data_sector), (2, rig.data_sector), (3, u64::MAX)] {
        let header = HEADER + 0x1000 * at;
        memory.write_obj(0u64, GuestAddress(header)).unwrap();
        memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
    }
    let chain = |at: u64| {
        let header = HEADER + 0x1000 * at;
        [(header, 16, NEXT), (DATA, 4096, NEXT | WRITE), (STATUS, 1, WRITE)]
    };
    let all: Vec<(u64, u32, u16)> = (0..4).flat_map(chain).collect();
    ring.add_desc_chains(&descriptors(&all), 0).unwrap();
    let missing = |queue: &mut Queue, most| super::queue::missing_ahead(&rig.device, queue, &rig.memory, most);
    let found = missing(&mut queue, 8);
    assert_eq!(found.len(), 1);
    assert_eq!(u64::from(found[0].start) * 8, rig.data_sector);
    assert_eq!((missing(&mut queue, 0).len(), queue.next_avail()), (0, 0));
    assert!(matches!(
        step(&rig.device, &mut queue, &rig.memory, &Pinned::new()),
        Step::Answered
    ));
    let next = step(&rig.device, &mut queue, &rig.memory, &Pinned::new());
    assert!(matches!(next, Step::Missing { extent, .. } if extent == found[0]));
    assert!(rig.device.disk.fetch_ahead(&found[0]).unwrap());
    assert_eq!(missing(&mut queue, 8), []);
}

#[test]
fn a_chain_that_loops_and_indirect_tables_outside_end() {
    let rig = Rig::new();
    let memory = rig.memory.memory();
    for (address, len, flags) in [
        (HEADER, 16, NEXT),
        (far_table(), 32, VRING_DESC_F_INDIRECT as u16),
        (DATA, 33, VRING_DESC_F_INDIRECT as u16),
        (DATA, 0, VRING_DESC_F_INDIRECT as u16),
    ] {
        let ring = MockSplitQueue::new(&*memory, 16);
        let mut queue: Queue = ring.create_queue().unwrap();
        rig.header(0, 0);
        ring.add_desc_chains(&descriptors(&[(address, len, flags & !NEXT)]), 0)
            .unwrap();
        // The descriptor leads to itself.
        ring.desc_table()
            .store(0, RawDescriptor::from(Descriptor::new(address, len, flags, 0)))
            .unwrap();
        rig.process(&mut queue);
        assert_eq!(ring.used().idx().load(), 1);
    }
}

fn far_table() -> u64 {
    MEMORY * 3
}

#[test]
fn broken_rings_stop_the_queue_and_nothing_else() {
    let rig = Rig::new();
    let memory = rig.memory.memory();
    let ring = MockSplitQueue::new(&*memory, 16);
    let mut queue: Queue = ring.create_queue().unwrap();
    ring.avail().idx().store(1000);
    assert!(matches!(
        step(&rig.device, &mut queue, &rig.memory, &Pinned::new()),
        Step::Unusable
    ));
    // A head beyond the descriptor table.
    ring.avail().idx().store(1);
    ring.avail().ring().ref_at(0).unwrap().store(60_000);
    assert!(matches!(
        step(&rig.device, &mut queue, &rig.memory, &Pinned::new()),
        Step::Unusable
    ));
    queue.set_ready(false);
    assert!(matches!(
        step(&rig.device, &mut queue, &rig.memory, &Pinned::new()),
        Step::Unusable
    ));
    assert_eq!(rig.read(0, 512).0, STATUS_OK);
}

#[test]
fn whoever_is_interrupted_in_another_way_is_interrupted_once() {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};
    use vhost_user_backend::VringT;
    let rig = Rig::new();
    let ring = super::Ring::new(rig.memory.clone(), 16).unwrap();
    for _ in 0..2 {
        // A queue may be served before its guest can be interrupted.
        ring.set_call(None);
        ring.signal_used_queue().unwrap();
        let call: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        ring.set_call(Some(File::from(call.try_clone().unwrap())));
        let mut count = [0; 8];
        rustix::io::read(&call, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}

#[test]
fn the_configuration_is_as_long_as_asked_for() {
    let whole = super::config(0x1234, 3, 0, 60);
    assert_eq!((whole.len(), &whole[..2], whole[34]), (60, &[0x34u8, 0x12][..], 3));
    assert_eq!(super::config(1, 1, 34, 2), [1, 0]);
    assert_eq!(super::config(1, 1, 56, 200).len(), 200);
    assert_eq!(super::config(1, 1, u32::MAX, 256), vec![0; 256]);
}

#[test]
fn a_reader_of_events_that_is_gone_harms_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let reporter = crate::report::Reporter::new(OwnedFd::from(writer)).unwrap();
    reporter.warning("nobody hears this");
}
