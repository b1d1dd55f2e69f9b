//! Published ports: wanted ([`PublishRequest`]) and settled ([`Publish`]), parsed, printed and compared. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Ports that cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// There is no `HOST:GUEST`.
    #[error("the published port '{text}' needs a host port and a guest port")]
    Shape {
        /// Its text.
        text: String,
    },
    /// Something else than `tcp` or `udp` after the slash.
    #[error("the published port '{text}': the protocol is tcp or udp, not {found:?}")]
    Protocol {
        /// Its text.
        text: String,
        /// What was found.
        found: String,
    },
    /// The host address is none.
    #[error("the published port '{text}': {found:?} is not an IP address (an IPv6 address is written in brackets)")]
    Address {
        /// Its text.
        text: String,
        /// What was found.
        found: String,
    },
    /// An address that cannot be published on.
    #[error("the published port '{text}': {address} cannot be redirected by the kernel; publish on 127.0.0.1 instead")]
    Unroutable {
        /// Its text.
        text: String,
        /// The address.
        address: IpAddr,
    },
    /// A port or range that is none.
    #[error("the published port '{text}': {found:?} is not a port (1 to 65535) or a range FIRST-LAST of ports")]
    Port {
        /// Its text.
        text: String,
        /// What was found.
        found: String,
    },
    /// Ranges of different length.
    #[error("the published port '{text}': {host} host ports for {guest} guest ports")]
    Length {
        /// Its text.
        text: String,
        /// How many host ports.
        host: usize,
        /// How many guest ports.
        guest: usize,
    },
    /// More ports than passt takes.
    #[error("without root at most {max} ports of a machine can be published")]
    TooMany {
        /// How many.
        max: usize,
    },
    /// A host port on two addresses.
    #[error("without root host port {port} can be published once only, on one address or on all")]
    Once {
        /// The host port.
        port: u16,
    },
    /// One machine wants a host port twice.
    #[error("'{first}' and '{second}' publish the same host port")]
    Twice {
        /// One's text.
        first: String,
        /// The other's.
        second: String,
    },
}

/// The transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports from `first` to `last`, both included; `first <= last`, neither is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Ports", into = "Ports")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A [`PortRange`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    first: u16,
    last: u16,
}

impl TryFrom<Ports> for PortRange {
    type Error = String;

    fn try_from(Ports { first, last }: Ports) -> Result<PortRange, String> {
        PortRange::new(first, last).ok_or_else(|| format!("{first} to {last} is not a range of ports"))
    }
}

impl From<PortRange> for Ports {
    fn from(PortRange { first, last }: PortRange) -> Ports {
        Ports { first, last }
    }
}

impl PortRange {
    /// The range, when it is one.
    pub fn new(first: u16, last: u16) -> Option<PortRange> {
        (first >= 1 && first <= last).then_some(PortRange { first, last })
    }

    /// Its lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// How many ports, at least 1.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// The ports, ascending.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// The lowest port that is in both.
    pub fn common(self, other: PortRange) -> Option<u16> {
        let first = self.first.max(other.first);
        (first <= self.last.min(other.last)).then_some(first)
    }

