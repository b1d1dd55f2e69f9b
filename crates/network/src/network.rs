//! A network as a value, and the networks of a home on disk.
//!
//! A network's folder appears by rename with all its content, so of several first users one makes it and the others use it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use zmachine_sys::file::{self, FileError};
use zmachine_sys::lock::FileLock;

use crate::error::NetworkError;
use crate::lease::{self, Lease, Wanted};
use crate::links::{self, Links};
use crate::name::{self, DEFAULT_NETWORK, Mac};
use crate::presence;
use crate::publish::Publish;
use crate::station::{Membership, Station};
use crate::user::USER_NETWORK;
use crate::{ports, subnet};

/// The version of `network.json`.
const VERSION: u32 = 1;

/// What all homes of this host share: the record of sysctls (see `sysctl`). Gone after a reboot, as they are.
const HOST_DIR: &str = "/run/zmachine-host";

/// The content of `network.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    version: u32,
    name: String,
    ipv4: Ipv4Net,
    ipv6: Option<Ipv6Net>,
    mtu: u32,
    /// Whether the subnet was chosen by us, so that we may choose again while nobody has an address in it.
    chosen: bool,
    /// Whether nothing goes in or out of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    internal: bool,
    /// Name servers for what the network does not know itself; those of the host when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dns: Vec<IpAddr>,
}

/// A network: what is on disk of it, with the names derived from its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    record: NetworkRecord,
    home: String,
    bridge: String,
}

impl Network {
    fn new(record: NetworkRecord, home: &str) -> Network {
        Network {
            bridge: name::bridge(home, &record.name),
            home: home.to_owned(),
            record,
        }
    }

    /// A network of these subnets in a made-up home, for tests of pure functions.
    #[cfg(test)]
    pub(crate) fn example(ipv4: &str, ipv6: Option<&str>) -> Network {
        let record = NetworkRecord {
            version: VERSION,
            name: DEFAULT_NETWORK.to_owned(),
            ipv4: ipv4.parse().unwrap(),
            ipv6: ipv6.map(|v6| v6.parse().unwrap()),
            mtu: 1500,
            chosen: true,
            internal: false,
            dns: Vec::new(),
        };
        Network::new(record, "home")
    }

    /// The same under another name, for tests of pure functions.
    #[cfg(test)]
    pub(crate) fn named(mut self, name: &str) -> Network {
        self.record.name = name.to_owned();
        Network::new(self.record, "home")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its IPv4 subnet.
    pub fn ipv4(&self) -> Ipv4Net {
        self.record.ipv4
    }

    /// Its IPv6 subnet, a unique local /64.
    pub fn ipv6(&self) -> Option<Ipv6Net> {
        self.record.ipv6
    }

    /// The MTU of its bridge and taps in bytes: that of the host's default route when the network was made.
    pub fn mtu(&self) -> u32 {
        self.record.mtu
    }

    /// Whether nothing goes in or out of it: its machines reach each other alone.
    pub fn is_internal(&self) -> bool {
        self.record.internal
    }

    /// Name servers that answer what the network does not know itself; empty means those of the host.
    pub fn dns(&self) -> &[IpAddr] {
        &self.record.dns
    }

    /// Its subnets, for people: `10.208.7.0/24 and fd00::/64`.
    pub(crate) fn subnets(&self) -> String {
        match self.ipv6() {
            Some(ipv6) => format!("{} and {ipv6}", self.ipv4()),
            None => self.ipv4().to_string(),
        }
    }

    /// The name of its bridge, which is also that of its nftables table.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// The host's IPv4 address in it: the first of the subnet.
    pub fn gateway4(&self) -> Ipv4Addr {
        (u32::from(self.ipv4().network()) + 1).into()
    }

    /// The host's IPv6 address in it: `::1` of the subnet.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.ipv6().map(|net| (u128::from(net.network()) + 1).into())
    }

    /// The gateways with their prefix lengths, as they are on the bridge.
    pub(crate) fn gateways(&self) -> Vec<IpNet> {
        let mut all: Vec<_> = links::with_prefix(self.gateway4().into(), self.ipv4().prefix_len())
            .into_iter()
            .collect();
        if let (Some(net), Some(gateway)) = (self.ipv6(), self.gateway6()) {
            all.extend(links::with_prefix(gateway.into(), net.prefix_len()));
        }
        all
    }

    /// The name of the tap of `machine`.
    pub fn tap(&self, machine: &str) -> String {
        name::tap(&self.home, self.name(), machine)
    }

