//! The program passt: where it is, and how it is told what to do.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::attachment::Attachment;
use crate::error::{MissingPasst, NetworkError};
use crate::links::{self, Links, OUTSIDE4, OUTSIDE6};
use crate::name::Mac;
use crate::publish::Protocol;

/// Where distributions put it.
const PLACES: [&str; 3] = ["/usr/bin/passt", "/usr/local/bin/passt", "/bin/passt"];

/// Its own Ethernet address on the link to the guest, which nobody else is on.
const GATEWAY_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x02]);

/// The link by which this host reaches the outside. For passt, which has one for both families: that of IPv6 if there is
/// one, as passt wants a link-local address of it, and nothing of that of IPv4.
///
/// # Errors
/// When netlink cannot be asked.
pub async fn way_out() -> Result<Option<String>, NetworkError> {
    let links = Links::open()?;
    for outside in [OUTSIDE6.into(), OUTSIDE4.into()] {
        if let Some(link) = links.way_to(outside).await? {
            return Ok(links::name(&link));
        }
    }
    Ok(None)
}

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passt {
    program: PathBuf,
}

/// What else than the attachment it needs.
#[derive(Debug, Clone, Copy)]
pub struct PasstArgs<'a> {
    /// Its end of the connection to the guest, which it inherits.
    pub fd: RawFd,
    /// It writes its process id there when everything works.
    pub ready_file: &'a Path,
    /// The host's way out ([`way_out`]). By itself passt finds plain default routes of the main table alone: not those with
    /// several gateways, in a table of their own, or in two halves, as a VPN's.
    pub interface: Option<&'a str>,
}

impl Passt {
    /// The one of this host.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Passt, MissingPasst> {
        let found = PLACES.into_iter().map(PathBuf::from).find(|path| path.is_file());
        found.map(|program| Passt { program }).ok_or(MissingPasst)
    }

    /// Its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its arguments for a planned attachment. Every port by itself: passt goes on when only some of the
    /// ports of one argument are free.
    pub fn arguments(&self, attachment: &Attachment, args: PasstArgs<'_>) -> Vec<String> {
        let mut all: Vec<String> = ["--foreground", "--stderr", "--quiet"].map(str::to_owned).into();
        let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
        add("--fd", args.fd.to_string());
        add("--pid", args.ready_file.display().to_string());
        add("--mtu", attachment.mtu.to_string());
        if let Some(interface) = args.interface {
            add("--interface", interface.to_owned());
        }
        // Else it takes that of the interface, which a tunnel has not got.
        add("--mac-addr", GATEWAY_MAC.to_string());
        let (ipv4, ipv6) = (attachment.ipv4(), attachment.ipv6());
        for address in &attachment.addresses {
            add("--address", address.addr().to_string());
            if let IpNet::V4(net) = address {
                add("--netmask", net.netmask().to_string());
            }
        }
        if ipv4.is_some() {
            add("--gateway", attachment.gateway4.to_string());
        }
        if let Some(gateway) = attachment.gateway6 {
            add("--gateway", gateway.to_string());
        }
        let resolver = attachment.user.as_ref().and_then(|user| user.resolver);
        if let Some(resolver) = resolver {
            add("--dns-forward", resolver.to_string());
        }
        // What it tells guests that ask by DHCP.
        for server in &attachment.nameservers {
            if Some(*server) != resolver.map(IpAddr::V4) {
                add("--dns", server.to_string());
            }
        }
        for publish in &attachment.publish {
            let flag = match publish.protocol {
                Protocol::Tcp => "--tcp-ports",
                Protocol::Udp => "--udp-ports",
            };
            let address = publish.address.map(|address| format!("{address}/")).unwrap_or_default();
            for (host, guest) in publish.pairs() {
                add(flag, format!("{address}{host}:{guest}"));
            }
        }
        match (ipv4, ipv6) {
            (Some(_), None) => all.push("--ipv4-only".to_owned()),
            (None, Some(_)) => all.push("--ipv6-only".to_owned()),
            _ => {}
        }
        if !needs_gateway_mapping(attachment) {
            all.push("--no-map-gw".to_owned());
        }
        all
    }
}

/// Whether passt must take the gateway for the host's loopback: without it, answers over UDP to programs on the host's
/// loopback are lost. The guard then lets only those answers through.
pub(super) fn needs_gateway_mapping(attachment: &Attachment) -> bool {
    attachment.publish.iter().any(|p| p.protocol == Protocol::Udp)
}
