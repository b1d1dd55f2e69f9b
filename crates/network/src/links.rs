//! Links, addresses and routes of the current network namespace, by netlink.
//!
//! Every function is idempotent: what is there already stays, what is gone already is fine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use crate::error::{self, NetworkError};
use crate::name::Mac;

/// The MTU of Ethernet, when nothing says otherwise.
pub(crate) const DEFAULT_MTU: u32 = 1500;

/// Somewhere outside: nothing is sent there, but how it would be is the host's way out. (A root name server, whose
/// addresses stay and are nobody's own network.)
pub(crate) const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);

/// An open netlink socket of the current namespace.
pub(crate) struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens the socket. Must be called within a tokio runtime.
    pub(crate) fn open() -> Result<Links, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| NetworkError::Netlink { source })?;
        let connection = tokio::spawn(connection);
        Ok(Links { handle, connection })
    }

    /// The link `name`, if there is one.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        match request.execute().try_next().await {
            Ok(link) => Ok(link),
            Err(e) if is(&e, Errno::NODEV) => Ok(None),
            Err(e) => Err(error::link("look up link", name, e)),
        }
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let link = self.find(name).await?;
        let gone = || NetworkError::NoLink { name: name.to_owned() };
        link.map(|l| l.header.index).ok_or_else(gone)
    }

    /// Makes bridge `name`, down, with a fixed address (a bridge without one takes that of its ports, and changes it as
    /// they come and go).
    pub(crate) async fn make_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetworkError> {
        let bridge = LinkBridge::new(name).down().address(mac.0.to_vec()).mtu(mtu).build();
        let made = self.handle.link().add(bridge).execute().await;
        ignore(made, Errno::EXIST).map_err(|e| error::link("make bridge", name, e))
    }

    /// Gives link `name` an address with its prefix.
    pub(crate) async fn add_address(&self, name: &str, address: IpNet) -> Result<(), NetworkError> {
        let index = self.index(name).await?;
        let request = self.handle.address().add(index, address.addr(), address.prefix_len());
        ignore(request.execute().await, Errno::EXIST).map_err(|e| error::link("give an address to", name, e))
    }

    /// The addresses of the link with that index.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpAddr>, NetworkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Result<Vec<_>, _> = request.execute().try_collect().await;
        let messages = messages.map_err(|e| error::link("list", "the addresses of a bridge", e))?;
        let address = |a: &AddressAttribute| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        Ok(messages
            .iter()
            .filter_map(|m| m.attributes.iter().find_map(address))
            .collect())
    }

    /// Puts link `name` up.
    pub(crate) async fn up(&self, name: &str) -> Result<(), NetworkError> {
        let up = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        let done = self.handle.link().change(up).execute().await;
        done.map_err(|e| error::link("put up", name, e))
    }

    /// Makes link `name` a port of `bridge`, with that MTU. The bridge may send frames back to it (see `spoofing`).
    pub(crate) async fn enslave(&self, name: &str, bridge: &str, mtu: u32) -> Result<(), NetworkError> {
        let controller = self.index(bridge).await?;
        let port = LinkUnspec::new_with_index(self.index(name).await?);
        let done = self
            .handle
            .link()
            .change(port.mtu(mtu).controller(controller).build())
            .execute()
            .await;
        done.map_err(|e| error::link("attach to its bridge", name, e))?;
        let port = LinkBridgePort::new(self.index(name).await?).hairpin(true).build();
        let done = self.handle.link().change(port).execute().await;
        done.map_err(|e| error::link("let the bridge send back to", name, e))
    }

    /// Removes link `name`.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.find(name).await? else {
            return Ok(());
        };
        let removed = self.handle.link().del(link.header.index).execute().await;
        ignore(removed, Errno::NODEV).map_err(|e| error::link("remove link", name, e))
    }

    /// Destinations of all IPv4 routes of all tables, except those out of link `but`; the addresses of the host are among
    /// them, as /32.
    pub(crate) async fn ipv4_routes(&self, but: &str) -> Result<Vec<Ipv4Net>, NetworkError> {
        let but = self.find(but).await?.map(|l| l.header.index);
        let routes = self.routes().await?;
        let others = routes.iter().filter(|r| but.is_none() || output_link(r) != but);
        Ok(others.filter_map(destination).collect())
    }

    /// Destinations of all routes of all tables, except those out of link `but` and those of IPv6 that every link has
    /// (link-local, multicast).
    pub(crate) async fn routes_but(&self, but: &str) -> Result<Vec<IpNet>, NetworkError> {
        let ipv4 = self.ipv4_routes(but).await?;
        let but = self.find(but).await?.map(|l| l.header.index);
        let all = RouteMessageBuilder::<Ipv6Addr>::new().table_id(0).build();
        let routes: Result<Vec<RouteMessage>, _> = self.handle.route().get(all).execute().try_collect().await;
        let routes = routes.map_err(|e| error::link("list", "the IPv6 routes of this host", e))?;
        let others = routes.iter().filter(|r| but.is_none() || output_link(r) != but);
        let ipv6 = others
            .filter_map(destination6)
            .filter(|net| net.network().octets()[0] < 0xfe);
        Ok(ipv4.into_iter().map(IpNet::V4).chain(ipv6.map(IpNet::V6)).collect())
    }

    /// The MTU of the link to the outside; [`DEFAULT_MTU`] without one.
    pub(crate) async fn uplink_mtu(&self) -> Result<u32, NetworkError> {
        for outside in [OUTSIDE4.into(), OUTSIDE6.into()] {
            if let Some(link) = self.way_to(outside).await? {
                return Ok(mtu(&link).unwrap_or(DEFAULT_MTU));
            }
        }
        Ok(DEFAULT_MTU)
    }

    /// The link by which this host would send to `address`, as the kernel decides it: with all its tables and rules, and
    /// whatever the routes are made of. None when it would not.
    pub(crate) async fn way_to(&self, address: IpAddr) -> Result<Option<LinkMessage>, NetworkError> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let Ok(question) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length) else {
            return Ok(None);
        };
        let mut answers = self.handle.route().get(question.build()).execute();
        let route = match answers.try_next().await {
            // "Unreachable" in one of its forms, or no such family.
            Err(e) if error::netlink_errno(&e).is_some() => None,
            route => route.map_err(|e| error::link("look up", "this host's way out", e))?,
        };
        let route = route.filter(|route| route.header.kind == RouteType::Unicast);
        let Some(index) = route.as_ref().and_then(output_link) else {
            return Ok(None);
        };
        let mut links = self.handle.link().get().match_index(index).execute();
        links
            .try_next()
            .await
            .map_err(|e| error::link("look up the link of", "this host's way out", e))
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().table_id(0).build();
        let routes = self.handle.route().get(all).execute().try_collect().await;
        routes.map_err(|e| error::link("list", "the routes of this host", e))
    }
}