    pub(crate) fn parse(text: &str) -> Option<PortRange> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        PortRange::new(port(first)?, port(last)?)
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Host ports that lead to ports of a machine. `host` and `guest` have the same length. Its text, in JSON too, is
/// `[IP:]HOST:GUEST/PROTOCOL`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// The host address; `None` is all of them, IPv4 and IPv6; `0.0.0.0` and `::` are all of one family.
    pub address: Option<IpAddr>,
    /// The ports on the host.
    pub host: PortRange,
    /// The ports in the machine.
    pub guest: PortRange,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Ports of a machine that its user wants to have published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The host address; as in [`Publish`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The ports on the host, as many as in the machine; `None` leaves it to the host which of its free ports they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<PortRange>,
    /// The ports in the machine.
    pub guest: PortRange,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PublishRequest {
    /// Reads `[[IP:][HOST]:]GUEST[/tcp|udp]`; a host port that is left out or 0 is a free one.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<PublishRequest, PublishError> {
        let owned = || text.to_owned();
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => {
                let found = other.to_owned();
                return Err(PublishError::Protocol { text: owned(), found });
            }
        };
        let range = |found: &str| {
            let port = PublishError::Port {
                text: owned(),
                found: found.to_owned(),
            };
            PortRange::parse(found).ok_or(port)
        };
        let (address, host, guest) = match ports.rsplit_once(':') {
            None => (None, None, range(ports)?),
            Some((rest, _)) if rest.is_empty() || rest.ends_with(']') => {
                return Err(PublishError::Shape { text: owned() });
            }
            Some((rest, guest)) => {
                let (address, host) = match rest.rsplit_once(':') {
                    Some((address, host)) => (Some(host_address(text, address)?), host),
                    None => (None, rest),
                };
                let host = match host {
                    "" | "0" => None,
                    host => Some(range(host)?),
                };
                (address, host, range(guest)?)
            }
        };
        if let Some(host) = host
            && host.count() != guest.count()
        {
            let (host, guest) = (host.count(), guest.count());
            return Err(PublishError::Length {
                text: owned(),
                host,
                guest,
            });
        }
        Ok(PublishRequest {
            address,
            host,
            guest,
            protocol,
        })
    }
}

impl fmt::Display for PublishRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        match self.host {
            Some(host) => write!(f, "{host}:")?,
            None if self.address.is_some() => f.write_str(":")?,
            None => {}
        }
        write!(f, "{}/{}", self.guest, self.protocol)
    }
}

impl FromStr for PublishRequest {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<PublishRequest, PublishError> {
        PublishRequest::parse(text)
    }
}

impl Publish {
    /// Reads its text.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<Publish, PublishError> {
        let PublishRequest {
            address,
            host,
            guest,
            protocol,
        } = PublishRequest::parse(text)?;
        let host = host.ok_or_else(|| PublishError::Shape { text: text.to_owned() })?;
        Ok(Publish {
            address,
            host,
            guest,
            protocol,
        })
    }

    /// The first host port that both want, if any: same protocol, a common port, and addresses that cover each other.
    pub fn conflict(&self, other: &Publish) -> Option<u16> {
        let addresses = covers(self.address, other.address) || covers(other.address, self.address);
        if !addresses || self.protocol != other.protocol {
            return None;
        }
        self.host.common(other.host)
    }

    /// Host port and guest port, one by one.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u16, u16)> {
        self.host.ports().zip(self.guest.ports())
    }

    /// The host addresses to claim for it: a given one, or "any" of both families.
    pub(crate) fn claims(&self) -> Vec<IpAddr> {
        match self.address {
            Some(address) => vec![address],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        }
    }

    /// Refuses a set in which two want the same host port.
    pub(crate) fn check_set(set: &[Publish]) -> Result<(), PublishError> {
        for (i, a) in set.iter().enumerate() {
            if let Some(b) = set[i + 1..].iter().find(|b| a.conflict(b).is_some()) {
                let (first, second) = (a.to_string(), b.to_string());
                return Err(PublishError::Twice { first, second });
            }
        }
        Ok(())
    }
}

/// Whether a listener on `a` takes what is meant for `b`.
fn covers(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (None, _) => true,
        (Some(a), Some(b)) => a == b || (a.is_unspecified() && a.is_ipv4() == b.is_ipv4()),
        (Some(_), None) => false,
    }
}

fn host_address(text: &str, found: &str) -> Result<IpAddr, PublishError> {
    let bare = found.strip_prefix('[').and_then(|f| f.strip_suffix(']'));
    let address = match bare {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => found.parse().ok().map(IpAddr::V4),
    };
    let (text, found) = (text.to_owned(), found.to_owned());
    match address {
        // IPv6 has no route_localnet: a packet from ::1 never leaves the loopback device.
        Some(address) if address == IpAddr::V6(Ipv6Addr::LOCALHOST) => Err(PublishError::Unroutable { text, address }),
        Some(address) => Ok(address),
        None => Err(PublishError::Address { text, found }),
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol)
    }
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Publish, PublishError> {
        Publish::parse(text)
    }
}

