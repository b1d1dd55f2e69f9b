//! Just enough of rtnetlink: a few messages, each acknowledged by the kernel.
//!
//! Written by hand because the agent needs a few fixed messages and no parser, and the general crates would be the
//! larger part of a program that sits in every machine's memory. Layouts: rtnetlink(7), netlink(7).

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
/// NLM_F_REQUEST | NLM_F_ACK.
const REQUEST: u16 = 0x1 | 0x4;
/// NLM_F_CREATE | NLM_F_REPLACE: a setting made twice is no error.
const CREATE: u16 = 0x400 | 0x100;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// A route socket.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open() -> Result<Self, Errno> {
        // Protocol 0 is NETLINK_ROUTE.
        Ok(Netlink(socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?))
    }

    /// Gives interface `index` another name; it must be down.
    pub(super) fn rename(&self, index: u32, name: &str) -> Result<(), Errno> {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        self.request(Message::link(index, 0, 0).attribute(IFLA_IFNAME, &name))
    }

    /// Sets the MTU of interface `index`, in bytes.
    pub(super) fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Errno> {
        self.request(Message::link(index, 0, 0).attribute(IFLA_MTU, &mtu.to_ne_bytes()))
    }

    /// Brings interface `index` up.
    pub(super) fn set_up(&self, index: u32) -> Result<(), Errno> {
        self.request(Message::link(index, IFF_UP, IFF_UP))
    }

    /// Takes interface `index` down.
    pub(super) fn set_down(&self, index: u32) -> Result<(), Errno> {
        self.request(Message::link(index, 0, IFF_UP))
    }

    /// Gives interface `index` another MAC; it must be down.
    pub(super) fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), Errno> {
        self.request(Message::link(index, 0, 0).attribute(IFLA_ADDRESS, &mac))
    }

    /// Takes an address away; one that is not there is fine.
    pub(super) fn remove_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
        let mut header = vec![family(address), prefix, 0, RT_SCOPE_UNIVERSE];
        header.extend(index.to_ne_bytes());
        let message = Message::new(RTM_DELADDR, 0, &header).attribute(IFA_LOCAL, &octets(address));
        match self.request(message) {
            Err(Errno::ADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Adds an address, usable at once: no duplicate detection.
    pub(super) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
        let mut header = vec![family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE];
        header.extend(index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, CREATE, &header)
            .attribute(IFA_LOCAL, &octets(address))
            .attribute(IFA_ADDRESS, &octets(address));
        if let IpAddr::V4(v4) = address
            && prefix < 31
        {
            let broadcast = u32::from(v4) | (u32::MAX >> prefix);
            message = message.attribute(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
        self.request(message)
    }

    /// Adds a route to `destination`/`prefix` on interface `index`.
    pub(super) fn add_route(
        &self,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
        index: u32,
    ) -> Result<(), Errno> {
        let scope = if gateway.is_none() && destination.is_ipv4() {
            RT_SCOPE_LINK
        } else {
            RT_SCOPE_UNIVERSE
        };
        let mut header = vec![
            family(destination),
            prefix,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            scope,
            RTN_UNICAST,
        ];
        header.extend(0u32.to_ne_bytes());
        let mut message = Message::new(RTM_NEWROUTE, CREATE, &header)
            .attribute(RTA_DST, &octets(destination))
            .attribute(RTA_OIF, &index.to_ne_bytes());
        if let Some(gateway) = gateway {
            if gateway.is_ipv4() != destination.is_ipv4() {
                return Err(Errno::AFNOSUPPORT);
            }
            message = message.attribute(RTA_GATEWAY, &octets(gateway));
        }
        self.request(message)
    }

    /// Sends one message and waits for the kernel's verdict.
    fn request(&self, message: Message) -> Result<(), Errno> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        loop {
            let (length, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
            if let Some(verdict) = verdict(&answer[..length]) {
                return verdict;
            }
        }
    }
}

/// The errno of an acknowledgement: `nlmsghdr` (16 bytes), then a negative errno or 0.
fn verdict(answer: &[u8]) -> Option<Result<(), Errno>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| {
        if code == 0 {
            Ok(())
        } else {
            Err(Errno::from_raw_os_error(code.saturating_neg()))
        }
    })
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AddressFamily::INET.as_raw() as u8,
        IpAddr::V6(_) => AddressFamily::INET6.as_raw() as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A message under construction: `nlmsghdr`, the family's header, attributes padded to four bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(header);
        Message(bytes)
    }

    fn link(index: u32, flags: u32, change: u32) -> Self {
        let mut header = vec![0; 4];
        for word in [index, flags, change] {
            header.extend(word.to_ne_bytes());
        }
        Message::new(RTM_NEWLINK, 0, &header)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_padded_attributes() {
        let bytes = Message::link(7, IFF_UP, IFF_UP)
            .attribute(IFLA_IFNAME, b"eth0\0")
            .finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[32..], [9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
    }

    #[test]
    fn the_kernels_verdict_is_an_errno_or_success() {
        let mut answer = vec![0u8; 36];
        answer[4] = 2;
        assert_eq!(verdict(&answer), Some(Ok(())));
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(verdict(&answer), Some(Err(Errno::EXIST)));
        answer[4] = 16;
        assert_eq!(verdict(&answer), None);
    }
}
