//! The blocks of a flist in other stores.
//!
//! [`convert`] opens every block and seals it anew: format 1 becomes format 2. [`push`] copies the stored bytes as they are.
//! Both read straight from the stores, verify every block, and make the new ones durable before they return. The flist they
//! return is the input's tree and tags with new blocks or routes; writing it is the caller's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;
use thiserror::Error;
use zmachine_flist::{BlockRef, Flist, Route, RouteTable};
use zmachine_image::fetch::{FetchError, Fetcher};
use zmachine_image::progress::Progress;
use zmachine_image::store::{BlockStore, StoreError};

use crate::pack::{PackError, PackReport, Packer, thread_pool};

/// Threads that fetch and store; answer times are what they hide.
const THREADS: usize = 8;

/// Why a flist could not be copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A block could not be had.
    #[error("a block of {file} cannot be read")]
    Fetch {
        /// A file that has it.
        file: String,
        /// Why.
        source: FetchError,
    },
    /// The new store did not take a block.
    #[error("a block cannot be stored")]
    Store {
        /// Why.
        source: StoreError,
    },
    /// The threads could not be started.
    #[error("cannot copy")]
    Threads {
        /// Why.
        source: PackError,
    },
    /// Only blocks of format 2 can be copied as they are.
    #[error("the blocks are of format 1")]
    OldFormat,
    /// Blocks of a container image that was pulled have no stored form.
    #[error("the blocks are on this host alone, and sealed for no store")]
    Unsealed,
}

impl CopyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            CopyError::Fetch { source, .. } => source.hint(),
            CopyError::Store { source } => source.hint(),
            CopyError::Threads { .. } => None,
            CopyError::Unsealed => Some("seal them into a store with 'zmachine flist convert'".into()),
            CopyError::OldFormat => Some("make a flist of format 2 with 'zmachine flist convert'".into()),
        }
    }
}

/// A failure whose file is still to be found.
enum Failed {
    Fetch(FetchError),
    Store(StoreError),
}

impl Failed {
    fn of(self, flist: &Flist) -> CopyError {
        match self {
            Failed::Store(source) => CopyError::Store { source },
            Failed::Fetch(source) => CopyError::Fetch {
                file: file_with_block(flist, source.block_id()),
                source,
            },
        }
    }
}

/// A path of the flist that has a block, for messages.
pub(crate) fn file_with_block(flist: &Flist, id: &str) -> String {
    let has_it = |node| {
        let blocks = flist.tree.get(node).content().map_or(&[][..], |(_, blocks)| blocks);
        blocks.iter().any(|block| block.id.to_string() == id)
    };
    let found = flist.tree.walk().find(|(_, node)| has_it(*node));
    found.map_or_else(
        || "a file".into(),
        |(path, _)| format!("/{}", String::from_utf8_lossy(&path)),
    )
}

/// The flist in format 2, its blocks sealed anew into `store`. Progress is told in bytes.
///
/// # Errors
/// [`CopyError`]; blocks that were stored stay.
pub fn convert(
    flist: &Flist,
    fetcher: &Fetcher,
    store: &dyn BlockStore,
    routes: Vec<Route>,
    progress: &dyn Progress,
) -> Result<(Flist, PackReport), CopyError> {
    let packer = Packer::new(store, &[], progress);
    let blocks = flist.tree.unique_blocks();
    progress.begin(
        Some(blocks.iter().map(|block| u64::from(block.len)).sum()),
        "converting",
    );
    let pool = thread_pool(THREADS).map_err(|source| CopyError::Threads { source })?;
    let plain = |block: &BlockRef| {
        fetcher
            .fetch_uncached(block)
            .map(|(_, plain)| plain)
            .map_err(Failed::Fetch)
    };
    let each = |block: &BlockRef| -> Result<(BlockRef, BlockRef), Failed> {
        let new = packer.store_plain(&plain(block)?).map_err(Failed::Store)?;
        Ok((*block, new))
    };
    let new: Result<HashMap<BlockRef, BlockRef>, Failed> = pool.install(|| blocks.par_iter().map(each).collect());
    let new = new.map_err(|failed| failed.of(flist))?;
    let whole = |block: &BlockRef| block.len as usize == BlockRef::SIZE;
    let tree = flist.tree.clone().map_contents(|blocks| match blocks.split_last() {
        // Blocks of another size than the format's are cut anew.
        Some((_, full)) if !full.iter().all(whole) => recut(blocks, &plain, &packer),
        _ => Ok(blocks.iter().map(|block| new[block]).collect()),
    });
    let tree = tree.map_err(|failed| failed.of(flist))?;
    if !blocks.is_empty() {
        store.flush().map_err(|source| CopyError::Store { source })?;
    }
    let counts = tree.counts();
    let report = PackReport {
        files: counts.files,
        nodes: tree.len() as u64,
        bytes: counts.file_bytes,
        blocks: counts.blocks,
        ..packer.into_report()
    };
    let converted = Flist {
        tree,
        routes: RouteTable(routes),
        tags: flist.tags.clone(),
    };
    Ok((converted, report))
}

