//! The block broker: a process that fetches blocks for the disk's server, which so needs neither files nor a network.
//!
//! ```text
//! guest ── hypervisor ── server (the machine's user, sees nothing) ── socket pairs ── block broker (cache and stores, no guest)
//! ```
//! # Messages (one packet each, `SOCK_SEQPACKET`; native byte order, since both ends are one program)
//! ```text
//! request   order u8 (0 cached, 1 fetch, 2 fetch again) | a block, for order 0 up to 16: length of id u8 | id | length of key u8 |
//!           key | block length u32
//! answer    place u8 (0 nowhere, 1 in the cache, 2 in memory alone) | found u16, a bit for each block | seven counters u64 | four
//!           texts with a NUL after each: reason and hint of a failure, reason and hint of the cache's trouble to keep blocks
//!                                                            with the open files of the blocks found, in their order
//! ```
//! # Invariants
//! Whatever the server asks for, the block broker gives it blocks that were verified against both their digests, opened for reading
//! alone, and writes nothing but such blocks into the cache: a server that a guest has taken over gains nothing here that it
//! could not ask for before. One request at a time on each pair. When one of the two processes ends, the other one does.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
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

/// Blocks that one request can open: each way there and back costs as much as several of them.
const TOGETHER: usize = 16;

/// Longest packet in bytes.
const PACKET: usize = 4096;

/// Bytes of a text in an answer.
const LONGEST_TEXT: usize = 900;

/// Bytes of an answer before its texts.
const ANSWER: usize = 1 + 2 + 7 * 8;

/// Where the block of an answer is.
const NOWHERE: u8 = 0;
const IN_CACHE: u8 = 1;
const IN_MEMORY: u8 = 2;

/// Orders of a request.
const CACHED: u8 = 0;
const FETCH: u8 = 1;
const FETCH_AGAIN: u8 = 2;

/// The block broker's ends of all pairs.
#[derive(Debug)]
pub struct BrokerServer(Vec<OwnedFd>);

/// The server's ends.
#[derive(Debug)]
pub struct BrokerClient {
    pairs: Vec<Mutex<OwnedFd>>,
    next: AtomicUsize,
    reported: Mutex<Reported>,
}

/// What the block broker said last.
#[derive(Debug, Default)]
struct Reported {
    stats: FetchStats,
    cache_failure: Option<CacheFailure>,
}

/// Both ends.
///
/// # Errors
/// When there are no free descriptors.
pub fn pair() -> io::Result<(BrokerClient, BrokerServer)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        ours.push(Mutex::new(a));
        theirs.push(b);
    }
    let broker = BrokerClient {
        pairs: ours,
        next: AtomicUsize::new(0),
        reported: Mutex::default(),
    };
    Ok((broker, BrokerServer(theirs)))
}

impl BrokerServer {
    /// Answers requests out of `blocks` until the server is gone. A pair gets its thread with its first request: most machines never have
    /// more than a few under way, and the start of all threads is a part of the start of a machine.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn serve(self, blocks: impl Blocks + 'static) -> io::Result<()> {
        let blocks = Arc::new(blocks);
        let (mut unused, mut threads) = (self.0, Vec::new());
        while !unused.is_empty() {
            let ready = until_ready(&unused)?;
            // From the last one on, so that no other changes its place.
            for (nth, flags) in ready.into_iter().enumerate().rev() {
                if flags.is_empty() {
                    continue;
                }
                let socket = unused.swap_remove(nth);
                if flags.contains(PollFlags::HUP) {
                    continue;
                }
                let blocks = Arc::clone(&blocks);
                let thread = thread::Builder::new()
                    .name("block broker".into())
                    .stack_size(512 * 1024);
                threads.push(thread.spawn(move || while answer_one(&socket, &*blocks).is_ok() {})?);
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
        Ok(())
    }
}

/// Waits until a request comes on one of the sockets, or its other end is gone: what there is, for each of them.
fn until_ready(sockets: &[OwnedFd]) -> io::Result<Vec<PollFlags>> {
    let mut polled: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            done => {
                done?;
                return Ok(polled.iter().map(PollFd::revents).collect());
            }
        }
    }
}

