//! Extended attributes of files that are packed.
//!
//! Kept are those that make sense on another host: `user.*`, `trusted.*`, file capabilities and access control lists. Labels
//! of security modules and attributes of single file systems belong to the host and stay there. So do those of overlayfs
//! (`trusted.overlay.*`), which a tree has that was an upper directory once: the overlay of a guest would take them for its own, and
//! hide files or show others in their places. Whoever leaves them out says so.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::PackError;
use super::scan::failed;

/// The longest list of names, and the longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LIMIT: usize = 65_536;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Whether an attribute is kept.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    let has_prefix = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    WHOLE.contains(&name) || has_prefix(b"user.") || has_prefix(b"trusted.") && !is_of_overlay(name)
}

/// Whether an attribute is one of overlayfs.
pub(crate) fn is_of_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// The attributes of an open file; `overlay` counts those of overlayfs.
pub(super) fn of_file(file: &File, path: &Path, overlay: &AtomicU64) -> Result<Xattrs, PackError> {
    read(
        path,
        overlay,
        || rustix::fs::flistxattr_query(file),
        |list| rustix::fs::flistxattr(file, list),
        |name, value| rustix::fs::fgetxattr(file, name, value),
    )
}

/// The attributes of whatever is at a path; no link is followed. `overlay` counts those of overlayfs.
pub(super) fn of_path(path: &Path, overlay: &AtomicU64) -> Result<Xattrs, PackError> {
    read(
        path,
        overlay,
        || rustix::fs::llistxattr_query(path),
        |list| rustix::fs::llistxattr(path, list),
        |name, value| rustix::fs::lgetxattr(path, name, value),
    )
}

fn read(
    path: &Path,
    overlay: &AtomicU64,
    query: impl Fn() -> rustix::io::Result<usize>,
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> Result<Xattrs, PackError> {
    let failed = |error: Errno| failed("read the attributes of", path)(error.into());
    // Most files have none, which is asked for without a buffer.
    match query() {
        Ok(0) | Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(failed(error)),
    }
    let mut names = vec![0; LIMIT];
    let length = list(&mut names).map_err(failed)?;
    let mut xattrs = Vec::new();
    let mut value = vec![0; LIMIT];
    let names = || names[..length].split(|byte| *byte == 0);
    let left_out = names().filter(|name| is_of_overlay(name)).count();
    overlay.fetch_add(left_out as u64, Ordering::Relaxed);
    for name in names().filter(|name| is_kept(name)) {
        match get(name, &mut value) {
            Ok(length) => xattrs.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_the_host_stay_there() {
        for name in [
            "user.a",
            "trusted.overlay",
            "trusted.own",
            "security.capability",
            "system.posix_acl_access",
        ] {
            assert!(is_kept(name.as_bytes()), "{name}");
        }
        for name in [
            "trusted.overlay.opaque",
            "security.selinux",
            "user.",
            "system.nfs4_acl",
            "btrfs.compression",
            "",
        ] {
            assert!(!is_kept(name.as_bytes()), "{name}");
        }
    }
}
