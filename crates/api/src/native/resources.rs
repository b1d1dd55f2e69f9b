//! Operations on images, volumes and networks, and on the host as a whole.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::StatusCode;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::{Value, json};
use zmachine_engine::ImageRequest;
use zmachine_image::{ImageKind, ImageName, Library, Mode, PullPolicy, Silent};
use zmachine_network::{Ipv6Choice, NetworkSpec};
use zmachine_spec::volume::{DEFAULT_SIZE, Fs};
use zmachine_spec::{Class, Failure};

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

/// Lists images.
///
/// # Errors
/// When they cannot be listed.
pub async fn images(app: &Arc<App>) -> Result<Answer, Problem> {
    let images = failing(app, |app| {
        let (listed, unreadable) = Library::open(app.engine.home().data())?.list_readable()?;
        let images: Vec<Value> = listed
            .iter()
            .filter(|image| !image.is_superseded)
            .map(|image| {
                let facts = image.facts.as_ref().ok();
                json!({
                    "digest": image.digest.to_string(),
                    "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "kind": facts.map(|facts| match facts.kind {
                        ImageKind::Container => "container",
                        ImageKind::OwnKernel { .. } => "container with its own kernel",
                        ImageKind::KernelDisk { .. } | ImageKind::Disk { .. } => "vm",
                    }),
                    "files_bytes": facts.map(|facts| facts.sizes.file_bytes),
                    "error": image.facts.as_ref().err().map(ToString::to_string),
                })
            })
            .collect();
        let unreadable: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        Ok(json!({"images": images, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &images))
}

/// A wanted image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagePull {
    image: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    pull: Option<String>,
}

/// Brings an image here.
///
/// # Errors
/// 404 for one that is not there; 502 for a registry or a store that does not answer.
pub async fn pull_image(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: ImagePull = read(call).await?;
    let pull = match wanted.pull.as_deref() {
        None | Some("always") => PullPolicy::Always,
        Some("missing") => PullPolicy::Missing,
        Some("newer") => PullPolicy::Newer,
        Some(other) => {
            let message = format!("pull: '{other}' is neither missing, always nor newer");
            return Err(Failure::new(Class::Usage, message).into());
        }
    };
    let named = |name: String| {
        ImageName::new(&name).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))
    };
    let name = wanted.name.map(named).transpose()?;
    let pulled = failing(app, move |app| {
        let request = ImageRequest {
            text: &wanted.image,
            cwd: &app.engine.home().machines(),
            pull,
            mode: Mode::Auto,
            is_lazy: false,
            stores: &[],
            progress: &Silent,
        };
        let (name, image) = app.engine.pull(&request, name.as_ref())?;
        Ok(json!({"name": name.to_string(), "digest": image.digest.to_string()}))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &pulled))
}

/// Removes an image.
///
/// # Errors
/// 404.
pub async fn remove_image(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let removed = failing(app, move |app| {
        let name = ImageName::new(&name)
            .map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint().unwrap_or_default()))?;
        let removed = app.engine.remove_image(&name)?;
        Ok(json!({
            "names": removed.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "removed": removed.image.is_some_and(|report| report.images > 0),
            "machines": removed.machines,
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &removed))
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
