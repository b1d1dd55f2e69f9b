//! Extended attributes that files keep in another tree.
//!
//! Kept are those that make sense on another host: `user.*`, `trusted.*`, file capabilities and access control lists. Labels
//! of security modules and attributes of single file systems belong to the host and stay there. So do those of overlayfs
//! (`trusted.overlay.*`), which a tree has that was an upper directory once: the overlay of a guest would take them for its own, and
//! hide files or show others in their places.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// The longest list of names, and the longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LIMIT: usize = 65_536;

/// Names and values, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those that are kept.
    pub kept: Xattrs,
    /// How many of overlayfs there are.
    pub of_overlay: usize,
}

/// Whether an attribute is kept.
pub fn is_kept(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    let has_prefix = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    WHOLE.contains(&name) || has_prefix(b"user.") || has_prefix(b"trusted.") && !is_of_overlay(name)
}

/// Whether an attribute is one of overlayfs.
pub fn is_of_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// Those of an open file.
///
/// # Errors
/// When they cannot be read.
pub fn of_file(file: &File) -> io::Result<Found> {
    read(
        || rustix::fs::flistxattr_query(file),
        |list| rustix::fs::flistxattr(file, list),
        |name, value| rustix::fs::fgetxattr(file, name, value),
    )
}

/// Those of whatever is at a path; no link is followed.
///
/// # Errors
/// When they cannot be read.
pub fn of_path(path: &Path) -> io::Result<Found> {
    read(
        || rustix::fs::llistxattr_query(path),
        |list| rustix::fs::llistxattr(path, list),
        |name, value| rustix::fs::lgetxattr(path, name, value),
    )
}

/// One, when it is there and has no more than 16 bytes: what overlayfs says in a word.
pub(crate) fn word(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0; 16];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        // A longer one.
        Err(Errno::RANGE) => Ok(Some(Vec::new())),
        Err(errno) => Err(errno.into()),
    }
}

fn read(
    query: impl Fn() -> rustix::io::Result<usize>,
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Found> {
    // Most files have none, which is asked for without a buffer.
    match query() {
        Ok(0) | Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => return Ok(Found::default()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = vec![0; LIMIT];
    let length = list(&mut names)?;
    let names = || names[..length].split(|byte| *byte == 0);
    let mut found = Found {
        kept: Vec::new(),
        of_overlay: names().filter(|name| is_of_overlay(name)).count(),
    };
    let mut value = vec![0; LIMIT];
    for name in names().filter(|name| is_kept(name)) {
        match get(name, &mut value) {
            Ok(length) => found.kept.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.kept.sort();
    Ok(found)
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
