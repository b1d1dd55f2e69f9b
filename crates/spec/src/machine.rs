//! The spec of a machine: every setting, and its file.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
pub use zmachine_disk::seed::user_data_text;
use zmachine_hypervisor::accel;
use zmachine_hypervisor::choice::Requested;
use zmachine_network::{DEFAULT_NETWORK, PublishRequest};
use zmachine_rootfs::Prefetch;
use zmachine_sys::file::{self, FileError};

use crate::cpus::{CpuSet, Cpus};
use crate::failure::{Class, Failure};
use crate::guest::GuestSettings;
use crate::health::HealthRequest;
use crate::log_limits::LogLimits;
use crate::log_target::LogTarget;
use crate::network_request::NetworkRequest;
use crate::pod::PodSettings;
use crate::restart::RestartPolicy;
use crate::signal::Signal;
use crate::user::User;
use crate::volume_request::VolumeRequest;
use crate::{version1, versioned};

/// Version of `spec.json`.
pub const SPEC_VERSION: u32 = 2;

/// Memory a machine gets when nothing else is said, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// Time between the stop signal and SIGKILL when nothing else is said, in seconds.
pub const DEFAULT_STOP_TIMEOUT_S: u64 = 10;

/// Asks an entrypoint to stop where neither the user nor the image says what does.
pub const DEFAULT_STOP_SIGNAL: Signal = Signal::TERM;

/// The same for a VM: an operating system stops its services first, and the common ones give each 90 s.
pub const DEFAULT_VM_STOP_TIMEOUT_S: u64 = 90;

/// One machine as its user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// Unique among the machines of one home.
    pub name: String,
    /// The flist as the user named it; a path is absolute.
    pub flist: String,
    /// `HOST/REPOSITORY@DIGEST`: what `flist`, a name in a registry, led to when the machine was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The time that they get together, in thousandths of a CPU of this host; `None`: as much as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_milli: Option<u32>,
    /// The CPUs of this host that its processes run on.
    #[serde(default, skip_serializing_if = "CpuSet::is_all")]
    pub cpuset: CpuSet,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Wanted size of the writable root in bytes; 0 leaves it to the rule of the planner.
    pub size_bytes: u64,
    /// Environment, over the image's; later entries win.
    pub env: Vec<(String, String)>,
    /// Program and first arguments, in place of the image's; empty: none, so the command is all there is.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint; with neither entrypoint nor image entrypoint, the command itself.
    pub command: Vec<String>,
    /// Working directory, in place of the image's.
    pub workdir: Option<String>,
    /// Whom the entrypoint runs as, in place of the image's.
    pub user: Option<User>,
    /// Host name; the machine's name when `None`.
    pub hostname: Option<String>,
    /// Networks it joins, in order; empty is none.
    pub networks: Vec<NetworkRequest>,
    /// Published ports.
    pub publish: Vec<PublishRequest>,
    /// The image's exposed ports are published as well, on free ports of the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub publish_all: bool,
    /// Name servers in place of the host's.
    pub dns: Vec<IpAddr>,
    /// The entrypoint gets a terminal.
    pub terminal: bool,
    /// The entrypoint's standard input stays open for attached clients.
    pub stdin: bool,
    /// Removed when it stops.
    pub auto_remove: bool,
    /// The root is not writable.
    pub read_only: bool,
    /// A small init is PID 1, in front of the entrypoint.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// A container without an entrypoint: the guest is set up, and waits for what is started in it until it is stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idle: bool,
    /// Name of the guest kernel; the default one when `None`.
    pub kernel: Option<String>,
    /// Hardware virtualisation or emulation.
    pub accel: accel::Requested,
    /// What runs it.
    #[serde(default, skip_serializing_if = "Requested::is_auto")]
    pub hypervisor: Requested,
    /// Signal that asks the entrypoint to stop; the image's or [`DEFAULT_STOP_SIGNAL`] when `None`.
    pub stop_signal: Option<Signal>,
    /// Seconds between that signal, or the power button of a VM, and the end by force. `None`:
    /// [`DEFAULT_STOP_TIMEOUT_S`], or [`DEFAULT_VM_STOP_TIMEOUT_S`] for a VM.
    pub stop_timeout_s: Option<u64>,
    /// Block stores in place of the flist's routes.
    pub stores: Vec<String>,
    /// The user's own words.
    pub labels: BTreeMap<String, String>,
    /// What the image is taken for.
    #[serde(default, skip_serializing_if = "ModeChoice::is_auto")]
    pub mode: ModeChoice,
    /// Volumes and directories of the host, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRequest>,
    /// Public keys for root, one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// User data for a VM's cloud-init, merged with ours; [`user_data_text`] makes it of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// A VM's image is installed over whatever its boot volume holds, once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reinstall: bool,
    /// The kernel of a container that brings its own is told of network and environment on its command line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub legacy_cmdline: bool,
    /// What its root is made of.
    #[serde(default, skip_serializing_if = "RootfsChoice::is_auto")]
    pub rootfs: RootfsChoice,
    /// How much of its image is fetched before it is read.
    #[serde(default, skip_serializing_if = "Prefetch::is_default")]
    pub prefetch: Prefetch,
    /// Names under which other machines find it in all its networks, beside its own; in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_aliases: Vec<String>,
    /// What happens when a run ends without anybody's asking.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_no")]
    pub restart: RestartPolicy,
    /// How much of its log is kept.
    #[serde(default, skip_serializing_if = "LogLimits::is_default")]
    pub log_limits: LogLimits,
    /// Where its log is sent as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_to: Option<LogTarget>,
    /// Files of this host for a container's memory, read at each start: names in `/run/secrets`, or absolute paths in it, and absolute
    /// paths here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<(String, PathBuf)>,
    /// Sockets that a container finds, which lead to stream sockets of this host: absolute paths in it, and here. Whoever may connect to one in
    /// the container is to the host's program a client with the rights of the machine's monitor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<(String, PathBuf)>,
    /// Whether its processes on this host are locked in.
    #[serde(default, skip_serializing_if = "JailChoice::is_auto")]
    pub jail: JailChoice,
    /// What a container finds in its guest.
    #[serde(default, skip_serializing_if = "GuestSettings::is_default")]
    pub guest: GuestSettings,
    /// How it is told whether it does its work, over what its image says.
    #[serde(default, skip_serializing_if = "HealthRequest::is_default")]
    pub health: HealthRequest,
    /// It is the machine of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSettings>,
    /// It is built so that it can be saved while it runs, and copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snapshots: bool,
    /// Its first start begins from the template of an earlier one like it, where there is one, and makes one otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
    /// That template is made when its entrypoint is ready, and has it running: only machines with the same process begin from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm_ready: bool,
    /// It has nothing to do with templates, whatever its image asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Milliseconds after which it is saved and its hypervisor ends, when nobody has had to do with it for so long; who comes brings it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// So many guests like it are kept waiting for the next machines like it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pool: u16,
    /// It is nobody's: its guest waits to be taken for a machine like it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// Labels as they are written: `KEY` or `KEY=VALUE`.
