//! A machine's connection to a network, as a plan: everything the guest and the hypervisor have to be told. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::endpoint::Membership;
use crate::error::NetworkError;
use crate::lease::Lease;
use crate::name::{self, Mac};
use crate::network::Network;
use crate::publish::Publish;
use crate::resource::Resource;

/// What of an attachment only one through passt has (see [`crate::user`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMode {
    /// Where passt answers for the resolver on the host's loopback; `None` when the machine reaches its resolvers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Ipv4Addr>,
}

/// What an attachment is planned from.
#[derive(Debug, Clone, Copy)]
pub struct AttachmentRequest<'a> {
    /// The machine's id.
    pub machine: &'a str,
    /// Its leased addresses (see [`crate::Networks::lease`]).
    pub lease: Lease,
    /// Its how-manieth interface it is, from 0.
    pub index: u8,
    /// The machine's default routes go through it.
    pub is_default: bool,
    /// Ports to publish.
    pub publish: &'a [Publish],
    /// What the network is told of the machine.
    pub membership: &'a Membership,
    /// Resolvers for the guest in place of the network's own.
    pub nameservers: &'a [IpAddr],
    /// Search domains for the guest.
    pub search: &'a [String],
}

/// A route of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` for all.
    pub destination: IpNet,
    /// By way of.
    pub gateway: IpAddr,
}

/// A machine's connection to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The machine's id.
    pub machine: String,
    /// The interface in the guest, `eth0`; it is found by its MAC.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The tap on the host.
    pub tap: String,
    /// Addresses with their prefix lengths, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// The host in this network, IPv4.
    pub gateway4: Ipv4Addr,
    /// The host in this network, IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Routes of the guest.
    pub routes: Vec<Route>,
    /// Resolvers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// What the network is told of the machine.
    #[serde(flatten)]
    pub membership: Membership,
    /// Set when it goes through passt in place of a tap on a bridge (see [`crate::user`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserMode>,
}

impl Attachment {
    /// Plans the connection of a machine to `network`.
    ///
    /// # Errors
    /// When the address is not one for a machine of that network, two ports are published twice, or the machine's id cannot
    /// be one.
    pub fn plan(network: &Network, request: AttachmentRequest<'_>) -> Result<Attachment, NetworkError> {
        let AttachmentRequest { machine, lease, .. } = request;
        name::check(machine)?;
        let leased = [Some(IpAddr::V4(lease.ipv4)), lease.ipv6.map(IpAddr::V6)];
        if let Some(address) = leased.into_iter().flatten().find(|a| !network.may_have(*a)) {
            return Err(NetworkError::AddressOutside {
                name: network.name().to_owned(),
                address,
                subnet: network.subnets(),
            });
        }
        Publish::check_set(request.publish)?;
        request
            .membership
            .names
            .iter()
            .try_for_each(|alias| name::check_alias(alias))?;
        let mut addresses: Vec<IpNet> = Ipv4Net::new(lease.ipv4, network.ipv4().prefix_len())
            .into_iter()
            .map(IpNet::V4)
            .collect();
        addresses.extend(lease.ipv6.and_then(|a| Ipv6Net::new(a, 64).ok()).map(IpNet::V6));
        Ok(Attachment {
            network: network.name().to_owned(),
            machine: machine.to_owned(),
            interface: format!("eth{}", request.index),
            mac: network.mac(machine),
            mtu: network.mtu(),
            tap: network.tap(machine),
            addresses,
            gateway4: network.gateway4(),
            gateway6: network.gateway6(),
            routes: match request.is_default {
                true => default_routes(network),
                false => Vec::new(),
            },
            nameservers: match request.nameservers {
                [] => vec![network.gateway4().into()],
                given => given.to_vec(),
            },
            search: request.search.to_vec(),
            publish: request.publish.to_vec(),
            membership: request.membership.clone(),
            user: None,
        })
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|a| match a {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        })
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|a| match a {
            IpNet::V6(net) => Some(net.addr()),
            IpNet::V4(_) => None,
        })
    }

    /// Whether the machine's default routes go through it.
    pub fn is_default(&self) -> bool {
        !self.routes.is_empty()
    }

    /// Has the machine's default routes go through it.
    pub fn make_default(&mut self, network: &Network) {
        self.routes = default_routes(network);
        self.membership.secondary = false;
    }

    /// What is to be made for it, in this order, and undone in reverse: the lease (which outlives stops), the network, the
    /// tap, the published ports. Nothing for one through passt, which is a process.
    pub fn resources(&self) -> Vec<Resource> {
        if self.user.is_some() {
            return Vec::new();
        }
        let Some(ipv4) = self.ipv4() else {
            return Vec::new();
        };
        let (network, machine, ipv6) = (self.network.clone(), self.machine.clone(), self.ipv6());
        let both = || (network.clone(), machine.clone());
        let (n, m) = both();
        let mut all = vec![Resource::Lease {
            network: n,
            machine: m,
            ipv4,
            ipv6,
        }];
        let (n, m) = both();
        all.push(Resource::NetworkUp {
            network: n,
            machine: m,
            ipv4,
            ipv6,
            membership: self.membership.clone(),
        });
        let (n, m) = both();
        all.push(Resource::Tap { network: n, machine: m });
        if !self.publish.is_empty() {
            let ports = self.publish.clone();
            all.push(Resource::Publish {
                network,
                machine,
                ipv4,
                ipv6,
                ports,
            });
        }
        all
    }
}