/// The index of the bridge that the link is a port of.
pub(crate) fn controller(link: &LinkMessage) -> Option<u32> {
    let controller = |a: &LinkAttribute| match a {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    };
    link.attributes.iter().find_map(controller)
}

/// The name of the link.
pub(crate) fn name(link: &LinkMessage) -> Option<String> {
    let name = |a: &LinkAttribute| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    };
    link.attributes.iter().find_map(name)
}

/// Whether the link is a bridge.
pub(crate) fn is_bridge(link: &LinkMessage) -> bool {
    let bridge = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge));
    let kind = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(bridge));
    link.attributes.iter().any(kind)
}

/// Whether the link is up.
pub(crate) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    let mtu = |a: &LinkAttribute| match a {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    link.attributes.iter().find_map(mtu)
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = |a: &RouteAttribute| match a {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    };
    let address = route.attributes.iter().find_map(address)?;
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}

fn destination6(route: &RouteMessage) -> Option<Ipv6Net> {
    let address = |a: &RouteAttribute| match a {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
        _ => None,
    };
    let address = route.attributes.iter().find_map(address)?;
    Ipv6Net::new(address, route.header.destination_prefix_length).ok()
}

fn output_link(route: &RouteMessage) -> Option<u32> {
    let index = |a: &RouteAttribute| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    };
    route.attributes.iter().find_map(index)
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    error::netlink_errno(error) == Some(errno.raw_os_error())
}

fn ignore(result: Result<(), rtnetlink::Error>, errno: Errno) -> Result<(), rtnetlink::Error> {
    match result {
        Err(e) if is(&e, errno) => Ok(()),
        other => other,
    }
}

/// An address of a network with the network's prefix length.
pub(crate) fn with_prefix(address: IpAddr, prefix_len: u8) -> Option<IpNet> {
    IpNet::new(address, prefix_len).ok()
}
