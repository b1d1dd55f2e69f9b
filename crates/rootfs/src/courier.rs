//! The courier: a process that fetches blocks for the disk's server, which so needs neither files nor a network.
//!
//! ```text
//! guest ── hypervisor ── server (the machine's user, sees nothing) ── socket pairs ── courier (cache and stores, no guest)
//! ```
//! # Messages (one packet each, `SOCK_SEQPACKET`; native byte order, since both ends are one program)
//! ```text
//! request   order u8 (0 cached, 1 fetch, 2 fetch again) | length of id u8 | id | length of key u8 | key | block length u32
//! answer    found u8 | seven counters u64 | four texts with a NUL after each: reason and hint of a failure, reason and hint of
//!           the cache's trouble to keep blocks               with the block's open file when found: 1 the cache's, 2 in memory alone
//! ```
//! # Invariants
//! Whatever the server asks for, the courier gives it blocks that were verified against both their digests, opened for reading
//! alone, and writes nothing but such blocks into the cache: a server that a guest has taken over gains nothing here that it
//! could not ask for before. One request at a time on each pair. When one of the two processes ends, the other one does.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use zmachine_flist::{BlockId, BlockKey, BlockRef, Digest};
use zmachine_image::fetch::{FetchStats, Fetched};

use crate::blocks::{Blocks, CacheFailure, Undelivered};

/// Blocks that can be under way at once: what is fetched ahead from the list, what is for requests that wait, and one for each
/// of the usual queues, which so never wait behind the others.
const PAIRS: usize = 28;

/// Longest packet in bytes.
const PACKET: usize = 4096;

/// Bytes of a text in an answer.
const LONGEST_TEXT: usize = 900;

/// Bytes of an answer before its texts.
const ANSWER: usize = 1 + 7 * 8;

/// Where the block of an answer is.
const NOWHERE: u8 = 0;
const IN_CACHE: u8 = 1;
const IN_MEMORY: u8 = 2;

/// Orders of a request.
const CACHED: u8 = 0;
const FETCH: u8 = 1;
const FETCH_AGAIN: u8 = 2;

/// The courier's ends of all pairs.
#[derive(Debug)]
pub struct Counter(Vec<OwnedFd>);

/// The server's ends.
#[derive(Debug)]
pub struct Courier {
    pairs: Vec<Mutex<OwnedFd>>,
    next: AtomicUsize,
    told: Mutex<Told>,
}

/// What the courier said last.
#[derive(Debug, Default)]
struct Told {
    stats: FetchStats,
    cache_failure: Option<CacheFailure>,
}

/// Both ends.
///
/// # Errors
/// When there are no free descriptors.
pub fn pair() -> io::Result<(Courier, Counter)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        ours.push(Mutex::new(a));
        theirs.push(b);
    }
    let courier = Courier {
        pairs: ours,
        next: AtomicUsize::new(0),
        told: Mutex::default(),
    };
    Ok((courier, Counter(theirs)))
}

impl Counter {
    /// Answers requests out of `blocks` until the server is gone.
    ///
    /// # Errors
    /// When a thread can not be started.
    pub fn serve(self, blocks: impl Blocks + 'static) -> io::Result<()> {
        let blocks = Arc::new(blocks);
        let mut threads = Vec::new();
        for socket in self.0 {
            let blocks = Arc::clone(&blocks);
            let thread = thread::Builder::new().name("courier".into()).stack_size(512 * 1024);
            threads.push(thread.spawn(move || while answer_one(&socket, &*blocks).is_ok() {})?);
        }
        for thread in threads {
            let _ = thread.join();
        }
        Ok(())
    }
}

