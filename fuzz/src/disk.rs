//! Requests of a hostile guest to the server of its root disk: any bytes in the guest's memory as its rings, descriptors and
//! request headers.

use std::fs::File;
use std::sync::OnceLock;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use zmachine_flist::{BlockRef, Flist, Metadata, Node, NodeId, NodeKind, RouteTable, TreeBuilder};
use zmachine_image::fetch::{FetchStats, Fetched};
use zmachine_rootfs::blocks::{Blocks, CacheFailure, Undelivered};
use zmachine_rootfs::disk::{LazyDisk, Pinned, open_files};
use zmachine_rootfs::prepare::{EROFS_NAME, MAP_NAME, prepare};
use zmachine_rootfs::report::Counters;
use zmachine_rootfs::server::queue::{Device, Step, step};

/// The guest's memory in bytes.
const MEMORY: usize = 128 << 10;
/// Where descriptors and rings are; everything else is wherever the input wants it.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
/// The guest offers at most this many chains.
const QUEUE: u16 = 64;

/// Every other block can be had.
struct Half(BlockRef);

impl Blocks for Half {
    fn cached(&self, _block: &BlockRef) -> Option<File> {
        None
    }

    fn fetch(&self, block: &BlockRef, _is_damaged: bool) -> Result<Fetched, Undelivered> {
        match *block == self.0 {
            true => Ok(Fetched::Bytes(vec![7; block.len as usize].into())),
            false => Err(Undelivered {
                reason: "it is the other one".into(),
                hint: None,
            }),
        }
    }

    fn stats(&self) -> FetchStats {
        FetchStats::default()
    }

    fn take_cache_failure(&self) -> Option<CacheFailure> {
        None
    }
}

fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let folder = crate::scratch::folder();
        let mut tree = TreeBuilder::new(Metadata::default());
        let blocks = [b"a", b"b"].map(|byte| BlockRef::seal(&byte.repeat(70_000)).0);
        for (number, block) in blocks.iter().enumerate() {
            let kind = NodeKind::Regular {
                size: u64::from(block.len),
                blocks: vec![*block],
            };
            let metadata = Metadata::default();
            let name = number.to_string().into_bytes();
            tree.add(NodeId::ROOT, name, Node { metadata, kind }).expect("a file");
        }
        let flist = Flist {
            tree: tree.finish().expect("a tree"),
            routes: RouteTable(Vec::new()),
            tags: Default::default(),
        };
        prepare(folder.path(), "fuzz", &flist).expect("a disk");
        let files = open_files(&folder.path().join(EROFS_NAME), &folder.path().join(MAP_NAME));
        let (metadata, map) = files.expect("its files");
        Device {
            disk: LazyDisk::of(metadata, map, Half(blocks[0])),
            serial: *b"serial-of-20-bytes..",
            counters: Counters::default(),
            ahead: Default::default(),
            writing_back: Default::default(),
        }
    })
}

/// The input is a list of writes to the guest's memory: address in units of 8 bytes (u16), length (u8), bytes.
///
/// # Panics
/// When a queue is not done after as many steps as its chains can take.
pub fn block_requests(input: &[u8]) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let mut rest = input;
    while let [low, high, length, after @ ..] = rest {
        let at = u64::from(u16::from_le_bytes([*low, *high])) * 8 % MEMORY as u64;
        let (bytes, later) = after.split_at(usize::from(*length).min(after.len()));
        let _ = memory.write(bytes, GuestAddress(at));
        rest = later;
    }
    let memory = GuestMemoryAtomic::new(memory);
    let mut queue = Queue::new(QUEUE).expect("a queue");
    queue.set_size(QUEUE);
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_event_idx(input.len() % 2 == 1);
    queue.set_ready(true);
    let device = device();
    let mut pinned = Pinned::new();
    let mut answered = 0;
    // Each chain may miss each of its blocks once before it is answered.
    for _ in 0..usize::from(QUEUE) * 64 {
        match step(device, &mut queue, &memory, &pinned) {
            Step::Answered => {
                answered += 1;
                pinned.clear();
            }
            Step::Missing { extent, is_damaged } => drop(device.disk.fetch(&extent, is_damaged, &mut pinned)),
            Step::Empty | Step::Unusable => return,
        }
    }
    panic!("the queue never gets empty: {answered} answers");
}

/// One read and one request for the serial, as a guest would write them.
pub fn block_seed() -> Vec<u8> {
    let mut input = Vec::new();
    let mut write = |at: u64, bytes: &[u8]| {
        input.extend(((at / 8) as u16).to_le_bytes());
        input.push(bytes.len() as u8);
        input.extend(bytes);
    };
    let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
        [
            &address.to_le_bytes()[..],
            &length.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ]
        .concat()
    };
    let chain = |head: u16, data: u32| {
        [
            descriptor(0x8000 + u64::from(head) * 64, 16, 1, head + 1),
            descriptor(0x9000, data, 3, head + 2),
            descriptor(0x8800 + u64::from(head), 1, 2, 0),
        ]
        .concat()
    };
    write(DESCRIPTORS, &chain(0, 4096));
    write(DESCRIPTORS + 48, &chain(3, 20));
    write(
        0x8000,
        &[&0u32.to_le_bytes()[..], &[0; 4], &16u64.to_le_bytes()].concat(),
    );
    write(0x8000 + 3 * 64, &[&8u32.to_le_bytes()[..], &[0; 12]].concat());
    write(AVAILABLE, &[0, 0, 2, 0, 0, 0, 3, 0]);
    input
}
