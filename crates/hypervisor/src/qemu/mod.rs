//! The QEMU driver. Known to work with QEMU 7.2 and later.
//!
//! A machine is one QEMU process with three inherited socket pairs (control, console, agent) and the taps of its
//! interfaces. It dies with the launching thread (parent-death signal), so that no guest outlives its monitor.

mod arguments;
mod firmware;
mod jail;
mod launch;
mod probe;
mod qmp;
mod save;
mod vm;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::driver::check_devices;
use crate::{Boot, Driver, LaunchError, Platform, Resources, RunDir, Unsupported, Vm, VmSpec};

pub use arguments::{AGENT_PORT, AGENT_SOCKET, Channels, FIRMWARE_CODE, FIRMWARE_VARIABLES, Memory, arguments};
pub use firmware::Firmware;
pub use probe::{ProbeError, probe};

/// The firmware for kernels entered directly, found by QEMU in its data folders.
pub const QBOOT: &str = "qboot.rom";
/// The program looked for when none is named.
pub const BINARY: &str = "qemu-system-x86_64";

/// A QEMU on this host, and what it can use here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The program: a path, or a name found in the search path.
    pub binary: PathBuf,
    /// Major and minor version; `(0, 0)` when it was not asked.
    pub version: (u32, u32),
    /// Whether `/dev/vhost-net` is there.
    pub vhost_net: bool,
    /// Whether the host lets processes use io_uring.
    pub io_uring: bool,
}

impl Qemu {
    /// A QEMU that nobody asked, with what works everywhere.
    pub fn assumed(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            version: (0, 0),
            vhost_net: false,
            io_uring: false,
        }
    }

    /// The QEMU at `binary`, or the one in the search path, with what can be seen here without running it. Its version
    /// stays unknown: [`probe()`] runs it twice for that, 25 ms of both CPUs of a small host, and what it finds out in
    /// good time shows as a failed launch as well. So whoever starts machines asks only when a launch failed.
    pub fn unasked(binary: Option<&Path>) -> Self {
        Self {
            vhost_net: Path::new("/dev/vhost-net").exists(),
            ..Self::assumed(binary.unwrap_or(Path::new(BINARY)))
        }
    }

    fn unsupported(reason: impl Into<String>) -> Unsupported {
        Unsupported {
            driver: "qemu",
            reason: reason.into(),
        }
    }
}

#[async_trait]
impl Driver for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn supports(&self, vm: &VmSpec) -> Result<(), Unsupported> {
        if matches!(vm.boot, Boot::Firmware { .. }) && (vm.platform != Platform::Pc || vm.disks.is_empty()) {
            return Err(Self::unsupported("firmware starts a PC with a disk, and nothing else"));
        }
        if let Boot::Firmware { variables: None, .. } = &vm.boot {
            return Err(Self::unsupported("its firmware needs a file for its variables"));
        }
        check_devices(vm, 255).map_err(Self::unsupported)
    }

    async fn launch(&self, vm: &VmSpec, resources: Resources, run: &RunDir) -> Result<Box<dyn Vm>, LaunchError> {
        self.supports(vm)?;
        Ok(Box::new(launch::launch(self, vm, resources, run).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl Fn(&mut VmSpec)) -> String {
        let mut vm = serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap();
        change(&mut vm);
        Qemu::assumed("qemu")
            .supports(&vm)
            .map_or_else(|e| e.reason, |()| String::new())
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_reason() {
        assert_eq!(refusal(|_| ()), "");
        assert!(refusal(|vm| vm.cpus = 0).contains("0 CPUs"));
        assert!(refusal(|vm| vm.memory_bytes += 1).contains("not whole MiB"));
        assert!(refusal(|vm| vm.nics[0].id = "data".into()).contains("two devices"));
        assert!(
            refusal(|vm| {
                vm.boot = Boot::Firmware {
                    code: "/c".into(),
                    variables: Some("/v".into()),
                    sha256: None,
                }
            })
            .contains("firmware")
        );
        assert!(refusal(|vm| vm.nics[0].id = "a,b".into()).contains("'a,b' cannot be the id"));
    }
}
