//! Which network a machine joins, and as what. Pure.
//!
//! Flags and machine files write it as `NAME[:OPTION,...]` with the options `ip=ADDRESS` (one of each family), `alias=NAME` and `allow=CIDR[:PORTS[/tcp|udp]]` (any
//! number), and `rate=RATE`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zmachine_network::{Allow, Policy, PortRange, Protocol, Rate};

use crate::failure::{Class, Failure};
use crate::setting::Setting;

/// A network that a machine joins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct NetworkRequest {
    /// The network's name.
    pub name: String,
    /// The IPv4 address it wants there.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address it wants there.
    pub ipv6: Option<Ipv6Addr>,
    /// Names it has there beside its own, in lower case.
    pub aliases: Vec<String>,
    /// What it may reach there, and how fast.
    pub policy: Policy,
}

impl NetworkRequest {
    /// What the names say together; the one word `none` is no network.
    ///
    /// # Errors
    /// When one of them cannot be read, or `none` is among others.
    pub fn parse_all(names: &[String]) -> Result<Vec<NetworkRequest>, Failure> {
        match names {
            [one] if one == "none" => Ok(Vec::new()),
            names if names.iter().any(|n| n == "none") => Err(Failure::new(
                Class::Usage,
                "the network 'none' does not go with other networks",
            )
            .about(Setting::Networks)),
            names => {
                let request = |text: &String| NetworkRequest::parse(text).map_err(|e| e.about(Setting::Networks));
                names.iter().map(request).collect()
            }
        }
    }

    /// The network `name`, and nothing asked for there.
    pub fn new(name: impl Into<String>) -> NetworkRequest {
        NetworkRequest {
            name: name.into(),
            ..NetworkRequest::default()
        }
    }

    /// Reads it as flags and machine files write it.
    ///
    /// # Errors
    /// [`Class::Usage`] naming the option that is none.
    pub fn parse(text: &str) -> Result<NetworkRequest, Failure> {
        let (name, options) = match text.split_once(':') {
            Some((name, options)) => (name, options.split(',').collect()),
            None => (text, Vec::new()),
        };
        let mut request = NetworkRequest::new(name);
        for option in options {
            request.set(option).map_err(|what| {
                Failure::new(Class::Usage, format!("the network '{text}': {what}"))
                    .hint("the options are ip=ADDRESS, once for IPv4 and once for IPv6, alias=NAME, allow=CIDR[:PORT[/tcp|udp]] and rate=50mbit")
            })?;
        }
        Ok(request)
    }

    /// Takes one option; what is wrong with it.
    fn set(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            Some(("ip", address)) => {
                let twice = match address.parse() {
                    Ok(IpAddr::V4(address)) => self.ipv4.replace(address).is_some(),
                    Ok(IpAddr::V6(address)) => self.ipv6.replace(address).is_some(),
                    Err(_) => return Err(format!("'{address}' is not an IP address")),
                };
                match twice {
                    true => Err("two addresses of one family".to_owned()),
                    false => Ok(()),
                }
            }
            Some(("alias", alias)) => {
                self.aliases.push(check_alias(alias)?);
                Ok(())
            }
            Some(("allow", destination)) => {
                self.policy.allow.push(destination.parse()?);
                Ok(())
            }
            Some(("rate", rate)) => match self.policy.rate.replace(rate.parse()?) {
                None => Ok(()),
                Some(_) => Err("two rates".to_owned()),
            },
            _ => Err(format!("'{option}' is no option")),
        }
    }
}

/// A [`NetworkRequest`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<Destination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits_per_second: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    subnet: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ports: Option<(Protocol, PortRange)>,
}

impl From<NetworkRequest> for Json {
    fn from(request: NetworkRequest) -> Json {
        let destination = |allow: &Allow| Destination {
            subnet: allow.destination(),
            ports: allow.ports().map(|(range, protocol)| (protocol, range)),
        };
        Json {
            name: request.name,
            ipv4: request.ipv4,
            ipv6: request.ipv6,
            aliases: request.aliases,
            allow: request.policy.allow.iter().map(destination).collect(),
            bits_per_second: request.policy.rate.map(Rate::bits_per_second),
        }
    }
}