fn answer_one(socket: &OwnedFd, blocks: &impl Blocks) -> io::Result<()> {
    let mut packet = [0; PACKET];
    let (length, _) = receive(socket, &mut packet)?;
    let (order, wanted) = parse_request(&packet[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let (mut place, mut found, mut files, mut failure) = (NOWHERE, 0u16, Vec::new(), None);
    if order == CACHED {
        for (nth, file) in blocks.cached_all(&wanted).into_iter().enumerate() {
            found |= u16::from(file.is_some()) << nth;
            files.extend(file);
        }
        place = if files.is_empty() { NOWHERE } else { IN_CACHE };
    } else {
        let fetched = blocks.fetch(&wanted[0], order == FETCH_AGAIN);
        match fetched.and_then(|fetched| to_file(fetched).map_err(|e| failed(&e))) {
            Ok((where_it_is, file)) => (place, found, files) = (where_it_is, 1, vec![file]),
            Err(error) => failure = Some((error.reason, error.hint)),
        }
    }
    let mut answer = vec![place];
    answer.extend(found.to_ne_bytes());
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
    send(socket, &answer, &files)
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

fn request(order: u8, blocks: &[BlockRef]) -> Vec<u8> {
    let mut packet = vec![order];
    for block in blocks {
        for digest in [&block.id.0, &block.key.0] {
            packet.push(digest.as_bytes().len() as u8);
            packet.extend(digest.as_bytes());
        }
        packet.extend(block.len.to_ne_bytes());
    }
    packet
}

fn parse_request(packet: &[u8]) -> Option<(u8, Vec<BlockRef>)> {
    let (&order, mut rest) = packet.split_first()?;
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        blocks.push(take_block(&mut rest)?);
    }
    let most = if order == CACHED { TOGETHER } else { 1 };
    (order <= FETCH_AGAIN && (1..=most).contains(&blocks.len())).then_some((order, blocks))
}

fn take_block(rest: &mut &[u8]) -> Option<BlockRef> {
    let id = BlockId(take_digest(rest)?);
    let key = BlockKey(take_digest(rest)?);
    let (len, after) = rest.split_first_chunk()?;
    *rest = after;
    let len = u32::from_ne_bytes(*len);
    Some(BlockRef { id, key, len })
}

fn take_digest(rest: &mut &[u8]) -> Option<Digest> {
    let (&length, after) = rest.split_first()?;
    let (digest, after) = after.split_at_checked(usize::from(length))?;
    *rest = after;
    Digest::from_bytes(digest).ok()
}

fn send(socket: &OwnedFd, packet: &[u8], files: &[File]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = files.iter().map(File::as_fd).collect();
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

fn receive(socket: &OwnedFd, packet: &mut [u8]) -> io::Result<(usize, Vec<File>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
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
    Ok((received.bytes, fds.flatten().map(File::from).collect()))
}

impl BrokerClient {
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

    /// Where the blocks found are, and for each block its file when it is one of them.
    fn ask(&self, order: u8, blocks: &[BlockRef]) -> Result<(u8, Vec<Option<File>>), Undelivered> {
        let pair = self.free();
        let mut packet = [0; PACKET];
        let asked = send(&pair, &request(order, blocks), &[]).and_then(|()| receive(&pair, &mut packet));
        let (length, files) = match asked {
            Ok((length, files)) if length >= ANSWER => (length, files),
            // Without its block broker the disk is of no use; the monitor starts both anew, and the guest waits.
            _ => std::process::exit(3),
        };
        let number = |index: usize| {
            let at = 3 + index * 8;
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
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            reported.stats = stats;
            if let Some(reason) = trouble {
                reported.cache_failure = Some(CacheFailure {
                    reason,
                    hint: trouble_hint,
                });
            }
        }
        match failure {
            Some(reason) => Err(Undelivered { reason, hint }),
            None => {
                let found = u16::from_ne_bytes([packet[1], packet[2]]);
                let mut files = files.into_iter();
                let each = (0..blocks.len()).map(|nth| (found >> nth & 1 == 1).then(|| files.next()).flatten());
                Ok((packet[0], each.collect()))
            }
        }
    }
}

impl Blocks for BrokerClient {
    fn cached(&self, block: &BlockRef) -> Option<File> {
        self.cached_all(std::slice::from_ref(block)).pop().flatten()
    }

    fn together(&self) -> usize {
        TOGETHER
    }

    fn cached_all(&self, blocks: &[BlockRef]) -> Vec<Option<File>> {
        match self.ask(CACHED, blocks) {
            Ok((_, files)) => files,
            Err(_) => blocks.iter().map(|_| None).collect(),
        }
    }

    fn fetch(&self, block: &BlockRef, is_damaged: bool) -> Result<Fetched, Undelivered> {
        let order = if is_damaged { FETCH_AGAIN } else { FETCH };
        let nothing = || Undelivered {
            reason: format!("block {} did not come", block.id),
            hint: None,
        };
        let (place, mut files) = self.ask(order, std::slice::from_ref(block))?;
        let fetched = Fetched::File(files.pop().flatten().ok_or_else(nothing)?);
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
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).stats
    }

    fn take_cache_failure(&self) -> Option<CacheFailure> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.cache_failure.take()
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
        let (broker, counter) = pair().unwrap();
        let served = thread::spawn(move || counter.serve(One(block, b"content")));
        assert!(broker.cached(&block).is_none());
        let fetched = broker.fetch(&block, false).unwrap();
        assert_eq!(fetched.into_bytes(7).unwrap(), b"content");
        let error = broker.fetch(&block, true).unwrap_err();
        assert_eq!(
            (error.reason.as_str(), error.hint.as_deref()),
            ("no store has it", Some("name one"))
        );
        assert_eq!((broker.stats().blocks, broker.stats().cache_failures), (7, 9));
        // A block that is in memory alone arrives as such.
        assert!(matches!(broker.fetch(&block, false), Ok(Fetched::Bytes(_))));
        assert_eq!(broker.take_cache_failure().unwrap().reason, "the disk is full");
        assert_eq!(broker.take_cache_failure(), None);
        drop(broker);
        served.join().unwrap().unwrap();
    }

    /// Every second of its blocks is there.
    struct Second(Vec<BlockRef>);

    impl Blocks for Second {
        fn cached(&self, block: &BlockRef) -> Option<File> {
            let nth = self.0.iter().position(|known| known == block)?;
            let (_, file) = to_file(Fetched::Bytes(vec![nth as u8].into())).unwrap();
            (nth % 2 == 1).then_some(file)
        }

        fn fetch(&self, _: &BlockRef, _: bool) -> Result<Fetched, Undelivered> {
            unreachable!("nobody asks for it")
        }

        fn stats(&self) -> FetchStats {
            FetchStats::default()
        }

        fn take_cache_failure(&self) -> Option<CacheFailure> {
            None
        }
    }

    #[test]
    fn many_blocks_come_with_one_request_each_in_its_place() {
        let all: Vec<BlockRef> = (0..TOGETHER as u8).map(|n| BlockRef::seal(&[n]).0).collect();
        let (broker, counter) = pair().unwrap();
        let blocks = Second(all.clone());
        let served = thread::spawn(move || counter.serve(blocks));
        let found = broker.cached_all(&all);
        assert_eq!(found.len(), TOGETHER);
        for (nth, file) in found.into_iter().enumerate() {
            let content = file.map(|file| Fetched::File(file).into_bytes(1).unwrap());
            assert_eq!(content, (nth % 2 == 1).then(|| vec![nth as u8]));
        }
        drop(broker);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn requests_that_are_under_way_at_once_have_a_thread_each() {
        /// Answers when two have asked.
        struct Together(std::sync::Barrier);

        impl Blocks for Together {
            fn cached(&self, _: &BlockRef) -> Option<File> {
                self.0.wait();
                None
            }

            fn fetch(&self, _: &BlockRef, _: bool) -> Result<Fetched, Undelivered> {
                unreachable!("nobody asks for it")
            }

            fn stats(&self) -> FetchStats {
                FetchStats::default()
            }

            fn take_cache_failure(&self) -> Option<CacheFailure> {
                None
            }
        }

        let (block, _) = BlockRef::seal(b"content");
        let (broker, counter) = pair().unwrap();
        let served = thread::spawn(move || counter.serve(Together(std::sync::Barrier::new(2))));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert!(broker.cached(&block).is_none()));
            }
        });
        drop(broker);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_request_that_is_none_ends_its_pair() {
        for bad in [&b""[..], b"\x00", b"\x09\x10", b"\x00\xff", &[0; 300]] {
            assert!(parse_request(bad).is_none(), "{bad:?}");
        }
        let (block, _) = BlockRef::seal(b"x");
        let good = request(FETCH, &[block]);
        assert_eq!(parse_request(&good), Some((FETCH, vec![block])));
        for end in 0..good.len() {
            assert!(parse_request(&good[..end]).is_none());
        }
        assert!(parse_request(&[&good[..], b"x"].concat()).is_none());
        assert!(parse_request(&request(FETCH, &[block, block])).is_none());
        let most = [block; TOGETHER];
        assert_eq!(parse_request(&request(CACHED, &most)), Some((CACHED, most.to_vec())));
        assert!(request(CACHED, &most).len() <= PACKET);
        assert!(parse_request(&request(CACHED, &[block; TOGETHER + 1])).is_none());
    }

    #[test]
    fn a_block_in_memory_arrives_whole_wherever_it_was_written_to() {
        let (place, file) = to_file(Fetched::Bytes(Arc::from(&b"abc"[..]))).unwrap();
        assert_eq!(place, IN_MEMORY);
        let mut text = Vec::new();
        // The reader reads by position; the block broker's writing has moved the file's own.
        (&file).read_to_end(&mut text).unwrap();
        assert!(text.is_empty());
        assert_eq!(Fetched::File(file).into_bytes(3).unwrap(), b"abc");
    }
}
