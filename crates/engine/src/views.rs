//! What machines, volumes and networks look like to others: the JSON of `ps`, `inspect`, `volume` and `network`, for every
//! front end. Fields may be added; none goes or changes its meaning.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use zmachine_image::Library;
use zmachine_network::{Network, Publish};
use zmachine_plan::Plan;
use zmachine_spec::shown::without_credentials;
use zmachine_spec::volume::{Content, Fs};
use zmachine_spec::{Failure, Health, MachineSpec, Origin, Phase, State};
use zmachine_store::catalog::Machine;
use zmachine_store::log;
use zmachine_store::volume::Volume;
use zmachine_sys::jail::status;
use zmachine_sys::process::ProcessId;

use super::Engine;

/// One machine of a listing.
#[derive(Debug, Serialize)]
pub struct MachineSummary {
    /// Twelve hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `container` or `vm`.
    pub kind: &'static str,
    /// The phase, in a word.
    pub state: &'static str,
    /// It is a VM that has just been started: neither its agent nor a login has been seen yet.
    pub booting: bool,
    /// `starting`, `healthy` or `unhealthy`, by its health checks, where it has any.
    pub health: Option<&'static str>,
    /// As a shell tells it, of one that stopped.
    pub exit_code: Option<u8>,
    /// How often it was started again by its policy.
    pub restarts: u64,
    /// When it will be, while it waits for that.
    pub restart_at: Option<Timestamp>,
    /// The image it was made of, without credentials.
    pub flist: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// CPUs of this host whose time they get together, where that is limited.
    pub cpu_limit: Option<f64>,
    /// Memory of the guest in bytes.
    pub memory_bytes: u64,
    /// Its addresses, the first network's first.
    pub addresses: Vec<String>,
    /// Ports of the host that lead to it, as `-p` takes them; empty also where the plan cannot be read.
    pub ports: Vec<String>,
    /// What a container runs: entrypoint and command. Empty for a VM, and where the plan cannot be read.
    pub command: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Names of its networks.
    pub networks: Vec<String>,
    /// Names of its volumes, and directories of the host that it has.
    pub volumes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its entrypoint, or the VM, last began to run.
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    pub finished_at: Option<Timestamp>,
}

impl MachineSummary {
    /// Whether docker calls its state so.
    pub fn has_status(&self, wanted: &str) -> bool {
        match wanted {
            "exited" => self.state == "stopped",
            "dead" => self.state == "failed",
            other => self.state == other,
        }
    }

    /// Of a machine.
    pub fn new(machine: &Machine) -> MachineSummary {
        let plan = machine.plan().ok();
        let attachments = plan.as_ref().map(Plan::attachments).unwrap_or_default();
        MachineSummary {
            id: machine.id.clone(),
            name: machine.spec.name.clone(),
            kind: machine.state.kind.word(),
            state: match machine.spec.standby {
                true => "standby",
                false => machine.state.word(),
            },
            booting: machine.state.is_booting(Timestamp::now()),
            health: machine.health().map(|health| health.status.word()),
            exit_code: match &machine.state.phase {
                Phase::Stopped { exit } => Some(exit.shell_code()),
                _ => None,
            },
            restarts: machine.state.restarts,
            restart_at: match &machine.state.phase {
                Phase::Restarting { at, .. } => Some(*at),
                _ => None,
            },
            flist: without_credentials(&machine.spec.flist),
            cpus: machine.spec.cpus,
            cpu_limit: machine.spec.cpu_limit_milli.map(|milli| f64::from(milli) / 1000.0),
            memory_bytes: machine.spec.memory_bytes,
            addresses: addresses(machine),
            ports: attachments
                .iter()
                .flat_map(|a| &a.publish)
                .map(ToString::to_string)
                .collect(),
            command: match &plan {
                Some(Plan::Container(plan)) => plan.process.args.clone(),
                Some(Plan::Vm(_)) | None => Vec::new(),
            },
            labels: machine.spec.labels.clone(),
            networks: machine
                .spec
                .networks
                .iter()
                .map(|network| network.name.clone())
                .collect(),
            volumes: machine
                .spec
                .volumes
                .iter()
                .filter_map(|volume| source(&volume.origin))
                .collect(),
            created_at: machine.state.created_at,
            started_at: machine.state.ready_at.or(machine.state.started_at),
            finished_at: machine.state.finished_at,
        }
    }
}

/// Its addresses; those of a pod are its network plugin's.
fn addresses(machine: &Machine) -> Vec<String> {
    let network = machine.spec.pod.as_ref().and_then(|pod| pod.network.as_ref());
    let of_pod = network.iter().flat_map(|network| &network.links);
    let of_pod = of_pod
        .flat_map(|link| &link.interface.addresses)
        .map(|address| address.split('/').next().unwrap_or_default().to_owned());
    let own = machine.state.addresses.iter().map(ToString::to_string);
    own.chain(of_pod).collect()
}

