//! `containers/create`: from docker's body to the spec of a machine, and every refusal.
//!
//! What does no harm is taken, echoed by `inspect` and told as a warning where its user might count on it; what would mean something
//! else than was asked for is refused. A status of 404 stands for a missing image alone: clients pull it then and ask again.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use zmachine_engine::{CreateOptions, Engine};
use zmachine_image::{PullPolicy, Silent};
use zmachine_network::{DEFAULT_NETWORK, PortRange, PublishRequest};
use zmachine_plan::MIN_MEMORY;
use zmachine_spec::guest::{Tmpfs, parse_sysctl};
use zmachine_spec::health::HealthTest;
use zmachine_spec::{
    Class, Failure, HealthRequest, MachineSpec, NetworkRequest, Origin, RestartPolicy, User, VolumeRequest, check_alias,
};
use zmachine_store::catalog;

use super::body::{Create, Endpoint, HostConfig, Mount, PortBinding};
use super::{Call, body, ids, images, inspect, networks};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, json};

/// Makes a container.
///
/// # Errors
/// 404 for a missing image, 409 for a name that is taken, 400 for everything else that is wrong with the request.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let name = call
        .query
        .get("name")
        .map(|name| name.trim_start_matches('/').to_owned());
    let platform = call.query.get("platform").map(str::to_owned);
    let (wanted, document): (Create, Value) = body::read_both(call.request.into_body()).await?;
    let (id, warnings) = blocking(app, move |app| {
        if let Some(platform) = platform.as_deref().filter(|platform| !is_own_platform(platform)) {
            let message = format!("{platform}: machines of this host run programs for linux/amd64");
            return Err(Refusal::bad(message));
        }
        made(app, name, &wanted, &document)
    })
    .await?;
    Ok(json(
        StatusCode::CREATED,
        &json!({"Id": ids::container(&id), "Warnings": warnings}),
    ))
}

/// Whether programs of a platform run in machines here.
pub fn is_own_platform(platform: &str) -> bool {
    matches!(
        platform,
        "linux" | "linux/amd64" | "linux/x86_64" | "amd64" | "linux/amd64/v1" | "linux/amd64/v2"
    )
}

fn made(app: &App, name: Option<String>, wanted: &Create, document: &Value) -> Result<(String, Vec<String>), Refusal> {
    let engine = &app.engine;
    if wanted.image.is_empty() {
        return Err(Refusal::bad("No image specified"));
    }
    let name = name.unwrap_or_else(|| catalog::free_name(engine.home()));
    if let Ok(other) = engine.machine(&name)
        && other.spec.name == name
    {
        let id = ids::container(&other.id);
        return Err(Refusal::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
        )));
    }
    let image = images::find(engine, &wanted.image)?;
    let (spec, warnings) = spec_of(app, MachineSpec::new(name, image.reference()), wanted)?;
    let options = CreateOptions {
        // No file is meant by the name of an image.
        cwd: &engine.home().machines(),
        pull: PullPolicy::Never,
        installs_kernel: true,
        progress: &Silent,
    };
    let machine = engine.create(&spec, &options).map_err(not_as_missing)?;
    inspect::remember(&machine, document)?;
    Ok((machine.id, warnings))
}

/// A machine as a body asks for it, and what is taken and means nothing here.
///
/// # Errors
/// Whatever is asked for and cannot be had.
pub fn spec_of(app: &App, mut spec: MachineSpec, wanted: &Create) -> Result<(MachineSpec, Vec<String>), Refusal> {
    let mut warnings = Vec::new();
    apply(app, &mut spec, wanted, &mut warnings)?;
    Ok((spec, warnings))
}

/// Of what is missing beside the image, nobody is to think that pulling helps.
fn not_as_missing(failure: Failure) -> Refusal {
    let is_missing = failure.class == Class::NotFound;
    let refusal = Refusal::from(failure);
    match is_missing {
        true => Refusal::bad(refusal.message),
        false => refusal,
    }
}

