//! Every short form in its long form, and every relative path as an absolute one: what is merged and read afterwards has one form alone.

mod mounts;
mod ports;

use std::path::{Path, PathBuf};

use crate::error::{Place, Result};
use crate::node::{Entries, Node, Value, join};

/// Brings a document into its long form; relative paths are relative to `folder`.
pub(crate) fn document(document: &mut Node, folder: &Path) -> Result<()> {
    if let Some(services) = document.get_mut("services")
        && !services.is_null()
    {
        services.map("services")?;
        if let Value::Map(services) = &mut services.value {
            for (name, service) in services {
                self::service(service, &join("services", name), folder)?;
            }
        }
    }
    for (kind, is_file) in [
        ("networks", false),
        ("volumes", false),
        ("secrets", true),
        ("configs", true),
    ] {
        let Some(Value::Map(all)) = document.get_mut(kind).map(|node| &mut node.value) else {
            continue;
        };
        for (name, one) in all {
            let path = join(kind, name);
            external(one, &path)?;
            if kind == "networks"
                && let Some(labels) = one.get_mut("labels")
            {
                pairs(labels, &join(&path, "labels"))?;
            }
            if kind == "volumes"
                && let Some(labels) = one.get_mut("labels")
            {
                pairs(labels, &join(&path, "labels"))?;
            }
            if is_file && let Some(file) = one.get_mut("file") {
                beside(file, &join(&path, "file"), folder)?;
            }
        }
    }
    Ok(())
}

/// `external: {name: x}` is an old form of `external: true` and `name: x`.
fn external(node: &mut Node, path: &str) -> Result<()> {
    let Some(external) = node.get("external") else {
        return Ok(());
    };
    if let Value::Map(_) = external.value {
        let at = external.at.clone();
        let name = external.get("name").cloned();
        node.set("external", Node::new(Value::Bool(true), &at));
        if let Some(name) = name {
            if node.get("name").is_some_and(|own| own.value != name.value) {
                return Err(name
                    .error(path, "it has two names")
                    .hint("write external: true, and name"));
            }
            node.set("name", name);
        }
    }
    Ok(())
}

/// Brings a service into its long form.
fn service(node: &mut Node, path: &str, folder: &Path) -> Result<()> {
    if node.is_null() {
        return Ok(());
    }
    node.map(path)?;
    let Value::Map(entries) = &mut node.value else {
        return Ok(());
    };
    for (key, value) in entries {
        // With nothing it takes back what an earlier file has.
        if value.is_null() {
            continue;
        }
        field(key, value, &join(path, key), folder)?;
    }
    Ok(())
}

fn field(key: &str, value: &mut Node, path: &str, folder: &Path) -> Result<()> {
    match key {
        "command" | "entrypoint" => words(value, path),
        "environment" | "sysctls" => pairs(value, path),
        "labels" | "annotations" => words_of_labels(value, path),
        "extra_hosts" => hosts(value, path),
        "depends_on" => {
            names(value, path, |_| Value::Map(Vec::new()))?;
            let Value::Map(all) = &mut value.value else {
                return Ok(());
            };
            for (_, needed) in all {
                if needed.is_null() {
                    needed.value = Value::Map(Vec::new());
                }
                let at = needed.at.clone();
                for (key, default) in [
                    ("condition", Value::Text("service_started".to_owned())),
                    ("required", Value::Bool(true)),
                ] {
                    if needed.get(key).is_none() {
                        needed.set(key, Node::new(default, &at));
                    }
                }
            }
            Ok(())
        }
        "networks" => names(value, path, |_| Value::Null),
        "dns" | "dns_opt" | "dns_search" | "tmpfs" => texts(value, path),
        "cap_add" | "cap_drop" | "expose" | "external_links" | "group_add" | "links" | "profiles" | "security_opt"
        | "volumes_from" => {
            value.list(path)?;
            texts(value, path)
        }
        "label_file" => {
            texts(value, path)?;
            each(value, path, |item, path| beside(item, path, folder))
        }
        "env_file" => {
            if value.scalar().is_some() {
                let one = Node::new(value.value.clone(), &value.at);
                value.value = Value::List(vec![one]);
            }
            each(value, path, |item, path| {
                short(item, "path");
                if item.get("required").is_none() {
                    let yes = Node::new(Value::Bool(true), &item.at);
                    item.set("required", yes);
                }
                match item.get_mut("path") {
                    Some(file) => beside(file, path, folder),
                    None => Err(item.error(path, "it has no path")),
                }
            })
        }
        "extends" => {
            short(value, "service");
            match value.get_mut("file") {
                Some(file) => beside(file, path, folder),
                None => Ok(()),
            }
        }
        "build" => {
            short(value, "context");
            if let Some(context) = value.get_mut("context")
                && context.scalar().is_some_and(|text| !text.contains("://"))
            {
                beside(context, path, folder)?;
            }
            if let Some(args) = value.get_mut("args") {
                pairs(args, &join(path, "args"))?;
            }
            Ok(())
        }
        "healthcheck" => match value.get_mut("test") {
            Some(test) => {
                if let Some(text) = test.scalar() {
                    let at = test.at.clone();
                    test.value = Value::List(vec![Node::text_of("CMD-SHELL", &at), Node::text_of(text, &at)]);
                }
                texts(test, &join(path, "test"))
            }
            None => Ok(()),
        },
        "logging" => match value.get_mut("options") {
            Some(options) => pairs(options, &join(path, "options")),
            None => Ok(()),
        },
        "deploy" => match value.get_mut("labels") {
            Some(labels) => pairs(labels, &join(path, "labels")),
            None => Ok(()),
        },
        "ulimits" => {
            value.map(path)?;
            let Value::Map(limits) = &mut value.value else {
                return Ok(());
            };
            for (name, limit) in limits {
                let path = join(path, name);
                match &mut limit.value {
                    Value::Map(entries) => {
                        for (key, value) in entries {
                            value.value = Value::Int(value.integer(&join(&path, key))?);
                        }
                    }
                    _ => limit.value = Value::Int(limit.integer(&path)?),
                }
            }
            Ok(())
        }
        "ports" => ports::ports(value, path),
        "volumes" => mounts::mounts(value, path, folder),
        "secrets" | "configs" => each(value, path, |item, path| {
            short(item, "source");
            if item.get("source").is_none() {
                return Err(item.error(path, "it has no source"));
            }
            // Octal, as everybody writes it.
            if let Some(mode) = item.get_mut("mode")
                && let Value::Int(number) = mode.value
            {
                mode.value = Value::Text(format!("{number:04o}"));
            }
            Ok(())
        }),
        _ => Ok(()),
    }
}

