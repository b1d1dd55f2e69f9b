//! Containers of a guest that has several, each a process tree with a root of its own.
//!
//! Such a guest is configured without an entrypoint. Paths of the guest are those that the agent sees.

use serde::{Deserialize, Serialize};

use crate::{ResourceLimit, WindowSize};

/// A container, and everything that its first process finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its root file system.
    pub root: ContainerRoot,
    /// Nothing can be written to the root itself; what is mounted in it stays as it is.
    #[serde(default)]
    pub read_only: bool,
    /// Modules of the kernel that it may need, as files of the guest, each after those that it builds on. They are loaded before it is
    /// made; what cannot be loaded is left out.
    #[serde(default)]
    pub modules: Vec<String>,
    /// What is mounted in the root, in this order.
    pub mounts: Vec<ContainerMount>,
    /// Device nodes in `/dev` beside those that every container has.
    #[serde(default)]
    pub devices: Vec<DeviceNode>,
    /// Its processes can open these, those that every container has, and no others: not even by nodes of their own.
    #[serde(default)]
    pub devices_alone: bool,
    /// Paths in the root that are hidden; those that are not there are passed over.
    #[serde(default)]
    pub masked: Vec<String>,
    /// Paths in the root that cannot be written; those that are not there are passed over.
    #[serde(default)]
    pub read_only_paths: Vec<String>,
    /// It has a PID namespace of its own, in which its first process is PID 1. Otherwise it sees all processes of the guest.
    pub own_pids: bool,
    /// Its host name, in a UTS namespace of its own; the guest's when `None`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Settings of the kernel: paths below `/proc/sys`, and values. Those of a namespace that it shares are the guest's.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// What it may use.
    #[serde(default)]
    pub limits: ContainerLimits,
}

/// Where a container's root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRoot {
    /// A directory of the guest.
    Directory {
        /// Its absolute path.
        path: String,
    },
    /// The machine's own image, with a writable layer of the container's own above it.
    Image,
    /// Another image, on a disk that the machine got for it, with such a layer.
    Disk {
        /// The disk's serial number.
        serial: String,
    },
    /// The layers of an image, each a disk, with such a layer above them.
    Layers {
        /// The uppermost first; at least one.
        layers: Vec<ImageLayer>,
    },
}

/// A layer of an image: an EROFS file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The serial number of its disk.
    pub serial: String,
    /// Those of the disks with its data, when that is not on its own.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// One file system of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container's root, made when missing. No link on the way leads out of the root.
    pub target: String,
    /// `MS_*` flags of mount(2), `MS_BIND` and `MS_REC` left out.
    pub flags: u64,
    /// `MS_SHARED`, `MS_SLAVE` or `MS_PRIVATE`, with or without `MS_REC`; 0: private.
    #[serde(default)]
    pub propagation: u64,
    /// Options of the file system, separated by commas.
    #[serde(default)]
    pub options: String,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A new file system of this type: `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue` or `cgroup2`.
    New {
        /// As `mount -t` names it.
        fstype: String,
    },
    /// A file or directory of the guest.
    Bind {
        /// Its absolute path.
        path: String,
        /// With what is mounted in it.
        recursive: bool,
    },
    /// A file system in the guest's memory that all containers with the same name share. It lives as long as the guest.
    Memory {
        /// 1 to 255 of `a-z A-Z 0-9 _ . -`.
        name: String,
        /// The most it may hold, in bytes; the kernel's choice when `None`.
        size_bytes: Option<u64>,
    },
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container's root.
    pub path: String,
    /// A block device; otherwise a character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// It is the disk with this serial number, whose numbers the guest knows.
    #[serde(default)]
    pub serial: Option<String>,
    /// The container can only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// What a container may use, by a control group (v2) of the guest. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerLimits {
    /// Processor time in microseconds within each period.
    pub cpu_quota_us: Option<u64>,
    /// The period in microseconds; the kernel's 100,000 when `None`.
    pub cpu_period_us: Option<u64>,
    /// Weight among the containers of the guest, 1 to 10,000.
    pub cpu_weight: Option<u64>,
    /// CPUs of the guest, as a list (`0-1,3`).
    pub cpuset: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// A process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProcess {
    /// Program and arguments; the program is looked up in the `PATH` of `env` when it has no slash.
    pub args: Vec<String>,
    /// The environment, `NAME=VALUE`. The agent adds `HOME` (from the root's passwd) when it is missing.
    pub env: Vec<String>,
    /// Absolute working directory; made when missing.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// File mode creation mask; 022 when `None`.
    #[serde(default)]
    pub umask: Option<u32>,
    /// Give it a terminal of this size.
    #[serde(default)]
    pub terminal: Option<WindowSize>,
    /// Connect standard input to the stream; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Its capabilities; all of the guest when `None`.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(default)]
    pub limits: Vec<ResourceLimit>,
    /// Executing a program never brings privileges.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Adjustment of the kernel's score when memory is short, -1000 to 1000.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// The system call filter: instructions of classic BPF, eight bytes each, little endian. Empty: none.
    #[serde(default)]
    pub system_call_filter: Vec<u64>,
}

