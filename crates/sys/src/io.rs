//! Reads into memory that is shared with a guest.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// The most slices that one call passes to the kernel (Linux' `IOV_MAX`); more are left for the next call.
pub const SLICES_MAX: usize = 1024;

/// Reads from `file` at byte `offset` straight into `slices`, in their order; the number of bytes read, 0 at the end of
/// the file. Reads at most [`SLICES_MAX`] slices.
///
/// # Errors
/// Those of `preadv`; an interrupted call is repeated.
pub fn preadv_volatile<B: BitmapSlice>(
    file: impl AsFd,
    slices: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(SLICES_MAX)];
    // The guards hold the mappings while the kernel writes.
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<libc::iovec> = guards
        .iter()
        .zip(slices)
        .map(|(guard, slice)| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect();
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: every vector is the address and length of a `VolatileSlice`, whose memory is mapped writable for its
        // lifetime, which outlives the call; such memory may change under us at any time, and no reference to it exists.
        let read = unsafe {
            libc::preadv(
                file.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                offset,
            )
        };
        if read >= 0 {
            mark_dirty(slices, read as usize);
            return Ok(read as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Tells the dirty bitmaps which of the bytes were written.
fn mark_dirty<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>], mut written: usize) {
    for slice in slices {
        let here = written.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        written -= here;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_read_fills_the_slices_in_order_and_stops_at_the_end_of_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut memory = [b'-'; 16];
        let slice = VolatileSlice::from(&mut memory[..]);
        let parts = [slice.subslice(12, 3).unwrap(), slice.subslice(0, 8).unwrap()];
        assert_eq!(preadv_volatile(&file, &parts, 2).unwrap(), 8);
        assert_eq!(preadv_volatile(&file, &parts, 10).unwrap(), 0);
        assert_eq!(&memory, b"56789-------234-");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_an_error() {
        let file = std::fs::File::create(tempfile::tempdir().unwrap().path().join("x")).unwrap();
        let mut memory = [0; 4];
        let slice = VolatileSlice::from(&mut memory[..]);
        assert!(preadv_volatile(&file, &[slice], 0).is_err());
    }
}
