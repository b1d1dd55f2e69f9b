//! The plan: everything a start needs, decided once from spec, image and host. A pure function; it makes every refusal.
//!
//! `plan.json` is this value. A start executes it; nothing after this module decides anything about the machine.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zmachine_agent_protocol::{BootConfig, HostEntry, Interface, PROTOCOL_VERSION, Process, Root, Route, Upper};
use zmachine_hypervisor::{Accel, Boot, Disk, Nic, VmSpec};
use zmachine_network::{Attachment, HostDns};
use zmachine_sys::host::HostFacts;

use crate::bytes::Human;
use crate::failure::{Class, Failure};
use crate::home::Home;
use crate::spec::{self, MachineSpec};

/// Version of `plan.json`.
pub const PLAN_VERSION: u32 = 1;

/// Smallest guest memory in bytes. Debian's kernel needs 73 MB to reach its init; below this nothing useful runs.
pub const MIN_MEMORY: u64 = 96 << 20;

/// Smallest writable root in bytes that a `--size` may ask for.
const MIN_SIZE: u64 = 16 << 20;

/// virtio serial of the EROFS disk.
pub const ROOT_SERIAL: &str = "zm-root";
/// virtio serial of the writable layer's disk.
pub const UPPER_SERIAL: &str = "zm-upper";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the image says about how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Hex digest of the flist.
    pub digest: String,
    /// Program and arguments of `.startup.toml`.
    pub entrypoint: Option<Vec<String>>,
    /// Environment of `.startup.toml`.
    pub env: Vec<(String, String)>,
    /// Working directory of `.startup.toml`.
    pub workdir: Option<String>,
}

/// The guest kernel that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelChoice {
    /// Its name in the kernel library.
    pub name: String,
    /// The uncompressed ELF image.
    pub vmlinux: PathBuf,
    /// The initramfs with agent and modules.
    pub initramfs: PathBuf,
}

/// What else the planner is told: facts, none of which it looks up itself.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// Twelve hex digits.
    pub id: &'a str,
    /// Where sockets and disks of the machine will be.
    pub home: &'a Home,
    /// The image.
    pub image: &'a ImageFacts,
    /// The host.
    pub host: &'a HostFacts,
    /// The accelerator that fits the host and the request.
    pub accel: Accel,
    /// The guest kernel.
    pub kernel: &'a KernelChoice,
    /// One per network of the spec, in its order.
    pub attachments: Vec<Attachment>,
    /// Name servers and search domains of the host.
    pub host_dns: &'a HostDns,
}

/// Everything a start needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Twelve hex digits.
    pub id: String,
    /// Hex digest of the image.
    pub image: String,
    /// The kernel.
    pub kernel: KernelChoice,
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
    /// Block stores in place of the flist's routes.
    pub stores: Vec<String>,
    /// Linux number of the stop signal.
    pub stop_signal: i32,
    /// Milliseconds between it and SIGKILL.
    pub stop_grace_ms: u64,
    /// Seconds within which the guest must be up.
    pub start_timeout_s: u64,
    /// What the user asked for and does not get in full.
    pub warnings: Vec<String>,
}

/// Why a machine can not be planned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("{cpus} CPUs are more than the {available} of this host")]
    Cpus { cpus: u32, available: u32 },
    #[error("a machine needs at least one CPU")]
    NoCpu,
    #[error("{} of memory are below the {} that a machine needs", Human(*bytes), Human(MIN_MEMORY))]
    MemoryTooSmall { bytes: u64 },
    #[error("{} of memory are more than the {} of this host", Human(*bytes), Human(*available))]
    MemoryTooLarge { bytes: u64, available: u64 },
    #[error("a root of {} is below the {} that a file system needs", Human(*bytes), Human(MIN_SIZE))]
    SizeTooSmall { bytes: u64 },
    #[error("'{key}' can not be the name of an environment variable")]
    EnvName { key: String },
    #[error("the working directory '{dir}' is not an absolute path")]
    WorkdirRelative { dir: String },
    #[error("'{hostname}' can not be a host name")]
    Hostname { hostname: String },
    #[error("'{text}' is not an IP address of a name server")]
    Dns { text: String },
    #[error("{0}")]
    Signal(String),
    #[error("ports are published, but the machine is on no network")]
    PublishWithoutNetwork,
}

