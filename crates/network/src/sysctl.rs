//! Sysctls: reading and writing them, and the host-wide ones that networks share.
//!
//! Forwarding is one switch for the whole network namespace, needed by every network of every home. What it was before is
//! kept in one record per namespace, with the bridges that need it; the last one to go puts it back:
//! ```text
//! <host dir>/<inode of the namespace>.json    {"version":1,"boot_id":..,"holders":[bridge..],"saved":[[key, value]..]}
//! <host dir>/<inode of the namespace>.lock
//! ```
//! # Invariants
//! The record is written before the first switch is thrown, and removed after the last is back. A record of another boot
//! counts for nothing. A holder whose bridge is gone counts for nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;

use crate::error::NetworkError;

const VERSION: u32 = 1;
const V4_FORWARD: &str = "net/ipv4/ip_forward";
const V6_FORWARD: &str = "net/ipv6/conf/all/forwarding";

#[derive(Debug, Serialize, Deserialize)]
struct HostRecord {
    version: u32,
    boot_id: String,
    holders: Vec<String>,
    saved: Vec<(String, String)>,
}

/// The value of a sysctl; `None` when this kernel has none of that name.
pub(crate) fn get(key: &str) -> Result<Option<String>, NetworkError> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error("read", key, source)),
    }
}

/// Sets a sysctl that has another value.
pub(crate) fn set(key: &str, value: &str) -> Result<(), NetworkError> {
    if get(key)?.as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path(key), value).map_err(|source| error("set", key, source))
}

/// Whether the namespace has a link `name`.
pub(crate) fn link_exists(name: &str) -> bool {
    path(&format!("net/ipv4/conf/{name}")).exists()
}

