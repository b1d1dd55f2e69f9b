//! `kernel.json`: what an installed kernel is. Version 1; a reader refuses a version it does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::KernelError;
use crate::modules::NESTED;

/// The version this code writes.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The driver of a machine's interfaces.
const NETWORK: &str = "virtio_net.ko";

/// The description of one installed kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The version of this format: 1.
    pub version: u32,
    /// The kernel's name in the library, also its folder's.
    pub name: String,
    /// The kernel's release, as `uname -r` prints it in the guest; empty when a bare file did not tell.
    pub release: String,
    /// Where it came from, for people: a package's name or a file's path.
    pub source: String,
    /// The Debian package it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
    /// Installed at this time, in seconds since 1970 UTC.
    pub created_unix: u64,
    /// SHA-256 in hex of every stored file, by its path below the kernel's folder.
    pub files: BTreeMap<String, String>,
    /// The stored modules, each after everything it needs.
    pub modules: Vec<Module>,
}

/// A Debian package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A stored module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its file's name below `modules/`.
    pub file: String,
    /// The files it needs loaded before itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Whether every container machine loads it at boot; it is in the initramfs then.
    pub boot: bool,
}

impl Description {
    /// Reads `kernel.json` at `path`.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, KernelError> {
        let bad = |reason: String| KernelError::BadDescription {
            path: path.to_owned(),
            reason,
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(1) => serde_json::from_value(value).map_err(|e| bad(e.to_string())),
            Some(other) => Err(bad(format!(
                "its version is {other}, this program knows version {FORMAT_VERSION}"
            ))),
            None => Err(bad("it has no version".into())),
        }
    }

    /// The file names of the modules that every container loads at boot, in loading order.
    pub fn boot_modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().filter(|m| m.boot).map(|m| m.file.as_str())
    }

    /// Those of the boot's modules that only a machine with a network interface needs, in loading order: `virtio_net` and
    /// what nothing but it needs.
    pub fn network_modules(&self) -> Vec<&str> {
        let boot = || self.modules.iter().filter(|m| m.boot);
        let mut others = BTreeSet::new();
        let mut network = Vec::new();
        // Backwards: whoever needs a module comes after it.
        for module in self.modules.iter().rev().filter(|m| m.boot) {
            let file = module.file.as_str();
            let needed_by_network =
                boot().any(|m| network.contains(&m.file.as_str()) && m.needs.contains(&module.file));
            if (file == NETWORK || needed_by_network) && !others.contains(file) {
                network.push(file);
            } else {
                others.extend(module.needs.iter().map(String::as_str));
            }
        }
        network.reverse();
        network
    }
}

/// A driver that a kernel has as a module, and only some machines carry into their boot: those that mount such a file system,
/// or whose hypervisor has such a channel to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FsDriver {
    /// btrfs.
    Btrfs,
    /// XFS.
    Xfs,
    /// Directories of the host.
    Virtiofs,
    /// No file system: the virtual socket to the host, over which the agent is reached where there is no virtio-serial.
    Vsock,
    /// No file system: what programs need that run containers inside of the machine.
    Nested,
}

impl FsDriver {
    /// The driver of the file system that `mount -t` calls `fstype`, if it is one that is not there anyway.
    pub fn of(fstype: &str) -> Option<FsDriver> {
        [FsDriver::Btrfs, FsDriver::Xfs, FsDriver::Virtiofs]
            .into_iter()
            .find(|driver| driver.name() == fstype)
    }

