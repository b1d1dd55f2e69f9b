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
use zmachine_spec::{MachineSpec, Setting, Signal, User};

use super::common::{
    ImageFacts, Inputs, KernelChoice, PLAN_VERSION, ROOT_TAG, VolumeUse, arguments, dns, grace_ms, hostname, interface,
    merged_env, mounts, nics, routes, ssh_keys, start_timeout_s, uuid, volume_disk, warnings,
};
use super::error::PlanError;
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
    /// What runs in it.
    pub process: Process,
    /// Its networks.
    pub attachments: Vec<Attachment>,
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
    /// What the user asked for and does not get in full.
    pub warnings: Vec<String>,
}

/// Queues of the image's disk: one per virtual CPU, so none waits for another one's block; more than 4 gain nothing.
fn root_queues(cpus: u32) -> u16 {
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
        let process = process(spec, image)?;
        let stop_signal = stop_signal(spec, image)?;
        let mut shares = share::directories(&inputs)?;
        if let Some(tree) = &image.tree {
            share::require_server(&inputs)?;
            shares.insert(0, root_share(tree));
        }
        let upper_bytes = (!spec.read_only).then(|| root_size(spec.cpus, spec.memory_bytes, spec.size_bytes));
        let disks = Disks {
            has_image: image.tree.is_none(),
            has_upper: upper_bytes.is_some(),
        };
        Ok(ContainerPlan {
            version: PLAN_VERSION,
            id: inputs.id.to_owned(),
            image: image.digest.clone(),
            kernel: kernel.clone(),
            hypervisor: inputs.hypervisor.clone(),
            vm: VmSpec {
                shares: share::devices(&shares, inputs.home, inputs.id),
                ..vm(spec, kernel, volumes, &inputs, disks)
            },
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
            warnings: warnings(inputs.host),
        })
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
            Disk::VhostUser { queues, .. } => Some(*queues),
            _ => None,
        })
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
    match used.into_iter().find(|(_, is_used)| *is_used) {
        Some((setting, _)) => Err(PlanError::OnlyForVms { setting }),
        None => Ok(()),
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
    let mut args = arguments(spec, image);
    if args.is_empty() && spec.entrypoint.is_some() {
        return Err(PlanError::NothingToRun);
    }
    if args.is_empty() {
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
) -> VmSpec {
    let mut disks = Vec::new();
    if has.has_image {
        disks.push(Disk::VhostUser {
            id: "root".to_owned(),
            socket: inputs.home.run_dir(inputs.id).join("rootfs.sock"),
            queues: root_queues(spec.cpus),
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
    disks.extend(volumes.iter().enumerate().map(|(index, volume)| Disk::File {
        id: volume_disk(index),
        path: volume.path.clone(),
        serial: volume.serial.clone(),
        read_only: volume.read_only,
        discard: !volume.read_only,
    }));
    VmSpec {
        name: spec.name.clone(),
        uuid: uuid(inputs.id),
        cpus: spec.cpus,
        // Hypervisors count in MiB; nobody gets less than asked for.
        memory_bytes: spec.memory_bytes.next_multiple_of(1 << 20),
        accel: inputs.accel,
        boot: Boot::Kernel {
            kernel: kernel.vmlinux.clone(),
            initrd: Some(kernel.initramfs.clone()),
            cmdline: zmachine_hypervisor::kernel_cmdline(inputs.accel, spec.cpus),
        },
        disks,
        shares: Vec::new(),
        nics: nics(&inputs.attachments),
        agent: true,
        platform: Platform::Lean,
    }
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
    let first_address = inputs
        .attachments
        .iter()
        .flat_map(|a| &a.addresses)
        .map(|cidr| cidr.addr())
        .next();
    let own = first_address.map(|address| HostEntry {
        address,
        names: vec![hostname.clone()],
    });
    let gateway = inputs.attachments.iter().next().map(|a| IpAddr::from(a.gateway4));
    let mut hosts: Vec<HostEntry> = own.into_iter().collect();
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
        hostname,
        root: Root {
            lower_serial: ROOT_SERIAL.to_owned(),
            lower_fstype: if has.has_image { "erofs" } else { "virtiofs" }.to_owned(),
            upper: match has.has_upper {
                true => Upper::Disk {
                    serial: UPPER_SERIAL.to_owned(),
                    fstype: "ext4".to_owned(),
                },
                false => Upper::ReadOnly,
            },
        },
        interfaces: inputs.attachments.iter().map(interface).collect(),
        routes: routes(&inputs.attachments),
        nameservers,
        search,
        hosts,
        mounts: mounts(volumes, inputs.shares),
        directories: image.volumes.clone(),
        ssh_keys: ssh_keys(spec),
        first_start: true,
        // One flist block: halves the requests of a cold start against the kernel's own 128 KiB.
        read_ahead_kib: 512,
        // Read at each start, and never written to a file.
        secrets: Vec::new(),
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
mod tests {
    use zmachine_hypervisor::Accel;
    use zmachine_network::HostDns;
    use zmachine_sys::host::HostFacts;

    use super::super::{Content, Plan};
    use super::*;
    use zmachine_agent_protocol::Mount;
    use zmachine_spec::Home;
    use zmachine_spec::volume::SharedDirectory;
    use zmachine_spec::{Class, Failure};

    fn host() -> HostFacts {
        HostFacts {
            cpus: 4,
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 4 << 30,
            boot_id: "boot".into(),
            kernel: "6.1".into(),
            is_root: true,
            cgroup_v2: true,
        }
    }

    fn plan_of(spec: &MachineSpec, image: &ImageFacts) -> Result<ContainerPlan, PlanError> {
        plan_with(spec, image, &[])
    }

    fn plan_with(
        spec: &MachineSpec,
        image: &ImageFacts,
        shares: &[SharedDirectory],
    ) -> Result<ContainerPlan, PlanError> {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), &dir.path().join("run")).unwrap();
        let kernel = KernelChoice {
            name: "k".into(),
            vmlinux: "/k/vmlinux".into(),
            initramfs: "/k/initramfs".into(),
        };
        let inputs = Inputs {
            id: "0123456789ab",
            home: &home,
            host: &host(),
            accel: Accel::Tcg,
            hypervisor: Choice::default(),
            cloud_firmware: None,
            attachments: vec![],
            host_dns: &HostDns {
                nameservers: vec![],
                search: vec![],
            },
            shares,
            has_share_server: true,
        };
        let content = Content::Container {
            image,
            kernel: &kernel,
            volumes: &[],
        };
        match Plan::new(spec, content, inputs)? {
            Plan::Container(plan) => Ok(*plan),
            Plan::Vm(_) => panic!("a VM"),
        }
    }

    fn plan(change: impl FnOnce(&mut MachineSpec)) -> Result<ContainerPlan, PlanError> {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        change(&mut spec);
        plan_of(&spec, &ImageFacts::default())
    }

    fn image() -> ImageFacts {
        ImageFacts {
            digest: "d".into(),
            command: vec!["/bin/server".into(), "-v".into()],
            env: vec![("LANG".into(), "C".into()), ("MODE".into(), "image".into())],
            workdir: Some("/srv".into()),
            ..ImageFacts::default()
        }
    }

    #[test]
    fn the_root_is_sized_by_the_rule_of_zero_os() {
        assert_eq!(root_size(1, 512 << 20, 0), 500 << 20);
        assert_eq!(root_size(4, 2 << 30, 0), 2 << 30);
        assert_eq!(root_size(1, 512 << 20, 10 << 30), 10 << 30);
        assert_eq!(
            root_size(1, 512 << 20, 100 << 20),
            500 << 20,
            "a smaller wish gives the minimum"
        );
    }

    #[test]
    fn the_images_entrypoint_environment_and_directory_are_used() {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        spec.env.push(("MODE".into(), "mine".into()));
        let process = plan_of(&spec, &image()).unwrap().process;
        assert_eq!(process.args, ["/bin/server", "-v"]);
        assert_eq!(process.cwd.as_deref(), Some("/srv"));
        let get = |key: &str| process.env.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(
            (get("LANG"), get("MODE"), get("PATH")),
            (Some("C"), Some("mine"), Some(DEFAULT_PATH))
        );
    }

    #[test]
    fn a_command_replaces_the_images_and_follows_a_given_entrypoint() {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        spec.command = vec!["ls".into(), "/".into()];
        assert_eq!(plan_of(&spec, &image()).unwrap().process.args, ["ls", "/"]);
        spec.entrypoint = Some(vec!["env".into(), "-i".into()]);
        assert_eq!(plan_of(&spec, &image()).unwrap().process.args, ["env", "-i", "ls", "/"]);
        let image = ImageFacts {
            entrypoint: vec!["/entry".into()],
            ..image()
        };
        spec.entrypoint = Some(Vec::new());
        assert_eq!(plan_of(&spec, &image).unwrap().process.args, ["ls", "/"]);
        spec.command.clear();
        assert_eq!(plan_of(&spec, &image).unwrap_err(), PlanError::NothingToRun);
    }

    #[test]
    fn what_an_oci_image_says_is_followed_as_docker_does() {
        let image = ImageFacts {
            entrypoint: vec!["/entry".into()],
            command: vec!["serve".into()],
            user: Some("web:www".into()),
            stop_signal: Some("SIGINT".into()),
            ..image()
        };
        let planned = |change: fn(&mut MachineSpec)| {
            let mut spec = MachineSpec::new("web", "/x.fl");
            spec.networks.clear();
            change(&mut spec);
            plan_of(&spec, &image).unwrap()
        };
        let plan = planned(|_| ());
        assert_eq!(plan.process.args, ["/entry", "serve"]);
        assert_eq!((plan.process.user.as_deref(), plan.stop_signal), (Some("web:www"), 2));
        assert_eq!(planned(|s| s.command = vec!["x".into()]).process.args, ["/entry", "x"]);
        assert_eq!(planned(|s| s.entrypoint = Some(vec!["e".into()])).process.args, ["e"]);
        let mine = planned(|s| (s.user, s.stop_signal) = (Some(User::parse("0")), Some(Signal::TERM)));
        assert_eq!((mine.process.user.as_deref(), mine.stop_signal), (Some("0"), 15));
    }

    #[test]
    fn without_any_entrypoint_the_images_init_runs_and_ours_only_when_asked_for() {
        let process = plan(|_| ()).unwrap().process;
        assert_eq!((process.args, process.init), (vec!["/sbin/init".to_owned()], false));
        assert!(plan(|spec| spec.init = true).unwrap().process.init);
    }

    #[test]
    fn the_images_volumes_are_directories_that_the_container_finds() {
        let image = ImageFacts {
            volumes: vec!["/data".into()],
            ..image()
        };
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        assert_eq!(plan_of(&spec, &image).unwrap().boot.directories, ["/data"]);
    }

    #[test]
    fn what_this_host_or_nobody_can_give_is_refused() {
        type Change = fn(&mut MachineSpec);
        let cases: [(Change, Class); 10] = [
            (|s| s.user_data = Some("x".into()), Class::Usage),
            (|s| s.reinstall = true, Class::Usage),
            (|s| s.cpus = 0, Class::Usage),
            (|s| s.cpus = 5, Class::Unsupported),
            (|s| s.memory_bytes = 1, Class::Usage),
            (|s| s.memory_bytes = 9 << 30, Class::Unsupported),
            (|s| s.size_bytes = 4096, Class::Usage),
            (|s| s.hostname = Some("a b".into()), Class::Usage),
            (|s| s.workdir = Some("relative".into()), Class::Usage),
            (|s| s.publish = vec!["80:80".parse().unwrap()], Class::Usage),
        ];
        for (index, (change, class)) in cases.into_iter().enumerate() {
            let failure = Failure::from(plan(change).unwrap_err());
            assert_eq!(failure.class, class, "case {index}");
            assert!(failure.hint.is_some(), "case {index}");
        }
    }

    #[test]
    fn memory_is_rounded_up_to_what_a_hypervisor_counts_in() {
        assert_eq!(
            plan(|s| s.memory_bytes = (200 << 20) + 1).unwrap().vm.memory_bytes,
            201 << 20
        );
    }

    #[test]
    fn a_read_only_machine_has_no_writable_disk() {
        let plan = plan(|s| s.read_only = true).unwrap();
        assert_eq!(
            (plan.upper_bytes, plan.boot.root.upper, plan.vm.disks.len()),
            (None, Upper::ReadOnly, 1)
        );
    }

    #[test]
    fn a_volume_for_containers_brings_what_containers_need() {
        let drivers = |target: &str| {
            let mut plan = plan(|_| ()).unwrap();
            plan.boot.mounts.push(Mount {
                serial: "v".to_owned(),
                fstype: "ext4".to_owned(),
                target: target.to_owned(),
                read_only: false,
                populate: false,
            });
            plan.fs_drivers()
        };
        assert_eq!(drivers("/var/lib/docker"), [FsDriver::Nested]);
        assert_eq!(drivers("/var/lib/containers/storage"), [FsDriver::Nested]);
        assert_eq!(drivers("/var/lib/docker-registry"), []);
    }

    #[test]
    fn the_images_disk_has_a_queue_per_cpu_up_to_four() {
        let queues = |cpus| plan(|s| s.cpus = cpus).unwrap().image_queues();
        assert_eq!([1, 2, 4].map(queues), [Some(1), Some(2), Some(4)]);
        assert_eq!((root_queues(0), root_queues(64)), (1, 4));
    }

    #[test]
    fn another_kernel_is_booted_once_it_is_chosen() {
        let mut plan = plan(|_| ()).unwrap();
        let kernel = KernelChoice {
            name: "k".into(),
            vmlinux: "/k/vmlinux".into(),
            initramfs: "/k/newer".into(),
        };
        plan.use_kernel(kernel.clone());
        assert_eq!(plan.kernel, kernel);
        assert!(matches!(plan.vm.boot, Boot::Kernel { initrd: Some(path), .. } if path == kernel.initramfs));
    }

    #[test]
    fn ssh_keys_are_split_and_each_is_kept_once() {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.env = vec![("SSH_KEY".to_owned(), "a k1\n\n b k2 ,a k1".to_owned())];
        spec.ssh_keys = vec!["c k3\nb k2".to_owned()];
        assert_eq!(ssh_keys(&spec), ["a k1", "b k2", "c k3"]);
    }

    #[test]
    fn shared_directories_are_devices_and_mounts_and_bring_their_driver() {
        let shared = |path: &str, target: &str, read_only| SharedDirectory {
            path: path.into(),
            target: target.into(),
            read_only,
        };
        let shares = [shared("/srv/a", "/data/inner", true), shared("/srv/b", "/data", false)];
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        let plan = plan_with(&spec, &ImageFacts::default(), &shares).unwrap();
        let mounts: Vec<_> = plan
            .boot
            .mounts
            .iter()
            .map(|m| (m.serial.as_str(), m.target.as_str(), m.read_only))
            .collect();
        assert_eq!(mounts, [("share1", "/data", false), ("share0", "/data/inner", true)]);
        assert_eq!(plan.vm.shares[0].tag, "share0");
        assert!(plan.vm.shares[0].socket.ends_with("fs0.sock"));
        assert!(matches!(
            &plan.shares[0].tree,
            crate::SharedTree::Directory { read_only: true, .. }
        ));
        assert!(plan.fs_drivers().contains(&FsDriver::Virtiofs));
    }

    #[test]
    fn an_unpacked_image_is_a_read_only_share_below_the_writable_disk() {
        let image = ImageFacts {
            tree: Some("/i/tree/root".into()),
            ..ImageFacts::default()
        };
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        let plan = plan_of(&spec, &image).unwrap();
        assert!(plan.image_queues().is_none());
        assert_eq!(plan.vm.disks.iter().map(Disk::id).collect::<Vec<_>>(), ["upper"]);
        assert_eq!(plan.boot.root.lower_fstype, "virtiofs");
        assert_eq!(
            (plan.vm.shares[0].tag.as_str(), plan.boot.mounts.len()),
            (ROOT_SERIAL, 0)
        );
        assert!(matches!(&plan.shares[0].tree, SharedTree::Image { layer: None, .. }));
        assert!(plan.fs_drivers().contains(&FsDriver::Virtiofs));
    }

    #[test]
    fn a_plan_survives_its_file() {
        let plan = Plan::Container(Box::new(plan(|s| s.env.push(("A".into(), "ü\n".into()))).unwrap()));
        assert_eq!(
            serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(),
            plan
        );
    }

    #[test]
    fn a_plan_written_by_the_first_version_is_read() {
        let Plan::Container(plan) = serde_json::from_str(include_str!("../tests/golden/plan-v1.json")).unwrap() else {
            panic!("not a container");
        };
        assert_eq!((plan.id.as_str(), plan.upper_bytes), ("5c28ffaff6fe", Some(500 << 20)));
        let again = serde_json::to_value(&plan).unwrap();
        let golden: serde_json::Value = serde_json::from_str(include_str!("../tests/golden/plan-v1.json")).unwrap();
        assert_eq!(again, golden);
    }
}
