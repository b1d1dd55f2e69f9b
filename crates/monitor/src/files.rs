//! Files and block devices of the host that come to a machine as disks while it runs.
//!
//! # Invariants
//! A block device is opened for this machine alone: no other one, and no file system of the host, has it meanwhile.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zmachine_hypervisor::LaterFile;
use zmachine_spec::{Class, Failure};

/// The longest serial number of a disk, in bytes.
pub(super) const SERIAL: usize = 20;

/// The sectors of a file that is no device, in bytes.
const SECTOR: u32 = 512;

/// The places of a machine for files, and the files in them.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) places: u16,
    pub(super) given: Vec<Given>,
}

/// A file in its place, which is its position.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) serial: String,
    pub(super) read_only: bool,
}

/// A file that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) serial: String,
    pub(super) read_only: bool,
}

impl Files {
    /// The place for a file that is not there yet; `None` for one that is.
    ///
    /// # Errors
    /// When there is no place, or it is there in another way.
    pub(super) fn place(&self, wanted: &Wanted) -> Result<Option<u16>, Failure> {
        let shown = wanted.path.display();
        let conflict = |message: String| Failure::new(Class::Conflict, message);
        if let Some(given) = self.given.iter().find(|given| given.serial == wanted.serial) {
            return match given.read_only && !wanted.read_only {
                false => Ok(None),
                true => Err(conflict(format!(
                    "the machine has {shown} already, and may only read it"
                ))),
            };
        }
        let place = u16::try_from(self.given.len()).unwrap_or(u16::MAX);
        match place < self.places {
            true => Ok(Some(place)),
            false => Err(conflict(format!(
                "the machine has no place for {shown} as one more disk: it was made for {}",
                self.places
            ))),
        }
    }
}

/// Opens a file; a device for this process alone.
///
/// # Errors
/// When it is neither a file nor a block device, cannot be opened, or is in use.
pub(super) fn open(wanted: &Wanted, place: u16) -> Result<(LaterFile, File), Failure> {
    let path = &wanted.path;
    let failed = |error: std::io::Error| Failure::from(error).context(format!("cannot open {}", path.display()));
    let is_device = std::fs::metadata(path).map_err(failed)?.file_type().is_block_device();
    let exclusive = if is_device { OFlags::EXCL } else { OFlags::empty() };
    // A named pipe in the place of a file would wait for its other end.
    let flags = (exclusive | OFlags::NONBLOCK).bits().cast_signed();
    let opened = File::options()
        .read(true)
        .write(!wanted.read_only)
        .custom_flags(flags)
        .open(path);
    let mut file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => in_use(path),
        _ => failed(error),
    })?;
    let kind = file.metadata().map_err(failed)?;
    if kind.file_type().is_block_device() != is_device || !(is_device || kind.is_file()) {
        let message = format!("{} is neither a file nor a block device", path.display());
        return Err(Failure::new(Class::Usage, message));
    }
    if !is_device && !wanted.read_only {
        let message = format!("{} is a file, which can only be read as a disk", path.display());
        return Err(Failure::new(Class::Usage, message));
    }
    let (bytes, sector_bytes) = match is_device {
        true => {
            let sector = rustix::fs::ioctl_blksszget(&file).map_err(|errno| failed(errno.into()))?;
            (file.seek(SeekFrom::End(0)).map_err(failed)?, sector)
        }
        false => (kind.size(), SECTOR),
    };
    let later = LaterFile {
        place,
        serial: wanted.serial.clone(),
        read_only: wanted.read_only,
        is_device,
        bytes,
        sector_bytes,
    };
    Ok((later, file))
}

fn in_use(path: &Path) -> Failure {
    let message = format!(
        "{} is in use: another machine has it, or this host itself",
        path.display()
    );
    Failure::new(Class::Conflict, message)
        .hint("it can be the disk of one machine at a time, while nothing of it is mounted on the host")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(serial: &str, read_only: bool) -> Wanted {
        Wanted {
            path: "/dev/x".into(),
            serial: serial.into(),
            read_only,
        }
    }

    #[test]
    fn a_file_has_one_place_and_is_there_once() {
        let mut files = Files {
            places: 1,
            given: Vec::new(),
        };
        assert_eq!(files.place(&wanted("a", true)).unwrap(), Some(0));
        files.given.push(Given {
            serial: "a".into(),
            read_only: true,
        });
        assert_eq!(files.place(&wanted("a", true)).unwrap(), None);
        let refused = files.place(&wanted("a", false)).unwrap_err().to_string();
        assert!(refused.contains("may only read"), "{refused}");
        let refused = files.place(&wanted("b", true)).unwrap_err().to_string();
        assert!(refused.contains("made for 1"), "{refused}");
    }

    #[test]
    fn a_file_is_only_read_and_what_is_no_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let file = |path: &Path, read_only| Wanted {
            path: path.to_owned(),
            ..wanted("a", read_only)
        };
        let (later, _) = open(&file(&path, true), 3).unwrap();
        assert_eq!((later.place, later.bytes, later.is_device), (3, 4096, false));
        assert!(open(&file(&path, false), 0).is_err());
        for other in [folder.path(), Path::new("/dev/null"), Path::new("/no/such")] {
            assert!(open(&file(other, true), 0).is_err(), "{}", other.display());
        }
    }
}
