//! What a machine may reach, and how fast: the options `allow=` and `rate=` of a network, and their nftables rules. Pure.
//!
//! * Nothing allowed is everything allowed. With one `allow` the rest is refused, but for answers to who connected to the
//!   machine, the network's own DHCP and name service, and what keeps a link going (ARP, neighbour discovery).
//! * Traffic by way of the host (`inet` table) is judged with connection tracking, and refused with an answer. Between machines
//!   of one network the bridge sees frames only, and not every kernel tracks connections there: answers over TCP are what
//!   opens no connection, those over UDP go to who asked within the last minutes. The rest is dropped.
//! * The rate is that of each direction by itself: what is above is dropped, which TCP takes as a sign to slow down. A machine
//!   that was idle may send a second's worth at once.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::publish::{PortRange, Protocol};
use crate::spoofing;
use crate::station::Station;

/// The lowest rate in bits per second: below, a packet of the largest size takes more than a second.
const MIN_RATE: u64 = 100_000;
/// A virtual interface hands over packets of this size at once; a bucket must hold one.
const LARGEST_PACKET: u64 = 64 * 1024;

/// Limits of a machine in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What it may reach; everything when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
    /// Bits per second of Ethernet frames, in each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

impl Policy {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Policy::default()
    }
}

/// A destination that a machine may reach: `CIDR`, or `CIDR:PORTS[/tcp|udp]` with an IPv6 one in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Allow {
    destination: IpNet,
    ports: Option<(PortRange, Protocol)>,
}

/// A bandwidth in bits per second: `50mbit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

impl Rate {
    /// Bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0
    }
}

/// The units of tc(8), largest first.
const UNITS: [(&str, u64); 4] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let lower = text.to_ascii_lowercase();
        let parsed = UNITS.iter().find_map(|(unit, factor)| {
            let number = lower.strip_suffix(unit)?;
            let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| number.parse::<u64>().ok()?.checked_mul(*factor))?
        });
        match parsed {
            Some(bits) if bits < MIN_RATE => Err(format!("a rate of '{text}' is too low: 100kbit is the least")),
            Some(bits) => Ok(Rate(bits)),
            None => Err(format!("'{text}' is not a rate such as 500kbit, 50mbit or 1gbit")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, factor)| self.0.is_multiple_of(*factor));
        let (unit, factor) = whole.unwrap_or(&UNITS[3]);
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Allow, String> {
        let wrong =
            || format!("'{text}' is not an address, a subnet, or either with :PORT[/tcp|udp] (IPv6 in brackets then)");
        let (address, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or_else(wrong)?;
                (address, Some(rest.strip_prefix(':').ok_or_else(wrong)?))
            }
            // More than one colon is IPv6.
            None => match text.split_once(':') {
                Some((address, ports)) if !ports.contains(':') => (address, Some(ports)),
                _ => (text, None),
            },
        };
        let one = || address.parse::<IpAddr>().ok().map(IpNet::from);
        let destination = address.parse::<IpNet>().ok().or_else(one).ok_or_else(wrong)?;
        let ports = match ports {
            None => None,
            Some(text) => {
                let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                let protocol = match protocol {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return Err(wrong()),
                };
                Some((PortRange::parse(range).ok_or_else(wrong)?, protocol))
            }
        };
        Ok(Allow {
            destination: destination.trunc(),
            ports,
        })
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.destination, self.ports) {
            (destination, None) => write!(f, "{destination}"),
            (IpNet::V4(net), Some((ports, protocol))) => write!(f, "{net}:{ports}/{protocol}"),
            (IpNet::V6(net), Some((ports, protocol))) => write!(f, "[{net}]:{ports}/{protocol}"),
        }
    }
}

