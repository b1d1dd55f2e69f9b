//! A service as the words of a command line that asks for the same machine: so an option means here what it means for `run`, and is read
//! in one place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use zmachine_compose::{HealthCheck, HealthTest, Logging, Mount, MountSource, Port, Project, Service};
use zmachine_spec::volume::Fs;
use zmachine_spec::{Class, Failure, Origin, VolumeRequest, bytes};

use crate::{Front, resources};

/// A machine of a service.
pub struct Instance<'a> {
    /// Its project.
    pub project: &'a Project,
    /// Its service.
    pub service: &'a Service,
    /// Its name on this host.
    pub name: String,
    /// Its labels; see [`crate::labels`].
    pub labels: BTreeMap<String, String>,
    /// Files of this host with the contents of secrets and configs that have none.
    pub files: &'a BTreeMap<(Granted, String), PathBuf>,
    /// It joins its networks; else the one that needs no root.
    pub joins: bool,
    /// It publishes its ports.
    pub publishes: bool,
    /// It is a command of the user's, not one of the service's own.
    pub once: bool,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Granted {
    /// A secret.
    Secret,
    /// A config.
    Config,
}

/// A disk for a VM that does not say how large it is to be.
const VM_DISK: &str = "10G";

impl Instance<'_> {
    /// All words of `create`.
    ///
    /// # Errors
    /// When a part of it cannot be said in words, or a directory that is to be shared cannot be made.
    pub fn create_words(&self, front: &dyn Front) -> Result<Vec<OsString>, Failure> {
        let command = self.service.command.clone().unwrap_or_default();
        let mut words = self.words(front)?;
        words.extend(self.positionals(&command));
        Ok(words)
    }

    /// Image and command.
    pub fn positionals(&self, command: &[String]) -> Vec<OsString> {
        let image = self.service.image.clone().unwrap_or_default();
        let words = ["--".to_owned(), image].into_iter().chain(command.iter().cloned());
        words.map(OsString::from).collect()
    }

    /// The words before these.
    ///
    /// # Errors
    /// As [`Instance::create_words`].
    pub fn words(&self, front: &dyn Front) -> Result<Vec<OsString>, Failure> {
        let service = self.service;
        let mut words = Words(Vec::new());
        words.option("name", Some(&self.name));
        for (name, value) in &self.labels {
            words.option("label", Some(format!("{name}={value}")));
        }
        for (name, value) in &service.environment {
            words.option("env", Some(format!("{name}={value}")));
        }
        words.option("entrypoint", service.entrypoint.as_deref().map(joined).transpose()?);
        words.option("workdir", service.working_dir.as_ref());
        words.option("user", service.user.as_ref());
        words.option("hostname", service.hostname.as_ref());
        words.option("domainname", service.domainname.as_ref());
        words.option("platform", service.platform.as_ref());
        words.option("cpus", service.cpus);
        words.option("cpuset-cpus", service.cpuset.as_ref());
        // Less than what a kernel needs is not wanted: the limit is for the program.
        let memory = service.memory_bytes.map(|bytes| bytes.max(zmachine_plan::MIN_MEMORY));
        words.option("memory", memory);
        words.option("shm-size", service.shm_bytes);
        words.option("stop-signal", service.stop_signal.as_ref());
        words.option("stop-timeout", service.stop_grace_s);
        if !self.once {
            words.option("restart", service.restart.as_ref());
        }
        words.flag("init", service.init);
        words.flag("read-only", service.read_only);
        if !self.once {
            words.flag("tty", service.tty);
            words.flag("interactive", service.stdin_open);
        }
        words.each("tmpfs", &service.tmpfs);
        words.each("cap-add", &service.cap_add);
        words.each("cap-drop", &service.cap_drop);
        words.each("dns", &service.dns);
        words.each("dns-search", &service.dns_search);
        words.each("add-host", &service.extra_hosts);
        words.each("group-add", &service.group_add);
        words.each("security-opt", &service.security_opt);
        for (name, value) in &service.sysctls {
            words.option("sysctl", Some(format!("{name}={value}")));
        }
        for (name, (soft, hard)) in &service.ulimits {
            words.option("ulimit", Some(format!("{name}={soft}:{hard}")));
        }
        self.networks(&mut words);
        if self.publishes {
            for port in &service.ports {
                let host = host_port(port)?;
                let host = host.as_str();
                let text = match &port.host_ip {
                    Some(ip) if ip.contains(':') => format!("[{ip}]:{host}:{}", port.target),
                    Some(ip) => format!("{ip}:{host}:{}", port.target),
                    None if host.is_empty() => port.target.to_string(),
                    None => format!("{host}:{}", port.target),
                };
                words.option("publish", Some(format!("{text}/{}", port.protocol)));
            }
        }
        self.mounts(&mut words, front)?;
        self.grants(&mut words);
        if let Some(check) = &service.healthcheck {
            health(&mut words, check);
        }
        if let Some(logging) = &service.logging {
            log(&mut words, logging);
        }
        self.machine(&mut words, front)?;
        Ok(words.0)
    }

    fn networks(&self, words: &mut Words) {
        let service = self.service;
        if service.network_mode.as_deref() == Some("none") {
            return words.option("network", Some("none"));
        }
        if !self.joins {
            return;
        }
        let linked = self.project.services.values().flat_map(|other| &other.links);
        let linked: Vec<&String> = linked
            .filter(|(of, _)| *of == service.name)
            .map(|(_, alias)| alias)
            .collect();
        for attachment in &service.networks {
            let Some(network) = self.project.networks.get(&attachment.network) else {
                continue;
            };
            let mut options: Vec<String> = Vec::new();
            let addresses = [&attachment.ipv4, &attachment.ipv6].into_iter().flatten();
            options.extend(addresses.map(|address| format!("ip={address}")));
            if !self.once {
                let own = std::iter::once(&service.name);
                let names = own.chain(&attachment.aliases).chain(linked.iter().copied());
                options.extend(names.map(|name| format!("alias={name}")));
            }
            let name = resources::network_name(network);
            words.option(
                "network",
                Some(match options.is_empty() {
                    true => name,
                    false => format!("{name}:{}", options.join(",")),
                }),
            );
        }
    }

    fn mounts(&self, words: &mut Words, front: &dyn Front) -> Result<(), Failure> {
        for mount in &self.service.mounts {
            if let MountSource::Memory { size_bytes, mode } = &mount.source {
                let mut options: Vec<String> = Vec::new();
                options.extend(size_bytes.map(|bytes| format!("size={bytes}")));
                options.extend(mode.map(|mode| format!("mode={mode:o}")));
                options.extend(mount.read_only.then(|| "ro".to_owned()));
                words.option("tmpfs", Some(format!("{}:{}", mount.target, options.join(","))));
                continue;
            }
            words.volume(&self.volume(mount)?, front)?;
        }
        Ok(())
    }

    fn volume(&self, mount: &Mount) -> Result<VolumeRequest, Failure> {
        let mut size_bytes = None;
        let mut fs = None;
        let mut no_copy = false;
        let origin = match &mount.source {
            MountSource::Host { path, create } => {
                if *create && !path.exists() {
                    std::fs::create_dir_all(path).map_err(|e| {
                        Failure::from(e).context(format!("the directory {} cannot be made", path.display()))
                    })?;
                }
                Origin::Directory(path.clone())
            }
            MountSource::Volume {
                key,
                no_copy: stays_empty,
            } => {
                no_copy = *stays_empty;
                match self.project.volumes.get(key) {
                    Some(volume) => {
                        size_bytes = volume.size.as_deref().map(size).transpose()?;
                        fs = volume.fs.as_deref().map(file_system).transpose()?;
                        match &volume.bind {
                            Some(directory) => Origin::Directory(directory.clone()),
                            None => Origin::Named(volume.name.clone()),
                        }
                    }
                    None => Origin::Named(key.clone()),
                }
            }
            MountSource::Anonymous | MountSource::Memory { .. } => Origin::Anonymous,
        };
        let request = VolumeRequest::new(origin, &mount.target).map_err(wrong_volume)?;
        Ok(VolumeRequest {
            size_bytes,
            fs,
            read_only: mount.read_only,
            no_copy,
            ..request
        })
    }

    fn grants(&self, words: &mut Words) {
        let secrets = self.service.secrets.iter().map(|grant| (Granted::Secret, grant));
        let configs = self.service.configs.iter().map(|grant| (Granted::Config, grant));
        for (kind, grant) in secrets.chain(configs) {
            let Some(path) = self.files.get(&(kind, grant.source.clone())) else {
                continue;
            };
            let name = grant
                .target
                .strip_prefix("/run/secrets/")
                .filter(|name| !name.contains('/'));
            let name = name.unwrap_or(&grant.target);
            words.option("secret", Some(format!("{name}={}", path.display())));
        }
    }

    /// What `x-zmachine` says: keys of machine files, `kind`, and `disk-size`, the size of a VM's boot disk.
    fn machine(&self, words: &mut Words, front: &dyn Front) -> Result<(), Failure> {
        let mut keys = Map::new();
        let mut disk = None;
        let mut is_vm = false;
        for (key, value) in &self.service.machine {
            let key = key.replace('_', "-");
            match (key.as_str(), value) {
                ("kind", Json::String(kind)) => {
                    is_vm = kind == "vm";
                    keys.insert("mode".to_owned(), value.clone());
                }
                ("disk-size", value) => disk = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
                _ => drop(keys.insert(key, value.clone())),
            }
        }
        let has_disk = self.service.mounts.iter().any(|mount| mount.target == "/");
        if is_vm && !has_disk {
            let origin = Origin::Named(disk_name(&self.name));
            let request = VolumeRequest::new(origin, "/").map_err(wrong_volume)?;
            let size_bytes = Some(size(disk.as_deref().unwrap_or(VM_DISK))?);
            words.volume(&VolumeRequest { size_bytes, ..request }, front)?;
        }
        let path = self
            .project
            .files
            .first()
            .map_or(Path::new("compose.yaml"), PathBuf::as_path);
        let of_keys = front.keys(path, &keys).map_err(|mut failure| {
            failure.message = format!("{} (x-zmachine of service '{}')", failure.message, self.service.name);
            failure
        })?;
        words.0.extend(of_keys);
        Ok(())
    }
}

