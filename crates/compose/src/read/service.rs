//! One service.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::error::Result;
use crate::model::{
    Attachment, Condition, Dependency, Grant, HealthCheck, HealthTest, Logging, Mount, MountSource, Port, Service,
};
use crate::node::{Node, Value, join};

/// A service and the path to it.
struct Reader<'a> {
    node: &'a Node,
    path: &'a str,
}

impl<'a> Reader<'a> {
    fn node(&self, key: &str) -> Option<&'a Node> {
        self.node.get(key).filter(|node| !node.is_null())
    }

    fn path(&self, key: &str) -> String {
        join(self.path, key)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.node(key).and_then(Node::scalar)
    }

    fn is_true(&self, key: &str) -> bool {
        self.node(key).is_some_and(|node| node.value == Value::Bool(true))
    }

    fn texts(&self, key: &str) -> Vec<String> {
        match self.node(key).map(|node| &node.value) {
            Some(Value::List(items)) => items.iter().filter_map(Node::scalar).collect(),
            _ => Vec::new(),
        }
    }

    fn words(&self, key: &str) -> Option<Vec<String>> {
        self.node(key).map(|_| self.texts(key))
    }

    /// A mapping of texts; what has no value is left out.
    fn pairs(&self, key: &str) -> BTreeMap<String, String> {
        match self.node(key).map(|node| &node.value) {
            Some(Value::Map(entries)) => entries
                .iter()
                .filter_map(|(name, node)| Some((name.clone(), node.scalar()?)))
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    fn bytes(&self, key: &str) -> Option<u64> {
        self.text(key).and_then(|text| text.parse().ok())
    }

    fn map(&self, key: &str) -> Result<&'a [(String, Node)]> {
        match self.node(key) {
            Some(node) => node.map(&self.path(key)).map(Vec::as_slice),
            None => Ok(&[]),
        }
    }

    fn list(&self, key: &str) -> Result<&'a [Node]> {
        match self.node(key) {
            Some(node) => node.list(&self.path(key)),
            None => Ok(&[]),
        }
    }

    /// A part of it.
    fn part<T>(&self, key: &str, read: impl FnOnce(Reader<'_>) -> Result<T>) -> Result<Option<T>> {
        let Some(node) = self.node(key) else { return Ok(None) };
        let path = self.path(key);
        read(Reader { node, path: &path }).map(Some)
    }
}

pub(super) fn service(node: &Node, path: &str) -> Result<Service> {
    let reader = Reader { node, path };
    let mut service = Service {
        image: reader.text("image").filter(|image| !image.is_empty()),
        has_build: reader.node("build").is_some(),
        command: reader.words("command"),
        entrypoint: reader.words("entrypoint"),
        environment: reader.pairs("environment"),
        labels: reader.pairs("labels"),
        scale: scale(&reader)?,
        depends_on: depends_on(&reader)?,
        networks: networks(&reader)?,
        network_mode: network_mode(&reader)?,
        ports: ports(&reader)?,
        mounts: mounts(&reader)?,
        secrets: grants(&reader, "secrets", "/run/secrets")?,
        configs: grants(&reader, "configs", "")?,
        healthcheck: reader.part("healthcheck", healthcheck)?,
        restart: restart(&reader)?,
        pull_policy: pull_policy(&reader)?,
        container_name: reader.text("container_name"),
        cpus: limit(&reader, "cpus")
            .map(|node| node.number(path))
            .transpose()?
            .or(cpus(&reader)?),
        cpuset: reader.text("cpuset"),
        memory_bytes: limit(&reader, "memory")
            .and_then(Node::scalar)
            .and_then(|text| text.parse().ok())
            .or(reader.bytes("mem_limit")),
        shm_bytes: reader.bytes("shm_size"),
        user: reader.text("user"),
        working_dir: reader.text("working_dir"),
        hostname: reader.text("hostname"),
        domainname: reader.text("domainname"),
        platform: reader.text("platform"),
        stop_signal: reader.text("stop_signal"),
        stop_grace_s: grace(&reader)?,
        init: reader.is_true("init"),
        read_only: reader.is_true("read_only"),
        tty: reader.is_true("tty"),
        stdin_open: reader.is_true("stdin_open"),
        attach: reader
            .node("attach")
            .is_none_or(|node| node.value != Value::Bool(false)),
        tmpfs: reader.texts("tmpfs"),
        cap_add: reader.texts("cap_add"),
        cap_drop: reader.texts("cap_drop"),
        dns: reader.texts("dns"),
        dns_search: reader.texts("dns_search"),
        extra_hosts: reader.texts("extra_hosts"),
        group_add: reader.texts("group_add"),
        security_opt: reader.texts("security_opt"),
        sysctls: reader.pairs("sysctls"),
        ulimits: ulimits(&reader)?,
        logging: reader.part("logging", |logging| {
            Ok(Logging {
                driver: logging.text("driver"),
                options: logging.pairs("options"),
            })
        })?,
        profiles: reader.texts("profiles"),
        machine: machine(&reader)?,
        config: node.json(),
        ..Service::default()
    };
    links(&reader, &mut service);
    Ok(service)
}