    /// The Ethernet address of `machine`.
    pub fn mac(&self, machine: &str) -> Mac {
        name::mac(&self.home, self.name(), machine)
    }

    /// The Ethernet address of the bridge. No machine's: an id can not start with a dot.
    pub(crate) fn bridge_mac(&self) -> Mac {
        name::mac(&self.home, self.name(), ".bridge")
    }

    /// The IPv6 address of `machine`.
    pub fn ipv6_of(&self, machine: &str) -> Option<Ipv6Addr> {
        self.ipv6().map(|net| name::eui64(net, self.mac(machine)))
    }

    /// Whether a machine may have this address: in a subnet, and neither its ends nor the gateway.
    pub(crate) fn may_have(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let net = self.ipv4();
                let reserved = [net.network(), net.broadcast(), self.gateway4()];
                net.contains(&address) && !reserved.contains(&address)
            }
            IpAddr::V6(address) => self.ipv6().is_some_and(|net| {
                let reserved = [Some(net.network()), self.gateway6()];
                net.contains(&address) && !reserved.contains(&Some(address))
            }),
        }
    }
}

/// What a new network is to be; what is `None` is chosen.
#[derive(Debug, Clone, Default)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Its IPv4 subnet.
    pub ipv4: Option<Ipv4Net>,
    /// Its IPv6 subnet.
    pub ipv6: Ipv6Choice,
    /// Nothing goes in or out of it.
    pub internal: bool,
    /// Its MTU in bytes; `None`: that of the link to the default route.
    pub mtu: Option<u32>,
    /// Name servers for what the network does not know itself; empty means those of the host.
    pub dns: Vec<IpAddr>,
}

/// The IPv6 of a new network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ipv6Choice {
    /// A unique local /64 of the network's own.
    #[default]
    Derived,
    /// None.
    Without,
    /// This /64.
    Subnet(Ipv6Net),
}