impl PlanError {
    fn class(&self) -> Class {
        match self {
            PlanError::Cpus { .. } | PlanError::MemoryTooLarge { .. } => Class::Unsupported,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            PlanError::Cpus { .. } | PlanError::NoCpu => "choose --cpus from 1 to the number of CPUs of this host",
            PlanError::MemoryTooSmall { .. } => "sizes without a unit are bytes; for example --memory 512M",
            PlanError::MemoryTooLarge { .. } => "choose a smaller --memory",
            PlanError::SizeTooSmall { .. } => "sizes without a unit are bytes; for example --size 2G",
            PlanError::EnvName { .. } => "use -e NAME=VALUE, with a name that is not empty",
            PlanError::WorkdirRelative { .. } => "give -w a path that starts with '/'",
            PlanError::Hostname { .. } => "use letters, digits, '-' and '.', at most 64 characters",
            PlanError::Dns { .. } => "for example --dns 9.9.9.9",
            PlanError::Signal(_) => "use a name such as SIGTERM, or a number from 1 to 64",
            PlanError::PublishWithoutNetwork => "leave out -p, or use --network default",
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        Failure::from_error(error.class(), &error).hint(error.hint())
    }
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

impl Plan {
    /// Plans a container.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub fn new(spec: &MachineSpec, inputs: Inputs<'_>) -> Result<Plan, PlanError> {
        Plan::check_request(spec, inputs.host)?;
        let process = process(spec, inputs.image)?;
        let stop_signal = stop_signal(spec)?;
        let upper_bytes = (!spec.read_only).then(|| root_size(spec.cpus, spec.memory_bytes, spec.size_bytes));
        Ok(Plan {
            version: PLAN_VERSION,
            id: inputs.id.to_owned(),
            image: inputs.image.digest.clone(),
            kernel: inputs.kernel.clone(),
            vm: vm(spec, &inputs, upper_bytes.is_some()),
            upper_bytes,
            boot: boot(spec, &inputs, upper_bytes.is_some())?,
            process,
            attachments: inputs.attachments,
            stores: spec.stores.clone(),
            stop_signal,
            stop_grace_ms: spec.stop_timeout_s.saturating_mul(1000),
            start_timeout_s: match inputs.accel {
                Accel::Kvm => 60,
                // An emulated guest on a loaded host was seen to take two minutes.
                Accel::Tcg => 300,
            },
            warnings: warnings(inputs.host),
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

    /// The refusals for which spec and host are enough; made before an image is fetched.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn check_request(spec: &MachineSpec, host: &HostFacts) -> Result<(), PlanError> {
        check_capacity(spec, host)?;
        stop_signal(spec)?;
        check_hostname(&hostname(spec))?;
        if spec.networks.is_empty() && !spec.publish.is_empty() {
            return Err(PlanError::PublishWithoutNetwork);
        }
        Ok(())
    }
}

fn stop_signal(spec: &MachineSpec) -> Result<i32, PlanError> {
    spec::parse_signal(&spec.stop_signal).map_err(|f| PlanError::Signal(f.message))
}

fn hostname(spec: &MachineSpec) -> String {
    spec.hostname.clone().unwrap_or_else(|| spec.name.clone())
}

fn check_hostname(hostname: &str) -> Result<(), PlanError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if hostname.is_empty() || hostname.len() > 64 || !hostname.chars().all(legal) || hostname.starts_with(['-', '.']) {
        return Err(PlanError::Hostname {
            hostname: hostname.to_owned(),
        });
    }
    Ok(())
}

fn warnings(host: &HostFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    if !host.cgroup_v2 {
        warnings.push(
            "this host offers no cgroup v2 cpu and memory controllers: the hypervisor itself runs without limits"
                .to_owned(),
        );
    }
    warnings
}

fn check_capacity(spec: &MachineSpec, host: &HostFacts) -> Result<(), PlanError> {
    if spec.cpus == 0 {
        return Err(PlanError::NoCpu);
    }
    if spec.cpus > host.cpus {
        return Err(PlanError::Cpus {
            cpus: spec.cpus,
            available: host.cpus,
        });
    }
    if spec.memory_bytes < MIN_MEMORY {
        return Err(PlanError::MemoryTooSmall {
            bytes: spec.memory_bytes,
        });
    }
    if spec.memory_bytes > host.memory_total_bytes {
        return Err(PlanError::MemoryTooLarge {
            bytes: spec.memory_bytes,
            available: host.memory_total_bytes,
        });
    }
    if spec.size_bytes != 0 && spec.size_bytes < MIN_SIZE {
        return Err(PlanError::SizeTooSmall { bytes: spec.size_bytes });
    }
    Ok(())
}

fn process(spec: &MachineSpec, image: &ImageFacts) -> Result<Process, PlanError> {
    let mut args = match (&spec.entrypoint, &image.entrypoint) {
        (Some(own), _) => own.clone(),
        // As with docker, a command replaces the arguments; a flist's `.startup.toml` has no such division, so it
        // replaces the whole.
        (None, Some(image)) if spec.command.is_empty() => image.clone(),
        (None, _) => Vec::new(),
    };
    args.extend(spec.command.iter().cloned());
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
    let program = args[0].rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Process {
        args,
        env: environment(spec, image)?,
        cwd,
        user: spec.user.clone(),
        terminal: spec
            .terminal
            .then_some(zmachine_agent_protocol::WindowSize { rows: 24, columns: 80 }),
        stdin: spec.stdin,
        // The names at which podman, too, takes a container's program for an init system.
        pid_namespace: matches!(program.as_str(), "init" | "systemd"),
    })
}

fn environment(spec: &MachineSpec, image: &ImageFacts) -> Result<Vec<(String, String)>, PlanError> {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    if spec.terminal {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for (key, value) in image.env.iter().chain(&spec.env) {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(PlanError::EnvName { key: key.clone() });
        }
        match env.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1.clone_from(value),
            None => env.push((key.clone(), value.clone())),
        }
    }
    Ok(env)
}

