//! dnsmasq's files, as text. Pure: a function of the network and of its attached machines. See dnsmasq(8).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::endpoint::Endpoint;
use crate::network::Network;

/// An address nobody can send to: a name server there makes dnsmasq refuse the question at once (RFC 1035, code 5), and
/// resolvers ask their next server then, as they would not after "no such name".
const REFUSING: &str = "255.255.255.255";

/// How long a machine may keep what it was told without asking again.
const LEASE: &str = "1h";

/// Seconds between unasked router advertisements, and how long a router is believed in.
const ADVERTISE_S: u32 = 60;
const ROUTER_S: u32 = 1800;

/// Who dnsmasq becomes when its sockets are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: &'static str,
    pub(super) group: &'static str,
}

/// The whole configuration.
pub(super) fn conf(network: &Network, dir: &Path, account: &Account) -> String {
    let (bridge, name, dir) = (network.bridge(), network.name(), dir.display());
    let Account { user, group } = account;
    let v4 = network.ipv4();
    let mut out = format!(
        "# Network {name:?}. Written by zmachine, which replaces it.\n\
         user={user}\ngroup={group}\npid-file=\n\
         interface={bridge}\nexcept-interface=lo\nbind-dynamic\n\
         no-hosts\naddn-hosts={dir}/hosts\nservers-file={dir}/servers\n\
         domain={name}\ncache-size=1000\ndns-forward-max=1000\n\
         dhcp-hostsfile={dir}/dhcp\nleasefile-ro\ndhcp-authoritative\nno-ping\nquiet-dhcp\nquiet-dhcp6\nquiet-ra\n\
         dhcp-range={},static,{},{LEASE}\n\
         dhcp-option=option:mtu,{}\n\
         dhcp-option=tag:secondary,option:router\n",
        v4.network(),
        v4.netmask(),
        network.mtu(),
    );
    // Writing to a String cannot fail.
    if network.is_internal() {
        out += "dhcp-option=option:router\n";
    }
    if let (Some(v6), Some(gateway)) = (network.ipv6(), network.gateway6()) {
        let router = if network.is_internal() { 0 } else { ROUTER_S };
        let _ = write!(
            out,
            "dhcp-range={},static,slaac,64,{LEASE}\nenable-ra\nra-param={bridge},mtu:{},{ADVERTISE_S},{router}\n\
             dhcp-option=option6:dns-server,[{gateway}]\n",
            v6.network(),
            network.mtu(),
        );
    }
    // Whom to ask is in the file of servers: to watch a resolv.conf takes one of the few inotify instances of a user.
    out + "no-resolv\n"
}

/// The names of all machines. The first of a line answers for the address.
pub(super) fn hosts(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = String::new();
    for endpoint in endpoints.iter().filter(|s| !s.membership.names.is_empty()) {
        for address in endpoint.addresses() {
            let _ = write!(out, "{address}");
            for name in &endpoint.membership.names {
                let _ = write!(out, " {name}.{} {name}", network.name());
            }
            out.push('\n');
        }
    }
    out
}

/// The addresses of all machines, by their Ethernet addresses.
pub(super) fn dhcp(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = String::new();
    for endpoint in endpoints {
        let _ = write!(out, "{}", network.mac(&endpoint.machine));
        if endpoint.membership.secondary {
            out += ",set:secondary";
        }
        for address in endpoint.addresses() {
            let _ = match address {
                IpAddr::V4(address) => write!(out, ",{address}"),
                IpAddr::V6(address) => write!(out, ",[{address}]"),
            };
        }
        // DHCP knows host names only, without underscores and dots.
        let plain = |name: &&String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if let Some(name) = endpoint.membership.names.iter().find(plain) {
            let _ = write!(out, ",{name}");
        }
        let _ = writeln!(out, ",{LEASE}");
    }
    out
}