/// The port of this host that leads to one of a machine: of several that may, one that is free now.
fn host_port(port: &Port) -> Result<String, Failure> {
    let published = port.published.clone().unwrap_or_default();
    let Some((first, last)) = published.split_once('-') else {
        return Ok(published);
    };
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        return Ok(published);
    };
    let address = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
    let address = address.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let is_free = |number: &u16| match port.protocol.as_str() {
        "udp" => std::net::UdpSocket::bind((address, *number)).is_ok(),
        _ => std::net::TcpListener::bind((address, *number)).is_ok(),
    };
    (first..=last)
        .find(is_free)
        .map(|number| number.to_string())
        .ok_or_else(|| {
            Failure::new(
                Class::Conflict,
                format!("ports: none of {published} is free on this host"),
            )
        })
}

/// The boot disk of a VM.
pub fn disk_name(machine: &str) -> String {
    format!("{machine}_disk")
}

struct Words(Vec<OsString>);

impl Words {
    fn option(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0.push(format!("--{flag}={}", value.to_string()).into());
        }
    }

    fn each(&mut self, flag: &str, values: &[String]) {
        values.iter().for_each(|value| self.option(flag, Some(value)));
    }

    fn flag(&mut self, flag: &str, is_set: bool) {
        if is_set {
            self.0.push(format!("--{flag}").into());
        }
    }

    /// A path may hold what no text of the flag can.
    fn volume(&mut self, request: &VolumeRequest, front: &dyn Front) -> Result<(), Failure> {
        request.check().map_err(wrong_volume)?;
        self.0.push(front.volume(request)?);
        Ok(())
    }
}

