//! Flags of `run` and `create` that docker has for the inside of a container, and those that mean nothing to a machine with a
//! kernel of its own: each of these is taken with a line that says why.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use zmachine_spec::guest::{Tmpfs, parse_sysctl};
use zmachine_spec::{Class, Failure, MachineSpec, Origin, Setting, VolumeRequest};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// Attach a volume, a directory or memory, as docker writes it: type=bind|volume|tmpfs,source=...,target=... and readonly
    #[arg(long, value_name = "KEY=VALUE,...")]
    mount: Vec<String>,
    /// A file system in memory; options size=64M, mode=1777, ro, exec
    #[arg(long, value_name = "/PATH[:OPTION,...]")]
    tmpfs: Vec<String>,
    /// A line of /etc/hosts; host-gateway is this host's address
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// IPv4 address in its first network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address in its first network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Search domains in place of this host's; '.' for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// The domain of its host name
    #[arg(long, value_name = "DOMAIN")]
    domainname: Option<String>,
    /// Size of /dev/shm; half of the memory when not given
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// A setting of the guest's kernel
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// A resource limit of its processes: nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// One more group of its processes, by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// A capability its processes have not, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// One of those they have all the same; where none is dropped, they have all
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// no-new-privileges: no program brings privileges with it
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Write its id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Write the process id of its monitor to this file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    #[command(flatten)]
    ignored: IgnoredArgs,
}

/// Flags of docker and podman that change nothing here.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Taken for docker's and podman's sake, and changing nothing")]
struct IgnoredArgs {
    #[arg(long, hide = true)]
    privileged: bool,
    #[arg(long, hide = true)]
    oom_kill_disable: bool,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_content_trust: Option<String>,
    #[arg(long, hide = true)]
    memory_reservation: Option<String>,
    #[arg(long, hide = true)]
    memory_swap: Option<String>,
    #[arg(long, hide = true)]
    memory_swappiness: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    #[arg(short = 'c', long, hide = true)]
    cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    pids_limit: Option<String>,
    #[arg(long, hide = true)]
    oom_score_adj: Option<String>,
    #[arg(long, hide = true)]
    blkio_weight: Option<String>,
    #[arg(long, hide = true)]
    cgroup_parent: Option<String>,
    #[arg(long, hide = true)]
    cgroupns: Option<String>,
    #[arg(long, hide = true)]
    userns: Option<String>,
    #[arg(long, hide = true)]
    ipc: Option<String>,
    #[arg(long, hide = true)]
    pid: Option<String>,
    #[arg(long, hide = true)]
    uts: Option<String>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    runtime: Option<String>,
    #[arg(long, hide = true)]
    log_driver: Option<String>,
    #[arg(long, hide = true)]
    platform: Option<String>,
    #[arg(long, hide = true)]
    detach_keys: Option<String>,
    #[arg(long, hide = true)]
    expose: Vec<String>,
    #[arg(long, hide = true)]
    annotation: Vec<String>,
    #[arg(long, hide = true)]
    volume_driver: Option<String>,
}

const OWN_KERNEL: &str = "a machine has a kernel of its own";

impl IgnoredArgs {
    /// The flags that are given, and why each changes nothing.
    fn notes(&self) -> Vec<(&'static str, &'static str)> {
        let all = self.all().into_iter().filter(|(_, is_given, _)| *is_given);
        all.map(|(flag, _, why)| (flag, why)).collect()
    }

