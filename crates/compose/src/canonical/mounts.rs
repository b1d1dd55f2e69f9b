//! What is mounted in a service: `[SOURCE:]TARGET[:OPTION,...]`.

use std::path::Path;

use super::absolute;
use crate::error::Result;
use crate::node::{Entries, Node, Value, join};

/// The mounts of a service, each in its long form.
pub(super) fn mounts(value: &mut Node, path: &str, folder: &Path) -> Result<()> {
    super::each(value, path, |item, path| {
        if let Some(text) = item.scalar() {
            *item = short(&text, item, path)?;
        }
        long(item, path, folder)
    })
}

fn long(item: &mut Node, path: &str, folder: &Path) -> Result<()> {
    item.map(path)?;
    let Some(kind) = item.get("type").and_then(Node::scalar) else {
        return Err(item
            .error(path, "it has no type")
            .hint("the types are bind, volume and tmpfs"));
    };
    let target = match item.get("target") {
        Some(target) => target.text(&join(path, "target"))?,
        None => {
            return Err(item
                .error(path, "it has no target")
                .hint("target is the path in the container"));
        }
    };
    let at = item.at.clone();
    if target.starts_with('/') {
        item.set("target", Node::text_of(absolute(&target, Path::new("/")), &at));
    }
    if kind == "bind" {
        let Some(source) = item.get("source") else {
            return Err(item.error(path, "a bind mount needs a source"));
        };
        let source = source.text(&join(path, "source"))?;
        item.set("source", Node::text_of(absolute(&source, folder), &at));
        let mut bind = match item.get("bind") {
            Some(bind) if !bind.is_null() => bind.clone(),
            _ => return Ok(()),
        };
        if bind.get("create_host_path").is_none() {
            bind.set("create_host_path", Node::new(Value::Bool(true), &at));
            item.set("bind", bind);
        }
    }
    Ok(())
}

fn short(text: &str, item: &Node, path: &str) -> Result<Node> {
    let hint = "write NAME:/PATH, ./DIR:/PATH or /PATH, with :ro behind it for what is only read";
    let wrong = |why: &str| item.error(path, format!("the volume '{text}': {why}")).hint(hint);
    let parts: Vec<&str> = text.split(':').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(wrong("a part of it is empty"));
    }
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => return Err(wrong("it has too many colons")),
    };
    let is_path = source.is_some_and(|source| source.starts_with(['.', '/', '~']));
    let at = &item.at;
    let mut entries: Entries = Vec::new();
    let mut put = |key: &str, value: Value| entries.push((key.to_owned(), Node::new(value, at)));
    put("type", Value::Text(if is_path { "bind" } else { "volume" }.to_owned()));
    if let Some(source) = source {
        put("source", Value::Text(source.to_owned()));
    }
    put("target", Value::Text(target.to_owned()));
    let (mut bind, mut volume): (Entries, Entries) = (Vec::new(), Vec::new());
    if is_path {
        bind.push(("create_host_path".to_owned(), Node::new(Value::Bool(true), at)));
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => put("read_only", Value::Bool(true)),
            "rw" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => volume.push(("nocopy".to_owned(), Node::new(Value::Bool(true), at))),
            "z" | "Z" => bind.push(("selinux".to_owned(), Node::text_of(option, at))),
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                bind.push(("propagation".to_owned(), Node::text_of(option, at)));
            }
            other => return Err(wrong(&format!("there is no option '{other}'"))),
        }
    }
    match is_path {
        true => put("bind", Value::Map(bind)),
        false => put("volume", Value::Map(volume)),
    }
    Ok(Node::new(Value::Map(entries), at))
}
