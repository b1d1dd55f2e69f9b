//! A guest's memory as a file: written while the guest stands still, and read before a copy of it runs.
//!
//! Only what is not zero is written, so the file has the size of what the guest uses, and its holes are the guest's zeros. Reading
//! holds every chunk against its checksum.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::{MemfdFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;
use zmachine_spec::saved::{CHUNK, FileMark, MemoryMark};

use super::holders::{Holders, SEALED};

/// The unit in which zeros are left out, in bytes.
const PAGE: usize = 4096;

/// How many CPUs copy at once: more of them wait for memory.
const THREADS: usize = 4;

/// Copies `memory` to the empty file `to`.
///
/// # Errors
/// Of either file.
pub fn save(memory: impl AsFd, to: &File) -> io::Result<MemoryMark> {
    let from = File::from(memory.as_fd().try_clone_to_owned()?);
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    let mut starts = Vec::new();
    let mut at = 0;
    while let Some(data) = data_from(&from, at, bytes)? {
        let start = data - data % CHUNK;
        starts.push(start);
        at = start + CHUNK;
    }
    let chunks = Mutex::new(Vec::new());
    each(&starts, |start, buffer| {
        let length = (bytes - start).min(CHUNK) as usize;
        let chunk = &mut buffer[..length];
        from.read_exact_at(chunk, *start)?;
        if write_pages(chunk, to, *start)? {
            let number = u32::try_from(start / CHUNK).map_err(|_| io::ErrorKind::FileTooLarge)?;
            let chunk = (number, crc32c::crc32c(chunk));
            chunks.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        }
        Ok(())
    })?;
    let mut chunks = chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
    chunks.sort_unstable();
    Ok(MemoryMark { bytes, chunks })
}