fn vm(spec: &MachineSpec, inputs: &Inputs<'_>, writable: bool) -> VmSpec {
    let mut disks = vec![Disk::VhostUser {
        id: "root".to_owned(),
        socket: inputs.home.run_dir(inputs.id).join("rootfs.sock"),
        queues: 1,
    }];
    if writable {
        disks.push(Disk::File {
            id: "upper".to_owned(),
            path: inputs.home.machine(inputs.id).join("root.img"),
            serial: UPPER_SERIAL.to_owned(),
            read_only: false,
            discard: true,
        });
    }
    let nic = |a: &Attachment| Nic {
        id: a.interface.clone(),
        mac: a.mac.to_string(),
        mtu: Some(a.mtu),
    };
    VmSpec {
        name: spec.name.clone(),
        uuid: uuid(inputs.id),
        cpus: spec.cpus,
        // Hypervisors count in MiB; nobody gets less than asked for.
        memory_bytes: spec.memory_bytes.next_multiple_of(1 << 20),
        accel: inputs.accel,
        boot: Boot::Kernel {
            kernel: inputs.kernel.vmlinux.clone(),
            initrd: Some(inputs.kernel.initramfs.clone()),
            cmdline: zmachine_hypervisor::kernel_cmdline(inputs.accel, spec.cpus),
        },
        disks,
        nics: inputs.attachments.iter().map(nic).collect(),
        agent: true,
    }
}

/// A UUID (version 8, all ours) that starts with the machine's id.
fn uuid(id: &str) -> String {
    format!("{}-{}-8000-8000-000000000000", &id[..8], &id[8..12])
}

