//! Volumes as values: what one is asked to be, what one is, and how guests find it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::{Class, Failure};

/// Size of a volume that is made at need and has no `size=`, in bytes. It is a limit, not a reservation: the file is sparse.
pub const DEFAULT_SIZE: u64 = 10 << 30;

/// Bytes of a virtio disk's serial number.
const SERIAL_BYTES: usize = 20;

/// Serial numbers that begin so belong to the disks of the machine itself.
const RESERVED: &str = "zm-";

/// Name of the volume that the machine `id` has for number `index` of its spec's volumes, when the user gives it none.
pub fn anonymous(id: &str, index: usize) -> String {
    format!("{id}-{index}")
}

/// The serial number by which a guest finds the volume `name` (`/sys/block/vd*/serial`): the name, or its first eleven
/// bytes and a digest when it is longer than the 20 bytes of a serial number.
pub fn serial(name: &str) -> String {
    if name.len() <= SERIAL_BYTES {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    // Names are ASCII, so any byte is a character's end.
    format!("{}-{hex}", &name[..11])
}

/// Checks a volume's name: as a machine's, and not one of the serial numbers that a machine's own disks have.
///
/// # Errors
/// [`Class::Usage`] that says which rule is broken.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || name.len() > 63 || !name.chars().all(legal) {
        let message = format!("'{name}' cannot be a volume's name");
        return Err(Failure::new(Class::Usage, message).hint(
            "use letters, digits, '_', '.' and '-', starting with a letter or digit, at most 63 characters; a directory of the host starts with '/' or './'",
        ));
    }
    if name.starts_with(RESERVED) {
        let message = format!("'{name}' cannot be a volume's name: '{RESERVED}' marks a machine's own disks");
        return Err(Failure::new(Class::Usage, message).hint("choose a name that starts otherwise"));
    }
    Ok(())
}

/// What a volume holds. Written before the data it speaks of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Content {
    /// Nothing was ever written.
    Empty,
    /// A file system is being made; when nobody holds the lock, that was interrupted.
    Formatting,
    /// A file system that was made here, and whatever guests have written since.
    Formatted,
    /// The image of a VM is being copied; when nobody holds the lock, that was interrupted.
    Installing {
        /// What tells the image from every other.
        digest: String,
    },
    /// The image of a VM, and whatever the guest has written since.
    Installed {
        /// What tells the image from every other.
        digest: String,
    },
    /// A guest was given the bare disk (`fs=none`): what is on it is the guest's own business.
    Raw,
}

impl Content {
    /// Whether a guest may have written to it.
    pub fn has_user_data(&self) -> bool {
        matches!(self, Content::Formatted | Content::Installed { .. } | Content::Raw)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Empty => "empty",
            Content::Formatting => "formatting",
            Content::Formatted => "formatted",
            Content::Installing { .. } => "installing",
            Content::Installed { .. } => "installed",
            Content::Raw => "raw",
        })
    }
}

/// The file system of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fs {
    /// ext4.
    #[default]
    Ext4,
    /// btrfs.
    Btrfs,
    /// XFS.
    Xfs,
    /// None: the guest gets a bare disk.
    None,
}

impl Fs {
    /// Its name, as `mount -t` has it.
    pub fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Btrfs => "btrfs",
            Fs::Xfs => "xfs",
            Fs::None => "none",
        }
    }

    /// The smallest volume that is made for it, in bytes: what its tool needs (measured with e2fsprogs 1.47, xfsprogs 6.1), or,
    /// for btrfs, the smallest that the kernel lets grow (`btrfs_ioctl_resize`).
    pub fn least_bytes(self) -> u64 {
        match self {
            Fs::None => 1 << 20,
            Fs::Ext4 => 16 << 20,
            Fs::Btrfs => 256 << 20,
            Fs::Xfs => 300 << 20,
        }
    }
}

impl fmt::Display for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fs {
    type Err = String;

    fn from_str(text: &str) -> Result<Fs, String> {
        [Fs::Ext4, Fs::Btrfs, Fs::Xfs, Fs::None]
            .into_iter()
            .find(|fs| fs.name() == text)
            .ok_or_else(|| format!("'{text}' is no file system of a volume; use ext4, btrfs, xfs or none"))
    }
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes; rounded up to whole MiB.
    pub size_bytes: u64,
    /// The file system it gets at its first use.
    pub fs: Fs,
    /// Id of the machine it belongs to, when it has no name of the user's.
    pub anonymous_of: Option<String>,
    /// The user's own words.
    pub labels: BTreeMap<String, String>,
}

/// A volume that a machine is to use: one that is there, or one to make with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedVolume {
    /// Its name.
    pub name: String,
    /// Absolute path in the guest; `/` for the boot disk of a VM.
    pub target: String,
    /// Its disk image.
    pub path: PathBuf,
    /// The serial number the guest sees.
    pub serial: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The file system that a container finds on it.
    pub fs: Fs,
    /// What it holds now.
    pub content: Content,
    /// The guest can only read it.
    pub read_only: bool,
    /// A fresh one does not take over what the image has at the target.
    pub no_copy: bool,
    /// It is not there yet and has to be made.
    pub new: Option<NewVolume>,
}

/// A directory of the host that a machine is to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Absolute path in the guest.
    pub target: String,
    /// The guest can only read it.
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_the_name_or_a_stable_short_form_of_it() {
        assert_eq!(serial("data"), "data");
        assert_eq!(serial(&"a".repeat(20)), "a".repeat(20));
        let (one, other) = (serial("customer-database-one"), serial("customer-database-two"));
        assert_eq!(one.len(), SERIAL_BYTES);
        assert!(one.starts_with("customer-da-"));
        assert_ne!(one, other);
        assert_eq!(one, serial("customer-database-one"));
    }

    #[test]
    fn names_that_are_paths_flags_or_taken_are_refused() {
        for bad in ["", "-a", "../x", "a b", "a/b", "zm-root", &"a".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().class, Class::Usage, "{bad}");
        }
        check_name("data-1.prod_x").unwrap();
    }
}
