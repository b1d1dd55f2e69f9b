//! What machines of a project need before they are made: networks, files, volumes for one machine each.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zmachine_compose::{FileSource, MountSource, Network, Project, Service};
use zmachine_engine::Engine;
use zmachine_network::{Ipv6Choice, NetworkSpec, Networks, can_make_networks};
use zmachine_spec::{Class, Failure};

use crate::Front;
use crate::words::Granted;

/// Where the contents of a project's secrets and configs are that have no file of their own.
pub fn files_of(engine: &Engine, project: &str) -> PathBuf {
    engine.home().data().join("compose").join(project)
}

/// Names of networks are in lower case here.
pub fn network_name(network: &Network) -> String {
    network.name.to_ascii_lowercase()
}

fn networks_of(engine: &Engine) -> Result<Networks, Failure> {
    Ok(Networks::open(engine.home().data())?.with_jail())
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

/// The keys of the networks that these services join.
pub fn used<'a>(services: impl Iterator<Item = &'a Service>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = services
        .flat_map(|service| &service.networks)
        .map(|attachment| attachment.network.as_str())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Makes the networks that are used and not there. Whether machines join them: one machine alone needs none, where none can be made.
///
/// # Errors
/// When an external one is not there, or one cannot be made.
pub fn networks(
    engine: &Engine,
    front: &dyn Front,
    project: &Project,
    used: &[&str],
    machines: u32,
) -> Result<bool, Failure> {
    if !can_make_networks() && machines <= 1 && used == ["default"] {
        return Ok(false);
    }
    let there: Vec<String> = engine.network_list()?.into_iter().map(|network| network.name).collect();
    let networks = networks_of(engine)?;
    for network in used.iter().filter_map(|key| project.networks.get(*key)) {
        let name = network_name(network);
        if there.contains(&name) {
            continue;
        }
        if network.external {
            let message = format!("there is no network '{name}', and the project does not make it: it is external");
            return Err(Failure::new(Class::NotFound, message).hint(format!("make it: zmachine network create {name}")));
        }
        if !can_make_networks() {
            let action = format!("the network '{name}'");
            return Err(zmachine_network::NetworkError::NeedsRoot { action }.into());
        }
        block_on(networks.create(&spec(name.clone(), network)?))??;
        front.done(&format!("Network {name}"), "created");
    }
    Ok(true)
}

fn spec(name: String, network: &Network) -> Result<NetworkSpec, Failure> {
    let mut ipv4 = None;
    let mut ipv6 = match network.ipv6 {
        Some(false) => Ipv6Choice::Without,
        _ => Ipv6Choice::Derived,
    };
    for subnet in &network.subnets {
        match (subnet.parse(), subnet.parse()) {
            (Ok(subnet), _) => ipv4 = Some(subnet),
            (_, Ok(subnet)) => ipv6 = Ipv6Choice::Subnet(subnet),
            _ => {
                let message = format!("the network '{name}': '{subnet}' is no subnet");
                return Err(Failure::new(Class::Usage, message).hint("write it as 10.20.30.0/24"));
            }
        }
    }
    Ok(NetworkSpec {
        name,
        ipv4,
        ipv6,
        internal: network.internal,
        mtu: network.mtu,
        dns: Vec::new(),
        labels: Default::default(),
    })
}

/// Removes the networks of a project that nobody is in any more.
///
/// # Errors
/// When one cannot be removed that nobody is in.
pub fn remove_networks(engine: &Engine, front: &dyn Front, names: &[String]) -> Result<(), Failure> {
    // Sweeps addresses of machines that are gone.
    engine.reconcile()?;
    let networks = networks_of(engine)?;
    for name in names {
        match block_on(networks.remove(name))? {
            Ok(()) => front.done(&format!("Network {name}"), "removed"),
            Err(error) => {
                let failure = engine.with_names(error.into());
                match failure.class {
                    Class::NotFound => {}
                    Class::Conflict => front.warn(&format!("the network '{name}' stays: {failure}")),
                    _ => return Err(failure),
                }
            }
        }
    }
    Ok(())
}

/// External volumes have to be there, and a volume is a disk: what writes to it has it alone.
///
/// # Errors
/// Which volume is not there, or whose it is to be.
pub fn check_volumes(engine: &Engine, project: &Project, services: &[&Service]) -> Result<(), Failure> {
    let mut users: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
    for service in services {
        for mount in &service.mounts {
            if let MountSource::Volume { key, .. } = &mount.source {
                let entry = users.entry(key).or_default();
                entry.extend((0..service.scale).map(|_| (service.name.as_str(), mount.read_only)));
            }
        }
    }
    for (key, users) in users {
        let Some(volume) = project.volumes.get(key).filter(|volume| volume.bind.is_none()) else {
            continue;
        };
        if volume.external {
            engine.volume(&volume.name).map_err(|failure| match failure.class {
                Class::NotFound => failure
                    .context(format!(
                        "the project does not make the volume '{}': it is external",
                        volume.name
                    ))
                    .hint(format!("make it: zmachine volume create {}", volume.name)),
                _ => failure,
            })?;
        }
        if users.len() > 1 && users.iter().any(|(_, read_only)| !read_only) {
            let mut names: Vec<&str> = users.iter().map(|(name, _)| *name).collect();
            names.dedup();
            let who = match names.as_slice() {
                [one] => format!("{} machines of the service '{one}'", users.len()),
                several => format!("the services {}", several.join(", ")),
            };
            let message =
                format!("the volume '{key}' is for {who}, and a volume is the disk of one machine that writes");
            let hint = format!("share a directory in its place: ./{key}:/PATH; or make all of them read-only");
            return Err(Failure::new(Class::Conflict, message).hint(hint));
        }
    }
    Ok(())
}

/// The files of all secrets and configs that these services have. Those that are no file of the user's are written below the home, for as
/// long as the project is there: they are read again whenever a machine starts.
///
/// # Errors
/// When a file or a variable is missing, or one cannot be written.
pub fn files(
    engine: &Engine,
    project: &Project,
    services: &[&Service],
) -> Result<BTreeMap<(Granted, String), PathBuf>, Failure> {
    let mut all = BTreeMap::new();
    let folder = files_of(engine, &project.name);
    for service in services {
        for (kind, grants, defined, word) in [
            (Granted::Secret, &service.secrets, &project.secrets, "secret"),
            (Granted::Config, &service.configs, &project.configs, "config"),
        ] {
            for grant in grants {
                let Some(source) = defined.get(&grant.source) else {
                    continue;
                };
                let path = match source {
                    FileSource::File(path) if path.is_file() => path.clone(),
                    FileSource::File(path) => {
                        let message = format!("the {word} '{}': there is no file {}", grant.source, path.display());
                        return Err(Failure::new(Class::NotFound, message));
                    }
                    FileSource::Content(content) => write(&folder, word, &grant.source, content)?,
                    FileSource::Environment { value: Some(value), .. } => write(&folder, word, &grant.source, value)?,
                    FileSource::Environment { name, value: None } => {
                        let message = format!("the {word} '{}': the variable {name} is not set", grant.source);
                        return Err(Failure::new(Class::Usage, message).hint("set it in the environment or in .env"));
                    }
                    FileSource::External => continue,
                };
                all.insert((kind, grant.source.clone()), path);
            }
        }
    }
    Ok(all)
}

fn write(folder: &Path, word: &str, name: &str, content: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(format!("{word}-{name}"));
    let failed = |e: std::io::Error| Failure::from(e).context(format!("{} cannot be written", path.display()));
    // Whoever may not read the state may not read these.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed)?;
    if std::fs::read(&path).is_ok_and(|there| there == content.as_bytes()) {
        return Ok(path);
    }
    let next = folder.join(format!(".{word}-{name}.new"));
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next);
    opened
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(failed)?;
    std::fs::rename(&next, &path).map_err(failed)?;
    Ok(path)
}

