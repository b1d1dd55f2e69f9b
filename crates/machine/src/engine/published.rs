//! Published ports: what `-p` and `-P` stand for, with a free port of this host where none is named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use zmachine_network::{NetworkError, Publish};

use crate::failure::{Class, Failure};

/// Ports of this host that nobody has; each is kept until all are known, so that none comes twice.
#[derive(Default)]
struct FreePorts {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl FreePorts {
    /// A free port for a protocol, on an address or on all.
    fn take(&mut self, protocol: &str, address: IpAddr) -> std::io::Result<u16> {
        let any = SocketAddr::new(address, 0);
        match protocol {
            "udp" => {
                let socket = UdpSocket::bind(any)?;
                let port = socket.local_addr()?.port();
                self.udp.push(socket);
                Ok(port)
            }
            _ => {
                let socket = TcpListener::bind(any)?;
                let port = socket.local_addr()?.port();
                self.tcp.push(socket);
                Ok(port)
            }
        }
    }
}

/// Reads the values of `-p`. `80`, `127.0.0.1::80` and `0:80` take free ports of this host, as docker has it. They are kept free
/// of each other, not of other programs; one that is taken until the start is told then.
///
/// # Errors
/// [`Class::Usage`] for what is no such value; what the host says when it has no port free.
pub(super) fn parse_publish(texts: &[String]) -> Result<Vec<Publish>, Failure> {
    let mut free = FreePorts::default();
    let mut all = Vec::new();
    for text in texts {
        match wants_free(text) {
            Some(wish) => all.extend(wish.resolve(text, &mut free)?),
            None => all.push(parse(text)?),
        }
    }
    Ok(all)
}

fn parse(text: &str) -> Result<Publish, Failure> {
    Publish::parse(text).map_err(|e| Failure::from(NetworkError::from(e)))
}

/// A `-p` that names no port of the host.
struct Wish<'a> {
    /// As it is written, with its colon.
    address: &'a str,
    guest: &'a str,
    protocol: &'a str,
}

fn wants_free(text: &str) -> Option<Wish<'_>> {
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let wish = |address, guest| {
        Some(Wish {
            address,
            guest,
            protocol,
        })
    };
    match ports.rsplit_once(':') {
        None => wish("", ports),
        Some((before, guest)) => match before.rsplit_once(':') {
            // An address in brackets has colons of its own.
            Some((address, "" | "0")) => wish(&text[..address.len() + 1], guest),
            None if before == "0" => wish("", guest),
            _ => None,
        },
    }
}

impl Wish<'_> {
    fn resolve(&self, text: &str, free: &mut FreePorts) -> Result<Vec<Publish>, Failure> {
        let (address, protocol) = (self.address, self.protocol);
        // Read once with ports that are surely right: whatever is wrong is told as it was written.
        let guests = self.guest;
        let probe = parse(&format!("{address}{guests}:{guests}/{protocol}")).map_err(|mut failure| {
            let written = format!("{address}{guests}:{guests}/{protocol}");
            failure.message = failure.message.replace(&written, text);
            failure
        })?;
        let on = probe.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let one = |guest: u16| {
            let context = |e: std::io::Error| {
                Failure::from_error(Class::Failed, &e).context(format!("-p {text}: there is no free port on {on}"))
            };
            let port = free.take(protocol, on).map_err(context)?;
            parse(&format!("{address}{port}:{guest}/{protocol}"))
        };
        probe.guest.ports().map(one).collect()
    }
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
        if !matches!(protocol, "tcp" | "udp") {
            continue;
        }
        for guest in ports {
            let host = free.take(protocol, Ipv4Addr::UNSPECIFIED.into())?;
            let wanted = parse(&format!("{host}:{guest}/{protocol}"))?;
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

    fn one(text: &str) -> Result<Vec<Publish>, Failure> {
        parse_publish(&[text.to_owned()])
    }

    #[test]
    fn a_port_that_names_none_of_the_host_gets_a_free_one() {
        for text in ["80", "0:80", "127.0.0.1::80", "127.0.0.1:0:80", "80/udp", "[::1]::80"] {
            let published = one(text);
            // The kernel redirects nothing on ::1, which is told as for any other port there.
            if text.starts_with('[') {
                assert!(published.unwrap_err().message.contains("[::1]::80"));
                continue;
            }
            let published = published.unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(published.len(), 1, "{text}");
            assert_eq!(published[0].guest.first(), 80);
            assert!(published[0].host.first() >= 1024, "{text}: {}", published[0]);
            assert_eq!(published[0].address.is_some(), text.starts_with("127"), "{text}");
        }
        let range = one("8000-8002").unwrap();
        let hosts: std::collections::BTreeSet<u16> = range.iter().map(|one| one.host.first()).collect();
        assert_eq!((range.len(), hosts.len()), (3, 3));
        assert_eq!(one("8080:80").unwrap()[0].to_string(), "8080:80/tcp");
    }

    #[test]
    fn what_is_no_port_is_told_as_it_was_written() {
        for text in ["", "web", "0", "80/sctp", "127.0.0.1::", ":80", "999999", "1.2.3::80"] {
            let failure = one(text).unwrap_err();
            assert_eq!(failure.class, Class::Usage, "{text}: {failure}");
            assert!(failure.message.contains(&format!("'-p {text}'")), "{text}: {failure}");
        }
    }

    #[test]
    fn an_exposed_port_of_another_protocol_does_not_spoil_the_others() {
        let exposed = ["80/tcp", "9899/sctp", "53/udp", "443"].map(str::to_owned);
        let published = publish_exposed(&exposed, &parse_publish(&["8443:443".to_owned()]).unwrap()).unwrap();
        let guests: Vec<u16> = published.iter().map(|one| one.guest.first()).collect();
        assert_eq!(guests, [80, 53]);
        assert!(publish_exposed(&["x/tcp".to_owned()], &[]).is_err());
    }
}
