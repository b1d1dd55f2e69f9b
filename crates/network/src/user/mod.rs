//! The network of a machine whose host lets nobody make bridges: passt, without any privilege.
//!
//! ```text
//! guest ── hypervisor ──(frames)── relay + guard ──(frames)── passt ── sockets of the host
//! ```
//! passt ends the guest's connections and begins the same ones as an ordinary process of the host. The guest has an address
//! of its own, the same for all machines; nothing can reach it but through published ports.
//!
//! The [`Guard`] is there because passt does what a guest says: one that sends a frame to 127.0.0.1 gets a connection to the
//! host's loopback (seen with the passt of Debian 12, `--no-map-gw` or not). Between hypervisor and passt nothing gets through
//! that is not from the machine's own addresses or is to loopback, so the guest's kernel may send what it likes.
//! The [`Relay`] also counts, and lets passt be started again under a running guest.

mod guard;
mod passt;
mod relay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

pub use guard::Guard;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use passt::{Passt, PasstArgs, way_out};
pub use relay::{Relay, Traffic};

pub use crate::attachment::UserMode;
use crate::attachment::{Attachment, Route};
use crate::dns::HostDns;
use crate::endpoint::Membership;
use crate::error::NetworkError;
use crate::home::Networks;
use crate::links::{OUTSIDE4, OUTSIDE6};
use crate::name;
pub use crate::name::USER_NETWORK;
use crate::publish::{Publish, PublishError};

/// The guest, with its prefix length: what QEMU's user networking has used from the beginning, so guests know it.
const GUEST4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 15), 24);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Asked for names where the host's own resolver is on its loopback.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 0x15), 64);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 2);

/// The largest that virtio-net and passt take: passt ends all connections itself, so nothing is ever sent that large, and
/// fewer, larger frames are what makes it fast.
const MTU: u32 = 65520;

/// Any port: the one whose service throws away what it gets (RFC 863).
const DISCARD: u16 = 9;

/// passt takes each port as an argument.
const PORTS_MAX: usize = 512;

/// What an attachment through passt is planned from.
#[derive(Debug, Clone, Copy)]
pub struct UserRequest<'a> {
    /// The machine's id.
    pub machine: &'a str,
    /// Its how-manieth interface it is, from 0.
    pub index: u8,
    /// The machine's default routes go through it.
    pub is_default: bool,
    /// Ports to publish.
    pub publish: &'a [Publish],
    /// Resolvers of the host that a machine can reach.
    pub dns: &'a HostDns,
}

impl Networks {
    /// Plans the connection of a machine through passt. Nothing is kept on disk or made.
    ///
    /// # Errors
    /// When passt is not there, or cannot publish the ports like that.
    pub fn user_attachment(&self, request: UserRequest<'_>) -> Result<Attachment, NetworkError> {
        Passt::find()?;
        name::check(request.machine)?;
        check_publish(request.publish)?;
        Ok(self.planned_user_attachment(request, HostConnectivity::of_host()))
    }

    fn planned_user_attachment(&self, request: UserRequest<'_>, host: HostConnectivity) -> Attachment {
        let mut addresses: Vec<IpNet> = Vec::new();
        let mut routes = Vec::new();
        if host.ipv4 {
            addresses.extend(Ipv4Net::new(GUEST4.0, GUEST4.1).map(IpNet::V4));
            routes.push(default_route(Ipv4Net::default().into(), GATEWAY4.into()));
        }
        if host.ipv6 {
            addresses.extend(Ipv6Net::new(GUEST6.0, GUEST6.1).map(IpNet::V6));
            routes.push(default_route(Ipv6Net::default().into(), GATEWAY6.into()));
        }
        let resolver = (request.dns.nameservers.is_empty() && host.ipv4).then_some(RESOLVER);
        Attachment {
            network: USER_NETWORK.to_owned(),
            machine: request.machine.to_owned(),
            interface: format!("eth{}", request.index),
            mac: name::mac(self.home_id(), USER_NETWORK, request.machine),
            mtu: MTU,
            tap: String::new(),
            addresses,
            gateway4: GATEWAY4,
            gateway6: host.ipv6.then_some(GATEWAY6),
            routes: if request.is_default { routes } else { Vec::new() },
            nameservers: match resolver {
                Some(resolver) => vec![resolver.into()],
                None => request.dns.nameservers.clone(),
            },
            search: request.dns.search.clone(),
            publish: request.publish.to_vec(),
            membership: Membership::default(),
            user: Some(UserMode { resolver }),
        }
    }
}

