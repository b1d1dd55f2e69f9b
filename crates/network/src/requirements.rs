//! What the host has to have for networks, for `doctor`.

use std::fs;
use std::path::Path;

use rustix::fs::{Access, access};
use zmachine_sys::tap::TUN_DEVICE;

use crate::links::Links;
use crate::name::Mac;
use crate::user::Passt;
use crate::{dnsmasq, external_firewalls, nft};

/// One requirement of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// What it is.
    pub name: &'static str,
    /// Whether this host has it.
    pub met: bool,
    /// What is lost without it.
    pub lost: &'static str,
    /// The command that mends it.
    pub mend: &'static str,
}

/// Checks this host by trying: as root, a bridge is made and removed at once. Changes nothing that stays.
pub async fn requirements() -> Vec<Requirement> {
    let root = can_make_networks();
    let need = |name, met, lost, mend| Requirement { name, met, lost, mend };
    let no_network = "machines run in the network 'user' or 'none' only";
    let mut all = vec![
        need("root (CAP_NET_ADMIN)", root, no_network, "sudo zmachine ..."),
        need(
            "passt",
            Passt::find().is_ok(),
            "no network without root: machines run in the network 'none' only",
            "apt-get install passt",
        ),
        need(
            "user namespaces for everybody",
            has_user_namespaces(),
            "passt does not start for others than root",
            "sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1",
        ),
    ];
    if !root {
        // What bridges need is nothing to somebody who may not make any.
        return all;
    }
    all.extend([
        need(
            "nft",
            nft::run(&["--version"], "").await.is_ok_and(|(ok, _)| ok),
            no_network,
            "apt-get install nftables",
        ),
        need(
            "dnsmasq",
            dnsmasq::is_installed(),
            no_network,
            "apt-get install dnsmasq-base",
        ),
        need("/dev/net/tun", tun_opens(), no_network, "modprobe tun"),
        need(
            "writable /proc/sys/net",
            can_forward(),
            "machines reach the host only",
            "mount -o remount,rw /proc/sys",
        ),
    ]);
    all.push(need("bridges", bridge_works().await, no_network, "modprobe bridge"));
    let (read, _) = nft::run(&["-j", "list", "chains"], "").await.unwrap_or_default();
    let lost = "another firewall drops what machines send and get";
    let mend = "let links zm* through it: docs/networks.md, 'Beside other firewalls'";
    all.push(need("nf_tables", read, no_network, "modprobe nf_tables"));
    all.push(need(
        "no drop policy of another firewall in the way",
        external_firewalls::external_firewalls().await.is_empty(),
        lost,
        mend,
    ));
    all
}

/// Whether this process may make bridges, taps and rules. One that may not connects its machines through passt.
pub fn can_make_networks() -> bool {
    has_net_admin(&fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
}

/// Whether the kernel lets ordinary users make user namespaces, as far as its switches tell: a kernel without a switch has
/// none that forbids.
fn has_user_namespaces() -> bool {
    let is_zero = |key: &str| fs::read_to_string(Path::new("/proc/sys").join(key)).is_ok_and(|v| v.trim() == "0");
    !is_zero("user/max_user_namespaces") && !is_zero("kernel/unprivileged_userns_clone")
}

fn tun_opens() -> bool {
    fs::OpenOptions::new().read(true).write(true).open(TUN_DEVICE).is_ok()
}

fn can_forward() -> bool {
    let key = Path::new("/proc/sys/net/ipv4/ip_forward");
    let on = fs::read_to_string(key).is_ok_and(|v| v.trim() == "1");
    on || access(key, Access::WRITE_OK).is_ok()
}

async fn bridge_works() -> bool {
    let Ok(links) = Links::open() else {
        return false;
    };
    let name = format!("zmtry{}", std::process::id());
    let made = links.make_bridge(&name, Mac([2, 0, 0, 0, 0, 1]), 1500).await.is_ok();
    made && links.remove(&name).await.is_ok()
}

/// Whether the effective capabilities in `/proc/<pid>/status` have CAP_NET_ADMIN (12, linux/capability.h).
fn has_net_admin(status: &str) -> bool {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << 12) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(has_net_admin("CapPrm:\t0\nCapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("CapPrm:\t0000000000001000\nCapEff:\t0000000000000fff\n"));
    }
}
