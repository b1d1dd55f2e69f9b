//! Operations on volumes and networks, and on the host as a whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hyper::StatusCode;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::json;
use zmachine_network::{Ipv6Choice, NetworkSpec};
use zmachine_spec::volume::{DEFAULT_SIZE, Fs};
use zmachine_spec::{Class, Failure, NetworkRequest, check_alias};

use super::Call;
use super::machines::{failing, read};
use super::problem::Problem;
use crate::app::App;
use crate::http::{Answer, Body, empty, json, typed};

/// Versions.
pub fn version() -> Answer {
    json(
        StatusCode::OK,
        &json!({"version": env!("CARGO_PKG_VERSION"), "api": "v1"}),
    )
}

/// Lists volumes.
///
/// # Errors
/// When they cannot be listed.
pub async fn volumes(app: &Arc<App>) -> Result<Answer, Problem> {
    let listed = failing(app, |app| {
        let (views, failures) = app.engine.volume_list()?;
        let unreadable: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Ok(json!({"volumes": views, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &listed))
}

/// A wanted volume.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVolume {
    name: String,
    #[serde(default)]
    size_bytes: Option<u64>,
    #[serde(default)]
    fs: Fs,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Creates a volume.
///
/// # Errors
/// 409 for a name that is taken; 400 for what it cannot be.
pub async fn create_volume(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: NewVolume = read(call).await?;
    let made = failing(app, move |app| {
        let new = zmachine_spec::volume::NewVolume {
            name: wanted.name,
            size_bytes: wanted.size_bytes.unwrap_or(DEFAULT_SIZE),
            fs: wanted.fs,
            anonymous_of: None,
            labels: wanted.labels,
        };
        let made = app.engine.volumes().create(&new)?;
        app.engine.volume(&made.name)
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Shows a volume.
///
/// # Errors
/// 404.
pub async fn volume(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| app.engine.volume(&name)).await?;
    Ok(json(StatusCode::OK, &found))
}

/// A wanted size.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSize {
    size_bytes: u64,
}

/// Makes a volume larger.
///
/// # Errors
/// 404; 409 for a size that is not larger, and for one that is used in a way that does not allow it.
pub async fn grow_volume(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let wanted: NewSize = read(call).await?;
    let grown = failing(app, move |app| {
        app.engine.grow_volume(&name, wanted.size_bytes)?;
        app.engine.volume(&name)
    })
    .await?;
    Ok(json(StatusCode::OK, &grown))
}

/// Removes a volume.
///
/// # Errors
/// 404; 409 for one that is used.
pub async fn remove_volume(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| app.engine.volumes().remove(&name)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Lists networks.
///
/// # Errors
/// When they cannot be listed.
pub async fn networks(app: &Arc<App>) -> Result<Answer, Problem> {
    let listed = failing(app, |app| app.engine.network_list()).await?;
    Ok(json(StatusCode::OK, &json!({"networks": listed})))
}

/// A wanted network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNetwork {
    name: String,
    #[serde(default)]
    subnet: Option<Ipv4Net>,
    /// A subnet, or `none`.
    #[serde(default)]
    ipv6_subnet: Option<String>,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Creates a network.
///
/// # Errors
/// 409 for a name that is taken; 400 for what it cannot be.
pub async fn create_network(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: NewNetwork = read(call).await?;
    let ipv6 = match wanted.ipv6_subnet.as_deref() {
        None => Ipv6Choice::Derived,
        Some("none") => Ipv6Choice::Without,
        Some(text) => {
            let wrong = |_| Failure::new(Class::Usage, format!("ipv6_subnet: '{text}' is no IPv6 subnet"));
            Ipv6Choice::Subnet(text.parse::<Ipv6Net>().map_err(wrong)?)
        }
    };
    let made = failing(app, move |app| {
        let made = app.engine.create_network(&NetworkSpec {
            name: wanted.name,
            ipv4: wanted.subnet,
            ipv6,
            internal: wanted.internal,
            mtu: wanted.mtu,
            dns: wanted.dns,
            labels: wanted.labels,
        })?;
        app.engine.network(made.name())
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Shows a network.
///
/// # Errors
/// 404.
pub async fn network(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| app.engine.network(&name)).await?;
    Ok(json(StatusCode::OK, &found))
}

/// A machine that joins a network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    machine: String,
    #[serde(default)]
    ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    ipv6: Option<Ipv6Addr>,
    #[serde(default)]
    aliases: Vec<String>,
}

/// Has a machine join a network.
///
/// # Errors
/// 404; 409 for one that is in it.
pub async fn connect(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let network = call.place("name");
    let wanted: Joining = read(call).await?;
    failing(app, move |app| {
        let alias = |alias: &String| {
            check_alias(alias).map_err(|what| {
                Failure::new(Class::Usage, format!("aliases: {what}"))
                    .hint("use letters, digits, '-', '_' and '.', at most 63 characters")
            })
        };
        let request = NetworkRequest {
            ipv4: wanted.ipv4,
            ipv6: wanted.ipv6,
            aliases: wanted.aliases.iter().map(alias).collect::<Result<_, _>>()?,
            ..NetworkRequest::new(network)
        };
        app.engine.connect_network(&wanted.machine, &request)
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// A machine that leaves a network.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaving {
    machine: String,
}

/// Has a machine leave a network.
///
/// # Errors
/// 404; 409 for one that is not in it, or whose published ports go through it.
pub async fn disconnect(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let network = call.place("name");
    let wanted: Leaving = read(call).await?;
    failing(app, move |app| app.engine.disconnect_network(&wanted.machine, &network)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Removes a network.
///
/// # Errors
/// 404; 409 for one that machines are in.
pub async fn remove_network(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| app.engine.remove_network(&name)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Figures for Prometheus.
///
/// # Errors
/// When machines cannot be listed.
pub async fn metrics(app: &Arc<App>) -> Result<Answer, Problem> {
    let text = failing(app, |app| app.engine.metrics()).await?;
    Ok(typed(
        StatusCode::OK,
        "text/plain; version=0.0.4",
        Body::Whole(Some(text.into())),
    ))
}
