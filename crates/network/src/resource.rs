//! What a machine needs of the network, as values for its journal: each is written down before it is made, and undone in
//! reverse order.
//!
//! # Invariants
//! `make` after a crash in the middle of `make` or `undo` succeeds; `undo` of what is half made, not made, made in another
//! boot or removed by somebody else succeeds and leaves nothing.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use zmachine_sys::tap;

use crate::endpoint::{Endpoint, Membership};
use crate::error::NetworkError;
use crate::home::Networks;
use crate::lease::Lease;
use crate::links::Links;
use crate::network::Network;
use crate::publish::Publish;
use crate::{ports, reconcile, sysctl};

/// One thing to make and to undo. Its JSON is one line of a journal: `{"resource":"tap","network":..,"machine":..}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "resource", rename_all = "kebab-case")]
pub enum Resource {
    /// An address, from `create` to `rm` of the machine. See [`Resource::outlives_stop`].
    Lease {
        /// The network's name.
        network: String,
        /// The machine's id.
        machine: String,
        /// The address.
        ipv4: Ipv4Addr,
        /// The IPv6 address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv6: Option<Ipv6Addr>,
    },
    /// The machine's need of the network: with the first one bridge, rules and forwarding come, with the last one they go.
    NetworkUp {
        /// The network's name.
        network: String,
        /// The machine's id.
        machine: String,
        /// Its IPv4 address.
        ipv4: Ipv4Addr,
        /// Its IPv6 address.
        ipv6: Option<Ipv6Addr>,
        /// What the network is told of it.
        #[serde(flatten)]
        membership: Membership,
    },
    /// The machine's tap on the bridge.
    Tap {
        /// The network's name.
        network: String,
        /// The machine's id.
        machine: String,
    },
    /// Published ports: claimed on the host, and redirected.
    Publish {
        /// The network's name.
        network: String,
        /// The machine's id.
        machine: String,
        /// Its IPv4 address.
        ipv4: Ipv4Addr,
        /// Its IPv6 address.
        ipv6: Option<Ipv6Addr>,
        /// The ports.
        ports: Vec<Publish>,
    },
}

/// What making a resource yields.
#[derive(Debug)]
pub enum Made {
    /// Nothing to keep.
    Nothing,
    /// The descriptor of the tap, for the hypervisor (`-netdev tap,fd=`; it carries a virtio-net header). The tap is gone
    /// when this and all copies are closed.
    Tap(OwnedFd),
    /// Sockets that hold the published host ports; to be kept open until the resource is undone.
    Ports(Vec<OwnedFd>),
}

impl Resource {
    /// Whether it is to be undone when the machine is removed, not when it stops.
    pub fn outlives_stop(&self) -> bool {
        matches!(self, Resource::Lease { .. })
    }

    /// Makes it; idempotent but for what it returns: a tap of this machine that is there already is replaced.
    ///
    /// # Errors
    /// [`NetworkError::NeedsRoot`] without CAP_NET_ADMIN; else whatever the host refuses. What was made stays until `undo`.
    pub async fn make(&self, networks: &Networks) -> Result<Made, NetworkError> {
        match self {
            Resource::Lease {
                network,
                machine,
                ipv4,
                ipv6,
            } => {
                let network = networks.get(network)?;
                let lease = Lease {
                    ipv4: *ipv4,
                    ipv6: *ipv6,
                };
                networks.lease(&network, machine, lease.into()).await?;
                networks.step("lease written");
                Ok(Made::Nothing)
            }
            Resource::NetworkUp {
                network,
                machine,
                ipv4,
                ipv6,
                membership,
            } => {
                let endpoint = Endpoint {
                    machine: machine.clone(),
                    ipv4: *ipv4,
                    ipv6: *ipv6,
                    membership: membership.clone(),
                    ports: Vec::new(),
                };
                attach(networks, network, machine, |_| endpoint).await?;
                Ok(Made::Nothing)
            }
            Resource::Tap { network, machine } => make_tap(networks, &networks.get(network)?, machine)
                .await
                .map(Made::Tap),
            Resource::Publish {
                network,
                machine,
                ipv4,
                ipv6,
                ports,
            } => {
                let held = ports::claim(networks, machine, ports)?;
                networks.step("ports claimed");
                let publish = |present: Option<Endpoint>| Endpoint {
                    machine: machine.clone(),
                    ipv4: *ipv4,
                    ipv6: *ipv6,
                    membership: present.map(|endpoint| endpoint.membership).unwrap_or_default(),
                    ports: ports.clone(),
                };
                attach(networks, network, machine, publish).await?;
                Ok(Made::Ports(held))
            }
        }
    }

