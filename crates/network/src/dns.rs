//! The resolvers a machine is told to use: those of the host that it can reach.

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zmachine_sys::file;

/// The host's resolver configuration.
const ETC: &str = "/etc/resolv.conf";
/// The real resolvers behind systemd-resolved's stub (systemd-resolved.service(8)).
const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";

/// Resolvers and search domains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDns {
    /// Addresses of resolvers, in order of preference.
    pub nameservers: Vec<IpAddr>,
    /// Domains to append to short names.
    pub search: Vec<String>,
}

impl HostDns {
    /// From the text of `/etc/resolv.conf` and, when there is one, of systemd-resolved's list. A resolver on loopback or
    /// with a link-local address cannot be reached from a machine and is skipped; the second text is used for what the
    /// first then lacks. Both lists may end up empty.
    pub fn from_texts(etc: &str, systemd: Option<&str>) -> HostDns {
        let mut found = parse(etc);
        if let Some(behind) = systemd.map(parse) {
            if found.nameservers.is_empty() {
                found.nameservers = behind.nameservers;
            }
            if found.search.is_empty() {
                found.search = behind.search;
            }
        }
        found
    }
}

/// The resolvers of this host that a machine can reach. Empty when there are none, or no configuration at all.
pub fn host_nameservers() -> HostDns {
    let read = |path| file::read_text(Path::new(path), 64 * 1024).ok();
    HostDns::from_texts(&read(ETC).unwrap_or_default(), read(SYSTEMD).as_deref())
}

/// The resolvers that this host itself asks, those on loopback included, as resolv.conf(5) writes them.
pub(crate) fn own_resolvers() -> Vec<String> {
    resolvers_in(&file::read_text(Path::new(ETC), 64 * 1024).unwrap_or_default())
}

fn resolvers_in(text: &str) -> Vec<String> {
    let server = |line: &str| {
        let server = line.strip_prefix("nameserver")?.split_whitespace().next()?;
        // A link-local one is followed by its link.
        let address = server.split('%').next()?;
        address.parse::<IpAddr>().is_ok().then(|| server.to_owned())
    };
    text.lines().filter_map(|line| server(line.trim())).collect()
}

/// resolv.conf(5): `nameserver ADDRESS` lines; the last `search` or `domain` line counts.
fn parse(text: &str) -> HostDns {
    let mut found = HostDns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => found.nameservers.extend(words.next().and_then(reachable)),
            Some("search" | "domain") => found.search = words.filter(|w| *w != ".").map(str::to_owned).collect(),
            _ => {}
        }
    }
    found
}

fn reachable(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    (!address.is_loopback() && !address.is_unspecified() && !link_local).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_and_search_domains_are_read_in_order() {
        let text =
            "# comment\nsearch a.example b.example\nnameserver 192.0.2.53\nnameserver  2001:db8::53 \noptions edns0\n";
        let dns = HostDns::from_texts(text, None);
        assert_eq!(
            dns.nameservers,
            ["192.0.2.53", "2001:db8::53"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        assert_eq!(dns.search, ["a.example", "b.example"]);
    }

    #[test]
    fn resolvers_a_machine_can_not_reach_are_skipped() {
        let text = "nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 192.0.2.1\n";
        assert_eq!(
            HostDns::from_texts(text, None).nameservers,
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn the_host_itself_asks_resolvers_on_loopback_too() {
        let text = "nameserver 127.0.0.53\n# nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver nonsense\n";
        assert_eq!(resolvers_in(text), ["127.0.0.53", "fe80::1%eth0"]);
    }

    #[test]
    fn behind_a_stub_the_real_resolvers_are_used() {
        let dns = HostDns::from_texts(
            "nameserver 127.0.0.53\nsearch lan\n",
            Some("nameserver 192.0.2.9\nsearch other\n"),
        );
        assert_eq!((dns.nameservers.len(), dns.search), (1, vec!["lan".to_owned()]));
        assert_eq!(HostDns::from_texts("", None), HostDns::default());
    }
}
