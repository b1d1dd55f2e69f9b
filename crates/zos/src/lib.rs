//! A Zero-OS reservation: the `zmachine` workload of a grid deployment, as JSON, and the machine it asks for.
//!
//! ```text
//! {"flist": URL, "network": {"public_ip", "planetary", "mycelium": {"Network", "hex_seed"}, "interfaces": [{"network", "ip"}]},
//!  "size": bytes, "compute_capacity": {"cpu", "memory"}, "mounts": [{"name", "mountpoint"}], "entrypoint", "env": {},
//!  "corex", "gpu": ["SLOT/VENDOR/DEVICE"]}
//! ```
//! Format and rules: `pkg/gridtypes/zos/zmachine.go` of github.com/threefoldtech/zos.
//!
//! # Invariants
//! * Key names are read in any case, as Zero-OS's JSON reader does; `null` is as if the key were absent. Names and values
//!   of `env` are taken as they are.
//! * A key that is not in the format is refused, never passed over: a misspelt limit would be no limit.
//! * What is legal and cannot be had here is an error that says what to do instead ([`Reservation::check_offered`]).
//!
//! | module | owns |
//! |---|---|
//! | `read` | JSON objects whose keys are all accounted for |
//! | [`explain`] | each field's effect, for people |

pub mod explain;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::Value;
use zmachine_plan::root_size;
use zmachine_spec::{Class, Failure, MachineSpec, NetworkRequest, Origin, RestartPolicy, Setting, VolumeRequest};
use zmachine_store::catalog::Machine;

use self::read::Object;

/// Smallest guest memory of a reservation, in bytes.
pub const MIN_MEMORY: u64 = 250 << 20;

/// Names that Zero-OS keeps for its own interfaces.
const RESERVED_NETWORKS: [&str; 3] = ["ygg", "pub", "mycelium"];

/// Bytes of a mycelium seed.
const SEED_BYTES: usize = 6;

/// A reservation whose fields are all valid; whether this host can do it is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// URL of the image.
    pub flist: String,
    /// Name of a public address workload.
    pub public_ip: Option<String>,
    /// It wants an address of the yggdrasil network.
    pub planetary: bool,
    /// It wants an address of the mycelium network.
    pub mycelium: Option<Mycelium>,
    /// Its one private network.
    pub interface: Interface,
    /// Size of the writable root in bytes; 0 leaves it to the rule.
    pub size_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Volumes, in order.
    pub mounts: Vec<Mount>,
    /// Program and arguments in place of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Environment over the image's.
    pub env: BTreeMap<String, String>,
    /// It wants Zero-OS's web terminal.
    pub corex: bool,
    /// PCI devices, `SLOT/VENDOR/DEVICE`.
    pub gpu: Vec<String>,
}

/// A wish for a mycelium address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mycelium {
    /// The network it goes through.
    pub network: String,
    /// What the address is derived from.
    pub seed: [u8; SEED_BYTES],
}

/// A private network, and the machine's address in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The network's name.
    pub network: String,
    /// The machine's address.
    pub ip: Ipv4Addr,
}

/// A volume and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The volume's name.
    pub name: String,
    /// An absolute path; has no meaning for a VM.
    pub mountpoint: String,
    /// The two as a machine has them.
    pub volume: VolumeRequest,
}

/// What a deployed machine got: Zero-OS's result object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deployed {
    /// The machine's id.
    pub id: String,
    /// Its address in its private network.
    pub ip: String,
    /// Always empty: this program has no yggdrasil.
    pub planetary_ip: String,
    /// Always empty: this program has no mycelium.
    pub mycelium_ip: String,
    /// Always empty: Zero-OS serves consoles to everybody who reaches the node; here they need a right on the host.
    pub console_url: String,
}

impl Deployed {
    /// The result for `machine`.
    pub fn new(machine: &Machine) -> Deployed {
        let ipv4 = machine.state.addresses.iter().find(|address| address.is_ipv4());
        Deployed {
            id: machine.id.clone(),
            ip: ipv4.map(ToString::to_string).unwrap_or_default(),
            planetary_ip: String::new(),
            mycelium_ip: String::new(),
            console_url: String::new(),
        }
    }
}

