//! Which protections stand around a process, as the kernel tells: read from `/proc`, not from what was asked for.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What of a jail there is around one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its user.
    pub user: u32,
    /// It is another user than the one who asks.
    pub own_user: bool,
    /// It has no capabilities, and none can come back.
    pub no_capabilities: bool,
    /// It gets no new privileges from any program.
    pub no_new_privileges: bool,
    /// Namespaces it does not share with who asks: `mnt`, `pid`, `net`, `ipc`, `uts`, `user`.
    pub namespaces: Vec<String>,
    /// Its root is not that of who asks.
    pub own_root: bool,
    /// Its system calls are filtered.
    pub seccomp: bool,
    /// The kernel has Landlock, which every jail uses.
    pub landlock: bool,
}

/// The namespaces a jail has when nothing lacks.
pub const NAMESPACES: [&str; 5] = ["mnt", "pid", "net", "ipc", "uts"];

/// The protections around the process `pid`; `None` when it is gone or may not be looked at. Looked at from inside (`pid` is
/// the caller), nothing can be compared.
pub fn of(pid: u32) -> Option<SandboxStatus> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let user = field("Uid").split_whitespace().nth(1)?.parse().ok()?;
    let is_zero = |name: &str| u64::from_str_radix(&field(name), 16) == Ok(0);
    let is_other = |name: &&&str| {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{name}")).ok();
        matches!((of(&pid.to_string()), of("self")), (Some(its), Some(ours)) if its != ours)
    };
    let root = |who: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/proc/{who}/root/."))
            .ok()
            .map(|meta| (meta.dev(), meta.ino()))
    };
    Some(SandboxStatus {
        user,
        own_user: user != rustix::process::geteuid().as_raw(),
        no_capabilities: is_zero("CapEff") && is_zero("CapPrm") && is_zero("CapInh") && is_zero("CapAmb"),
        no_new_privileges: field("NoNewPrivs") == "1",
        namespaces: NAMESPACES
            .iter()
            .chain(&["user"])
            .filter(is_other)
            .map(|name| (*name).to_owned())
            .collect(),
        own_root: root(&pid.to_string()).is_some_and(|its| Some(its) != root("self")),
        seccomp: field("Seccomp") == "2",
        landlock: kernel_has_landlock(),
    })
}

/// Whether this kernel has Landlock.
pub fn kernel_has_landlock() -> bool {
    // SAFETY: with this flag (LANDLOCK_CREATE_RULESET_VERSION) the call reads nothing and returns a version number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) };
    version > 0 || Path::new("/sys/kernel/security/landlock").exists()
}

impl SandboxStatus {
    /// What stands, as words; `net` is left out of what is missing when the process is meant to have the host's network.
    pub fn standing(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.own_user {
            words.push(format!("user {}", self.user));
        }
        if self.no_capabilities {
            words.push("no capabilities".to_owned());
        }
        if self.no_new_privileges {
            words.push("no new privileges".to_owned());
        }
        if !self.namespaces.is_empty() {
            words.push(format!("namespaces {}", self.namespaces.join(" ")));
        }
        if self.own_root {
            words.push("own root".to_owned());
        }
        if self.seccomp {
            words.push("seccomp".to_owned());
        }
        if self.landlock && self.no_new_privileges {
            words.push("landlock".to_owned());
        }
        words
    }

    /// What is missing, as words. `has_network`: it is meant to be in the host's network.
    pub fn missing(&self, has_network: bool) -> Vec<&'static str> {
        let mut words = Vec::new();
        let mut lacks = |stands: bool, word| {
            if !stands {
                words.push(word);
            }
        };
        lacks(self.own_user, "own user");
        lacks(self.no_capabilities, "no capabilities");
        lacks(self.no_new_privileges, "no new privileges");
        for name in NAMESPACES {
            let stands = self.namespaces.iter().any(|own| own == name) || (name == "net" && has_network);
            lacks(stands, name);
        }
        lacks(self.own_root, "own root");
        lacks(self.seccomp, "seccomp");
        lacks(self.landlock, "landlock");
        words
    }
}
