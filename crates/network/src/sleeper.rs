//! Frames for a machine that is asleep: which of them wake it, and which are answered in its place.
//!
//! Who wants to talk to it asks for its Ethernet address first, which it is not there to tell: that is done here, so that the packet
//! itself comes. It is lost, and comes again, as every first packet of a connection does that is not answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Attachment;

/// `EtherType`s.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// The length of an Ethernet header, and of an ARP message for IPv4, in bytes.
const ETHERNET: usize = 14;
const ARP_BYTES: usize = 28;

/// Where the packet begins behind an IPv6 header, and where an ICMPv6 neighbour solicitation has its target.
const IPV6_BYTES: usize = 40;
const ICMPV6: u8 = 58;
const NEIGHBOR_SOLICITATION: u8 = 135;

/// An interface of a machine that is asleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleeper {
    mac: [u8; 6],
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

/// What a frame means for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// It is for others, or for all.
    Nothing,
    /// Its address is asked for; the answer.
    Answer(Vec<u8>),
    /// Somebody talks to it: from where.
    Wake(IpAddr),
}

impl Sleeper {
    /// The interface of an attachment; `None` when its Ethernet address cannot be read.
    pub fn of(attachment: &Attachment) -> Option<Sleeper> {
        let mac = attachment.mac.to_string();
        let bytes: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .ok()?;
        let addresses = || attachment.addresses.iter().map(|net| net.addr());
        Some(Sleeper {
            mac: bytes.try_into().ok()?,
            ipv4: addresses()
                .filter_map(|address| match address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            ipv6: addresses()
                .filter_map(|address| match address {
                    IpAddr::V6(address) => Some(address),
                    IpAddr::V4(_) => None,
                })
                .collect(),
        })
    }

    /// What an Ethernet frame that comes from the network means.
    pub fn meaning(&self, frame: &[u8]) -> Meaning {
        let Some((header, packet)) = frame.split_at_checked(ETHERNET) else {
            return Meaning::Nothing;
        };
        match u16::from_be_bytes([header[12], header[13]]) {
            ARP => self.arp(packet),
            IPV4 => match (bytes::<4>(packet, 12), bytes::<4>(packet, 16)) {
                (Some(from), Some(to)) if self.ipv4.contains(&to.into()) => Meaning::Wake(Ipv4Addr::from(from).into()),
                _ => Meaning::Nothing,
            },
            IPV6 => self.ipv6(packet),
            _ => Meaning::Nothing,
        }
    }

    fn ipv6(&self, packet: &[u8]) -> Meaning {
        let (Some(from), Some(to)) = (bytes::<16>(packet, 8), bytes::<16>(packet, 24)) else {
            return Meaning::Nothing;
        };
        let asked = || {
            let is_question = packet.get(6) == Some(&ICMPV6) && packet.get(IPV6_BYTES) == Some(&NEIGHBOR_SOLICITATION);
            let target = bytes::<16>(packet, IPV6_BYTES + 8).filter(|_| is_question)?;
            self.ipv6.contains(&target.into()).then_some(())
        };
        // The question is sent to a group, and asked several times: the machine answers itself by then.
        match self.ipv6.contains(&to.into()) || asked().is_some() {
            true => Meaning::Wake(Ipv6Addr::from(from).into()),
            false => Meaning::Nothing,
        }
    }

    /// RFC 826: a question (1) is answered (2) with both sides exchanged.
    fn arp(&self, message: &[u8]) -> Meaning {
        let Some(message) = message.get(..ARP_BYTES) else {
            return Meaning::Nothing;
        };
        let is_ethernet_for_ipv4 = message[..6] == [0, 1, 8, 0, 6, 4];
        let is_question = message[6..8] == [0, 1];
        let (asker, target) = (&message[8..18], bytes::<4>(message, 24).unwrap_or_default());
        if !is_ethernet_for_ipv4 || !is_question || !self.ipv4.contains(&target.into()) {
            return Meaning::Nothing;
        }
        // Who looks whether an address is free (RFC 5227) gets the same answer.
        let mut answer = Vec::with_capacity(ETHERNET + ARP_BYTES);
        answer.extend(&asker[..6]);
        answer.extend(self.mac);
        answer.extend(ARP.to_be_bytes());
        answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        answer.extend(self.mac);
        answer.extend(target);
        answer.extend(asker);
        Meaning::Answer(answer)
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];

    fn sleeper() -> Sleeper {
        Sleeper {
            mac: [2, 0, 0, 0, 0, 7],
            ipv4: vec![Ipv4Addr::new(10, 1, 0, 7)],
            ipv6: vec!["fd00::7".parse().unwrap()],
        }
    }

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &OTHER, &kind.to_be_bytes(), packet].concat()
    }

    fn question(target: [u8; 4]) -> Vec<u8> {
        let message = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OTHER, &[10, 1, 0, 1], &[0; 6], &target].concat();
        frame(ARP, &message)
    }

    fn ipv4(to: [u8; 4]) -> Vec<u8> {
        frame(IPV4, &[&[0x45; 12][..], &[10, 1, 0, 1], &to].concat())
    }

    #[test]
    fn its_address_is_told_in_its_place() {
        let Meaning::Answer(answer) = sleeper().meaning(&question([10, 1, 0, 7])) else {
            panic!("it is not answered");
        };
        assert_eq!((&answer[..6], &answer[6..12]), (&OTHER[..], &[2, 0, 0, 0, 0, 7][..]));
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(
            (&answer[22..28], &answer[28..32]),
            (&[2, 0, 0, 0, 0, 7][..], &[10, 1, 0, 7][..])
        );
        assert_eq!((&answer[32..38], &answer[38..42]), (&OTHER[..], &[10, 1, 0, 1][..]));
        assert_eq!(sleeper().meaning(&question([10, 1, 0, 8])), Meaning::Nothing);
        // An answer is no question.
        assert_eq!(sleeper().meaning(&answer), Meaning::Nothing);
    }

    #[test]
    fn what_is_for_it_wakes_it_and_what_is_for_others_does_not() {
        let from = |address: &str| Meaning::Wake(address.parse().unwrap());
        assert_eq!(sleeper().meaning(&ipv4([10, 1, 0, 7])), from("10.1.0.1"));
        assert_eq!(sleeper().meaning(&ipv4([10, 1, 0, 255])), Meaning::Nothing);
        let ipv6 = |next: u8, to: &str, rest: &[u8]| {
            let (source, to): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), to.parse().unwrap());
            let header = [
                &[0x60, 0, 0, 0, 0, 0, next, 64][..],
                &source.octets(),
                &to.octets(),
                rest,
            ]
            .concat();
            sleeper().meaning(&frame(IPV6, &header))
        };
        let target = |address: &str| {
            let target: Ipv6Addr = address.parse().unwrap();
            [&[NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
        };
        assert_eq!(ipv6(6, "fd00::7", &[]), from("fd00::1"));
        assert_eq!(ipv6(ICMPV6, "ff02::1:ff00:7", &target("fd00::7")), from("fd00::1"));
        assert_eq!(ipv6(ICMPV6, "ff02::1:ff00:8", &target("fd00::8")), Meaning::Nothing);
        assert_eq!(ipv6(ICMPV6, "ff02::1", &[130, 0, 0, 0]), Meaning::Nothing);
    }

    #[test]
    fn no_frame_is_too_short() {
        for whole in [question([10, 1, 0, 7]), ipv4([10, 1, 0, 7]), frame(IPV6, &[0; 70])] {
            for length in 0..whole.len() {
                let _ = sleeper().meaning(&whole[..length]);
            }
        }
    }
}