fn apply(app: &App, spec: &mut MachineSpec, wanted: &Create, warnings: &mut Vec<String>) -> Result<(), Refusal> {
    let host = &wanted.host_config;
    refuse(host)?;
    spec.env = wanted
        .env
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    spec.command = wanted.cmd.0.clone().unwrap_or_default();
    // One empty word stands for no entrypoint at all.
    spec.entrypoint = wanted.entrypoint.0.clone().filter(|words| !words.is_empty());
    if let Some(words) = &mut spec.entrypoint {
        words.retain(|word| !word.is_empty());
    }
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    spec.workdir = text(&wanted.working_dir);
    spec.user = text(&wanted.user).map(|user| User::parse(&user));
    spec.hostname = text(&wanted.hostname);
    if let Some(domain) = text(&wanted.domainname) {
        let own = spec.hostname.clone().unwrap_or_else(|| spec.name.clone());
        spec.hostname = Some(format!("{own}.{domain}"));
    }
    spec.terminal = wanted.tty;
    spec.stdin = wanted.open_stdin;
    spec.labels = wanted.labels.clone();
    spec.stop_signal = text(&wanted.stop_signal).map(|signal| signal.parse()).transpose()?;
    spec.stop_timeout_s = wanted
        .stop_timeout
        .map(|seconds| u64::try_from(seconds).unwrap_or(u64::MAX >> 32));
    spec.auto_remove = host.auto_remove;
    spec.restart = restart(host)?;
    if spec.auto_remove && spec.restart != RestartPolicy::No {
        return Err(Refusal::bad("can't create 'AutoRemove' container with restart policy"));
    }
    spec.read_only = host.readonly_rootfs;
    spec.init = host.init.unwrap_or_default();
    spec.health = health(wanted)?;
    resources(spec, host)?;
    guest(app, spec, host, warnings)?;
    publish(spec, wanted)?;
    spec.networks = joined(&app.engine, wanted)?;
    Places { app, spec, warnings }.all(wanted)?;
    log(spec, host, warnings);
    Ok(())
}

/// What would be something else than what is asked for.
fn refuse(host: &HostConfig) -> Result<(), Refusal> {
    let of_others = |mode: &str| mode == "host" || mode.starts_with("container:");
    for (what, mode) in [
        ("PidMode", &host.pid_mode),
        ("IpcMode", &host.ipc_mode),
        ("UTSMode", &host.uts_mode),
    ] {
        if of_others(mode) {
            return Err(Refusal::bad(format!(
                "{what} {mode}: a container is a virtual machine with a kernel of its own, and sees no processes of this host or of other containers"
            )));
        }
    }
    match host.network_mode.as_str() {
        "host" => {
            return Err(Refusal::bad(
                "the network 'host' is not for containers that are virtual machines: publish the ports instead (-p)",
            ));
        }
        mode if mode.starts_with("container:") => {
            return Err(Refusal::bad(format!(
                "the network '{mode}': containers that are virtual machines do not share a network stack: put both into one network, where each finds the other by its name"
            )));
        }
        _ => {}
    }
    if !host.devices.is_empty() || !host.device_requests.is_empty() {
        return Err(Refusal::bad(
            "devices of this host cannot be given to a container that is a virtual machine",
        ));
    }
    Ok(())
}

fn restart(host: &HostConfig) -> Result<RestartPolicy, Refusal> {
    let policy = &host.restart_policy;
    Ok(match (policy.name.as_str(), policy.maximum_retry_count) {
        ("", _) => RestartPolicy::No,
        ("on-failure", count) if count > 0 => format!("on-failure:{count}").parse()?,
        (name, _) => name.parse()?,
    })
}

fn health(wanted: &Create) -> Result<HealthRequest, Refusal> {
    let Some(check) = &wanted.healthcheck else {
        return Ok(HealthRequest::default());
    };
    let test = match check.test.as_slice() {
        [] => None,
        words => Some(HealthTest::try_from(words.to_vec())?),
    };
    let ms = |ns: i64| {
        u64::try_from(ns)
            .ok()
            .filter(|ns| *ns > 0)
            .map(|ns| (ns / 1_000_000).max(1))
    };
    Ok(HealthRequest {
        test,
        interval_ms: ms(check.interval),
        timeout_ms: ms(check.timeout),
        start_period_ms: ms(check.start_period),
        start_interval_ms: ms(check.start_interval),
        retries: u32::try_from(check.retries).ok().filter(|retries| *retries > 0),
    })
}

