//! Choosing an IPv4 subnet that meets nothing on the host. Pure.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::NetworkError;

/// Where subnets are taken from, in this order. Each is private (RFC 1918) and away from the defaults of others on the same
/// host: docker 172.17.0.0/16 and up to 172.31, podman 10.88.0.0/16, Kubernetes 10.96.0.0/12 and 10.244.0.0/16,
/// libvirt 192.168.122.0/24. The second and third serve hosts with a route to all of 10.0.0.0/8.
pub const POOLS: [&str; 3] = ["10.208.0.0/12", "172.24.0.0/14", "192.168.128.0/17"];

/// The first free /24 of [`POOLS`] that overlaps none of `taken`. The search starts at a place given by `seed`, so that two
/// homes whose networks are down (and so have no routes) still choose differently. A default route in `taken` is ignored.
pub fn choose_subnet(taken: &[Ipv4Net], seed: u64) -> Option<Ipv4Net> {
    POOLS
        .iter()
        .filter_map(|pool| pool.parse::<Ipv4Net>().ok())
        .find_map(|pool| choose_in(pool, taken, seed))
}

fn choose_in(pool: Ipv4Net, taken: &[Ipv4Net], seed: u64) -> Option<Ipv4Net> {
    let count = 1u64 << (24 - pool.prefix_len());
    let base = u32::from(pool.network());
    (0..count).find_map(|i| {
        let nth = ((seed % count + i) % count) as u32;
        let subnet = Ipv4Net::new((base + (nth << 8)).into(), 24).ok()?;
        overlapping(subnet, taken).is_none().then_some(subnet)
    })
}

/// The first of `taken`, other than a default route, that shares an address with `subnet`.
pub(crate) fn overlapping(subnet: Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let meets = |other: &&Ipv4Net| other.prefix_len() > 0 && (subnet.contains(*other) || other.contains(&subnet));
    taken.iter().find(meets).copied()
}

/// Whether two subnets share an address.
pub(crate) fn meet(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The subnet, when machines can derive their addresses in it.
pub(crate) fn check_ipv6(subnet: Ipv6Net) -> Result<Ipv6Net, NetworkError> {
    let network = subnet.network();
    // Unique local (fc00::/7) or global unicast (2000::/3): RFC 4193, RFC 4291.
    let first = network.octets()[0];
    let unicast = first & 0xfe == 0xfc || first & 0xe0 == 0x20;
    if subnet.trunc() == subnet && subnet.prefix_len() == 64 && unicast {
        return Ok(subnet);
    }
    Err(NetworkError::BadSubnet6 { subnet })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_subnet_that_meets_no_route_is_chosen() {
        let taken = nets(&["0.0.0.0/0", "10.208.0.0/24", "10.208.1.128/25", "10.208.2.7/32"]);
        assert_eq!(choose_subnet(&taken, 0).unwrap().to_string(), "10.208.3.0/24");
    }

    #[test]
    fn the_search_starts_where_the_seed_says_and_wraps() {
        let taken = nets(&["10.223.255.0/24"]);
        assert_eq!(choose_subnet(&[], 4095).unwrap().to_string(), "10.223.255.0/24");
        assert_eq!(choose_subnet(&taken, 4095).unwrap().to_string(), "10.208.0.0/24");
    }

    #[test]
    fn a_host_routed_to_all_of_ten_gets_another_pool_and_one_without_any_gets_none() {
        let ten = nets(&["10.0.0.0/8"]);
        assert_eq!(choose_subnet(&ten, 0).unwrap().to_string(), "172.24.0.0/24");
        let all = nets(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
        assert_eq!(choose_subnet(&all, 7), None);
    }

    #[test]
    fn only_a_64_of_unicast_addresses_is_an_ipv6_subnet() {
        let check = |text: &str| check_ipv6(text.parse().unwrap()).is_ok();
        assert!(check("fd00:1::/64") && check("2001:db8:5::/64"));
        for bad in ["fd00:1::/48", "fd00:1::1/64", "fe80::/64", "ff02::/64", "::/64"] {
            assert!(!check(bad), "{bad}");
        }
    }
}
