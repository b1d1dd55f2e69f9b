//! Copies of large files with holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// The most that is read at once where the kernel does not copy, in bytes.
const CHUNK: usize = 1 << 20;

/// Makes the empty file `to` a copy of `from`: one that shares its blocks where the file system can, else one with the same holes.
///
/// # Errors
/// Of the file system; what `to` holds then is worth nothing.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    copy_part(from, 0, to, 0, length)
}

/// Copies `length` bytes of `from` at `begin` to `to` at `at`, where there are zeros so far. Holes stay holes. Neither has a position afterwards.
///
/// # Errors
/// Of the file system, and when `from` is shorter than that.
pub fn copy_part(from: &File, begin: u64, to: &File, at: u64, length: u64) -> io::Result<()> {
    let end = begin.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
    if from.metadata()?.len() < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut next = begin;
    while next < end {
        let data = match seek(from, SeekFrom::Data(next)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        if data >= end {
            break;
        }
        next = seek(from, SeekFrom::Hole(data))?.min(end);
        copy_range(from, data, to, at + (data - begin), next - data)?;
    }
    Ok(())
}

fn copy_range(from: &File, begin: u64, to: &File, at: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done).unwrap_or(usize::MAX);
        let (mut source, mut target) = (begin + done, at + done);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            // It became shorter.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return by_hand(from, begin + done, to, at + done, length - done);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &File, begin: u64, to: &File, at: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < length {
        let some = usize::try_from(length - done).unwrap_or(usize::MAX).min(CHUNK);
        from.read_exact_at(&mut buffer[..some], begin + done)?;
        to.write_all_at(&buffer[..some], at + done)?;
        done += some as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let create = |name: &str| {
            let options = File::options().read(true).write(true).create_new(true).clone();
            options.open(dir.path().join(name)).unwrap()
        };
        let from = create("from");
        from.set_len(64 << 20).unwrap();
        from.write_all_at(&[7; 5000], 12 << 20).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let to = create("to");
        copy(&from, &to).unwrap();
        let content = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(content("from") == content("to"));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "{:?}", to.metadata());
        let other = create("other");
        by_hand(&from, 0, &other, 0, 64 << 20).unwrap();
        assert!(content("from") == content("other"));
        // A part, elsewhere.
        let part = create("part");
        part.set_len(20 << 20).unwrap();
        copy_part(&from, 11 << 20, &part, 4096, 10 << 20).unwrap();
        let (whole, part_of) = (content("from"), content("part"));
        assert!(part_of[4096..4096 + (10 << 20)] == whole[11 << 20..21 << 20]);
        assert!(part.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert!(copy_part(&from, 60 << 20, &part, 0, 5 << 20).is_err());
    }

    #[test]
    fn an_empty_file_and_a_hole_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        for (length, name) in [(0, "a"), (3 << 20, "b")] {
            let from = File::create_new(dir.path().join(name)).unwrap();
            from.set_len(length).unwrap();
            let from = File::open(dir.path().join(name)).unwrap();
            let to = File::create_new(dir.path().join(format!("{name}.copy"))).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(to.metadata().unwrap().len(), length);
        }
    }
}
