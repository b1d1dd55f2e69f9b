//! Address leases: one file per address, `leases/<ip>`, whose content is the id of the machine that has it.
//!
//! # Invariants
//! A lease file appears whole and never replaces another (unnamed file + `linkat`), so an address has one owner even among
//! processes that do not take the lock. The lock `leases.lock` only keeps one machine from getting two addresses.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use std::io::Write;

use zmachine_sys::file::{self, FileError, NewFile};
use zmachine_sys::lock::FileLock;

use crate::error::NetworkError;
use crate::name;
use crate::network::{self, Network, Networks};

/// The lock under which leases of `network` are taken.
pub(crate) async fn lock(networks: &Networks, network: &Network) -> Result<FileLock, NetworkError> {
    network::lock(&networks.folder(network.name())?.join("leases.lock")).await
}

/// The address `machine` has, or gets now.
pub(crate) fn take(
    networks: &Networks,
    network: &Network,
    machine: &str,
    want: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, NetworkError> {
    let name = || network.name().to_owned();
    if let Some(address) = want.filter(|a| !network.may_have(*a)) {
        let subnet = network.ipv4();
        return Err(NetworkError::AddressOutside {
            name: name(),
            address,
            subnet,
        });
    }
    let all = all(networks, network.name())?;
    if let Some((address, _)) = all.iter().find(|(_, m)| m == machine) {
        return match want {
            Some(other) if other != *address => {
                let (machine, address) = (machine.to_owned(), *address);
                Err(NetworkError::AddressFixed {
                    name: name(),
                    machine,
                    address,
                })
            }
            _ => Ok(*address),
        };
    }
    if let Some(address) = want {
        if create(networks, network, machine, address)? {
            return Ok(address);
        }
        let owner = all
            .into_iter()
            .find(|(a, _)| *a == address)
            .map_or_else(|| "?".to_owned(), |(_, m)| m);
        return Err(NetworkError::AddressTaken {
            name: name(),
            address,
            owner,
        });
    }
    for address in candidates(network, machine) {
        if create(networks, network, machine, address)? {
            return Ok(address);
        }
    }
    Err(NetworkError::NoFreeAddress {
        name: name(),
        subnet: network.ipv4(),
    })
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
    all.filter(|a| network.may_have(*a)).collect::<Vec<_>>().into_iter()
}

/// Writes the lease unless somebody has the address.
fn create(networks: &Networks, network: &Network, machine: &str, address: Ipv4Addr) -> Result<bool, NetworkError> {
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
pub(crate) fn all(networks: &Networks, network: &str) -> Result<Vec<(Ipv4Addr, String)>, NetworkError> {
    let dir = folder(networks, network)?;
    let names = match network::entries(&dir) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        names => names?,
    };
    let mut all = Vec::new();
    for address in names.iter().filter_map(|n| n.parse::<Ipv4Addr>().ok()) {
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
