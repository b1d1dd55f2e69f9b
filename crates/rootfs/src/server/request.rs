//! One request of the guest: what a descriptor chain asks for.
//!
//! # Wire layout (virtio 1.2, 5.2.6)
//! Device-readable: `{type u32, reserved u32, sector u64}` (little-endian), then data to write. Device-writable: data to
//! read, then one status byte at the very end. Descriptors may split this anywhere.
//!
//! The guest is hostile: addresses, lengths, directions and counts are whatever it likes. Nothing here panics, waits or
//! allocates more than [`DESCRIPTORS_MAX`] allows.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// Descriptors of a chain that are looked at; a longer one is malformed. Far above [`super::SEG_MAX`] + 2.
pub const DESCRIPTORS_MAX: usize = 1024;
/// The most bytes one request may ask for. `SEG_MAX` segments of `SIZE_MAX` bytes are less than half of it.
pub const BYTES_MAX: u64 = 16 << 20;

/// `VIRTIO_BLK_S_OK`, `_IOERR`, `_UNSUPP`.
pub const STATUS_OK: u8 = 0;
/// The request failed.
pub const STATUS_IOERR: u8 = 1;
/// The device knows no such request.
pub const STATUS_UNSUPPORTED: u8 = 2;

const HEADER: usize = 16;
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// A slice of guest memory.
pub type GuestSlice<'m> = VolatileSlice<'m, BS<'m, ()>>;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read from this sector of 512 bytes on.
    Read {
        /// The first sector.
        sector: u64,
    },
    /// Nothing is ever dirty here.
    Flush,
    /// The serial.
    GetId,
    /// Something that would change the disk.
    Change,
    /// Something else.
    Unknown,
}

/// A chain that can be answered.
#[derive(Debug)]
pub struct Request<'m> {
    /// What is asked for.
    pub kind: Kind,
    /// Where the answer goes, without the status byte.
    pub data: Vec<GuestSlice<'m>>,
    /// Where the status goes.
    pub status: GuestSlice<'m>,
}

impl Request<'_> {
    /// Bytes of `data`.
    pub fn data_len(&self) -> u64 {
        self.data.iter().map(|slice| slice.len() as u64).sum()
    }
}

/// Why a chain has no proper answer.
#[derive(Debug)]
pub enum Malformed<'m> {
    /// It has a place for the status at least.
    WithStatus(GuestSlice<'m>),
    /// It has not even that.
    WithoutStatus,
}

/// Understands a chain whose buffers are in `memory`.
///
/// # Errors
/// When it is no request.
pub fn parse<'m, M>(chain: DescriptorChain<M>, memory: &'m GuestMemoryMmap) -> Result<Request<'m>, Malformed<'m>>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let buffers = Buffers::gather(chain, memory);
    let Some((data, status)) = split_status(buffers.writable) else {
        return Err(Malformed::WithoutStatus);
    };
    let Some(header) = header(&buffers.readable, memory).filter(|_| buffers.is_proper) else {
        return Err(Malformed::WithStatus(status));
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let kind = match word(0) {
        TYPE_IN => Kind::Read {
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
        },
        TYPE_FLUSH => Kind::Flush,
        TYPE_GET_ID => Kind::GetId,
        TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES => Kind::Change,
        _ => Kind::Unknown,
    };
    Ok(Request { kind, data, status })
}

/// The buffers of a chain by direction.
struct Buffers<'m> {
    /// Addresses and lengths.
    readable: Vec<(GuestAddress, usize)>,
    writable: Vec<GuestSlice<'m>>,
    /// All descriptors were in order, within memory and not too many.
    is_proper: bool,
}

impl<'m> Buffers<'m> {
    fn gather<M>(chain: DescriptorChain<M>, memory: &'m GuestMemoryMmap) -> Buffers<'m>
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let mut buffers = Buffers {
            readable: Vec::new(),
            writable: Vec::new(),
            is_proper: true,
        };
        let mut bytes = 0u64;
        for (count, descriptor) in chain.enumerate() {
            bytes += u64::from(descriptor.len());
            if count >= DESCRIPTORS_MAX || bytes > BYTES_MAX + 4096 || !buffers.add(descriptor, memory) {
                buffers.is_proper = false;
                break;
            }
        }
        buffers
    }

    fn add(&mut self, descriptor: Descriptor, memory: &'m GuestMemoryMmap) -> bool {
        let (address, len) = (descriptor.addr(), descriptor.len() as usize);
        if len == 0 {
            return true;
        }
        if !descriptor.is_write_only() {
            self.readable.push((address, len));
            // What the device reads comes before what it writes.
            return self.writable.is_empty();
        }
        let Ok(slices) = GuestMemory::get_slices(memory, address, len, Permissions::Write) else {
            return false;
        };
        for slice in slices {
            match slice {
                Ok(slice) => self.writable.push(slice),
                Err(_) => return false,
            }
        }
        true
    }
}

/// Takes the last byte off.
fn split_status<B: BitmapSlice>(
    mut writable: Vec<VolatileSlice<'_, B>>,
) -> Option<(Vec<VolatileSlice<'_, B>>, VolatileSlice<'_, B>)> {
    let last = writable.pop()?;
    let at = last.len().checked_sub(1)?;
    let status = last.subslice(at, 1).ok()?;
    if at > 0 {
        writable.push(last.subslice(0, at).ok()?);
    }
    Some((writable, status))
}

/// The first 16 readable bytes.
fn header(readable: &[(GuestAddress, usize)], memory: &GuestMemoryMmap) -> Option<[u8; HEADER]> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    for &(address, len) in readable {
        let here = len.min(HEADER - filled);
        memory.read_slice(&mut header[filled..filled + here], address).ok()?;
        filled += here;
    }
    (filled == HEADER).then_some(header)
}
