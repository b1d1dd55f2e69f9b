//! The plan of a container: a root disk from the image's blocks with a writable one above, what the guest's agent is told,
//! and the entrypoint it starts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{
    BootConfig, HostEntry, PROTOCOL_VERSION, Process, ResourceLimit, Restrictions, Root, Upper,
};
use zmachine_hypervisor::choice::{Choice, Hypervisor};
use zmachine_hypervisor::{Boot, Disk, Platform, VmSpec};
use zmachine_kernel::FsDriver;
use zmachine_network::Attachment;
use zmachine_rootfs::Prefetch;
use zmachine_spec as spec;
use zmachine_spec::volume::ResolvedVolume;
use zmachine_spec::{HealthCheck, MachineSpec, PodNetwork, RootfsChoice, Setting, Signal, User};

use super::common::{
    ImageFacts, Inputs, KernelChoice, PLAN_VERSION, ROOT_TAG, Start, VolumeUse, arguments, dns, first_used, grace_ms,
    health, hostname, hosts, interface, merged_env, mounts, not_saveable, routes, ssh_keys, start_timeout_s, vm_spec,
    volume_disks, warnings,
};
use super::error::PlanError;
use super::pod;
use super::share::{self, ShareUse, SharedTree};

/// virtio serial of the EROFS disk.
pub const ROOT_SERIAL: &str = "zm-root";
/// virtio serial of the writable layer's disk.
pub const UPPER_SERIAL: &str = "zm-upper";

/// Where programs that run containers keep them. They want a real file system there, so a machine that runs them has a
/// volume at one of these, and by that we know it.
const NESTED_STORAGE: [&str; 5] = [
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/rancher",
    "/var/lib/incus",
];

/// Whether what is mounted at `target` is for containers inside of the machine.
pub fn is_for_containers(target: &str) -> bool {
    NESTED_STORAGE
        .iter()
        .any(|storage| Path::new(target).starts_with(storage))
}

/// `PATH` where nothing else is said.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything a container's start needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Twelve hex digits.
    pub id: String,
    /// Hex digest of the image.
    pub image: String,
    /// The kernel.
    pub kernel: KernelChoice,
    /// What runs it.
    #[serde(default, skip_serializing_if = "Choice::was_none")]
    pub hypervisor: Choice,
    /// The virtual machine.
    pub vm: VmSpec,
    /// Size of the writable layer in bytes; `None` when the root is read-only.
    pub upper_bytes: Option<u64>,
    /// What the guest is told.
    pub boot: BootConfig,
    /// What runs in it. Without arguments, nothing does but what comes later.
    pub process: Process,
    /// Its networks.
    pub attachments: Vec<Attachment>,
    /// The network of the pod that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_network: Option<PodNetwork>,
    /// Its volumes, in the order of their disks and mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeUse>,
    /// What is served to it over virtio-fs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareUse>,
    /// Block stores in place of the flist's routes.
    pub stores: Vec<String>,
    /// How much of its image is fetched before it is read.
    #[serde(default, skip_serializing_if = "Prefetch::is_default")]
    pub prefetch: Prefetch,
    /// Labels: the image's, and over them the user's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Ports that the image exposes, as `80/tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Linux number of the stop signal.
    pub stop_signal: i32,
    /// Milliseconds between it and SIGKILL.
    pub stop_grace_ms: u64,
    /// Seconds within which the guest must be up.
    pub start_timeout_s: u64,
    /// How the monitor tells whether it does its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// What the user asked for and does not get in full.
    pub warnings: Vec<String>,
}

/// Queues of the image's disk: one per virtual CPU, so none waits for another one's block; more than 4 gain nothing.
pub(super) fn root_queues(cpus: u32) -> u16 {
    cpus.clamp(1, 4) as u16
}

/// Size of the writable root in bytes by the rule of Zero-OS: `cpus * memory / 8 GiB` in whole numbers; 0 gives
/// 500 MiB, anything else 2 GiB; at least that, or `wanted` when it is more.
pub fn root_size(cpus: u32, memory_bytes: u64, wanted: u64) -> u64 {
    let minimum = match u64::from(cpus).saturating_mul(memory_bytes) / (8 << 30) {
        0 => 500 << 20,
        _ => 2 << 30,
    };
    wanted.max(minimum)
}