fn scale(reader: &Reader<'_>) -> Result<u32> {
    let replicas = reader.node("deploy").and_then(|deploy| deploy.get("replicas"));
    let Some(node) = reader.node("scale").or(replicas.filter(|node| !node.is_null())) else {
        return Ok(1);
    };
    let path = reader.path("scale");
    u32::try_from(node.integer(&path)?).map_err(|_| node.error(&path, "there cannot be that many"))
}

fn depends_on(reader: &Reader<'_>) -> Result<BTreeMap<String, Dependency>> {
    let mut all = BTreeMap::new();
    for (name, node) in reader.map("depends_on")? {
        let path = join(&reader.path("depends_on"), name);
        let condition = match node.get("condition").and_then(Node::scalar).as_deref() {
            None | Some("service_started") => Condition::Started,
            Some("service_healthy") => Condition::Healthy,
            Some("service_completed_successfully") => Condition::Completed,
            Some(other) => {
                return Err(node
                    .error(&path, format!("there is no condition '{other}'"))
                    .hint("the conditions are service_started, service_healthy and service_completed_successfully"));
            }
        };
        let part = Reader { node, path: &path };
        let dependency = Dependency {
            condition,
            required: part
                .node("required")
                .is_none_or(|node| node.value != Value::Bool(false)),
            restart: part.is_true("restart"),
        };
        all.insert(name.clone(), dependency);
    }
    Ok(all)
}

fn networks(reader: &Reader<'_>) -> Result<Vec<Attachment>> {
    if reader.node("network_mode").is_some() {
        return Ok(Vec::new());
    }
    let mut all: Vec<(f64, Attachment)> = Vec::new();
    for (name, node) in reader.map("networks")? {
        let path = join(&reader.path("networks"), name);
        let part = Reader { node, path: &path };
        let priority = part.node("priority").map(|node| node.number(&path)).transpose()?;
        all.push((
            priority.unwrap_or_default(),
            Attachment {
                network: name.clone(),
                aliases: part.texts("aliases"),
                ipv4: part.text("ipv4_address"),
                ipv6: part.text("ipv6_address"),
            },
        ));
    }
    // By priority, and by name where that is the same: a mapping has no order.
    all.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.network.cmp(&other.network)));
    Ok(all.into_iter().map(|(_, attachment)| attachment).collect())
}

fn network_mode(reader: &Reader<'_>) -> Result<Option<String>> {
    let Some(node) = reader.node("network_mode") else {
        return Ok(None);
    };
    let path = reader.path("network_mode");
    match node.text(&path)?.as_str() {
        mode @ ("none" | "bridge" | "default") => Ok(Some(mode.to_owned())),
        other => Err(node
            .error(
                &path,
                format!("a machine cannot have the network of '{other}': it has a kernel of its own"),
            )
            .hint("publish ports with ports:, and reach this host as host-gateway (extra_hosts)")),
    }
}

