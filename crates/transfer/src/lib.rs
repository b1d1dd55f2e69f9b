//! Files and directories as tar streams: what `cp` sends between host and guest, and what `diff`, `commit` and `export` get of
//! a container's root. Both sides run this code.
//!
//! # The stream
//! A tar archive whose entries are `tree` (the file or directory itself) and `tree/...` (what is below a directory):
//! regular files, hard links between them, directories, symbolic links, pipes and devices, with modes and times. Sockets are
//! left out, and devices too where the receiver does not want them.
//!
//! # Invariants
//! A receiver believes nothing: a path with `..`, a path through a symbolic link that leads out of the target, or a hard link
//! to something outside of it ends the transfer. An existing symbolic link is replaced, never written through.
//! Memory is bounded by the depth of the tree and the number of directories and of hard links.

mod archive;
mod changes;
mod members;
mod receive;
mod send;
pub mod xattr;

pub use archive::{from_archive, to_archive};
pub use changes::{Change, Layers, read_list, send_changes, send_list, send_root};
pub use receive::{Keep, receive};
pub use send::send;

use std::io;
use std::path::PathBuf;

/// First component of every path in the stream.
const ROOT: &str = "tree";

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The source is not there.
    #[error("{} is not there", path.display())]
    NotFound {
        /// Its path.
        path: PathBuf,
    },
    /// The place for the target is not there, or no directory.
    #[error("{} is no directory", path.display())]
    NoDirectory {
        /// Its path.
        path: PathBuf,
    },
    /// A directory cannot be put in the place of a file.
    #[error("{} is a file, and a directory cannot take its place", path.display())]
    NotADirectory {
        /// Its path.
        path: PathBuf,
    },
    /// All that there was to copy is of a kind that is not copied.
    #[error("{} is not copied: it is {kind}", path.display())]
    NotCopied {
        /// Its path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The stream would write outside of the target.
    #[error("the stream leads out of the target: {}", path.display())]
    Escape {
        /// The path in the stream.
        path: PathBuf,
    },
    /// Something cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The stream itself broke.
    #[error("the stream broke: {0}")]
    Stream(io::Error),
}

impl TransferError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> TransferError {
        let path = path.into();
        move |source| TransferError::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests;
