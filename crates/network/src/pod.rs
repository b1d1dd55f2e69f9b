//! The network namespace of a pod: what a network plugin left in it, and the way from there into a machine.
//!
//! ```text
//! other side of the veth ── eth0 ══(ingress: redirect)══> tap ── hypervisor ── eth0 of the guest
//!                                <══(ingress: redirect)══
//! ```
//! The guest has address, routes and MAC of the link; the namespace's own stack gets none of the link's frames any more. Both
//! redirections go with the link and with the tap.
//!
//! Nothing here belongs to a [`crate::Network`]: namespace, links and addresses are the plugin's.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use thiserror::Error;
use zmachine_sys::tap;

/// Where an ingress queue hangs (`TC_H_INGRESS`), and its number as a parent of filters.
const INGRESS: u32 = 0xffff_0000;

/// Every protocol (`ETH_P_ALL`, linux/if_ether.h), in the order of bytes that the kernel wants here.
const ALL_PROTOCOLS: u16 = 0x0003u16.to_be();

/// What is wrong with the network of a pod.
#[derive(Debug, Error)]
pub enum PodNetworkError {
    /// There is no namespace.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a step.
    #[error("the pod's network: cannot {action}")]
    Netlink {
        /// What was tried.
        action: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// A tap cannot be made.
    #[error("the pod's network: cannot make the tap {name}")]
    Tap {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A link of the plan is gone.
    #[error("the pod's network: there is no link {name}")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// No thread can be had.
    #[error("the pod's network: cannot start a thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// A link of a namespace, as a guest can take it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLink {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its addresses, without those that every link has. A prefix shorter than an address stands for neighbours on the link.
    pub addresses: Vec<IpNet>,
}

/// A route of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// Through whom; `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// The link's name.
    pub link: String,
}

/// What a namespace has beside its loopback: links that are up, and their routes, those on the link first.
///
/// # Errors
/// [`PodNetworkError`]
pub fn read(namespace: &Path) -> Result<(Vec<FoundLink>, Vec<FoundRoute>), PodNetworkError> {
    within(namespace, async |handle| {
        let links: Vec<LinkMessage> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(netlink("list the links"))?;
        let addresses: Vec<AddressMessage> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(netlink("list the addresses"))?;
        let mut routes: Vec<RouteMessage> = Vec::new();
        for all in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let found: Result<Vec<_>, _> = handle.route().get(all).execute().try_collect().await;
            routes.extend(found.map_err(netlink("list the routes"))?);
        }
        Ok(understood(&links, &addresses, &routes))
    })
}

/// Makes a tap beside each link, given as its name and the name of the guest's interface, and redirects what comes to one to the
/// other. The taps by interface.
///
/// # Errors
/// [`PodNetworkError`]; nothing stays then but queues of the links, which change nothing.
pub async fn open_taps(
    namespace: &Path,
    links: &[(String, String)],
) -> Result<HashMap<String, OwnedFd>, PodNetworkError> {
    let (namespace, links) = (namespace.to_owned(), links.to_owned());
    let made = tokio::task::spawn_blocking(move || {
        within(&namespace, async |handle| {
            let mut taps = HashMap::new();
            for (number, (link, interface)) in links.into_iter().enumerate() {
                let tap = connect(&handle, &link, &format!("zm-pod{number}")).await?;
                taps.insert(interface, tap);
            }
            Ok(taps)
        })
    });
    made.await.unwrap_or_else(|_| {
        Err(PodNetworkError::Thread {
            source: io::ErrorKind::Other.into(),
        })
    })
}

async fn connect(handle: &Handle, link: &str, name: &str) -> Result<OwnedFd, PodNetworkError> {
    let found = find(handle, link).await?;
    let made = tap::open_tap(name).map_err(|source| PodNetworkError::Tap {
        name: name.to_owned(),
        source,
    })?;
    let tap = find(handle, name).await?;
    let mut up = LinkUnspec::new_with_index(tap.header.index).up();
    if let Some(mtu) = mtu(&found) {
        up = up.mtu(mtu);
    }
    let done = handle.link().change(up.build()).execute().await;
    done.map_err(netlink(format!("put {name} up")))?;
    for (from, to) in [(&found, &tap), (&tap, &found)] {
        redirect(handle, from.header.index, to.header.index).await?;
    }
    Ok(made)
}

