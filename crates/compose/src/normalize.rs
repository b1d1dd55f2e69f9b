//! What a document does not say and means all the same: the default network, names on the host, variables of files.

use std::path::Path;

use crate::error::Result;
use crate::load::{Environment, Loaded, env_file};
use crate::merge;
use crate::node::{Node, Value, join};

/// Lists of a service in which nothing is twice.
const UNIQUE: [&str; 16] = [
    "cap_add",
    "cap_drop",
    "configs",
    "dns",
    "dns_opt",
    "dns_search",
    "env_file",
    "expose",
    "extra_hosts",
    "group_add",
    "links",
    "ports",
    "profiles",
    "secrets",
    "tmpfs",
    "volumes",
];

/// Puts in what is meant.
pub(crate) fn document(loaded: &mut Loaded) -> Result<()> {
    let Loaded {
        name,
        document,
        environment,
        ..
    } = loaded;
    let at = document.at.clone();
    document.set("name", Node::text_of(name.as_str(), &at));
    let mut uses_default = false;
    if let Some(Value::Map(services)) = document.get_mut("services").map(|node| &mut node.value) {
        for (name, service) in services {
            if service.is_null() {
                service.value = Value::Map(Vec::new());
            }
            let path = join("services", name);
            uses_default |= self::service(service, &path, environment)?;
        }
    }
    if uses_default {
        if document.get("networks").is_none_or(Node::is_null) {
            document.set("networks", Node::new(Value::Map(Vec::new()), &at));
        }
        if let Some(networks) = document.get_mut("networks")
            && networks.get("default").is_none()
        {
            networks.set("default", Node::new(Value::Null, &at));
        }
    }
    for kind in ["networks", "volumes", "secrets", "configs"] {
        let Some(Value::Map(all)) = document.get_mut(kind).map(|node| &mut node.value) else {
            continue;
        };
        for (key, one) in all {
            if one.is_null() {
                one.value = Value::Map(Vec::new());
            }
            if one.get("name").is_none() {
                let is_external = one.get("external").is_some_and(|node| node.value == Value::Bool(true));
                let full = match is_external {
                    true => key.clone(),
                    false => format!("{name}_{key}"),
                };
                let at = one.at.clone();
                one.set("name", Node::text_of(full, &at));
            }
        }
    }
    Ok(())
}

/// Whether it joins the default network.
fn service(service: &mut Node, path: &str, environment: &Environment) -> Result<bool> {
    let at = service.at.clone();
    for key in UNIQUE {
        if let Some(Value::List(items)) = service.get_mut(key).map(|node| &mut node.value) {
            *items = merge::unique(std::mem::take(items), key);
        }
    }
    if let Some(policy) = service.get_mut("pull_policy")
        && policy.scalar().as_deref() == Some("if_not_present")
    {
        policy.value = Value::Text("missing".to_owned());
    }
    if let Some(Value::List(secrets)) = service.get_mut("secrets").map(|node| &mut node.value) {
        for secret in secrets {
            let source = secret.get("source").and_then(Node::scalar);
            if let (None, Some(source)) = (secret.get("target"), source) {
                let at = secret.at.clone();
                secret.set("target", Node::text_of(format!("/run/secrets/{source}"), &at));
            }
        }
    }
    implied_dependencies(service);
    variables(service, path, environment)?;
    labels(service, path)?;
    if service.get("network_mode").is_some_and(|mode| !mode.is_null()) {
        return Ok(false);
    }
    let has_none = match service.get("networks").map(|node| &node.value) {
        None | Some(Value::Null) => true,
        Some(Value::Map(networks)) => networks.is_empty(),
        Some(_) => false,
    };
    if has_none {
        let default = ("default".to_owned(), Node::new(Value::Null, &at));
        service.set("networks", Node::new(Value::Map(vec![default]), &at));
    }
    Ok(service
        .get("networks")
        .is_some_and(|networks| networks.get("default").is_some()))
}

