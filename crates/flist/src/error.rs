//! What can go wrong with the file of a flist. Every error names the file.

use std::path::PathBuf;

use crate::tree::TreeError;

/// Why a file could not be opened as a flist.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{} is not a flist: {found}", path.display())]
    NotAFlist {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// Its writer did not finish: a journal lies beside the file.
    #[error("{} was left in the middle of a change: {} exists", path.display(), journal.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// The journal.
        journal: PathBuf,
    },
    /// The database is damaged (or reading it failed).
    #[error("{} is a damaged flist (reading {reading})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which table or part.
        reading: &'static str,
        /// What the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row that cannot be.
    #[error("{} is a broken flist: table {table}, row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// Its rowid (for `inode` and `extra` the inode number).
        row: i64,
        /// What is wrong.
        problem: String,
    },
    /// An object of format 1 that cannot be.
    #[error("{} is a broken flist: {object}: {problem}", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// The directory (`directory "a/b"`) or access list.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// The rows do not make up a file tree.
    #[error("{} is a broken flist", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TreeError,
    },
}

/// Why a flist could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The temporary file, its rename or a sync failed.
    #[error("cannot write {}", path.display())]
    File {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database refused a row.
    #[error("cannot write {} (writing {writing})", path.display())]
    Database {
        /// The file asked for.
        path: PathBuf,
        /// Which table or part.
        writing: &'static str,
        /// What the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The flist has something that format 2 cannot hold.
    #[error("cannot write {}: format 2 cannot hold {what}", path.display())]
    Unsupported {
        /// The file asked for.
        path: PathBuf,
        /// What.
        what: String,
    },
}
