//! `volume.json`: what a volume is for, and what is on it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Version of `volume.json`.
pub const RECORD_VERSION: u32 = 1;

/// A volume's description on disk. Its size is the length of its `data.img`, which nothing else can contradict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The file system it gets at its first use by a container.
    pub fs: Fs,
    /// Id of the machine it was made for without a name; removed by `rm -v` of that machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_of: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it holds.
    pub content: Content,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_its_golden_form() {
        let record = Record {
            version: RECORD_VERSION,
            fs: Fs::Btrfs,
            anonymous_of: None,
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            content: Content::Installed { digest: "ab".into() },
        };
        let golden = r#"{"version":1,"fs":"btrfs","created_at":"2026-01-02T03:04:05Z","content":{"state":"installed","digest":"ab"}}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), record);
    }
}
