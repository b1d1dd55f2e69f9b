//! One network: what is on disk of it, and what follows from that. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::links;
#[cfg(test)]
use crate::name::DEFAULT_NETWORK;
use crate::name::{self, Mac};

/// The version of `network.json`.
pub(crate) const VERSION: u32 = 1;

/// The content of `network.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) version: u32,
    pub(crate) name: String,
    pub(crate) ipv4: Ipv4Net,
    pub(crate) ipv6: Option<Ipv6Net>,
    pub(crate) mtu: u32,
    /// Whether the subnet was chosen by us, so that we may choose again while nobody has an address in it.
    pub(crate) chosen: bool,
    /// Whether nothing goes in or out of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) internal: bool,
    /// Name servers for what the network does not know itself; those of the host when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dns: Vec<IpAddr>,
    /// The user's own words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// When it was made, in nanoseconds since 1970; 0 for one of an earlier version, which did not write it down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) created_ns: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A network: what is on disk of it, with the names derived from its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub(crate) record: NetworkRecord,
    home: String,
    bridge: String,
}

impl Network {
    pub(crate) fn new(record: NetworkRecord, home: &str) -> Network {
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
            labels: BTreeMap::new(),
            created_ns: 0,
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

    /// The user's own words about it.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.record.labels
    }

    /// When it was made, in nanoseconds since 1970; 0 when an earlier version made it.
    pub fn created_ns(&self) -> u64 {
        self.record.created_ns
    }

    /// 64 hex digits that no other network has, one of the same name that was there before or is in another home included.
    pub fn id(&self) -> String {
        let (home, name, created) = (&self.home, &self.record.name, self.record.created_ns);
        let hash = blake2b_simd::Params::new()
            .hash_length(32)
            .hash(format!("network {home} {name} {created}").as_bytes());
        hash.to_hex().to_string()
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

    /// The Ethernet address of the bridge. No machine's: an id cannot start with a dot.
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