fn each(value: &mut Node, path: &str, mut f: impl FnMut(&mut Node, &str) -> Result<()>) -> Result<()> {
    value.list(path)?;
    let Value::List(items) = &mut value.value else {
        return Ok(());
    };
    for (index, item) in items.iter_mut().enumerate() {
        f(item, &format!("{path}[{index}]"))?;
    }
    Ok(())
}

/// A text becomes a mapping with the one key `key`.
fn short(value: &mut Node, key: &str) {
    if let Some(text) = value.scalar() {
        let at = value.at.clone();
        value.value = Value::Map(vec![(key.to_owned(), Node::text_of(text, &at))]);
    }
}

/// A text or a list of scalars becomes a list of texts.
fn texts(value: &mut Node, path: &str) -> Result<()> {
    if let Some(text) = value.scalar() {
        let one = Node::text_of(text, &value.at);
        value.value = Value::List(vec![one]);
    }
    each(value, path, |item, path| {
        item.value = Value::Text(item.text(path)?);
        Ok(())
    })
}

/// A command: a text is split as a shell does.
fn words(value: &mut Node, path: &str) -> Result<()> {
    if let Some(text) = value.scalar() {
        let words = shlex::split(&text).ok_or_else(|| {
            value
                .error(path, format!("'{text}': a quote is not closed"))
                .hint("quote it as for a shell")
        })?;
        let at = value.at.clone();
        value.value = Value::List(words.into_iter().map(|word| Node::text_of(word, &at)).collect());
    }
    texts(value, path)
}

/// A list of `NAME=VALUE` or a mapping becomes a mapping of texts; a name alone has no value.
fn pairs(value: &mut Node, path: &str) -> Result<()> {
    if let Value::List(items) = &value.value {
        let mut entries: Entries = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let text = item.text(&format!("{path}[{index}]"))?;
            let (name, node) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Node::text_of(value, &item.at)),
                None => (text, Node::new(Value::Null, &item.at)),
            };
            entries.retain(|(known, _)| *known != name);
            entries.push((name, node));
        }
        value.value = Value::Map(entries);
        return Ok(());
    }
    value.map(path)?;
    if let Value::Map(entries) = &mut value.value {
        for (name, item) in entries {
            if !item.is_null() {
                item.value = Value::Text(item.text(&join(path, name))?);
            }
        }
    }
    Ok(())
}

/// The same for labels, of which one without a value has an empty one.
fn words_of_labels(value: &mut Node, path: &str) -> Result<()> {
    pairs(value, path)?;
    if let Value::Map(entries) = &mut value.value {
        for (_, item) in entries.iter_mut().filter(|(_, item)| item.is_null()) {
            item.value = Value::Text(String::new());
        }
    }
    Ok(())
}

/// Lines of `/etc/hosts` become `NAME=ADDRESS`.
fn hosts(value: &mut Node, path: &str) -> Result<()> {
    let mut lines = Vec::new();
    match &value.value {
        Value::Map(entries) => {
            for (name, item) in entries {
                let addresses = match &item.value {
                    Value::List(items) => items.as_slice(),
                    _ => std::slice::from_ref(item),
                };
                for address in addresses {
                    let text = address.text(&join(path, name))?;
                    lines.push(Node::text_of(format!("{name}={text}"), &address.at));
                }
            }
        }
        _ => {
            for (index, item) in value.list(path)?.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let text = item.text(&path)?;
                let (name, address) = text.split_once(['=', ':']).ok_or_else(|| {
                    item.error(&path, format!("'{text}' has no address"))
                        .hint("write NAME=ADDRESS")
                })?;
                lines.push(Node::text_of(format!("{name}={address}"), &item.at));
            }
        }
    }
    value.value = Value::List(lines);
    Ok(())
}

/// A list of names becomes a mapping with `default` for each.
fn names(value: &mut Node, path: &str, default: impl Fn(&Place) -> Value) -> Result<()> {
    if let Value::List(items) = &value.value {
        let mut entries: Entries = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let name = item.text(&format!("{path}[{index}]"))?;
            if !entries.iter().any(|(known, _)| *known == name) {
                entries.push((name, Node::new(default(&item.at), &item.at)));
            }
        }
        value.value = Value::Map(entries);
    }
    value.map(path).map(drop)
}

/// Makes a path absolute.
fn beside(value: &mut Node, path: &str, folder: &Path) -> Result<()> {
    let text = value.text(path)?;
    value.value = Value::Text(absolute(&text, folder));
    Ok(())
}

/// A path as an absolute one: `~` is the user's home, and `.` and `..` are resolved.
pub(crate) fn absolute(text: &str, folder: &Path) -> String {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let path = match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            PathBuf::from(home).join(rest.trim_start_matches('/'))
        }
        _ => folder.join(text),
    };
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean.to_string_lossy().into_owned()
}
