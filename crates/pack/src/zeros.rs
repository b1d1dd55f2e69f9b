//! Blocks of zeros, of which disk images consist for the most part: neither read from a hole, nor fetched to become one.

use std::fs::File;
use std::sync::LazyLock;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use zmachine_flist::{BlockKey, BlockRef};

/// What a whole block of zeros has as its content.
pub(crate) static PLAIN: [u8; BlockRef::SIZE] = [0; BlockRef::SIZE];

/// Its key.
static KEY: LazyLock<BlockKey> = LazyLock::new(|| BlockKey::of(&PLAIN));

/// Whether a block is one: its key is the digest of its content.
pub(crate) fn is_zeros(block: &BlockRef) -> bool {
    block.len as usize == BlockRef::SIZE && block.key == *KEY
}

/// Whether a file has nothing but a hole there. A file system that does not say has none.
pub(crate) fn is_hole(file: &File, offset: u64, length: u64) -> bool {
    // Nobody reads at the file's own position.
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data >= offset + length,
        Err(errno) => errno == Errno::NXIO,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_hole_is_told_from_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(b"x", (1 << 20) + 5).unwrap();
        assert!(is_hole(&file, 0, 1 << 20) && is_hole(&file, 2 << 20, 2 << 20));
        assert!(!is_hole(&file, 0, 2 << 20) && !is_hole(&file, 1 << 20, 1 << 20));
    }

    #[test]
    fn a_block_of_zeros_is_known_by_its_key() {
        let (zeros, _) = BlockRef::seal(&PLAIN);
        assert!(is_zeros(&zeros));
        let (short, _) = BlockRef::seal(&PLAIN[..100]);
        let (other, _) = BlockRef::seal(&[1; BlockRef::SIZE]);
        assert!(!is_zeros(&short) && !is_zeros(&other));
    }
}