    /// Undoes it. Idempotent, from any process.
    ///
    /// # Errors
    /// [`NetworkError::NeedsRoot`] without CAP_NET_ADMIN; else whatever the host refuses; it can be tried again.
    pub async fn undo(&self, networks: &Networks) -> Result<(), NetworkError> {
        let network = match networks.get(self.network()) {
            // The network went, and what belonged to it.
            Err(NetworkError::NoSuchNetwork { .. }) => return Ok(()),
            network => network?,
        };
        match self {
            Resource::Lease { machine, .. } => networks.release(network.name(), machine),
            Resource::NetworkUp { machine, .. } => {
                let lock = networks.lock(network.name()).await?;
                reconcile::forget(networks, &network, machine)?;
                reconcile::reconcile(networks, &network, &lock).await
            }
            Resource::Tap { machine, .. } => {
                Links::open()?.remove(&network.tap(machine)).await?;
                networks.step("tap removed");
                Ok(())
            }
            Resource::Publish { machine, .. } => unpublish(networks, &network, machine).await,
        }
    }

    fn network(&self) -> &str {
        match self {
            Resource::Lease { network, .. }
            | Resource::NetworkUp { network, .. }
            | Resource::Tap { network, .. }
            | Resource::Publish { network, .. } => network,
        }
    }
}

/// Writes down what becomes of the machine's attachment, and brings the kernel in line.
async fn attach(
    networks: &Networks,
    network: &str,
    machine: &str,
    endpoint: impl FnOnce(Option<Endpoint>) -> Endpoint,
) -> Result<(), NetworkError> {
    let network = networks.get(network)?;
    let lock = networks.lock(network.name()).await?;
    let present = reconcile::attached(networks, network.name())?;
    let mine = present.into_iter().find(|s| s.machine == machine);
    reconcile::record(networks, &network, endpoint(mine))?;
    reconcile::reconcile(networks, &network, &lock).await
}

/// Takes the ports out of the rules. The attachment stays, as the undo of [`Resource::NetworkUp`] follows; a machine that
/// has none any more gets none.
async fn unpublish(networks: &Networks, network: &Network, machine: &str) -> Result<(), NetworkError> {
    let lock = networks.lock(network.name()).await?;
    let attached = reconcile::attached(networks, network.name())?;
    let Some(mine) = attached.into_iter().find(|a| a.machine == machine) else {
        return Ok(());
    };
    if mine.ports.is_empty() {
        return Ok(());
    }
    reconcile::record(
        networks,
        network,
        Endpoint {
            ports: Vec::new(),
            ..mine
        },
    )?;
    reconcile::reconcile(networks, network, &lock).await
}

async fn make_tap(networks: &Networks, network: &Network, machine: &str) -> Result<OwnedFd, NetworkError> {
    let name = network.tap(machine);
    let links = Links::open()?;
    // A tap of that name is left over from a start of this machine whose hypervisor still has it.
    links.remove(&name).await?;
    let fd = tap::open_tap(&name).map_err(|source| tap_error(&name, source))?;
    networks.step("tap made");
    // The bridge speaks for its ports: the host has no address on a tap.
    if sysctl::has_ipv6() {
        sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    links.enslave(&name, network.bridge(), network.mtu()).await?;
    networks.step("tap attached");
    links.up(&name).await?;
    networks.step("tap up");
    Ok(fd)
}

fn tap_error(name: &str, source: std::io::Error) -> NetworkError {
    if source.kind() == std::io::ErrorKind::PermissionDenied {
        return NetworkError::NeedsRoot {
            action: format!("to make tap {name}"),
        };
    }
    NetworkError::Tap {
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yesterdays_journal_lines_are_read_and_written_the_same() {
        for line in include_str!("../tests/golden/resources.jsonl").lines() {
            let resource: Resource = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&resource).unwrap(), line);
        }
    }
}
