//! Extended attributes behind an inode.
//!
//! A 12-byte header, then entries `{name_len u8, name space u8, value_len u16, name, value}`, each padded to 4 bytes. No
//! attribute is shared between inodes.

use super::LayoutError;
use std::path::PathBuf;

/// Bytes of the header before the entries.
pub(super) const HEADER: usize = 12;
/// The most that the 16-bit count in the inode can say: `12 + 4 * (65535 - 1)`.
const TOTAL_MAX: usize = HEADER + 4 * 65534;

/// Name spaces with their numbers; `true` when the whole name is the prefix.
const NAME_SPACES: [(&[u8], u8, bool); 5] = [
    (b"user.", 1, false),
    (b"system.posix_acl_access", 2, true),
    (b"system.posix_acl_default", 3, true),
    (b"trusted.", 4, false),
    (b"security.", 6, false),
];

/// Number of the name space and the rest of the name; `None` for a name that EROFS cannot store.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    NAME_SPACES.iter().find_map(|&(prefix, index, whole)| {
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() == whole).then_some((index, rest))
    })
}

/// Bytes that the attributes take behind the inode: 0 or a multiple of 4.
pub(super) fn size(xattrs: &[(Vec<u8>, Vec<u8>)], path: impl Fn() -> PathBuf) -> Result<usize, LayoutError> {
    if xattrs.is_empty() {
        return Ok(0);
    }
    let mut total = HEADER;
    for (name, value) in xattrs {
        let fail = |why| LayoutError::Xattr {
            path: path(),
            name: String::from_utf8_lossy(name).into_owned(),
            why,
        };
        let (_, rest) = split(name).ok_or_else(|| fail("its name space is unknown"))?;
        if rest.len() > 255 {
            return Err(fail("its name is longer than 255 bytes"));
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(fail("its value is longer than 65535 bytes"));
        }
        total += (4 + rest.len() + value.len()).next_multiple_of(4);
        if total > TOTAL_MAX {
            return Err(fail("the attributes of the file are too large together"));
        }
    }
    Ok(total)
}

/// The `i_xattr_icount` field for attributes of `size` bytes.
pub(super) fn count_field(size: usize) -> u16 {
    match size {
        0 => 0,
        n => (1 + (n - HEADER) / 4) as u16,
    }
}

/// The bytes behind the inode; the attributes have passed [`size`].
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    // The name filter is "inverted": all ones would claim that no attribute is there, zero makes no claim.
    let mut bytes = vec![0; HEADER];
    for (name, value) in xattrs {
        let (index, rest) = split(name).unwrap_or((0, name));
        bytes.extend_from_slice(&[rest.len() as u8, index]);
        bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        vec![(name.as_bytes().to_vec(), value.to_vec())]
    }

    #[test]
    fn the_size_is_that_of_the_encoding() {
        for (name, len) in [
            ("user.a", 0),
            ("security.capability", 20),
            ("trusted.overlay.opaque", 1),
        ] {
            let list = xattr(name, &vec![7; len]);
            let size = size(&list, PathBuf::new).unwrap();
            assert_eq!(size, encode(&list).len());
            assert_eq!(usize::from(count_field(size)), 1 + (size - HEADER) / 4);
        }
        assert_eq!(size(&[], PathBuf::new), Ok(0));
    }

    #[test]
    fn a_name_outside_the_known_name_spaces_is_refused() {
        for name in ["plain", "user.", "system.other", "system.posix_acl_accessx", "btrfs.x"] {
            assert!(size(&xattr(name, b""), PathBuf::new).is_err(), "{name}");
        }
    }

    #[test]
    fn a_value_or_sum_beyond_the_fields_is_refused() {
        assert!(size(&xattr("user.big", &vec![0; 65536]), PathBuf::new).is_err());
        let many: Vec<_> = (0..5)
            .map(|i| (format!("user.{i}").into_bytes(), vec![0; 60000]))
            .collect();
        assert!(size(&many, PathBuf::new).is_err());
        assert!(size(&many[..4], PathBuf::new).is_ok());
    }
}
