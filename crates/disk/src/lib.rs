//! Disk images as values and files: what they hold, where their bytes come from, copying them, and the seed.
//!
//! | module | owns |
//! |---|---|
//! | [`mod@identify`] | what a disk holds, from its superblocks and partition table alone |
//! | [`foreign`] | forms of disk images that are not read here, and what to do with them |
//! | `firmware` | what firmware starts where there is no GPT |
//! | [`source`] | where the bytes of an image come from: a raw or a qcow2 file of this host, or a reader of a crate above |
//! | [`mod@copy`] | an image onto a volume: sparse, verified |
//! | [`gpt`] | a partition table on a disk that has become larger |
//! | [`seed`] | the NoCloud disk that tells a guest's cloud-init who it is |
//!
//! Whatever a guest or a stranger has written is parsed here as bytes; nothing is mounted, and no tool is run on it.
#![forbid(unsafe_code)]

pub mod copy;
mod firmware;
pub mod foreign;
pub mod gpt;
pub mod identify;
mod qcow2;
pub mod seed;
pub mod source;

pub use copy::{CopyError, copy};
pub use identify::{Content, Filesystem, FilesystemKind, identify};
pub use qcow2::Qcow2;
pub use source::{ImageFormat, RawFile, Source, SourceError, open};
