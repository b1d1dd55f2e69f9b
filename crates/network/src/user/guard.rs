//! Which frames of a guest passt gets to see. Pure, but for the memory of who asked over UDP.
//!
//! | to | passes |
//! |---|---|
//! | passt itself | ARP, neighbour and router discovery, DHCP |
//! | anywhere else | IPv4 and IPv6 from the machine's own MAC and addresses |
//! | loopback, unspecified, IPv4 in IPv6, multicast, broadcast | nothing |
//! | the gateway | no new connection; answers to who connected from there |
//!
//! Only headers are looked at, each byte of them as passt does; what does not parse is dropped.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::attachment::Attachment;
use crate::name::Mac;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// How long an answer over UDP may take: what passt itself waits.
const UDP_TIMEOUT: Duration = Duration::from_secs(180);
/// Who asked over UDP at the same time, at most.
const ASKERS_MAX: usize = 4096;

/// Decides about the frames of one machine.
#[derive(Debug)]
pub struct Guard {
    mac: Mac,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    gateway4: Ipv4Addr,
    gateway6: Option<Ipv6Addr>,
    /// (port of the gateway, port of the guest) of what came over UDP from the gateway, and when.
    askers: Mutex<HashMap<(u16, u16), Instant>>,
}

impl Guard {
    /// One of made-up addresses.
    #[cfg(test)]
    pub(super) fn example(mac: Mac) -> Guard {
        Guard {
            mac,
            ipv4: Some([10, 0, 2, 15].into()),
            ipv6: Some("fd00:10:0:2::15".parse().unwrap()),
            gateway4: [10, 0, 2, 2].into(),
            gateway6: Some("fd00:10:0:2::2".parse().unwrap()),
            askers: Mutex::default(),
        }
    }

    /// That of a planned attachment.
    pub fn new(attachment: &Attachment) -> Guard {
        Guard {
            mac: attachment.mac,
            ipv4: attachment.ipv4(),
            ipv6: attachment.ipv6(),
            gateway4: attachment.gateway4,
            gateway6: attachment.gateway6,
            askers: Mutex::default(),
        }
    }