impl ContainerPlan {
    /// Plans a container.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub(super) fn new(
        spec: &MachineSpec,
        image: &ImageFacts,
        kernel: &KernelChoice,
        volumes: &[ResolvedVolume],
        inputs: Inputs<'_>,
    ) -> Result<ContainerPlan, PlanError> {
        refuse_vm_settings(spec)?;
        let is_saveable = is_saveable(spec, volumes, &inputs)?;
        let process = process(spec, image)?;
        let stop_signal = stop_signal(spec, image)?;
        let mut shares = share::directories(&inputs)?;
        if let Some(tree) = &image.tree {
            share::require_server(&inputs)?;
            shares.insert(0, root_share(tree));
        }
        if let Some(pod) = &spec.pod {
            shares.push(share::of_pod(pod, &inputs)?);
        }
        let upper_bytes = (!spec.read_only).then(|| root_size(spec.cpus, spec.memory_bytes, spec.size_bytes));
        let (health, lacking) = health(spec, image);
        // Nothing runs that could be healthy.
        let health = health.filter(|_| !spec.idle);
        let disks = Disks {
            has_image: image.tree.is_none() && !pod::is_without_image(spec),
            has_upper: upper_bytes.is_some(),
            is_saveable,
        };
        Ok(ContainerPlan {
            version: PLAN_VERSION,
            id: inputs.id.to_owned(),
            image: image.digest.clone(),
            kernel: kernel.clone(),
            hypervisor: inputs.hypervisor.clone(),
            vm: vm(spec, kernel, volumes, &inputs, disks, &shares),
            pod_network: spec.pod.as_ref().and_then(|pod| pod.network.clone()),
            upper_bytes,
            boot: boot(spec, image, volumes, &inputs, disks)?,
            process,
            attachments: inputs.attachments,
            volumes: volumes.iter().map(VolumeUse::of).collect(),
            shares,
            stores: spec.stores.clone(),
            prefetch: spec.prefetch,
            labels: image.labels.clone().into_iter().chain(spec.labels.clone()).collect(),
            exposed_ports: image.exposed_ports.clone(),
            stop_signal: stop_signal.number(),
            stop_grace_ms: grace_ms(spec, spec::DEFAULT_STOP_TIMEOUT_S),
            start_timeout_s: start_timeout_s(inputs.accel),
            health,
            warnings: [warnings(inputs.host), lacking].concat(),
        })
    }

    /// Whether it has no entrypoint.
    pub fn is_idle(&self) -> bool {
        self.process.args.is_empty()
    }

    /// The drivers that its initramfs must bring: those of its file systems, and what containers inside of it need.
    pub fn fs_drivers(&self) -> Vec<FsDriver> {
        let mounted = self.boot.mounts.iter().map(|mount| &mount.fstype);
        let has_nested = self.boot.mounts.iter().any(|mount| is_for_containers(&mount.target));
        mounted
            .chain([&self.boot.root.lower_fstype])
            .filter_map(|fstype| FsDriver::of(fstype))
            .chain(channel_driver(self.hypervisor.driver))
            .chain(has_nested.then_some(FsDriver::Nested))
            .collect()
    }

    /// The queues of its image's disk; `None` when its image is no disk that somebody must serve.
    pub fn image_queues(&self) -> Option<u16> {
        self.vm.disks.iter().find_map(|disk| match disk {
            Disk::VhostUser { queues, .. } | Disk::Nbd { queues, .. } => Some(*queues),
            Disk::File { .. } => None,
        })
    }

    /// Whether that is served over NBD.
    pub fn is_image_by_nbd(&self) -> bool {
        self.vm.disks.iter().any(|disk| matches!(disk, Disk::Nbd { .. }))
    }

    /// Boots `kernel` from now on, whose initramfs has the agent of this program.
    pub fn use_kernel(&mut self, kernel: KernelChoice) {
        if let Boot::Kernel {
            kernel: vmlinux,
            initrd,
            ..
        } = &mut self.vm.boot
        {
            vmlinux.clone_from(&kernel.vmlinux);
            *initrd = Some(kernel.initramfs.clone());
        }
        self.kernel = kernel;
        self.boot.protocol = PROTOCOL_VERSION;
    }
}

/// The driver of the channel to the agent, where the boot does not have it anyway.
pub fn channel_driver(hypervisor: Hypervisor) -> Option<FsDriver> {
    (hypervisor == Hypervisor::CloudHypervisor).then_some(FsDriver::Vsock)
}

fn refuse_vm_settings(spec: &MachineSpec) -> Result<(), PlanError> {
    let used = [
        (Setting::UserData, spec.user_data.is_some()),
        (Setting::Reinstall, spec.reinstall),
    ];
    match first_used(used) {
        Some(setting) => Err(PlanError::OnlyForVms { setting }),
        None => Ok(()),
    }
}