impl Reservation {
    /// Reads a reservation and checks every rule that needs no host.
    ///
    /// # Errors
    /// [`Class::Usage`], naming the field.
    pub fn parse(text: &str) -> Result<Reservation, Failure> {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            Failure::from_error(Class::Usage, &e)
                .context("the reservation is not JSON")
                .hint("it is the data of a zmachine workload, as docs/reservations.md shows")
        })?;
        let mut root = Object::new("", &value)?;
        if root.has("workloads") || (root.has("type") && root.has("data")) {
            let message = "this is a whole deployment or workload, and not the data of one zmachine";
            return Err(Failure::new(Class::Usage, message).hint("pass the object in the workload's \"data\" alone"));
        }
        let (cpus, memory_bytes) = capacity(root.required_object("compute_capacity")?)?;
        let network = network(root.required_object("network")?)?;
        let reservation = Reservation {
            flist: flist(&mut root)?,
            public_ip: network.public_ip,
            planetary: network.planetary,
            mycelium: network.mycelium,
            interface: network.interface,
            size_bytes: size(&mut root, cpus, memory_bytes)?,
            cpus,
            memory_bytes,
            mounts: mounts(&mut root)?,
            entrypoint: entrypoint(&mut root)?,
            env: env(&mut root)?,
            corex: root.boolean("corex")?,
            gpu: gpu(&mut root)?,
        };
        root.finish()?;
        Ok(reservation)
    }

    /// Refuses what this program or this host does not offer. `has_vfio`: PCI devices can be given to machines.
    ///
    /// # Errors
    /// [`Class::Unsupported`] with what to do instead.
    pub fn check_offered(&self, has_vfio: bool) -> Result<(), Failure> {
        let refused = |field: &str, why: &str, hint: &str| {
            Err(Failure::new(Class::Unsupported, format!("{field}: {why}")).hint(hint))
        };
        if self.corex {
            return refused(
                "corex",
                "there is no corex here",
                "remove it; 'zmachine exec -it NAME sh' gives a terminal in the machine",
            );
        }
        if self.public_ip.is_some() {
            return refused(
                "network.public_ip",
                "this host has no public address workloads",
                "remove it; 'zmachine run -p' publishes ports of a machine on the host's own addresses",
            );
        }
        if self.planetary {
            return refused(
                "network.planetary",
                "this host has no yggdrasil network",
                "set it to false; the machine's private network has IPv4 and IPv6",
            );
        }
        if self.mycelium.is_some() {
            return refused(
                "network.mycelium",
                "this host has no mycelium network",
                "remove it; the machine's private network has IPv4 and IPv6",
            );
        }
        match (self.gpu.is_empty(), has_vfio) {
            (true, _) => Ok(()),
            (false, false) => refused(
                "gpu",
                "this host cannot give PCI devices to machines: it has no IOMMU groups",
                "enable the IOMMU in the firmware and boot with intel_iommu=on or amd_iommu=on, or remove the field",
            ),
            (false, true) => refused("gpu", "PCI devices cannot be given to machines yet", "remove the field"),
        }
    }

    /// The machine it asks for.
    pub fn spec(&self, name: &str) -> MachineSpec {
        let mut spec = MachineSpec::new(name, &self.flist);
        spec.cpus = u32::from(self.cpus);
        spec.memory_bytes = self.memory_bytes;
        spec.size_bytes = self.size_bytes;
        spec.networks = vec![NetworkRequest {
            ipv4: Some(self.interface.ip),
            ..NetworkRequest::new(&self.interface.network)
        }];
        spec.volumes = self.mounts.iter().map(|mount| mount.volume.clone()).collect();
        spec.entrypoint = self.entrypoint.clone();
        spec.env = self.env.clone().into_iter().collect();
        spec.restart = RestartPolicy::UnlessStopped;
        spec
    }
}

/// The field of a reservation in which a setting of its machine is written; `None` when there is none.
pub fn field(setting: Setting) -> Option<&'static str> {
    match setting {
        Setting::Flist => Some("flist"),
        Setting::Networks => Some("network.interfaces"),
        Setting::Size => Some("size"),
        Setting::Cpus => Some("compute_capacity.cpu"),
        Setting::Memory => Some("compute_capacity.memory"),
        Setting::Volumes => Some("mounts"),
        Setting::Entrypoint => Some("entrypoint"),
        Setting::Env => Some("env"),
        _ => None,
    }
}

