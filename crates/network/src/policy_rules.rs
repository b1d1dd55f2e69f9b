//! The nftables rules of [`crate::Policy`]. Pure.
//!
//! * Nothing allowed is everything allowed. With one `allow` the rest is refused, but for answers to who connected to the
//!   machine, the network's own DHCP and name service, and what keeps a link going (ARP, neighbour discovery).
//! * Traffic by way of the host (`inet` table) is judged with connection tracking, and refused with an answer. Between machines
//!   of one network the bridge sees frames only, and not every kernel tracks connections there: answers over TCP are what
//!   opens no connection, those over UDP go to who asked within the last minutes. The rest is dropped.
//! * The rate is that of each direction by itself: what is above is dropped, which TCP takes as a sign to slow down. A machine
//!   that was idle may send a second's worth at once.

use std::fmt::Write;

use ipnet::IpNet;

use crate::endpoint::Endpoint;
use crate::network::Network;
use crate::policy::{Allow, Policy};

/// A virtual interface hands over packets of this size at once; a bucket must hold one.
const LARGEST_PACKET: u64 = 64 * 1024;

/// The match of nftables.
fn rule(allow: &Allow) -> String {
    let family = match allow.destination() {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    };
    let ports = allow
        .ports()
        .map(|(ports, protocol)| format!(" {protocol} dport {ports}"));
    format!("{family} daddr {}{}", allow.destination(), ports.unwrap_or_default())
}

fn limited(endpoints: &[Endpoint], is: impl Fn(&Policy) -> bool) -> impl Iterator<Item = &Endpoint> {
    endpoints.iter().filter(move |endpoint| is(&endpoint.membership.policy))
}

fn lines(rules: &[String]) -> String {
    rules.iter().map(|rule| format!("\t\t{rule}\n")).collect()
}

/// What the machines with an `allow` send comes from: the matches of one, by address family.
fn sources(network: &Network, endpoint: &Endpoint) -> Vec<String> {
    let bridge = network.bridge();
    let own = endpoint.own_ipv6(network);
    std::iter::once(format!("iifname \"{bridge}\" ip saddr {}", endpoint.ipv4))
        .chain(own.iter().map(|a| format!("iifname \"{bridge}\" ip6 saddr {a}")))
        .collect()
}

/// The chains of the `inet` table that judge what goes by way of the host and to it; nothing without an `allow`.
pub(crate) fn chains(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = String::new();
    for endpoint in limited(endpoints, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&endpoint.machine);
        let allowed = || {
            endpoint
                .membership
                .policy
                .allow
                .iter()
                .map(|a| format!("{} return", rule(a)))
        };
        let answers = "ct state established,related return".to_owned();
        let refuse = "reject with icmpx admin-prohibited".to_owned();
        let mut rules = vec![
            answers.clone(),
            // Seen here where bridged frames are filtered too (bridge-nf-call-ip6tables); nobody routes them.
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return".to_owned(),
        ];
        rules.extend(allowed());
        rules.push(refuse.clone());
        // Writing to a String cannot fail.
        let _ = write!(out, "\tchain {tap}_out {{\n{}\t}}\n", lines(&rules));
        let mut rules = vec![
            answers,
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } return".to_owned(),
            "udp dport { 67, 547 } return".to_owned(),
        ];
        let mut resolvers = vec![format!("ip daddr {}", network.gateway4())];
        resolvers.extend(network.gateway6().map(|gateway| format!("ip6 daddr {gateway}")));
        for resolver in resolvers {
            rules.push(format!("{resolver} udp dport 53 return"));
            rules.push(format!("{resolver} tcp dport 53 return"));
        }
        rules.extend(allowed());
        rules.push(refuse);
        let _ = write!(out, "\tchain {tap}_host {{\n{}\t}}\n", lines(&rules));
    }
    out
}

/// The rules that lead there, for the beginning of the chains `forward` (`_out`) and `input` (`_host`).
pub(crate) fn jumps(network: &Network, endpoints: &[Endpoint], to: &str) -> String {
    let mut out = String::new();
    for endpoint in limited(endpoints, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&endpoint.machine);
        for source in sources(network, endpoint) {
            let _ = writeln!(out, "\t\t{source} jump {tap}{to}");
        }
    }
    out
}

/// What the `bridge` table has for it: frames between machines, and the rates.
pub(crate) fn bridge_chains(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = String::new();
    let mut between = String::new();
    for endpoint in limited(endpoints, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&endpoint.machine);
        out += &frames_between(&tap, &endpoint.membership.policy.allow);
        let _ = writeln!(between, "\t\tiifname \"{tap}\" jump {tap}_out");
        let _ = writeln!(between, "\t\toifname \"{tap}\" jump {tap}_in");
    }
    if !between.is_empty() {
        let _ = write!(
            out,
            "\tchain between_machines {{\n\t\ttype filter hook forward priority filter; policy accept;\n{between}\t}}\n"
        );
    }
    let rated: Vec<&Endpoint> = limited(endpoints, |policy| policy.rate.is_some()).collect();
    if rated.is_empty() {
        return out;
    }
    for (chain, hook, direction) in [
        ("rate_from", "prerouting", "iifname"),
        ("rate_to", "postrouting", "oifname"),
    ] {
        let _ = write!(
            out,
            "\tchain {chain} {{\n\t\ttype filter hook {hook} priority filter; policy accept;\n"
        );
        for endpoint in &rated {
            let bytes = endpoint
                .membership
                .policy
                .rate
                .map_or(0, |rate| rate.bits_per_second() / 8);
            let burst = (bytes / 20).max(LARGEST_PACKET);
            let tap = network.tap(&endpoint.machine);
            let _ = writeln!(
                out,
                "\t\t{direction} \"{tap}\" limit rate over {bytes} bytes/second burst {burst} bytes drop"
            );
        }
        out += "\t}\n";
    }
    out
}

/// The chains for frames of one machine to others and back.
fn frames_between(tap: &str, allow: &[Allow]) -> String {
    let mut out = String::new();
    for (set, kind) in [("asked4", "ipv4_addr"), ("asked6", "ipv6_addr")] {
        let _ = write!(
            out,
            "\tset {tap}_{set} {{\n\t\ttype {kind} . inet_service . inet_service\n\t\tsize 4096\n\t\tflags dynamic,timeout\n\t\ttimeout 3m\n\t}}\n"
        );
    }
    let _ = write!(
        out,
        "\tchain {tap}_in {{\n\
         \t\tupdate @{tap}_asked4 {{ ip saddr . udp sport . udp dport }}\n\
         \t\tupdate @{tap}_asked6 {{ ip6 saddr . udp sport . udp dport }}\n\
         \t}}\n"
    );
    let mut rules: Vec<String> = [
        "ether type arp return",
        "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } return",
        "icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem } return",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report } return",
        "tcp flags & (syn | ack) != syn return",
    ]
    .map(str::to_owned)
    .into();
    rules.push(format!("ip daddr . udp dport . udp sport @{tap}_asked4 return"));
    rules.push(format!("ip6 daddr . udp dport . udp sport @{tap}_asked6 return"));
    rules.extend(allow.iter().map(|a| format!("{} return", rule(a))));
    rules.push("drop".to_owned());
    let _ = write!(out, "\tchain {tap}_out {{\n{}\t}}\n", lines(&rules));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_limits_there_are_no_rules() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        assert_eq!(
            chains(&network, &[]) + &bridge_chains(&network, &[]) + &jumps(&network, &[], "_out"),
            ""
        );
    }
}
