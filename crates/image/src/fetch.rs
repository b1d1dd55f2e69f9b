//! From a block reference to verified plaintext: the cache first, then the stores the flist's routes name.
//!
//! Invariants
//! * Nothing is visible to a caller or to the cache before it was verified: the digest of the stored bytes is the block id,
//!   and the digest of the plaintext is the block key ([`BlockRef::open`] checks both).
//! * One download per block at a time: within a process however many threads ask, and among the processes of a cache as
//!   far as they can claim blocks (`claim`); the others wait for its result.
//! * Stores are opened when they are first asked, so an unusable route costs nothing as long as another one delivers.
//! * A fetch ends within its deadline, whatever the stores do. While several routes are left, one alone cannot use up
//!   the time of the others.
//! * A full or broken cache disk costs speed, not blocks: the bytes are then served from memory.
//!
//! Blocking, for threads. The stores' own errors are told apart in `store`; which file of the image a block belongs to is
//! the caller's knowledge and goes into the caller's error.

mod lazy;
mod source;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use zmachine_flist::{BlockRef, Opener, RouteTable};

use self::source::Source;
use crate::cache::{BlockCache, CacheError, Found};
use crate::claim::{Claims, Turn};
use crate::lazy::LazyBlocks;
use crate::progress::Progress;
use crate::store::{BlockStore, Credentials, StoreError, Timeouts, open_store, redact};

/// Pauses before each further round over the stores whose failure may pass. Three rounds in all: a guest sees a failed
/// block as a read error of its root disk, so one broken connection must not be enough for that.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// How [`Fetcher`] reaches the stores.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Store URLs that replace the flist's own routes; none: the flist's routes are used. Every one is asked for every block.
    pub stores: Vec<String>,
    /// The most time one block may take, over all routes and retries.
    pub deadline: Duration,
    /// The most time one request may take.
    pub timeouts: Timeouts,
    /// Credentials for stores whose URLs have none.
    pub credentials: Credentials,
}

impl Default for FetchOptions {
    /// The flist's routes, 60 seconds per block: Linux gives a disk request 30 seconds before it complains, and a
    /// virtio disk has no time limit of its own.
    fn default() -> FetchOptions {
        FetchOptions {
            stores: Vec::new(),
            deadline: Duration::from_secs(60),
            timeouts: Timeouts::default(),
            credentials: Credentials::default(),
        }
    }
}

/// A verified block.
#[derive(Debug)]
pub enum Fetched {
    /// The open file of the cache; its length is the block's.
    File(File),
    /// The plaintext, when the cache could not keep it.
    Bytes(Arc<[u8]>),
}

impl Fetched {
    /// Fills `buf` from `offset` (bytes within the block).
    ///
    /// # Errors
    /// When the range ends past the block, or the cache's disk fails.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Fetched::File(file) => file.read_exact_at(buf, offset),
            Fetched::Bytes(bytes) => {
                let range = usize::try_from(offset)
                    .ok()
                    .and_then(|at| bytes.get(at..)?.get(..buf.len()));
                buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// The whole plaintext; `len` is the block's length.
    ///
    /// # Errors
    /// When the cache's disk fails.
    pub fn into_bytes(self, len: u32) -> io::Result<Vec<u8>> {
        let mut plain = vec![0; len as usize];
        self.read_exact_at(&mut plain, 0)?;
        Ok(plain)
    }
}

/// What one route answered instead of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The store, without credentials.
    pub store: String,
    /// What was wrong, naming the store.
    pub problem: String,
    /// The store has no such block.
    pub is_missing: bool,
    /// The store sent bytes that are not the block.
    pub is_corrupt: bool,
    /// Asking again soon may help.
    pub is_transient: bool,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// Why a block could not be fetched.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No route covers the block.
    #[error("no route of the flist leads to block {id}")]
    NoRoute {
        /// The block id.
        id: String,
    },
    /// The block is in no store, since it was made on this host, and it is here no more.
    #[error("block {id}, which was kept on this host alone, is gone or was damaged")]
    Gone {
        /// The block id.
        id: String,
    },
    /// Every route that covers the block failed.
    #[error("block {id} could not be fetched: {}", problems(attempts))]
    Failed {
        /// The block id.
        id: String,
        /// One per route, in the order of asking.
        attempts: Vec<Attempt>,
    },
    /// The time was up.
    #[error("block {id} did not arrive within {deadline:?}{}{}", if attempts.is_empty() { "" } else { ": " }, problems(attempts))]
    Expired {
        /// The block id.
        id: String,
        /// The limit.
        deadline: Duration,
        /// What is known of the routes that failed before.
        attempts: Vec<Attempt>,
    },
}

