//! The plan of a VM: an operating system on its first volume, started by its own kernel or by firmware.
//!
//! The disks are the volumes in their order, then the seed. What the guest is told is on the kernel command line, when the
//! image brings a kernel, and in the seed, always.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{Interface, Mount, Route};
use zmachine_hypervisor::choice::{Choice, Hypervisor};
use zmachine_hypervisor::{Boot, Disk, Platform, VmSpec};
use zmachine_network::Attachment;
use zmachine_spec::volume::{Content, ResolvedVolume};
use zmachine_spec::{DEFAULT_VM_STOP_TIMEOUT_S, HealthCheck, MachineSpec, RootfsChoice, Setting};

use super::cmdline::{self, RootDevice};
use super::common::{
    ImageFacts, Inputs, KernelChoice, PLAN_VERSION, Start, VolumeUse, dns, first_used, grace_ms, health, hostname,
    interface, merged_env, mounts, not_saveable, routes, ssh_keys, vm_spec, volume_disks, warnings,
};
use super::error::PlanError;
use super::share::{self, ShareUse};

/// virtio serial of the seed's disk.
pub const SEED_SERIAL: &str = "zm-seed";

/// Everything a VM's start needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Tells the file from a container's.
    pub kind: VmKind,
    /// Twelve hex digits.
    pub id: String,
    /// What it starts from.
    #[serde(flatten)]
    pub root: VmRoot,
    /// The kernel of the appliance that grows its file system; `None` when none is installed on this host.
    pub appliance: Option<KernelChoice>,
    /// What runs it.
    #[serde(default, skip_serializing_if = "Choice::was_none")]
    pub hypervisor: Choice,
    /// The virtual machine.
    pub vm: VmSpec,
    /// Its volumes, in the order of its disks; the first is the boot disk of a VM.
    pub volumes: Vec<VolumeUse>,
    /// What is served to it over virtio-fs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareUse>,
    /// What its cloud-init is told.
    pub seed: Seed,
    /// Its networks.
    pub attachments: Vec<Attachment>,
    /// Milliseconds between the power button and the end by force.
    pub stop_grace_ms: u64,
    /// How the monitor tells whether it does its work, when its guest runs our agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// What the user asked for and does not get in full.
    pub warnings: Vec<String>,
}

/// What a machine that lives like a VM starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmRoot {
    /// A VM: an operating system that is installed on its first volume.
    #[serde(rename = "install")]
    Installed(Install),
    /// A container with a kernel of its own: the unpacked image of that hex digest, the first of the machine's shares.
    #[serde(rename = "image")]
    Tree(String),
}

/// The one value of `kind` in `plan.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmKind {
    /// A VM.
    #[default]
    Vm,
}

/// The image of a VM's boot disk, and how it comes onto its volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Install {
    /// What the image is read from.
    pub source: DiskSource,
    /// What tells this image from every other; a volume that holds it needs no copy.
    pub digest: String,
    /// Length of the disk in bytes.
    pub bytes: u64,
    /// Over whatever the volume holds, once.
    pub reinstall: bool,
    /// Variables of the firmware that a machine starts with; `None` when it does not start by firmware.
    pub firmware_variables: Option<PathBuf>,
}

/// Where the image of a boot disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A file of a flist.
    Flist {
        /// Hex digest of the flist.
        image: String,
        /// The path in it.
        file: String,
        /// Block stores in place of the flist's routes.
        stores: Vec<String>,
    },
    /// A file of this host, raw or qcow2.
    Host {
        /// The file.
        path: PathBuf,
    },
}

/// What the guest's cloud-init is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The image, made at a start.
    pub path: PathBuf,
    /// Tells this machine from every other one that the disk might have been in.
    pub instance_id: String,
    /// Host name.
    pub hostname: String,
    /// Network interfaces.
    pub interfaces: Vec<Interface>,
    /// Their routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub nameservers: Vec<std::net::IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// What it mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Public keys for root.
    pub ssh_keys: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Entrypoint and arguments; empty for the image's own.
    pub command: Vec<String>,
    /// The user's own user data, merged with ours.
    pub user_data: Option<String>,
}

/// What the planner is told about a VM.
#[derive(Debug, Clone)]
pub struct VmFacts {
    /// What starts it.
    pub start: VmStart,
    /// The image of its boot disk.
    pub source: DiskSource,
    /// What tells the image from every other.
    pub digest: String,
    /// Length of the disk in bytes.
    pub bytes: u64,
    /// What the disk holds, for people, when that is something that its kind of start cannot start.
    pub unbootable: Option<String>,
    /// The kernel of the appliance, which brings the drivers of all file systems that it can grow.
    pub appliance: Option<KernelChoice>,
    /// Its volumes, the boot disk first.
    pub volumes: Vec<ResolvedVolume>,
}

