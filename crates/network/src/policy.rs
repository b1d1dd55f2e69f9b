//! What a machine may reach in a network, and how fast. Pure; the rules are in `policy_rules`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::publish::{PortRange, Protocol};

/// The lowest rate in bits per second: below, a packet of the largest size takes more than a second.
const MIN_RATE: u64 = 100_000;

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
    /// A rate of so many bits per second; `None` when it is too low.
    pub fn new(bits_per_second: u64) -> Option<Rate> {
        (bits_per_second >= MIN_RATE).then_some(Rate(bits_per_second))
    }

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
            Some(bits) => Rate::new(bits).ok_or_else(|| format!("a rate of '{text}' is too low: 100kbit is the least")),
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
        Ok(Allow::new(destination, ports))
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
    /// A subnet (its host bits are dropped), or some ports there.
    pub fn new(destination: IpNet, ports: Option<(PortRange, Protocol)>) -> Allow {
        Allow {
            destination: destination.trunc(),
            ports,
        }
    }

    /// The subnet.
    pub fn destination(&self) -> IpNet {
        self.destination
    }

    /// The ports; `None` is all, of every protocol.
    pub fn ports(&self) -> Option<(PortRange, Protocol)> {
        self.ports
    }
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
}
