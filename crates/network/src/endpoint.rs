//! An attached machine, as the network sees it: what rules and name service are made from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::name;
use crate::network::Network;
use crate::policy::Policy;
use crate::publish::Publish;

/// What a network knows of a member beside its addresses. Fixed at the machine's creation, or by `network connect`; part
/// of the attachment, of its journal line and of the attachment's file, so that a field is added here alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Names under which the others find it: its own first, then its aliases. Lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The other networks that the machine is in, which answer for names that this one does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_in: Vec<String>,
    /// The machine's default routes go through another network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secondary: bool,
    /// What it may reach, and how fast.
    #[serde(default, skip_serializing_if = "Policy::is_none")]
    pub policy: Policy,
}

/// One attached machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The machine's id.
    pub machine: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// What else is known of it.
    pub membership: Membership,
    /// The ports it publishes.
    pub ports: Vec<Publish>,
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::V4(self.ipv4)), self.ipv6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
    }

    pub(crate) fn own_ipv6(&self, network: &Network) -> Vec<Ipv6Addr> {
        let mut own = vec![name::link_local(network.mac(&self.machine))];
        own.extend(self.ipv6);
        own.extend(network.ipv6_of(&self.machine).filter(|a| self.ipv6 != Some(*a)));
        own
    }
}
