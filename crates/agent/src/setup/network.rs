//! The guest's network: interfaces found by their MAC address, renamed, addressed, brought up; then the routes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zmachine_agent_protocol::{Interface, Renewed, Route};

use super::error::SetupError;
use super::netlink::Netlink;

/// How long an interface may take to appear.
pub(super) const APPEAR: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);
const CLASS: &str = "/sys/class/net";

/// Sets everything up, `lo` included.
///
/// # Errors
/// [`SetupError`] naming the interface, address or route; a network is whole or an error.
pub(super) fn set_up(interfaces: &[Interface], routes: &[Route]) -> Result<(), SetupError> {
    let netlink = Netlink::open().map_err(|source| SetupError::Netlink { source })?;
    netlink.set_up(index_of("lo")?).map_err(refused("lo", "bring up"))?;
    let mut found = Vec::new();
    for interface in interfaces {
        found.push(wait_for(interface)?);
    }
    rename_all(&netlink, interfaces, &found)?;
    for (interface, link) in interfaces.iter().zip(&found) {
        bring_up(&netlink, interface, link.index)?;
    }
    routes.iter().try_for_each(|route| add_route(&netlink, route))
}

/// Sets one more interface up, while the guest runs.
///
/// # Errors
/// As [`set_up`].
pub(super) fn connect(interface: &Interface, routes: &[Route]) -> Result<(), SetupError> {
    set_up(std::slice::from_ref(interface), routes)
}

/// Takes an interface down; its addresses and routes are of no use from then on. One that is gone is fine.
///
/// # Errors
/// [`SetupError`] naming the interface or route.
pub(super) fn disconnect(name: &str, routes: &[Route]) -> Result<(), SetupError> {
    let netlink = Netlink::open().map_err(|source| SetupError::Netlink { source })?;
    if Path::new(CLASS).join(name).exists() {
        netlink.set_down(index_of(name)?).map_err(refused(name, "take down"))?;
    }
    routes.iter().try_for_each(|route| add_route(&netlink, route))
}

/// Makes other interfaces of those there are, and of the routes those of the new ones. Nothing is sent before all is done.
///
/// # Errors
/// As [`set_up`].
pub(super) fn renew(interfaces: &[Renewed], routes: &[Route]) -> Result<(), SetupError> {
    if interfaces.is_empty() && routes.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open().map_err(|source| SetupError::Netlink { source })?;
    for Renewed { was, is } in interfaces {
        let link = wait_for(was)?;
        let name = &was.name;
        // Its routes go with it.
        netlink.set_down(link.index).map_err(refused(name, "take down"))?;
        for text in &was.addresses {
            if let Some((address, prefix)) = cidr(text) {
                netlink
                    .remove_address(link.index, address, prefix)
                    .map_err(refused(name, &format!("remove address {text}")))?;
            }
        }
        let mac = mac(&is.mac).ok_or_else(|| SetupError::Mac { text: is.mac.clone() })?;
        netlink
            .set_mac(link.index, mac)
            .map_err(refused(name, &format!("MAC {}", is.mac)))?;
    }
    let renewed: Vec<Interface> = interfaces.iter().map(|renewed| renewed.is.clone()).collect();
    set_up(&renewed, routes)
}

