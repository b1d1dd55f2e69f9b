//! Address leases: one file per address, `leases/<ip>`, whose content is the id of the machine that has it.
//!
//! # Invariants
//! A lease file appears whole and never replaces another (unnamed file + `linkat`), so an address has one owner even among
//! processes that do not take the lock. The lock `leases.lock` only keeps one machine from getting two addresses.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use zmachine_sys::file::{self, FileError, NewFile};
use zmachine_sys::lock::FileLock;

use crate::error::NetworkError;
use crate::home::{self, Networks};
use crate::name;
use crate::network::Network;

/// The addresses of a machine in a network, from its creation to its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6; `None` when the network has none.
    pub ipv6: Option<Ipv6Addr>,
}

/// Addresses that a machine asks for; `None` leaves the choice to the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressRequest {
    /// IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

impl From<Lease> for AddressRequest {
    fn from(lease: Lease) -> AddressRequest {
        AddressRequest {
            ipv4: Some(lease.ipv4),
            ipv6: lease.ipv6,
        }
    }
}

/// The lock under which leases of `network` are taken.
pub(crate) async fn lock(networks: &Networks, network: &Network) -> Result<FileLock, NetworkError> {
    home::lock(&networks.folder(network.name())?.join("leases.lock")).await
}

/// The addresses `machine` has, or gets now.
pub(crate) fn take(
    networks: &Networks,
    network: &Network,
    machine: &str,
    want: AddressRequest,
) -> Result<Lease, NetworkError> {
    let wanted = [want.ipv4.map(IpAddr::V4), want.ipv6.map(IpAddr::V6)];
    for address in wanted.into_iter().flatten() {
        check(network, address)?;
    }
    let taker = Taker {
        networks,
        network,
        machine,
        all: all(networks, network.name())?,
    };
    let ipv4 = match taker.present(|a| a.is_ipv4(), wanted[0])? {
        Some(address) => address,
        None => match wanted[0] {
            Some(address) => taker.claim(address)?,
            None => taker.first(candidates(network, machine).map(IpAddr::V4))?,
        },
    };
    let mut lease = Lease {
        ipv4: match ipv4 {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        },
        ipv6: None,
    };
    let derived = network.ipv6_of(machine).map(IpAddr::V6);
    let Some(derived) = derived else {
        return Ok(lease);
    };
    let taken = match taker.present(|a| a.is_ipv6(), wanted[1])? {
        Some(address) => Ok(address),
        None => taker.claim(wanted[1].unwrap_or(derived)),
    };
    match taken {
        Ok(IpAddr::V6(address)) => lease.ipv6 = Some(address),
        Ok(IpAddr::V4(_)) => {}
        Err(error) => {
            // All of it or nothing: what was there before stays.
            if taker.present(|a| a.is_ipv4(), None)?.is_none() {
                file::remove_if_there(&folder(networks, network.name())?.join(ipv4.to_string()))?;
            }
            return Err(error);
        }
    }
    Ok(lease)
}

fn check(network: &Network, address: IpAddr) -> Result<(), NetworkError> {
    if network.may_have(address) {
        return Ok(());
    }
    Err(NetworkError::AddressOutside {
        name: network.name().to_owned(),
        address,
        subnet: network.subnets(),
    })
}

/// One machine at the taking of addresses.
struct Taker<'a> {
    networks: &'a Networks,
    network: &'a Network,
    machine: &'a str,
    all: Vec<(IpAddr, String)>,
}

impl Taker<'_> {
    /// The address it has already; an error when it wants another one.
    fn present(&self, family: impl Fn(&IpAddr) -> bool, want: Option<IpAddr>) -> Result<Option<IpAddr>, NetworkError> {
        let mine = |(address, machine): &&(IpAddr, String)| family(address) && machine == self.machine;
        let Some((address, _)) = self.all.iter().find(mine) else {
            return Ok(None);
        };
        match want {
            Some(other) if other != *address => Err(NetworkError::AddressFixed {
                name: self.network.name().to_owned(),
                machine: self.machine.to_owned(),
                address: *address,
            }),
            _ => Ok(Some(*address)),
        }
    }

    fn claim(&self, address: IpAddr) -> Result<IpAddr, NetworkError> {
        if create(self.networks, self.network, self.machine, address)? {
            return Ok(address);
        }
        let owner = self.all.iter().find(|(a, _)| *a == address);
        Err(NetworkError::AddressTaken {
            name: self.network.name().to_owned(),
            address,
            owner: owner.map_or_else(|| "?".to_owned(), |(_, m)| m.clone()),
        })
    }

    fn first(&self, candidates: impl Iterator<Item = IpAddr>) -> Result<IpAddr, NetworkError> {
        for address in candidates {
            if create(self.networks, self.network, self.machine, address)? {
                return Ok(address);
            }
        }
        Err(NetworkError::NoFreeAddress {
            name: self.network.name().to_owned(),
            subnet: self.network.ipv4(),
        })
    }
}

/// All addresses a machine may have, from a place that depends on its id: a new machine rarely gets the address of one
/// that just went, which neighbours and connection tracking still remember.
fn candidates(network: &Network, machine: &str) -> impl Iterator<Item = Ipv4Addr> {
    let net = network.ipv4();
    let base = u32::from(net.network());
    let count = 1u32 << (32 - net.prefix_len());
    let seed = name::hash(&[b"lease", machine.as_bytes()]);
    let start = u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]) % count;
    let all = (0..count).map(move |i| Ipv4Addr::from(base + (start + i) % count));
    all.filter(|a| network.may_have(IpAddr::V4(*a)))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Writes the lease unless somebody has the address.
fn create(networks: &Networks, network: &Network, machine: &str, address: IpAddr) -> Result<bool, NetworkError> {
    let dir = folder(networks, network.name())?;
    let path = dir.join(address.to_string());
    if path.exists() {
        return Ok(false);
    }
    let new = NewFile::create(&dir, 0o600)?;
    let written = writeln!(new.file(), "{machine}");
    written.map_err(|e| FileError::io("write", &path, e))?;
    Ok(new.publish_new(&path, true)?)
}

/// Removes the leases of `machine`.
pub(crate) fn release(networks: &Networks, network: &str, machine: &str) -> Result<(), NetworkError> {
    let dir = folder(networks, network)?;
    for (address, _) in all(networks, network)?.iter().filter(|(_, m)| m == machine) {
        file::remove_if_there(&dir.join(address.to_string()))?;
    }
    Ok(())
}

/// The leases by address; none for a network that is not there.
pub(crate) fn all(networks: &Networks, network: &str) -> Result<Vec<(IpAddr, String)>, NetworkError> {
    let dir = folder(networks, network)?;
    let names = match home::entries(&dir) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        names => names?,
    };
    let mut all = Vec::new();
    for address in names.iter().filter_map(|n| n.parse::<IpAddr>().ok()) {
        match file::read_text(&dir.join(address.to_string()), 256) {
            Ok(text) => all.push((address, text.trim().to_owned())),
            // Released since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    all.sort();
    Ok(all)
}

fn folder(networks: &Networks, network: &str) -> Result<PathBuf, NetworkError> {
    Ok(networks.folder(network)?.join("leases"))
}
