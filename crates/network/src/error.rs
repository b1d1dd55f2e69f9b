//! What can go wrong with networks, and what to do about it.

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use zmachine_sys::file::FileError;

use crate::publish::{Publish, PublishError};

/// There is no passt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("passt, which connects machines without root, is not installed")]
pub struct MissingPasst;

/// What of a machine an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// The networks it joins.
    Network,
    /// The ports it publishes.
    Publish,
    /// None of these.
    Other,
}

/// What kind of failure it is, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The user asked for something that makes no sense.
    Usage,
    /// There is no such network.
    NotFound,
    /// Somebody else has the name, the address or the port.
    Conflict,
    /// CAP_NET_ADMIN is missing.
    NeedsRoot,
    /// This host lacks a tool or a kernel feature.
    Unsupported,
    /// Anything else.
    Failed,
}

/// A network operation that failed.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A file of the home could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file was written by a newer version, or by something else.
    #[error("{path} has version {found}, this program knows version {known}")]
    Version {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
        /// The newest version this program reads.
        known: u32,
    },
    /// The operation changes the host's network, which needs CAP_NET_ADMIN.
    #[error("{action} needs root (CAP_NET_ADMIN)")]
    NeedsRoot {
        /// What was tried.
        action: String,
    },
    /// A port that only root may listen on.
    #[error("host port {port} of the published port '{publish}' needs root, as all below {lowest} on this host")]
    LowPort {
        /// The published port.
        publish: Box<Publish>,
        /// The host port.
        port: u16,
        /// The lowest port for everybody.
        lowest: u32,
    },
    /// A network of the name of the one through passt.
    #[error("{name:?} is the network without root and no other can have its name")]
    Reserved {
        /// The name.
        name: String,
    },
    /// passt is missing.
    #[error(transparent)]
    NoPasst(#[from] MissingPasst),
    /// A name that cannot be that of a network or a machine.
    #[error("{name:?} cannot be a name: 1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit")]
    BadName {
        /// The name.
        name: String,
    },
    /// There is no such network.
    #[error("no network {name:?}")]
    NoSuchNetwork {
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("network {name:?} exists already")]
    Exists {
        /// Its name.
        name: String,
    },
    /// Machines are in the network.
    #[error("network {name:?} is in use by {}", machines.join(", "))]
    InUse {
        /// The network.
        name: String,
        /// The machines' ids.
        machines: Vec<String>,
    },
    /// An IPv6 subnet of which machines cannot derive their addresses.
    #[error("{subnet} cannot be the IPv6 subnet of a network: a /64 of unicast addresses without host bits is")]
    BadSubnet6 {
        /// The subnet.
        subnet: Ipv6Net,
    },
    /// A new network's subnet overlaps something that is there.
    #[error("subnet {subnet} of network {name:?} overlaps {other}")]
    SubnetOverlaps {
        /// The network.
        name: String,
        /// The subnet asked for.
        subnet: IpNet,
        /// What it overlaps: a network, or a route of the host.
        other: String,
    },
    /// Name servers for a network out of which nothing goes.
    #[error("network {name:?} is to be internal: its machines ask no name servers elsewhere")]
    InternalDns {
        /// The network.
        name: String,
    },
    /// An MTU no link or no IPv6 can have.
    #[error("{mtu} cannot be the MTU of a network: {least} to 65535 bytes can")]
    BadMtu {
        /// The MTU asked for.
        mtu: u32,
        /// The smallest possible one.
        least: u32,
    },
    /// The name service and DHCP server is not there or cannot be started.
    #[error("cannot run dnsmasq, which serves names and addresses in networks")]
    NoDnsmasq {
        /// Why.
        source: io::Error,
    },
    /// dnsmasq started and gave up.
    #[error("dnsmasq for network {name:?} does not start: {output}")]
    Dnsmasq {
        /// The network.
        name: String,
        /// What it said.
        output: String,
    },
    /// A name that cannot be looked up.
    #[error("{name:?} cannot be a name in a network: up to 63 letters, digits, '-', '_' and '.' can")]
    BadAlias {
        /// The name.
        name: String,
    },
    /// A subnet too small for a gateway and one machine, or not a network address.
    #[error("{subnet} cannot be the subnet of a network: a prefix between /8 and /29 without host bits is")]
    BadSubnet {
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// Every subnet of the pools overlaps a route of this host.
    #[error(
        "no free IPv4 subnet for network {name:?}: routes of this host overlap all of 10.208.0.0/12, 172.24.0.0/14 and 192.168.128.0/17"
    )]
    NoFreeSubnet {
        /// The network.
        name: String,
    },
    /// The network's subnet overlaps a route of this host that is not ours.
    #[error("subnet {subnet} of network {name:?} overlaps the host's route to {route}")]
    SubnetTaken {
        /// The network.
        name: String,
        /// Its subnet.
        subnet: Ipv4Net,
        /// The route in the way.
        route: Ipv4Net,
    },
    /// All addresses are leased.
    #[error("no free address in subnet {subnet} of network {name:?}")]
    NoFreeAddress {
        /// The network.
        name: String,
        /// Its subnet.
        subnet: Ipv4Net,
    },
    /// The asked-for address is not one a machine can have.
    #[error("{address} is not an address for a machine in subnet {subnet} of network {name:?}")]
    AddressOutside {
        /// The network.
        name: String,
        /// The address.
        address: IpAddr,
        /// The network's subnets.
        subnet: String,
    },
    /// Another machine has the address.
    #[error("address {address} of network {name:?} belongs to machine {owner}")]
    AddressTaken {
        /// The network.
        name: String,
        /// The address.
        address: IpAddr,
        /// The machine that has it.
        owner: String,
    },
    /// A machine that has an address already asked for another one.
    #[error("machine {machine} has address {address} in network {name:?} already")]
    AddressFixed {
        /// The network.
        name: String,
        /// The machine.
        machine: String,
        /// The address it has.
        address: IpAddr,
    },
    /// A port to publish that cannot be read.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A host port is in use.
    #[error("host port {port} of the published port '{publish}' is in use by {owner}")]
    PortTaken {
        /// The flag's value.
        publish: Box<Publish>,
        /// The first port in the way, with its protocol, as in `8080/tcp`.
        port: String,
        /// A machine or a process.
        owner: String,
    },
    /// The host address to publish on is not an address of this host.
    #[error("the published port '{publish}': {address} is not an address of this host")]
    NotOurAddress {
        /// The flag's value.
        publish: Box<Publish>,
        /// The address.
        address: IpAddr,
    },
    /// A host port could not be claimed.
    #[error("cannot claim host port {port} of the published port '{publish}'")]
    Claim {
        /// The flag's value.
        publish: Box<Publish>,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// A link, address or route operation failed.
    #[error("cannot {action} {name}")]
    Link {
        /// What was tried.
        action: &'static str,
        /// The link concerned.
        name: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// Netlink could not be opened.
    #[error("cannot open netlink")]
    Netlink {
        /// Why.
        source: io::Error,
    },
    /// Another link has the name of a network's bridge.
    #[error("link {link} is there and is no bridge, but network {network:?} has that name for its own")]
    NotABridge {
        /// The network.
        network: String,
        /// The link's name.
        link: String,
    },
    /// A link of ours is not there.
    #[error("link {name} is not there")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// The tap could not be made.
    #[error("cannot make tap {name}")]
    Tap {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A sysctl could not be read or written.
    #[error("cannot {action} sysctl {key}")]
    Sysctl {
        /// `read` or `set`.
        action: &'static str,
        /// Its path under `/proc/sys`.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// The `nft` program is not there or cannot be started.
    #[error("cannot run nft")]
    NoNft {
        /// Why.
        source: io::Error,
    },
    /// `nft` refused the rules.
    #[error("nft refused the rules of table {table}: {message}")]
    Nft {
        /// The table.
        table: String,
        /// What nft said, and the rule it said it about.
        message: String,
    },
}

impl NetworkError {
    /// The kind, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        use NetworkError as E;
        match self {
            E::BadName { .. } | E::BadSubnet { .. } | E::AddressOutside { .. } => ErrorKind::Usage,
            E::BadSubnet6 { .. } | E::BadMtu { .. } | E::BadAlias { .. } | E::InternalDns { .. } => ErrorKind::Usage,
            E::InUse { .. } | E::SubnetOverlaps { .. } => ErrorKind::Conflict,
            E::Publish(_) | E::NotOurAddress { .. } => ErrorKind::Usage,
            E::NoSuchNetwork { .. } => ErrorKind::NotFound,
            E::Exists { .. } | E::NotABridge { .. } | E::SubnetTaken { .. } | E::AddressTaken { .. } => {
                ErrorKind::Conflict
            }
            E::AddressFixed { .. } | E::PortTaken { .. } => ErrorKind::Conflict,
            E::NeedsRoot { .. } | E::LowPort { .. } => ErrorKind::NeedsRoot,
            E::NoNft { .. } | E::NoDnsmasq { .. } | E::NoPasst(_) => ErrorKind::Unsupported,
            E::Reserved { .. } => ErrorKind::Usage,
            E::Tap { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::Unsupported,
            _ => ErrorKind::Failed,
        }
    }

    /// What a machine's user might have chosen otherwise.
    pub fn concerns(&self) -> Concern {
        use NetworkError as E;
        match self {
            E::NeedsRoot { .. }
            | E::NoPasst(_)
            | E::NoNft { .. }
            | E::NoDnsmasq { .. }
            | E::AddressTaken { .. }
            | E::AddressOutside { .. } => Concern::Network,
            E::LowPort { .. } | E::PortTaken { .. } | E::NotOurAddress { .. } | E::Publish(_) => Concern::Publish,
            _ => Concern::Other,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use NetworkError as E;
        let hint = match self {
            E::NeedsRoot { .. } => "run it as root, or in the network 'user' or 'none', which need nothing",
            E::LowPort { port, .. } => {
                return Some(format!(
                    "publish on a higher port, or let everybody have it: sysctl net.ipv4.ip_unprivileged_port_start={port}"
                ));
            }
            E::Reserved { .. } => "choose another name",
            E::NoPasst(_) => "install it (apt-get install passt), or use the network 'none'",
            E::NoNft { .. } => "install nftables (apt-get install nftables), or use the network 'none'",
            E::NoDnsmasq { .. } => "install it (apt-get install dnsmasq-base), or use the network 'none'",
            E::Dnsmasq { output, .. } if output.contains("in use") => {
                "another name server takes port 53 of all addresses: let it listen on its own ones (bind-interfaces of dnsmasq, listen-on of BIND), or see: ss -lnup"
            }
            E::Dnsmasq { output, .. } if output.contains("inotify") => {
                "let more watch files: sysctl fs.inotify.max_user_instances=1024"
            }
            E::Dnsmasq { .. } => "see what this host lacks: zmachine doctor",
            E::NoSuchNetwork { name } if name == "host" => {
                "a machine has a kernel of its own, which cannot share this host's network: publish its ports instead (-p)"
            }
            E::NoSuchNetwork { .. } => "'zmachine network ls' lists the networks, 'zmachine network create' makes one",
            E::Exists { .. } => "choose another name, or remove it: zmachine network rm",
            E::InUse { .. } => "remove these machines, or 'zmachine network disconnect' them",
            E::Tap { source, .. } if source.kind() == io::ErrorKind::NotFound => "load the tun driver: modprobe tun",
            E::NotABridge { .. } => "rename or remove that link; see: ip link",
            E::Sysctl { .. } => "see what this host lacks: zmachine doctor",
            E::Tap { .. } => {
                "is another program's link in its place, or /dev/net/tun no tun device? see: zmachine doctor"
            }
            E::InternalDns { .. } => "leave out its name servers, or let it not be internal",
            E::SubnetOverlaps { .. } => "leave the subnets out and free ones are chosen",
            E::AddressTaken { .. } => "choose another address, or leave it out",
            E::SubnetTaken { .. } => "remove the machines of this network and the network, and it gets another subnet",
            E::NoFreeSubnet { .. } => "name one yourself when you create the network",
            E::NoFreeAddress { .. } => "remove machines that are no longer needed: zmachine ps -a",
            E::PortTaken { .. } => "choose another host port, or stop its owner",
            E::NotOurAddress { .. } => "leave the address out to publish on all addresses; see: ip address",
            E::Publish(_) => "the form is [IP:]HOST:GUEST[/tcp|udp], as in 8080:80 or 127.0.0.1:5353:53/udp",
            E::Nft { .. } | E::Link { .. } => "see what this host lacks: zmachine doctor",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// The error of a failed netlink request, with a missing privilege told apart.
pub(crate) fn link(action: &'static str, name: &str, source: rtnetlink::Error) -> NetworkError {
    if netlink_errno(&source) == Some(rustix::io::Errno::PERM.raw_os_error()) {
        return NetworkError::NeedsRoot {
            action: format!("to {action} {name}"),
        };
    }
    NetworkError::Link {
        action,
        name: name.to_owned(),
        source,
    }
}

/// The positive errno of a netlink error.
pub(crate) fn netlink_errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}
