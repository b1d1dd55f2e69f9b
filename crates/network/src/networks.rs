//! What can be done with the networks of a home: making, finding addresses, removing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zmachine_sys::file::{self, FileError};

use crate::endpoint::{Endpoint, Membership};
use crate::error::NetworkError;
use crate::home::{Networks, entries};
use crate::lease::{self, AddressRequest, Lease};
use crate::links::Links;
use crate::name::{self, DEFAULT_NETWORK, USER_NETWORK};
use crate::network::{Network, NetworkRecord, VERSION};
use crate::publish::Publish;
use crate::{ports, reconcile, subnet};

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
    /// The user's own words.
    pub labels: BTreeMap<String, String>,
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

impl Networks {
    /// The default network. It is made at its first use; and while nobody has an address in it, it moves out of the way
    /// of routes that the host got since.
    ///
    /// # Errors
    /// When no subnet is free, or the network cannot be written.
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
    /// When the name is taken or cannot be one, the subnet is taken or too small, or no subnet is free.
    pub async fn create(&self, spec: &NetworkSpec) -> Result<Network, NetworkError> {
        if spec.name == USER_NETWORK {
            return Err(NetworkError::Reserved {
                name: spec.name.clone(),
            });
        }
        let folder = self.folder(&spec.name)?;
        let record = self.choose(spec).await?;
        let new = self
            .dir()
            .join(format!(".new-{}-{:016x}", spec.name, file::random_u64()));
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
        file::sync_dir(self.dir())?;
        Ok(Network::new(record, self.home_id()))
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
                .map(|nth| name::ula(self.home_id(), name, nth))
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
            labels: spec.labels.clone(),
            created_ns: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
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
        let routes = Links::open()?.routes_but(&name::bridge(self.home_id(), name)).await?;
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
        machines.extend(reconcile::attached(self, name)?.into_iter().map(|s| s.machine));
        machines.sort();
        machines.dedup();
        if !machines.is_empty() {
            let name = name.to_owned();
            return Err(NetworkError::InUse { name, machines });
        }
        // What a crash left.
        reconcile::sweep(self, &network, &lock, &|_| false).await?;
        let gone = self.dir().join(format!(".gone-{name}-{:016x}", file::random_u64()));
        let folder = self.folder(name)?;
        fs::rename(&folder, &gone).map_err(|e| FileError::io("remove", &folder, e))?;
        file::sync_dir(self.dir())?;
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
        let present = reconcile::attached(self, name)?;
        let Some(mut endpoint) = present.into_iter().find(|s| s.machine == machine) else {
            return Ok(());
        };
        if endpoint.membership != *membership {
            endpoint.membership = membership.clone();
            reconcile::record(self, &network, endpoint)?;
            reconcile::reconcile(self, &network, &lock).await?;
        }
        Ok(())
    }

    /// The machines that are attached to a network now, as its rules and name service are made from.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn endpoints(&self, name: &str) -> Result<Vec<Endpoint>, NetworkError> {
        reconcile::attached(self, name)
    }

    async fn free_subnet(&self, name: &str, others: &[Network]) -> Result<Ipv4Net, NetworkError> {
        let mut taken = Links::open()?.ipv4_routes(&name::bridge(self.home_id(), name)).await?;
        taken.extend(others.iter().filter(|n| n.name() != name).map(Network::ipv4));
        let seed = name::hash(&[b"subnet", self.home_id().as_bytes(), name.as_bytes()]);
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
        Ok(Network::new(record, self.home_id()))
    }

    /// The addresses of `machine` in `network`: those it has, else `want`, else free ones. It keeps them until
    /// [`Networks::release`], through stops and reboots. Idempotent; safe among processes and threads.
    ///
    /// # Errors
    /// When `want` is not an address for a machine, is another machine's or not the one the machine has, or none is free.
    pub async fn lease(&self, network: &Network, machine: &str, want: AddressRequest) -> Result<Lease, NetworkError> {
        name::check(machine)?;
        let _lock = lease::lock(self, network).await?;
        // The network may have moved to another subnet since the caller read it; the plan then refuses the address.
        lease::take(self, &self.get(network.name())?, machine, want)
    }

    /// Gives back all addresses of `machine` in the network `network`. Idempotent; a network that is gone is fine.
    ///
    /// # Errors
    /// When a lease is there and cannot be removed.
    pub fn release(&self, network: &str, machine: &str) -> Result<(), NetworkError> {
        name::check(machine)?;
        lease::release(self, network, machine)
    }

    /// Gives back the addresses of all machines that `is_gone` names, in every network.
    ///
    /// # Errors
    /// As [`Networks::release`].
    pub fn release_all(&self, is_gone: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
        for network in self.list()? {
            for (_, machine) in self.leases(network.name())? {
                if is_gone(&machine) {
                    self.release(network.name(), &machine)?;
                }
            }
        }
        Ok(())
    }

    /// The leases of a network, by address: (address, machine).
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn leases(&self, network: &str) -> Result<Vec<(IpAddr, String)>, NetworkError> {
        lease::all(self, network)
    }

    /// Refuses host ports that cannot be published for `machine` right now: used by another process, published by another
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
    /// The first network that cannot be brought in line.
    pub async fn reconcile(&self, alive: &dyn Fn(&str) -> bool) -> Result<(), NetworkError> {
        for network in self.list()? {
            let lock = self.lock(network.name()).await?;
            reconcile::sweep(self, &network, &lock, alive).await?;
        }
        Ok(())
    }
}