/// Does `work` for each of `all`, with a buffer of [`CHUNK`] bytes, on a few CPUs at once: a guest stands still meanwhile, or somebody waits for it.
fn each<T: Sync>(all: &[T], work: impl Fn(&T, &mut [u8]) -> io::Result<()> + Sync) -> io::Result<()> {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let some = || {
        let mut buffer = vec![0; CHUNK as usize];
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(one, &mut buffer) {
                next.store(all.len(), Ordering::Relaxed);
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..cpus.min(THREADS).min(all.len()) {
            // Where none can be had, this one does it all.
            let _ = thread::Builder::new().spawn_scoped(scope, some);
        }
        some();
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// New memory that is all zeros, for a guest that finds its own in its state.
///
/// # Errors
/// When there is none.
pub fn zeros(bytes: u64) -> io::Result<OwnedFd> {
    let memory = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, bytes)?;
    Ok(memory)
}

/// Where data begin at `at` or behind it.
fn data_from(file: &File, at: u64, end: u64) -> io::Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok((data < end).then_some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the pages of `bytes` that are not all zeros; whether there were any.
fn write_pages(bytes: &[u8], to: &File, at: u64) -> io::Result<bool> {
    let mut run: Option<usize> = None;
    let mut any = false;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let offset = index * PAGE;
        match (is_zero(page), run) {
            (false, None) => run = Some(offset),
            (true, Some(start)) => {
                to.write_all_at(&bytes[start..offset], at + start as u64)?;
                (run, any) = (None, true);
            }
            _ => {}
        }
    }
    if let Some(start) = run {
        to.write_all_at(&bytes[start..], at + start as u64)?;
        any = true;
    }
    Ok(any)
}

fn is_zero(page: &[u8]) -> bool {
    // As words, which the compiler makes wide ones of.
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Reads the file `from` into new memory. That for `holders` is sealed: nobody can change it then, so that many guests can begin with it.
///
/// # Errors
/// When the file is not what was written, or there is no memory.
pub fn load(from: &File, mark: &MemoryMark, holders: Option<&Holders>) -> io::Result<OwnedFd> {
    let name = holders.map_or("guest-memory", Holders::name);
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, mark.bytes)?;
    let to = File::from(memory);
    read_chunks(from, mark, |chunk, start| write_pages(chunk, &to, start).map(drop))?;
    let memory = OwnedFd::from(to);
    if holders.is_some() {
        fcntl_add_seals(&memory, SEALED)?;
    }
    Ok(memory)
}

/// That a file of memory is what was written.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn check(from: &File, mark: &MemoryMark) -> io::Result<()> {
    read_chunks(from, mark, |_, _| Ok(()))
}

/// Reads every chunk that is not all zeros, held against its checksum; they come in no order.
fn read_chunks(from: &File, mark: &MemoryMark, take: impl Fn(&[u8], u64) -> io::Result<()> + Sync) -> io::Result<()> {
    if from.metadata()?.len() != mark.bytes {
        return Err(io::Error::other("it has another length than when it was saved"));
    }
    each(&mark.chunks, |(number, sum), buffer| {
        let start = u64::from(*number) * CHUNK;
        let length = mark.bytes.saturating_sub(start).min(CHUNK) as usize;
        let chunk = &mut buffer[..length];
        from.read_exact_at(chunk, start)?;
        if crc32c::crc32c(chunk) != *sum {
            return Err(io::Error::other(format!(
                "what it has from byte {start} on is not what was saved"
            )));
        }
        take(chunk, start)
    })
}

/// Length and checksum of a file. Holes are not read. Whoever shares the open file finds its position as it was.
///
/// # Errors
/// When it cannot be read.
pub fn mark(file: &File) -> io::Result<FileMark> {
    let position = seek(file, SeekFrom::Current(0))?;
    let found = marked(file);
    seek(file, SeekFrom::Start(position))?;
    found
}

fn marked(file: &File) -> io::Result<FileMark> {
    let end = file.metadata()?.len();
    let (mut at, mut crc32c) = (0, 0);
    let mut buffer = vec![0; 256 * 1024];
    while at < end {
        // Of a file system that knows no holes, all is data.
        let data = data_from(file, at, end)?.unwrap_or(end).clamp(at, end);
        crc32c = crc32c::crc32c_combine(crc32c, crc_of_zeros(data - at), (data - at) as usize);
        at = data;
        let hole = match at < end {
            true => seek(file, SeekFrom::Hole(at))?.min(end),
            false => end,
        };
        while at < hole {
            let wanted = buffer.len().min((hole - at) as usize);
            let count = file.read_at(&mut buffer[..wanted], at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            crc32c = crc32c::crc32c_append(crc32c, &buffer[..count]);
            at += count as u64;
        }
    }
    Ok(FileMark { bytes: end, crc32c })
}

/// The checksum of so many zeros, put together from that of one, two, four, ...
fn crc_of_zeros(count: u64) -> u32 {
    let (mut all, mut power) = (0, crc32c::crc32c(&[0]));
    for bit in 0..u64::BITS - count.leading_zeros() {
        let bytes = 1_usize << bit;
        if count & (1 << bit) != 0 {
            all = crc32c::crc32c_combine(all, power, bytes);
        }
        power = crc32c::crc32c_combine(power, power, bytes);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn memory() -> (OwnedFd, Vec<u8>) {
        let mut bytes = vec![0; 5 * CHUNK as usize + 3 * PAGE];
        bytes[10] = 1;
        bytes[CHUNK as usize + 5 * PAGE..][..2 * PAGE].fill(7);
        let end = bytes.len();
        bytes[end - 1] = 9;
        let memory = memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        file.set_len(bytes.len() as u64).unwrap();
        // The third chunk has data that are zeros.
        for at in [0, CHUNK as usize, 2 * CHUNK as usize, 5 * CHUNK as usize] {
            let end = (at + CHUNK as usize).min(bytes.len());
            file.write_all_at(&bytes[at..end], at as u64).unwrap();
        }
        (file.into(), bytes)
    }

    fn all(fd: &OwnedFd) -> Vec<u8> {
        let file = File::from(fd.try_clone().unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn memory_is_kept_without_its_zeros_and_read_as_it_was() {
        let (memory, bytes) = memory();
        let file = tempfile::tempfile().unwrap();
        let mark = save(&memory, &file).unwrap();
        let numbers: Vec<u32> = mark.chunks.iter().map(|(number, _)| *number).collect();
        assert_eq!((mark.bytes, numbers), (bytes.len() as u64, vec![0, 1, 5]));
        assert!(file.metadata().unwrap().blocks() * 512 <= 64 * 1024);
        let loaded = load(&file, &mark, None).unwrap();
        assert!(all(&loaded) == bytes);
    }

    #[test]
    fn the_checksum_of_a_file_with_holes_is_that_of_its_bytes() {
        for zeros in [0, 1, 3, 4096, (1 << 20) + 5] {
            assert_eq!(crc_of_zeros(zeros), crc32c::crc32c(&vec![0; zeros as usize]), "{zeros}");
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(mark(&file).unwrap(), FileMark { bytes: 0, crc32c: 0 });
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"some", (1 << 20) + 7).unwrap();
        file.write_all_at(b"end", (3 << 20) - 3).unwrap();
        let mut bytes = vec![0; 3 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let wanted = FileMark {
            bytes: 3 << 20,
            crc32c: crc32c::crc32c(&bytes),
        };
        (&file).seek(io::SeekFrom::Start(5)).unwrap();
        assert_eq!(mark(&file).unwrap(), wanted);
        assert_eq!((&file).stream_position().unwrap(), 5);
        file.set_len(8 << 20).unwrap();
        bytes.resize(8 << 20, 0);
        assert_eq!(mark(&file).unwrap().crc32c, crc32c::crc32c(&bytes));
    }

    #[test]
    fn a_file_that_was_changed_or_cut_is_refused() {
        let (memory, _) = memory();
        let file = tempfile::tempfile().unwrap();
        let mark = save(&memory, &file).unwrap();
        file.write_all_at(&[8], CHUNK + 6 * PAGE as u64).unwrap();
        assert!(
            load(&file, &mark, None)
                .unwrap_err()
                .to_string()
                .contains("from byte 1048576")
        );
        file.write_all_at(&[7], CHUNK + 6 * PAGE as u64).unwrap();
        load(&file, &mark, None).unwrap();
        file.set_len(mark.bytes - 1).unwrap();
        assert!(
            load(&file, &mark, None)
                .unwrap_err()
                .to_string()
                .contains("another length")
        );
    }
}
