//! Published ports: those that were asked for and those that the image exposes, with a free port of this host where none is named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use zmachine_network::{PortRange, Protocol, Publish, PublishRequest};
use zmachine_spec::{Class, Failure, Setting};

/// Ports of this host that nobody has; each is kept until all are known, so that none comes twice.
#[derive(Default)]
struct FreePorts {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl FreePorts {
    /// A free port for a protocol, on an address or on all.
    fn take(&mut self, protocol: Protocol, address: IpAddr) -> std::io::Result<u16> {
        let any = SocketAddr::new(address, 0);
        match protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(any)?;
                let port = socket.local_addr()?.port();
                self.udp.push(socket);
                Ok(port)
            }
            Protocol::Tcp => {
                let socket = TcpListener::bind(any)?;
                let port = socket.local_addr()?.port();
                self.tcp.push(socket);
                Ok(port)
            }
        }
    }
}

/// What `requests` come to, with free ports of this host where they name none, as docker has it. Those are kept free of each
/// other, not of other programs; one that is taken until the start is told then.
///
/// # Errors
/// What the host says when it has no port free.
pub(super) fn published(requests: &[PublishRequest]) -> Result<Vec<Publish>, Failure> {
    let mut free = FreePorts::default();
    let mut all = Vec::new();
    for request in requests {
        let PublishRequest {
            address,
            host,
            guest,
            protocol,
        } = *request;
        if let Some(host) = host {
            all.push(Publish {
                address,
                host,
                guest,
                protocol,
            });
            continue;
        }
        let on = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        for port in guest.ports() {
            let host = free.take(protocol, on).map_err(|e| {
                let what = format!("there is no free port on {on} for port {port}/{protocol} of the machine");
                Failure::from_error(Class::Failed, &e)
                    .context(what)
                    .about(Setting::Publish)
            })?;
            all.extend(one(address, host, port, protocol));
        }
    }
    Ok(all)
}

/// One port of this host for one of the machine; neither is 0.
fn one(address: Option<IpAddr>, host: u16, guest: u16, protocol: Protocol) -> Option<Publish> {
    Some(Publish {
        address,
        host: PortRange::new(host, host)?,
        guest: PortRange::new(guest, guest)?,
        protocol,
    })
}

/// A free port of this host for each exposed port (`80/tcp`, `8000-8002`) that is not published yet. A protocol that cannot be
/// published, such as SCTP, is no reason not to publish the others.
///
/// # Errors
/// [`Class::Usage`] for an exposed port that is none.
pub(super) fn publish_exposed(exposed: &[String], published: &[Publish]) -> Result<Vec<Publish>, Failure> {
    let mut free = FreePorts::default();
    let mut new = Vec::new();
    for text in exposed {
        let broken = || Failure::new(Class::Usage, format!("the image exposes '{text}', which is no port"));
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u16>().map_err(|_| broken());
        let ports = number(first)?..=number(last)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => continue,
        };
        for guest in ports {
            let host = free.take(protocol, Ipv4Addr::UNSPECIFIED.into())?;
            let wanted = one(None, host, guest, protocol).ok_or_else(broken)?;
            let is_published = published
                .iter()
                .any(|other| other.guest == wanted.guest && other.protocol == wanted.protocol);
            new.extend((!is_published).then_some(wanted));
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Publish> {
        published(&[PublishRequest::parse(text).unwrap()]).unwrap()
    }

    #[test]
    fn a_port_that_names_none_of_the_host_gets_a_free_one() {
        for text in ["80", "0:80", "127.0.0.1::80", "127.0.0.1:0:80", "80/udp"] {
            let published = of(text);
            assert_eq!(published.len(), 1, "{text}");
            assert_eq!(published[0].guest.first(), 80);
            assert!(published[0].host.first() >= 1024, "{text}: {}", published[0]);
            assert_eq!(published[0].address.is_some(), text.starts_with("127"), "{text}");
        }
        let range = of("8000-8002");
        let hosts: std::collections::BTreeSet<u16> = range.iter().map(|one| one.host.first()).collect();
        assert_eq!((range.len(), hosts.len()), (3, 3));
        assert_eq!(of("8080:80")[0].to_string(), "8080:80/tcp");
    }

    #[test]
    fn an_exposed_port_of_another_protocol_does_not_spoil_the_others() {
        let exposed = ["80/tcp", "9899/sctp", "53/udp", "443"].map(str::to_owned);
        let published = publish_exposed(&exposed, &of("8443:443")).unwrap();
        let guests: Vec<u16> = published.iter().map(|one| one.guest.first()).collect();
        assert_eq!(guests, [80, 53]);
        assert!(publish_exposed(&["x/tcp".to_owned()], &[]).is_err());
    }
}