fn problems(attempts: &[Attempt]) -> String {
    let texts: Vec<&str> = attempts.iter().map(|a| a.problem.as_str()).collect();
    texts.join("; ")
}

impl FetchError {
    /// The block id.
    pub fn block_id(&self) -> &str {
        match self {
            FetchError::NoRoute { id }
            | FetchError::Gone { id }
            | FetchError::Failed { id, .. }
            | FetchError::Expired { id, .. } => id,
        }
    }

    /// What was wrong with each route.
    pub fn attempts(&self) -> &[Attempt] {
        match self {
            FetchError::NoRoute { .. } | FetchError::Gone { .. } => &[],
            FetchError::Failed { attempts, .. } | FetchError::Expired { attempts, .. } => attempts,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            FetchError::NoRoute { .. } => Some("name a store that has the blocks".into()),
            FetchError::Gone { .. } => Some("pull or import the image again".into()),
            _ => self.attempts().iter().find_map(|a| a.hint.clone()),
        }
    }
}

/// What a [`Fetcher`] has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Blocks that came from a store.
    pub blocks: u64,
    /// Their length as stored, in bytes: what went over the network.
    pub stored_bytes: u64,
    /// Their plain length in bytes.
    pub plain_bytes: u64,
    /// Blocks that were in the cache.
    pub cache_hits: u64,
    /// Blocks that could not be delivered.
    pub errors: u64,
    /// Answers of stores that were not the block asked for.
    pub corrupt_answers: u64,
    /// Blocks that the cache could not keep or give.
    pub cache_failures: u64,
}

#[derive(Debug, Default)]
struct Counters {
    blocks: AtomicU64,
    stored_bytes: AtomicU64,
    plain_bytes: AtomicU64,
    cache_hits: AtomicU64,
    errors: AtomicU64,
    corrupt_answers: AtomicU64,
    cache_failures: AtomicU64,
}

/// A source that was asked in vain.
type FailedSource<'a> = (&'a Source, Attempt);

/// A download under way, which other threads may wait for.
#[derive(Default)]
struct Flight {
    result: Mutex<Option<Result<Landed, FetchError>>>,
    done: Condvar,
}

/// Where a finished download left the block.
#[derive(Clone)]
enum Landed {
    InCache,
    InMemory(Arc<[u8]>),
}

/// Fetches the blocks of one flist. Shared between threads by reference.
pub struct Fetcher {
    cache: BlockCache,
    claims: Claims,
    /// Why the cache could not keep a block, since somebody asked last.
    trouble: Mutex<Option<CacheError>>,
    routes: RouteTable,
    options: FetchOptions,
    sources: HashMap<String, Source>,
    flights: Mutex<HashMap<BlockRef, Arc<Flight>>>,
    counters: Counters,
    /// What is fetched out of layers instead.
    lazy: Option<LazyBlocks>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values behind these locks are whole after every statement, so a panicked holder leaves nothing half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    /// A fetcher for the blocks behind `routes`. Nothing is opened or connected yet, so this cannot fail.
    pub fn new(cache: BlockCache, routes: RouteTable, options: FetchOptions) -> Fetcher {
        let urls: Vec<String> = if options.stores.is_empty() {
            routes.0.iter().map(|route| route.url.clone()).collect()
        } else {
            options.stores.clone()
        };
        let source = |url: String| {
            let complete = options.credentials.complete(&url);
            (url, Source::new(complete))
        };
        let sources = urls.into_iter().map(source).collect();
        Fetcher {
            cache,
            claims: Claims::default(),
            trouble: Mutex::default(),
            routes,
            options,
            sources,
            flights: Mutex::default(),
            counters: Counters::default(),
            lazy: None,
        }
    }

    /// The same fetcher for an image whose layers are still in a registry.
    #[must_use]
    pub fn with_lazy(self, lazy: LazyBlocks) -> Fetcher {
        Fetcher {
            lazy: Some(lazy),
            ..self
        }
    }

    /// The cache it fills.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Why the cache could not keep a block, the last time since this was asked.
    pub fn take_cache_error(&self) -> Option<CacheError> {
        lock(&self.trouble).take()
    }