    /// A frame that says for the guest where it is: an ARP request for the gateway. passt sends to the Ethernet broadcast
    /// address until it has seen a frame of its guest, and no guest takes TCP from there; a guest that is not configured by
    /// DHCP may well have nothing to say until it is spoken to.
    pub(super) fn announcement(&self) -> Vec<u8> {
        let own = self.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED);
        // Ethernet and IPv4 with their address lengths, request (RFC 826).
        let kind = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
        [
            &[0xff; 6][..],
            &self.mac.0,
            &ARP,
            &kind,
            &self.mac.0,
            &own.octets(),
            &[0; 6],
            &self.gateway4.octets(),
        ]
        .concat()
    }

    /// Whether a frame of the guest, from its Ethernet header on, may pass.
    pub fn passes(&self, frame: &[u8]) -> bool {
        let Some((header, rest)) = frame.split_at_checked(14) else {
            return false;
        };
        if header[6..12] != self.mac.0 {
            return false;
        }
        match [header[12], header[13]] {
            ARP => true,
            IPV4 => Packet4::parse(rest).is_some_and(|packet| self.passes4(&packet)),
            IPV6 => Packet6::parse(rest).is_some_and(|packet| self.passes6(&packet)),
            _ => false,
        }
    }

    /// Notes a frame to the guest, so that the answer to it may pass.
    pub(super) fn note(&self, frame: &[u8]) {
        let Some((header, rest)) = frame.split_at_checked(14) else {
            return;
        };
        let asker = match [header[12], header[13]] {
            IPV4 => Packet4::parse(rest)
                .filter(|p| p.source == self.gateway4 && p.protocol == UDP)
                .and_then(|p| ports(p.payload)),
            IPV6 => Packet6::parse(rest)
                .filter(|p| Some(p.source) == self.gateway6 && p.protocol == UDP)
                .and_then(|p| ports(p.payload)),
            _ => None,
        };
        let Some(asker) = asker else { return };
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if askers.len() >= ASKERS_MAX {
            askers.retain(|_, at| at.elapsed() < UDP_TIMEOUT);
        }
        if askers.len() < ASKERS_MAX {
            askers.insert(asker, Instant::now());
        }
    }

    fn passes4(&self, packet: &Packet4<'_>) -> bool {
        let (source, to) = (packet.source, packet.destination);
        if to.is_broadcast() {
            // DHCP, also of a guest that has no address yet.
            return packet.protocol == UDP && !packet.is_fragment && ports(packet.payload) == Some((68, 67));
        }
        let octets = to.octets();
        let is_nowhere = octets[0] == 0 || to.is_loopback() || octets[0] >= 224;
        if is_nowhere || Some(source) != self.ipv4 {
            return false;
        }
        to != self.gateway4 || (!packet.is_fragment && self.may_reach_gateway(packet.protocol, packet.payload))
    }

    fn passes6(&self, packet: &Packet6<'_>) -> bool {
        let (source, to) = (packet.source, packet.destination);
        if to.is_multicast() {
            let discovery = packet.protocol == ICMPV6;
            let dhcp = packet.protocol == UDP && ports(packet.payload) == Some((546, 547));
            return self.may_send6(source, true) && (discovery || dhcp);
        }
        // ::, ::1 and what is left of IPv4-compatible addresses; IPv4-mapped; IPv4-translated.
        let segments = to.segments();
        let is_nowhere = segments[..6] == [0; 6]
            || segments[..6] == [0, 0, 0, 0, 0, 0xffff]
            || segments[..6] == [0, 0, 0, 0, 0xffff, 0];
        if is_nowhere || !self.may_send6(source, packet.protocol == ICMPV6) {
            return false;
        }
        Some(to) != self.gateway6 || self.may_reach_gateway(packet.protocol, packet.payload)
    }

    /// Whether IPv6 may come from there: the own address, and for what keeps a link going also link-local ones and none.
    fn may_send6(&self, source: Ipv6Addr, is_of_link: bool) -> bool {
        let of_link = source.is_unicast_link_local() || source.is_unspecified();
        Some(source) == self.ipv6 || (is_of_link && of_link)
    }

    fn may_reach_gateway(&self, protocol: u8, payload: &[u8]) -> bool {
        match protocol {
            ICMP | ICMPV6 => true,
            // Flags are in byte 13: SYN (2) without ACK (16) is a new connection.
            TCP => payload.get(13).is_some_and(|flags| flags & 0x12 != 0x02),
            UDP => ports(payload).is_some_and(|(guest, gateway)| {
                let askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
                askers
                    .get(&(gateway, guest))
                    .is_some_and(|at| at.elapsed() < UDP_TIMEOUT)
            }),
            _ => false,
        }
    }
}

/// Source and destination port, which TCP and UDP have in the same place.
fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    let bytes = payload.first_chunk::<4>()?;
    Some((
        u16::from_be_bytes([bytes[0], bytes[1]]),
        u16::from_be_bytes([bytes[2], bytes[3]]),
    ))
}

struct Packet4<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    /// A piece of a packet, whose ports may be in another one.
    is_fragment: bool,
    payload: &'a [u8],
}

impl Packet4<'_> {
    fn parse(bytes: &[u8]) -> Option<Packet4<'_>> {
        let header = bytes.first_chunk::<20>()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || length < 20 {
            return None;
        }
        Some(Packet4 {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
            protocol: header[9],
            // More fragments (0x2000), or an offset.
            is_fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
            payload: bytes.get(length..)?,
        })
    }
}

struct Packet6<'a> {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    /// The first header after IPv6's own. One of an extension is none that is asked for anywhere here.
    protocol: u8,
    payload: &'a [u8],
}

