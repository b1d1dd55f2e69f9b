//! The plan: everything a start needs, decided once from spec, image and host. A pure function; it makes every refusal.
//!
//! `plan.json` is this value. A start executes it; nothing after this module decides anything about the machine.
//!
//! | module | owns |
//! |---|---|
//! | [`container`] | the plan of a container: root disk, what the guest's agent is told, the entrypoint |
//! | [`vm`] | the plan of a VM: volumes, boot, seed |
//! | [`tree`] | the plan of a container with a kernel of its own, which lives like a VM |
//! | `networks` | a machine that joins or leaves a network |
//! | [`share`] | what is served to either over virtio-fs |
//! | [`error`] | every refusal |
//!
//! # Format
//! The object of a container has no `kind`, that of a VM has `"kind": "vm"`.

mod cmdline;
pub mod container;
pub mod error;
mod networks;
pub mod share;
pub mod tree;
pub mod vm;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use zmachine_agent_protocol::{Interface, Route};
use zmachine_hypervisor::choice::Choice;
use zmachine_hypervisor::firmware::Pinned;
use zmachine_hypervisor::{Accel, Nic, NicKind, VmSpec};
use zmachine_network::{Attachment, HostDns};
use zmachine_sys::host::HostFacts;

pub use container::{ContainerPlan, ROOT_SERIAL, UPPER_SERIAL, root_size};
pub use error::PlanError;
pub(crate) use networks::check_step;
pub use share::{ShareUse, SharedTree, share_tag};
pub use tree::TreeFacts;
pub use vm::{VmFacts, VmPlan};

use crate::home::Home;
use crate::spec::MachineSpec;
use crate::state::Kind;
use crate::volume::{SharedDirectory, Wanted};

/// Version of `plan.json`.
pub const PLAN_VERSION: u32 = 1;

/// Smallest guest memory in bytes. Debian's kernel needs 73 MB to reach its init; below this nothing useful runs.
pub const MIN_MEMORY: u64 = 96 << 20;

/// Smallest writable root in bytes that a `--size` may ask for.
const MIN_SIZE: u64 = 16 << 20;

/// Everything a start needs, by the kind of machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Plan {
    /// A container.
    Container(Box<ContainerPlan>),
    /// A VM, or a container with a kernel of its own.
    Vm(Box<VmPlan>),
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plan, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let plan = match value.get("kind").map(|kind| kind.as_str().unwrap_or_default()) {
            None => serde_json::from_value(value).map(Plan::Container),
            Some("vm") => serde_json::from_value(value).map(Plan::Vm),
            Some(other) => return Err(D::Error::custom(format!("'{other}' is no kind of machine"))),
        };
        plan.map_err(D::Error::custom)
    }
}

impl Plan {
    /// Plans a machine.
    ///
    /// # Errors
    /// Everything about the request that can be refused without trying.
    pub fn new(spec: &MachineSpec, content: Content<'_>, inputs: Inputs<'_>) -> Result<Plan, PlanError> {
        Plan::check_request(spec, inputs.host)?;
        match content {
            Content::Container { image, kernel, volumes } => {
                ContainerPlan::new(spec, image, kernel, volumes, inputs).map(|plan| Plan::Container(Box::new(plan)))
            }
            Content::Tree(facts) => VmPlan::of_tree(spec, facts, inputs).map(|plan| Plan::Vm(Box::new(plan))),
            Content::Vm(facts) => VmPlan::new(spec, facts, inputs).map(|plan| Plan::Vm(Box::new(plan))),
        }
    }