fn default_routes(network: &Network) -> Vec<Route> {
    let mut routes = vec![Route {
        destination: IpNet::V4(Ipv4Net::default()),
        gateway: network.gateway4().into(),
    }];
    routes.extend(network.gateway6().map(|gateway| Route {
        destination: IpNet::V6(Ipv6Net::default()),
        gateway: gateway.into(),
    }));
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(address: &str, publish: &[Publish]) -> Result<Attachment, NetworkError> {
        let network = Network::example("10.208.7.0/24", Some("fd00:1::/64"));
        let request = AttachmentRequest {
            machine: "0123456789ab",
            lease: Lease {
                ipv4: address.parse().unwrap(),
                ipv6: network.ipv6_of("0123456789ab"),
            },
            index: 0,
            is_default: true,
            publish,
            membership: &Membership::default(),
            nameservers: &["192.0.2.53".parse().unwrap()],
            search: &[],
        };
        Attachment::plan(&network, request)
    }

    #[test]
    fn a_plan_reads_back_from_its_json_and_is_as_written_down() {
        let attachment = plan("10.208.7.9", &["8080:80".parse().unwrap()]).unwrap();
        let json = serde_json::to_string_pretty(&attachment).unwrap() + "\n";
        assert_eq!(json, include_str!("../tests/golden/attachment.json"));
        assert_eq!(serde_json::from_str::<Attachment>(&json).unwrap(), attachment);
    }

    #[test]
    fn resources_come_in_the_order_in_which_they_need_each_other() {
        let resources = plan("10.208.7.9", &[]).unwrap().resources();
        assert!(matches!(
            resources[..],
            [Resource::Lease { .. }, Resource::NetworkUp { .. }, Resource::Tap { .. }]
        ));
        assert!(resources[0].outlives_stop() && !resources[1].outlives_stop());
    }

    #[test]
    fn the_gateways_address_and_a_port_wanted_twice_are_refused() {
        assert!(matches!(
            plan("10.208.7.1", &[]),
            Err(NetworkError::AddressOutside { .. })
        ));
        let twice = ["80:80".parse().unwrap(), "127.0.0.1:80:81".parse().unwrap()];
        let output = plan("10.208.7.9", &twice).unwrap_err().to_string();
        assert!(output.contains("'80:80/tcp' and '127.0.0.1:80:81/tcp'"), "{output}");
    }
}