fn default_route(destination: IpNet, gateway: IpAddr) -> Route {
    Route { destination, gateway }
}

/// Which ways out the host has.
#[derive(Debug, Clone, Copy)]
struct HostConnectivity {
    ipv4: bool,
    ipv6: bool,
}

impl HostConnectivity {
    /// Those of this host. Without any, IPv4: it may be offline for the moment, and passt says so at the start.
    fn of_host() -> HostConnectivity {
        let ipv6 = has_way_to(OUTSIDE6.into());
        HostConnectivity {
            ipv4: has_way_to(OUTSIDE4.into()) || !ipv6,
            ipv6,
        }
    }
}

/// Whether this host would know how to send there, for which nothing is sent.
fn has_way_to(outside: IpAddr) -> bool {
    let any: IpAddr = match outside {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let connected = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((outside, DISCARD))?;
        socket.local_addr()
    });
    connected.is_ok_and(|own| !own.ip().is_loopback())
}

/// That passt can publish these: each host port once, and not too many.
fn check_publish(publish: &[Publish]) -> Result<(), NetworkError> {
    Publish::check_set(publish)?;
    let count: usize = publish.iter().map(|p| p.host.ports().count()).sum();
    if count > PORTS_MAX {
        return Err(PublishError::TooMany { max: PORTS_MAX }.into());
    }
    // passt has one target for each host port, whatever the address.
    for (nth, one) in publish.iter().enumerate() {
        let same = publish[..nth].iter().filter(|other| other.protocol == one.protocol);
        if let Some(port) = same.filter_map(|other| other.host.common(one.host)).next() {
            return Err(PublishError::Once { port }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(dns: &HostDns, host: HostConnectivity) -> Attachment {
        let home = tempfile::tempdir().unwrap();
        let networks = Networks::open(home.path()).unwrap();
        let request = UserRequest {
            machine: "0123456789ab",
            index: 0,
            is_default: true,
            publish: &["8080:80".parse().unwrap()],
            dns,
        };
        networks.planned_user_attachment(request, host)
    }

    #[test]
    fn a_machine_gets_what_the_host_has_and_nothing_to_undo() {
        let dns = HostDns {
            nameservers: vec!["192.0.2.53".parse().unwrap()],
            search: vec!["lan".into()],
        };
        let planned = attachment(
            &dns,
            HostConnectivity {
                ipv4: true,
                ipv6: false,
            },
        );
        assert_eq!(planned.addresses, ["10.0.2.15/24".parse().unwrap()]);
        assert_eq!((planned.routes.len(), planned.gateway6), (1, None));
        assert_eq!(planned.nameservers, dns.nameservers);
        assert!(planned.resources().is_empty());
        let planned = attachment(&dns, HostConnectivity { ipv4: true, ipv6: true });
        assert_eq!((planned.addresses.len(), planned.routes.len()), (2, 2));
    }

    #[test]
    fn behind_a_resolver_on_loopback_passt_asks_it() {
        let planned = attachment(&HostDns::default(), HostConnectivity { ipv4: true, ipv6: true });
        assert_eq!(planned.nameservers, [IpAddr::from(RESOLVER)]);
        assert_eq!(planned.user.unwrap().resolver, Some(RESOLVER));
    }

    #[test]
    fn a_host_port_is_published_once() {
        let set = |texts: &[&str]| check_publish(&texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>());
        set(&["127.0.0.1:80:80", "80:81/udp"]).unwrap();
        let output = set(&["127.0.0.1:80:80", "10.0.0.1:80:80"]).unwrap_err().to_string();
        assert!(output.contains("host port 80"), "{output}");
        assert!(set(&["1024-2048:1024-2048"]).unwrap_err().to_string().contains("512"));
    }
}
