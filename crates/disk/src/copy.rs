//! An image onto a volume: what is zero stays a hole, and what was written is read back and compared.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use thiserror::Error;

use crate::source::{RawFile, Source};

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// Zeros are left out in pieces of this many bytes.
const HOLE: usize = 64 << 10;

/// Why an image was not copied. What is on the target then is worth nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The image cannot be read.
    #[error("the image cannot be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The reason.
        source: io::Error,
    },
    /// This host's disk is full.
    #[error("this host has no room left for the volume, at byte {offset} of {total}")]
    Full {
        /// Where.
        offset: u64,
        /// Length of the image.
        total: u64,
    },
    /// The volume cannot be written.
    #[error("the volume cannot be written at byte {offset}")]
    Write {
        /// Where.
        offset: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// What is on the volume is not what was written.
    #[error("the volume does not hold what was written to it")]
    Different,
    /// It was told to stop.
    #[error("the copy was stopped")]
    Stopped,
}

impl CopyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            CopyError::Full { .. } => {
                Some("make room on the disk of the volumes and start again; the copy begins anew")
            }
            CopyError::Different => Some("look at the health of the disk of the volumes"),
            _ => None,
        }
    }
}

/// Copies `source` to the beginning of `target`, whose old content is dropped and whose length stays. `progress` is told how
/// many bytes of the image are done; once `stop` is set, the copy ends. When this returns, the bytes are on the disk.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    source: &mut dyn Source,
    target: &File,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CopyError> {
    let total = source.len();
    let write_failed = |offset| move |e| written(e, offset, total);
    let len = target.metadata().map_err(write_failed(0))?.len();
    discard(target, len).map_err(write_failed(0))?;
    let mut sum = blake2b_simd::State::new();
    each_chunk(source, stop, |offset, chunk| {
        for (index, piece) in chunk.chunks(HOLE).enumerate() {
            if !is_zero(piece) {
                let at = offset + (index * HOLE) as u64;
                target.write_all_at(piece, at).map_err(write_failed(at))?;
            }
        }
        add(&mut sum, offset, chunk);
        progress(offset + chunk.len() as u64);
        Ok(())
    })?;
    target.sync_all().map_err(write_failed(total))?;
    progress(total);
    let again = target
        .try_clone()
        .and_then(RawFile::new)
        .map_err(|source| CopyError::Read { offset: 0, source })?;
    let mut again = Beginning {
        file: again,
        len: total,
    };
    let mut found = blake2b_simd::State::new();
    each_chunk(&mut again, stop, |offset, chunk| {
        add(&mut found, offset, chunk);
        Ok(())
    })?;
    match found.finalize() == sum.finalize() {
        true => Ok(()),
        false => Err(CopyError::Different),
    }
}

/// Makes `target` read as zeros, at the same length throughout: whoever finds it after this process was killed in the middle
/// must still be told the size of the volume.
fn discard(target: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match fallocate(target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => overwrite(target),
        Err(e) => Err(e.into()),
    }
}

/// Zeros where there is something, for file systems that cannot punch holes.
fn overwrite(target: &File) -> io::Result<()> {
    let mut old = RawFile::new(target.try_clone()?)?;
    let zeros = vec![0; CHUNK as usize];
    let mut offset = 0;
    while let Some(at) = old.next_data(offset)? {
        let n = (old.len() - at).min(CHUNK);
        target.write_all_at(&zeros[..n as usize], at)?;
        offset = at + n;
    }
    Ok(())
}

fn written(error: io::Error, offset: u64, total: u64) -> CopyError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CopyError::Full { offset, total },
        _ => CopyError::Write { offset, source: error },
    }
}