pub fn labels(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        text.split_once('=')
            .map_or((text.clone(), String::new()), |(k, v)| (k.into(), v.into()))
    };
    texts.iter().map(pair).collect()
}

/// The public keys of a file as that of `authorized_keys`.
pub fn public_keys(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
}

/// Whether the machine's processes are locked in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailChoice {
    /// As far as this host can.
    #[default]
    Auto,
    /// Not at all, for debugging.
    Off,
}

impl JailChoice {
    fn is_auto(&self) -> bool {
        *self == JailChoice::Auto
    }
}

/// What the image comes to a container by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsChoice {
    /// A disk, unless the image has a kernel of its own.
    #[default]
    Auto,
    /// A disk whose blocks are fetched when they are read.
    Block,
    /// The unpacked image over virtio-fs.
    Virtiofs,
}

impl RootfsChoice {
    fn is_auto(&self) -> bool {
        *self == RootfsChoice::Auto
    }
}

/// What an image is taken for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeChoice {
    /// What its content says.
    #[default]
    Auto,
    /// A container.
    Container,
    /// A VM.
    Vm,
}

impl ModeChoice {
    fn is_auto(&self) -> bool {
        *self == ModeChoice::Auto
    }
}

impl MachineSpec {
    /// Whether it begins from a template, or makes one.
    pub fn is_warm(&self) -> bool {
        (self.warm || self.warm_ready) && !self.cold
    }

    /// A machine with every default.
    pub fn new(name: impl Into<String>, flist: impl Into<String>) -> MachineSpec {
        MachineSpec {
            version: SPEC_VERSION,
            name: name.into(),
            flist: flist.into(),
            pinned: None,
            cpus: 1,
            cpu_limit_milli: None,
            cpuset: CpuSet::default(),
            memory_bytes: DEFAULT_MEMORY,
            size_bytes: 0,
            env: Vec::new(),
            entrypoint: None,
            command: Vec::new(),
            workdir: None,
            user: None,
            hostname: None,
            networks: vec![NetworkRequest::new(DEFAULT_NETWORK)],
            publish: Vec::new(),
            publish_all: false,
            dns: Vec::new(),
            terminal: false,
            stdin: false,
            auto_remove: false,
            read_only: false,
            init: false,
            idle: false,
            kernel: None,
            accel: accel::Requested::Auto,
            hypervisor: Requested::Auto,
            stop_signal: None,
            stop_timeout_s: None,
            stores: Vec::new(),
            labels: BTreeMap::new(),
            mode: ModeChoice::Auto,
            volumes: Vec::new(),
            ssh_keys: Vec::new(),
            user_data: None,
            reinstall: false,
            legacy_cmdline: false,
            rootfs: RootfsChoice::Auto,
            prefetch: Prefetch::default(),
            network_aliases: Vec::new(),
            restart: RestartPolicy::No,
            log_limits: LogLimits::default(),
            log_to: None,
            secrets: Vec::new(),
            sockets: Vec::new(),
            jail: JailChoice::Auto,
            guest: GuestSettings::default(),
            health: HealthRequest::default(),
            pod: None,
            snapshots: false,
            warm: false,
            warm_ready: false,
            cold: false,
            pool: 0,
            standby: false,
            idle_timeout_ms: None,
        }
    }