/// Whether it is built so that it can be saved: a copy of a machine has its own root, and everything else of it only where that can be
/// copied too. What need not be copied is only not warm then; nor are machines whose disks a template has no part in.
fn is_saveable(spec: &MachineSpec, volumes: &[ResolvedVolume], inputs: &Inputs<'_>) -> Result<bool, PlanError> {
    let obstacle = not_saveable(spec, inputs).or_else(|| {
        let has = [
            ("a socket of this host", !spec.sockets.is_empty()),
            ("an unpacked root", spec.rootfs == RootfsChoice::Virtiofs),
            ("a pod's network", spec.pod.is_some()),
        ];
        has.into_iter().find(|(_, has)| *has).map(|(what, _)| what)
    });
    let is_wanted = spec.snapshots || spec.idle_timeout_ms.is_some();
    match obstacle {
        Some(what) if is_wanted => Err(PlanError::NotSaveable { what: what.to_owned() }),
        obstacle => {
            let is_warm = spec.is_warm() && volumes.is_empty() && !spec.read_only;
            Ok(is_wanted || (is_warm && obstacle.is_none()))
        }
    }
}

/// The user's, else the image's, else the default one.
fn stop_signal(spec: &MachineSpec, image: &ImageFacts) -> Result<Signal, PlanError> {
    match (spec.stop_signal, image.stop_signal.as_deref()) {
        (Some(signal), _) => Ok(signal),
        (None, Some(text)) => text
            .parse()
            .map_err(|_| PlanError::ImageSignal { text: text.to_owned() }),
        (None, None) => Ok(spec::DEFAULT_STOP_SIGNAL),
    }
}

fn process(spec: &MachineSpec, image: &ImageFacts) -> Result<Process, PlanError> {
    let mut args = match spec.idle {
        true => Vec::new(),
        false => arguments(spec, image),
    };
    if args.is_empty() && !spec.idle {
        if spec.entrypoint.is_some() {
            return Err(PlanError::NothingToRun);
        }
        args.push("/sbin/init".to_owned());
    }
    let cwd = spec
        .workdir
        .clone()
        .or_else(|| image.workdir.clone())
        .filter(|dir| !dir.is_empty());
    if let Some(dir) = cwd.as_ref().filter(|dir| !dir.starts_with('/')) {
        return Err(PlanError::WorkdirRelative { dir: dir.clone() });
    }
    Ok(Process {
        args,
        env: environment(spec, image)?,
        cwd,
        user: spec.user.as_ref().map(User::to_string).or_else(|| image.user.clone()),
        terminal: spec
            .terminal
            .then_some(zmachine_agent_protocol::WindowSize { rows: 24, columns: 80 }),
        stdin: spec.stdin,
        init: spec.init,
        restrictions: Some(restrictions(spec)).filter(|restrictions| *restrictions != Restrictions::default()),
    })
}

fn restrictions(spec: &MachineSpec) -> Restrictions {
    let limit = |ulimit: &spec::guest::Ulimit| ResourceLimit {
        resource: ulimit.resource,
        soft: ulimit.soft,
        hard: ulimit.hard,
    };
    Restrictions {
        limits: spec.guest.ulimits.iter().map(limit).collect(),
        groups: spec.guest.groups.clone(),
        drop_capabilities: spec.guest.dropped_capabilities(),
        no_new_privileges: spec.guest.no_new_privileges,
    }
}

