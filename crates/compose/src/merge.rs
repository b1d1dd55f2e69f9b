//! Later files over earlier ones, and a service over the one it extends, by the rules of the specification. Both are in their long form.

use crate::error::Result;
use crate::node::{Entries, Mark, Node, Value, join};

/// `over` over `base`.
///
/// # Errors
/// When a list is to be laid over a mapping, or the like.
pub(crate) fn merge(base: Node, over: Node, path: &str) -> Result<Node> {
    match over.mark {
        Some(Mark::Reset) => return Ok(Node::new(Value::Null, &over.at)),
        Some(Mark::Override) => return Ok(stripped(over)),
        None => {}
    }
    if over.is_null() && !path.ends_with(".environment") {
        return Ok(base);
    }
    let is_map = matches!(over.value, Value::Map(_));
    let at = over.at.clone();
    match (base.value, over.value) {
        (Value::Map(base), Value::Map(over)) => {
            let entries = match replaces_driver(path, &base, &over) {
                true => over,
                false => entries(base, over, path)?,
            };
            Ok(Node::new(Value::Map(entries), &at))
        }
        (Value::List(base), Value::List(over)) => Ok(Node::new(Value::List(list(base, over, path)), &at)),
        (Value::Null, value) => Ok(stripped(Node::new(value, &at))),
        (Value::Map(_) | Value::List(_), value) if !is_map && !matches!(value, Value::List(_)) => {
            let node = Node::new(value, &at);
            // An ulimit of two values may become one of one.
            match path.contains(".ulimits.") {
                true => Ok(node),
                false => Err(node.expected(path, "the same kind as in the other file")),
            }
        }
        (_, value) => Ok(stripped(Node::new(value, &at))),
    }
}

/// Options of logging are of a driver.
fn replaces_driver(path: &str, base: &Entries, over: &Entries) -> bool {
    let driver = |entries: &Entries| {
        let found = entries.iter().find(|(key, _)| key == "driver");
        found.and_then(|(_, node)| node.scalar())
    };
    let (old, new) = (driver(base), driver(over));
    path.ends_with(".logging") && old.is_some() && new.is_some() && old != new
}

fn entries(mut base: Entries, over: Entries, path: &str) -> Result<Entries> {
    for (key, node) in over {
        let path = join(path, &key);
        let Some(index) = base.iter().position(|(name, _)| *name == key) else {
            match node.mark {
                Some(Mark::Reset) => {}
                _ => base.push((key, stripped(node))),
            }
            continue;
        };
        if node.mark == Some(Mark::Reset) {
            base.remove(index);
            continue;
        }
        // A variable without a value takes that of the environment, whatever an earlier file says.
        let is_variable = path.split('.').rev().nth(1) == Some("environment");
        let merged = match is_variable {
            true => node,
            false => merge(base[index].1.clone(), node, &path)?,
        };
        base[index].1 = merged;
    }
    Ok(base)
}

/// Takes the marks away, and what is reset.
pub(crate) fn stripped(mut node: Node) -> Node {
    node.mark = None;
    match &mut node.value {
        Value::List(items) => {
            items.retain(|item| item.mark != Some(Mark::Reset));
            items.iter_mut().for_each(|item| *item = stripped(item.clone()));
        }
        Value::Map(entries) => {
            entries.retain(|(_, item)| item.mark != Some(Mark::Reset));
            entries.iter_mut().for_each(|(_, item)| *item = stripped(item.clone()));
        }
        _ => {}
    }
    node
}

fn list(base: Vec<Node>, over: Vec<Node>, path: &str) -> Vec<Node> {
    let name = path.rsplit('.').next().unwrap_or_default();
    let over = over.into_iter().map(stripped);
    if matches!(name, "command" | "entrypoint" | "test") {
        return over.collect();
    }
    unique(base.into_iter().chain(over).collect(), name)
}

/// What has the same key twice has the later value, in the place of the earlier one.
pub(crate) fn unique(items: Vec<Node>, name: &str) -> Vec<Node> {
    let mut kept: Vec<(Option<String>, Node)> = Vec::new();
    for item in items {
        let key = key(&item, name);
        match kept.iter_mut().find(|(known, _)| known.is_some() && *known == key) {
            Some((_, old)) => *old = item,
            None => kept.push((key, item)),
        }
    }
    kept.into_iter().map(|(_, item)| item).collect()
}

/// What makes an item of a list the same as another one.
fn key(item: &Node, name: &str) -> Option<String> {
    let field = |key: &str| item.get(key).and_then(Node::scalar);
    match name {
        "volumes" | "devices" => field("target"),
        "secrets" => field("target").or_else(|| field("source").map(|source| format!("/run/secrets/{source}"))),
        "configs" => field("target").or_else(|| field("source").map(|source| format!("/{source}"))),
        "env_file" => field("path"),
        "ports" => {
            let ip = field("host_ip").unwrap_or_else(|| "0.0.0.0".to_owned());
            let published = field("published").unwrap_or_default();
            Some(format!("{ip}:{published}:{}/{}", field("target")?, field("protocol")?))
        }
        "cap_add" | "cap_drop" | "dns" | "dns_opt" | "dns_search" | "expose" | "links" | "aliases" | "profiles"
        | "tmpfs" | "extra_hosts" | "security_opt" | "group_add" => {
            let text = item.scalar()?;
            Some(match name {
                "extra_hosts" => text,
                _ => text.split('=').next().unwrap_or_default().to_owned(),
            })
        }
        _ => None,
    }
}