fn answer_one(socket: &OwnedFd, blocks: &impl Blocks) -> io::Result<()> {
    let mut packet = [0; PACKET];
    let (length, _) = receive(socket, &mut packet)?;
    let (order, block) = parse_request(&packet[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let result = match order {
        CACHED => Ok(blocks.cached(&block).map(|file| (IN_CACHE, file))),
        order => blocks
            .fetch(&block, order == FETCH_AGAIN)
            .and_then(|fetched| to_file(fetched).map(Some).map_err(|e| failed(&e))),
    };
    let (found, failure) = match result {
        Ok(found) => (found, None),
        Err(error) => (None, Some((error.reason, error.hint))),
    };
    let mut answer = vec![found.as_ref().map_or(NOWHERE, |(place, _)| *place)];
    counters(&blocks.stats())
        .iter()
        .for_each(|n| answer.extend(n.to_ne_bytes()));
    let trouble = blocks
        .take_cache_failure()
        .map(|failure| (failure.reason, failure.hint));
    for texts in [failure, trouble] {
        let (reason, hint) = texts.unwrap_or_default();
        for text in [reason, hint.unwrap_or_default()] {
            answer.extend(text.bytes().filter(|byte| *byte != 0).take(LONGEST_TEXT));
            answer.push(0);
        }
    }
    send(socket, &answer, found.as_ref().map(|(_, file)| file))
}

/// A block as a file that can only be read, and where it is.
fn to_file(fetched: Fetched) -> io::Result<(u8, File)> {
    let bytes = match fetched {
        Fetched::File(file) => return Ok((IN_CACHE, file)),
        Fetched::Bytes(bytes) => bytes,
    };
    use std::io::Write;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(rustix::fs::memfd_create("block", flags)?);
    memory.write_all(&bytes)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW)?;
    Ok((IN_MEMORY, memory))
}

fn failed(error: &io::Error) -> Undelivered {
    Undelivered {
        reason: format!("the block could not be passed on: {error}"),
        hint: None,
    }
}

fn counters(stats: &FetchStats) -> [u64; 7] {
    [
        stats.blocks,
        stats.stored_bytes,
        stats.plain_bytes,
        stats.cache_hits,
        stats.errors,
        stats.corrupt_answers,
        stats.cache_failures,
    ]
}

fn request(order: u8, block: &BlockRef) -> Vec<u8> {
    let mut packet = vec![order];
    for digest in [&block.id.0, &block.key.0] {
        packet.push(digest.as_bytes().len() as u8);
        packet.extend(digest.as_bytes());
    }
    packet.extend(block.len.to_ne_bytes());
    packet
}

fn parse_request(packet: &[u8]) -> Option<(u8, BlockRef)> {
    let (&order, rest) = packet.split_first()?;
    let digest = |bytes: &'_ [u8]| -> Option<(Digest, usize)> {
        let (&length, rest) = bytes.split_first()?;
        let digest = Digest::from_bytes(rest.get(..usize::from(length))?).ok()?;
        Some((digest, 1 + usize::from(length)))
    };
    let (id, used) = digest(rest)?;
    let rest = &rest[used..];
    let (key, used) = digest(rest)?;
    let len = u32::from_ne_bytes(rest[used..].try_into().ok()?);
    let block = BlockRef {
        id: BlockId(id),
        key: BlockKey(key),
        len,
    };
    (order <= FETCH_AGAIN).then_some((order, block))
}

fn send(socket: &OwnedFd, packet: &[u8], file: Option<&File>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

fn receive(socket: &OwnedFd, packet: &mut [u8]) -> io::Result<(usize, Option<File>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [IoSliceMut::new(packet)];
        match recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((received.bytes, fds.flatten().next().map(File::from)))
}

impl Courier {
    /// A pair that nobody uses, or the next one in turn.
    fn free(&self) -> MutexGuard<'_, OwnedFd> {
        for pair in &self.pairs {
            match pair.try_lock() {
                Ok(free) => return free,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.pairs.len();
        self.pairs[turn].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, order: u8, block: &BlockRef) -> Result<Option<(u8, File)>, Undelivered> {
        let pair = self.free();
        let mut packet = [0; PACKET];
        let asked = send(&pair, &request(order, block), None).and_then(|()| receive(&pair, &mut packet));
        let (length, file) = match asked {
            Ok((length, file)) if length >= ANSWER => (length, file),
            // Without its courier the disk is of no use; the monitor starts both anew, and the guest waits.
            _ => std::process::exit(3),
        };
        let number = |index: usize| {
            let at = 1 + index * 8;
            u64::from_ne_bytes(packet[at..at + 8].try_into().unwrap_or_default())
        };
        let stats = FetchStats {
            blocks: number(0),
            stored_bytes: number(1),
            plain_bytes: number(2),
            cache_hits: number(3),
            errors: number(4),
            corrupt_answers: number(5),
            cache_failures: number(6),
        };
        let texts = String::from_utf8_lossy(&packet[ANSWER..length]);
        let mut texts = texts
            .split('\0')
            .map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()));
        let mut text = || texts.next().flatten();
        let (failure, hint) = (text(), text());
        let (trouble, trouble_hint) = (text(), text());
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.stats = stats;
            if let Some(reason) = trouble {
                told.cache_failure = Some(CacheFailure {
                    reason,
                    hint: trouble_hint,
                });
            }
        }
        match failure {
            Some(reason) => Err(Undelivered { reason, hint }),
            None => Ok(file
                .map(|file| (packet[0], file))
                .filter(|(place, _)| *place != NOWHERE)),
        }
    }
}

