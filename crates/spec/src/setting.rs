//! The settings of a machine, as failures name them. A front end adds how its users write them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something of a machine that its user chose, or might have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Setting {
    Name,
    Flist,
    Cpus,
    Memory,
    Size,
    Env,
    Entrypoint,
    Workdir,
    User,
    Hostname,
    Networks,
    NetworkAliases,
    Publish,
    Dns,
    Terminal,
    ReadOnly,
    Init,
    Kernel,
    Accel,
    Hypervisor,
    StopSignal,
    Stores,
    Mode,
    Volumes,
    UserData,
    Reinstall,
    Rootfs,
    Restart,
    LogLimits,
    LogTo,
    Secrets,
    Tmpfs,
    Hosts,
    Sysctls,
    Ulimits,
    Capabilities,
}

impl Setting {
    /// All there are.
    pub const ALL: [Setting; 36] = [
        Setting::Name,
        Setting::Flist,
        Setting::Cpus,
        Setting::Memory,
        Setting::Size,
        Setting::Env,
        Setting::Entrypoint,
        Setting::Workdir,
        Setting::User,
        Setting::Hostname,
        Setting::Networks,
        Setting::NetworkAliases,
        Setting::Publish,
        Setting::Dns,
        Setting::Terminal,
        Setting::ReadOnly,
        Setting::Init,
        Setting::Kernel,
        Setting::Accel,
        Setting::Hypervisor,
        Setting::StopSignal,
        Setting::Stores,
        Setting::Mode,
        Setting::Volumes,
        Setting::UserData,
        Setting::Reinstall,
        Setting::Rootfs,
        Setting::Restart,
        Setting::LogLimits,
        Setting::LogTo,
        Setting::Secrets,
        Setting::Tmpfs,
        Setting::Hosts,
        Setting::Sysctls,
        Setting::Ulimits,
        Setting::Capabilities,
    ];
}

/// What it is, for people, as in "a VM has no working directory of its own choice".
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Setting::Name => "name",
            Setting::Flist => "image",
            Setting::Cpus => "number of CPUs",
            Setting::Memory => "memory",
            Setting::Size => "root size",
            Setting::Env => "environment",
            Setting::Entrypoint => "entrypoint",
            Setting::Workdir => "working directory",
            Setting::User => "user",
            Setting::Hostname => "host name",
            Setting::Networks => "network",
            Setting::NetworkAliases => "network alias",
            Setting::Publish => "published port",
            Setting::Dns => "name server",
            Setting::Terminal => "terminal",
            Setting::ReadOnly => "read-only root",
            Setting::Init => "init",
            Setting::Kernel => "guest kernel",
            Setting::Accel => "accelerator",
            Setting::Hypervisor => "hypervisor",
            Setting::StopSignal => "stop signal",
            Setting::Stores => "block store",
            Setting::Mode => "kind of machine",
            Setting::Volumes => "volume",
            Setting::UserData => "user data",
            Setting::Reinstall => "new installation",
            Setting::Rootfs => "kind of root",
            Setting::Restart => "restart policy",
            Setting::LogLimits => "log limit",
            Setting::LogTo => "log receiver",
            Setting::Secrets => "secret",
            Setting::Tmpfs => "file system in memory",
            Setting::Hosts => "entry of /etc/hosts",
            Setting::Sysctls => "kernel setting",
            Setting::Ulimits => "resource limit",
            Setting::Capabilities => "capability",
        })
    }
}