fn ports(reader: &Reader<'_>) -> Result<Vec<Port>> {
    let mut all = Vec::new();
    for (index, node) in reader.list("ports")?.iter().enumerate() {
        let path = format!("{}[{index}]", reader.path("ports"));
        let part = Reader { node, path: &path };
        let target = node.get("target").map(|target| target.integer(&path)).transpose()?;
        all.push(Port {
            host_ip: part.text("host_ip").filter(|ip| !ip.is_empty()),
            published: part.text("published").filter(|port| !port.is_empty()),
            target: target.and_then(|target| u16::try_from(target).ok()).unwrap_or_default(),
            protocol: part.text("protocol").unwrap_or_else(|| "tcp".to_owned()),
        });
    }
    Ok(all)
}

fn mounts(reader: &Reader<'_>) -> Result<Vec<Mount>> {
    let mut all = Vec::new();
    for (index, node) in reader.list("volumes")?.iter().enumerate() {
        let path = format!("{}[{index}]", reader.path("volumes"));
        let part = Reader { node, path: &path };
        let source = match (part.text("type").as_deref(), part.text("source")) {
            (Some("bind"), Some(source)) => MountSource::Host {
                path: source.into(),
                create: part.part("bind", |bind| Ok(bind.is_true("create_host_path")))? == Some(true),
            },
            (Some("volume"), Some(key)) => MountSource::Volume {
                key,
                no_copy: part.part("volume", |volume| Ok(volume.is_true("nocopy")))? == Some(true),
            },
            (Some("volume"), None) => MountSource::Anonymous,
            (Some("tmpfs"), _) => {
                let memory = part.part("tmpfs", |tmpfs| {
                    let mode = match tmpfs.node("mode") {
                        Some(node) => u32::try_from(node.integer(&path)?).ok(),
                        None => None,
                    };
                    Ok((tmpfs.bytes("size"), mode))
                })?;
                let (size_bytes, mode) = memory.unwrap_or_default();
                MountSource::Memory { size_bytes, mode }
            }
            (Some(other), _) => {
                return Err(node
                    .error(&path, format!("'{other}' cannot be mounted"))
                    .hint("the types are bind, volume and tmpfs"));
            }
            (None, _) => return Err(node.error(&path, "it has no type")),
        };
        all.push(Mount {
            source,
            target: part.text("target").unwrap_or_default(),
            read_only: part.is_true("read_only"),
        });
    }
    Ok(all)
}

fn grants(reader: &Reader<'_>, key: &str, folder: &str) -> Result<Vec<Grant>> {
    let mut all = Vec::new();
    for node in reader.list(key)? {
        let source = node.get("source").and_then(Node::scalar).unwrap_or_default();
        let target = node
            .get("target")
            .and_then(Node::scalar)
            .unwrap_or_else(|| source.clone());
        let target = match target.starts_with('/') {
            true => target,
            false => format!("{folder}/{target}"),
        };
        all.push(Grant { source, target });
    }
    Ok(all)
}

fn healthcheck(reader: Reader<'_>) -> Result<HealthCheck> {
    let words = reader.texts("test");
    let mut check = HealthCheck {
        disable: reader.is_true("disable"),
        interval: reader.text("interval"),
        timeout: reader.text("timeout"),
        start_period: reader.text("start_period"),
        start_interval: reader.text("start_interval"),
        retries: match reader.node("retries") {
            Some(node) => u32::try_from(node.integer(reader.path)?).ok(),
            None => None,
        },
        test: None,
    };
    let Some((first, rest)) = words.split_first() else {
        return Ok(check);
    };
    match first.as_str() {
        "NONE" => check.disable = true,
        "CMD-SHELL" => check.test = Some(HealthTest::Shell(rest.join(" "))),
        "CMD" if !rest.is_empty() => check.test = Some(HealthTest::Words(rest.to_vec())),
        _ => {
            return Err(reader
                .node
                .error(&reader.path("test"), format!("a test does not begin with '{first}'"))
                .hint("it is a text for the shell, or a list that begins with CMD, CMD-SHELL or NONE"));
        }
    }
    Ok(check)
}