fn wrong_volume(why: String) -> Failure {
    Failure::new(Class::Usage, format!("volumes: {why}"))
}

fn size(text: &str) -> Result<u64, Failure> {
    bytes::parse(text).map_err(|e| {
        Failure::from_error(Class::Usage, &e)
            .context("x-zmachine: size")
            .hint(e.hint())
    })
}

fn file_system(text: &str) -> Result<Fs, Failure> {
    text.parse()
        .map_err(|why: String| Failure::new(Class::Usage, format!("x-zmachine: fs: {why}")))
}

fn joined(words: &[String]) -> Result<String, Failure> {
    shlex::try_join(words.iter().map(String::as_str))
        .map_err(|_| Failure::new(Class::Usage, "a command holds a NUL byte"))
}

fn health(words: &mut Words, check: &HealthCheck) {
    if check.disable {
        return words.flag("no-healthcheck", true);
    }
    // Docker's list, which no text for a shell is taken for.
    let test = match &check.test {
        Some(HealthTest::Shell(text)) => Some(vec!["CMD-SHELL".to_owned(), text.clone()]),
        Some(HealthTest::Words(test)) => Some([vec!["CMD".to_owned()], test.clone()].concat()),
        None => None,
    };
    words.option("health-cmd", test.map(|test| Json::from(test).to_string()));
    words.option("health-interval", check.interval.as_ref());
    words.option("health-timeout", check.timeout.as_ref());
    words.option("health-start-period", check.start_period.as_ref());
    words.option("health-start-interval", check.start_interval.as_ref());
    words.option("health-retries", check.retries);
}

fn log(words: &mut Words, logging: &Logging) {
    let option = |name: &str| logging.options.get(name);
    match logging.driver.as_deref() {
        Some("syslog") => words.option(
            "log-to",
            Some(option("syslog-address").map_or("syslog", String::as_str)),
        ),
        None | Some("json-file" | "local" | "none") => {
            words.option("log-opt", option("max-size").map(|size| format!("max-size={size}")));
            words.option("log-opt", option("max-file").map(|files| format!("max-files={files}")));
        }
        Some(other) => words.option("log-driver", Some(other)),
    }
}
