//! Guest kernels as named folders: installing, describing, the initramfs, and building an own one.
//!
//! This crate owns the folder `kernels/` of a home directory and nothing else:
//!
//! ```text
//! kernels/.lock                        held while something is installed or removed
//! kernels/.new-<name>/                 an install under way; the next install removes one that was interrupted
//! kernels/default -> <name>            the kernel used when none is named
//! kernels/<name>/kernel.json           the description: what it is, where from, the digest of every file
//! kernels/<name>/vmlinux               uncompressed ELF with a PVH entry note
//! kernels/<name>/modules/<file>.ko     uncompressed modules without their appended signatures
//! kernels/<name>/initramfs-<12 hex>.cpio   made on demand for one agent binary; always re-creatable
//! kernels/<name>/agent.json            the digest of the agent binary that was used last, and what tells whether it is the same file
//! ```
//!
//! Invariants: a kernel folder appears by rename and its description's files never change afterwards; nothing is ever
//! installed on the host; nothing from a package is executed. The treatment (uncompressed kernel, stripped modules) halves
//! the time to init under emulation, so it is done once here and never at boot.
#![forbid(unsafe_code)]

mod apt;
mod build;
mod compression;
mod deb;
mod description;
mod error;
mod image;
mod initramfs;
mod install;
mod known_digest;
mod library;
mod modules;

pub use build::{BuildSource, DEFAULT_FRAGMENT};
pub use description::{Description, FsDriver, Module, Package};
pub use error::KernelError;
pub use image::check_bootable;
pub use install::{KernelSource, Progress};
pub use library::{Kernel, KernelLibrary};
