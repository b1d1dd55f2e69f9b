//! Sealing threads behind a stream: whoever reads the stream pushes pieces, the threads seal and store them.
//!
//! Memory is bounded by the pieces under way: two per thread. The first failure ends the next push.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use zmachine_flist::BlockRef;
use zmachine_image::store::StoreError;

use super::Packer;

/// Where pieces go.
pub(crate) struct Pipe {
    sender: SyncSender<(usize, Vec<u8>)>,
    pushed: usize,
}

/// The store refused a piece; the reason comes from [`run`].
#[derive(Debug)]
pub(crate) struct Closed;

impl Pipe {
    /// Hands a piece over; its serial number.
    pub(crate) fn push(&mut self, plain: Vec<u8>) -> Result<usize, Closed> {
        let serial = self.pushed;
        self.sender.send((serial, plain)).map_err(|_| Closed)?;
        self.pushed += 1;
        Ok(serial)
    }
}

/// Runs `feed` with `threads` threads behind it (0: one per core): what it returned, and the blocks by serial number.
///
/// # Errors
/// The first failure of the store, which comes before any of `feed`.
pub(crate) fn run<T>(
    packer: &Packer<'_>,
    threads: usize,
    feed: impl FnOnce(&mut Pipe) -> T,
) -> Result<(T, Vec<BlockRef>), StoreError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (sender, receiver) = sync_channel(threads);
    let receiver = Mutex::new(Some(receiver));
    let (blocks, failure) = (Mutex::new(Vec::new()), Mutex::new(None));
    let fed = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(packer, &receiver, &blocks, &failure));
        }
        let mut pipe = Pipe { sender, pushed: 0 };
        feed(&mut pipe)
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => {
            let mut blocks: Vec<(usize, BlockRef)> = blocks.into_inner().unwrap_or_else(PoisonError::into_inner);
            blocks.sort_unstable_by_key(|(serial, _)| *serial);
            Ok((fed, blocks.into_iter().map(|(_, block)| block).collect()))
        }
    }
}

type Jobs = Mutex<Option<Receiver<(usize, Vec<u8>)>>>;

fn work(packer: &Packer<'_>, jobs: &Jobs, blocks: &Mutex<Vec<(usize, BlockRef)>>, failure: &Mutex<Option<StoreError>>) {
    loop {
        let job = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|jobs| jobs.recv().ok());
        let Some((serial, plain)) = job else { return };
        match packer.store_plain(&plain) {
            Ok(block) => blocks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((serial, block)),
            Err(error) => {
                failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
                // Without a receiver the next push fails.
                jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
                return;
            }
        }
    }
}