/// What starts a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStart {
    /// The image's kernel.
    Kernel {
        /// `/kernel`, on this host.
        kernel: PathBuf,
        /// `/initrd`, on this host.
        initrd: Option<PathBuf>,
    },
    /// The boot loader on the disk.
    Firmware {
        /// The firmware of this host; `None` when there is none.
        firmware: Option<zmachine_hypervisor::qemu::Firmware>,
    },
}

impl VmPlan {
    /// What is installed on its first volume, when it is a VM.
    pub fn install(&self) -> Option<&Install> {
        match &self.root {
            VmRoot::Installed(install) => Some(install),
            VmRoot::Tree(_) => None,
        }
    }

    /// Plans a VM.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub(super) fn new(spec: &MachineSpec, facts: &VmFacts, inputs: Inputs<'_>) -> Result<VmPlan, PlanError> {
        refuse_container_settings(spec)?;
        check_boot_volume(spec, facts)?;
        let shares = share::directories(&inputs)?;
        let env = merged_env(Vec::new(), &spec.env)?;
        let seed = Seed::new(spec, &inputs, mounts(&[], inputs.shares), env.clone(), command(spec));
        let (boot, firmware_variables) = boot(facts, &inputs, &seed)?;
        let (health, lacking) = health(spec, &ImageFacts::default());
        let own = Own {
            root: VmRoot::Installed(Install {
                source: facts.source.clone(),
                digest: facts.digest.clone(),
                bytes: facts.bytes,
                reinstall: spec.reinstall,
                firmware_variables,
            }),
            appliance: facts.appliance.clone(),
            boot,
            volumes: &facts.volumes,
            is_saveable: is_saveable(spec, &inputs)?,
            shares,
            seed,
            health,
            warnings: [told_to_everybody(&facts.start, &env), lacking].concat(),
        };
        Ok(VmPlan::of(spec, inputs, own))
    }

    /// The plan around what is its own.
    pub(super) fn of(spec: &MachineSpec, inputs: Inputs<'_>, own: Own<'_>) -> VmPlan {
        let start = Start {
            boot: own.boot,
            disks: disks(own.volumes, &own.seed),
            shares: share::devices(&own.shares, inputs.home, inputs.id),
            platform: Platform::Pc,
            is_saveable: own.is_saveable,
        };
        VmPlan {
            version: PLAN_VERSION,
            kind: VmKind::Vm,
            id: inputs.id.to_owned(),
            root: own.root,
            appliance: own.appliance,
            hypervisor: inputs.hypervisor.clone(),
            vm: vm_spec(spec, &inputs, start),
            volumes: own.volumes.iter().map(VolumeUse::of).collect(),
            shares: own.shares,
            seed: own.seed,
            attachments: inputs.attachments,
            stop_grace_ms: grace_ms(spec, DEFAULT_VM_STOP_TIMEOUT_S),
            health: own.health,
            warnings: [warnings(inputs.host), own.warnings].concat(),
        }
    }
}

/// What the plan of a machine that lives like a VM has of its own; the rest is the same whatever it starts from.
pub(super) struct Own<'a> {
    pub(super) root: VmRoot,
    pub(super) appliance: Option<KernelChoice>,
    pub(super) boot: Boot,
    pub(super) volumes: &'a [ResolvedVolume],
    pub(super) is_saveable: bool,
    pub(super) shares: Vec<ShareUse>,
    pub(super) seed: Seed,
    pub(super) health: Option<HealthCheck>,
    pub(super) warnings: Vec<String>,
}

impl Seed {
    /// What `spec` and its networks say, and these.
    pub(super) fn new(
        spec: &MachineSpec,
        inputs: &Inputs<'_>,
        mounts: Vec<Mount>,
        env: Vec<(String, String)>,
        command: Vec<String>,
    ) -> Seed {
        let (nameservers, mut search) = dns(spec, inputs);
        // systemd-resolved sends names without a dot to no server, but to each with such a domain behind it.
        let networks = inputs.attachments.iter().map(|attachment| attachment.network.clone());
        search.splice(0..0, networks);
        Seed {
            path: inputs.home.machine(inputs.id).join("seed.img"),
            instance_id: inputs.id.to_owned(),
            hostname: hostname(spec),
            interfaces: inputs.attachments.iter().map(interface).collect(),
            routes: routes(&inputs.attachments),
            nameservers,
            search,
            mounts,
            ssh_keys: ssh_keys(spec),
            env,
            command,
            user_data: spec.user_data.clone(),
        }
    }
}

