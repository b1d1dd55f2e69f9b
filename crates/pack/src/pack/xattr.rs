//! Extended attributes of files that are packed. Those of overlayfs are counted: whoever leaves them out says so.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use zmachine_transfer::xattr::{self, Found, Xattrs};
pub(crate) use zmachine_transfer::xattr::{is_kept, is_of_overlay};

use super::PackError;
use super::scan::failed;

/// The attributes of an open file; `overlay` counts those of overlayfs.
pub(super) fn of_file(file: &File, path: &Path, overlay: &AtomicU64) -> Result<Xattrs, PackError> {
    counted(xattr::of_file(file), path, overlay)
}

/// The attributes of whatever is at a path; no link is followed. `overlay` counts those of overlayfs.
pub(super) fn of_path(path: &Path, overlay: &AtomicU64) -> Result<Xattrs, PackError> {
    counted(xattr::of_path(path), path, overlay)
}

fn counted(found: io::Result<Found>, path: &Path, overlay: &AtomicU64) -> Result<Xattrs, PackError> {
    let found = found.map_err(failed("read the attributes of", path))?;
    overlay.fetch_add(found.of_overlay as u64, Ordering::Relaxed);
    Ok(found.kept)
}
