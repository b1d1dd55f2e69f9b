//! Extended attributes, as far as they mean something in another root.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;

use crate::TransferError;

/// The longest list of names, and the longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LIMIT: usize = 65_536;

/// Those of whatever is at `path` that an image keeps. No link is followed.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn of(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, TransferError> {
    let failed = |errno: Errno| TransferError::io("read the attributes of", path)(errno.into());
    let mut list = vec![0; LIMIT];
    let length = match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Ok(length) => length,
        // A file system without any.
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(failed(errno)),
    };
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_kept(name)) else {
            continue;
        };
        if let Some(value) = value(path, name).map_err(failed)? {
            found.insert(name.to_owned(), value);
        }
    }
    Ok(found)
}

/// One of them; `None` when there is none of that name.
pub(crate) fn value(path: &Path, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; LIMIT];
    match rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What an image keeps: the labels of security modules belong to one host, and what overlayfs notes to one pair of layers.
fn is_kept(name: &str) -> bool {
    matches!(
        name,
        "security.capability" | "system.posix_acl_access" | "system.posix_acl_default"
    ) || name.starts_with("user.")
        || name.starts_with("trusted.") && !name.starts_with("trusted.overlay.")
}
