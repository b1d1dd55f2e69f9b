//! The nftables rule set of one network, as text. Pure: a function of the network and of its attached machines.
//!
//! One table of family `inet` and one of family `bridge` (see `spoofing`), both named like the bridge; the text replaces
//! them as a whole in one transaction. The chains of the first:
//! * `guard`: machines cannot reach the host's loopback addresses, although `route_localnet` is on for the bridge.
//! * `published`: where a local destination goes; used for traffic from outside and from machines (`prerouting`) and from
//!   the host itself (`output`).
//! * `postrouting`: what leaves the subnet gets the host's address; so does what would be answered past us (from 127.0.0.1,
//!   and from machine to machine by way of a published port).
//! * `input`: who reaches the network's name service, and what an internal network has of the host.
//! * `input` and `forward` begin with what a machine's policy says (see `policy`).
//! * `forward`: a machine sends from its subnet only; from elsewhere come only answers and published ports.
//!
//! Where bridged frames are filtered (`bridge-nf-call-iptables`), the kernel bridges a redirected frame, also one that a
//! machine sends to a port it publishes itself: so the bridge may send back to a machine's port (see `spoofing`).
//!
//! An `accept` here ends our chain, not the filters of others: a drop policy of another table still drops.

use std::fmt::Write;
use std::net::IpAddr;

use crate::endpoint::Endpoint;
use crate::network::Network;
use crate::policy_rules;
use crate::publish::Publish;
use crate::spoofing;

/// The script for `nft -f -` that makes the network's tables what they should be, whatever they were.
pub fn render(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = remove(network.bridge());
    // Writing to a String cannot fail.
    let _ = write!(out, "table inet {} {{\n{}", network.bridge(), guard(network.bridge()));
    out += "\tchain published {\n";
    for machine in endpoints {
        for port in &machine.ports {
            for rule in port_rules(machine, port) {
                let _ = writeln!(out, "\t\t{rule} comment \"{}\"", machine.machine);
            }
        }
    }
    out += "\t}\n";
    out += NAT_HOOKS;
    out += &postrouting(network);
    out += &policy_rules::chains(network, endpoints);
    out += &hooked(&input(network), &policy_rules::jumps(network, endpoints, "_host"));
    out += &hooked(&forward(network), &policy_rules::jumps(network, endpoints, "_out"));
    out += "}\n";
    out + &spoofing::table(network, endpoints)
}

/// The script that removes the tables of a network, also when they are not there.
pub(crate) fn remove(table: &str) -> String {
    let one = |family: &str| format!("table {family} {table}\ndelete table {family} {table}\n");
    one("inet") + &one("bridge")
}

/// A chain with rules put before its own: behind the line that says what it hooks.
fn hooked(chain: &str, rules: &str) -> String {
    chain.replacen("policy accept;\n", &format!("policy accept;\n{rules}"), 1)
}

fn guard(bridge: &str) -> String {
    format!(
        "\tchain guard {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifname \"{bridge}\" ip saddr 127.0.0.0/8 drop\n\
         \t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n\
         \t}}\n"
    )
}

const NAT_HOOKS: &str = "\tchain prerouting {\n\
    \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
    \t\tfib daddr type local jump published\n\
    \t}\n\
    \tchain output {\n\
    \t\ttype nat hook output priority -100; policy accept;\n\
    \t\tfib daddr type local jump published\n\
    \t}\n";

fn postrouting(network: &Network) -> String {
    let (bridge, v4) = (network.bridge(), network.ipv4());
    let mut out = format!(
        "\tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname \"{bridge}\" ct status dnat ip saddr 127.0.0.0/8 masquerade\n\
         \t\toifname \"{bridge}\" ct status dnat ip saddr {v4} masquerade\n"
    );
    if let Some(v6) = network.ipv6() {
        let _ = writeln!(out, "\t\toifname \"{bridge}\" ct status dnat ip6 saddr {v6} masquerade");
    }
    let away = format!("oifname != {{ \"lo\", \"{bridge}\" }}");
    let _ = writeln!(out, "\t\t{away} ip saddr {v4} ip daddr != {v4} masquerade");
    if let Some(v6) = network.ipv6() {
        let _ = writeln!(out, "\t\t{away} ip6 saddr {v6} ip6 daddr != {v6} masquerade");
    }
    out + "\t}\n"
}

/// The network's own name service and DHCP are for its machines; an internal one has nothing else of the host.
fn input(network: &Network) -> String {
    let bridge = network.bridge();
    let mut out = "\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n".to_owned();
    let others = format!("iifname != {{ \"lo\", \"{bridge}\" }}");
    let mut gateways = vec![format!("ip daddr {}", network.gateway4())];
    gateways.extend(network.gateway6().map(|gateway| format!("ip6 daddr {gateway}")));
    for gateway in gateways {
        for protocol in ["udp", "tcp"] {
            let _ = writeln!(out, "\t\t{others} {gateway} {protocol} dport 53 drop");
        }
    }
    if network.is_internal() {
        for rule in [
            "ct state established,related accept",
            "meta l4proto { icmp, ipv6-icmp } accept",
            "udp dport { 53, 67, 547 } accept",
            "tcp dport 53 accept",
            "drop",
        ] {
            let _ = writeln!(out, "\t\tiifname \"{bridge}\" {rule}");
        }
    }
    out + "\t}\n"
}