/// Links, and namespaces of other services, need those services.
fn implied_dependencies(service: &mut Node) {
    let mut needed: Vec<(String, bool)> = Vec::new();
    let texts = |key: &str| -> Vec<String> {
        match service.get(key).map(|node| &node.value) {
            Some(Value::List(items)) => items.iter().filter_map(Node::scalar).collect(),
            Some(Value::Text(text)) => vec![text.clone()],
            _ => Vec::new(),
        }
    };
    for link in texts("links") {
        needed.push((link.split(':').next().unwrap_or_default().to_owned(), true));
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        for of in texts(key) {
            needed.extend(of.strip_prefix("service:").map(|name| (name.to_owned(), true)));
        }
    }
    for from in texts("volumes_from") {
        let name = from.split(':').next().unwrap_or_default();
        if name != "container" {
            needed.push((name.to_owned(), false));
        }
    }
    let at = service.at.clone();
    for (name, restart) in needed {
        if service.get("depends_on").is_none_or(Node::is_null) {
            service.set("depends_on", Node::new(Value::Map(Vec::new()), &at));
        }
        let Some(depends_on) = service.get_mut("depends_on") else {
            continue;
        };
        if depends_on.get(&name).is_none() {
            let entry = |key: &str, value| (key.to_owned(), Node::new(value, &at));
            let entries = vec![
                entry("condition", Value::Text("service_started".to_owned())),
                entry("required", Value::Bool(true)),
                entry("restart", Value::Bool(restart)),
            ];
            depends_on.set(&name, Node::new(Value::Map(entries), &at));
        }
    }
}

/// The variables of its files, and those without a value, which are the environment's.
fn variables(service: &mut Node, path: &str, environment: &Environment) -> Result<()> {
    let at = service.at.clone();
    let mut all: Vec<(String, Node)> = Vec::new();
    let files = service.remove("env_file");
    if let Some(Value::List(files)) = files.as_ref().map(|node| &node.value) {
        for file in files {
            let name = file.get("path").and_then(Node::scalar).unwrap_or_default();
            let is_required = file.get("required").is_none_or(|node| node.value != Value::Bool(false));
            if !is_required && !Path::new(&name).exists() {
                continue;
            }
            let is_raw = file.get("format").and_then(Node::scalar).as_deref() == Some("raw");
            let earlier = all.clone();
            let lookup = |name: &str| {
                let known = earlier.iter().find(|(known, _)| known == name);
                environment
                    .get(name)
                    .or_else(|| known.and_then(|(_, node)| node.scalar()))
            };
            let read = match is_raw {
                true => raw(Path::new(&name)),
                false => env_file("the env_file", Path::new(&name), &lookup),
            };
            let read = read.map_err(|mut error| {
                if error.place.is_none() {
                    error.message = format!("{path}.env_file: {}", error.message);
                    error.place = Some(file.at.clone());
                    error.hint = Some("make it, or add required: false".to_owned());
                }
                error
            })?;
            for (key, value) in read {
                all.retain(|(known, _)| *known != key);
                all.push((key, Node::text_of(value, &file.at)));
            }
        }
    }
    let own = service.remove("environment");
    if let Some(Value::Map(entries)) = own.map(|node| node.value) {
        for (key, node) in entries {
            let node = match node.is_null() {
                true => match environment.get(&key) {
                    Some(value) => Node::text_of(value, &node.at),
                    // As an env_file may have it.
                    None if all.iter().any(|(known, _)| *known == key) => continue,
                    None => node,
                },
                false => node,
            };
            all.retain(|(known, _)| *known != key);
            all.push((key, node));
        }
    }
    if !all.is_empty() {
        service.set("environment", Node::new(Value::Map(all), &at));
    }
    Ok(())
}

/// Lines of `NAME=VALUE` as they are.
fn raw(path: &Path) -> Result<Vec<(String, String)>> {
    let text =
        std::fs::read_to_string(path).map_err(|e| crate::error::ComposeError::unreadable("the env_file", path, &e))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
        .collect())
}

/// The labels of its files.
fn labels(service: &mut Node, path: &str) -> Result<()> {
    let at = service.at.clone();
    let files = service.remove("label_file");
    let Some(Value::List(files)) = files.map(|node| node.value) else {
        return Ok(());
    };
    let mut all: Vec<(String, Node)> = Vec::new();
    for file in &files {
        let name = file.scalar().unwrap_or_default();
        let read = env_file("the label_file", Path::new(&name), &|_| None).map_err(|mut error| {
            error.message = format!("{path}.label_file: {}", error.message);
            error.place.get_or_insert(file.at.clone());
            error
        })?;
        for (key, value) in read {
            all.retain(|(known, _)| *known != key);
            all.push((key, Node::text_of(value, &file.at)));
        }
    }
    if let Some(Value::Map(entries)) = service.remove("labels").map(|node| node.value) {
        for (key, node) in entries {
            all.retain(|(known, _)| *known != key);
            all.push((key, node));
        }
    }
    service.set("labels", Node::new(Value::Map(all), &at));
    Ok(())
}
