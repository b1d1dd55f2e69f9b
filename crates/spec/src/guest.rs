//! What a container finds in its guest beyond its image: file systems in memory, names, kernel settings, and what its processes
//! may use and do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::{Setting, bytes};

/// All of it. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestSettings {
    /// File systems in memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// Lines of `/etc/hosts`, beyond its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// Search domains, in place of those of its networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Size of `/dev/shm` in bytes; half of the guest's memory when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Settings of its kernel: names below `/proc/sys`, with dots.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of its processes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Further groups of its processes, by name or number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Capabilities that its processes have not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<Capability>,
    /// Of those, the ones they have all the same: for dropping all but a few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<Capability>,
    /// Programs of theirs get no privileges by being executed (setuid, file capabilities).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_new_privileges: bool,
}

impl GuestSettings {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == GuestSettings::default()
    }

    /// Something of it that is asked for.
    pub fn used(&self) -> Option<Setting> {
        let used = [
            (Setting::Tmpfs, !self.tmpfs.is_empty() || self.shm_bytes.is_some()),
            (Setting::Hosts, !self.hosts.is_empty()),
            (Setting::Dns, !self.dns_search.is_empty()),
            (Setting::Sysctls, !self.sysctls.is_empty()),
            (Setting::Ulimits, !self.ulimits.is_empty()),
            (Setting::User, !self.groups.is_empty()),
            (
                Setting::Capabilities,
                !self.cap_drop.is_empty() || self.no_new_privileges,
            ),
        ];
        used.into_iter()
            .find(|(_, is_used)| *is_used)
            .map(|(setting, _)| setting)
    }

    /// The numbers of the capabilities that are taken away.
    pub fn dropped_capabilities(&self) -> Vec<u8> {
        let has = |all: &[Capability], number: u8| all.iter().any(|c| c.0.is_none_or(|n| n == number));
        (0..CAPABILITIES.len() as u8)
            .filter(|number| has(&self.cap_drop, *number) && !has(&self.cap_add, *number))
            .collect()
    }
}

fn wrong(setting: Setting, text: &str, why: &str, hint: &str) -> Failure {
    Failure::new(Class::Usage, format!("'{text}': {why}"))
        .hint(hint)
        .about(setting)
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the guest.
    pub target: String,
    /// The most it may hold, in bytes; half of the guest's memory when `None`.
    pub size_bytes: Option<u64>,
    /// Permissions of its root; 1777 when `None`.
    pub mode: Option<u32>,
    /// It cannot be written.
    pub read_only: bool,
    /// Programs on it can be executed.
    pub exec: bool,
}

impl Tmpfs {
    /// One with docker's defaults.
    pub fn new(target: impl Into<String>) -> Tmpfs {
        Tmpfs {
            target: target.into(),
            size_bytes: None,
            mode: None,
            read_only: false,
            exec: false,
        }
    }

    /// Sets an option, as `mount -o` has it.
    ///
    /// # Errors
    /// [`Class::Usage`] for one that a tmpfs here has not.
    pub fn set(&mut self, option: &str) -> Result<(), Failure> {
        let hint = "options are size=64M, mode=1777, ro, rw, exec and noexec";
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "size" | "tmpfs-size" => {
                let parsed =
                    bytes::parse(value).map_err(|e| wrong(Setting::Tmpfs, option, &e.to_string(), e.hint()))?;
                self.size_bytes = Some(parsed);
            }
            "mode" | "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                let mode =
                    mode.ok_or_else(|| wrong(Setting::Tmpfs, option, "this is no mode", "a mode is octal, as 1777"))?;
                self.mode = Some(mode);
            }
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            // What it has anyway.
            "nosuid" | "nodev" | "nr_inodes" | "noatime" | "relatime" => {}
            _ => return Err(wrong(Setting::Tmpfs, option, "a tmpfs has no such option", hint)),
        }
        Ok(())
    }
}

