//! Names and numbers that are derived, never stored: from the home's path, the network's name and the machine's id.
//!
//! All come from one hash (BLAKE2b over the length-prefixed parts), so equal inputs give equal names in every process, and
//! two homes differ in 48 bits of every interface name.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// The network a machine gets when none is named.
pub const DEFAULT_NETWORK: &str = "default";

/// The name of the network through passt. No other network can have it.
pub const USER_NETWORK: &str = "user";

/// An Ethernet address; its text is `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        let octets = octets.and_then(|o| <[u8; 6]>::try_from(o).ok());
        octets
            .map(Mac)
            .ok_or_else(|| format!("{text:?} is not an Ethernet address"))
    }
}

fn octet(text: &str) -> Option<u8> {
    (text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?
}

/// Refuses what cannot be a file name, a label in a rule set and a word in a listing at once.
pub(crate) fn check(name: &str) -> Result<(), NetworkError> {
    let bytes = name.as_bytes();
    let starts = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    let rest = bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b));
    if starts && rest && bytes.len() <= 64 {
        return Ok(());
    }
    Err(NetworkError::BadName { name: name.to_owned() })
}

/// Refuses what cannot be looked up: a name of a host, with the underscore that machines' names may have, in lower case.
pub(crate) fn check_alias(name: &str) -> Result<(), NetworkError> {
    let legal = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b);
        (1..=63).contains(&bytes.len()) && bytes.iter().all(inner) && !label.starts_with('-')
    };
    if name.len() <= 63 && name.split('.').all(legal) && name.parse::<std::net::IpAddr>().is_err() {
        return Ok(());
    }
    Err(NetworkError::BadAlias { name: name.to_owned() })
}

/// Whether it can be looked up in a network: labels of a-z, 0-9, '-' and '_' between dots, 63 bytes at most, and no address.
pub fn is_host_name(name: &str) -> bool {
    check_alias(name).is_ok()
}

/// 16 bytes that depend on every part and on where one part ends.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 16] {
    let mut state = blake2b_simd::Params::new().hash_length(16).to_state();
    for part in parts {
        state.update(&(part.len() as u64).to_le_bytes());
        state.update(part);
    }
    let mut out = [0; 16];
    out.copy_from_slice(state.finalize().as_bytes());
    out
}

/// The home's id: a hash of its canonical path, as hex.
pub(crate) fn home_id(canonical: &Path) -> String {
    hex(&hash(&[b"home", canonical.as_os_str().as_encoded_bytes()])[..6])
}

/// Name of the bridge and of the nftables table of a network, 14 characters.
pub(crate) fn bridge(home: &str, network: &str) -> String {
    format!(
        "zm{}",
        hex(&hash(&[b"bridge", home.as_bytes(), network.as_bytes()])[..6])
    )
}

/// Name of the tap of a machine in a network, 14 characters.
pub(crate) fn tap(home: &str, network: &str, machine: &str) -> String {
    let parts: [&[u8]; 4] = [b"tap", home.as_bytes(), network.as_bytes(), machine.as_bytes()];
    format!("zt{}", hex(&hash(&parts)[..6]))
}

/// The Ethernet address of `endpoint` in a network: locally administered, unicast (`02:...`).
pub(crate) fn mac(home: &str, network: &str, endpoint: &str) -> Mac {
    let parts: [&[u8]; 4] = [b"mac", home.as_bytes(), network.as_bytes(), endpoint.as_bytes()];
    let h = hash(&parts);
    Mac([2, h[0], h[1], h[2], h[3], h[4]])
}

/// The network's unique local /64 (RFC 4193): 40 bits of the home, 16 bits of the network's name plus `nth`, which counts
/// up when another network of the home has the first choice.
pub(crate) fn ula(home: &str, network: &str, nth: u16) -> Ipv6Net {
    let global = hash(&[b"ula", home.as_bytes()]);
    let local = hash(&[b"ula-subnet", network.as_bytes()]);
    let subnet = u16::from_be_bytes([local[0], local[1]]).wrapping_add(nth);
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&global[..5]);
    octets[6..8].copy_from_slice(&subnet.to_be_bytes());
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)
}

/// The address an endpoint with `mac` would give itself in `net` (modified EUI-64, RFC 4291 appendix A), so that a guest
/// configured by router advertisements has the same address.
pub(crate) fn eui64(net: Ipv6Net, mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let mut octets = net.network().octets();
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(octets)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The link-local address that belongs to an Ethernet address.
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    eui64(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64), mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_two_homes_and_of_two_networks_differ_and_fit_an_interface() {
        let [a, b] = ["/var/lib/zmachine", "/tmp/zm"].map(|p| home_id(Path::new(p)));
        let names = [
            bridge(&a, "default"),
            bridge(&b, "default"),
            bridge(&a, "db"),
            tap(&a, "default", "m"),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() <= 15 && !names[i + 1..].contains(name), "{names:?}");
        }
        assert_eq!(names[0], bridge(&a, "default"));
    }

    #[test]
    fn a_machine_has_a_local_unicast_mac_and_the_address_of_its_mac() {
        let mac = Mac([2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        let net = "fd00:1:2:3::/64".parse().unwrap();
        assert_eq!(eui64(net, mac).to_string(), "fd00:1:2:3:11:22ff:fe33:4455");
        assert_eq!(super::mac("h", "n", "m").0[0], 2);
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        assert!(Mac::try_from("02:1:22:33:44:55".to_owned()).is_err());
    }

    #[test]
    fn a_name_that_leaves_its_directory_is_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            ".hidden",
            "A",
            "a b",
            &"a".repeat(65),
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        check("db-1.test_2").unwrap();
    }

    #[test]
    fn the_ipv6_prefix_is_a_unique_local_64() {
        let net = ula("home", "default", 0);
        assert_eq!((net.prefix_len(), net.network().octets()[0]), (64, 0xfd));
        assert_ne!(net, ula("home", "default", 1));
        assert_eq!(
            net.network().octets()[..6],
            ula("home", "db", 0).network().octets()[..6]
        );
    }
}
