//! Networks, volumes, secrets and configs.

use std::path::PathBuf;

use crate::error::Result;
use crate::load::Environment;
use crate::model::{FileSource, Network, Volume};
use crate::node::{Node, Value, join};

fn text(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::scalar)
}

fn is_true(node: &Node, key: &str) -> bool {
    node.get(key).is_some_and(|node| node.value == Value::Bool(true))
}

pub(super) fn network(node: &Node, path: &str) -> Result<Network> {
    let driver = text(node, "driver").filter(|driver| !driver.is_empty());
    let external = is_true(node, "external");
    if let Some(driver) = driver
        .as_deref()
        .filter(|driver| !external && !["bridge", "default"].contains(driver))
    {
        return Err(node
            .error(
                &join(path, "driver"),
                format!("there are no networks of the kind '{driver}'"),
            )
            .hint("leave it out: networks are bridges of this host"));
    }
    let mut subnets = Vec::new();
    if let Some(config) = node.get("ipam").and_then(|ipam| ipam.get("config"))
        && !config.is_null()
    {
        let path = join(path, "ipam.config");
        for item in config.list(&path)? {
            subnets.extend(text(item, "subnet"));
        }
    }
    let mtu = match node
        .get("driver_opts")
        .and_then(|options| options.get("com.docker.network.driver.mtu"))
    {
        Some(mtu) => Some(mtu.integer(&join(path, "driver_opts"))? as u32),
        None => None,
    };
    Ok(Network {
        name: text(node, "name").unwrap_or_default(),
        external,
        internal: is_true(node, "internal"),
        ipv6: node.get("enable_ipv6").map(|node| node.value == Value::Bool(true)),
        subnets,
        mtu,
        driver,
    })
}

pub(super) fn volume(node: &Node, path: &str) -> Result<Volume> {
    let driver = text(node, "driver").filter(|driver| !driver.is_empty());
    let external = is_true(node, "external");
    if let Some(driver) = driver.filter(|driver| !external && driver != "local") {
        return Err(node
            .error(
                &join(path, "driver"),
                format!("there are no volumes of the kind '{driver}'"),
            )
            .hint("leave it out: volumes are disks of this host"));
    }
    let bind = match node
        .get("driver_opts")
        .filter(|options| !external && !options.is_null())
    {
        Some(options) => bind(options, &join(path, "driver_opts"))?,
        None => None,
    };
    let (mut size, mut fs) = (None, None);
    if let Some(own) = node.get("x-zmachine") {
        let path = join(path, "x-zmachine");
        for (key, value) in own.map(&path)? {
            let value = value.text(&join(&path, key))?;
            match key.as_str() {
                "size" => size = Some(value),
                "fs" => fs = Some(value),
                other => {
                    return Err(own
                        .error(&path, format!("there is no key '{other}'"))
                        .hint("the keys are size and fs"));
                }
            }
        }
    }
    Ok(Volume {
        name: text(node, "name").unwrap_or_default(),
        external,
        bind,
        size,
        fs,
    })
}

/// The directory that a volume is, by the options of docker's driver `local`.
fn bind(options: &Node, path: &str) -> Result<Option<PathBuf>> {
    if options.map(path)?.is_empty() {
        return Ok(None);
    }
    let is_bind = text(options, "o").is_some_and(|o| o.split(',').any(|option| matches!(option, "bind" | "rbind")));
    match text(options, "device").filter(|device| is_bind && device.starts_with('/')) {
        Some(device) => Ok(Some(device.into())),
        None => Err(options
            .error(path, "volumes are disks of this host")
            .hint("share a directory in its place: ./DIR:/PATH")),
    }
}

/// A secret or a config.
pub(super) fn source(node: &Node, path: &str, environment: &Environment) -> Result<FileSource> {
    if is_true(node, "external") {
        return Ok(FileSource::External);
    }
    if let Some(file) = text(node, "file") {
        return Ok(FileSource::File(file.into()));
    }
    if let Some(content) = text(node, "content") {
        return Ok(FileSource::Content(content));
    }
    if let Some(name) = text(node, "environment") {
        let value = environment.get(&name);
        return Ok(FileSource::Environment { name, value });
    }
    let hint = match path.starts_with("secrets") {
        true => "it needs file or environment",
        false => "it needs file, content or environment",
    };
    Err(node.error(path, "it does not say where it comes from").hint(hint))
}