    fn all(&self) -> Vec<(&'static str, bool, &'static str)> {
        let given = |value: &Option<String>| value.is_some();
        vec![
            (
                "--privileged",
                self.privileged,
                "a machine has a kernel of its own, and its root may do everything there",
            ),
            (
                "--oom-kill-disable",
                self.oom_kill_disable,
                "the guest's own kernel decides when memory is short",
            ),
            ("--sig-proxy", given(&self.sig_proxy), "signals are always passed on"),
            (
                "--disable-content-trust",
                given(&self.disable_content_trust),
                "images are known by their digests",
            ),
            (
                "--memory-reservation",
                given(&self.memory_reservation),
                "what a guest does not use is not taken from this host",
            ),
            (
                "--memory-swap",
                given(&self.memory_swap),
                "a guest does not swap to this host",
            ),
            (
                "--memory-swappiness",
                given(&self.memory_swappiness),
                "a guest does not swap to this host",
            ),
            ("--kernel-memory", given(&self.kernel_memory), OWN_KERNEL),
            (
                "--cpu-shares",
                given(&self.cpu_shares),
                "machines share this host's CPUs by how many they have",
            ),
            (
                "--pids-limit",
                given(&self.pids_limit),
                "processes of a guest are its own kernel's",
            ),
            ("--oom-score-adj", given(&self.oom_score_adj), OWN_KERNEL),
            ("--blkio-weight", given(&self.blkio_weight), OWN_KERNEL),
            ("--cgroup-parent", given(&self.cgroup_parent), OWN_KERNEL),
            ("--cgroupns", given(&self.cgroupns), OWN_KERNEL),
            ("--userns", given(&self.userns), OWN_KERNEL),
            ("--ipc", given(&self.ipc), OWN_KERNEL),
            ("--pid", given(&self.pid), OWN_KERNEL),
            ("--uts", given(&self.uts), OWN_KERNEL),
            (
                "--isolation",
                given(&self.isolation),
                "a machine is always a virtual machine",
            ),
            (
                "--runtime",
                given(&self.runtime),
                "a machine is always a virtual machine; --hypervisor says what runs it",
            ),
            (
                "--log-driver",
                given(&self.log_driver),
                "the log is in files of this host; --log-to sends it elsewhere",
            ),
            ("--platform", given(&self.platform), "machines run programs for x86-64"),
            ("--detach-keys", given(&self.detach_keys), "ctrl-p ctrl-q detaches"),
            (
                "--expose",
                !self.expose.is_empty(),
                "every port of a machine can be reached in its networks",
            ),
            (
                "--annotation",
                !self.annotation.is_empty(),
                "--label keeps a word of yours",
            ),
            (
                "--volume-driver",
                given(&self.volume_driver),
                "volumes are disks of this host",
            ),
        ]
    }

    /// What would be something else than what is asked for.
    fn refused(&self) -> Result<(), Failure> {
        let refuse = |flag: &str, value: &str, why: &str, hint: &str| {
            Err(Failure::new(Class::Unsupported, format!("{flag} {value}: {why}")).hint(hint))
        };
        if let Some(platform) = &self.platform
            && !["linux/amd64", "linux/x86_64", "amd64", "linux"].contains(&platform.as_str())
        {
            let hint = "take an image for linux/amd64";
            return refuse("--platform", platform, "machines run programs for x86-64", hint);
        }
        for (flag, value) in [("--ipc", &self.ipc), ("--pid", &self.pid)] {
            if let Some(value) = value.as_ref().filter(|value| value.starts_with("container:")) {
                let hint = "run both programs in one machine";
                return refuse(flag, value, "machines do not share a kernel", hint);
            }
        }
        if let Some(driver) = self
            .log_driver
            .as_ref()
            .filter(|driver| !KEPT_LOGS.contains(&driver.as_str()))
        {
            let hint = "use --log-to: syslog, tcp://, ws://, unix:// or file://";
            return refuse("--log-driver", driver, "there is no such log driver", hint);
        }
        Ok(())
    }
}

/// Log drivers that keep the log on this host, as it is here.
const KEPT_LOGS: [&str; 4] = ["json-file", "local", "k8s-file", "passthrough"];