/// How a VM boots, and the template of its firmware's variables.
fn boot(facts: &VmFacts, inputs: &Inputs<'_>, seed: &Seed) -> Result<(Boot, Option<PathBuf>), PlanError> {
    match &facts.start {
        VmStart::Kernel { kernel, initrd } => {
            let (root, networks) = (RootDevice::FirstDisk, &inputs.attachments);
            let cmdline = cmdline::command_line(inputs.accel, root, networks, &seed.nameservers, &seed.env)?;
            let boot = Boot::Kernel {
                kernel: kernel.clone(),
                initrd: initrd.clone(),
                cmdline,
            };
            Ok((boot, None))
        }
        VmStart::Firmware { .. } if inputs.hypervisor.driver == Hypervisor::CloudHypervisor => {
            let pinned = inputs.cloud_firmware.as_ref().ok_or(PlanError::NoFirmware)?;
            let boot = Boot::Firmware {
                code: pinned.path.clone(),
                variables: None,
                sha256: Some(pinned.sha256.clone()),
            };
            Ok((boot, None))
        }
        VmStart::Firmware { firmware } => {
            let firmware = firmware.as_ref().ok_or(PlanError::NoFirmware)?;
            let boot = Boot::Firmware {
                code: firmware.code.clone(),
                variables: Some(inputs.home.machine(inputs.id).join("firmware.vars")),
                sha256: None,
            };
            Ok((boot, Some(firmware.variables.clone())))
        }
    }
}

/// A kernel that is told of its environment on its command line, as Zero-OS does, has that in the hypervisor's as well.
fn told_to_everybody(start: &VmStart, env: &[(String, String)]) -> Vec<String> {
    let secret = env.iter().find(|(name, _)| zmachine_spec::redact::is_secret(name));
    match (start, secret) {
        (VmStart::Kernel { .. }, Some((name, _))) => vec![format!(
            "the value of {name} is on the command line of the VM's kernel, which all users of this host can read; \
             user data keep it to the VM"
        )],
        _ => Vec::new(),
    }
}

/// Whether it is built so that it can be saved while it runs.
fn is_saveable(spec: &MachineSpec, inputs: &Inputs<'_>) -> Result<bool, PlanError> {
    match not_saveable(spec, inputs) {
        Some(what) if spec.snapshots => Err(PlanError::NotSaveable { what: what.to_owned() }),
        _ => Ok(spec.snapshots),
    }
}

fn refuse_container_settings(spec: &MachineSpec) -> Result<(), PlanError> {
    let used = [
        (Setting::User, spec.user.is_some()),
        (Setting::Workdir, spec.workdir.is_some()),
        (Setting::ReadOnly, spec.read_only),
        (Setting::Init, spec.init),
        (Setting::Kernel, spec.kernel.is_some()),
        (Setting::Rootfs, spec.rootfs != RootfsChoice::Auto),
        (Setting::Secrets, !spec.secrets.is_empty()),
        (Setting::Volumes, !spec.sockets.is_empty()),
        (Setting::IdleTimeout, spec.idle_timeout_ms.is_some()),
    ];
    match first_used(used).or(spec.guest.used()) {
        Some(setting) => Err(PlanError::NotForVms { setting }),
        None if spec.size_bytes != 0 => Err(PlanError::SizeOfVm),
        None => Ok(()),
    }
}

fn check_boot_volume(spec: &MachineSpec, facts: &VmFacts) -> Result<(), PlanError> {
    let Some(volume) = facts.volumes.first() else {
        return Err(PlanError::NoBootVolume { image: facts.bytes });
    };
    let name = volume.name.clone();
    if facts.bytes == 0 {
        return Err(PlanError::EmptyImage);
    }
    if let Some(holds) = &facts.unbootable {
        return Err(PlanError::Unbootable { holds: holds.clone() });
    }
    if volume.read_only {
        return Err(PlanError::BootVolumeReadOnly { volume: name });
    }
    if volume.size_bytes < facts.bytes {
        return Err(PlanError::VolumeTooSmall {
            volume: name,
            bytes: volume.size_bytes,
            image: facts.bytes,
        });
    }
    let holds = match &volume.content {
        Content::Empty | Content::Formatting => return Ok(()),
        Content::Installing { digest } | Content::Installed { digest } if *digest == facts.digest => return Ok(()),
        _ if spec.reinstall => return Ok(()),
        Content::Installing { .. } | Content::Installed { .. } => "another image".to_owned(),
        Content::Formatted => format!("a file system ({})", volume.fs.name()),
        Content::Raw => "what another VM put there".to_owned(),
    };
    Err(PlanError::VolumeOccupied { volume: name, holds })
}

fn disks(volumes: &[ResolvedVolume], seed: &Seed) -> Vec<Disk> {
    let mut disks = volume_disks(volumes);
    disks.push(Disk::File {
        id: "seed".to_owned(),
        path: seed.path.clone(),
        serial: SEED_SERIAL.to_owned(),
        read_only: true,
        discard: false,
    });
    disks
}

/// Entrypoint and arguments, as for a container; what they mean is up to the image.
fn command(spec: &MachineSpec) -> Vec<String> {
    [spec.entrypoint.clone().unwrap_or_default(), spec.command.clone()].concat()
}

#[cfg(test)]
mod tests;
