//! The rules that keep a machine from speaking as somebody else, as text. Pure.
//!
//! One table of family `bridge` per network, with a chain per machine that its tap's frames go through before the bridge
//! sees them. What passes: IPv4, ARP and IPv6 (so no VLAN tags, behind which nothing could be seen) from the machine's own
//! Ethernet address, from its own addresses, and the few messages that a machine sends before it has one. What a router or
//! a DHCP server says does not come from a machine.
//!
//! An operating system may choose its link-local address by itself, so any is taken that does not belong, by its Ethernet
//! address, to the host or another machine (the addresses of RFC 4291 appendix A). Global addresses are the leased one and,
//! for those who configure themselves from router advertisements, the one of the Ethernet address.
//!
//! The bridge may send frames back to the port they came from ("hairpin"), which a machine's call to its own published port
//! takes where bridged frames are filtered. Such a frame is redirected to the machine's Ethernet address, which nobody sends
//! to from there by himself. Everything else stays away from its sender: broadcasts, and neighbour discovery above all, by
//! which a machine would take its own address for a taken one.

use std::fmt::Write;
use std::net::Ipv6Addr;

use crate::endpoint::Endpoint;
use crate::name;
use crate::network::Network;
use crate::policy_rules;

/// The table with a chain per endpoint, and those of their policies; nothing of it depends on the taps being there.
pub(crate) fn table(network: &Network, endpoints: &[Endpoint]) -> String {
    let mut out = format!("table bridge {} {{\n", network.bridge());
    out += &external_firewalls(network, endpoints);
    for endpoint in endpoints {
        out += &chain(network, endpoint);
    }
    out += "\tchain from_machines {\n\t\ttype filter hook prerouting priority dstnat; policy accept;\n";
    for endpoint in endpoints {
        let tap = network.tap(&endpoint.machine);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\t\tiifname \"{tap}\" jump {tap}");
    }
    out += "\t}\n\tchain to_sender {\n\t\ttype filter hook forward priority filter; policy accept;\n";
    for endpoint in endpoints {
        let (tap, mac) = (network.tap(&endpoint.machine), network.mac(&endpoint.machine));
        let _ = writeln!(out, "\t\tiifname \"{tap}\" oifname \"{tap}\" ether daddr != {mac} drop");
    }
    out += "\t}\n";
    out += &policy_rules::bridge_chains(network, endpoints);
    out + "}\n"
}

/// Link-local addresses that have an owner: a machine gets here with those that are not its own.
fn external_firewalls(network: &Network, endpoints: &[Endpoint]) -> String {
    let macs = std::iter::once(network.bridge_mac()).chain(endpoints.iter().map(|s| network.mac(&s.machine)));
    let (mut sources, mut targets) = (String::new(), String::new());
    for address in macs.map(name::link_local) {
        let _ = writeln!(sources, "\t\tip6 saddr {address} drop");
        let _ = writeln!(targets, "\t\t@th,64,128 {} drop", hex(address));
    }
    format!(
        "\tchain link_local_source {{\n{sources}\t\taccept\n\t}}\n\
         \tchain link_local_target {{\n{targets}\t\taccept\n\t}}\n"
    )
}

/// What one machine may send.
fn chain(network: &Network, endpoint: &Endpoint) -> String {
    let mac = network.mac(&endpoint.machine);
    let mut rules = vec![
        format!("ether saddr != {mac} drop"),
        format!("arp saddr ether != {mac} drop"),
        // Of a machine that asks whether its address is free (RFC 5227).
        "arp saddr ip 0.0.0.0 accept".to_owned(),
        format!("arp saddr ip {} accept", endpoint.ipv4),
        "udp sport { 67, 547 } drop".to_owned(),
        format!("ip saddr {} accept", endpoint.ipv4),
        "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned(),
        "icmpv6 type { nd-router-advert, nd-redirect } drop".to_owned(),
    ];
    let own = endpoint.own_ipv6(network);
    // The target of a neighbour advertisement is what it claims; that of a solicitation without a source is what its sender
    // wants for itself (RFC 4861, 4862). It follows 8 bytes after the ICMPv6 header's start.
    for address in &own {
        rules.push(format!(
            "icmpv6 type nd-neighbor-advert @th,64,128 {} accept",
            hex(*address)
        ));
        rules.push(format!(
            "ip6 saddr :: icmpv6 type nd-neighbor-solicit @th,64,128 {} accept",
            hex(*address)
        ));
    }
    rules.push("icmpv6 type nd-neighbor-advert @th,64,16 & 0xffc0 == 0xfe80 jump link_local_target".to_owned());
    rules.push(
        "ip6 saddr :: icmpv6 type nd-neighbor-solicit @th,64,16 & 0xffc0 == 0xfe80 jump link_local_target".to_owned(),
    );
    rules.push("icmpv6 type nd-neighbor-advert drop".to_owned());
    rules.extend(own.iter().map(|address| format!("ip6 saddr {address} accept")));
    for kind in ["nd-router-solicit", "mld-listener-report", "mld2-listener-report"] {
        rules.push(format!("ip6 saddr :: icmpv6 type {kind} accept"));
    }
    rules.push("ip6 saddr fe80::/10 jump link_local_source".to_owned());
    rules.push("drop".to_owned());
    let body: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
    format!("\tchain {} {{\n{body}\t}}\n", network.tap(&endpoint.machine))
}

/// An address as nft writes raw payload: one number, without leading zeros.
fn hex(address: Ipv6Addr) -> String {
    format!("{:#x}", u128::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Mac;

    #[test]
    fn a_link_local_address_belongs_to_an_ethernet_address() {
        let mac = Mac([2, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!(name::link_local(mac).to_string(), "fe80::11:22ff:fe33:4455");
        assert_eq!(hex(name::link_local(mac)), "0xfe80000000000000001122fffe334455");
    }

    #[test]
    fn whoever_configures_itself_has_a_second_address_of_its_own() {
        let network = Network::example("10.208.0.0/24", Some("fd00::/64"));
        let mut endpoint = Endpoint {
            machine: "m1".to_owned(),
            ipv4: "10.208.0.2".parse().unwrap(),
            ipv6: Some("fd00::2".parse().unwrap()),
            membership: Default::default(),
            ports: vec![],
        };
        assert_eq!(endpoint.own_ipv6(&network).len(), 3);
        endpoint.ipv6 = network.ipv6_of("m1");
        assert_eq!(endpoint.own_ipv6(&network).len(), 2);
    }
}
