//! The container's further file systems, mounted in the order given.

use std::fs;
use std::path::Path;

use rustix::mount::MountFlags;
use zmachine_agent_protocol::Mount;

use super::disks::Disk;
use super::error::SetupError;
use super::grow;
use super::populate;
use super::root::{SHARED, Writable, discard_option, mount_at};

/// Mounts all; targets are made when missing. Runs inside the new root, so links of the image stay in it.
///
/// # Errors
/// [`SetupError`] naming the disk or the target.
pub(super) fn mount_all(mounts: &[Mount], writable: &mut Vec<Writable>) -> Result<(), SetupError> {
    for mount in mounts {
        if mount.fstype == SHARED {
            make_target(&mount.target)?;
            mount_at(Path::new(&mount.serial), &mount.target, SHARED, flags_of(mount), "")?;
            continue;
        }
        let disk = Disk::wait_for(&mount.serial)?;
        let image = match mount.populate {
            true => populate::open_source(&mount.target)?,
            false => None,
        };
        make_target(&mount.target)?;
        let options = if mount.read_only {
            ""
        } else {
            discard_option(&mount.fstype)
        };
        mount_at(&disk.device(), &mount.target, &mount.fstype, flags_of(mount), options)?;
        if mount.read_only {
            populate::require_whole(&mount.target)?;
        } else {
            // The disk may have grown since the file system was made; one that fits is left alone.
            grow::grow_mounted(&disk.device(), &mount.target, &mount.fstype)?;
            let held = Writable::hold(&mount.serial, &mount.target);
            writable.push(held.map_err(|source| SetupError::Mount {
                what: mount.serial.clone(),
                target: mount.target.clone(),
                source,
            })?);
            populate::take_over(image, &mount.target)?;
        }
    }
    Ok(())
}

/// Makes the directories in which an image keeps its data, where the image has none.
pub(super) fn make_directories(paths: &[String], warnings: &mut Vec<String>) {
    for path in paths {
        if let Err(error) = fs::create_dir_all(path) {
            warnings.push(format!("make {path}, a volume of the image: {error}"));
        }
    }
}

fn flags_of(mount: &Mount) -> MountFlags {
    match mount.read_only {
        true => MountFlags::RDONLY,
        false => MountFlags::NOATIME,
    }
}

fn make_target(target: &str) -> Result<(), SetupError> {
    fs::create_dir_all(target).map_err(|source| SetupError::File {
        path: target.to_owned(),
        source,
    })
}