/// Sends what comes in by one link out by another one.
async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), PodNetworkError> {
    let queue = handle.qdisc().replace(from.cast_signed()).ingress().execute().await;
    queue.map_err(netlink("make an ingress queue"))?;
    let filter = handle
        .traffic_filter(from.cast_signed())
        .replace()
        .parent(INGRESS)
        .priority(1)
        .protocol(ALL_PROTOCOLS)
        .redirect(to)
        .map_err(netlink("describe a redirection"))?;
    filter.execute().await.map_err(netlink("redirect what comes in"))
}

async fn find(handle: &Handle, name: &str) -> Result<LinkMessage, PodNetworkError> {
    let request = handle.link().get().match_name(name.to_owned()).execute();
    let found = { request }.try_next().await;
    let no_link = || PodNetworkError::NoLink { name: name.to_owned() };
    match found {
        Ok(link) => link.ok_or_else(no_link),
        Err(_) => Err(no_link()),
    }
}

fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> PodNetworkError {
    let action = action.into();
    move |source| PodNetworkError::Netlink { action, source }
}

/// Works in a namespace, in a thread that ends with it.
fn within<T: Send>(
    namespace: &Path,
    work: impl AsyncFnOnce(Handle) -> Result<T, PodNetworkError> + Send,
) -> Result<T, PodNetworkError> {
    let failed = |source: io::Error| PodNetworkError::Namespace {
        path: namespace.to_owned(),
        source,
    };
    let entered = || {
        let file = File::open(namespace).map_err(failed)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| failed(e.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| PodNetworkError::Thread { source })?;
        runtime.block_on(async {
            let opened = rtnetlink::new_connection().map_err(|source| PodNetworkError::Thread { source });
            let (connection, handle, _) = opened?;
            let connection = tokio::spawn(connection);
            let done = work(handle).await;
            connection.abort();
            done
        })
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .spawn_scoped(scope, entered)
            .map_err(|source| PodNetworkError::Thread { source })?;
        thread.join().unwrap_or_else(|_| {
            Err(PodNetworkError::Thread {
                source: io::ErrorKind::Other.into(),
            })
        })
    })
}

fn understood(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
) -> (Vec<FoundLink>, Vec<FoundRoute>) {
    let usable = |link: &&LinkMessage| {
        let flags = link.header.flags;
        flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && mac(link).is_some()
    };
    let mut found_links = Vec::new();
    let mut found_routes = Vec::new();
    for link in links.iter().filter(usable) {
        let (Some(name), Some(mac)) = (crate::links::name(link), mac(link)) else {
            continue;
        };
        let index = link.header.index;
        let of_link: Vec<&RouteMessage> = routes.iter().filter(|route| is_of(route, index)).collect();
        let own = addresses.iter().filter(|address| address.header.index == index);
        found_links.push(FoundLink {
            mac,
            mtu: mtu(link),
            addresses: own
                .filter_map(net)
                .map(|net| as_on_link(net, &of_link))
                .filter(is_routed)
                .collect(),
            name: name.clone(),
        });
        let others = of_link
            .iter()
            .filter(|route| route.header.protocol != RouteProtocol::Kernel);
        found_routes.extend(others.filter_map(|route| {
            Some(FoundRoute {
                destination: destination(route)?,
                gateway: gateway(route),
                link: name.clone(),
            })
        }));
    }
    // A link without an address is nothing that a guest could use.
    found_links.retain(|link| !link.addresses.is_empty());
    found_routes
        .retain(|route| is_routed(&route.destination) && found_links.iter().any(|link| link.name == route.link));
    // A gateway has to be reached first.
    found_routes.sort_by_key(|route| (route.gateway.is_some(), route.destination.prefix_len() == 0));
    (found_links, found_routes)
}

/// An address whose subnet's neighbours are not on the link stands alone: the guest's kernel would look for them there otherwise.
fn as_on_link(net: IpNet, routes: &[&RouteMessage]) -> IpNet {
    let is_on_link = routes.iter().any(|route| {
        route.header.protocol == RouteProtocol::Kernel && destination(route).is_some_and(|found| found == net.trunc())
    });
    match is_on_link {
        true => net,
        false => IpNet::from(net.addr()),
    }
}

/// What every link has by itself is not.
fn is_routed(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => !address.is_multicast(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_multicast(),
    }
}

fn is_of(route: &RouteMessage, link: u32) -> bool {
    let output = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    output == Some(link) && route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let anywhere = match route.header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    IpNet::new(address.unwrap_or(anywhere), route.header.destination_prefix_length).ok()
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

fn net(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn mac(link: &LinkMessage) -> Option<String> {
    let bytes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) if bytes.len() == 6 => Some(bytes),
        _ => None,
    })?;
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(parts.join(":"))
}
