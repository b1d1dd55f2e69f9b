//! What the plans of all kinds of machines have in common: what they are made from, and the parts that look the same in each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{HostEntry, Interface, Mount, Route};
use zmachine_hypervisor::choice::{Choice, Hypervisor};
use zmachine_hypervisor::firmware::Pinned;
use zmachine_hypervisor::{Accel, Boot, Disk, Nic, NicKind, Platform, Share, VmSpec};
use zmachine_network::{Attachment, HostDns};
use zmachine_spec::volume::{ResolvedVolume, SharedDirectory};
use zmachine_spec::{CpuSet, HealthCheck, HealthRequest, Home, JailChoice, MachineSpec, Setting};
use zmachine_sys::host::HostFacts;

use super::error::PlanError;

/// Version of `plan.json`.
pub const PLAN_VERSION: u32 = 1;

/// Smallest guest memory in bytes. Debian's kernel needs 73 MB to reach its init; below this nothing useful runs.
pub const MIN_MEMORY: u64 = 96 << 20;

/// Smallest writable root in bytes that a `--size` may ask for.
pub(super) const MIN_SIZE: u64 = 16 << 20;

/// The name by which such a kernel, or its initrd, mounts its root. Zero-OS's.
pub const ROOT_TAG: &str = "vroot";

/// What the image says about how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Hex digest of the flist.
    pub digest: String,
    /// The program and its first arguments, before a command of the user too (`ENTRYPOINT` of OCI).
    pub entrypoint: Vec<String>,
    /// What a command of the user replaces: `CMD` of OCI, the whole of `.startup.toml`.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub workdir: Option<String>,
    /// Whom its program runs as: `USER[:GROUP]`.
    pub user: Option<String>,
    /// The signal that asks its program to end.
    pub stop_signal: Option<String>,
    /// Ports its program listens on, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Where its programs keep their data.
    pub volumes: Vec<String>,
    /// What it is called by who made it.
    pub labels: BTreeMap<String, String>,
    /// How it tells whether its program does its work.
    pub health: HealthRequest,
    /// Its shell for lines, with arguments; `/bin/sh -c` when empty.
    pub shell: Vec<String>,
    /// The unpacked image, when that is to be the root.
    pub tree: Option<PathBuf>,
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
    /// The host.
    pub host: &'a HostFacts,
    /// The accelerator that fits the host and the request.
    pub accel: Accel,
    /// The hypervisor that fits the host, the request and the machine.
    pub hypervisor: Choice,
    /// The firmware that Cloud Hypervisor starts disks with, when one is configured.
    pub cloud_firmware: Option<Pinned>,
    /// One per network of the spec, in its order.
    pub attachments: Vec<Attachment>,
    /// Search domains of the host; its name servers are asked by those of the networks.
    pub host_dns: &'a HostDns,
    /// Directories of the host that it uses.
    pub shares: &'a [SharedDirectory],
    /// The host has a program that serves trees to guests.
    pub has_share_server: bool,
}

pub(super) fn hostname(spec: &MachineSpec) -> String {
    spec.hostname.clone().unwrap_or_else(|| spec.name.clone())
}

pub(super) fn check_hostname(hostname: &str) -> Result<(), PlanError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if hostname.is_empty() || hostname.len() > 64 || !hostname.chars().all(legal) || hostname.starts_with(['-', '.']) {
        return Err(PlanError::Hostname {
            hostname: hostname.to_owned(),
        });
    }
    Ok(())
}

pub(super) fn warnings(host: &HostFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    if !host.cgroup_v2 {
        warnings.push(
            "this host offers no cgroup v2 cpu and memory controllers: the hypervisor itself runs without limits"
                .to_owned(),
        );
    }
    warnings
}

pub(super) fn check_capacity(spec: &MachineSpec, host: &HostFacts) -> Result<(), PlanError> {
    if spec.cpus == 0 {
        return Err(PlanError::NoCpu);
    }
    if spec.cpus > host.cpus {
        return Err(PlanError::Cpus {
            cpus: spec.cpus,
            available: host.cpus,
        });
    }
    let missing = spec.cpuset.numbers().find(|cpu| !host.cpu_numbers.contains(cpu));
    if let Some(cpu) = missing {
        return Err(PlanError::NoSuchCpu {
            cpu,
            there: host.cpu_numbers.iter().copied().collect::<CpuSet>().to_string(),
        });
    }
    if spec.memory_bytes < MIN_MEMORY {
        return Err(PlanError::MemoryTooSmall {
            bytes: spec.memory_bytes,
            least: MIN_MEMORY,
        });
    }
    if spec.memory_bytes > host.memory_total_bytes {
        return Err(PlanError::MemoryTooLarge {
            bytes: spec.memory_bytes,
            available: host.memory_total_bytes,
        });
    }
    if spec.size_bytes != 0 && spec.size_bytes < MIN_SIZE {
        return Err(PlanError::SizeTooSmall {
            bytes: spec.size_bytes,
            least: MIN_SIZE,
        });
    }
    Ok(())
}

