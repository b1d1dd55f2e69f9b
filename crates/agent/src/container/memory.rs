//! File systems in the guest's memory that several containers have in common.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use zmachine_agent_protocol::{ContainerMount, MountSource};

use super::error::{ContainerError, errno};

/// Where they are mounted in the guest, out of sight of containers.
const FOLDER: &str = "/run/zmachine/memory";

/// Where the one with this name is.
pub(super) fn place(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Makes those of `mounts` that are not there yet.
///
/// # Errors
/// [`ContainerError`] naming it.
pub(super) fn make_all(mounts: &[ContainerMount]) -> Result<(), ContainerError> {
    for wanted in mounts {
        let MountSource::Memory { name, size_bytes } = &wanted.source else {
            continue;
        };
        if !is_name(name) {
            return Err(ContainerError::Unusable {
                what: format!("the name {name:?}"),
            });
        }
        let failed = |source| ContainerError::Mount {
            what: format!("memory {name}"),
            target: wanted.target.clone(),
            source,
        };
        make(&place(name), *size_bytes).map_err(failed)?;
    }
    Ok(())
}

fn make(place: &Path, size_bytes: Option<u64>) -> Result<(), Errno> {
    if place.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(place).map_err(|error| errno(&error))?;
    let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = std::ffi::CString::new(format!("mode=1777{size}")).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", place, "tmpfs", flags, options.as_c_str())
        // Half made it would be taken for one that is there.
        .inspect_err(|_| drop(fs::remove_dir(place)))
}

/// Whether it may be the name of a file of ours.
pub(super) fn is_name(name: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain)
}