/// Thousandths of a CPU that are asked for.
pub fn milli_cpus(nano: i64, quota: i64, period: i64) -> Option<i64> {
    match (nano, quota) {
        (nano, _) if nano > 0 => Some(nano / 1_000_000),
        (_, quota) if quota > 0 => {
            let period = if period > 0 { period } else { 100_000 };
            Some(quota.saturating_mul(1000) / period)
        }
        _ => None,
    }
}

/// Memory that is asked for: never less than what a kernel needs, as the limit is meant for the program.
pub fn memory(bytes: i64) -> Option<u64> {
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
    Some(bytes.max(MIN_MEMORY))
}

fn resources(spec: &mut MachineSpec, host: &HostConfig) -> Result<(), Refusal> {
    if let Some(bytes) = memory(host.memory) {
        spec.memory_bytes = bytes;
    }
    if let Some(milli) = milli_cpus(host.nano_cpus, host.cpu_quota, host.cpu_period) {
        let cpus: zmachine_spec::Cpus = format!("{}.{:03}", milli / 1000, milli % 1000).parse()?;
        (spec.cpus, spec.cpu_limit_milli) = (cpus.count, cpus.limit_milli);
    }
    spec.cpuset = host.cpuset_cpus.parse()?;
    if let Some(size) = host.storage_opt.get("size") {
        let parsed = zmachine_spec::bytes::parse(size);
        spec.size_bytes = parsed.map_err(|e| Refusal::bad(format!("StorageOpt size {size}: {e}")))?;
    }
    Ok(())
}

fn guest(app: &App, spec: &mut MachineSpec, host: &HostConfig, warnings: &mut Vec<String>) -> Result<(), Refusal> {
    for (target, options) in &host.tmpfs {
        let text = match options.is_empty() {
            true => target.clone(),
            false => format!("{target}:{options}"),
        };
        spec.guest.tmpfs.push(text.parse()?);
    }
    for text in &host.extra_hosts {
        spec.guest.hosts.push(text.parse()?);
    }
    for link in &host.links {
        spec.guest.hosts.push(linked(&app.engine, link)?);
    }
    spec.guest.shm_bytes = u64::try_from(host.shm_size).ok().filter(|bytes| *bytes > 0);
    spec.guest.dns_search = host
        .dns_search
        .iter()
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    for text in host.dns.iter().filter(|text| !text.is_empty()) {
        let address = text
            .parse()
            .map_err(|_| Refusal::bad(format!("Dns: '{text}' is no address")))?;
        spec.dns.push(address);
    }
    for (name, value) in &host.sysctls {
        spec.guest.sysctls.extend([parse_sysctl(&format!("{name}={value}"))?]);
    }
    for limit in &host.ulimits {
        let text = format!("{}={}:{}", limit.name, limit.soft, limit.hard);
        spec.guest.ulimits.push(text.parse()?);
    }
    spec.guest.groups = host.group_add.clone();
    spec.guest.cap_drop = host
        .cap_drop
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    spec.guest.cap_add = host.cap_add.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    spec.guest.no_new_privileges = host.security_opt.iter().any(|option| {
        matches!(
            option.as_str(),
            "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true"
        )
    });
    if host.privileged {
        warnings.push("Privileged changes nothing: the container has all capabilities in a virtual machine of its own, and nothing of this host".to_owned());
    }
    if !host.dns_options.is_empty() {
        warnings.push("DnsOptions are left out".to_owned());
    }
    Ok(())
}

/// A name for another container's address. Addresses stay from creation to removal.
fn linked(engine: &Engine, link: &str) -> Result<zmachine_spec::guest::Host, Refusal> {
    let (other, alias) = link.split_once(':').unwrap_or((link, link));
    let alias = alias.rsplit('/').next().unwrap_or(alias);
    let machine =
        ids::machine(engine, other).map_err(|refusal| Refusal::bad(format!("link {link}: {}", refusal.message)))?;
    let address = machine.state.addresses.iter().find(|address| address.is_ipv4());
    let address = address.ok_or_else(|| Refusal::bad(format!("link {link}: {other} has no address")))?;
    Ok(zmachine_spec::guest::Host {
        name: alias.to_owned(),
        address: Some(*address),
    })
}