impl FromStr for Tmpfs {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Tmpfs, Failure> {
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        if !target.starts_with('/') || target == "/" {
            let why = "it needs an absolute path below / in the machine";
            return Err(wrong(
                Setting::Tmpfs,
                text,
                why,
                "write /PATH or /PATH:size=64M,mode=1777",
            ));
        }
        let mut tmpfs = Tmpfs::new(target.trim_end_matches('/'));
        options
            .split(',')
            .filter(|option| !option.is_empty())
            .try_for_each(|option| tmpfs.set(option))?;
        Ok(tmpfs)
    }
}

impl fmt::Display for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = Vec::new();
        options.extend(self.size_bytes.map(|bytes| format!("size={bytes}")));
        options.extend(self.mode.map(|mode| format!("mode={mode:o}")));
        options.extend(self.read_only.then(|| "ro".to_owned()));
        options.extend(self.exec.then(|| "exec".to_owned()));
        match options.is_empty() {
            true => f.write_str(&self.target),
            false => write!(f, "{}:{}", self.target, options.join(",")),
        }
    }
}

/// A name and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its address; `None` is this host, as the machine reaches it (docker's `host-gateway`).
    pub address: Option<IpAddr>,
}

const GATEWAY: &str = "host-gateway";

impl FromStr for Host {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Host, Failure> {
        let hint = "write NAME:ADDRESS, as db:10.0.0.5, or NAME:host-gateway for this host";
        let (name, address) = text
            .split_once([':', '='])
            .ok_or_else(|| wrong(Setting::Hosts, text, "it has no address", hint))?;
        let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
        if !is_name {
            return Err(wrong(Setting::Hosts, text, "this is no name of a host", hint));
        }
        let plain = address.trim_start_matches('[').trim_end_matches(']');
        let address = match plain {
            GATEWAY => None,
            plain => Some(
                plain
                    .parse()
                    .map_err(|_| wrong(Setting::Hosts, text, "this is no address", hint))?,
            ),
        };
        Ok(Host {
            name: name.to_owned(),
            address,
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}:{address}", self.name),
            None => write!(f, "{}:{GATEWAY}", self.name),
        }
    }
}

/// The resources that Linux limits, by their numbers, as docker names them.
pub const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its number (`RLIMIT_*`).
    pub resource: u8,
    /// What a process has; `None` is no limit.
    pub soft: Option<u64>,
    /// What it may set.
    pub hard: Option<u64>,
}

impl FromStr for Ulimit {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Ulimit, Failure> {
        let hint = "write nofile=1024 or nofile=1024:4096; -1 is no limit";
        let (name, values) = text
            .split_once('=')
            .ok_or_else(|| wrong(Setting::Ulimits, text, "it has no value", hint))?;
        let resource = RESOURCES.iter().position(|known| *known == name).ok_or_else(|| {
            wrong(
                Setting::Ulimits,
                text,
                "there is no such limit",
                &format!("limits are {}", RESOURCES.join(", ")),
            )
        })?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(None),
            _ => text.parse().map(Some),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (Ok(soft), Ok(hard)) = (number(soft), number(hard)) else {
            return Err(wrong(Setting::Ulimits, text, "this is no number", hint));
        };
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err(wrong(
                Setting::Ulimits,
                text,
                "the soft limit is above the hard one",
                hint,
            ));
        }
        Ok(Ulimit {
            resource: resource as u8,
            soft,
            hard,
        })
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
        let name = RESOURCES.get(usize::from(self.resource)).unwrap_or(&"?");
        write!(f, "{name}={}:{}", number(self.soft), number(self.hard))
    }
}

/// The capabilities of Linux, by their numbers.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A capability by its number, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(Option<u8>);

impl FromStr for Capability {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Capability, Failure> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Ok(Capability(None));
        }
        let number = CAPABILITIES.iter().position(|known| *known == name);
        let unknown = || {
            wrong(
                Setting::Capabilities,
                text,
                "there is no such capability",
                "as in NET_RAW, SYS_ADMIN or ALL",
            )
        };
        number.map(|number| Capability(Some(number as u8))).ok_or_else(unknown)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            self.0
                .and_then(|number| CAPABILITIES.get(usize::from(number)))
                .unwrap_or(&"ALL"),
        )
    }
}