/// A UUID (version 8, all ours) that starts with the machine's id.
pub(super) fn uuid(id: &str) -> String {
    format!("{}-{}-8000-8000-000000000000", &id[..8], &id[8..12])
}

/// What the guest's agent is told of an interface.
pub fn interface(attachment: &Attachment) -> Interface {
    Interface {
        name: attachment.interface.clone(),
        mac: attachment.mac.to_string(),
        addresses: attachment.addresses.iter().map(ToString::to_string).collect(),
        mtu: Some(attachment.mtu),
    }
}

/// The routes of all networks of a machine.
pub fn routes(attachments: &[Attachment]) -> Vec<Route> {
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

pub(super) fn dns(spec: &MachineSpec, inputs: &Inputs<'_>) -> (Vec<IpAddr>, Vec<String>) {
    let chosen = &spec.guest.dns_search;
    // docker's way to say that there are none.
    let search = |or: &[String]| match chosen.as_slice() {
        [] => or.to_vec(),
        [none] if none == "." => Vec::new(),
        chosen => chosen.to_vec(),
    };
    if spec.dns.is_empty() {
        return match inputs.attachments.is_empty() {
            true => Default::default(),
            false => (resolvers(&inputs.attachments), search(&inputs.host_dns.search)),
        };
    }
    (spec.dns.clone(), search(&[]))
}

/// The name servers of all networks of a machine: each knows its own machines. More than three are asked by no resolver.
pub fn resolvers(attachments: &[Attachment]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for server in attachments.iter().flat_map(|a| &a.nameservers) {
        if !all.contains(server) && all.len() < 3 {
            all.push(*server);
        }
    }
    all
}

/// The keys of `SSH_KEY`, separated by newlines or commas, and those asked for; blanks dropped, each once.
pub(super) fn ssh_keys(spec: &MachineSpec) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let of_env = spec
        .env
        .iter()
        .filter(|(key, _)| key == "SSH_KEY")
        .map(|(_, value)| value);
    for value in of_env.chain(&spec.ssh_keys) {
        for key in value.split(['\n', ',']).map(str::trim).filter(|key| !key.is_empty()) {
            if !keys.iter().any(|k| k == key) {
                keys.push(key.to_owned());
            }
        }
    }
    keys
}

pub(super) fn nics(attachments: &[Attachment]) -> Vec<Nic> {
    let nic = |a: &Attachment| Nic {
        id: a.interface.clone(),
        mac: a.mac.to_string(),
        mtu: Some(a.mtu),
        kind: match a.user {
            Some(_) => NicKind::Stream,
            None => NicKind::Tap,
        },
    };
    attachments.iter().map(nic).collect()
}

/// Milliseconds between the request to stop and the end by force.
pub(super) fn grace_ms(spec: &MachineSpec, default_s: u64) -> u64 {
    spec.stop_timeout_s.unwrap_or(default_s).saturating_mul(1000)
}

/// Seconds within which a guest must be up.
pub(super) fn start_timeout_s(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => 60,
        // An emulated guest on a loaded host was seen to take two minutes.
        Accel::Tcg => 300,
    }
}