impl GuestArgs {
    /// Puts what the flags ask for into the spec.
    pub(super) fn apply(&self, spec: &mut MachineSpec, cwd: &Path) -> Result<(), Failure> {
        self.ignored.refused()?;
        for text in &self.mount {
            match mount(text, cwd)? {
                Mounted::Volume(volume) => spec.volumes.push(volume),
                Mounted::Memory(tmpfs) => spec.guest.tmpfs.push(tmpfs),
            }
        }
        spec.guest.tmpfs.extend(all::<Tmpfs>(&self.tmpfs)?);
        spec.guest.hosts = all(&self.add_host)?;
        spec.guest.dns_search = self.dns_search.clone();
        let size = |text: &String| super::size("--shm-size", text);
        spec.guest.shm_bytes = self.shm_size.as_ref().map(size).transpose()?;
        spec.guest.sysctls = self
            .sysctl
            .iter()
            .map(|text| parse_sysctl(text))
            .collect::<Result<_, _>>()?;
        spec.guest.ulimits = all(&self.ulimit)?;
        spec.guest.groups = self.group_add.clone();
        spec.guest.cap_drop = all(&self.cap_drop)?;
        spec.guest.cap_add = all(&self.cap_add)?;
        for option in &self.security_opt {
            match option.as_str() {
                "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {
                    spec.guest.no_new_privileges = true;
                }
                // Nothing confines what a guest does in itself.
                "no-new-privileges=false"
                | "no-new-privileges:false"
                | "seccomp=unconfined"
                | "apparmor=unconfined"
                | "label=disable"
                | "label:disable" => {}
                other => {
                    let message = format!(
                        "--security-opt {other}: a machine has a kernel of its own, which knows no such profile"
                    );
                    return Err(
                        Failure::new(Class::Unsupported, message).hint("leave it out; no-new-privileges is known")
                    );
                }
            }
        }
        if let (Some(domain), hostname) = (&self.domainname, &mut spec.hostname) {
            let name = hostname.clone().unwrap_or_else(|| spec.name.clone());
            *hostname = Some(format!("{name}.{domain}"));
        }
        self.addresses(spec)
    }

    fn addresses(&self, spec: &mut MachineSpec) -> Result<(), Failure> {
        let wanted: Vec<IpAddr> = self
            .ip
            .map(IpAddr::from)
            .into_iter()
            .chain(self.ip6.map(IpAddr::from))
            .collect();
        let Some(address) = wanted.first() else { return Ok(()) };
        let Some(first) = spec.networks.first_mut() else {
            let message = format!("the address {address} is of no network: the machine is in none");
            return Err(Failure::new(Class::Usage, message)
                .hint("leave it out, or join a network")
                .about(Setting::Networks));
        };
        first.ipv4 = self.ip.or(first.ipv4);
        first.ipv6 = self.ip6.or(first.ipv6);
        Ok(())
    }

    /// What is to be said about flags that change nothing, a line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.ignored
            .notes()
            .iter()
            .map(|(flag, why)| format!("{flag} changes nothing: {why}"))
            .collect()
    }

    /// Every flag that is taken and changes nothing, and why.
    #[cfg(test)]
    pub(crate) fn ignored() -> Vec<(&'static str, &'static str)> {
        IgnoredArgs::default()
            .all()
            .into_iter()
            .map(|(flag, _, why)| (flag, why))
            .collect()
    }

    /// Where the machine's id is wanted.
    pub(crate) fn cidfile(&self) -> Option<&Path> {
        self.cidfile.as_deref()
    }

    /// Where the process id of its monitor is wanted.
    pub(crate) fn pidfile(&self) -> Option<&Path> {
        self.pidfile.as_deref()
    }
}

/// Parsed here and not by clap, which has no place for a hint.
fn all<T: FromStr<Err = Failure>>(texts: &[String]) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| text.parse()).collect()
}

enum Mounted {
    Volume(VolumeRequest),
    Memory(Tmpfs),
}

/// What `--mount` asks for.
fn mount(text: &str, cwd: &Path) -> Result<Mounted, Failure> {
    let wrong = |why: &str| {
        Failure::new(Class::Usage, format!("--mount '{text}': {why}"))
            .hint("write type=bind,source=DIR,target=/PATH or type=volume,source=NAME,target=/PATH or type=tmpfs,target=/PATH")
            .about(Setting::Volumes)
    };
    let (mut kind, mut source, mut target) = ("volume", None, None);
    let (mut read_only, mut no_copy, mut tmpfs) = (false, false, Vec::new());
    for option in text.split(',') {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let is_true = matches!(value, "" | "true" | "1");
        match key {
            "type" => kind = value,
            "source" | "src" => source = Some(value),
            "target" | "destination" | "dst" => target = Some(value),
            "readonly" | "ro" => read_only = is_true,
            "rw" => read_only = !is_true,
            "volume-nocopy" => no_copy = is_true,
            "tmpfs-size" | "tmpfs-mode" => tmpfs.push(option),
            // How the host's mounts relate to the guest's: they do not.
            "bind-propagation" | "bind-nonrecursive" | "bind-recursive" | "consistency" | "relabel"
            | "volume-driver" => {}
            other => return Err(wrong(&format!("there is no option '{other}'"))),
        }
    }
    let target = target
        .filter(|target| target.starts_with('/'))
        .ok_or_else(|| wrong("it has no absolute target"))?;
    if kind == "tmpfs" {
        let mut memory = Tmpfs::new(target);
        memory.read_only = read_only;
        tmpfs.iter().try_for_each(|option| memory.set(option))?;
        return Ok(Mounted::Memory(memory));
    }
    let origin = match (kind, source) {
        ("bind", Some(source)) => Origin::Directory(cwd.join(source)),
        ("bind", None) => return Err(wrong("a bind mount needs a source")),
        ("volume", Some(name)) => Origin::Named(name.to_owned()),
        ("volume", None) => Origin::Anonymous,
        (other, _) => return Err(wrong(&format!("there is no type '{other}'"))),
    };
    Ok(Mounted::Volume(VolumeRequest {
        origin,
        target: target.trim_end_matches('/').to_owned(),
        size_bytes: None,
        fs: None,
        read_only,
        no_copy,
    }))
}