    /// Its CPUs, as a flag has them.
    pub fn all_cpus(&self) -> Cpus {
        Cpus {
            count: self.cpus,
            limit_milli: self.cpu_limit_milli,
        }
    }

    /// Where the spec of a machine is, in the machine's folder.
    pub fn path(machine: &Path) -> PathBuf {
        machine.join("spec.json")
    }

    /// Reads the spec of the machine whose folder is `machine`. One of an earlier version is brought up to this one, in memory.
    ///
    /// # Errors
    /// When it cannot be read, or is of a newer version ([`Class::Unsupported`]).
    pub fn read(machine: &Path) -> Result<MachineSpec, Failure> {
        let path = MachineSpec::path(machine);
        let bytes = fs::read(&path).map_err(|e| FileError::io("read", &path, e))?;
        MachineSpec::from_json(&bytes).map_err(|error| match error {
            Unread::Newer(version) => versioned::newer(&path, version),
            Unread::Malformed(source) => FileError::Malformed { path, source }.into(),
            Unread::Value(failure) => failure.context(format!("cannot read {}", path.display())),
        })
    }

    /// Writes it for the machine whose folder is `machine`.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays.
    pub fn write(&self, machine: &Path) -> Result<(), FileError> {
        file::replace_json(&MachineSpec::path(machine), self)
    }

    fn from_json(bytes: &[u8]) -> Result<MachineSpec, Unread> {
        let mut json: serde_json::Value = serde_json::from_slice(bytes).map_err(Unread::Malformed)?;
        let found: versioned::Versioned = serde_json::from_slice(bytes).map_err(Unread::Malformed)?;
        match found.version {
            SPEC_VERSION => {}
            newer if newer > SPEC_VERSION => return Err(Unread::Newer(newer)),
            _ => version1::upgrade(&mut json, SPEC_VERSION).map_err(Unread::Value)?,
        }
        serde_json::from_value(json).map_err(Unread::Malformed)
    }
}

/// Why the bytes of a spec are none.
enum Unread {
    Newer(u32),
    Malformed(serde_json::Error),
    Value(Failure),
}

/// Checks a machine's name: letters, digits, `_`, `.`, `-`; starts with a letter or digit; at most 63 bytes.
///
/// # Errors
/// [`Class::Usage`] that says which rule is broken.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && name.len() <= 63 && name.chars().all(legal) {
        return Ok(());
    }
    Err(
        Failure::new(Class::Usage, format!("'{name}' cannot be a machine's name"))
            .hint("use letters, digits, '_', '.' and '-', starting with a letter or digit, at most 63 characters"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_has_its_golden_form() {
        let mut spec = MachineSpec::new("web", "/images/web.fl");
        spec.env.push(("A".into(), "b".into()));
        spec.stop_timeout_s = Some(10);
        spec.stop_signal = Some(Signal::TERM);
        let text = serde_json::to_string(&spec).unwrap();
        let golden = include_str!("../tests/golden/spec-v2.json").trim();
        assert_eq!(text, golden);
        let read = |text: &str| MachineSpec::from_json(text.as_bytes()).ok().unwrap();
        assert_eq!(read(golden), spec);
        // What version 1 wrote of the same machine.
        assert_eq!(read(include_str!("../tests/golden/spec-v1.json")), spec);
    }

    #[test]
    fn what_a_later_version_added_survives_the_file_and_is_absent_when_unused() {
        let mut spec = MachineSpec::new("vm", "/images/vm.fl");
        spec.mode = ModeChoice::Vm;
        spec.volumes = vec![VolumeRequest::parse("boot:/:size=2G", Path::new("/")).unwrap()];
        spec.ssh_keys = vec!["ssh-ed25519 AAAA me".into()];
        spec.user_data = Some("#cloud-config\n".into());
        spec.reinstall = true;
        let text = serde_json::to_string(&spec).unwrap();
        let volumes = r#""mode":"vm","volumes":[{"origin":{"volume":"boot"},"target":"/","size_bytes":2147483648}]"#;
        assert!(text.contains(volumes), "{text}");
        assert_eq!(serde_json::from_str::<MachineSpec>(&text).unwrap(), spec);
        let plain = serde_json::to_string(&MachineSpec::new("web", "/images/web.fl")).unwrap();
        assert!(!plain.contains("volumes") && !plain.contains("mode"), "{plain}");
    }

    #[test]
    fn names_that_could_be_paths_or_flags_are_refused() {
        for bad in ["", "-a", ".a", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("web-1.prod_x").unwrap();
    }
}
