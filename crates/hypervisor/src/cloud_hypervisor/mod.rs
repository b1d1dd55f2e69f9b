//! The Cloud Hypervisor driver. Written against v53.
//!
//! A machine is one process, which is told everything over its API: a unix socket in the folder of its run. It dies with the
//! launching thread (parent-death signal), so that no guest outlives its monitor.
//!
//! # Rules, each of which a trap of v53 has taught
//! * Nothing is believed to be understood before it was read back ([`config::difference`]): unknown fields are dropped
//!   without a word, and `vm.create` checks almost nothing.
//! * After any error of the launch the process is killed: a refused description stays stored, and its sockets stay bound.
//! * A vhost-user socket is tried before it is named: one that nobody serves stops the whole API for a minute.
//! * Whether the machine lives is what its process says, never the API; why it ended is found out as the module `vm` describes.
//! * Taps are passed as descriptors: a tap that is named and missing would be made.
//! * Everything else it opens by its path, so what its jail shows it has the same paths inside as outside (module `jail`), and the
//!   sockets that it makes itself are in a folder that both sides reach (module `folder`).

mod agent;
mod client;
mod config;
mod events;
mod folder;
mod http;
mod jail;
mod launch;
mod probe;
mod save;
mod serial;
mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::driver::check_devices;
use crate::{Accel, Boot, Disk, Driver, LaunchError, NicKind, Platform, Resources, RunDir, Unsupported, Vm, VmSpec};

pub use agent::AGENT_PORT;
pub use client::{ApiError, Client, understand};
pub use config::{NetConfig, ResizeDisk, Sockets, VmConfig, difference};
pub use events::{Event, EventDecoder};
pub use http::{Answer, AnswerDecoder, HttpError};
pub use probe::{ProbeError, probe};

/// The program looked for when none is named.
pub const BINARY: &str = "cloud-hypervisor";

/// The oldest version that the driver was written for.
pub const OLDEST: (u32, u32) = (53, 0);

/// A Cloud Hypervisor on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudHypervisor {
    /// The program: a path, or a name found in the search path.
    pub binary: PathBuf,
    /// Major and minor version; `(0, 0)` when it was not asked.
    pub version: (u32, u32),
    /// How long it may take to answer what takes milliseconds, and half of what its start may take.
    pub patience: Duration,
}

/// On a host with ten times more work than CPUs QEMU took 8 s to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

impl CloudHypervisor {
    /// The one at `binary`, or the one in the search path, without running it.
    pub fn unasked(binary: Option<&Path>) -> Self {
        Self {
            binary: binary.unwrap_or(Path::new(BINARY)).to_owned(),
            version: (0, 0),
            patience: TIMEOUT,
        }
    }
}

fn unsupported(reason: impl Into<String>) -> Unsupported {
    Unsupported {
        driver: BINARY,
        reason: reason.into(),
    }
}

/// What of `vm` Cloud Hypervisor cannot do. Pure.
fn check(vm: &VmSpec) -> Result<(), Unsupported> {
    if vm.accel != Accel::Kvm {
        return Err(unsupported("it needs kvm"));
    }
    if vm.nics.iter().any(|nic| nic.kind != NicKind::Tap) {
        return Err(unsupported("it connects interfaces by taps only, and passt needs QEMU"));
    }
    if !vm.later_disks.is_empty() {
        return Err(unsupported("images that come while the machine runs need QEMU"));
    }
    if let Boot::Firmware { sha256, variables, .. } = &vm.boot {
        if vm.platform != Platform::Pc || vm.disks.is_empty() {
            return Err(unsupported("firmware starts a PC with a disk, and nothing else"));
        }
        if variables.is_some() {
            return Err(unsupported("its firmware keeps no variables"));
        }
        if sha256.is_none() {
            return Err(unsupported("the firmware's hash is not pinned"));
        }
    }
    let is_served = |disk: &Disk| matches!(disk, Disk::VhostUser { .. });
    if vm.is_saveable && (!vm.shares.is_empty() || vm.disks.iter().any(is_served)) {
        return Err(unsupported(
            "a machine that others serve with disks or directories does not go on after it was saved",
        ));
    }
    // The restarted device connects again, and what the server knew of the guest's open files is gone by then.
    if vm.platform == Platform::Pc && !vm.shares.is_empty() {
        return Err(unsupported("shared directories do not survive a restart of the guest"));
    }
    check_devices(vm, 254).map_err(unsupported)
}

#[async_trait]
impl Driver for CloudHypervisor {
    fn name(&self) -> &'static str {
        BINARY
    }

    fn supports(&self, vm: &VmSpec) -> Result<(), Unsupported> {
        check(vm)
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
        let mut vm: VmSpec = serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap();
        vm.accel = Accel::Kvm;
        change(&mut vm);
        check(&vm).map_or_else(|e| e.reason, |()| String::new())
    }

    fn firmware(sha256: Option<&str>) -> Boot {
        Boot::Firmware {
            code: "/fw/CLOUDHV.fd".into(),
            variables: None,
            sha256: sha256.map(str::to_owned),
        }
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_reason() {
        assert_eq!(refusal(|_| ()), "");
        assert_eq!(refusal(|vm| vm.accel = Accel::Tcg), "it needs kvm");
        assert!(refusal(|vm| vm.nics[0].kind = NicKind::Stream).contains("passt needs QEMU"));
        assert!(refusal(|vm| vm.cpus = 255).contains("255 CPUs"));
        assert!(refusal(|vm| vm.memory_bytes += 1).contains("not whole MiB"));
        assert!(refusal(|vm| vm.is_saveable = true).contains("does not go on"));
        let own = |vm: &mut VmSpec| vm.disks.retain(|disk| matches!(disk, Disk::File { .. }));
        assert_eq!(
            refusal(|vm| {
                own(vm);
                vm.is_saveable = true;
            }),
            ""
        );
        let pc = |vm: &mut VmSpec, boot| (vm.platform, vm.boot) = (Platform::Pc, boot);
        assert_eq!(refusal(|vm| pc(vm, firmware(Some("00")))), "");
        assert!(refusal(|vm| pc(vm, firmware(None))).contains("not pinned"));
        assert!(refusal(|vm| vm.boot = firmware(Some("00"))).contains("a PC with a disk"));
        let share = crate::Share {
            id: "share0".into(),
            tag: "t".into(),
            socket: "/s".into(),
        };
        assert_eq!(refusal(|vm| vm.shares = vec![share.clone()]), "");
        assert!(
            refusal(|vm| (vm.platform, vm.shares) = (Platform::Pc, vec![share.clone()]))
                .contains("restart of the guest")
        );
    }
}
