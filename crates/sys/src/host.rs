//! Facts about this host that decide what a machine can get.

use std::path::Path;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::{affinity, file};

/// Facts about this host; a value, so that planning is a pure function of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// CPUs this process may use.
    pub cpus: u32,
    /// Their numbers.
    #[serde(default)]
    pub cpu_numbers: Vec<u32>,
    /// Memory of the host in bytes (`MemTotal`).
    pub memory_total_bytes: u64,
    /// Memory that can be had without swapping, in bytes (`MemAvailable`).
    pub memory_available_bytes: u64,
    /// This boot's id; another one means that all runtime resources are gone.
    pub boot_id: String,
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// Whether this process is root.
    pub is_root: bool,
    /// Whether processes of this one can become other users, see [`may_change_user`].
    #[serde(default)]
    pub may_change_user: bool,
    /// Whether cgroup v2 offers the cpu and memory controllers here.
    pub cgroup_v2: bool,
}

/// Whether processes can become another user here and still see what they need, which takes mounts of their own. Root in a
/// container often may not.
pub fn may_change_user() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

impl HostFacts {
    /// Asks the kernel.
    pub fn gather() -> HostFacts {
        let meminfo = file::read_text(Path::new("/proc/meminfo"), 64 * 1024).unwrap_or_default();
        HostFacts {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            cpu_numbers: affinity::allowed(),
            memory_total_bytes: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
            memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable").unwrap_or(0),
            boot_id: boot_id(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            is_root: rustix::process::geteuid().is_root(),
            may_change_user: may_change_user(),
            cgroup_v2: cgroup_v2_controllers(),
        }
    }
}

/// The random id of this boot of the host; empty when `/proc` does not tell.
pub fn boot_id() -> String {
    file::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 128)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Model and features of the first CPU in one line: guests that have the host's CPUs cannot go on where these are others.
pub fn cpu_mark() -> String {
    cpu_mark_of(&file::read_text(Path::new("/proc/cpuinfo"), 64 << 20).unwrap_or_default())
}

fn cpu_mark_of(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let of = |wanted: &str| {
        let lines = first.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.trim() == wanted);
        found.next().map(|(_, value)| value.trim()).unwrap_or_default()
    };
    let mut flags: Vec<&str> = of("flags").split(' ').collect();
    flags.sort_unstable();
    // FNV-1a: only told apart, never trusted.
    let digest = flags.join(" ").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} (features {digest:016x})", of("model name"))
}

fn cgroup_v2_controllers() -> bool {
    let controllers = file::read_text(Path::new("/sys/fs/cgroup/cgroup.controllers"), 4096).unwrap_or_default();
    ["cpu", "memory"]
        .iter()
        .all(|wanted| controllers.split_whitespace().any(|c| c == *wanted))
}

/// One figure of `/proc/meminfo`, in bytes.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_bytes() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   12 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(12 * 1024));
        assert_eq!(meminfo_bytes(text, "Mem"), None);
    }

    #[test]
    fn this_host_has_facts() {
        let facts = HostFacts::gather();
        assert!(facts.cpus >= 1 && facts.memory_total_bytes > 0 && !facts.boot_id.is_empty());
    }
}
