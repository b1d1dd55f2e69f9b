//! Lists of slices of guest memory as one run of bytes: taking pieces off, filling them.

use std::fs::File;
use std::io;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use zmachine_sys::io::preadv_volatile;

use crate::erofs::BLOCK_SIZE;

/// A position in a list of slices.
pub(crate) struct Cursor<'s, 'm, B> {
    pub(crate) slices: &'s [VolatileSlice<'m, B>],
    /// Bytes of the first slice that are used up.
    pub(crate) skip: usize,
}

impl<'m, B: BitmapSlice> Cursor<'_, 'm, B> {
    /// Bytes that are not used up.
    pub(crate) fn left(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum::<usize>() - self.skip
    }

    /// The next `len` bytes; fewer at the end.
    pub(crate) fn take(&mut self, mut len: usize) -> Vec<VolatileSlice<'m, B>> {
        let mut taken = Vec::new();
        while let Some(first) = self.slices.first() {
            let here = len.min(first.len() - self.skip);
            if here > 0
                && let Ok(part) = first.subslice(self.skip, here)
            {
                taken.push(part);
            }
            len -= here;
            self.skip += here;
            if self.skip < first.len() {
                break;
            }
            (self.slices, self.skip) = (&self.slices[1..], 0);
        }
        taken
    }
}

/// Fills a slice with zeros.
pub(crate) fn fill_zero<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    const ZEROS: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];
    let mut at = 0;
    while let Ok(rest) = slice.offset(at)
        && !rest.is_empty()
    {
        at += rest.len().min(ZEROS.len());
        rest.copy_from(&ZEROS[..]);
    }
}

/// Fills all of `target` from byte `offset` of `file`.
pub(crate) fn read_file<B: BitmapSlice>(
    file: &File,
    target: &[VolatileSlice<'_, B>],
    mut offset: u64,
) -> io::Result<()> {
    let mut cursor = Cursor {
        slices: target,
        skip: 0,
    };
    loop {
        let mut ahead = Cursor { ..cursor };
        let rest = ahead.take(usize::MAX);
        if rest.is_empty() {
            return Ok(());
        }
        match preadv_volatile(file, &rest, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                cursor.take(read);
                offset += read as u64;
            }
        }
    }
}

/// Fills all of `target` from byte `offset` of `bytes`.
pub(crate) fn read_bytes<B: BitmapSlice>(
    bytes: &[u8],
    target: &[VolatileSlice<'_, B>],
    mut offset: usize,
) -> io::Result<()> {
    for slice in target {
        let source = bytes.get(offset..).and_then(|rest| rest.get(..slice.len()));
        slice.copy_from(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        offset += slice.len();
    }
    Ok(())
}