fn environment(spec: &MachineSpec, image: &ImageFacts) -> Result<Vec<(String, String)>, PlanError> {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    if spec.terminal {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    merged_env(env, image.env.iter().chain(&spec.env))
}

/// Which disks its root has.
#[derive(Debug, Clone, Copy)]
struct Disks {
    has_image: bool,
    has_upper: bool,
    is_saveable: bool,
}

/// The unpacked image below the writable disk. It is only read, so all machines of the image share the host's memory of it.
fn root_share(tree: &Path) -> ShareUse {
    ShareUse {
        id: ROOT_TAG.to_owned(),
        tag: ROOT_SERIAL.to_owned(),
        tree: SharedTree::Image {
            image: tree.to_owned(),
            layer: None,
        },
    }
}

fn vm(
    spec: &MachineSpec,
    kernel: &KernelChoice,
    volumes: &[ResolvedVolume],
    inputs: &Inputs<'_>,
    has: Disks,
    shares: &[ShareUse],
) -> VmSpec {
    let mut disks = Vec::new();
    if has.has_image {
        let (id, queues) = ("root".to_owned(), root_queues(spec.cpus));
        let socket = inputs.home.run_dir(inputs.id).join("rootfs.sock");
        disks.push(match has.is_saveable {
            false => Disk::VhostUser { id, socket, queues },
            // Whoever serves it has nothing of the guest's memory, which is each copy's own.
            true => Disk::Nbd {
                id,
                socket,
                serial: ROOT_SERIAL.to_owned(),
                queues,
            },
        });
    }
    if has.has_upper {
        disks.push(Disk::File {
            id: "upper".to_owned(),
            path: inputs.home.machine(inputs.id).join("root.img"),
            serial: UPPER_SERIAL.to_owned(),
            read_only: false,
            discard: true,
        });
    }
    disks.extend(volume_disks(volumes));
    let start = Start {
        boot: Boot::Kernel {
            kernel: kernel.vmlinux.clone(),
            initrd: Some(kernel.initramfs.clone()),
            cmdline: zmachine_hypervisor::kernel_cmdline(inputs.accel, spec.cpus),
        },
        disks,
        shares: share::devices(shares, inputs.home, inputs.id),
        platform: Platform::Lean,
        is_saveable: has.is_saveable,
    };
    let mut vm = vm_spec(spec, inputs, start);
    vm.nics.extend(pod_network(spec).map(pod::nics).unwrap_or_default());
    if let Some(pod) = &spec.pod {
        let run = inputs.home.run_dir(inputs.id);
        vm.later_disks = pod::later_disks(pod, &run, root_queues(spec.cpus));
        vm.later_files = pod.files;
    }
    vm
}

fn pod_network(spec: &MachineSpec) -> Option<&PodNetwork> {
    spec.pod.as_ref()?.network.as_ref()
}

fn boot(
    spec: &MachineSpec,
    image: &ImageFacts,
    volumes: &[ResolvedVolume],
    inputs: &Inputs<'_>,
    has: Disks,
) -> Result<BootConfig, PlanError> {
    let hostname = hostname(spec);
    let (nameservers, search) = dns(spec, inputs);
    let network = pod_network(spec);
    let mut hosts = hosts(&inputs.attachments, &hostname);
    let gateway = inputs.attachments.first().map(|a| IpAddr::from(a.gateway4));
    for host in &spec.guest.hosts {
        hosts.push(HostEntry {
            address: host.address.or(gateway).ok_or(PlanError::NoGateway)?,
            names: vec![host.name.clone()],
        });
    }
    let tmpfs = |tmpfs: &spec::guest::Tmpfs| zmachine_agent_protocol::Tmpfs {
        target: tmpfs.target.clone(),
        size_bytes: tmpfs.size_bytes,
        mode: tmpfs.mode.unwrap_or(0o1777),
        read_only: tmpfs.read_only,
        exec: tmpfs.exec,
    };
    Ok(BootConfig {
        protocol: PROTOCOL_VERSION,
        hosts,
        hostname,
        root: Root {
            lower_serial: ROOT_SERIAL.to_owned(),
            lower_fstype: if image.tree.is_none() { "erofs" } else { "virtiofs" }.to_owned(),
            upper: match has.has_upper {
                true => Upper::Disk {
                    serial: UPPER_SERIAL.to_owned(),
                    fstype: "ext4".to_owned(),
                },
                false if pod::is_without_image(spec) => Upper::WithoutImage,
                false => Upper::ReadOnly,
            },
        },
        interfaces: inputs
            .attachments
            .iter()
            .map(interface)
            .chain(network.map(pod::interfaces).unwrap_or_default())
            .collect(),
        routes: [
            routes(&inputs.attachments),
            network.map(|network| network.routes.clone()).unwrap_or_default(),
        ]
        .concat(),
        nameservers,
        search,
        mounts: [
            mounts(volumes, inputs.shares),
            spec.pod.iter().map(pod::mount).collect(),
        ]
        .concat(),
        directories: image.volumes.clone(),
        ssh_keys: ssh_keys(spec),
        first_start: true,
        // One flist block: halves the requests of a cold start against the kernel's own 128 KiB.
        read_ahead_kib: 512,
        // Read at each start, and never written to a file.
        secrets: Vec::new(),
        sockets: spec.sockets.iter().map(|(path, _)| path.clone()).collect(),
        tmpfs: spec.guest.tmpfs.iter().map(tmpfs).collect(),
        shm_bytes: spec.guest.shm_bytes,
        sysctls: spec
            .guest
            .sysctls
            .iter()
            .map(|(name, value)| (name.replace('.', "/"), value.clone()))
            .collect(),
    })
}

#[cfg(test)]
mod tests;