/// The ports of this host that lead to a machine; none where its plan cannot be read.
pub fn host_ports(machine: &Machine) -> Vec<Publish> {
    let plan = machine.plan();
    let attachments = plan.as_ref().map(Plan::attachments).unwrap_or_default();
    attachments.iter().flat_map(|a| a.publish.iter().cloned()).collect()
}

fn source(origin: &Origin) -> Option<String> {
    match origin {
        Origin::Named(name) => Some(name.clone()),
        Origin::Directory(path) => Some(path.display().to_string()),
        Origin::Anonymous => None,
    }
}

/// Everything about one machine.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Twelve hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `container` or `vm`.
    pub kind: &'static str,
    /// Its folder.
    pub directory: String,
    /// Its log.
    pub log: String,
    /// Where the blocks of its image are kept, when that can be told.
    pub block_cache: Option<PathBuf>,
    /// What each of its processes is locked into, while it runs.
    pub sandbox: BTreeMap<&'static str, String>,
    /// How it is.
    pub state: StateView,
    /// What was asked for. It may hold secrets: see [`zmachine_spec::redact`].
    pub spec: MachineSpec,
    /// What was decided.
    pub plan: Plan,
}

/// How a machine is.
#[derive(Debug, Serialize)]
pub struct StateView {
    /// What its monitor knows.
    #[serde(flatten)]
    pub state: State,
    /// What its health checks say, where it has any.
    pub health: Option<Health>,
}

/// One snapshot.
#[derive(Debug, Serialize)]
pub struct SnapshotView {
    /// `MACHINE@TAG`.
    pub name: String,
    /// The machine it was made of.
    pub machine: String,
    /// Its id.
    pub machine_id: String,
    /// Its tag.
    pub tag: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// `machine`, or `disks` for one of these alone.
    pub kind: &'static str,
    /// Digest of the image that the guest reads on from; empty for a VM of a disk image of this host.
    pub image: String,
    /// Memory of the guest in bytes; 0 for one of disks alone.
    pub memory_bytes: u64,
    /// Room that all of it takes on the host, in bytes; blocks that a disk shares with others are counted.
    pub used_bytes: u64,
    /// The volumes of the machine; those that it writes to are in the snapshot.
    pub volumes: Vec<String>,
    /// How long the machine stood still for it, in microseconds; in one of disks alone, how long nobody could write.
    pub paused_us: u64,
    /// What it was saved by, and can be restored by alone; nothing in one of disks alone.
    pub hypervisor: Option<String>,
    /// Its folder.
    pub path: String,
}

/// One volume.
#[derive(Debug, Serialize)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// What is on it, in a word.
    pub state: String,
    /// File system it has or gets.
    pub fs: Fs,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What of that takes room on the host, in bytes.
    pub used_bytes: u64,
    /// Digest of the image that was installed on it.
    pub image: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// Names of the machines that use it; `None` when a machine cannot be read, which might be one of them.
    pub machines: Option<Vec<String>>,
    /// It was made for a machine without a name.
    pub anonymous: bool,
    /// The user's own words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its file.
    pub path: String,
}

impl VolumeView {
    /// Of a volume and its users.
    pub fn new(volume: &Volume, machines: Option<Vec<String>>) -> VolumeView {
        let image = match &volume.record.content {
            Content::Installing { digest } | Content::Installed { digest } => Some(digest.clone()),
            Content::Empty | Content::Formatting | Content::Formatted | Content::Raw => None,
        };
        VolumeView {
            name: volume.name.clone(),
            state: volume.record.content.to_string(),
            fs: volume.record.fs,
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
            image,
            created_at: volume.record.created_at.to_string(),
            machines,
            anonymous: volume.record.anonymous_of.is_some(),
            labels: volume.record.labels.clone(),
            path: volume.data().display().to_string(),
        }
    }
}

/// One network.
#[derive(Debug, Serialize)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// IPv4 addresses, in CIDR form.
    pub subnet: String,
    /// The host's own one of these.
    pub gateway: String,
    /// The same for IPv6.
    pub ipv6_subnet: Option<String>,
    /// The same for IPv6.
    pub ipv6_gateway: Option<String>,
    /// Without a way out.
    pub internal: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Name servers of its own; empty means this host's.
    pub dns: Vec<IpAddr>,
    /// Its bridge, and its tables of nftables.
    pub bridge: String,
    /// 64 hex digits that no other network has or had.
    pub id: String,
    /// When it was made, where that was written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// The user's own words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Who has an address in it.
    pub machines: Vec<NetworkMember>,
}

/// A machine that has an address in a network.
#[derive(Debug, Serialize)]
pub struct NetworkMember {
    /// Twelve hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address there.
    pub mac: String,
    /// Its link on the host.
    pub tap: String,
    /// It runs, and is attached now.
    pub attached: bool,
    /// Names under which the others find it now.
    pub names: Vec<String>,
    /// Ports of the host that lead to it now.
    pub published: Vec<String>,
}