    /// As `mount -t` names the file system; `vsock` and `nested` for those. The end of the name of its list in the initramfs.
    pub fn name(self) -> &'static str {
        match self {
            FsDriver::Btrfs => "btrfs",
            FsDriver::Xfs => "xfs",
            FsDriver::Virtiofs => "virtiofs",
            FsDriver::Vsock => "vsock",
            FsDriver::Nested => "nested",
        }
    }

    /// The modules, the last one being the driver itself. The first ones of btrfs are asked for by name when it is loaded,
    /// which finds nothing in a guest without modprobe.
    fn modules(self) -> Vec<String> {
        let files: &[&str] = match self {
            FsDriver::Btrfs => &[
                "blake2b_generic.ko",
                "sha256_generic.ko",
                "xxhash_generic.ko",
                "btrfs.ko",
            ],
            FsDriver::Xfs => &["xfs.ko"],
            FsDriver::Virtiofs => &["virtiofs.ko"],
            FsDriver::Vsock => &["vmw_vsock_virtio_transport.ko"],
            FsDriver::Nested => return NESTED.iter().map(|name| format!("{name}.ko")).collect(),
        };
        files.iter().map(|file| (*file).to_owned()).collect()
    }
}

impl Description {
    /// The files that `driver` needs beyond the boot's, in loading order; empty when the kernel has it built in.
    pub fn driver_modules(&self, driver: FsDriver) -> Vec<&str> {
        let of_driver = driver.modules();
        let mut wanted: BTreeSet<&str> = of_driver.iter().map(String::as_str).collect();
        // Backwards: whoever needs a module comes after it.
        for module in self.modules.iter().rev() {
            if wanted.contains(module.file.as_str()) {
                wanted.extend(module.needs.iter().map(String::as_str));
            }
        }
        let needed = self.modules.iter().filter(|m| wanted.contains(m.file.as_str()));
        needed.filter(|m| !m.boot).map(|m| m.file.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../tests/golden/kernel-v1.json");

    #[test]
    fn a_description_written_by_the_first_version_is_read_and_written_unchanged() {
        let read = Description::parse(GOLDEN, Path::new("kernel.json")).unwrap();
        assert_eq!(
            read.boot_modules().collect::<Vec<_>>(),
            ["failover.ko", "virtio_net.ko"]
        );
        assert_eq!(serde_json::to_string_pretty(&read).unwrap() + "\n", GOLDEN);
    }

    fn module(file: &str, needs: &[&str]) -> Module {
        Module {
            file: file.into(),
            needs: needs.iter().map(|m| (*m).into()).collect(),
            boot: true,
        }
    }

    #[test]
    fn the_networks_modules_are_those_that_nothing_else_needs() {
        let mut description = Description::parse(GOLDEN, Path::new("kernel.json")).unwrap();
        description.modules = vec![
            module("shared.ko", &[]),
            module("failover.ko", &[]),
            module("net_failover.ko", &["failover.ko"]),
            module("virtio_net.ko", &["net_failover.ko", "shared.ko"]),
            module("erofs.ko", &["shared.ko"]),
        ];
        assert_eq!(
            description.network_modules(),
            ["failover.ko", "net_failover.ko", "virtio_net.ko"]
        );
    }

    #[test]
    fn a_driver_brings_what_it_needs_and_the_boot_does_not_have() {
        let later = |file, needs| Module {
            boot: false,
            ..module(file, needs)
        };
        let mut description = Description::parse(GOLDEN, Path::new("kernel.json")).unwrap();
        description.modules = vec![
            module("libcrc32c.ko", &[]),
            later("raid6_pq.ko", &[]),
            later("xor.ko", &[]),
            later("xxhash_generic.ko", &[]),
            later("tun.ko", &[]),
            later("btrfs.ko", &["libcrc32c.ko", "raid6_pq.ko", "xor.ko"]),
        ];
        let files = description.driver_modules(FsDriver::Btrfs);
        assert_eq!(files, ["raid6_pq.ko", "xor.ko", "xxhash_generic.ko", "btrfs.ko"]);
        assert!(description.driver_modules(FsDriver::Xfs).is_empty());
    }

    #[test]
    fn a_newer_version_is_refused_and_named() {
        let error = Description::parse(r#"{"version": 9}"#, Path::new("k/kernel.json")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "k/kernel.json is not a kernel description: its version is 9, this program knows version 1"
        );
    }
}
