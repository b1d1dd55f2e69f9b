//! Where the bytes of an image come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};
use thiserror::Error;

use crate::foreign::Foreign;
use crate::qcow2::Qcow2;

/// An image that can be read at any place.
#[allow(clippy::len_without_is_empty)] // a disk without bytes is nothing special here
pub trait Source {
    /// Length of the disk in bytes.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset` on; both are inside of the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Where, from `offset` on, the next byte is that may be other than zero; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.len()).then_some(offset))
    }
}

/// How the bytes of a disk lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// One after the other.
    Raw,
    /// As QEMU's copy-on-write format has them.
    Qcow2,
}

/// Why a file is no image that can be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its header asks for something that is not done here, or makes no sense.
    #[error("{} cannot be used: {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Opens a disk image of this host, whichever format it has.
///
/// # Errors
/// [`SourceError`].
pub fn open(path: &Path) -> Result<(ImageFormat, Box<dyn Source + Send>), SourceError> {
    let failed = |source| SourceError::Io {
        path: path.to_owned(),
        source,
    };
    let unusable = |problem: String| SourceError::Unusable {
        path: path.to_owned(),
        problem,
    };
    // Opening a FIFO would wait for its other end.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = match opened {
        Ok(file) => file,
        // What `open` says of a socket.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            return Err(unusable("it is not a regular file".into()));
        }
        Err(e) => return Err(failed(e)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(unusable("it is not a regular file".into()));
    }
    let mut magic = [0; 4];
    let n = file.read_at(&mut magic, 0).map_err(failed)?;
    if n == 4 && magic == *b"QFI\xfb" {
        let qcow2 = Qcow2::new(file).map_err(unusable)?;
        return Ok((ImageFormat::Qcow2, Box::new(qcow2)));
    }
    let mut raw = RawFile::new(file).map_err(failed)?;
    match Foreign::of(&mut raw).map_err(failed)? {
        Some(foreign) => Err(unusable(format!("it is {foreign}"))),
        None => Ok((ImageFormat::Raw, Box::new(raw))),
    }
}

/// A file that is the disk, byte by byte.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    len: u64,
}

impl RawFile {
    /// The disk in `file`.
    ///
    /// # Errors
    /// When its length cannot be had.
    pub fn new(file: File) -> io::Result<RawFile> {
        let len = file.metadata()?.len();
        Ok(RawFile { file, len })
    }
}

impl Source for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        if offset >= self.len {
            return Ok(None);
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            // A file that became longer meanwhile has nothing more for its reader.
            Ok(at) => Ok((at < self.len).then_some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system without holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e.into()),
        }
    }
}

/// A disk in memory, for tests and small things.
impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        let bytes = at.checked_add(buffer.len()).and_then(|end| self.get(at..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_images() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for path in [dir.path(), &fifo, &socket, Path::new("/dev/zero")] {
            let error = open(path).err().unwrap().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let vmdk = dir.path().join("vmdk");
        std::fs::write(&vmdk, b"KDMV").unwrap();
        let error = open(&vmdk).err().unwrap().to_string();
        assert!(error.contains("it is a VMDK disk image: make a raw one"), "{error}");
        let missing = open(&dir.path().join("missing")).err().unwrap();
        assert!(matches!(missing, SourceError::Io { .. }));
    }

    #[test]
    fn a_raw_file_that_becomes_longer_is_read_as_it_was() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut raw = RawFile::new(file.try_clone().unwrap()).unwrap();
        file.write_all_at(&[1; 4096], 2 << 20).unwrap();
        assert_eq!(raw.next_data(0).unwrap(), None);
    }
}