/// One file in blocks of the usual size.
fn recut(
    blocks: &[BlockRef],
    plain: &dyn Fn(&BlockRef) -> Result<Vec<u8>, Failed>,
    packer: &Packer<'_>,
) -> Result<Vec<BlockRef>, Failed> {
    let mut new = Vec::new();
    let mut buffer = Vec::with_capacity(2 * BlockRef::SIZE);
    for block in blocks {
        buffer.extend(plain(block)?);
        while buffer.len() >= BlockRef::SIZE {
            new.push(packer.store_plain(&buffer[..BlockRef::SIZE]).map_err(Failed::Store)?);
            buffer.drain(..BlockRef::SIZE);
        }
    }
    if !buffer.is_empty() {
        new.push(packer.store_plain(&buffer).map_err(Failed::Store)?);
    }
    Ok(new)
}

/// What [`push`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushReport {
    /// Different blocks of the flist.
    pub blocks: u64,
    /// Blocks that the new store did not have.
    pub stored: u64,
    /// Bytes of those, sealed.
    pub stored_bytes: u64,
}

/// Copies every block to `store` unless it is there, and gives the flist with `routes`. Progress is told in bytes.
///
/// # Errors
/// [`CopyError`]; blocks that were stored stay.
pub fn push(
    flist: &Flist,
    fetcher: &Fetcher,
    store: &dyn BlockStore,
    routes: Vec<Route>,
    progress: &dyn Progress,
) -> Result<(Flist, PushReport), CopyError> {
    let blocks = flist.tree.unique_blocks();
    if blocks.iter().any(|block| block.id.0.as_bytes().len() != 32) {
        return Err(CopyError::OldFormat);
    }
    if blocks.iter().any(BlockRef::is_unsealed) {
        return Err(CopyError::Unsealed);
    }
    progress.begin(Some(blocks.iter().map(|block| u64::from(block.len)).sum()), "pushing");
    let (stored, stored_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let each = |block: &BlockRef| -> Result<(), Failed> {
        if !store.holds(&block.id).map_err(Failed::Store)? {
            let (mut sealed, plain) = fetcher.fetch_uncached(block).map_err(Failed::Fetch)?;
            if sealed.is_empty() {
                sealed = block.key.seal(&plain).1;
            }
            if store.put(&block.id, &sealed).map_err(Failed::Store)? {
                stored.fetch_add(1, Relaxed);
                stored_bytes.fetch_add(sealed.len() as u64, Relaxed);
            }
        }
        progress.advance(u64::from(block.len));
        Ok(())
    };
    let pool = thread_pool(THREADS).map_err(|source| CopyError::Threads { source })?;
    let done: Result<(), Failed> = pool.install(|| blocks.par_iter().try_for_each(each));
    done.map_err(|failed| failed.of(flist))?;
    if !blocks.is_empty() {
        store.flush().map_err(|source| CopyError::Store { source })?;
    }
    let pushed = Flist {
        routes: RouteTable(routes),
        ..flist.clone()
    };
    let report = PushReport {
        blocks: blocks.len() as u64,
        stored: stored.into_inner(),
        stored_bytes: stored_bytes.into_inner(),
    };
    Ok((pushed, report))
}