/// Looks at what there is as [`renew`] does, and changes nothing.
pub(super) fn rehearse() {
    let _ = find(Path::new(CLASS), "none");
    if let (Ok(netlink), Ok(lo)) = (Netlink::open(), index_of("lo")) {
        // It is up.
        let _ = netlink.set_up(lo);
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

struct Link {
    name: String,
    index: u32,
}

fn refused(name: &str, what: &str) -> impl FnOnce(Errno) -> SetupError {
    let (name, what) = (name.to_owned(), what.to_owned());
    move |source| SetupError::Interface { name, what, source }
}

fn wait_for(interface: &Interface) -> Result<Link, SetupError> {
    let deadline = Instant::now() + APPEAR;
    loop {
        if let Some(name) = find(Path::new(CLASS), &interface.mac) {
            return Ok(Link {
                index: index_of(&name)?,
                name,
            });
        }
        if Instant::now() > deadline {
            return Err(SetupError::InterfaceMissing {
                name: interface.name.clone(),
                mac: interface.mac.clone(),
                after_s: APPEAR.as_secs(),
            });
        }
        sleep(PAUSE);
    }
}

fn find(class: &Path, mac: &str) -> Option<String> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        address
            .trim_end()
            .eq_ignore_ascii_case(mac)
            .then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

fn index_of(name: &str) -> Result<u32, SetupError> {
    let text = fs::read_to_string(format!("{CLASS}/{name}/ifindex")).unwrap_or_default();
    text.trim_end()
        .parse()
        .map_err(|_| refused(name, "look up")(Errno::NODEV))
}

/// Two interfaces may have each other's names, so those that move step aside first.
fn rename_all(netlink: &Netlink, interfaces: &[Interface], found: &[Link]) -> Result<(), SetupError> {
    let moving = || {
        interfaces
            .iter()
            .zip(found)
            .filter(|(interface, link)| interface.name != link.name)
    };
    let taken = moving().any(|(interface, _)| found.iter().any(|link| link.name == interface.name));
    if taken {
        for (interface, link) in moving() {
            let aside = format!("zm-{}", link.index);
            netlink
                .rename(link.index, &aside)
                .map_err(refused(&interface.name, "step aside"))?;
        }
    }
    moving().try_for_each(|(interface, link)| {
        netlink
            .rename(link.index, &interface.name)
            .map_err(refused(&interface.name, &format!("rename {}", link.name)))
    })
}

fn bring_up(netlink: &Netlink, interface: &Interface, index: u32) -> Result<(), SetupError> {
    let name = &interface.name;
    if let Some(mtu) = interface.mtu {
        netlink
            .set_mtu(index, mtu)
            .map_err(refused(name, &format!("mtu {mtu}")))?;
    }
    // Without the first the link-local address is tentative for a second, and a router behind one out of reach. What the
    // network advertises to those who know nothing is what this interface is given here, and for as long as it is there.
    for (key, value) in [("accept_dad", "0"), ("accept_ra", "0")] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value);
    }
    netlink.set_up(index).map_err(refused(name, "bring up"))?;
    for text in &interface.addresses {
        let (address, prefix) = cidr(text).ok_or_else(|| SetupError::Cidr {
            of: format!("interface {name}"),
            text: text.clone(),
        })?;
        netlink
            .add_address(index, address, prefix)
            .map_err(refused(name, &format!("address {text}")))?;
    }
    Ok(())
}

fn add_route(netlink: &Netlink, route: &Route) -> Result<(), SetupError> {
    let (destination, prefix) = cidr(&route.destination).ok_or_else(|| SetupError::Cidr {
        of: "route".into(),
        text: route.destination.clone(),
    })?;
    let index = index_of(&route.interface)?;
    netlink
        .add_route(destination, prefix, route.gateway, index)
        .map_err(|source| SetupError::Route {
            destination: route.destination.clone(),
            interface: route.interface.clone(),
            gateway: route.gateway,
            source,
        })
}

/// An address with its prefix length.
fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_has_an_address_and_a_prefix_that_fits() {
        assert_eq!(cidr("10.1.1.3/24"), Some(("10.1.1.3".parse().unwrap(), 24)));
        assert_eq!(cidr("::/0"), Some(("::".parse().unwrap(), 0)));
        for wrong in [
            "10.1.1.3",
            "10.1.1.3/33",
            "fd00::1/129",
            "x/8",
            "10.0.0.0/",
            "10.0.0.0/-1",
        ] {
            assert_eq!(cidr(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_mac_has_six_bytes() {
        assert_eq!(mac("02:00:0a:ff:00:01"), Some([2, 0, 10, 255, 0, 1]));
        for wrong in ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "02:00:0a:ff:00:xx"] {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_interface_is_found_by_its_mac_in_any_case() {
        let class = tempfile::tempdir().unwrap();
        for (name, mac) in [("eth0", "52:54:00:00:00:01\n"), ("eth1", "52:54:00:aa:bb:cc\n")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("address"), mac).unwrap();
        }
        assert_eq!(find(class.path(), "52:54:00:AA:BB:CC").as_deref(), Some("eth1"));
        assert_eq!(find(class.path(), "52:54:00:00:00:02"), None);
    }
}