    /// The directories it needs of this host, for sandboxes that must allow them: `dir://` stores, and those with the socket of
    /// a `zdb://` store, whose server makes a new one when it starts again.
    pub fn local_directories(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = self.sources.keys().filter_map(|url| local_directory(url)).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// What it has done so far.
    pub fn stats(&self) -> FetchStats {
        let c = &self.counters;
        FetchStats {
            blocks: c.blocks.load(Relaxed),
            stored_bytes: c.stored_bytes.load(Relaxed),
            plain_bytes: c.plain_bytes.load(Relaxed),
            cache_hits: c.cache_hits.load(Relaxed),
            errors: c.errors.load(Relaxed),
            corrupt_answers: c.corrupt_answers.load(Relaxed),
            cache_failures: c.cache_failures.load(Relaxed),
        }
    }

    /// The block, from the cache or a store.
    ///
    /// # Errors
    /// When no route delivers it in time; the error names the block id and what was wrong with each route.
    pub fn fetch(&self, block: &BlockRef) -> Result<Fetched, FetchError> {
        let deadline = Instant::now() + self.options.deadline;
        if let Some(file) = self.cached(block) {
            self.counters.cache_hits.fetch_add(1, Relaxed);
            return Ok(Fetched::File(file));
        }
        let fetched = self.share_flight(block, deadline);
        if fetched.is_err() {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        fetched
    }

    /// Fetches the block although the cache has it: for a caller that found the cached one unreadable.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub fn refetch(&self, block: &BlockRef) -> Result<Fetched, FetchError> {
        let cached = self.in_cache_as(block);
        if cached.is_some_and(|cached| self.cache.evict(&cached).is_err()) {
            // What cannot be removed would be found again; the bytes are served from memory instead.
            self.counters.cache_failures.fetch_add(1, Relaxed);
            let deadline = Instant::now() + self.options.deadline;
            return self
                .download(block, deadline)
                .map(|(_, plain)| Fetched::Bytes(plain.into()));
        }
        self.fetch(block)
    }

    /// Fetches all `blocks` into the cache with `threads` threads, telling `progress` each one (in blocks). The first
    /// failure ends it.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`], for the first block that failed.
    pub fn fetch_all(&self, blocks: &[BlockRef], threads: usize, progress: &dyn Progress) -> Result<(), FetchError> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(block) = blocks.get(next.fetch_add(1, Relaxed)) {
                if lock(&failure).is_some() {
                    return;
                }
                match self.fetch(block) {
                    Ok(_) => progress.advance(1),
                    Err(e) => {
                        lock(&failure).get_or_insert(e);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, blocks.len().max(1)) {
                scope.spawn(work);
            }
        });
        failure
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// The open file of a block that the cache has, hashed since this host was started.
    pub fn cached(&self, block: &BlockRef) -> Option<File> {
        self.cached_all(std::slice::from_ref(block)).pop().flatten()
    }

    /// [`Fetcher::cached`] of each, which costs less together. What the cache could not give is counted, and told once.
    pub fn cached_all(&self, blocks: &[BlockRef]) -> Vec<Option<File>> {
        if self.lazy.is_none() {
            return self.look_all(blocks);
        }
        let known: Vec<Option<BlockRef>> = blocks.iter().map(|block| self.in_cache_as(block)).collect();
        let there: Vec<BlockRef> = known.iter().flatten().copied().collect();
        let mut files = self.look_all(&there).into_iter();
        let each = known.iter().map(|known| known.and_then(|_| files.next().flatten()));
        each.collect()
    }

    fn look_all(&self, blocks: &[BlockRef]) -> Vec<Option<File>> {
        let found = self.cache.look(blocks).into_iter().zip(blocks);
        let each = found.map(|(found, block)| {
            let trouble = match found {
                Ok(Found::Block(file)) => return Some(file),
                Ok(Found::Nothing) => return None,
                Ok(Found::Damaged) => CacheError::Damaged {
                    path: self.cache.path_of(block),
                },
                Err(error) => error,
            };
            self.counters.cache_failures.fetch_add(1, Relaxed);
            *lock(&self.trouble) = Some(trouble);
            None
        });
        each.collect()
    }

    /// Downloads the block, or waits for the thread that does.
    fn share_flight(&self, block: &BlockRef, deadline: Instant) -> Result<Fetched, FetchError> {
        loop {
            let (flight, is_leader) = self.join(block);
            let landed = if is_leader {
                self.lead(block, &flight, deadline)?
            } else {
                match self.wait(block, &flight, deadline) {
                    // A flight that took off before us ran out of its time, not of ours.
                    Err(FetchError::Expired { .. }) if Instant::now() < deadline => continue,
                    other => other?,
                }
            };
            match landed {
                Landed::InMemory(bytes) => return Ok(Fetched::Bytes(bytes)),
                Landed::InCache => {
                    if let Some(file) = self.cached(block) {
                        return Ok(Fetched::File(file));
                    }
                }
            }
            // Somebody removed the block from the cache between its arrival and our opening it.
            if Instant::now() >= deadline {
                return Err(self.expired(block, Vec::new()));
            }
        }
    }

    fn join(&self, block: &BlockRef) -> (Arc<Flight>, bool) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(block) {
            return (Arc::clone(flight), false);
        }
        let flight = Arc::new(Flight::default());
        flights.insert(*block, Arc::clone(&flight));
        (flight, true)
    }