/// Where questions go that the names do not answer. A name without a dot, or in the network's own domain, is nobody
/// else's; but when a machine is in other networks too, these are to be asked for theirs: "refused" sends resolvers there.
///
/// Nothing else is ever refused, since not all resolvers go on then (musl's waits for an answer until its patience ends, and
/// has no address at all when one of two families was refused): a machine's name has no other records than its addresses,
/// and where nobody can be asked, no other name exists.
/// `resolvers`: those of this host.
pub(super) fn servers(network: &Network, endpoints: &[Endpoint], others: &[Network], resolvers: &[String]) -> String {
    let mut out = format!("server=/{}/\n", network.name());
    let own: Vec<String> = network.dns().iter().map(ToString::to_string).collect();
    let asked = match (network.is_internal(), own.is_empty()) {
        (true, _) => &[][..],
        (false, true) => resolvers,
        (false, false) => &own[..],
    };
    let is_shared = endpoints.iter().any(|s| !s.membership.also_in.is_empty());
    if asked.is_empty() && !is_shared {
        return out + "server=/#/\n";
    }
    for server in asked {
        let _ = writeln!(out, "server={server}");
    }
    let names = own_names(network, endpoints);
    for name in &names {
        // A domain's line is for all that ends in it, but this name alone is ours: a machine may be called `dev`, or have
        // the alias `api.example.com`. What is below goes where it would have gone.
        let is_others = |other: &Network| is_within(name, other.name());
        let below = if others.iter().any(is_others) { REFUSING } else { "#" };
        let _ = write!(out, "server=/{name}/\nserver=/*.{name}/{below}\n");
    }
    let _ = writeln!(out, "server=//{}", if is_shared { REFUSING } else { "" });
    for other in others {
        // Where a machine here has the other network's name, what is below it has its line already.
        if !names.contains(other.name()) {
            let _ = writeln!(out, "server=/{}/{REFUSING}", other.name());
        }
        for subnet in [Some(IpNet::V4(other.ipv4())), other.ipv6().map(IpNet::V6)]
            .into_iter()
            .flatten()
        {
            let _ = writeln!(out, "rev-server={subnet},{REFUSING}");
        }
    }
    out
}

/// The names of all machines, without those in the network's own domain.
fn own_names<'a>(network: &Network, endpoints: &'a [Endpoint]) -> BTreeSet<&'a str> {
    let names = endpoints.iter().flat_map(|s| &s.membership.names).map(String::as_str);
    names.filter(|name| !is_within(name, network.name())).collect()
}

/// Whether a name is a domain or ends in it.
fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Membership;

    fn endpoint(names: &[&str], also_in: &[&str]) -> Endpoint {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        Endpoint {
            machine: "m1".to_owned(),
            ipv4: "10.208.0.2".parse().unwrap(),
            ipv6: Some("fd00::2".parse().unwrap()),
            membership: Membership {
                names: owned(names),
                also_in: owned(also_in),
                secondary: false,
                policy: Default::default(),
            },
            ports: vec![],
        }
    }

    #[test]
    fn the_files_are_as_written_down() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        let account = Account {
            user: "dnsmasq",
            group: "nogroup",
        };
        let endpoints = [endpoint(&["my_web", "web"], &[])];
        let all = [
            conf(&network, Path::new("/run/x"), &account),
            hosts(&network, &endpoints),
            dhcp(&network, &endpoints),
            servers(&network, &endpoints, &[], &["127.0.0.53".to_owned()]),
        ];
        assert_eq!(all.join("---\n"), include_str!("../../tests/golden/dnsmasq.txt"));
    }

    #[test]
    fn a_question_for_another_network_of_a_machine_is_refused_so_that_it_is_asked_there() {
        let network = Network::example("10.208.0.0/24", None);
        let other = Network::example("10.208.1.0/24", Some("fd00:1::/64")).named("back");
        let text = servers(&network, &[endpoint(&["a"], &["back"])], &[other], &[]);
        assert_eq!(
            text,
            "server=/default/\nserver=/a/\nserver=/*.a/#\nserver=//255.255.255.255\nserver=/back/255.255.255.255\n\
             rev-server=10.208.1.0/24,255.255.255.255\nrev-server=fd00:1::/64,255.255.255.255\n"
        );
    }

    #[test]
    fn a_name_that_is_another_networks_too_keeps_its_line_and_leaves_that_network_what_is_below() {
        let network = Network::example("10.208.0.0/24", None);
        let other = Network::example("10.208.1.0/24", None).named("back");
        let text = servers(&network, &[endpoint(&["back", "x.default"], &["back"])], &[other], &[]);
        assert_eq!(
            text,
            "server=/default/\nserver=/back/\nserver=/*.back/255.255.255.255\nserver=//255.255.255.255\n\
             rev-server=10.208.1.0/24,255.255.255.255\n"
        );
    }

    #[test]
    fn where_nobody_can_be_asked_no_other_name_exists() {
        let network = Network::example("10.208.0.0/24", None);
        let text = servers(&network, &[endpoint(&["a"], &[])], &[], &[]);
        assert_eq!(text, "server=/default/\nserver=/#/\n");
    }
}
