//! Forged frames: written to the tap of one machine as its hypervisor would, and looked for at the tap of another one.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::{read, write};
use zmachine_network::{Attachment, Mac, Made};

use super::*;

/// What stands before each frame at a tap (`struct virtio_net_hdr`, linux/virtio_net.h): no offload.
const HEADER: usize = 10;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];

fn ethernet(to: Mac, from: Mac, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind, payload].concat()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = parts.concat();
    let sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let [from, to, len] = [from, to, 12].map(u16::to_be_bytes);
    [&from[..], &to, &len, &[0, 0], b"data"].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut header = [
        &[0x45, 0],
        &len[..],
        &[0, 1, 0, 0, 64, 17, 0, 0],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

fn arp(mac: Mac, ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    [&head[..], &mac.0, &ip.octets(), &[0; 6], &target.octets()].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [
        &[0x60, 0, 0, 0],
        &len[..],
        &[next, 255],
        &from.octets(),
        &to.octets(),
        payload,
    ]
    .concat()
}

/// An ICMPv6 message of `kind` whose body starts with four bytes and, for neighbour discovery, a target.
fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, target: Option<Ipv6Addr>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.iter().flat_map(Ipv6Addr::octets));
    let len = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&from.octets(), &to.octets(), &len, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum);
    ipv6(from, to, 58, &message)
}

fn tap(made: Vec<Made>) -> OwnedFd {
    let tap = |made| match made {
        Made::Tap(fd) => Some(fd),
        _ => None,
    };
    made.into_iter().find_map(tap).expect("a tap")
}

/// Whether a frame that one tap sends comes out of the other. Frames keep their order, so when `after` is there it has
/// passed or never will.
fn passes(from: &OwnedFd, to: &OwnedFd, frame: &[u8], after: &[u8]) -> bool {
    for frame in [frame, after] {
        let sent = [&[0; HEADER], frame].concat();
        assert_eq!(write(from.as_fd(), &sent).expect("a tap takes a frame"), sent.len());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 2048];
    let mut passed = false;
    while Instant::now() < deadline {
        match read(to.as_fd(), &mut buffer) {
            Ok(len) if buffer[HEADER..len] == *after => return passed,
            Ok(len) => passed |= buffer[HEADER..len] == *frame,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("an honest frame does not pass");
}

fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let [p, q, r, s] = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xfe80, 0, 0, 0, p, q, r, s)
}

#[test]
fn a_machine_speaks_only_as_itself() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, one) = plan(&networks, "m1", &[]).await;
            let (_, two) = plan(&networks, "m2", &[]).await;
            let from = tap(make(&networks, &one.resources()).await.unwrap());
            let to = tap(make(&networks, &two.resources()).await.unwrap());
            let cases = Cases {
                one: &one,
                two: &two,
                gateway4: network.gateway4(),
                gateway6: network.gateway6().unwrap(),
            };
            let after = cases.frame(IPV4, &ipv4(one.ipv4().unwrap(), two.ipv4().unwrap(), &udp(7, 7)));
            let passes = |frame: &[u8]| passes(&from, &to, frame, &after);
            for (what, frame) in cases.honest() {
                assert!(passes(&frame), "not passed: {what}");
            }
            for (what, frame) in cases.forged() {
                assert!(!passes(&frame), "passed: {what}");
            }
            // It is the rules that hold them.
            output("nft", &["delete", "table", "bridge", network.bridge()]);
            for (what, frame) in cases.forged() {
                assert!(passes(&frame), "would not have passed anyway: {what}");
            }
        })
    });
}

/// Whoever hears itself asking for its own address takes it for a taken one.
#[test]
fn a_machine_does_not_hear_what_it_sends_to_others() {
    in_own_space(|_| {
        run(async {
            let home = tempfile::tempdir().unwrap();
            let networks = networks(home.path());
            let (network, one) = plan(&networks, "m1", &[]).await;
            let tap = tap(make(&networks, &one.resources()).await.unwrap());
            let (mac, ip, ip6) = (one.mac, one.ipv4().unwrap(), one.ipv6().unwrap());
            let all_nodes = "ff02::1".parse().unwrap();
            let duplicates = icmpv6(Ipv6Addr::UNSPECIFIED, all_nodes, 135, Some(ip6));
            let cases = [
                ("a broadcast", ethernet(Mac([0xff; 6]), mac, ARP, &arp(mac, ip, ip))),
                (
                    "the detection of duplicates",
                    ethernet(Mac([0x33, 0x33, 0, 0, 0, 1]), mac, IPV6, &duplicates),
                ),
                (
                    "a frame to nobody",
                    ethernet(Mac([2, 9, 9, 9, 9, 9]), mac, IPV4, &ipv4(ip, ip, &udp(1000, 2000))),
                ),
            ];
            // What is redirected to its own published port is to its own Ethernet address.
            let after = ethernet(mac, mac, IPV4, &ipv4(ip, ip, &udp(7, 7)));
            for (what, frame) in &cases {
                assert!(!passes(&tap, &tap, frame, &after), "came back: {what}");
            }
            // It is the rules that hold them.
            output("nft", &["delete", "table", "bridge", network.bridge()]);
            for (what, frame) in &cases {
                assert!(
                    passes(&tap, &tap, frame, &after),
                    "would not have come back anyway: {what}"
                );
            }
        })
    });
}