    /// The refusals for which spec and host are enough; made before an image is fetched.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn check_request(spec: &MachineSpec, host: &HostFacts) -> Result<(), PlanError> {
        check_capacity(spec, host)?;
        container::stop_signal(spec.stop_signal.as_deref())?;
        check_hostname(&hostname(spec))?;
        if spec.networks.is_empty() && !spec.publish.is_empty() {
            return Err(PlanError::PublishWithoutNetwork);
        }
        Ok(())
    }

    /// Hex digest of the image that it needs at a start; `None` when that is a file of the host.
    pub fn image(&self) -> Option<&str> {
        match self {
            Plan::Container(plan) => Some(&plan.image),
            Plan::Vm(plan) => match plan.install.as_ref().map(|install| &install.source) {
                Some(vm::DiskSource::Flist { image, .. }) => Some(image),
                _ => plan.image.as_deref(),
            },
        }
    }

    /// Whether the machine is in the network `name`.
    pub fn is_in(&self, name: &str) -> bool {
        self.attachments().iter().any(|attachment| attachment.network == name)
    }

    /// Its networks.
    pub fn attachments(&self) -> &[Attachment] {
        match self {
            Plan::Container(plan) => &plan.attachments,
            Plan::Vm(plan) => &plan.attachments,
        }
    }

    /// The virtual machine.
    pub fn vm(&self) -> &VmSpec {
        match self {
            Plan::Container(plan) => &plan.vm,
            Plan::Vm(plan) => &plan.vm,
        }
    }

    /// What runs it, and why that.
    pub fn hypervisor(&self) -> &Choice {
        match self {
            Plan::Container(plan) => &plan.hypervisor,
            Plan::Vm(plan) => &plan.hypervisor,
        }
    }

    /// What kind of machine it is.
    pub fn kind(&self) -> Kind {
        match self {
            Plan::Container(_) => Kind::Container,
            // One with a kernel of its own lives like a VM, and is a container all the same.
            Plan::Vm(plan) if plan.install.is_none() => Kind::Container,
            Plan::Vm(_) => Kind::Vm,
        }
    }
}

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

/// What the image makes of the machine.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A container, with the guest kernel that was chosen.
    Container {
        /// The image.
        image: &'a ImageFacts,
        /// The guest kernel.
        kernel: &'a KernelChoice,
        /// Its volumes.
        volumes: &'a [Wanted],
    },
    /// A container with a kernel of its own.
    Tree(&'a TreeFacts),
    /// A VM.
    Vm(&'a VmFacts),
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

/// A UUID (version 8, all ours) that starts with the machine's id.
fn uuid(id: &str) -> String {
    format!("{}-{}-8000-8000-000000000000", &id[..8], &id[8..12])
}

pub(crate) fn interface(attachment: &Attachment) -> Interface {
    Interface {
        name: attachment.interface.clone(),
        mac: attachment.mac.to_string(),
        addresses: attachment.addresses.iter().map(ToString::to_string).collect(),
        mtu: Some(attachment.mtu),
    }
}

pub(crate) fn routes(attachments: &[Attachment]) -> Vec<Route> {
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
            false => (resolvers(&inputs.attachments), inputs.host_dns.search.clone()),
        });
    }
    let parse = |text: &String| text.parse().map_err(|_| PlanError::Dns { text: text.clone() });
    Ok((spec.dns.iter().map(parse).collect::<Result<_, _>>()?, Vec::new()))
}

/// The name servers of all networks of a machine: each knows its own machines. More than three are asked by no resolver.
pub(crate) fn resolvers(attachments: &[Attachment]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for server in attachments.iter().flat_map(|a| &a.nameservers) {
        if !all.contains(server) && all.len() < 3 {
            all.push(*server);
        }
    }
    all
}

/// The keys of `SSH_KEY`, separated by newlines or commas, and those asked for; blanks dropped, each once.
fn ssh_keys(spec: &MachineSpec) -> Vec<String> {
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

fn nics(attachments: &[Attachment]) -> Vec<Nic> {
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
fn grace_ms(spec: &MachineSpec, default_s: u64) -> u64 {
    spec.stop_timeout_s.unwrap_or(default_s).saturating_mul(1000)
}

/// Seconds within which a guest must be up.
fn start_timeout_s(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => 60,
        // An emulated guest on a loaded host was seen to take two minutes.
        Accel::Tcg => 300,
    }
}

/// `added` over `env`, later entries of a name in the place of the first.
fn merged_env<'a>(
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
