//! A network's presence in the kernel, and the attachment files it is a function of.
//!
//! # Layout
//! `attachments/<machine>`: `{"version":1,"boot_id":..,"ipv4":..,"ipv6":..,"names":["web"],"ports":["8080:80/tcp"]}`
//!
//! # Invariants
//! Everything here happens under the network's lock. Files change first, then [`reconcile`] brings the kernel in line: with
//! attachments there is a bridge with its addresses and sysctls, the table and forwarding; without there is nothing.
//! `reconcile` may be interrupted anywhere and run again. The bridge comes first and goes last: it is the sign by which
//! others see that there may be something to clean up.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;

use crate::endpoint::{Endpoint, Membership};
use crate::error::NetworkError;
use crate::home::{self, Networks};
use crate::links::{self, Links};
use crate::network::Network;
use crate::publish::Publish;
use crate::{dnsmasq, external_firewalls, name, nft, rules, sysctl};

const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AttachmentFile {
    version: u32,
    boot_id: String,
    ipv4: Ipv4Addr,
    ipv6: Option<Ipv6Addr>,
    #[serde(flatten)]
    membership: Membership,
    ports: Vec<Publish>,
}

fn folder(networks: &Networks, network: &str) -> Result<PathBuf, NetworkError> {
    Ok(networks.folder(network)?.join("attachments"))
}

fn path(networks: &Networks, network: &str, machine: &str) -> Result<PathBuf, NetworkError> {
    name::check(machine)?;
    Ok(folder(networks, network)?.join(machine))
}

/// Writes down that a machine needs the network.
pub(crate) fn record(networks: &Networks, network: &Network, endpoint: Endpoint) -> Result<(), NetworkError> {
    let path = path(networks, network.name(), &endpoint.machine)?;
    let content = AttachmentFile {
        version: VERSION,
        boot_id: boot_id(),
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
        membership: endpoint.membership,
        ports: endpoint.ports,
    };
    file::replace_json(&path, &content)?;
    networks.step("attachment written");
    Ok(())
}

/// Writes down that `machine` does not need the network any more.
pub(crate) fn forget(networks: &Networks, network: &Network, machine: &str) -> Result<(), NetworkError> {
    file::remove_if_there(&path(networks, network.name(), machine)?)?;
    networks.step("attachment removed");
    Ok(())
}

/// The attachments of this boot, by machine.
pub(crate) fn attached(networks: &Networks, network: &str) -> Result<Vec<Endpoint>, NetworkError> {
    let dir = folder(networks, network)?;
    let mut machines = match home::entries(&dir) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        names => names?,
    };
    machines.retain(|m| !m.starts_with('.'));
    machines.sort();
    let boot = boot_id();
    let mut all = Vec::new();
    for machine in machines {
        let path = dir.join(&machine);
        let found: AttachmentFile = match file::read_json(&path) {
            Ok(found) => found,
            // Removed since the listing, which happens to readers without the lock.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        if found.version != VERSION {
            let path = path.display().to_string();
            return Err(NetworkError::Version {
                path,
                found: found.version,
                known: VERSION,
            });
        }
        if found.boot_id == boot {
            all.push(Endpoint {
                machine,
                ipv4: found.ipv4,
                ipv6: found.ipv6,
                membership: found.membership,
                ports: found.ports,
            });
        }
    }
    Ok(all)
}

/// What all attached machines of the home publish.
pub(crate) fn published(networks: &Networks) -> Result<Vec<Endpoint>, NetworkError> {
    let mut all = Vec::new();
    for network in networks.list()? {
        all.extend(attached(networks, network.name())?);
    }
    Ok(all)
}

/// Brings the kernel in line with the attachment files. The caller holds the network's lock.
pub(crate) async fn reconcile(networks: &Networks, network: &Network, _lock: &FileLock) -> Result<(), NetworkError> {
    let attached = attached(networks, network.name())?;
    if attached.is_empty() {
        return tear_down(networks, network).await;
    }
    bring_up(networks, network, &attached).await
}