/// A hook that is called with a name after each single step in the kernel or on disk.
pub(crate) type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The networks of a home.
#[derive(Clone)]
pub struct Networks {
    dir: PathBuf,
    host_dir: PathBuf,
    home: String,
    step: Option<StepHook>,
    jail: bool,
}

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Networks")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Networks {
    /// The networks in `<home>/networks`; the folder is made when missing.
    ///
    /// # Errors
    /// When it can not be made.
    pub fn open(home: &Path) -> Result<Networks, NetworkError> {
        let dir = home.join("networks");
        file::make_dirs(&dir)?;
        let canonical = home.canonicalize().map_err(|e| FileError::io("find", home, e))?;
        Ok(Networks {
            dir,
            host_dir: HOST_DIR.into(),
            home: name::home_id(&canonical),
            step: None,
            jail: false,
        })
    }

    /// Locks the servers of names in. The calling program has the role [`zmachine_sys::jail::ROLE`].
    pub fn with_jail(mut self) -> Networks {
        self.jail = true;
        self
    }

    pub(crate) fn has_jail(&self) -> bool {
        self.jail
    }

    /// Keeps the host-wide record elsewhere than in `/run/zmachine-host`. All homes of one host must agree on it.
    pub fn with_host_dir(mut self, dir: &Path) -> Networks {
        self.host_dir = dir.to_owned();
        self
    }

    /// Calls `hook` after each single step with the step's name: the place for kill-point tests to abort.
    pub fn with_step_hook(mut self, hook: impl Fn(&'static str) + Send + Sync + 'static) -> Networks {
        self.step = Some(Arc::new(hook));
        self
    }

    pub(crate) fn step(&self, name: &'static str) {
        if let Some(hook) = &self.step {
            hook(name);
        }
    }

    /// Tells this home from others of the host.
    pub(crate) fn home_id(&self) -> &str {
        &self.home
    }

    pub(crate) fn host_dir(&self) -> &Path {
        &self.host_dir
    }

    /// The folder of network `name`.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, NetworkError> {
        name::check(name)?;
        Ok(self.dir.join(name))
    }

    /// The network `name`.
    ///
    /// # Errors
    /// [`NetworkError::NoSuchNetwork`], or when its file can not be read or is of another version.
    pub fn get(&self, name: &str) -> Result<Network, NetworkError> {
        let path = self.folder(name)?.join("network.json");
        let record: NetworkRecord = match file::read_json(&path) {
            Ok(record) => record,
            Err(e) if e.is_not_found() => return Err(NetworkError::NoSuchNetwork { name: name.to_owned() }),
            Err(e) => return Err(e.into()),
        };
        if record.version != VERSION {
            let path = path.display().to_string();
            return Err(NetworkError::Version {
                path,
                found: record.version,
                known: VERSION,
            });
        }
        Ok(Network::new(record, &self.home))
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// When one can not be read.
    pub fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let mut names = entries(&self.dir)?;
        names.retain(|n| !n.starts_with('.'));
        names.sort();
        names.iter().map(|n| self.get(n)).collect()
    }

    /// The default network. It is made at its first use; and while nobody has an address in it, it moves out of the way
    /// of routes that the host got since.
    ///
    /// # Errors
    /// When no subnet is free, or the network can not be written.
    pub async fn default_network(&self) -> Result<Network, NetworkError> {
        let spec = NetworkSpec {
            name: DEFAULT_NETWORK.to_owned(),
            ..NetworkSpec::default()
        };
        let network = match self.get(DEFAULT_NETWORK) {
            Ok(network) => network,
            Err(NetworkError::NoSuchNetwork { .. }) => match self.create(&spec).await {
                Err(NetworkError::Exists { .. }) => self.get(DEFAULT_NETWORK)?,
                created => created?,
            },
            Err(e) => return Err(e),
        };
        self.moved(network).await
    }

    /// Makes a network. Nothing changes in the kernel.
    ///
    /// # Errors
    /// When the name is taken or can not be one, the subnet is taken or too small, or no subnet is free.
    pub async fn create(&self, spec: &NetworkSpec) -> Result<Network, NetworkError> {
        if spec.name == USER_NETWORK {
            return Err(NetworkError::Reserved {
                name: spec.name.clone(),
            });
        }
        let folder = self.folder(&spec.name)?;
        let record = self.choose(spec).await?;
        let new = self.dir.join(format!(".new-{}-{:016x}", spec.name, file::random_u64()));
        for dir in ["leases", "attachments"] {
            file::make_dirs(&new.join(dir))?;
        }
        file::replace_json(&new.join("network.json"), &record)?;
        let renamed = fs::rename(&new, &folder);
        if let Err(e) = renamed {
            file::remove_dir_all(&new)?;
            let taken = matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            );
            let exists = NetworkError::Exists {
                name: spec.name.clone(),
            };
            return Err(if taken {
                exists
            } else {
                FileError::io("create", &folder, e).into()
            });
        }
        file::sync_dir(&self.dir)?;
        Ok(Network::new(record, &self.home))
    }

    async fn choose(&self, spec: &NetworkSpec) -> Result<NetworkRecord, NetworkError> {
        let name = &spec.name;
        if spec.internal && !spec.dns.is_empty() {
            return Err(NetworkError::InternalDns { name: name.clone() });
        }
        let others = self.list()?;
        let ipv4 = match spec.ipv4 {
            Some(subnet) => subnet,
            None => self.free_subnet(name, &others).await?,
        };
        if ipv4.trunc() != ipv4 || !(8..=29).contains(&ipv4.prefix_len()) {
            return Err(NetworkError::BadSubnet { subnet: ipv4 });
        }
        let taken = |net: &Ipv6Net| others.iter().any(|n| n.ipv6() == Some(*net));
        let derived = || {
            (0..=u16::MAX)
                .map(|nth| name::ula(&self.home, name, nth))
                .find(|net| !taken(net))
        };
        let ipv6 = match spec.ipv6 {
            Ipv6Choice::Derived => derived(),
            Ipv6Choice::Without => None,
            Ipv6Choice::Subnet(subnet) => Some(subnet::check_ipv6(subnet)?),
        };
        if spec.ipv4.is_some() {
            self.refuse_overlap(name, ipv4.into(), &others).await?;
        }
        if let Ipv6Choice::Subnet(subnet) = spec.ipv6 {
            self.refuse_overlap(name, subnet.into(), &others).await?;
        }
        let mtu = match spec.mtu {
            Some(mtu) => mtu,
            None => Links::open()?.uplink_mtu().await?,
        };
        // RFC 791 and RFC 8200 say how little every link has to carry.
        let least = if ipv6.is_some() { 1280 } else { 576 };
        if !(least..=65535).contains(&mtu) {
            return Err(NetworkError::BadMtu { mtu, least });
        }
        Ok(NetworkRecord {
            version: VERSION,
            name: name.clone(),
            ipv4,
            ipv6,
            mtu,
            chosen: spec.ipv4.is_none(),
            internal: spec.internal,
            dns: spec.dns.clone(),
        })
    }

    /// Refuses a subnet that another network of the home or a route of the host has a part of.
    async fn refuse_overlap(&self, name: &str, subnet: IpNet, others: &[Network]) -> Result<(), NetworkError> {
        let overlaps = |other: String| {
            let name = name.to_owned();
            Err(NetworkError::SubnetOverlaps { name, subnet, other })
        };
        for other in others.iter().filter(|n| n.name() != name) {
            let theirs = [Some(IpNet::V4(other.ipv4())), other.ipv6().map(IpNet::V6)];
            if theirs.into_iter().flatten().any(|net| subnet::meet(net, subnet)) {
                return overlaps(format!("network {:?} ({})", other.name(), other.subnets()));
            }
        }
        let routes = Links::open()?.routes_but(&name::bridge(&self.home, name)).await?;
        match routes
            .into_iter()
            .find(|r| r.prefix_len() > 0 && subnet::meet(*r, subnet))
        {
            Some(route) => overlaps(format!("the host's route to {route}")),
            None => Ok(()),
        }
    }

    /// Removes a network that no machine is in. Nothing is in the kernel of such a one.
    ///
    /// # Errors
    /// [`NetworkError::NoSuchNetwork`]; [`NetworkError::InUse`] names the machines.
    pub async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let network = self.get(name)?;
        let lock = self.lock(name).await?;
        let _leases = lease::lock(self, &network).await?;
        let mut machines: Vec<String> = lease::all(self, name)?.into_iter().map(|(_, m)| m).collect();
        machines.extend(presence::attached(self, name)?.into_iter().map(|s| s.machine));
        machines.sort();
        machines.dedup();
        if !machines.is_empty() {
            let name = name.to_owned();
            return Err(NetworkError::InUse { name, machines });
        }
        // What a crash left.
        presence::reconcile(self, &network, &lock, &|_| false).await?;
        let gone = self.dir.join(format!(".gone-{name}-{:016x}", file::random_u64()));
        let folder = self.folder(name)?;
        fs::rename(&folder, &gone).map_err(|e| FileError::io("remove", &folder, e))?;
        file::sync_dir(&self.dir)?;
        Ok(file::remove_dir_all(&gone)?)
    }

    /// Tells a network what has become of an attached machine's membership, as when the machine joined another network. One
    /// that is not attached is told at its start.
    ///
    /// # Errors
    /// As the making of a resource.
    pub async fn update(&self, name: &str, machine: &str, membership: &Membership) -> Result<(), NetworkError> {
        let network = self.get(name)?;
        let lock = self.lock(name).await?;
        let present = presence::attached(self, name)?;
        let Some(mut station) = present.into_iter().find(|s| s.machine == machine) else {
            return Ok(());
        };
        if station.membership != *membership {
            station.membership = membership.clone();
            presence::record(self, &network, station)?;
            presence::settle(self, &network, &lock).await?;
        }
        Ok(())
    }

    /// The machines that are attached to a network now, as its rules and name service are made from.
    ///
    /// # Errors
    /// When they can not be read.
    pub fn stations(&self, name: &str) -> Result<Vec<Station>, NetworkError> {
        presence::attached(self, name)
    }

    async fn free_subnet(&self, name: &str, others: &[Network]) -> Result<Ipv4Net, NetworkError> {
        let mut taken = Links::open()?.ipv4_routes(&name::bridge(&self.home, name)).await?;
        taken.extend(others.iter().filter(|n| n.name() != name).map(Network::ipv4));
        let seed = name::hash(&[b"subnet", self.home.as_bytes(), name.as_bytes()]);
        let seed = u64::from_le_bytes(seed[..8].try_into().unwrap_or_default());
        let none = || NetworkError::NoFreeSubnet { name: name.to_owned() };
        subnet::choose_subnet(&taken, seed).ok_or_else(none)
    }

    /// The network, with another subnet when its own collides, was chosen by us, and is used by nobody.
    async fn moved(&self, network: Network) -> Result<Network, NetworkError> {
        if !network.record.chosen || self.collision(&network).await?.is_none() {
            return Ok(network);
        }
        let _lock = self.lock(network.name()).await?;
        let _leases = lease::lock(self, &network).await?;
        let folder = self.folder(network.name())?;
        if !entries(&folder.join("leases"))?.is_empty() || !entries(&folder.join("attachments"))?.is_empty() {
            return Ok(network);
        }
        let mut record = self.get(network.name())?.record;
        record.ipv4 = self.free_subnet(network.name(), &self.list()?).await?;
        file::replace_json(&folder.join("network.json"), &record)?;
        Ok(Network::new(record, &self.home))
    }

    /// The route of the host, other than the network's own, that overlaps its subnet.
    pub(crate) async fn collision(&self, network: &Network) -> Result<Option<Ipv4Net>, NetworkError> {
        let routes = Links::open()?.ipv4_routes(network.bridge()).await?;
        Ok(subnet::overlapping(network.ipv4(), &routes))
    }

    /// The addresses of `machine` in `network`: those it has, else `want`, else free ones. It keeps them until
    /// [`Networks::release`], through stops and reboots. Idempotent; safe among processes and threads.
    ///
    /// # Errors
    /// When `want` is not an address for a machine, is another machine's or not the one the machine has, or none is free.
    pub async fn lease(&self, network: &Network, machine: &str, want: Wanted) -> Result<Lease, NetworkError> {
        name::check(machine)?;
        let _lock = lease::lock(self, network).await?;
        // The network may have moved to another subnet since the caller read it; the plan then refuses the address.
        lease::take(self, &self.get(network.name())?, machine, want)
    }

    /// Gives back all addresses of `machine` in the network `network`. Idempotent; a network that is gone is fine.
    ///
    /// # Errors
    /// When a lease is there and can not be removed.
    pub fn release(&self, network: &str, machine: &str) -> Result<(), NetworkError> {
        name::check(machine)?;
        lease::release(self, network, machine)
    }

    /// The leases of a network, by address: (address, machine).
    ///
    /// # Errors
    /// When they can not be read.
    pub fn leases(&self, network: &str) -> Result<Vec<(IpAddr, String)>, NetworkError> {
        lease::all(self, network)
    }

    /// Refuses host ports that can not be published for `machine` right now: used by another process, published by another
    /// attached machine of this home, or not on this host. Nothing is held; [`crate::Resource::Publish`] holds.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`] names the port and its owner; [`NetworkError::NotOurAddress`]; a set that wants a port
    /// twice is a [`crate::PublishError`].
    pub fn check_publish(&self, machine: &str, publish: &[Publish]) -> Result<(), NetworkError> {
        ports::claim(self, machine, publish).map(drop)
    }

    /// Removes attachments of machines that are not alive (crashed, or of another boot) with their taps, and brings what
    /// is in the kernel in line with those that remain. Needs no privilege when there is nothing to do.
    ///
    /// # Errors
    /// The first network that can not be brought in line.
    pub async fn reconcile(&self, alive: &dyn Fn(&str) -> bool) -> Result<(), NetworkError> {
        for network in self.list()? {
            let lock = self.lock(network.name()).await?;
            presence::reconcile(self, &network, &lock, alive).await?;
        }
        Ok(())
    }

    /// Takes the lock of network `name`, under which its attachments and its presence in the kernel change.
    pub(crate) async fn lock(&self, name: &str) -> Result<FileLock, NetworkError> {
        lock(&self.folder(name)?.join("lock")).await
    }
}