/// `restart`, or what `deploy` says.
fn restart(reader: &Reader<'_>) -> Result<Option<String>> {
    if let Some(restart) = reader.text("restart") {
        return Ok(Some(restart));
    }
    let Some(policy) = reader.node("deploy").and_then(|deploy| deploy.get("restart_policy")) else {
        return Ok(None);
    };
    let attempts = policy.get("max_attempts").and_then(Node::scalar);
    match policy.get("condition").and_then(Node::scalar).as_deref() {
        None | Some("any") => Ok(Some("always".to_owned())),
        Some("on-failure") => Ok(Some(match attempts {
            Some(attempts) => format!("on-failure:{attempts}"),
            None => "on-failure".to_owned(),
        })),
        Some("none") => Ok(None),
        Some(other) => Err(policy
            .error(
                &reader.path("deploy.restart_policy.condition"),
                format!("there is no condition '{other}'"),
            )
            .hint("the conditions are none, on-failure and any")),
    }
}

fn pull_policy(reader: &Reader<'_>) -> Result<Option<String>> {
    let Some(node) = reader.node("pull_policy") else {
        return Ok(None);
    };
    let path = reader.path("pull_policy");
    match node.text(&path)?.as_str() {
        policy @ ("always" | "never" | "missing") => Ok(Some(policy.to_owned())),
        "build" => Ok(None),
        policy if ["refresh", "daily", "weekly"].contains(&policy) || policy.starts_with("every_") => {
            Ok(Some("missing".to_owned()))
        }
        other => Err(node
            .error(&path, format!("there is no policy '{other}'"))
            .hint("the policies are always, never, missing and build")),
    }
}

fn limit<'a>(reader: &Reader<'a>, what: &str) -> Option<&'a Node> {
    let limits = reader.node("deploy")?.get("resources")?.get("limits")?;
    limits.get(what).filter(|node| !node.is_null())
}

fn cpus(reader: &Reader<'_>) -> Result<Option<f64>> {
    reader
        .node("cpus")
        .map(|node| node.number(&reader.path("cpus")))
        .transpose()
}

fn grace(reader: &Reader<'_>) -> Result<Option<u64>> {
    let Some(node) = reader.node("stop_grace_period") else {
        return Ok(None);
    };
    let path = reader.path("stop_grace_period");
    let text = node.text(&path)?;
    match seconds(&text) {
        Some(seconds) => Ok(Some(seconds.ceil() as u64)),
        None => Err(node
            .error(&path, format!("'{text}' is no duration"))
            .hint("write it as 30s or 1m30s")),
    }
}

/// A duration as Go writes it.
fn seconds(text: &str) -> Option<f64> {
    let mut rest = text.trim();
    let mut all = 0.0;
    if let Ok(number) = rest.parse::<f64>() {
        return Some(number);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let units = &rest[end..];
        let unit = units.find(|c: char| c.is_ascii_digit()).unwrap_or(units.len());
        all += number
            * match &units[..unit] {
                "us" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = &units[unit..];
    }
    Some(all)
}

fn ulimits(reader: &Reader<'_>) -> Result<BTreeMap<String, (i64, i64)>> {
    let mut all = BTreeMap::new();
    for (name, node) in reader.map("ulimits")? {
        let path = join(&reader.path("ulimits"), name);
        let limits = match &node.value {
            Value::Map(_) => {
                let part = |key: &str| match node.get(key) {
                    Some(value) => value.integer(&path),
                    None => Err(node.error(&path, format!("it has no {key} limit"))),
                };
                (part("soft")?, part("hard")?)
            }
            _ => {
                let both = node.integer(&path)?;
                (both, both)
            }
        };
        all.insert(name.clone(), limits);
    }
    Ok(all)
}

/// The keys of `x-zmachine`.
fn machine(reader: &Reader<'_>) -> Result<BTreeMap<String, Json>> {
    let entries = reader.map("x-zmachine")?;
    Ok(entries.iter().map(|(key, node)| (key.clone(), node.json())).collect())
}

/// Names for other services.
fn links(reader: &Reader<'_>, service: &mut Service) {
    for link in reader.texts("links") {
        if let Some((of, alias)) = link.split_once(':') {
            service.links.push((of.to_owned(), alias.to_owned()));
        }
    }
}