macro_rules! text_in_json {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

text_in_json!(Allow);
text_in_json!(Rate);

impl Allow {
    /// The match of nftables.
    fn rule(&self) -> String {
        let family = match self.destination {
            IpNet::V4(_) => "ip",
            IpNet::V6(_) => "ip6",
        };
        let ports = self.ports.map(|(ports, protocol)| format!(" {protocol} dport {ports}"));
        format!("{family} daddr {}{}", self.destination, ports.unwrap_or_default())
    }
}

fn limited(stations: &[Station], is: impl Fn(&Policy) -> bool) -> impl Iterator<Item = &Station> {
    stations.iter().filter(move |station| is(&station.membership.policy))
}

fn lines(rules: &[String]) -> String {
    rules.iter().map(|rule| format!("\t\t{rule}\n")).collect()
}

/// What the machines with an `allow` send comes from: the matches of one, by address family.
fn sources(network: &Network, station: &Station) -> Vec<String> {
    let bridge = network.bridge();
    let own = spoofing::own_ipv6(network, station);
    std::iter::once(format!("iifname \"{bridge}\" ip saddr {}", station.ipv4))
        .chain(own.iter().map(|a| format!("iifname \"{bridge}\" ip6 saddr {a}")))
        .collect()
}

/// The chains of the `inet` table that judge what goes by way of the host and to it; nothing without an `allow`.
pub(crate) fn chains(network: &Network, stations: &[Station]) -> String {
    let mut out = String::new();
    for station in limited(stations, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&station.machine);
        let allowed = || {
            station
                .membership
                .policy
                .allow
                .iter()
                .map(|a| format!("{} return", a.rule()))
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
        // Writing to a String can not fail.
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
pub(crate) fn jumps(network: &Network, stations: &[Station], to: &str) -> String {
    let mut out = String::new();
    for station in limited(stations, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&station.machine);
        for source in sources(network, station) {
            let _ = writeln!(out, "\t\t{source} jump {tap}{to}");
        }
    }
    out
}

/// What the `bridge` table has for it: frames between machines, and the rates.
pub(crate) fn bridge_chains(network: &Network, stations: &[Station]) -> String {
    let mut out = String::new();
    let mut between = String::new();
    for station in limited(stations, |policy| !policy.allow.is_empty()) {
        let tap = network.tap(&station.machine);
        out += &frames_between(&tap, &station.membership.policy.allow);
        let _ = writeln!(between, "\t\tiifname \"{tap}\" jump {tap}_out");
        let _ = writeln!(between, "\t\toifname \"{tap}\" jump {tap}_in");
    }
    if !between.is_empty() {
        let _ = write!(
            out,
            "\tchain between_machines {{\n\t\ttype filter hook forward priority filter; policy accept;\n{between}\t}}\n"
        );
    }
    let rated: Vec<&Station> = limited(stations, |policy| policy.rate.is_some()).collect();
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
        for station in &rated {
            let bytes = station.membership.policy.rate.map_or(0, |rate| rate.0 / 8);
            let burst = (bytes / 20).max(LARGEST_PACKET);
            let tap = network.tap(&station.machine);
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
    rules.extend(allow.iter().map(|a| format!("{} return", a.rule())));
    rules.push("drop".to_owned());
    let _ = write!(out, "\tchain {tap}_out {{\n{}\t}}\n", lines(&rules));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_read_and_print_back() {
        for (given, printed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.1:443", "192.0.2.1/32:443/tcp"),
            ("0.0.0.0/0:53/udp", "0.0.0.0/0:53/udp"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::1]:1-9", "[2001:db8::1/128]:1-9/tcp"),
        ] {
            let read: Allow = given.parse().unwrap();
            assert_eq!(read.to_string(), printed);
            assert_eq!(printed.parse(), Ok(read));
        }
        for bad in [
            "",
            "web",
            "10.0.0.0/33",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:9-8",
            "10.0.0.1:80/icmp",
            "[::1]",
            "::1]:8",
        ] {
            assert!(bad.parse::<Allow>().unwrap_err().contains(&format!("'{bad}'")));
        }
    }

    #[test]
    fn rates_are_those_of_tc() {
        for (text, bits) in [
            ("50mbit", 50_000_000),
            ("1gbit", 1_000_000_000),
            ("1500kbit", 1_500_000),
            ("100000bit", 100_000),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap().bits_per_second(), bits);
        }
        assert_eq!("1000Mbit".parse::<Rate>().unwrap().to_string(), "1gbit");
        for bad in [
            "",
            "50",
            "mbit",
            "5.5mbit",
            "-1mbit",
            "50mbps",
            "99kbit",
            "99999999999999gbit",
        ] {
            bad.parse::<Rate>().unwrap_err();
        }
    }

    #[test]
    fn without_limits_there_are_no_rules() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        assert_eq!(
            chains(&network, &[]) + &bridge_chains(&network, &[]) + &jumps(&network, &[], "_out"),
            ""
        );
    }
}