/// Number and protocol of `80/tcp`; the protocol may be left out.
fn port(text: &str) -> Result<(PortRange, zmachine_network::Protocol), Refusal> {
    let request = PublishRequest::parse(text).map_err(|e| Refusal::bad(e.to_string()))?;
    Ok((request.guest, request.protocol))
}

fn publish(spec: &mut MachineSpec, wanted: &Create) -> Result<(), Refusal> {
    let host = &wanted.host_config;
    for (key, bindings) in &host.port_bindings {
        let (guest, protocol) = port(key)?;
        let none = PortBinding::default();
        let bindings: Vec<&PortBinding> = match bindings.as_deref() {
            None | Some([]) => vec![&none],
            Some(bindings) => bindings.iter().collect(),
        };
        for binding in bindings {
            let address = match binding.host_ip.as_str() {
                "" => None,
                ip => Some(
                    ip.parse()
                        .map_err(|_| Refusal::bad(format!("HostIp: '{ip}' is no address")))?,
                ),
            };
            let wrong = || Refusal::bad(format!("HostPort: '{}' is no port", binding.host_port));
            let host = match binding.host_port.as_str() {
                "" | "0" => None,
                text => {
                    let (first, last) = text.split_once('-').unwrap_or((text, text));
                    let first = first.parse().map_err(|_| wrong())?;
                    let last = last.parse().map_err(|_| wrong())?;
                    let range = PortRange::new(first, last).ok_or_else(wrong)?;
                    // Of several that may lead to one, the first.
                    match range.count() == guest.count() {
                        true => Some(range),
                        false => PortRange::new(first, first),
                    }
                }
            };
            spec.publish.push(PublishRequest {
                address,
                host,
                guest,
                protocol,
            });
        }
    }
    spec.publish_all = host.publish_all_ports;
    if spec.publish_all {
        for key in wanted.exposed_ports.keys() {
            let (guest, protocol) = port(key)?;
            let is_known = |known: &PublishRequest| known.guest == guest && known.protocol == protocol;
            if !spec.publish.iter().any(is_known) {
                spec.publish.push(PublishRequest {
                    address: None,
                    host: None,
                    guest,
                    protocol,
                });
            }
        }
    }
    Ok(())
}

/// The networks that a container joins: that of its mode first.
fn joined(engine: &Engine, wanted: &Create) -> Result<Vec<NetworkRequest>, Refusal> {
    let endpoints = &wanted.networking_config.endpoints_config;
    let mode = match wanted.host_config.network_mode.as_str() {
        "none" => return Ok(Vec::new()),
        // Where no mode is said, a network may be.
        "" => endpoints.keys().next().map_or(DEFAULT_NETWORK, String::as_str),
        mode => mode,
    };
    let named = |name: &str| networks::own_name(engine, name).map_err(|refusal| Refusal::bad(refusal.message));
    let first = named(mode)?;
    let mut all: BTreeMap<String, Option<&Endpoint>> = BTreeMap::new();
    for (name, endpoint) in endpoints {
        all.insert(named(name)?, endpoint.as_ref());
    }
    let of_first = all.remove(&first).flatten();
    let mut requests = vec![request(&first, of_first)?];
    for (name, endpoint) in all {
        requests.push(request(&name, endpoint)?);
    }
    Ok(requests)
}

/// What is asked of a network. In a network of our own making without root, nothing can be.
pub fn request(name: &str, endpoint: Option<&Endpoint>) -> Result<NetworkRequest, Refusal> {
    let mut request = NetworkRequest::new(name);
    let Some(endpoint) = endpoint else { return Ok(request) };
    for alias in &endpoint.aliases {
        request.aliases.push(check_alias(alias).map_err(Refusal::bad)?);
    }
    let addresses = &endpoint.ipam_config;
    let wrong = |text: &str| Refusal::bad(format!("'{text}' is no address"));
    if !addresses.ipv4_address.is_empty() {
        let text = &addresses.ipv4_address;
        request.ipv4 = Some(text.parse().map_err(|_| wrong(text))?);
    }
    if !addresses.ipv6_address.is_empty() {
        let text = &addresses.ipv6_address;
        request.ipv6 = Some(text.parse().map_err(|_| wrong(text))?);
    }
    Ok(request)
}

