//! Packing: from a directory of the host to a flist and its blocks in a store.
//!
//! | submodule | what |
//! |---|---|
//! | `scan` | the tree without contents: one thread, no link is followed, nothing is opened |
//! | `content` | sealing and storing; the blocks of one file, and the proof that it held still |
//! | `xattr` | extended attributes |
//! | `archive` | tar archives and stacks of them, read as streams |
//! | `assemble` | a tree from members in any order, with whiteouts |
//! | `pipe` | sealing threads behind a stream |
//! | `ahead` | blocks on their way to stable storage while others are still sealed |
//!
//! First the whole tree is scanned, then all cores read, hash, compress, encrypt and store. A plaintext that was seen in
//! the same run is neither sealed nor stored again. In memory are the tree, 140 bytes per different block, and per core
//! one batch (of small files, or of four blocks of a large one) in its plain and its sealed form: up to 5 MB.
//!
//! The result is a value: writing it ([`Flist::write`]) is atomic, so a pack that fails leaves at most blocks that no flist
//! names. Holes become blocks of zeros (all the same one).
//!
//! With [`PackOptions::known`], the blocks of an earlier flist, a tree that hardly changed is only read and hashed: what the
//! earlier flist has and the store still has is neither compressed nor encrypted again.
//!
//! The source is a tree that holds still. A file that changes while it is read is read a second time and then refused; one
//! that vanishes or cannot be read ends the pack. File systems mounted below the source are packed as well.

mod ahead;
mod archive;
mod assemble;
mod content;
mod pipe;
mod scan;
mod xattr;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use thiserror::Error;
use zmachine_flist::{BlockRef, Flist, Metadata, NodeId, Route, RouteTable, TreeError};

use crate::batch::batches;
pub(crate) use archive::pack_layers;
pub use archive::pack_tar;
pub(crate) use assemble::{Assembly, Content};
pub(crate) use content::Packer;
use scan::Scan;
pub(crate) use xattr::is_kept as is_kept_xattr;
use zmachine_image::progress::Progress;
use zmachine_image::store::{BlockStore, StoreError};

/// How to pack.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Threads that read and seal; 0 for one per core.
    pub threads: usize,
    /// Where readers of the flist will find the blocks.
    pub routes: Vec<Route>,
    /// Tags of the flist.
    pub tags: BTreeMap<String, String>,
    /// Blocks of an earlier flist of about the same tree.
    pub known: Vec<BlockRef>,
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackReport {
    /// Regular files.
    pub files: u64,
    /// Nodes of every kind, with the root.
    pub nodes: u64,
    /// Sum of the sizes of the regular files.
    pub bytes: u64,
    /// Sum of the lengths of the block lists.
    pub blocks: u64,
    /// Different blocks.
    pub unique: u64,
    /// Blocks that the store did not have.
    pub stored: u64,
    /// Bytes of those, sealed.
    pub stored_bytes: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Attributes that were left out because overlayfs in a guest would take them for its own.
    pub overlay_xattrs: u64,
    /// Access control lists that were left out because they are none, or name somebody whose number is not known.
    pub lost_acls: u64,
}

/// Why a tree could not be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file or directory could not be read.
    #[error("cannot {action} {}", path.display())]
    Source {
        /// What was tried (`open`, `read`, ...).
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The source is not a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The source.
        path: PathBuf,
    },
    /// A file was not the same at the end of reading it, twice, or became something else.
    #[error("{} changes while it is packed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The store lies inside the tree, so that packing would change what is packed.
    #[error("the store {} is inside of {}", store.display(), path.display())]
    StoreInside {
        /// The source.
        path: PathBuf,
        /// The directory of the store.
        store: PathBuf,
    },
    /// The store did not take a block of this file.
    #[error("cannot store a block of {}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The store did not make its blocks durable.
    #[error("cannot finish the store")]
    Flush {
        /// Why.
        source: StoreError,
    },
    /// The tree has something that no flist can hold (a path of more than 4095 bytes).
    #[error("{} cannot become a flist", path.display())]
    Tree {
        /// The source.
        path: PathBuf,
        /// What.
        source: TreeError,
    },
    /// An archive could not be read, or cannot be a file tree.
    #[error("the archive cannot be packed")]
    Archive {
        /// Why.
        source: io::Error,
    },
    /// The threads could not be started.
    #[error("cannot start the threads of the packer")]
    Threads {
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

/// `threads` threads, 0 for one per core.
pub(crate) fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, PackError> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    threads.map_err(|source| PackError::Threads { source })
}

/// A regular file with its blocks.
pub(crate) type Packed = (NodeId, Metadata, Vec<BlockRef>);

/// Packs the tree below `source` into `store`. All blocks are durable when it returns. Progress is told in bytes.
pub fn pack(
    source: &Path,
    store: &dyn BlockStore,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<(Flist, PackReport), PackError> {
    refuse_store_inside(source, store)?;
    let Scan {
        mut builder,
        files,
        bytes,
        hard_links,
        overlay_xattrs,
    } = scan::scan(source)?;
    progress.begin(Some(bytes), "packing");
    let packer = Packer::new(store, &options.known, progress);
    let pool = thread_pool(options.threads)?;
    let batches = batches(files.iter().map(|file| file.size), pool.current_num_threads());
    let seal = || {
        let read = batches.into_par_iter().map(|batch| packer.files(&files[batch]));
        read.collect::<Result<Vec<Vec<Packed>>, PackError>>()
    };
    let packed = ahead::flushing(store, || packer.stored_bytes(), || pool.install(seal))
        .map_err(|source| PackError::Flush { source })??;
    // Also when all blocks were there: an earlier pack may have been killed before its flush. A store that was never
    // written need not exist.
    if packed.iter().flatten().any(|(_, _, blocks)| !blocks.is_empty()) {
        store.flush().map_err(|source| PackError::Flush { source })?;
    }
    let tree_error = |error| PackError::Tree {
        path: source.into(),
        source: error,
    };
    for (node, metadata, blocks) in packed.into_iter().flatten() {
        builder.set_content(node, metadata, blocks).map_err(tree_error)?;
    }
    let tree = builder.finish().map_err(tree_error)?;
    let counts = tree.counts();
    let report = PackReport {
        files: counts.files,
        nodes: tree.len() as u64,
        bytes: counts.file_bytes,
        blocks: counts.blocks,
        hard_links,
        ..packer.into_report()
    };
    let report = PackReport {
        overlay_xattrs: report.overlay_xattrs + overlay_xattrs.into_inner(),
        ..report
    };
    let routes = RouteTable(options.routes.clone());
    Ok((
        Flist {
            tree,
            routes,
            tags: options.tags.clone(),
        },
        report,
    ))
}

/// Refuses a local store below the source. A store that does not exist yet is looked at by what of its path exists.
fn refuse_store_inside(source: &Path, store: &dyn BlockStore) -> Result<(), PackError> {
    let whole = source.canonicalize();
    let whole = whole.map_err(|error| PackError::Source {
        action: "find",
        path: source.into(),
        source: error,
    })?;
    for directory in store.local_directories() {
        let existing = directory.ancestors().find_map(|path| path.canonicalize().ok());
        if existing.is_some_and(|store| store.starts_with(&whole)) {
            return Err(PackError::StoreInside {
                path: source.into(),
                store: directory.into(),
            });
        }
    }
    Ok(())
}