impl TryFrom<String> for Publish {
    type Error = PublishError;

    fn try_from(text: String) -> Result<Publish, PublishError> {
        Publish::parse(&text)
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> String {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_prints_back() {
        let forms = [
            ("8080:80", "8080:80/tcp"),
            ("127.0.0.1:5353:53/udp", "127.0.0.1:5353:53/udp"),
            ("0.0.0.0:80:80/tcp", "0.0.0.0:80:80/tcp"),
            ("[::]:80:8080", "[::]:80:8080/tcp"),
            ("[fd00::1]:1-3:11-13/udp", "[fd00::1]:1-3:11-13/udp"),
        ];
        for (given, printed) in forms {
            assert_eq!(Publish::parse(given).unwrap().to_string(), printed);
            assert_eq!(Publish::parse(printed).unwrap(), Publish::parse(given).unwrap());
        }
    }

    #[test]
    fn a_request_may_leave_the_host_port_open() {
        for (given, printed, json) in [
            ("80", "80/tcp", r#"{"guest":{"first":80,"last":80},"protocol":"tcp"}"#),
            (
                "127.0.0.1:0:80/udp",
                "127.0.0.1::80/udp",
                r#"{"address":"127.0.0.1","guest":{"first":80,"last":80},"protocol":"udp"}"#,
            ),
            (
                "1-2:11-12",
                "1-2:11-12/tcp",
                r#"{"host":{"first":1,"last":2},"guest":{"first":11,"last":12},"protocol":"tcp"}"#,
            ),
        ] {
            let request = PublishRequest::parse(given).unwrap();
            assert_eq!(request.to_string(), printed);
            assert_eq!(PublishRequest::parse(printed).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<PublishRequest>(json).unwrap(), request);
        }
        // The kernel redirects nothing on ::1.
        for text in [
            "",
            "web",
            "0",
            "80/sctp",
            "127.0.0.1::",
            ":80",
            "999999",
            "1.2.3::80",
            "[::1]::80",
        ] {
            let error = PublishRequest::parse(text).unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
        let backwards = r#"{"guest":{"first":2,"last":1},"protocol":"tcp"}"#;
        assert!(serde_json::from_str::<PublishRequest>(backwards).is_err());
        assert!(Publish::parse("80").is_err());
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            ("80", "needs a host port and a guest port"),
            (":80", "needs a host port and a guest port"),
            ("[::]:80", "needs a host port and a guest port"),
            ("8080:80/sctp", "the protocol is tcp or udp, not \"sctp\""),
            ("0:80", "needs a host port and a guest port"),
            ("70000:80", "\"70000\" is not a port"),
            ("+80:80", "\"+80\" is not a port"),
            ("9-8:80", "\"9-8\" is not a port"),
            ("8000-8002:80", "3 host ports for 1 guest ports"),
            ("localhost:80:80", "\"localhost\" is not an IP address"),
            (
                "fd00::1:80:80",
                "\"fd00::1\" is not an IP address (an IPv6 address is written in brackets)",
            ),
            ("[::1]:80:80", "::1 cannot be redirected"),
        ];
        for (text, part) in cases {
            let output = Publish::parse(text).unwrap_err().to_string();
            assert!(output.contains(part) && output.contains(text), "{text}: {output}");
        }
    }

    #[test]
    fn ports_conflict_when_protocol_port_and_address_meet() {
        let conflict = |a, b| Publish::parse(a).unwrap().conflict(&Publish::parse(b).unwrap());
        assert_eq!(conflict("8000-8010:1-11", "127.0.0.1:8005:80"), Some(8005));
        assert_eq!(conflict("0.0.0.0:80:80", "10.0.0.1:80:80"), Some(80));
        assert_eq!(conflict("0.0.0.0:80:80", "[::]:80:80"), None);
        assert_eq!(conflict("10.0.0.1:80:80", "10.0.0.2:80:80"), None);
        assert_eq!(conflict("80:80/udp", "80:80/tcp"), None);
    }
}
