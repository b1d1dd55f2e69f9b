//! Claiming host ports: the socket that keeps a published port from being used by anybody else.
//!
//! Redirected traffic never reaches a socket of the host, so a published port is bound without listening: a server of the
//! host that wants the port fails at once instead of being shadowed, another home's machine too, and a connection that is
//! not redirected (to `::1`) is refused instead of hanging.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::error::NetworkError;
use crate::home::Networks;
use crate::publish::{Protocol, Publish};
use crate::reconcile;

/// How many sockets a machine holds at most; further ports are checked, but not held (a descriptor each).
const HELD_MAX: usize = 128;

/// Claims all ports for `machine`, or none. The claim lasts as long as the descriptors.
pub(crate) fn claim(networks: &Networks, machine: &str, publish: &[Publish]) -> Result<Vec<OwnedFd>, NetworkError> {
    Publish::check_set(publish)?;
    for wanted in publish {
        owned_by_machine(networks, machine, wanted)?;
    }
    let mut held = Vec::new();
    for wanted in publish {
        for address in wanted.claims() {
            for port in wanted.host.ports() {
                let socket = claim_one(wanted, SocketAddr::new(address, port))?;
                held.extend(socket.filter(|_| held.len() < HELD_MAX));
            }
        }
    }
    Ok(held)
}

/// Refuses a port that another attached machine of the home publishes.
fn owned_by_machine(networks: &Networks, machine: &str, wanted: &Publish) -> Result<(), NetworkError> {
    for other in reconcile::published(networks)?.iter().filter(|o| o.machine != machine) {
        if let Some(port) = other.ports.iter().find_map(|p| wanted.conflict(p)) {
            let owner = format!("machine {}", other.machine);
            return Err(taken(wanted, port, owner));
        }
    }
    Ok(())
}

fn taken(wanted: &Publish, port: u16, owner: String) -> NetworkError {
    let port = format!("{port}/{}", wanted.protocol);
    NetworkError::PortTaken {
        publish: Box::new(wanted.clone()),
        port,
        owner,
    }
}

/// The claim of one port; `None` for "any IPv6 address" on a host without IPv6.
fn claim_one(wanted: &Publish, at: SocketAddr) -> Result<Option<OwnedFd>, NetworkError> {
    let publish = || Box::new(wanted.clone());
    // The second try is for a port that only connections of a server that is gone still linger on (TIME_WAIT).
    let tried = bound(wanted.protocol, at, false).or_else(|e| match e {
        Errno::ADDRINUSE if wanted.protocol == Protocol::Tcp => bound(wanted.protocol, at, true),
        e => Err(e),
    });
    match tried {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::ADDRINUSE) => {
            let owner = process_on(wanted.protocol, at).unwrap_or_else(|| "another process".to_owned());
            Err(taken(wanted, at.port(), owner))
        }
        Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) if at.is_ipv6() && wanted.address.is_none() => Ok(None),
        Err(Errno::ADDRNOTAVAIL) => Err(NetworkError::NotOurAddress {
            publish: publish(),
            address: at.ip(),
        }),
        Err(Errno::ACCESS | Errno::PERM) => {
            let lowest = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            Err(NetworkError::LowPort {
                publish: publish(),
                port: at.port(),
                lowest: lowest.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024),
            })
        }
        Err(e) => Err(NetworkError::Claim {
            publish: publish(),
            port: at.port(),
            source: io::Error::from(e),
        }),
    }
}

fn bound(protocol: Protocol, at: SocketAddr, reuse: bool) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuse)?;
    bind(&socket, &at)?;
    Ok(socket)
}

/// Who has a socket in the way: `process 12 (nginx)`.
fn process_on(protocol: Protocol, at: SocketAddr) -> Option<String> {
    let mut inodes = BTreeSet::new();
    for suffix in ["", "6"] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{protocol}{suffix}")).unwrap_or_default();
        inodes.extend(sockets_on(&table, at.port()));
    }
    let links: BTreeSet<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    let pids = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let owner = pids.into_iter().find(|pid| has_descriptor(*pid, &links))?;
    let name = fs::read_to_string(format!("/proc/{owner}/comm")).unwrap_or_default();
    Some(format!("process {owner} ({})", name.trim()))
}

fn has_descriptor(pid: u32, links: &BTreeSet<String>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut targets = descriptors.flatten().filter_map(|d| fs::read_link(d.path()).ok());
    targets.any(|t| t.to_str().is_some_and(|t| links.contains(t)))
}

/// Inodes of the sockets bound to local port `port`, not counting connections, out of `/proc/net/{tcp,udp}` (proc(5): local
/// address in column 2 with the port in hex, remote in 3, inode in 10).
fn sockets_on(table: &str, port: u16) -> Vec<u64> {
    let socket = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = columns.get(1)?.rsplit_once(':')?.1;
        let remote = columns.get(2)?.rsplit_once(':')?.1;
        let here = u16::from_str_radix(local, 16).ok()? == port && remote == "0000";
        here.then(|| columns.get(9)?.parse().ok())?
    };
    table.lines().filter_map(socket).filter(|inode| *inode != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0\n   \
            1: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0\n";
        assert_eq!(sockets_on(table, 8080), [4242]);
        assert!(sockets_on(table, 80).is_empty());
    }

    #[test]
    fn the_owner_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let wanted = Publish::parse(&format!("127.0.0.1:{}:80", at.port())).unwrap();
        let output = claim_one(&wanted, at).unwrap_err().to_string();
        let owner = format!("process {}", std::process::id());
        assert!(
            output.contains(&owner) && output.contains(&format!("{}/tcp", at.port())),
            "{output}"
        );
    }

    #[test]
    fn a_claimed_port_is_refused_to_others_until_it_is_let_go() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let wanted = Publish::parse(&format!("127.0.0.1:{}:80", free.port())).unwrap();
        let held = claim_one(&wanted, free).unwrap();
        assert!(std::net::TcpListener::bind(free).is_err());
        drop(held);
        std::net::TcpListener::bind(free).unwrap();
    }
}