fn boot(spec: &MachineSpec, inputs: &Inputs<'_>, writable: bool) -> Result<BootConfig, PlanError> {
    let hostname = hostname(spec);
    let (nameservers, search) = dns(spec, inputs)?;
    let first_address = inputs
        .attachments
        .iter()
        .flat_map(|a| &a.addresses)
        .map(|cidr| cidr.addr())
        .next();
    let hosts = first_address.map(|address| HostEntry {
        address,
        names: vec![hostname.clone()],
    });
    Ok(BootConfig {
        protocol: PROTOCOL_VERSION,
        hostname,
        root: Root {
            lower_serial: ROOT_SERIAL.to_owned(),
            upper: match writable {
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
        hosts: hosts.into_iter().collect(),
        mounts: Vec::new(),
        ssh_keys: ssh_keys(&spec.env),
        first_start: true,
        // One flist block: halves the requests of a cold start against the kernel's own 128 KiB.
        read_ahead_kib: 512,
    })
}

fn interface(attachment: &Attachment) -> Interface {
    Interface {
        name: attachment.interface.clone(),
        mac: attachment.mac.to_string(),
        addresses: attachment.addresses.iter().map(ToString::to_string).collect(),
        mtu: Some(attachment.mtu),
    }
}

fn routes(attachments: &[Attachment]) -> Vec<Route> {
    let route = |a: &Attachment, r: &zmachine_network::Route| Route {
        destination: r.destination.to_string(),
        gateway: Some(r.gateway),
        interface: a.interface.clone(),
    };
    attachments
        .iter()
        .flat_map(|a| a.routes.iter().map(move |r| route(a, r)))
        .collect()
}

fn dns(spec: &MachineSpec, inputs: &Inputs<'_>) -> Result<(Vec<IpAddr>, Vec<String>), PlanError> {
    if spec.dns.is_empty() {
        return Ok(match inputs.attachments.is_empty() {
            true => Default::default(),
            false => (inputs.host_dns.nameservers.clone(), inputs.host_dns.search.clone()),
        });
    }
    let parse = |text: &String| text.parse().map_err(|_| PlanError::Dns { text: text.clone() });
    Ok((spec.dns.iter().map(parse).collect::<Result<_, _>>()?, Vec::new()))
}

/// The keys of `SSH_KEY`: separated by newlines or commas, blanks dropped, each once.
fn ssh_keys(env: &[(String, String)]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (_, value) in env.iter().filter(|(key, _)| key == "SSH_KEY") {
        for key in value.split(['\n', ',']).map(str::trim).filter(|key| !key.is_empty()) {
            if !keys.iter().any(|k| k == key) {
                keys.push(key.to_owned());
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn plan_of(spec: &MachineSpec, image: &ImageFacts) -> Result<Plan, PlanError> {
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
            image,
            host: &host(),
            accel: Accel::Tcg,
            kernel: &kernel,
            attachments: vec![],
            host_dns: &HostDns {
                nameservers: vec![],
                search: vec![],
            },
        };
        Plan::new(spec, inputs)
    }

    fn plan(change: impl FnOnce(&mut MachineSpec)) -> Result<Plan, PlanError> {
        let mut spec = MachineSpec::new("web", "/x.fl");
        spec.networks.clear();
        change(&mut spec);
        plan_of(&spec, &ImageFacts::default())
    }

    fn image() -> ImageFacts {
        ImageFacts {
            digest: "d".into(),
            entrypoint: Some(vec!["/bin/server".into(), "-v".into()]),
            env: vec![("LANG".into(), "C".into()), ("MODE".into(), "image".into())],
            workdir: Some("/srv".into()),
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
    }

    #[test]
    fn without_any_entrypoint_an_init_runs_in_its_own_pid_namespace() {
        let process = plan(|_| ()).unwrap().process;
        assert_eq!(
            (process.args, process.pid_namespace),
            (vec!["/sbin/init".to_owned()], true)
        );
        assert!(
            !plan(|spec| spec.command = vec!["/bin/initdb".into()])
                .unwrap()
                .process
                .pid_namespace
        );
    }

    #[test]
    fn what_this_host_or_nobody_can_give_is_refused() {
        type Change = fn(&mut MachineSpec);
        let cases: [(Change, Class); 9] = [
            (|s| s.cpus = 0, Class::Usage),
            (|s| s.cpus = 5, Class::Unsupported),
            (|s| s.memory_bytes = 1, Class::Usage),
            (|s| s.memory_bytes = 9 << 30, Class::Unsupported),
            (|s| s.size_bytes = 4096, Class::Usage),
            (|s| s.hostname = Some("a b".into()), Class::Usage),
            (|s| s.workdir = Some("relative".into()), Class::Usage),
            (|s| s.stop_signal = "SIGNOPE".into(), Class::Usage),
            (|s| s.publish = vec!["80:80".into()], Class::Usage),
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
        let env = vec![("SSH_KEY".to_owned(), "a k1\n\n b k2 ,a k1".to_owned())];
        assert_eq!(ssh_keys(&env), ["a k1", "b k2"]);
    }

    #[test]
    fn a_plan_survives_its_file() {
        let plan = plan(|s| s.env.push(("A".into(), "ü\n".into()))).unwrap();
        assert_eq!(
            serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(),
            plan
        );
    }
}
