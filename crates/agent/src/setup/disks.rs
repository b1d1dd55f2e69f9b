//! Finds virtio disks by their serial, which is the only name the host gives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::SetupError;
use crate::modules;

/// How long a disk may take to appear. Disks that were there at boot are found at the first look.
pub(super) const APPEAR: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// One disk of the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Kernel name, `vda`.
    name: String,
}

impl Disk {
    /// The disk with this serial, waiting for it.
    ///
    /// # Errors
    /// [`SetupError::DiskMissing`] after 10 s; [`SetupError::Module`] when the kernel cannot have disks.
    pub(super) fn wait_for(serial: &str) -> Result<Disk, SetupError> {
        modules::load_kept()?;
        let deadline = Instant::now() + APPEAR;
        loop {
            if let Some(disk) = Disk::find(serial) {
                return Ok(disk);
            }
            if Instant::now() > deadline {
                return Err(SetupError::DiskMissing {
                    serial: serial.into(),
                    after_s: APPEAR.as_secs(),
                });
            }
            sleep(PAUSE);
        }
    }

    /// The disk with this serial, if it is there.
    pub(crate) fn find(serial: &str) -> Option<Disk> {
        let name = find(Path::new("/sys/block"), serial)?;
        let disk = Disk { name };
        disk.device().exists().then_some(disk)
    }

    /// The device node.
    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// The device node of its partition `number`.
    pub(super) fn partition(&self, number: u32) -> PathBuf {
        Path::new("/dev").join(format!("{}{number}", self.name))
    }

    /// Its major and minor number.
    pub(crate) fn numbers(&self) -> Option<(u32, u32)> {
        let text = fs::read_to_string(format!("/sys/block/{}/dev", self.name)).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Sets how far the kernel reads ahead. A kernel that refuses is slower, not broken.
    pub(crate) fn set_read_ahead(&self, kib: u32) {
        let _ = fs::write(format!("/sys/block/{}/queue/read_ahead_kb", self.name), kib.to_string());
    }
}

fn find(block: &Path, serial: &str) -> Option<String> {
    fs::read_dir(block).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let found =
            name.starts_with("vd") && fs::read_to_string(entry.path().join("serial")).ok()?.trim_end() == serial;
        found.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_whole_serial() {
        let block = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "zm-root-2"), ("vdb", "zm-root"), ("sda", "zm-sata")] {
            fs::create_dir(block.path().join(name)).unwrap();
            fs::write(block.path().join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find(block.path(), "zm-root").as_deref(), Some("vdb"));
        assert_eq!(find(block.path(), "zm-sata"), None, "only virtio disks");
    }
}