impl TryFrom<String> for Capability {
    type Error = Failure;

    fn try_from(text: String) -> Result<Capability, Failure> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> String {
        capability.to_string()
    }
}

/// A setting of the kernel and its value, of `NAME=VALUE`.
///
/// # Errors
/// [`Class::Usage`] for what is no name below `/proc/sys`.
pub fn parse_sysctl(text: &str) -> Result<(String, String), Failure> {
    let hint = "write NAME=VALUE, as net.core.somaxconn=1024";
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| wrong(Setting::Sysctls, text, "it has no value", hint))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let has_parts = name.split(['.', '/']).all(|part| !part.is_empty());
    if !name.chars().all(is_plain) || !has_parts {
        return Err(wrong(
            Setting::Sysctls,
            text,
            "this is no name of a kernel setting",
            hint,
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_write_is_read_and_written_again() {
        for text in ["/x", "/x:size=1048576,mode=700,ro,exec"] {
            assert_eq!(text.parse::<Tmpfs>().unwrap().to_string(), text);
        }
        assert_eq!(
            "/x/:size=1M,rw,noexec,nosuid".parse::<Tmpfs>().unwrap().size_bytes,
            Some(1 << 20)
        );
        for text in ["db:10.0.0.5", "db:fd00::1", "me:host-gateway"] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
        assert_eq!("db:[fd00::1]".parse::<Host>().unwrap().to_string(), "db:fd00::1");
        for (text, same) in [
            ("nofile=5", "nofile=5:5"),
            ("core=0:-1", "core=0:-1"),
            ("rttime=7:9", "rttime=7:9"),
        ] {
            assert_eq!(text.parse::<Ulimit>().unwrap().to_string(), same);
        }
        assert_eq!("cap_net_raw".parse::<Capability>().unwrap().to_string(), "NET_RAW");
        assert_eq!(parse_sysctl("net.core.somaxconn=1 2").unwrap().1, "1 2");
    }

    #[test]
    fn what_makes_no_sense_is_told_with_the_setting() {
        let failures = [
            "x".parse::<Tmpfs>().unwrap_err(),
            "/".parse::<Tmpfs>().unwrap_err(),
            "/x:uid=5".parse::<Tmpfs>().unwrap_err(),
            "/x:mode=9".parse::<Tmpfs>().unwrap_err(),
            "db".parse::<Host>().unwrap_err(),
            "a b:1.2.3.4".parse::<Host>().unwrap_err(),
            "db:1.2.3".parse::<Host>().unwrap_err(),
            "nofile".parse::<Ulimit>().unwrap_err(),
            "files=3".parse::<Ulimit>().unwrap_err(),
            "nofile=9:3".parse::<Ulimit>().unwrap_err(),
            "nofile=-1:3".parse::<Ulimit>().unwrap_err(),
            "FLY".parse::<Capability>().unwrap_err(),
            parse_sysctl("a").unwrap_err(),
            parse_sysctl("a..b=1").unwrap_err(),
            parse_sysctl("../x=1").unwrap_err(),
        ];
        for failure in failures {
            assert!(
                failure.class == Class::Usage && failure.hint.is_some() && failure.settings.len() == 1,
                "{failure}"
            );
        }
    }

    #[test]
    fn capabilities_are_dropped_but_for_those_that_are_added() {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let dropped = |drop: &[&str], add: &[&str]| {
            let settings = GuestSettings {
                cap_drop: all(drop),
                cap_add: all(add),
                ..GuestSettings::default()
            };
            settings.dropped_capabilities()
        };
        assert_eq!(dropped(&[], &["ALL"]), [0u8; 0]);
        assert_eq!(dropped(&["CHOWN", "NET_RAW"], &[]), [0, 13]);
        assert_eq!(dropped(&["ALL"], &["CHOWN"]).len(), 40);
        assert_eq!(dropped(&["ALL"], &["ALL"]).len(), 0);
    }
}
