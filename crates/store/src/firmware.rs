//! The firmware that Cloud Hypervisor starts disks with, as the operator has configured it: `<home>/cloud-firmware.json`, a
//! file of this host and its hash. Without one such machines run on QEMU.

use std::path::{Path, PathBuf};

use zmachine_hypervisor::firmware::{self, Pinned};
use zmachine_spec::{Class, Failure, Home};
use zmachine_sys::file;

/// Where it is written down.
fn record(home: &Home) -> PathBuf {
    home.data().join("cloud-firmware.json")
}

/// The configured one, if there is one.
///
/// # Errors
/// When what is written down cannot be read.
pub fn configured(home: &Home) -> Result<Option<Pinned>, Failure> {
    match file::read_json(&record(home)) {
        Ok(pinned) => Ok(Some(pinned)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Configures the file `path`, which must have the hash `wanted` when one is given; what is pinned from now on.
///
/// # Errors
/// When it is no such firmware, or another one.
pub fn configure(home: &Home, path: &Path, wanted: Option<&str>) -> Result<Pinned, Failure> {
    let path = std::path::absolute(path)?;
    let pinned = firmware::pin(&path, wanted).map_err(|e| {
        let class = match e {
            firmware::FirmwareError::Read { .. } => Class::NotFound,
            firmware::FirmwareError::Other { .. } => Class::Fetch,
            _ => Class::Usage,
        };
        Failure::from_error(class, &e).hint(e.hint())
    })?;
    file::replace_json(&record(home), &pinned)?;
    Ok(pinned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_configured_is_read_again_and_a_wrong_hash_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        assert_eq!(configured(&home).unwrap(), None);
        let path = dir.path().join("CLOUDHV.fd");
        std::fs::write(&path, b"\x7fELF").unwrap();
        let failure = configure(&home, &path, Some("00")).unwrap_err();
        assert_eq!((failure.class, configured(&home).unwrap()), (Class::Fetch, None));
        let pinned = configure(&home, &path, None).unwrap();
        assert_eq!(configured(&home).unwrap(), Some(pinned));
    }
}
