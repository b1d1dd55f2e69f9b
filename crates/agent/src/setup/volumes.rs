//! The container's further file systems, mounted in the order given.

use std::fs;

use rustix::mount::MountFlags;
use zmachine_agent_protocol::Mount;

use super::SetupError;
use super::disks::Disk;
use super::grow;
use super::root::{Writable, mount_at};

/// Mounts all; targets are made when missing. Runs inside the new root, so links of the image stay in it.
///
/// # Errors
/// [`SetupError`] naming the disk or the target.
pub(super) fn mount_all(mounts: &[Mount], writable: &mut Vec<Writable>) -> Result<(), SetupError> {
    for mount in mounts {
        let disk = Disk::wait_for(&mount.serial)?;
        fs::create_dir_all(&mount.target).map_err(|source| SetupError::File {
            path: mount.target.clone(),
            source,
        })?;
        let flags = if mount.read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::NOATIME
        };
        mount_at(&disk.device(), &mount.target, &mount.fstype, flags, "")?;
        if !mount.read_only {
            // The disk may have grown since the file system was made; one that fits is left alone.
            grow::grow_mounted(&disk.device(), &mount.target, &mount.fstype)?;
            let held = Writable::hold(&mount.serial, &mount.target);
            writable.push(held.map_err(|source| SetupError::Mount {
                what: mount.serial.clone(),
                target: mount.target.clone(),
                source,
            })?);
        }
    }
    Ok(())
}