/// Chunks that are zero count for nothing, so that it is the same whether they are holes.
fn add(sum: &mut blake2b_simd::State, offset: u64, chunk: &[u8]) {
    if !is_zero(chunk) {
        sum.update(&offset.to_le_bytes()).update(chunk);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared with itself, shifted by one: as fast as memcmp.
    bytes
        .first()
        .is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

/// Calls `f` for every piece of the source that may hold something; pieces lie at multiples of [`CHUNK`].
fn each_chunk(
    source: &mut dyn Source,
    stop: &AtomicBool,
    mut f: impl FnMut(u64, &[u8]) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    loop {
        let read_failed = |source| CopyError::Read { offset, source };
        let Some(data) = source.next_data(offset).map_err(read_failed)? else {
            return Ok(());
        };
        if stop.load(Ordering::Relaxed) {
            return Err(CopyError::Stopped);
        }
        offset = data - data % CHUNK;
        let n = (source.len() - offset).min(CHUNK) as usize;
        let read_failed = |source| CopyError::Read { offset, source };
        source.read_at(&mut buffer[..n], offset).map_err(read_failed)?;
        f(offset, &buffer[..n])?;
        offset += n as u64;
    }
}

/// The first bytes of a file.
struct Beginning {
    file: RawFile,
    len: u64,
}

impl Source for Beginning {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.file.next_data(offset)?.filter(|at| *at < self.len))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; (5 << 20) + 12345];
        image[3] = 1;
        image[(3 << 20)..(3 << 20) + 200_000].fill(7);
        let end = image.len();
        image[end - 1] = 9;
        image
    }

    fn copied(target: &File) -> Result<(), CopyError> {
        copy(&mut image(), target, &AtomicBool::new(false), &mut |_| ())
    }

    #[test]
    fn the_target_holds_the_image_and_holes_where_it_is_zero() {
        let target = tempfile::tempfile().unwrap();
        target.write_all_at(&vec![0xff; 8 << 20], 0).unwrap();
        let mut last = 0;
        copy(&mut image(), &target, &AtomicBool::new(false), &mut |done| last = done).unwrap();
        let mut read = vec![0; 8 << 20];
        target.read_exact_at(&mut read, 0).unwrap();
        let image = image();
        assert!(read[..image.len()] == image && read[image.len()..].iter().all(|b| *b == 0));
        assert_eq!(last, image.len() as u64);
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn the_target_is_never_shorter_than_it_is() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        let target = File::from(memfd_create("volume", MemfdFlags::ALLOW_SEALING).unwrap());
        target.write_all_at(&vec![0xff; 8 << 20], 0).unwrap();
        fcntl_add_seals(&target, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        copied(&target).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 8 << 20);
    }

    #[test]
    fn what_was_there_is_overwritten_where_holes_can_not_be_made() {
        let target = tempfile::tempfile().unwrap();
        target.write_all_at(&[0xff; 300_000], 100_000).unwrap();
        target.write_all_at(&[0xff; 5], 6 << 20).unwrap();
        overwrite(&target).unwrap();
        let mut read = vec![1; (6 << 20) + 5];
        target.read_exact_at(&mut read, 0).unwrap();
        assert!(read.iter().all(|b| *b == 0));
        assert_eq!(target.metadata().unwrap().len(), (6 << 20) + 5);
    }

    #[test]
    fn a_copy_that_was_stopped_is_done_again_from_the_beginning() {
        let target = tempfile::tempfile().unwrap();
        target.set_len(8 << 20).unwrap();
        let stop = AtomicBool::new(false);
        let stopped = copy(&mut image(), &target, &stop, &mut |_| {
            stop.store(true, Ordering::Relaxed)
        });
        assert!(matches!(stopped, Err(CopyError::Stopped)));
        copied(&target).unwrap();
    }

    #[test]
    fn a_source_that_breaks_says_where() {
        struct Broken;
        impl Source for Broken {
            fn len(&self) -> u64 {
                4 << 20
            }
            fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                buffer.fill(1);
                if offset < 2 << 20 {
                    Ok(())
                } else {
                    Err(io::Error::other("gone"))
                }
            }
        }
        let target = tempfile::tempfile().unwrap();
        target.set_len(8 << 20).unwrap();
        let error = copy(&mut Broken, &target, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
        assert!(matches!(error, CopyError::Read { offset, .. } if offset == 2 << 20));
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = full.write_all_at(b"x", 0).unwrap_err();
        assert!(matches!(written(error, 1, 2), CopyError::Full { offset: 1, total: 2 }));
    }
}
