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
use zmachine_spec::{DEFAULT_VM_STOP_TIMEOUT_S, MachineSpec, RootfsChoice, Setting};

use super::cmdline::{self, RootDevice};
use super::common::{
    Inputs, KernelChoice, PLAN_VERSION, VolumeUse, dns, grace_ms, hostname, interface, merged_env, mounts, nics,
    routes, ssh_keys, uuid, volume_disk, warnings,
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
        let (nameservers, search) = dns(spec, &inputs);
        let machine = inputs.home.machine(inputs.id);
        let seed = Seed {
            path: machine.join("seed.img"),
            instance_id: inputs.id.to_owned(),
            hostname: hostname(spec),
            interfaces: inputs.attachments.iter().map(interface).collect(),
            routes: routes(&inputs.attachments),
            nameservers: nameservers.clone(),
            search,
            mounts: mounts(&[], inputs.shares),
            ssh_keys: ssh_keys(spec),
            env: env.clone(),
            command: command(spec),
            user_data: spec.user_data.clone(),
        };
        let (boot, firmware_variables) = match &facts.start {
            VmStart::Kernel { kernel, initrd } => {
                let cmdline = cmdline::command_line(
                    inputs.accel,
                    RootDevice::FirstDisk,
                    &inputs.attachments,
                    &nameservers,
                    &env,
                )?;
                let (kernel, initrd) = (kernel.clone(), initrd.clone());
                (
                    Boot::Kernel {
                        kernel,
                        initrd,
                        cmdline,
                    },
                    None,
                )
            }
            VmStart::Firmware { .. } if inputs.hypervisor.driver == Hypervisor::CloudHypervisor => {
                let pinned = inputs.cloud_firmware.as_ref().ok_or(PlanError::NoFirmware)?;
                let boot = Boot::Firmware {
                    code: pinned.path.clone(),
                    variables: None,
                    sha256: Some(pinned.sha256.clone()),
                };
                (boot, None)
            }
            VmStart::Firmware { firmware } => {
                let firmware = firmware.as_ref().ok_or(PlanError::NoFirmware)?;
                let boot = Boot::Firmware {
                    code: firmware.code.clone(),
                    variables: Some(machine.join("firmware.vars")),
                    sha256: None,
                };
                (boot, Some(firmware.variables.clone()))
            }
        };
        Ok(VmPlan {
            version: PLAN_VERSION,
            kind: VmKind::Vm,
            id: inputs.id.to_owned(),
            root: VmRoot::Installed(Install {
                source: facts.source.clone(),
                digest: facts.digest.clone(),
                bytes: facts.bytes,
                reinstall: spec.reinstall,
                firmware_variables,
            }),
            appliance: facts.appliance.clone(),
            hypervisor: inputs.hypervisor.clone(),
            vm: VmSpec {
                name: spec.name.clone(),
                uuid: uuid(inputs.id),
                cpus: spec.cpus,
                memory_bytes: spec.memory_bytes.next_multiple_of(1 << 20),
                accel: inputs.accel,
                boot,
                disks: disks(&facts.volumes, &seed),
                shares: share::devices(&shares, inputs.home, inputs.id),
                nics: nics(&inputs.attachments),
                agent: true,
                platform: Platform::Pc,
            },
            volumes: facts.volumes.iter().map(VolumeUse::of).collect(),
            shares,
            seed,
            attachments: inputs.attachments,
            stop_grace_ms: grace_ms(spec, DEFAULT_VM_STOP_TIMEOUT_S),
            warnings: [warnings(inputs.host), told_to_everybody(&facts.start, &env)].concat(),
        })
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

fn refuse_container_settings(spec: &MachineSpec) -> Result<(), PlanError> {
    let used = [
        (Setting::User, spec.user.is_some()),
        (Setting::Workdir, spec.workdir.is_some()),
        (Setting::ReadOnly, spec.read_only),
        (Setting::Init, spec.init),
        (Setting::Kernel, spec.kernel.is_some()),
        (Setting::Rootfs, spec.rootfs != RootfsChoice::Auto),
        (Setting::Secrets, !spec.secrets.is_empty()),
    ];
    let used = used
        .into_iter()
        .find(|(_, is_used)| *is_used)
        .map(|(setting, _)| setting);
    match used.or(spec.guest.used()) {
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

pub(super) fn disks(volumes: &[ResolvedVolume], seed: &Seed) -> Vec<Disk> {
    let volume = |(index, volume): (usize, &ResolvedVolume)| Disk::File {
        id: volume_disk(index),
        path: volume.path.clone(),
        serial: volume.serial.clone(),
        read_only: volume.read_only,
        discard: !volume.read_only,
    };
    let mut disks: Vec<Disk> = volumes.iter().enumerate().map(volume).collect();
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
mod tests {
    use zmachine_hypervisor::Accel;
    use zmachine_network::HostDns;
    use zmachine_sys::host::HostFacts;

    use super::super::{self as plan, Plan};
    use super::*;
    use zmachine_spec::Home;
    use zmachine_spec::volume::Fs;
    use zmachine_spec::{Class, Failure};

    fn volume(name: &str) -> ResolvedVolume {
        ResolvedVolume {
            name: name.into(),
            target: "/".into(),
            path: format!("/v/{name}/data.img").into(),
            serial: name.into(),
            size_bytes: 2 << 30,
            fs: Fs::Ext4,
            content: Content::Empty,
            read_only: false,
            no_copy: false,
            new: None,
        }
    }

    fn facts() -> VmFacts {
        VmFacts {
            start: VmStart::Kernel {
                kernel: "/i/kernel".into(),
                initrd: Some("/i/initrd".into()),
            },
            source: DiskSource::Flist {
                image: "ab".into(),
                file: "/image.raw".into(),
                stores: vec![],
            },
            digest: "ab".into(),
            bytes: 300 << 20,
            unbootable: None,
            appliance: None,
            volumes: vec![volume("boot"), volume("data")],
        }
    }

    fn plan(change: impl FnOnce(&mut MachineSpec, &mut VmFacts)) -> Result<VmPlan, PlanError> {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        let mut spec = MachineSpec::new("box", "/x.fl");
        spec.networks.clear();
        let mut facts = facts();
        change(&mut spec, &mut facts);
        let host = HostFacts {
            cpus: 4,
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 4 << 30,
            boot_id: "boot".into(),
            kernel: "6.1".into(),
            is_root: true,
            cgroup_v2: true,
        };
        let inputs = Inputs {
            id: "0123456789ab",
            home: &home,
            host: &host,
            accel: Accel::Kvm,
            hypervisor: Choice::default(),
            cloud_firmware: None,
            attachments: vec![],
            host_dns: &HostDns {
                nameservers: vec![],
                search: vec![],
            },
            shares: &[],
            has_share_server: true,
        };
        match Plan::new(&spec, plan::Content::Vm(&facts), inputs)? {
            Plan::Vm(plan) => Ok(*plan),
            Plan::Container(_) => panic!("a container"),
        }
    }

    fn firmware(facts: &mut VmFacts, there: bool) {
        facts.start = VmStart::Firmware {
            firmware: there.then(|| zmachine_hypervisor::qemu::Firmware {
                code: "/fw/code".into(),
                variables: "/fw/vars".into(),
            }),
        };
    }

    #[test]
    fn the_volumes_are_the_first_disks_and_the_seed_is_the_last() {
        let plan = plan(|spec, _| spec.env = vec![("A".into(), "b".into())]).unwrap();
        let ids: Vec<_> = plan.vm.disks.iter().map(Disk::id).collect();
        assert_eq!(ids, ["volume0", "volume1", "seed"]);
        assert!(matches!(&plan.vm.disks[2], Disk::File { read_only: true, .. }));
        assert!(matches!(&plan.vm.boot, Boot::Kernel { cmdline, .. } if cmdline.ends_with("root=/dev/vda A=b")));
        assert_eq!(plan.vm.platform, Platform::Pc);
        assert_eq!(plan.stop_grace_ms, 90_000);
    }

    #[test]
    fn a_disk_with_a_boot_loader_gets_variables_of_its_own_and_no_command_line() {
        let plan = plan(|spec, facts| {
            firmware(facts, true);
            // Nothing of it is on a command line, so everything goes.
            spec.env = vec![("init".into(), "a\"b\nc".into())];
        })
        .unwrap();
        assert!(
            matches!(&plan.vm.boot, Boot::Firmware { variables: Some(variables), .. } if variables.ends_with("firmware.vars"))
        );
        assert_eq!(plan.install().unwrap().firmware_variables, Some("/fw/vars".into()));
        assert_eq!(plan.seed.env, [("init".to_owned(), "a\"b\nc".to_owned())]);
    }

    #[test]
    fn everything_that_can_be_known_to_fail_is_refused_with_a_hint() {
        type Change = fn(&mut MachineSpec, &mut VmFacts);
        let cases: [(&str, Class, Change); 16] = [
            ("needs a volume", Class::Usage, |_, f| f.volumes.clear()),
            ("'boot' can only be read", Class::Usage, |_, f| {
                f.volumes[0].read_only = true
            }),
            ("smaller than the image", Class::Usage, |_, f| {
                f.volumes[0].size_bytes = 1 << 20
            }),
            ("holds a file system (ext4)", Class::Conflict, |_, f| {
                f.volumes[0].content = Content::Formatted;
            }),
            ("holds another image", Class::Conflict, |_, f| {
                f.volumes[0].content = Content::Installed { digest: "cd".into() };
            }),
            ("no partition table", Class::Usage, |_, f| {
                firmware(f, true);
                f.unbootable = Some("no partition table".into());
            }),
            ("firmware", Class::Unsupported, |_, f| firmware(f, false)),
            ("no user", Class::Usage, |s, _| {
                s.user = Some(zmachine_spec::User::parse("web"))
            }),
            ("no working directory", Class::Usage, |s, _| {
                s.workdir = Some("/".into())
            }),
            ("no read-only root", Class::Usage, |s, _| s.read_only = true),
            ("no guest kernel", Class::Usage, |s, _| s.kernel = Some("k".into())),
            ("no root size", Class::Usage, |s, _| s.size_bytes = 1 << 30),
            ("'init'", Class::Usage, |s, _| s.env = vec![("init".into(), "x".into())]),
            ("'K'", Class::Usage, |s, _| s.env = vec![("K".into(), "a\nb".into())]),
            ("command line has", Class::Usage, |s, _| {
                s.env = vec![("K".into(), "x".repeat(2048))]
            }),
            ("memory", Class::Usage, |s, _| s.memory_bytes = 1),
        ];
        for (words, class, change) in cases {
            let failure = Failure::from(plan(change).expect_err(words));
            assert!(failure.message.contains(words), "{words}: {}", failure.message);
            assert_eq!(failure.class, class, "{words}");
            assert!(failure.hint.is_some_and(|hint| !hint.is_empty()), "{words}");
        }
    }

    #[test]
    fn a_volume_with_this_image_or_one_that_may_be_overwritten_is_taken() {
        plan(|_, f| f.volumes[0].content = Content::Installing { digest: "ab".into() }).unwrap();
        let over = plan(|spec, f| {
            spec.reinstall = true;
            f.volumes[0].content = Content::Raw;
        });
        assert!(over.unwrap().install().unwrap().reinstall);
    }

    #[test]
    fn ssh_keys_with_line_ends_go_on_the_command_line_with_commas() {
        let plan = plan(|spec, _| spec.env = vec![("SSH_KEY".into(), "a\nb\n".into())]).unwrap();
        assert!(matches!(&plan.vm.boot, Boot::Kernel { cmdline, .. } if cmdline.ends_with(" SSH_KEY=a,b")));
        assert_eq!(plan.seed.ssh_keys, ["a", "b"]);
    }

    #[test]
    fn a_plan_survives_its_file_and_keeps_its_kind() {
        let plan = Plan::Vm(Box::new(plan(|_, _| ()).unwrap()));
        let text = serde_json::to_string(&plan).unwrap();
        assert!(text.contains(r#""kind":"vm""#));
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert!(
            serde_json::from_str::<Plan>(r#"{"kind":"cloud"}"#)
                .unwrap_err()
                .to_string()
                .contains("cloud")
        );
    }
}
