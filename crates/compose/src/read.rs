//! From the one document to typed values.

mod resources;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{ComposeError, Result};
use crate::load::{Loaded, Options};
use crate::model::{MountSource, Project, Service};
use crate::node::{Node, Value, join};
use crate::order;
use crate::schema::{self, Note};

/// The typed project.
pub(crate) fn project(loaded: Loaded, options: &Options) -> Result<Project> {
    let document = &loaded.document;
    let mut notes: Vec<Note> = Vec::new();
    for name in &loaded.unset {
        notes.push(Note {
            service: None,
            text: format!("the variable {name} is not set: it stands for nothing"),
        });
    }
    let mut project = Project {
        name: loaded.name.clone(),
        folder: loaded.folder.clone(),
        files: loaded.files.clone(),
        services: BTreeMap::new(),
        disabled: BTreeMap::new(),
        networks: named(document, "networks", resources::network)?,
        volumes: named(document, "volumes", resources::volume)?,
        secrets: named(document, "secrets", |node, path| {
            resources::source(node, path, &loaded.environment)
        })?,
        configs: named(document, "configs", |node, path| {
            resources::source(node, path, &loaded.environment)
        })?,
        config: document.json(),
        notes,
    };
    let all: BTreeMap<String, Service> = named(document, "services", service::service)?
        .into_iter()
        .map(|(name, service)| (name.clone(), Service { name, ..service }))
        .collect();
    for name in all.keys() {
        check_service_name(document, name)?;
    }
    let is_wanted = |service: &Service| {
        service.profiles.is_empty()
            || loaded
                .profiles
                .iter()
                .any(|wanted| wanted == "*" || service.profiles.contains(wanted))
            || options.services.contains(&service.name)
    };
    for (name, service) in all {
        match is_wanted(&service) {
            true => project.services.insert(name, service),
            false => project.disabled.insert(name, service),
        };
    }
    consistent(&mut project, document)?;
    effects(&mut project, document)?;
    prune_config(&mut project);
    order::check(&project.services)?;
    Ok(project)
}

fn named<T>(document: &Node, kind: &str, read: impl Fn(&Node, &str) -> Result<T>) -> Result<BTreeMap<String, T>> {
    let mut all = BTreeMap::new();
    if let Some(Value::Map(entries)) = document.get(kind).map(|node| &node.value) {
        for (name, node) in entries {
            if kind != "services" && name.starts_with("x-") && !matches!(node.value, Value::Map(_)) {
                continue;
            }
            all.insert(name.clone(), read(node, &join(kind, name))?);
        }
    }
    Ok(all)
}

fn check_service_name(document: &Node, name: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(legal) {
        return Ok(());
    }
    let node = document
        .get("services")
        .and_then(|services| services.get(name))
        .unwrap_or(document);
    Err(node
        .error("services", format!("'{name}' cannot be the name of a service"))
        .hint("names have letters, digits, '.', '_' and '-', and begin with a letter or digit"))
}

/// Whatever a service names has to be in the project.
fn consistent(project: &mut Project, document: &Node) -> Result<()> {
    let known: BTreeSet<String> = project.services.keys().cloned().collect();
    let (disabled, networks, volumes) = (&project.disabled, &project.networks, &project.volumes);
    let (secrets, configs) = (&project.secrets, &project.configs);
    for (name, service) in &mut project.services {
        let path = join("services", name);
        let node = document.get("services").and_then(|services| services.get(name));
        let Some(node) = node else { continue };
        let at = |key: &str| node.get(key).unwrap_or(node);
        let missing = |key: &str, what: &str, name: &str, hint: &str| {
            let message = format!("there is no {what} '{name}' in the project");
            at(key).error(&join(&path, key), message).hint(hint)
        };
        if service.image.is_none() && !service.has_build {
            return Err(node.error(&path, "it has no image").hint("add image: NAME"));
        }
        if service.image.is_none() {
            let hint = "build it elsewhere, push it to a registry or save it into a file, and name it with image:";
            return Err(at("build")
                .error(&join(&path, "build"), "images are not built here")
                .hint(hint));
        }
        for network in &service.networks {
            if !networks.contains_key(&network.network) {
                let hint = "define it at the top: networks:";
                return Err(missing("networks", "network", &network.network, hint));
            }
        }
        for mount in &service.mounts {
            if let MountSource::Volume { key, .. } = &mount.source
                && !volumes.contains_key(key)
            {
                let hint = "define it at the top: volumes:; a directory of this host begins with ./ or /";
                return Err(missing("volumes", "volume", key, hint));
            }
        }
        for (key, grants, defined) in [
            ("secrets", &service.secrets, secrets),
            ("configs", &service.configs, configs),
        ] {
            for grant in grants {
                match defined.get(&grant.source) {
                    None => {
                        return Err(missing(
                            key,
                            &key[..key.len() - 1],
                            &grant.source,
                            &format!("define it at the top: {key}:"),
                        ));
                    }
                    Some(crate::model::FileSource::External) => {
                        return Err(at(key)
                            .error(
                                &join(&path, key),
                                format!("'{}' is external, and there is no store of them", grant.source),
                            )
                            .hint("use file, content or environment"));
                    }
                    Some(_) => {}
                }
            }
        }
        let mut gone = Vec::new();
        for (needed, dependency) in &service.depends_on {
            if known.contains(needed) {
                continue;
            }
            if !dependency.required {
                gone.push(needed.clone());
                continue;
            }
            let hint = match disabled.get(needed) {
                Some(other) => format!(
                    "it is of the profile {}: --profile {}",
                    other.profiles.join(", "),
                    other.profiles.join(",")
                ),
                None => String::new(),
            };
            return Err(missing("depends_on", "service", needed, &hint));
        }
        service.depends_on.retain(|name, _| !gone.contains(name));
    }
    Ok(())
}

/// What changes nothing is noted, and what cannot be is refused, of all that is used.
fn effects(project: &mut Project, document: &Node) -> Result<()> {
    for (kind, known) in [
        ("services", schema::SERVICE),
        ("networks", schema::NETWORK),
        ("volumes", schema::VOLUME),
        ("secrets", schema::SECRET),
        ("configs", schema::CONFIG),
    ] {
        let Some(Value::Map(entries)) = document.get(kind).map(|node| &node.value) else {
            continue;
        };
        for (name, node) in entries {
            if kind == "services" && !project.services.contains_key(name) {
                continue;
            }
            let is_external = node.get("external").is_some_and(|node| node.value == Value::Bool(true));
            if is_external && kind != "services" {
                continue;
            }
            let mut lines = Vec::new();
            schema::effects(node, &join(kind, name), known, &mut lines)?;
            let service = (kind == "services").then(|| name.clone());
            let note = |text| Note {
                service: service.clone(),
                text,
            };
            project.notes.extend(lines.into_iter().map(note));
        }
    }
    if document.get("models").is_some_and(|node| !node.is_null()) {
        return Err(ComposeError::new("models: there are no models here").hint("run the model server as a service"));
    }
    Ok(())
}

/// `config` shows the services that count.
fn prune_config(project: &mut Project) {
    let services = project
        .config
        .get_mut("services")
        .and_then(|services| services.as_object_mut());
    if let Some(services) = services {
        services.retain(|name, _| project.services.contains_key(name));
    }
}