    fn lead(&self, block: &BlockRef, flight: &Flight, deadline: Instant) -> Result<Landed, FetchError> {
        /// Ends the flight also when the download panics, so that nobody waits for a thread that is gone.
        struct Landing<'a> {
            fetcher: &'a Fetcher,
            flight: &'a Flight,
            block: &'a BlockRef,
            result: Option<Result<Landed, FetchError>>,
        }
        impl Drop for Landing<'_> {
            fn drop(&mut self) {
                let broken = || {
                    Err(FetchError::Failed {
                        id: self.block.id.0.to_string(),
                        attempts: Vec::new(),
                    })
                };
                lock(&self.fetcher.flights).remove(self.block);
                *lock(&self.flight.result) = Some(self.result.take().unwrap_or_else(broken));
                self.flight.done.notify_all();
            }
        }
        let mut landing = Landing {
            fetcher: self,
            flight,
            block,
            result: None,
        };
        let result = self.land(block, deadline);
        landing.result = Some(result.clone());
        result
    }

    fn land(&self, block: &BlockRef, deadline: Instant) -> Result<Landed, FetchError> {
        // Another flight may have landed between our look into the cache and our take-off: `wait` looks.
        let is_there = || {
            if let Some(lazy) = self.lazy_of(block) {
                lazy.look_again();
            }
            self.cached(block).is_some()
        };
        let turn = self.claims.wait(self.cache.directory(), block, deadline, is_there);
        if matches!(turn, Turn::Arrived) {
            self.counters.cache_hits.fetch_add(1, Relaxed);
            return Ok(Landed::InCache);
        }
        if let Some(lazy) = self.lazy_of(block) {
            return self.land_lazy(lazy, block, deadline);
        }
        let (_, plain) = self.download(block, deadline)?;
        match self.cache.insert_verified(block, &plain) {
            Ok(_) => Ok(Landed::InCache),
            Err(error) => {
                self.counters.cache_failures.fetch_add(1, Relaxed);
                *lock(&self.trouble) = Some(error);
                Ok(Landed::InMemory(plain.into()))
            }
        }
    }

    fn wait(&self, block: &BlockRef, flight: &Flight, deadline: Instant) -> Result<Landed, FetchError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (result, _) = flight
            .done
            .wait_timeout_while(lock(&flight.result), left, |result| result.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &*result {
            Some(result) => result.clone(),
            None => Err(self.expired(block, Vec::new())),
        }
    }

    fn expired(&self, block: &BlockRef, attempts: Vec<Attempt>) -> FetchError {
        FetchError::Expired {
            id: block.id.0.to_string(),
            deadline: self.options.deadline,
            attempts,
        }
    }

    /// The sources that may have the block, in the order of the route table, those that failed lately last.
    fn sources_of(&self, block: &BlockRef) -> Vec<&Source> {
        let mut urls: Vec<&str> = if self.options.stores.is_empty() {
            self.routes
                .for_block(&block.id)
                .map(|route| route.url.as_str())
                .collect()
        } else {
            self.options.stores.iter().map(String::as_str).collect()
        };
        let mut seen = std::collections::HashSet::new();
        urls.retain(|url| seen.insert(*url));
        let mut sources: Vec<&Source> = urls.iter().filter_map(|url| self.sources.get(*url)).collect();
        // Once each: asking decides who tries a store whose rest is over.
        sources.sort_by_cached_key(|source| source.is_resting());
        sources
    }

    /// The stored bytes and the plaintext, both verified, straight from the stores: for who goes over a whole flist once. A block that no
    /// store has comes from the cache, without stored bytes.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub fn fetch_uncached(&self, block: &BlockRef) -> Result<(Vec<u8>, Vec<u8>), FetchError> {
        self.download(block, Instant::now() + self.options.deadline)
    }

    /// The plaintexts of some blocks, verified, straight from the stores, in their order. `opener` is the thread's own.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`], for the first block that failed, with its place among the blocks.
    pub fn fetch_batch<'a>(
        &self,
        blocks: &[BlockRef],
        opener: &'a mut Opener,
    ) -> Result<Vec<Cow<'a, [u8]>>, (usize, FetchError)> {
        // What the first store of each has is looked at together; anything else goes the long way, block by block.
        let stored = blocks.iter().map(|block| self.first_answer(block).unwrap_or_default());
        let mut stored: Vec<(BlockRef, Vec<u8>)> = blocks.iter().copied().zip(stored).collect();
        let lengths: Vec<u64> = stored.iter().map(|(_, sealed)| sealed.len() as u64).collect();
        let opened = opener.open(&mut stored).into_iter().zip(lengths);
        let plain = |(at, (opened, stored_bytes)): (usize, (Result<&'a [u8], _>, u64))| {
            if let Ok(plain) = opened {
                self.count(stored_bytes, plain.len());
                return Ok(Cow::Borrowed(plain));
            }
            let fetched = self.fetch_uncached(&blocks[at]);
            fetched.map(|(_, plain)| Cow::Owned(plain)).map_err(|error| (at, error))
        };
        opened.enumerate().map(plain).collect()
    }

    /// What the first source of a block has under its id, not verified; nothing of one that failed lately.
    fn first_answer(&self, block: &BlockRef) -> Option<Vec<u8>> {
        let url = match self.options.stores.first() {
            Some(url) => url,
            None => &self.routes.for_block(&block.id).next()?.url,
        };
        let source = self.sources.get(url).filter(|source| !source.has_failed())?;
        let store = self.store_of(source).as_ref().ok()?;
        let share = self.options.deadline / u32::try_from(self.sources.len()).unwrap_or(u32::MAX).max(1);
        let answer = store.get_before(&block.id, Instant::now() + share);
        if answer.as_ref().is_err_and(StoreError::is_transient) {
            source.failed();
        }
        answer.ok()
    }

    /// Stored bytes and plaintext, verified, from the first store that delivers them. A block of zeros that no store has is
    /// made instead (without stored bytes): its digest says all there is to know.
    fn download(&self, block: &BlockRef, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>), FetchError> {
        match self.download_stored(block, deadline) {
            Err(_) if block.is_zeros() => Ok((Vec::new(), vec![0; block.len as usize])),
            other => other,
        }
    }

    /// The plaintext of a block that no store has.
    fn unsealed(&self, block: &BlockRef) -> Result<(Vec<u8>, Vec<u8>), FetchError> {
        let plain = self.cached(block).and_then(|file| {
            let mut plain = vec![0; block.len as usize];
            file.read_exact_at(&mut plain, 0).ok().map(|()| plain)
        });
        let gone = || FetchError::Gone {
            id: block.id.to_string(),
        };
        plain.map(|plain| (Vec::new(), plain)).ok_or_else(gone)
    }

    fn download_stored(&self, block: &BlockRef, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>), FetchError> {
        if let Some(lazy) = self.lazy_of(block) {
            let first = self.download_lazy(lazy, block, deadline)?.swap_remove(0);
            return Ok((Vec::new(), first.plain));
        }
        if block.is_unsealed() {
            return self.unsealed(block);
        }
        let mut sources = self.sources_of(block);
        if sources.is_empty() {
            return Err(FetchError::NoRoute {
                id: block.id.0.to_string(),
            });
        }
        let mut given_up = Vec::new();
        for pause in PAUSES.iter().map(Some).chain([None]) {
            let failed = match self.ask_each(block, &sources, deadline) {
                Ok(plain) => return Ok(plain),
                Err(failed) => failed,
            };
            let (again, lost): (Vec<_>, Vec<_>) = failed.into_iter().partition(|(_, attempt)| attempt.is_transient);
            given_up.extend(lost.into_iter().map(|(_, attempt)| attempt));
            let out_of_time = Instant::now() + pause.copied().unwrap_or_default() >= deadline;
            if again.is_empty() || pause.is_none() || out_of_time {
                let expired = out_of_time && !again.is_empty();
                given_up.extend(again.into_iter().map(|(_, attempt)| attempt));
                return Err(self.failed(block, given_up, expired));
            }
            std::thread::sleep(pause.copied().unwrap_or_default());
            sources = again.into_iter().map(|(source, _)| source).collect();
        }
        Err(self.failed(block, given_up, false))
    }

    fn failed(&self, block: &BlockRef, attempts: Vec<Attempt>, expired: bool) -> FetchError {
        if expired {
            return self.expired(block, attempts);
        }
        FetchError::Failed {
            id: block.id.0.to_string(),
            attempts,
        }
    }

    fn ask_each<'a>(
        &self,
        block: &BlockRef,
        sources: &[&'a Source],
        deadline: Instant,
    ) -> Result<(Vec<u8>, Vec<u8>), Vec<FailedSource<'a>>> {
        let mut failed = Vec::new();
        for (at, source) in sources.iter().enumerate() {
            // A store that stalls may use up its share of the time, not that of the stores after it.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(sources.len() - at).unwrap_or(u32::MAX);
            match self.ask(block, source, Instant::now() + share) {
                Ok(plain) => return Ok(plain),
                Err(attempt) => failed.push((*source, attempt)),
            }
        }
        Err(failed)
    }

    /// Opened when it is first asked.
    fn store_of<'a>(&self, source: &'a Source) -> &'a Result<Box<dyn BlockStore>, Arc<StoreError>> {
        let open = || open_store(&source.url, self.options.timeouts).map_err(Arc::new);
        source.store.get_or_init(open)
    }

    /// Counts a block that came from a store.
    fn count(&self, stored_bytes: u64, plain_bytes: usize) {
        self.counters.blocks.fetch_add(1, Relaxed);
        self.counters.stored_bytes.fetch_add(stored_bytes, Relaxed);
        self.counters.plain_bytes.fetch_add(plain_bytes as u64, Relaxed);
    }

    /// One store, once.
    fn ask(&self, block: &BlockRef, source: &Source, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>), Attempt> {
        let store = match self.store_of(source) {
            Ok(store) => store,
            Err(e) => return Err(store_failure(redact(&source.url), e)),
        };
        let sealed = store.get_before(&block.id, deadline).map_err(|e| {
            if e.is_transient() {
                source.failed();
            } else {
                source.answered();
            }
            store_failure(store.describe(), &e)
        })?;
        source.answered();
        let plain = block.open(&sealed).map_err(|e| {
            self.counters.corrupt_answers.fetch_add(1, Relaxed);
            corruption(store.describe(), &e.to_string())
        })?;
        self.count(sealed.len() as u64, plain.len());
        Ok((sealed, plain))
    }
}