/// Takes a lock without blocking the thread, whose other tasks may be those that hold it.
pub(crate) async fn lock(path: &Path) -> Result<FileLock, NetworkError> {
    loop {
        if let Some(lock) = FileLock::try_exclusive(path)? {
            return Ok(lock);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Names of the entries of `dir`.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>, FileError> {
    let read = fs::read_dir(dir).map_err(|e| FileError::io("list", dir, e))?;
    read.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| FileError::io("list", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yesterdays_network_file_is_read_and_written_the_same() {
        let golden = include_str!("../tests/golden/network.json");
        let record: NetworkRecord = serde_json::from_str(golden).unwrap();
        assert_eq!(record.ipv4.to_string(), "10.208.7.0/24");
        assert_eq!(serde_json::to_string_pretty(&record).unwrap() + "\n", golden);
    }

    #[test]
    fn the_gateway_is_the_first_address_and_no_machine_may_have_it() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        assert_eq!(network.gateway4().to_string(), "10.208.0.1");
        assert_eq!(network.gateway6().unwrap().to_string(), "fd00::1");
        for (address, may) in [
            ("10.208.0.1", false),
            ("10.208.0.0", false),
            ("10.208.0.255", false),
            ("10.208.0.2", true),
            ("10.208.1.2", false),
            ("fd00::1", false),
            ("fd00::2", true),
            ("fd00:0:0:1::2", false),
        ] {
            assert_eq!(network.may_have(address.parse().unwrap()), may, "{address}");
        }
    }
}
