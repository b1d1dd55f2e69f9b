//! What is missing of the networks that machines are in: for `doctor`. Changes nothing; the next start mends it.

use std::net::IpAddr;

use crate::endpoint::Endpoint;
use crate::error::NetworkError;
use crate::home::Networks;
use crate::links::{self, Links};
use crate::network::Network;
use crate::{dnsmasq, nft, reconcile, rules, sysctl};

impl Networks {
    /// A sentence about each thing that should be on the host for the attached machines and is not. Needs root, without
    /// which rules cannot be read.
    ///
    /// # Errors
    /// When the files of a network cannot be read, or netlink not be asked.
    pub async fn findings(&self) -> Result<Vec<String>, NetworkError> {
        let links = Links::open()?;
        let mut found = Vec::new();
        for network in self.list()? {
            let endpoints = reconcile::attached(self, network.name())?;
            if endpoints.is_empty() {
                continue;
            }
            for what in self.missing(&links, &network, &endpoints).await? {
                found.push(format!("network {}: {what}", network.name()));
            }
        }
        Ok(found)
    }

    async fn missing(
        &self,
        links: &Links,
        network: &Network,
        endpoints: &[Endpoint],
    ) -> Result<Vec<String>, NetworkError> {
        let bridge = network.bridge();
        let mut missing = Vec::new();
        let link = links.find(bridge).await?;
        match &link {
            None => missing.push(format!("bridge {bridge} is not there")),
            Some(link) if !links::is_up(link) => missing.push(format!("bridge {bridge} is down")),
            Some(_) => {}
        }
        if let Some(link) = &link {
            let present = links.addresses(link.header.index).await?;
            let gateways = [Some(IpAddr::V4(network.gateway4())), network.gateway6().map(IpAddr::V6)];
            let gateways = gateways.into_iter().flatten();
            let lost = gateways.filter(|a| !present.contains(a) && (a.is_ipv4() || sysctl::has_ipv6()));
            missing.extend(lost.map(|address| format!("bridge {bridge} has no address {address}")));
        }
        for endpoint in endpoints {
            let (tap, machine) = (network.tap(&endpoint.machine), &endpoint.machine);
            match links.find(&tap).await? {
                None => missing.push(format!("machine {machine} has no tap: start it again")),
                Some(found) if link.is_some() && links::controller(&found) != link.as_ref().map(|l| l.header.index) => {
                    missing.push(format!("tap {tap} of machine {machine} is not on the bridge"));
                }
                Some(_) => {}
            }
        }
        if !self.has_rules(network, endpoints).await {
            missing.push(format!("its rules (nft, tables {bridge}) are not as they were made"));
        }
        if dnsmasq::find(self, network).is_none() {
            missing.push("its dnsmasq does not run".to_owned());
        }
        missing.extend(
            sysctl::lost(network.ipv6().is_some())?.map(|key| format!("sysctl {key} is off: nothing is forwarded")),
        );
        Ok(missing)
    }

    /// Whether the kernel has as many rules as were made.
    async fn has_rules(&self, network: &Network, endpoints: &[Endpoint]) -> bool {
        let mut present = 0;
        for family in ["inet", "bridge"] {
            let listed = nft::run(&["-s", "list", "table", family, network.bridge()], "").await;
            let Ok((true, text)) = listed else { return false };
            present += count(&text);
        }
        present == count(&rules::render(network, endpoints))
    }
}

/// The rules in a listing: what is inside chains, other than their hooks.
fn count(listing: &str) -> usize {
    let inside = listing.lines().filter_map(|line| line.strip_prefix("\t\t"));
    inside.filter(|line| !line.starts_with("type ")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_from_what_stands_around_them() {
        let network = Network::example("10.208.0.0/24", None);
        let text =
            "table inet x {\n\tchain a {\n\t\ttype filter hook input priority raw; policy accept;\n\t\tdrop\n\t}\n}\n";
        assert_eq!(count(text), 1);
        assert!(count(&rules::render(&network, &[])) > 8);
    }
}