impl Blocks for Courier {
    fn cached(&self, block: &BlockRef) -> Option<File> {
        let (_, file) = self.ask(CACHED, block).ok().flatten()?;
        Some(file)
    }

    fn fetch(&self, block: &BlockRef, is_damaged: bool) -> Result<Fetched, Undelivered> {
        let order = if is_damaged { FETCH_AGAIN } else { FETCH };
        let nothing = || Undelivered {
            reason: format!("block {} did not come", block.id),
            hint: None,
        };
        let (place, file) = self.ask(order, block)?.ok_or_else(nothing)?;
        let fetched = Fetched::File(file);
        // What no cache keeps would be lost with its descriptor.
        match place {
            IN_MEMORY => match fetched.into_bytes(block.len) {
                Ok(bytes) => Ok(Fetched::Bytes(bytes.into())),
                Err(error) => Err(failed(&error)),
            },
            _ => Ok(fetched),
        }
    }

    fn stats(&self) -> FetchStats {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).stats
    }

    fn take_cache_failure(&self) -> Option<CacheFailure> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.cache_failure.take()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct One(BlockRef, &'static [u8]);

    impl Blocks for One {
        fn cached(&self, block: &BlockRef) -> Option<File> {
            assert_eq!(*block, self.0);
            None
        }

        fn fetch(&self, block: &BlockRef, is_damaged: bool) -> Result<Fetched, Undelivered> {
            assert_eq!(*block, self.0);
            match is_damaged {
                true => Err(Undelivered {
                    reason: "no store has it".into(),
                    hint: Some("name one".into()),
                }),
                false => Ok(Fetched::Bytes(self.1.into())),
            }
        }

        fn stats(&self) -> FetchStats {
            FetchStats {
                blocks: 7,
                cache_failures: 9,
                ..FetchStats::default()
            }
        }

        fn take_cache_failure(&self) -> Option<CacheFailure> {
            Some(CacheFailure {
                reason: "the disk is full".into(),
                hint: None,
            })
        }
    }

    #[test]
    fn blocks_errors_and_counters_come_over() {
        let (block, _) = BlockRef::seal(b"content");
        let (courier, counter) = pair().unwrap();
        let served = thread::spawn(move || counter.serve(One(block, b"content")));
        assert!(courier.cached(&block).is_none());
        let fetched = courier.fetch(&block, false).unwrap();
        assert_eq!(fetched.into_bytes(7).unwrap(), b"content");
        let error = courier.fetch(&block, true).unwrap_err();
        assert_eq!(
            (error.reason.as_str(), error.hint.as_deref()),
            ("no store has it", Some("name one"))
        );
        assert_eq!((courier.stats().blocks, courier.stats().cache_failures), (7, 9));
        // A block that is in memory alone arrives as such.
        assert!(matches!(courier.fetch(&block, false), Ok(Fetched::Bytes(_))));
        assert_eq!(courier.take_cache_failure().unwrap().reason, "the disk is full");
        assert_eq!(courier.take_cache_failure(), None);
        drop(courier);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_request_that_is_none_ends_its_pair() {
        for bad in [&b""[..], b"\x00", b"\x09\x10", b"\x00\xff", &[0; 300]] {
            assert!(parse_request(bad).is_none(), "{bad:?}");
        }
        let (block, _) = BlockRef::seal(b"x");
        let good = request(FETCH, &block);
        assert_eq!(parse_request(&good), Some((FETCH, block)));
        for end in 0..good.len() {
            assert!(parse_request(&good[..end]).is_none());
        }
        assert!(parse_request(&[&good[..], b"x"].concat()).is_none());
    }

    #[test]
    fn a_block_in_memory_arrives_whole_wherever_it_was_written_to() {
        let (place, file) = to_file(Fetched::Bytes(Arc::from(&b"abc"[..]))).unwrap();
        assert_eq!(place, IN_MEMORY);
        let mut text = Vec::new();
        // The reader reads by position; the courier's writing has moved the file's own.
        (&file).read_to_end(&mut text).unwrap();
        assert!(text.is_empty());
        assert_eq!(Fetched::File(file).into_bytes(3).unwrap(), b"abc");
    }
}