/// Volumes, directories and files, put into a spec.
struct Places<'a> {
    app: &'a App,
    spec: &'a mut MachineSpec,
    warnings: &'a mut Vec<String>,
}

impl Places<'_> {
    fn all(mut self, wanted: &Create) -> Result<(), Refusal> {
        let host = &wanted.host_config;
        for text in &host.binds {
            let request = VolumeRequest::parse(text, Path::new("/"))?;
            self.add(request, true)?;
        }
        for mount in &host.mounts {
            self.mount(mount)?;
        }
        for text in &host.volumes_from {
            self.of_other(text)?;
        }
        for target in wanted.volumes.keys() {
            let (text, target) = (target, target.trim_end_matches('/'));
            let is_there = self.spec.volumes.iter().any(|volume| volume.target == target)
                || self.spec.secrets.iter().any(|(name, _)| name == target)
                || self.spec.sockets.iter().any(|(name, _)| name == target)
                || self.spec.guest.tmpfs.iter().any(|tmpfs| tmpfs.target == target);
            if !is_there {
                let request = VolumeRequest::new(Origin::Anonymous, text);
                self.spec.volumes.push(request.map_err(Refusal::bad)?);
            }
        }
        Ok(())
    }

    /// Adds one. What of the host is to be shared and is a file is copied, as virtio-fs has directories alone.
    fn add(&mut self, request: VolumeRequest, makes: bool) -> Result<(), Refusal> {
        let Origin::Directory(path) = &request.origin else {
            self.spec.volumes.push(request);
            return Ok(());
        };
        // Where clients look for a server: when there is none, they mean this one.
        let is_usual = ["/var/run/docker.sock", "/run/docker.sock"]
            .iter()
            .any(|usual| path == Path::new(usual));
        let path = match &self.app.socket {
            Some(own) if is_usual && path.symlink_metadata().is_err() => own,
            _ => path,
        };
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && makes => {
                std::fs::create_dir_all(path)
                    .map_err(|e| Refusal::bad(format!("the directory {} cannot be made: {e}", path.display())))?;
                path.metadata()?
            }
            Err(_) => {
                return Err(Refusal::bad(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    path.display()
                )));
            }
        };
        if metadata.file_type().is_socket() {
            let target = zmachine_spec::secret::path(&request.target)?;
            self.spec.sockets.push((target, path.clone()));
            return Ok(());
        }
        if metadata.is_file() {
            let target = zmachine_spec::secret::path(&request.target)?;
            if !request.read_only {
                self.warnings.push(format!(
                    "{} is copied into the container at each start: what is written to it there stays there",
                    path.display()
                ));
            }
            self.spec.secrets.push((target, path.clone()));
            return Ok(());
        }
        self.spec.volumes.push(request);
        Ok(())
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), Refusal> {
        if !mount.target.starts_with('/') {
            return Err(Refusal::bad(format!(
                "invalid mount target, must be an absolute path in the container: {:?}",
                mount.target
            )));
        }
        let origin = match mount.r#type.as_str() {
            "tmpfs" => {
                let mut tmpfs = Tmpfs::new(mount.target.trim_end_matches('/'));
                tmpfs.read_only = mount.read_only;
                tmpfs.size_bytes = u64::try_from(mount.tmpfs_options.size_bytes)
                    .ok()
                    .filter(|bytes| *bytes > 0);
                tmpfs.mode = Some(mount.tmpfs_options.mode).filter(|mode| *mode > 0);
                self.spec.guest.tmpfs.push(tmpfs);
                return Ok(());
            }
            "bind" => Origin::Directory(PathBuf::from(&mount.source)),
            "volume" | "" if mount.source.is_empty() => Origin::Anonymous,
            "volume" | "" => Origin::Named(mount.source.clone()),
            other => return Err(Refusal::bad(format!("mount type {other:?} is not supported"))),
        };
        let request = VolumeRequest::new(origin, &mount.target).map_err(Refusal::bad)?;
        let is_bind = matches!(request.origin, Origin::Directory(_));
        let request = VolumeRequest {
            read_only: mount.read_only,
            no_copy: mount.volume_options.no_copy && !is_bind,
            ..request
        };
        self.add(request, mount.bind_options.create_mountpoint)
    }

    /// The volumes of another container.
    fn of_other(&mut self, text: &str) -> Result<(), Refusal> {
        let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
        let engine = &self.app.engine;
        let other = ids::machine(engine, name).map_err(|refusal| Refusal::bad(refusal.message))?;
        let own = engine.own_volumes(&other)?;
        let taken = engine.with_volumes_of(other.spec.clone(), &own);
        for mut request in taken.volumes {
            request.read_only |= mode == "ro";
            self.spec.volumes.push(request);
        }
        Ok(())
    }
}