impl Packet6<'_> {
    fn parse(bytes: &[u8]) -> Option<Packet6<'_>> {
        let (header, payload) = bytes.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
        Some(Packet6 {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn guard() -> Guard {
        Guard::example(Mac(MAC))
    }

    fn frame(ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 9], &MAC[..], &ethertype, packet].concat()
    }

    fn four(source: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        let header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        frame(IPV4, &[&header[..], &address(source), &address(to), payload].concat())
    }

    fn six(source: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let header = [0x60, 0, 0, 0, 0, 0, protocol, 64];
        frame(IPV6, &[&header[..], &address(source), &address(to), payload].concat())
    }

    fn udp(source: u16, to: u16) -> Vec<u8> {
        [source.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
    }

    fn tcp(flags: u8) -> Vec<u8> {
        let mut header = vec![0; 20];
        header[13] = flags;
        header
    }

    #[test]
    fn the_world_is_reached_and_loopback_is_not_whatever_it_is_called() {
        let guard = guard();
        for to in ["192.0.2.1", "10.0.2.3", "10.1.1.1", "169.254.1.1"] {
            assert!(guard.passes(&four("10.0.2.15", to, TCP, &tcp(2))), "{to}");
        }
        for to in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.251",
            "255.255.255.255",
            "240.0.0.1",
        ] {
            assert!(!guard.passes(&four("10.0.2.15", to, TCP, &tcp(2))), "{to}");
        }
        assert!(guard.passes(&six("fd00:10:0:2::15", "2001:db8::1", TCP, &tcp(2))));
        for to in [
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
            "::ffff:0:7f00:1",
            "ff02::fb",
        ] {
            assert!(!guard.passes(&six("fd00:10:0:2::15", to, TCP, &tcp(2))), "{to}");
            assert!(!guard.passes(&six("fd00:10:0:2::15", to, UDP, &udp(1, 5353))), "{to}");
        }
    }

    #[test]
    fn the_guest_is_announced_by_a_frame_it_may_send() {
        let frame = guard().announcement();
        assert!(frame.len() == 42 && guard().passes(&frame));
    }

    #[test]
    fn only_the_machines_own_addresses_send() {
        let guard = guard();
        assert!(!guard.passes(&four("10.0.2.16", "192.0.2.1", UDP, &udp(1, 2))));
        assert!(!guard.passes(&four("0.0.0.0", "192.0.2.1", UDP, &udp(68, 67))));
        assert!(!guard.passes(&six("fd00::9", "2001:db8::1", UDP, &udp(1, 2))));
        assert!(!guard.passes(&six("fe80::1", "2001:db8::1", UDP, &udp(1, 2))));
        let mut forged = four("10.0.2.15", "192.0.2.1", UDP, &udp(1, 2));
        forged[6] ^= 4;
        assert!(!guard.passes(&forged));
        // A VLAN tag would hide what is behind it.
        assert!(!guard.passes(&frame([0x81, 0x00], &[0; 64])));
        for cut in 0..34 {
            assert!(!guard.passes(&four("10.0.2.15", "192.0.2.1", UDP, &udp(1, 2))[..cut]));
        }
    }

    #[test]
    fn what_configures_a_guest_passes() {
        let guard = guard();
        assert!(guard.passes(&frame(ARP, &[0; 28])));
        assert!(guard.passes(&four("0.0.0.0", "255.255.255.255", UDP, &udp(68, 67))));
        assert!(guard.passes(&six("::", "ff02::1:ff00:15", ICMPV6, &[135; 24])));
        assert!(guard.passes(&six("fe80::1", "ff02::2", ICMPV6, &[133; 8])));
        assert!(guard.passes(&six("fe80::1", "ff02::1:2", UDP, &udp(546, 547))));
    }

    #[test]
    fn the_gateway_gets_answers_and_no_questions() {
        let guard = guard();
        let udp_to = |port| four("10.0.2.15", "10.0.2.2", UDP, &udp(53, port));
        assert!(!guard.passes(&four("10.0.2.15", "10.0.2.2", TCP, &tcp(0x02))));
        assert!(guard.passes(&four("10.0.2.15", "10.0.2.2", TCP, &tcp(0x12))));
        assert!(guard.passes(&four("10.0.2.15", "10.0.2.2", TCP, &tcp(0x10))));
        assert!(!guard.passes(&udp_to(40000)));
        guard.note(&four("10.0.2.2", "10.0.2.15", UDP, &udp(40000, 53)));
        assert!(guard.passes(&udp_to(40000)) && !guard.passes(&udp_to(40001)));
        assert!(!guard.passes(&four("10.0.2.15", "10.0.2.2", UDP, &udp(54, 40000))));
        // A fragment says nothing of its ports.
        let mut fragment = udp_to(40000);
        fragment[14 + 6] = 0x20;
        assert!(!guard.passes(&fragment));
        // Nor does an extension header of IPv6.
        assert!(!guard.passes(&six(
            "fd00:10:0:2::15",
            "fd00:10:0:2::2",
            60,
            &[17, 0, 1, 4, 0, 0, 0, 0]
        )));
    }
}