impl TryFrom<Json> for NetworkRequest {
    type Error = String;

    fn try_from(json: Json) -> Result<NetworkRequest, String> {
        let allow = |to: Destination| Allow::new(to.subnet, to.ports.map(|(protocol, range)| (range, protocol)));
        let rate = |bits| Rate::new(bits).ok_or_else(|| format!("{bits} bits per second are too few"));
        Ok(NetworkRequest {
            name: json.name,
            ipv4: json.ipv4,
            ipv6: json.ipv6,
            aliases: json
                .aliases
                .iter()
                .map(|alias| check_alias(alias))
                .collect::<Result<_, _>>()?,
            policy: Policy {
                allow: json.allow.into_iter().map(allow).collect(),
                rate: json.bits_per_second.map(rate).transpose()?,
            },
        })
    }
}

/// An alias in lower case; what is wrong with it.
///
/// # Errors
/// When nobody could look it up.
pub fn check_alias(alias: &str) -> Result<String, String> {
    let alias = alias.to_ascii_lowercase();
    match zmachine_network::is_host_name(&alias) {
        true => Ok(alias),
        false => Err(format!("'{alias}' cannot be a name in a network")),
    }
}

impl FromStr for NetworkRequest {
    type Err = Failure;

    fn from_str(text: &str) -> Result<NetworkRequest, Failure> {
        NetworkRequest::parse(text)
    }
}

impl fmt::Display for NetworkRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let addresses = self.ipv4.map(|a| format!("ip={a}")).into_iter();
        let addresses = addresses.chain(self.ipv6.map(|a| format!("ip={a}")));
        let aliases = self.aliases.iter().map(|alias| format!("alias={alias}"));
        let allowed = self.policy.allow.iter().map(|allow| format!("allow={allow}"));
        let rate = self.policy.rate.iter().map(|rate| format!("rate={rate}"));
        let options: Vec<String> = addresses.chain(aliases).chain(allowed).chain(rate).collect();
        match options.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", options.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_prints_back() {
        for text in [
            "inner",
            "inner:ip=10.0.0.7",
            "inner:ip=10.0.0.7,ip=fd00::7",
            "inner:ip=fd00::7,alias=db,alias=db.test",
            "inner:alias=db,allow=10.0.0.0/8:443/tcp,allow=[fd00::/8]:53/udp,allow=fd01::/16,rate=50mbit",
        ] {
            let request = NetworkRequest::parse(text).unwrap();
            assert_eq!(request.to_string(), text);
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(
                serde_json::from_str::<NetworkRequest>(&json).unwrap(),
                request,
                "{json}"
            );
        }
        assert_eq!(
            serde_json::to_string(&NetworkRequest::parse("a:ip=10.0.0.7,allow=10.0.0.0/8:443,rate=50mbit").unwrap())
                .unwrap(),
            r#"{"name":"a","ipv4":"10.0.0.7","allow":[{"subnet":"10.0.0.0/8","ports":["tcp",{"first":443,"last":443}]}],"bits_per_second":50000000}"#
        );
        assert_eq!(NetworkRequest::parse("a:alias=DB").unwrap().aliases, ["db"]);
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, part) in [
            ("inner:", "'' is no option"),
            ("inner:ip=", "'' is not an IP address"),
            ("inner:10.0.0.7", "'10.0.0.7' is no option"),
            ("inner:ip=10.0.0.7/24", "'10.0.0.7/24' is not an IP address"),
            ("inner:ip=10.0.0.7,ip=10.0.0.8", "two addresses of one family"),
            ("inner:alias=a b", "'a b' cannot be a name"),
            ("inner:alias=10.0.0.1", "'10.0.0.1' cannot be a name"),
            ("inner:allow=web", "'web' is not an address"),
            ("inner:rate=5", "'5' is not a rate"),
            ("inner:rate=5mbit,rate=6mbit", "two rates"),
            ("inner:mtu=9000", "'mtu=9000' is no option"),
        ] {
            let failure = NetworkRequest::parse(text).unwrap_err();
            assert_eq!(failure.class, Class::Usage);
            let output = failure.to_string();
            assert!(output.contains(part) && output.contains(text), "{text}: {output}");
        }
    }
}