/// Log options mean what they can: the log is in files of this host, whatever is said.
fn log(spec: &mut MachineSpec, host: &HostConfig, warnings: &mut Vec<String>) {
    let config = &host.log_config;
    for (option, own) in [("max-size", "max-size"), ("max-file", "max-files")] {
        let Some(value) = config.config.get(option) else {
            continue;
        };
        if let Err(failure) = spec.log_limits.set(&format!("{own}={value}")) {
            warnings.push(format!("{option}={value}: {failure}"));
        }
    }
    match config.r#type.as_str() {
        "" | "json-file" | "local" => {}
        "syslog" => {
            let address = config.config.get("syslog-address").map_or("syslog", String::as_str);
            match address.parse() {
                Ok(target) => spec.log_to = Some(target),
                Err(failure) => warnings.push(format!("syslog-address: {failure}")),
            }
        }
        other => warnings.push(format!("log driver {other}: the log is kept in files of this host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_asked_for_in_two_ways() {
        assert_eq!(milli_cpus(0, 0, 0), None);
        assert_eq!(milli_cpus(500_000_000, 0, 0), Some(500));
        assert_eq!(milli_cpus(0, 150_000, 100_000), Some(1500));
        assert_eq!(milli_cpus(0, 50_000, 0), Some(500));
        assert_eq!(memory(0), None);
        assert_eq!(memory(1 << 20), Some(MIN_MEMORY));
        assert_eq!(memory(1 << 30), Some(1 << 30));
    }

    #[test]
    fn what_a_machine_cannot_be_is_refused_by_name() {
        for (text, word) in [
            (r#"{"PidMode":"host"}"#, "PidMode"),
            (r#"{"IpcMode":"container:x"}"#, "IpcMode"),
            (r#"{"UTSMode":"host"}"#, "UTSMode"),
            (r#"{"NetworkMode":"host"}"#, "host"),
            (r#"{"NetworkMode":"container:x"}"#, "container:x"),
            (r#"{"Devices":[{"PathOnHost":"/dev/x"}]}"#, "devices"),
        ] {
            let host: HostConfig = serde_json::from_str(text).unwrap();
            let refusal = refuse(&host).unwrap_err();
            assert!(
                refusal.status == 400 && refusal.message.contains(word),
                "{text}: {refusal:?}"
            );
        }
        let host: HostConfig = serde_json::from_str(r#"{"IpcMode":"private","Privileged":true}"#).unwrap();
        refuse(&host).unwrap();
    }

    #[test]
    fn restart_policies_and_ports_are_read() {
        let policy =
            |text: &str| restart(&serde_json::from_str::<HostConfig>(text).unwrap()).map(|policy| policy.to_string());
        assert_eq!(policy("{}").unwrap(), "no");
        assert_eq!(
            policy(r#"{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}}"#).unwrap(),
            "on-failure:3"
        );
        assert!(policy(r#"{"RestartPolicy":{"Name":"sometimes"}}"#).is_err());
        let text = r#"{"ExposedPorts":{"53/udp":{}},"HostConfig":{"PublishAllPorts":true,
            "PortBindings":{"80/tcp":[{"HostPort":"8080"},{"HostIp":"127.0.0.1","HostPort":"0"}]}}}"#;
        let mut spec = MachineSpec::new("a", "b");
        publish(&mut spec, &serde_json::from_str(text).unwrap()).unwrap();
        let ports: Vec<String> = spec.publish.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["8080:80/tcp", "127.0.0.1::80/tcp", "53/udp"]);
        for bad in ["x", "80/sctp", "0"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
