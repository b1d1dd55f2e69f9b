//! What a virtual machine is made of. Plain values, part of a machine's `plan.json`, the same for every driver.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A virtual machine to launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The machine's name, shown in process lists.
    pub name: String,
    /// The machine's UUID, which the guest sees as its product UUID.
    pub uuid: String,
    /// Virtual CPUs, at least 1.
    pub cpus: u32,
    /// Memory of the guest in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// What executes the guest's code.
    pub accel: Accel,
    /// What the machine starts.
    pub boot: Boot,
    /// Its disks; the guest sees them in this order as `vda`, `vdb`, ...
    pub disks: Vec<Disk>,
    /// Read-only disks that may come while it runs, each served by another process whose socket is there from the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_disks: Vec<LaterDisk>,
    /// So many files and block devices of the host may come as disks while it runs ([`crate::Vm::add_file`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub later_files: u16,
    /// Directories that other processes serve to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Its network interfaces, in the guest's order.
    pub nics: Vec<Nic>,
    /// Whether it has the byte stream to the guest's agent.
    pub agent: bool,
    /// What hardware it is built like.
    #[serde(default, skip_serializing_if = "Platform::is_lean")]
    pub platform: Platform,
    /// It can be saved while it runs, and restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_saveable: bool,
}

/// What hardware a machine is built like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// For a guest whose kernel and agent are ours: nothing that they would only spend time probing. A reset of the guest
    /// ends the machine, and the agent's byte stream is there from the start, once.
    #[default]
    Lean,
    /// For whole operating systems: what a PC has and their kernels expect. A reset of the guest restarts it, and the
    /// agent's byte stream can be connected whenever an agent has opened its end.
    Pc,
}

impl Platform {
    fn is_lean(&self) -> bool {
        *self == Platform::Lean
    }
}

/// What executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation by the host kernel.
    Kvm,
    /// Translation by the hypervisor; works everywhere, several times slower.
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Boot {
    /// A kernel, entered directly.
    Kernel {
        /// The kernel, or a firmware that is entered the same way: an ELF with a PVH note, or a bzImage.
        kernel: PathBuf,
        /// The initramfs.
        initrd: Option<PathBuf>,
        /// The kernel's whole command line.
        cmdline: String,
    },
    /// UEFI firmware, which starts the boot loader on the first disk.
    Firmware {
        /// The firmware's code, which is only read.
        code: PathBuf,
        /// The machine's own variables, which the firmware writes, where it keeps any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        variables: Option<PathBuf>,
        /// SHA-256 of the code in hex, where it is pinned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
}

/// A disk of a machine. `id` is unique within the machine: letters, digits and `-`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// A raw image file.
    File {
        /// The disk's id.
        id: String,
        /// The image.
        path: PathBuf,
        /// The serial number the guest sees, at most 20 bytes.
        serial: String,
        /// Whether the guest can only read it.
        read_only: bool,
        /// Whether the guest's discards free the file's space.
        discard: bool,
    },
    /// A disk served by another process over vhost-user.
    VhostUser {
        /// The disk's id.
        id: String,
        /// The socket the other process listens on.
        socket: PathBuf,
        /// Request queues, at least 1.
        queues: u16,
    },
    /// A read-only disk served by another process over NBD, which sees nothing of the guest's memory.
    Nbd {
        /// The disk's id.
        id: String,
        /// The socket the other process listens on.
        socket: PathBuf,
        /// The serial number the guest sees, at most 20 bytes.
        serial: String,
        /// Request queues, at least 1.
        queues: u16,
    },
}

impl Disk {
    /// The disk's id.
    pub fn id(&self) -> &str {
        match self {
            Self::File { id, .. } | Self::VhostUser { id, .. } | Self::Nbd { id, .. } => id,
        }
    }

    /// The socket of the process that serves it, where one does.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::File { .. } => None,
            Self::VhostUser { socket, .. } | Self::Nbd { socket, .. } => Some(socket),
        }
    }
}

/// A place for a disk that comes while the machine runs ([`crate::Vm::add_disk`]), served by another process over vhost-user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterDisk {
    /// The disk's id.
    pub id: String,
    /// The socket the other process will listen on.
    pub socket: PathBuf,
    /// Request queues, at least 1.
    pub queues: u16,
}

/// A file or a block device of the host that comes as a disk while the machine runs ([`crate::Vm::add_file`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterFile {
    /// Its place among [`VmSpec::later_files`], from 0 on.
    pub place: u16,
    /// The serial number the guest sees, at most 20 bytes.
    pub serial: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// It is a block device; otherwise a regular file.
    pub is_device: bool,
    /// Size in bytes.
    pub bytes: u64,
    /// The least that can be read or written in bytes, as the guest is told it.
    pub sector_bytes: u32,
}

impl LaterFile {
    /// The disk's id.
    pub fn id(&self) -> String {
        later_file_id(self.place)
    }
}

/// The id of the disk that comes to this place.
pub(crate) fn later_file_id(place: u16) -> String {
    format!("file{}", u32::from(place) + 1)
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// A directory served by another process over vhost-user, which the guest mounts as `virtiofs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The share's id: letters, digits and `-`, beginning with a letter.
    pub id: String,
    /// The name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// The socket the other process listens on.
    pub socket: PathBuf,
}

/// A network interface. Its tap comes in [`crate::Resources`], by the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The interface's id: letters, digits and `-`, beginning with a letter.
    pub id: String,
    /// Its address, as `02:00:00:00:00:01`.
    pub mac: String,
    /// The MTU the guest is told, in bytes.
    pub mtu: Option<u32>,
    /// What its descriptor is.
    #[serde(default, skip_serializing_if = "NicKind::is_tap")]
    pub kind: NicKind,
}

/// What an interface is connected by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicKind {
    /// A tap of the host.
    #[default]
    Tap,
    /// A stream socket with frames, each behind its length in four bytes (big endian).
    Stream,
}

impl NicKind {
    fn is_tap(&self) -> bool {
        *self == NicKind::Tap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../tests/golden/vmspec-v1.json");

    #[test]
    fn a_spec_in_a_plan_written_by_the_first_version_is_read_and_written_unchanged() {
        let read: VmSpec = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(read.disks[1].id(), "data");
        assert_eq!(serde_json::to_string_pretty(&read).unwrap() + "\n", GOLDEN);
    }
}