/// Capability sets, as bit masks by number (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// What no program can get beyond.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What is kept by programs that ask for it.
    pub inheritable: u64,
    /// What is kept by any program.
    pub ambient: u64,
}

/// What the host asks of a container, besides processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRequest {
    /// Send a signal to every process of it; SIGKILL reaches also those that are being made. Answer: [`ContainerReply::Done`].
    KillAll {
        /// Linux signal number.
        signal: i32,
    },
    /// Send a signal to one process of it. Unlike one in the stream of the process, it does not wait behind input that the process does
    /// not read. One that is gone is fine. Answer: [`ContainerReply::Done`].
    Signal {
        /// The process, as `Started` told its id.
        pid: u32,
        /// Linux signal number.
        signal: i32,
    },
    /// Change what it may use; what is `None` stays. Answer: [`ContainerReply::Done`].
    Update(ContainerLimits),
    /// Stop all of its processes, or let them go on. Answer: [`ContainerReply::Done`].
    Freeze(bool),
    /// Answer: [`ContainerReply::Stats`].
    Stats,
    /// Its processes. Answer: [`ContainerReply::Pids`].
    Pids,
    /// It is over: kill what is left of it, and forget it. One that is not there is fine. Answer: [`ContainerReply::Done`].
    Remove,
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerReply {
    /// It is carried out.
    Done,
    /// What it uses.
    Stats(Box<ContainerStats>),
    /// Process ids in the guest.
    Pids(Vec<u32>),
}

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStats {
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// In user mode.
    pub cpu_user_us: u64,
    /// In the kernel.
    pub cpu_system_us: u64,
    /// Periods of its CPU limit.
    pub cpu_periods: u64,
    /// Periods in which it was stopped by that limit.
    pub cpu_throttled_periods: u64,
    /// For how long, in microseconds.
    pub cpu_throttled_us: u64,
    /// Memory in bytes, the page cache of its files included.
    pub memory_bytes: u64,
    /// Its limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Anonymous memory in bytes.
    pub memory_anon_bytes: u64,
    /// Page cache in bytes.
    pub memory_file_bytes: u64,
    /// Page cache that was not used lately, in bytes.
    pub memory_inactive_file_bytes: u64,
    /// Memory of the kernel in bytes.
    pub memory_kernel_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from a disk.
    pub major_page_faults: u64,
    /// How often the kernel killed a process of it because memory was short.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// The limit of these.
    pub pids_limit: Option<u64>,
}

impl ContainerStats {
    /// What the files of a control group of version 2 say, which `read` gives by their names; one that is not there is empty.
    pub fn of_group(read: impl Fn(&str) -> String) -> ContainerStats {
        let (cpu, memory, events) = (read("cpu.stat"), read("memory.stat"), read("memory.events"));
        // `max` is none.
        let number = |file: &str| read(file).trim().parse().ok();
        ContainerStats {
            cpu_us: keyed(&cpu, "usage_usec"),
            cpu_user_us: keyed(&cpu, "user_usec"),
            cpu_system_us: keyed(&cpu, "system_usec"),
            cpu_periods: keyed(&cpu, "nr_periods"),
            cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
            cpu_throttled_us: keyed(&cpu, "throttled_usec"),
            memory_bytes: number("memory.current").unwrap_or_default(),
            memory_limit_bytes: number("memory.max"),
            memory_anon_bytes: keyed(&memory, "anon"),
            memory_file_bytes: keyed(&memory, "file"),
            memory_inactive_file_bytes: keyed(&memory, "inactive_file"),
            memory_kernel_bytes: keyed(&memory, "kernel"),
            page_faults: keyed(&memory, "pgfault"),
            major_page_faults: keyed(&memory, "pgmajfault"),
            oom_kills: keyed(&events, "oom_kill"),
            pids: number("pids.current").unwrap_or_default(),
            pids_limit: number("pids.max"),
        }
    }
}

/// The value of `key` in a file of lines `key value`, as control groups have them; 0 when it is not there.
pub fn keyed(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_no_prefix_of_another_one() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), 2);
        assert_eq!(keyed(text, "oom"), 3);
        assert_eq!(keyed(text, "none"), 0);
    }
}