fn forward(network: &Network) -> String {
    let (bridge, v4) = (network.bridge(), network.ipv4());
    let v6 = match network.ipv6() {
        Some(v6) => format!("ip6 saddr != {v6}"),
        None => "meta nfproto ipv6".to_owned(),
    };
    if network.is_internal() {
        return format!(
            "\tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy accept;\n\
             \t\tiifname \"{bridge}\" oifname \"{bridge}\" accept\n\
             \t\tiifname \"{bridge}\" drop\n\
             \t\toifname \"{bridge}\" drop\n\
             \t}}\n"
        );
    }
    // Frames between two machines come by only where bridged traffic is filtered too; they are not ours to judge.
    format!(
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{bridge}\" oifname \"{bridge}\" accept\n\
         \t\tiifname \"{bridge}\" ip saddr != {v4} drop\n\
         \t\tiifname \"{bridge}\" {v6} drop\n\
         \t\tiifname \"{bridge}\" accept\n\
         \t\toifname \"{bridge}\" ct state established,related accept\n\
         \t\toifname \"{bridge}\" ct status dnat accept\n\
         \t\toifname \"{bridge}\" drop\n\
         \t}}\n"
    )
}

/// The rules of one `-p`: one per family, or one per port and family when the range is shifted, since a target range
/// would be filled in any order.
fn port_rules(machine: &Endpoint, port: &Publish) -> Vec<String> {
    let mut targets: Vec<IpAddr> = vec![machine.ipv4.into()];
    targets.extend(machine.ipv6.map(IpAddr::V6));
    let mut rules = Vec::new();
    for target in targets {
        let Some(from) = from_match(port.address, target) else {
            continue;
        };
        let (family, host) = match target {
            IpAddr::V4(a) => ("ip", a.to_string()),
            IpAddr::V6(a) => ("ip6", format!("[{a}]")),
        };
        let protocol = port.protocol;
        if port.host == port.guest {
            let host = host.trim_matches(['[', ']']);
            rules.push(format!("{from} {protocol} dport {} dnat {family} to {host}", port.host));
            continue;
        }
        let pairs = port.host.ports().zip(port.guest.ports());
        rules.extend(pairs.map(|(h, g)| format!("{from} {protocol} dport {h} dnat {family} to {host}:{g}")));
    }
    rules
}

/// The match for destinations at `address` that can lead to `target`; none when the families differ.
fn from_match(address: Option<IpAddr>, target: IpAddr) -> Option<String> {
    match (address, target) {
        (None, IpAddr::V4(_)) => Some("meta nfproto ipv4".to_owned()),
        // The kernel never lets a packet from ::1 leave the loopback device, so it is left alone and refused at once.
        (None, IpAddr::V6(_)) => Some("ip6 daddr != ::1".to_owned()),
        (Some(a), target) if a.is_ipv4() != target.is_ipv4() => None,
        (Some(a), target) if a.is_unspecified() => from_match(None, target),
        (Some(IpAddr::V4(a)), _) => Some(format!("ip daddr {a}")),
        (Some(IpAddr::V6(a)), _) => Some(format!("ip6 daddr {a}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn endpoint(ports: &[&str]) -> Endpoint {
        Endpoint {
            machine: "m1".to_owned(),
            ipv4: Ipv4Addr::new(10, 208, 0, 2),
            ipv6: Some("fd00::2".parse().unwrap()),
            membership: Default::default(),
            ports: ports.iter().map(|p| p.parse().unwrap()).collect(),
        }
    }

    fn rules(port: &str) -> Vec<String> {
        port_rules(&endpoint(&[]), &port.parse().unwrap())
    }

    #[test]
    fn a_port_on_all_addresses_has_a_rule_per_family() {
        let expected = [
            "meta nfproto ipv4 tcp dport 8080 dnat ip to 10.208.0.2:80",
            "ip6 daddr != ::1 tcp dport 8080 dnat ip6 to [fd00::2]:80",
        ];
        assert_eq!(rules("8080:80"), expected);
    }

    #[test]
    fn a_port_on_one_address_has_one_rule() {
        assert_eq!(
            rules("127.0.0.1:53:5353/udp"),
            ["ip daddr 127.0.0.1 udp dport 53 dnat ip to 10.208.0.2:5353"]
        );
        assert_eq!(
            rules("[fd00::9]:80:81"),
            ["ip6 daddr fd00::9 tcp dport 80 dnat ip6 to [fd00::2]:81"]
        );
        assert_eq!(rules("0.0.0.0:80:81").len(), 1);
    }

    #[test]
    fn a_range_keeps_its_order() {
        assert_eq!(
            rules("127.0.0.1:80-90:80-90"),
            ["ip daddr 127.0.0.1 tcp dport 80-90 dnat ip to 10.208.0.2"]
        );
        let shifted = rules("127.0.0.1:80-81:90-91");
        assert_eq!(shifted.len(), 2);
        assert!(shifted[1].contains("dport 81 dnat ip to 10.208.0.2:91"), "{shifted:?}");
    }

    #[test]
    fn the_whole_rule_set_is_as_written_down() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        let text = render(&network, &[endpoint(&["8080:80", "127.0.0.1:7000-7001:7000-7001/udp"])]);
        assert_eq!(text, include_str!("../tests/golden/rules.nft"));
    }
}