/// Whether this kernel speaks IPv6.
pub(crate) fn has_ipv6() -> bool {
    path("net/ipv6/conf/all").exists()
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

fn error(action: &'static str, key: &str, source: io::Error) -> NetworkError {
    if source.kind() == io::ErrorKind::PermissionDenied {
        return NetworkError::NeedsRoot {
            action: format!("to {action} sysctl {key}"),
        };
    }
    let key = key.to_owned();
    NetworkError::Sysctl { action, key, source }
}

/// The record of the current namespace, locked.
struct Host {
    record: PathBuf,
    _lock: FileLock,
}

impl Host {
    async fn open(dir: &Path) -> Result<Host, NetworkError> {
        file::make_dirs(dir)?;
        let namespace = Path::new("/proc/thread-self/ns/net");
        let inode = fs::metadata(namespace).map_err(|e| file::FileError::io("read", namespace, e))?;
        let stem = dir.join(format!("net-{}", inode.ino()));
        Ok(Host {
            _lock: crate::home::lock(&stem.with_extension("lock")).await?,
            record: stem.with_extension("json"),
        })
    }

    fn read(&self) -> Result<Option<HostRecord>, NetworkError> {
        let record: HostRecord = match file::read_json(&self.record) {
            Ok(record) => record,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if record.version != VERSION {
            let path = self.record.display().to_string();
            return Err(NetworkError::Version {
                path,
                found: record.version,
                known: VERSION,
            });
        }
        Ok((record.boot_id == boot_id()).then_some(record))
    }
}

/// Turns forwarding on for as long as link `bridge` needs it. Idempotent.
pub(crate) async fn acquire(dir: &Path, bridge: &str, ipv6: bool) -> Result<(), NetworkError> {
    let host = Host::open(dir).await?;
    let fresh = || HostRecord {
        version: VERSION,
        boot_id: boot_id(),
        holders: Vec::new(),
        saved: Vec::new(),
    };
    let mut record = host.read()?.unwrap_or_else(fresh);
    if !record.holders.iter().any(|h| h == bridge) {
        record.holders.push(bridge.to_owned());
    }
    let wanted = wanted(ipv6)?;
    for (key, value) in &wanted {
        if !record.saved.iter().any(|(k, _)| k == key) {
            record.saved.extend(disturbed(key, value)?);
        }
    }
    file::replace_json(&host.record, &record)?;
    wanted.iter().try_for_each(|(key, value)| set(key, value))
}

/// Ends the need of link `bridge`; with the last holder everything is put back as it was. Idempotent.
pub(crate) async fn release(dir: &Path, bridge: &str) -> Result<(), NetworkError> {
    let host = Host::open(dir).await?;
    let Some(mut record) = host.read()? else {
        return Ok(file::remove_if_there(&host.record)?);
    };
    record.holders.retain(|h| h != bridge && link_exists(h));
    if !record.holders.is_empty() {
        return Ok(file::replace_json(&host.record, &record)?);
    }
    for (key, value) in &record.saved {
        // The link of a per-link key may be gone by now.
        if get(key)?.is_some() {
            set(key, value)?;
        }
    }
    Ok(file::remove_if_there(&host.record)?)
}

/// Whether `bridge` is a holder; for deciding that there is nothing to do, so without the lock.
pub(crate) fn is_holder(dir: &Path, bridge: &str) -> bool {
    let Ok(inode) = fs::metadata("/proc/thread-self/ns/net") else {
        return false;
    };
    let record = dir.join(format!("net-{}.json", inode.ino()));
    file::read_json::<HostRecord>(&record).is_ok_and(|r| r.holders.iter().any(|h| h == bridge))
}

/// The forwarding switch that is off although networks need it.
pub(crate) fn lost(ipv6: bool) -> Result<Option<&'static str>, NetworkError> {
    for key in [V4_FORWARD, V6_FORWARD].into_iter().take(if ipv6 { 2 } else { 1 }) {
        if get(key)?.is_some_and(|value| value == "0") {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// What has to be set, in this order: links that got their default route from a router keep listening to it (a
/// forwarding host with `accept_ra` 1 forgets such routes: ip-sysctl.rst), then forwarding.
fn wanted(ipv6: bool) -> Result<Vec<(String, String)>, NetworkError> {
    let mut wanted = vec![(V4_FORWARD.to_owned(), "1".to_owned())];
    if !ipv6 || !has_ipv6() {
        return Ok(wanted);
    }
    let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    for link in advertised_links(&routes) {
        let key = format!("net/ipv6/conf/{link}/accept_ra");
        if get(&key)?.as_deref() == Some("1") {
            wanted.push((key, "2".to_owned()));
        }
    }
    wanted.push((V6_FORWARD.to_owned(), "1".to_owned()));
    Ok(wanted)
}

/// Links with a default route from a router advertisement, out of `/proc/net/ipv6_route`: destination and prefix length
/// are zero, and the flags (column 9) have RTF_ADDRCONF (linux/ipv6_route.h).
fn advertised_links(routes: &str) -> Vec<String> {
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    let link = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, _, _, _, _, flags, link] = columns[..] else {
            return None;
        };
        let default = length == "00" && destination.bytes().all(|b| b == b'0');
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (default && flags & RTF_ADDRCONF != 0).then(|| link.to_owned())
    };
    let mut links: Vec<String> = routes.lines().filter_map(link).collect();
    links.sort();
    links.dedup();
    links
}

/// The values that setting `key` to `value` overwrites, in the order in which they are to be put back. The global forwarding switches overwrite those
/// of every link, and the IPv4 one also `accept_redirects` (inet_forward_change in net/ipv4/devinet.c).
fn disturbed(key: &str, value: &str) -> Result<Vec<(String, String)>, NetworkError> {
    let Some(old) = get(key)?.filter(|old| old != value) else {
        return Ok(Vec::new());
    };
    let mut saved = vec![(key.to_owned(), old)];
    let family = match key {
        V4_FORWARD => "net/ipv4/conf",
        V6_FORWARD => "net/ipv6/conf",
        _ => return Ok(saved),
    };
    let mut keys = Vec::new();
    let dir = path(family);
    for entry in fs::read_dir(&dir).map_err(|e| error("read", family, e))?.flatten() {
        let link = entry.file_name().to_string_lossy().into_owned();
        if link != "all" {
            keys.push(format!("{family}/{link}/forwarding"));
        }
    }
    if key == V4_FORWARD {
        keys.push(format!("{family}/all/accept_redirects"));
    }
    keys.sort();
    for key in keys {
        if let Some(old) = get(&key)? {
            saved.push((key, old));
        }
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_an_advertised_default_route_are_found() {
        let zero = "0".repeat(32);
        let gateway = "fe800000000000000000000000000001";
        let line = |len: &str, flags: &str, link: &str| {
            format!("{zero} {len} {zero} 00 {gateway} 00000400 00000001 00000000 {flags} {link:>8}\n")
        };
        let routes =
            line("00", "00450003", "wlan0") + &line("00", "00000003", "eth1") + &line("40", "00450001", "eth2");
        assert_eq!(advertised_links(&routes), ["wlan0"]);
    }
}