async fn bring_up(networks: &Networks, network: &Network, attached: &[Endpoint]) -> Result<(), NetworkError> {
    let bridge = network.bridge();
    let links = Links::open()?;
    let found = links.find(bridge).await?;
    let is_fresh = found.is_none();
    if found.as_ref().is_some_and(|link| !links::is_bridge(link)) {
        return Err(NetworkError::NotABridge {
            network: network.name().to_owned(),
            link: bridge.to_owned(),
        });
    }
    if is_fresh {
        refuse_collision(networks, network).await?;
        links.make_bridge(bridge, network.bridge_mac(), network.mtu()).await?;
        networks.step("bridge made");
    }
    let ipv6 = network.ipv6().is_some() && sysctl::has_ipv6();
    bridge_sysctls(bridge, ipv6)?;
    networks.step("bridge sysctls set");
    for address in network.gateways().into_iter().filter(|a| ipv6 || a.addr().is_ipv4()) {
        links.add_address(bridge, address).await?;
        networks.step("bridge address added");
    }
    nft::apply(bridge, &rules::render(network, attached)).await?;
    networks.step("rules applied");
    if !found.is_some_and(|link| links::is_up(&link)) {
        links.up(bridge).await?;
        networks.step("bridge up");
    }
    plug_in(networks, network, &links, attached).await?;
    tokio::try_join!(
        dnsmasq::ensure(networks, network, attached, is_fresh),
        external_firewalls::open(bridge, network.is_internal()),
    )?;
    sysctl::acquire(networks.host_dir(), bridge, ipv6).await?;
    networks.step("forwarding on");
    Ok(())
}

/// Makes ports of the bridge out of the taps that are not: somebody removed the bridge that they were on.
async fn plug_in(
    networks: &Networks,
    network: &Network,
    links: &Links,
    attached: &[Endpoint],
) -> Result<(), NetworkError> {
    let bridge = links.find(network.bridge()).await?.map(|link| link.header.index);
    for endpoint in attached {
        let name = network.tap(&endpoint.machine);
        let Some(tap) = links.find(&name).await? else {
            continue;
        };
        if links::controller(&tap) != bridge || !links::is_up(&tap) {
            links.enslave(&name, network.bridge(), network.mtu()).await?;
            links.up(&name).await?;
            networks.step("tap plugged in");
        }
    }
    Ok(())
}

async fn refuse_collision(networks: &Networks, network: &Network) -> Result<(), NetworkError> {
    match networks.collision(network).await? {
        None => Ok(()),
        Some(route) => Err(NetworkError::SubnetTaken {
            name: network.name().to_owned(),
            subnet: network.ipv4(),
            route,
        }),
    }
}

/// The bridge's own switches; they go with it.
fn bridge_sysctls(bridge: &str, ipv6: bool) -> Result<(), NetworkError> {
    // 127.0.0.1 of the host may be redirected to a machine (the `guard` chain keeps machines out); no other source
    // addresses come from the bridge than those routed to it.
    for (key, value) in [("route_localnet", "1"), ("rp_filter", "1")] {
        sysctl::set(&format!("net/ipv4/conf/{bridge}/{key}"), value)?;
    }
    if !ipv6 {
        return Ok(());
    }
    // The host is the router here: it listens to none, and its address is in nobody's way.
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
    ] {
        sysctl::set(&format!("net/ipv6/conf/{bridge}/{key}"), value)?;
    }
    Ok(())
}

async fn tear_down(networks: &Networks, network: &Network) -> Result<(), NetworkError> {
    let bridge = network.bridge();
    sysctl::release(networks.host_dir(), bridge).await?;
    networks.step("forwarding put back");
    dnsmasq::stop(networks, network)?;
    external_firewalls::close(bridge).await?;
    nft::apply(bridge, &rules::remove(bridge)).await?;
    networks.step("rules removed");
    let links = Links::open()?;
    // Whatever else has that name is not ours.
    if links.find(bridge).await?.is_none_or(|link| links::is_bridge(&link)) {
        links.remove(bridge).await?;
    }
    networks.step("bridge removed");
    Ok(())
}

/// Removes what belongs to machines that are not alive, then settles; nothing when all is well.
pub(crate) async fn sweep(
    networks: &Networks,
    network: &Network,
    lock: &FileLock,
    alive: &dyn Fn(&str) -> bool,
) -> Result<(), NetworkError> {
    let bridge = network.bridge();
    let dir = folder(networks, network.name())?;
    let machines: Vec<String> = home::entries(&dir)?
        .into_iter()
        .filter(|m| !m.starts_with('.'))
        .collect();
    let idle = !sysctl::link_exists(bridge) && !sysctl::is_holder(networks.host_dir(), bridge);
    if machines.is_empty() && idle {
        return Ok(());
    }
    let current = attached(networks, network.name())?;
    let keep = |m: &str| current.iter().any(|c| c.machine == m) && alive(m);
    let links = Links::open()?;
    for machine in machines.iter().filter(|m| !keep(m)) {
        links.remove(&network.tap(machine)).await?;
        networks.step("tap removed");
        forget(networks, network, machine)?;
    }
    reconcile(networks, network, lock).await
}
