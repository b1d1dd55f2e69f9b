//! A project as typed values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;

use crate::schema::Note;

/// A whole project: what its files say together.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// The folder that relative paths are relative to.
    pub folder: PathBuf,
    /// The files it was read from.
    pub files: Vec<PathBuf>,
    /// Its services by their names, those of profiles that are not asked for left out.
    pub services: BTreeMap<String, Service>,
    /// The services of profiles that are not asked for.
    pub disabled: BTreeMap<String, Service>,
    /// Networks by their keys.
    pub networks: BTreeMap<String, Network>,
    /// Volumes by their keys.
    pub volumes: BTreeMap<String, Volume>,
    /// Secrets by their keys.
    pub secrets: BTreeMap<String, FileSource>,
    /// Configs by their keys.
    pub configs: BTreeMap<String, FileSource>,
    /// All of it in the long form, as `config` shows it.
    pub config: Json,
    /// What changes nothing, and which variables are not set.
    pub notes: Vec<Note>,
}

/// A service.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The image, when one is named.
    pub image: Option<String>,
    /// It says how an image is built.
    pub has_build: bool,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Variables, those of files included; all have values.
    pub environment: BTreeMap<String, String>,
    /// Words of the user's.
    pub labels: BTreeMap<String, String>,
    /// How many there are.
    pub scale: u32,
    /// What must be there before it is started, by service.
    pub depends_on: BTreeMap<String, Dependency>,
    /// Networks in the order in which they are joined.
    pub networks: Vec<Attachment>,
    /// `none`, `bridge`: in place of networks.
    pub network_mode: Option<String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Secrets it may read.
    pub secrets: Vec<Grant>,
    /// Configs it may read.
    pub configs: Vec<Grant>,
    /// How its health is found out.
    pub healthcheck: Option<HealthCheck>,
    /// `no`, `always`, `on-failure[:N]`, `unless-stopped`.
    pub restart: Option<String>,
    /// `always`, `never`, `missing`.
    pub pull_policy: Option<String>,
    /// Its name on this host.
    pub container_name: Option<String>,
    /// CPUs it may use.
    pub cpus: Option<f64>,
    /// Which CPUs of this host.
    pub cpuset: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: Option<u64>,
    /// Whom it runs as.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Domain of the host name.
    pub domainname: Option<String>,
    /// Platform of the image.
    pub platform: Option<String>,
    /// Signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// Seconds after that signal.
    pub stop_grace_s: Option<u64>,
    /// A small init is process 1.
    pub init: bool,
    /// The root cannot be written.
    pub read_only: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Standard input stays open.
    pub stdin_open: bool,
    /// `up` shows its log.
    pub attach: bool,
    /// File systems in memory, as `docker run --tmpfs` has them.
    pub tmpfs: Vec<String>,
    /// Capabilities it has all the same.
    pub cap_add: Vec<String>,
    /// Capabilities it has not.
    pub cap_drop: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Lines of `/etc/hosts`, as `NAME=ADDRESS`.
    pub extra_hosts: Vec<String>,
    /// Further groups.
    pub group_add: Vec<String>,
    /// Security options.
    pub security_opt: Vec<String>,
    /// Settings of the kernel.
    pub sysctls: BTreeMap<String, String>,
    /// Limits: soft and hard.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Where its log goes.
    pub logging: Option<Logging>,
    /// Profiles that it belongs to.
    pub profiles: Vec<String>,
    /// Names that it has for other services: the service, and the name.
    pub links: Vec<(String, String)>,
    /// Keys of `x-zmachine`.
    pub machine: BTreeMap<String, Json>,
    /// Its long form.
    pub config: Json,
}

/// What a service waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// What has to be so.
    pub condition: Condition,
    /// A project without it is none.
    pub required: bool,
    /// It is made anew with what it depends on.
    pub restart: bool,
}

/// What has to be so of another service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It was started.
    Started,
    /// Its health check has passed.
    Healthy,
    /// It has ended with status 0.
    Completed,
}

/// A network that a service joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Key of the network.
    pub network: String,
    /// Further names there.
    pub aliases: Vec<String>,
    /// Address there.
    pub ipv4: Option<String>,
    /// Address there.
    pub ipv6: Option<String>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Address of this host.
    pub host_ip: Option<String>,
    /// Port or range of ports of this host.
    pub published: Option<String>,
    /// Port of the machine.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Where in the machine.
    pub target: String,
    /// It can only be read.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A directory or file of this host; it may be made when it is not there.
    Host {
        /// Absolute.
        path: PathBuf,
        /// Whether it is made.
        create: bool,
    },
    /// A volume by its key.
    Volume {
        /// The key.
        key: String,
        /// It stays empty, whatever the image has there.
        no_copy: bool,
    },
    /// A volume of the machine's own.
    Anonymous,
    /// Memory.
    Memory {
        /// The most it may hold.
        size_bytes: Option<u64>,
        /// Permissions.
        mode: Option<u32>,
    },
}

/// A secret or config in a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its key.
    pub source: String,
    /// Absolute path in the machine.
    pub target: String,
}

/// Where the content of a secret or config comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// A file of this host.
    File(PathBuf),
    /// This itself.
    Content(String),
    /// A variable.
    Environment {
        /// Its name.
        name: String,
        /// Its value, when it is set.
        value: Option<String>,
    },
    /// Somewhere else; refused when a service wants it.
    External,
}

/// How health is found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthCheck {
    /// There is none, whatever the image says.
    pub disable: bool,
    /// A command for the guest's shell, or the words of one.
    pub test: Option<HealthTest>,
    /// As durations are written: `30s`.
    pub interval: Option<String>,
    /// The same.
    pub timeout: Option<String>,
    /// The same.
    pub start_period: Option<String>,
    /// The same.
    pub start_interval: Option<String>,
    /// So many failures in a row.
    pub retries: Option<u32>,
}

/// The command of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// For the shell.
    Shell(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// Where a log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logging {
    /// docker's name of it.
    pub driver: Option<String>,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// A network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name on this host.
    pub name: String,
    /// It is not of this project: it has to be there.
    pub external: bool,
    /// Nothing goes out or in.
    pub internal: bool,
    /// IPv6, where that is said.
    pub ipv6: Option<bool>,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// docker's name of its kind.
    pub driver: Option<String>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its name on this host.
    pub name: String,
    /// It is not of this project: it has to be there.
    pub external: bool,
    /// It is this directory of the host, and no disk.
    pub bind: Option<PathBuf>,
    /// Its size, as users write it.
    pub size: Option<String>,
    /// File system.
    pub fs: Option<String>,
}