struct Cases<'a> {
    one: &'a Attachment,
    two: &'a Attachment,
    gateway4: Ipv4Addr,
    gateway6: Ipv6Addr,
}

impl Cases<'_> {
    /// A frame of the first machine to the second.
    fn frame(&self, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        ethernet(self.two.mac, self.one.mac, kind, payload)
    }

    fn honest(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (mac, ip, ip6) = (self.one.mac, self.one.ipv4().unwrap(), self.one.ipv6().unwrap());
        let (to, to6) = (self.two.ipv4().unwrap(), self.two.ipv6().unwrap());
        let local = link_local(mac);
        let invented = "fe80::1234:5678:9abc:def0".parse().unwrap();
        let any = Ipv6Addr::UNSPECIFIED;
        vec![
            ("ipv4", self.frame(IPV4, &ipv4(ip, to, &udp(1000, 2000)))),
            ("ipv6", self.frame(IPV6, &ipv6(ip6, to6, 17, &udp(1000, 2000)))),
            ("arp", self.frame(ARP, &arp(mac, ip, to))),
            ("arp probe", self.frame(ARP, &arp(mac, Ipv4Addr::UNSPECIFIED, ip))),
            (
                "dhcp request",
                self.frame(IPV4, &ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp(68, 67))),
            ),
            (
                "neighbour solicitation",
                self.frame(IPV6, &icmpv6(ip6, to6, 135, Some(to6))),
            ),
            (
                "neighbour advertisement",
                self.frame(IPV6, &icmpv6(ip6, to6, 136, Some(ip6))),
            ),
            (
                "the same for link-local",
                self.frame(IPV6, &icmpv6(local, to6, 136, Some(local))),
            ),
            (
                "the same for an invented one",
                self.frame(IPV6, &icmpv6(invented, to6, 136, Some(invented))),
            ),
            (
                "detection of duplicates",
                self.frame(IPV6, &icmpv6(any, to6, 135, Some(ip6))),
            ),
            ("router solicitation", self.frame(IPV6, &icmpv6(local, to6, 133, None))),
        ]
    }

    fn forged(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (mac, ip, ip6) = (self.one.mac, self.one.ipv4().unwrap(), self.one.ipv6().unwrap());
        let (to, to6) = (self.two.ipv4().unwrap(), self.two.ipv6().unwrap());
        let (own, theirs) = (link_local(mac), link_local(self.two.mac));
        let any = Ipv6Addr::UNSPECIFIED;
        let (gw, gw6) = (self.gateway4, self.gateway6);
        let stranger = Mac([2, 9, 9, 9, 9, 9]);
        let honest = ipv4(ip, to, &udp(1000, 2000));
        let tagged = [&[0, 7][..], &IPV4, &ipv4(gw, to, &udp(1, 2))].concat();
        vec![
            (
                "an ethernet address of nobody",
                ethernet(self.two.mac, stranger, IPV4, &honest),
            ),
            (
                "the ipv4 address of the gateway",
                self.frame(IPV4, &ipv4(gw, to, &udp(1000, 2000))),
            ),
            (
                "an ipv4 address of nobody",
                self.frame(IPV4, &ipv4("192.0.2.1".parse().unwrap(), to, &udp(1, 2))),
            ),
            (
                "an answer of a dhcp server",
                self.frame(IPV4, &ipv4(ip, to, &udp(67, 68))),
            ),
            (
                "no ipv4 address, other than for dhcp",
                self.frame(IPV4, &ipv4(Ipv4Addr::UNSPECIFIED, to, &udp(1, 67))),
            ),
            ("arp for the gateway", self.frame(ARP, &arp(mac, gw, to))),
            ("arp with another sender", self.frame(ARP, &arp(stranger, ip, to))),
            ("a vlan tag", self.frame(VLAN, &tagged)),
            ("a protocol of its own", self.frame([0x88, 0xb5], b"something")),
            (
                "the ipv6 address of the gateway",
                self.frame(IPV6, &ipv6(gw6, to6, 17, &udp(1000, 2000))),
            ),
            (
                "an ipv6 address of nobody",
                self.frame(IPV6, &ipv6("fd99::9".parse().unwrap(), to6, 17, &udp(1, 2))),
            ),
            (
                "the link-local address of another",
                self.frame(IPV6, &ipv6(theirs, to6, 17, &udp(1, 2))),
            ),
            (
                "an advertisement for the gateway",
                self.frame(IPV6, &icmpv6(ip6, to6, 136, Some(gw6))),
            ),
            (
                "an advertisement for another's link-local",
                self.frame(IPV6, &icmpv6(own, to6, 136, Some(theirs))),
            ),
            (
                "a duplicate of another's address",
                self.frame(IPV6, &icmpv6(any, to6, 135, Some(to6))),
            ),
            ("a router advertisement", self.frame(IPV6, &icmpv6(own, to6, 134, None))),
            ("a redirect", self.frame(IPV6, &icmpv6(own, to6, 137, Some(gw6)))),
            (
                "an answer of a dhcpv6 server",
                self.frame(IPV6, &ipv6(own, to6, 17, &udp(547, 546))),
            ),
        ]
    }
}