/// The directory (or socket) of this host behind the URL of a store, if that is all it takes to reach it.
pub fn local_directory(url: &str) -> Option<PathBuf> {
    if let Some(dir) = url.strip_prefix("dir://") {
        return Some(dir.into());
    }
    let socket = url.split(['?', '#']).next()?.strip_prefix("zdb:///")?;
    let socket = Path::new("/").join(socket);
    match socket.parent() {
        // Nobody shall see all of the host for it.
        None => None,
        Some(root) if root == Path::new("/") => Some(socket),
        Some(folder) => Some(folder.to_owned()),
    }
}

fn store_failure(store: String, error: &StoreError) -> Attempt {
    let problem = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Attempt {
        store,
        problem,
        is_missing: matches!(error, StoreError::NotFound { .. }),
        is_corrupt: matches!(error, StoreError::TooLong { .. }),
        is_transient: error.is_transient(),
        hint: error.hint(),
    }
}

fn corruption(store: String, what: &str) -> Attempt {
    Attempt {
        problem: format!("{store} sent something else: {what}"),
        store,
        is_missing: false,
        is_corrupt: true,
        is_transient: false,
        hint: Some("the store is damaged: restore the block there, or name another store".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_on_this_host_is_a_directory() {
        let of = |url| local_directory(url).map(|path| path.display().to_string());
        assert_eq!(of("dir:///srv/blocks").as_deref(), Some("/srv/blocks"));
        assert_eq!(of("zdb:///run/zdb/0.sock").as_deref(), Some("/run/zdb"));
        assert_eq!(of("zdb:///0.sock").as_deref(), Some("/0.sock"));
        assert_eq!(
            (of("zdb://h:9900/ns"), of("http://h/"), of("s3://h/b")),
            (None, None, None)
        );
    }
}
