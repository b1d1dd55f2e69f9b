//! File systems to which nobody writes for a while, so that the host can copy their disks.
//!
//! The kernel's own freeze: what was written is on the disk, and the disk is as after an unmount. Whoever writes waits; readers go on.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::disks::Disk;
use super::error::SetupError;
use super::grow::mount_point;
use super::root::Writable;

/// `_IOWR('X', 119, int)`.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// The directories on which what is on the disks `serials`, or on their partitions, is mounted. `proc` is the agent's own `/proc`. The
/// container's own disk is mounted nowhere that its processes could see: it is one of `writable`.
///
/// # Errors
/// [`SetupError`] for a disk that is not there.
pub(crate) fn mounted(proc: &OwnedFd, serials: &[String], writable: &[Writable]) -> Result<Vec<OwnedFd>, SetupError> {
    let mut roots = Vec::new();
    for serial in serials {
        let disk = Disk::find(serial).ok_or_else(|| SetupError::DiskMissing {
            serial: serial.clone(),
            after_s: 0,
        })?;
        let before = roots.len();
        for device in disk.devices() {
            let Some(point) = mount_point(proc, &device) else {
                continue;
            };
            let failed = |source| SetupError::Hold {
                device: device.display().to_string(),
                source,
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(CWD, point.as_str(), flags, Mode::empty()).map_err(failed)?;
            roots.push(root);
        }
        let own = writable.iter().find(|own| own.name == *serial);
        if let (Some(own), true) = (own, roots.len() == before) {
            let root = own.open().map_err(|source| SetupError::Hold {
                device: serial.clone(),
                source,
            })?;
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Freezes all, or none.
///
/// # Errors
/// [`SetupError::Hold`] with the kernel's reason.
pub(crate) fn freeze(roots: &[OwnedFd]) -> Result<(), SetupError> {
    for (at, root) in roots.iter().enumerate() {
        if let Err(source) = request(root, FIFREEZE) {
            thaw(&roots[..at]);
            return Err(SetupError::Hold {
                device: device_of(root),
                source,
            });
        }
    }
    Ok(())
}

/// Lets all be written to again.
pub(crate) fn thaw(roots: &[OwnedFd]) {
    for root in roots {
        let _ = request(root, FITHAW);
    }
}

fn request(root: &OwnedFd, request: libc::Ioctl) -> Result<(), Errno> {
    // SAFETY: the kernel looks at no argument of these requests.
    match unsafe { libc::ioctl(root.as_raw_fd(), request, 0) } {
        -1 => {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)))
        }
        _ => Ok(()),
    }
}

fn device_of(root: &OwnedFd) -> String {
    let number = rustix::fs::fstat(root).map_or(0, |stat| stat.st_dev);
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

impl Disk {
    /// The disk, and its partitions.
    fn devices(&self) -> Vec<PathBuf> {
        let disk = self.device();
        let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = fs::read_dir(format!("/sys/block/{name}"))
            .into_iter()
            .flatten()
            .flatten();
        let partitions = entries.filter(|entry| entry.path().join("partition").exists());
        let mut all = vec![disk];
        all.extend(partitions.map(|entry| PathBuf::from("/dev").join(entry.file_name())));
        all
    }
}
