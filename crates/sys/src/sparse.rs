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
    let mut at = 0;
    while at < length {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = seek(from, SeekFrom::Hole(data))?;
        copy_range(from, to, data, at)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
        let (mut source, mut target) = (at, at);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            // It became shorter.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return by_hand(from, to, at, end),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
        from.read_exact_at(&mut buffer[..length], at)?;
        to.write_all_at(&buffer[..length], at)?;
        at += length as u64;
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
        by_hand(&from, &other, 0, 64 << 20).unwrap();
        assert!(content("from") == content("other"));
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
