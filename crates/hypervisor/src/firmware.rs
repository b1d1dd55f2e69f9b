//! The firmware that Cloud Hypervisor starts a disk with: a file that the operator names once, with its hash.
//!
//! No distribution has it in a package: it is `CLOUDHV.fd` (EDK2, `CloudHvX64`) or `hypervisor-fw`. The OVMF that QEMU
//! starts is not of that kind, and Cloud Hypervisor refuses it. What is wanted is an ELF with a PVH entry.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of the largest firmware that is read; `CLOUDHV.fd` has 4 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// A firmware, pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// Why a file is no firmware that can be pinned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no firmware for Cloud Hypervisor: it is no ELF file", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
    },
    /// It is another one.
    #[error("{} has the SHA-256 {found}, not {wanted}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The hash that was given.
        wanted: String,
    },
}

impl FirmwareError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "name a file that exists",
            Self::NotElf { .. } => {
                "take CLOUDHV.fd (EDK2, CloudHvX64) or hypervisor-fw; the OVMF of distributions is for QEMU"
            }
            Self::Other { .. } => "fetch the file again, from where the hash is from",
        }
    }
}

/// Pins the firmware at `path`; when a hash is given it must have that.
///
/// # Errors
/// [`FirmwareError`].
pub fn pin(path: &Path, wanted: Option<&str>) -> Result<Pinned, FirmwareError> {
    let read = |source| FirmwareError::Read {
        path: path.to_owned(),
        source,
    };
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(read)?;
    if magic != *b"\x7fELF" {
        return Err(FirmwareError::NotElf { path: path.to_owned() });
    }
    let sha256 = sha256_of(path).map_err(read)?;
    match wanted {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&sha256) => Err(FirmwareError::Other {
            path: path.to_owned(),
            found: sha256,
            wanted: wanted.to_owned(),
        }),
        _ => Ok(Pinned {
            path: path.to_owned(),
            sha256,
        }),
    }
}

/// SHA-256 of the file at `path`, in hex.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() > MAX_BYTES {
        return Err(io::Error::other("it is larger than any firmware"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(Sha256::digest(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firmware_is_pinned_by_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fw");
        std::fs::write(&path, b"\x7fELF...").unwrap();
        let pinned = pin(&path, None).unwrap();
        assert_eq!(pinned.sha256.len(), 64);
        assert_eq!(pin(&path, Some(&pinned.sha256.to_uppercase())).unwrap(), pinned);
        let other = pin(&path, Some("00")).unwrap_err();
        assert!(other.to_string().ends_with(", not 00"), "{other}");
    }

    #[test]
    fn what_is_no_elf_file_or_not_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("OVMF.fd");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(pin(&path, None), Err(FirmwareError::NotElf { .. })));
        assert!(matches!(
            pin(&folder.path().join("none"), None),
            Err(FirmwareError::Read { .. })
        ));
    }
}