impl Engine {
    /// Everything about a machine.
    ///
    /// # Errors
    /// [`zmachine_spec::Class::NotFound`], or that its plan cannot be read.
    pub fn inspect(&self, name: &str) -> Result<Inspection, Failure> {
        let machine = self.machine(name)?;
        let library = Library::open(self.home().data());
        Ok(Inspection {
            id: machine.id.clone(),
            name: machine.spec.name.clone(),
            kind: machine.state.kind.word(),
            directory: machine.dir.display().to_string(),
            block_cache: library.map(|library| library.cache().directory().to_owned()).ok(),
            sandbox: protections(&machine),
            log: log::path(&machine.dir).display().to_string(),
            plan: machine.plan()?,
            state: StateView {
                health: machine.health(),
                state: machine.state,
            },
            spec: machine.spec,
        })
    }

    /// One volume, and who uses it.
    ///
    /// # Errors
    /// [`zmachine_spec::Class::NotFound`], or that a machine cannot be read, which might use it.
    pub fn volume(&self, name: &str) -> Result<VolumeView, Failure> {
        let volumes = self.volumes();
        let users = volumes.users(name)?;
        Ok(VolumeView::new(&volumes.get(name)?, Some(users)))
    }

    /// All volumes; what of the listing could not be read beside them.
    ///
    /// # Errors
    /// When the folder of volumes cannot be read.
    pub fn volume_list(&self) -> Result<(Vec<VolumeView>, Vec<Failure>), Failure> {
        let volumes = self.volumes();
        let (mut views, mut failures) = (Vec::new(), Vec::new());
        for volume in volumes.list()? {
            match volume {
                Ok(volume) => {
                    let users = volumes.users(&volume.name);
                    // The same machine for every volume: told once.
                    failures.extend(users.as_ref().err().filter(|_| failures.is_empty()).cloned());
                    views.push(VolumeView::new(&volume, users.ok()));
                }
                Err(failure) => failures.push(failure),
            }
        }
        Ok((views, failures))
    }

    /// One network, and who is in it.
    ///
    /// # Errors
    /// [`zmachine_spec::Class::NotFound`].
    pub fn network(&self, name: &str) -> Result<NetworkView, Failure> {
        self.network_view(&self.networks()?.get(name)?)
    }

    /// All networks.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn network_list(&self) -> Result<Vec<NetworkView>, Failure> {
        self.networks()?
            .list()?
            .iter()
            .map(|network| self.network_view(network))
            .collect()
    }

    fn network_view(&self, network: &Network) -> Result<NetworkView, Failure> {
        let networks = self.networks()?;
        let endpoints = networks.endpoints(network.name())?;
        let known: Vec<_> = self.machines()?.into_iter().flatten().collect();
        let mut machines: Vec<NetworkMember> = Vec::new();
        for (address, id) in networks.leases(network.name())? {
            if let Some(member) = machines.iter_mut().find(|m| m.id == id) {
                member.addresses.push(address);
                continue;
            }
            let endpoint = endpoints.iter().find(|s| s.machine == id);
            let name = known.iter().find(|m| m.id == id).map_or(&id, |m| &m.spec.name);
            machines.push(NetworkMember {
                name: name.clone(),
                addresses: vec![address],
                mac: network.mac(&id).to_string(),
                tap: network.tap(&id),
                attached: endpoint.is_some(),
                names: endpoint.map(|s| s.membership.names.clone()).unwrap_or_default(),
                published: endpoint.map_or_else(Vec::new, |s| s.ports.iter().map(ToString::to_string).collect()),
                id,
            });
        }
        Ok(NetworkView {
            name: network.name().to_owned(),
            subnet: network.ipv4().to_string(),
            gateway: network.gateway4().to_string(),
            ipv6_subnet: network.ipv6().map(|net| net.to_string()),
            ipv6_gateway: network.gateway6().map(|gateway| gateway.to_string()),
            internal: network.is_internal(),
            mtu: network.mtu(),
            dns: network.dns().to_vec(),
            bridge: network.bridge().to_owned(),
            id: network.id(),
            created_at: Some(network.created_ns())
                .filter(|ns| *ns > 0)
                .and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok()),
            labels: network.labels().clone(),
            machines,
        })
    }
}

/// What the processes of a machine that runs are locked into, one line each.
fn protections(machine: &Machine) -> BTreeMap<&'static str, String> {
    let processes = [
        ("hypervisor", machine.state.hypervisor),
        ("rootfs", machine.state.rootfs),
    ];
    let line = |(role, id): (&'static str, Option<ProcessId>)| {
        let id = id.filter(|id| id.is_alive())?;
        let standing = status::of(id.pid)?.standing();
        let line = match standing.is_empty() {
            true => "none".to_owned(),
            false => standing.join(", "),
        };
        Some((role, line))
    };
    processes.into_iter().filter_map(line).collect()
}