/// `added` over `env`, later entries of a name in the place of the first.
pub(super) fn merged_env<'a>(
    mut env: Vec<(String, String)>,
    added: impl IntoIterator<Item = &'a (String, String)>,
) -> Result<Vec<(String, String)>, PlanError> {
    for (key, value) in added {
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

/// A volume of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Its name.
    pub name: String,
    /// The guest can only read it.
    pub read_only: bool,
}

impl VolumeUse {
    pub(super) fn of(volume: &ResolvedVolume) -> VolumeUse {
        VolumeUse {
            name: volume.name.clone(),
            read_only: volume.read_only,
        }
    }
}

/// How the ids of volumes' disks begin.
pub(super) const VOLUME_DISK: &str = "volume";

/// Id of the disk of a machine's volume number `index`, counted from 0.
pub fn volume_disk(index: usize) -> String {
    format!("{VOLUME_DISK}{index}")
}

/// The health check that is run, and what is to be said about what is not.
pub(super) fn health(spec: &MachineSpec, image: &ImageFacts) -> (Option<HealthCheck>, Vec<String>) {
    let request = spec.health.over(&image.health);
    let lacks = (request.test.is_none() && !spec.health.is_default()).then(|| {
        "the times of a health check change nothing: neither its user nor its image says what to run".to_owned()
    });
    (request.check(&image.shell), lacks.into_iter().collect())
}

/// Program and arguments as docker puts them together: an own entrypoint puts aside the image's command too. Empty when
/// neither the user nor the image names a program.
pub(super) fn arguments(spec: &MachineSpec, image: &ImageFacts) -> Vec<String> {
    let (entrypoint, command) = match &spec.entrypoint {
        Some(own) => (own, &[][..]),
        None => (&image.entrypoint, image.command.as_slice()),
    };
    let command = match spec.command.as_slice() {
        [] => command,
        own => own,
    };
    [entrypoint, command].concat()
}

/// The disks of `volumes`, in their order.
pub(super) fn volume_disks(volumes: &[ResolvedVolume]) -> Vec<Disk> {
    let disk = |(index, volume): (usize, &ResolvedVolume)| Disk::File {
        id: volume_disk(index),
        path: volume.path.clone(),
        serial: volume.serial.clone(),
        read_only: volume.read_only,
        discard: !volume.read_only,
    };
    volumes.iter().enumerate().map(disk).collect()
}

/// What of a virtual machine depends on how it starts.
pub(super) struct Start {
    pub(super) boot: Boot,
    pub(super) disks: Vec<Disk>,
    pub(super) shares: Vec<Share>,
    pub(super) platform: Platform,
    pub(super) is_saveable: bool,
}

/// What of any machine keeps it from being saved while it runs.
pub(super) fn not_saveable(spec: &MachineSpec, inputs: &Inputs<'_>) -> Option<&'static str> {
    let has = [
        ("only an ordinary user's rights", !inputs.host.is_root),
        (
            "root without the capabilities SYS_ADMIN, SETUID, SETGID and CHOWN",
            inputs.host.is_root && !inputs.host.may_change_user && spec.jail == JailChoice::Auto,
        ),
        ("a directory of this host", !inputs.shares.is_empty()),
        (
            "Cloud Hypervisor",
            inputs.hypervisor.driver == Hypervisor::CloudHypervisor,
        ),
    ];
    has.into_iter().find(|(_, has)| *has).map(|(what, _)| what)
}

/// The virtual machine of a plan.
pub(super) fn vm_spec(spec: &MachineSpec, inputs: &Inputs<'_>, start: Start) -> VmSpec {
    VmSpec {
        name: spec.name.clone(),
        uuid: uuid(inputs.id),
        cpus: spec.cpus,
        // Hypervisors count in MiB; nobody gets less than asked for.
        memory_bytes: spec.memory_bytes.next_multiple_of(1 << 20),
        accel: inputs.accel,
        boot: start.boot,
        disks: start.disks,
        shares: start.shares,
        nics: nics(&inputs.attachments),
        agent: true,
        platform: start.platform,
        is_saveable: start.is_saveable,
        later_disks: Vec::new(),
        later_files: 0,
    }
}

/// The machine's own name, for its first address.
pub(super) fn hosts(attachments: &[Attachment], hostname: &str) -> Vec<HostEntry> {
    let mut addresses = attachments.iter().flat_map(|a| &a.addresses).map(|net| net.addr());
    let own = |address| HostEntry {
        address,
        names: vec![hostname.to_owned()],
    };
    addresses.next().map(own).into_iter().collect()
}

/// The first of these settings that is used.
pub(super) fn first_used<const N: usize>(settings: [(Setting, bool); N]) -> Option<Setting> {
    let used = settings.into_iter().find(|(_, is_used)| *is_used);
    used.map(|(setting, _)| setting)
}

/// Tag of the shared directory number `index` of a machine, counted from 0.
pub fn share_tag(index: usize) -> String {
    format!("share{index}")
}

/// All that is mounted after the root; what is mounted inside of another one comes after it.
pub(super) fn mounts(volumes: &[ResolvedVolume], shares: &[SharedDirectory]) -> Vec<Mount> {
    let volume = |volume: &ResolvedVolume| Mount {
        serial: volume.serial.clone(),
        fstype: volume.fs.name().to_owned(),
        target: volume.target.clone(),
        read_only: volume.read_only,
        populate: !volume.read_only && !volume.no_copy,
    };
    let share = |(index, shared): (usize, &SharedDirectory)| Mount {
        serial: share_tag(index),
        fstype: "virtiofs".to_owned(),
        target: shared.target.clone(),
        read_only: shared.read_only,
        populate: false,
    };
    let mut mounts: Vec<Mount> = volumes.iter().map(volume).collect();
    mounts.extend(shares.iter().enumerate().map(share));
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    mounts
}