/// What makes a machine of this service another one: all of it but what says how many there are, when it starts and where its image comes
/// from, and the contents of what is written for it.
pub fn hash(project: &Project, service: &Service) -> String {
    let mut config = service.config.clone();
    if let Some(config) = config.as_object_mut() {
        for key in [
            "scale",
            "depends_on",
            "profiles",
            "pull_policy",
            "build",
            "develop",
            "attach",
        ] {
            config.remove(key);
        }
        if let Some(deploy) = config.get_mut("deploy").and_then(|deploy| deploy.as_object_mut()) {
            deploy.remove("replicas");
        }
    }
    let contents = |grants: &[zmachine_compose::Grant], defined: &BTreeMap<String, FileSource>| -> Vec<String> {
        let content = |source: &FileSource| match source {
            FileSource::File(path) => path.display().to_string(),
            FileSource::Content(content) => content.clone(),
            FileSource::Environment { value, .. } => value.clone().unwrap_or_default(),
            FileSource::External => String::new(),
        };
        grants
            .iter()
            .filter_map(|grant| defined.get(&grant.source))
            .map(content)
            .collect()
    };
    let volumes: Vec<String> = service
        .mounts
        .iter()
        .filter_map(|mount| match &mount.source {
            MountSource::Volume { key, .. } => project.volumes.get(key),
            _ => None,
        })
        .map(|volume| match &volume.bind {
            Some(directory) => directory.display().to_string(),
            None => volume.name.clone(),
        })
        .collect();
    let networks: Vec<String> = used(std::iter::once(service))
        .into_iter()
        .filter_map(|key| project.networks.get(key))
        .map(network_name)
        .collect();
    let all = serde_json::json!([
        config,
        contents(&service.secrets, &project.secrets),
        contents(&service.configs, &project.configs),
        volumes,
        networks,
    ]);
    zmachine_compose::digest(all.to_string().as_bytes())
}