fn wrong(field: &str, why: impl std::fmt::Display, hint: &str) -> Failure {
    Failure::new(Class::Usage, format!("{field}: {why}")).hint(hint)
}

fn flist(root: &mut Object<'_>) -> Result<String, Failure> {
    let url = root.text("flist")?.unwrap_or_default();
    let is_url = ["http://", "https://", "file:///"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    let path = url.split(['?', '#']).next().unwrap_or_default();
    if !is_url || !(path.ends_with(".flist") || path.ends_with(".fl")) {
        return Err(wrong(
            "flist",
            format_args!("'{url}' is not the URL of a flist"),
            "it begins with http://, https:// or file:/// and ends in .flist (format 1) or .fl (format 2)",
        ));
    }
    Ok(url)
}

fn capacity(mut object: Object<'_>) -> Result<(u8, u64), Failure> {
    let cpus = object.number("cpu")?.unwrap_or_default();
    let memory = object.number("memory")?.unwrap_or_default();
    object.finish()?;
    let cpus = u8::try_from(cpus).ok().filter(|cpus| *cpus > 0).ok_or_else(|| {
        wrong(
            "compute_capacity.cpu",
            format_args!("{cpus} is not a number of CPUs"),
            "use 1 to 255, and at most what the host has",
        )
    })?;
    if memory < MIN_MEMORY {
        return Err(wrong(
            "compute_capacity.memory",
            format_args!("{memory} bytes are too little"),
            "use at least 262144000 (250 MiB); the unit is bytes",
        ));
    }
    Ok((cpus, memory))
}

fn size(root: &mut Object<'_>, cpus: u8, memory: u64) -> Result<u64, Failure> {
    let size = root.number("size")?.unwrap_or_default();
    let least = root_size(u32::from(cpus), memory, 0);
    if size != 0 && size < least {
        return Err(wrong(
            "size",
            format_args!("{size} bytes are less than the {least} that a machine of this capacity has at least"),
            "use 0 to get the least, or more; the unit is bytes",
        ));
    }
    Ok(size)
}

struct Network {
    public_ip: Option<String>,
    planetary: bool,
    mycelium: Option<Mycelium>,
    interface: Interface,
}

fn network(mut object: Object<'_>) -> Result<Network, Failure> {
    let network = Network {
        public_ip: object.text("public_ip")?.filter(|name| !name.is_empty()),
        planetary: object.boolean("planetary")?,
        mycelium: object.object("mycelium")?.map(mycelium).transpose()?,
        interface: interface(object.list("interfaces")?)?,
    };
    object.finish()?;
    Ok(network)
}

fn mycelium(mut object: Object<'_>) -> Result<Mycelium, Failure> {
    let network = object.text("network")?.unwrap_or_default();
    let hex = object.text("hex_seed")?.unwrap_or_default();
    object.finish()?;
    if network.is_empty() {
        return Err(wrong(
            "network.mycelium.Network",
            "it is missing",
            "name the private network that the address goes through",
        ));
    }
    let seed = seed(&hex).ok_or_else(|| {
        wrong(
            "network.mycelium.hex_seed",
            format_args!("'{hex}' is not a seed"),
            "use 6 bytes as 12 hex digits",
        )
    })?;
    Ok(Mycelium { network, seed })
}

fn seed(hex: &str) -> Option<[u8; SEED_BYTES]> {
    let is_hex = hex.len() == 2 * SEED_BYTES && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u64::from_str_radix(hex, 16).ok().filter(|_| is_hex)?;
    number.to_be_bytes()[8 - SEED_BYTES..].try_into().ok()
}

fn interface(mut interfaces: Vec<Object<'_>>) -> Result<Interface, Failure> {
    let (1, Some(mut object)) = (interfaces.len(), interfaces.pop()) else {
        return Err(wrong(
            "network.interfaces",
            "there must be exactly one",
            "[{\"network\": NAME, \"ip\": ADDRESS}] with a network of 'zmachine network ls'",
        ));
    };
    let network = object.text("network")?.unwrap_or_default();
    let text = object.text("ip")?.unwrap_or_default();
    object.finish()?;
    if network.is_empty() || RESERVED_NETWORKS.contains(&network.as_str()) || network == "none" {
        return Err(wrong(
            "network.interfaces[0].network",
            format_args!("'{network}' cannot be a machine's private network"),
            "name a network of 'zmachine network ls'; ygg, pub and mycelium are reserved",
        ));
    }
    let field = "network.interfaces[0].ip";
    let ip: Ipv4Addr = text.parse().map_err(|_| {
        wrong(
            field,
            format_args!("'{text}' is not an IPv4 address"),
            "give an address of the network, without a prefix length",
        )
    })?;
    if ip.octets()[3] == 1 {
        return Err(wrong(
            field,
            format_args!("{ip} is the gateway's"),
            "give one that does not end in .1",
        ));
    }
    Ok(Interface { network, ip })
}

fn mounts(root: &mut Object<'_>) -> Result<Vec<Mount>, Failure> {
    let mut places = BTreeSet::new();
    let mut mounts = Vec::new();
    for (index, mut object) in root.list("mounts")?.into_iter().enumerate() {
        let name = object.text("name")?.unwrap_or_default();
        let mountpoint = object.text("mountpoint")?.unwrap_or_default();
        object.finish()?;
        zmachine_spec::volume::check_name(&name).map_err(|mut e| {
            e.message = format!("mounts[{index}].name: {}", e.message);
            e
        })?;
        let is_place = mountpoint.starts_with('/') && !mountpoint.split('/').any(|part| part == "..");
        let is_root = mountpoint.split('/').all(|part| part.is_empty() || part == ".");
        let field = format!("mounts[{index}].mountpoint");
        if !is_place || is_root || mountpoint.contains(':') {
            return Err(wrong(
                &field,
                format_args!("'{mountpoint}' cannot be a mount point"),
                "use an absolute path below '/', without '..' and ':'",
            ));
        }
        if !places.insert(mountpoint.trim_end_matches('/').to_owned()) {
            return Err(wrong(
                &field,
                format_args!("'{mountpoint}' is used twice"),
                "give each volume a place of its own",
            ));
        }
        let volume = VolumeRequest::new(Origin::Named(name.clone()), &mountpoint)
            .map_err(|why| wrong(&field, why, "use an absolute path below '/', without '..' and ':'"))?;
        mounts.push(Mount {
            name,
            mountpoint,
            volume,
        });
    }
    Ok(mounts)
}

fn entrypoint(root: &mut Object<'_>) -> Result<Option<Vec<String>>, Failure> {
    let text = root.text("entrypoint")?.unwrap_or_default();
    let words = shlex::split(&text).ok_or_else(|| {
        wrong(
            "entrypoint",
            format_args!("a quote is not closed in '{text}'"),
            "quote it as for a POSIX shell",
        )
    })?;
    Ok((!words.is_empty()).then_some(words))
}

fn env(root: &mut Object<'_>) -> Result<BTreeMap<String, String>, Failure> {
    let env = root.texts("env")?;
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(wrong(
            "env",
            format_args!("'{name}' cannot be a variable's name"),
            "names are not empty and have no '='",
        ));
    }
    Ok(env)
}

fn gpu(root: &mut Object<'_>) -> Result<Vec<String>, Failure> {
    let devices = root.text_list("gpu")?;
    for (index, device) in devices.iter().enumerate() {
        if !is_device(device) {
            return Err(wrong(
                &format!("gpu[{index}]"),
                format_args!("'{device}' is not a PCI device"),
                "use SLOT/VENDOR/DEVICE in hex, for example 0000:28:00.0/1002/731f",
            ));
        }
    }
    Ok(devices)
}

/// `0000:28:00.0/1002/731f`
fn is_device(text: &str) -> bool {
    let hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    let [slot, vendor, device] = text.split('/').collect::<Vec<_>>()[..] else {
        return false;
    };
    let [domain, bus, rest] = slot.split(':').collect::<Vec<_>>()[..] else {
        return false;
    };
    let is_slot = rest
        .split_once('.')
        .is_some_and(|(device, function)| hex(device, 2) && hex(function, 1));
    hex(domain, 4) && hex(bus, 2) && is_slot && hex(vendor, 4) && hex(device, 4)
}

#[cfg(test)]
mod tests;
