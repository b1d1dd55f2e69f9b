//! Volumes.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use zmachine_engine::views::VolumeView;
use zmachine_spec::volume::{DEFAULT_SIZE, Fs, NewVolume};
use zmachine_spec::{Class, bytes};

use super::query::name_fits;
use super::{Call, body, ids};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, empty, json};

/// Digits of the name of a volume that gets none.
const NAME: usize = 32;

/// A volume as docker has it.
pub fn document(view: &VolumeView) -> Value {
    json!({
        "Name": view.name,
        "Driver": "local",
        "Mountpoint": view.path,
        "CreatedAt": view.created_at,
        "Labels": if view.labels.is_empty() { Value::Null } else { json!(view.labels) },
        "Options": null,
        "Scope": "local",
    })
}

fn missing(name: &str) -> Refusal {
    Refusal::not_found(format!("get {name}: no such volume"))
}

/// Lists volumes.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&["dangling", "driver", "label", "label!", "name"])?;
    let dangling = filters.flag("dangling")?;
    let (shown, warnings) = blocking(app, move |app| {
        let (views, failures) = app.engine.volume_list()?;
        let shown: Vec<Value> = views
            .iter()
            .filter(|view| {
                let is_used = view.machines.as_ref().is_none_or(|machines| !machines.is_empty());
                filters.allow("name", |wanted| name_fits(&view.name, wanted))
                    && filters.allow("driver", |wanted| wanted == "local")
                    && dangling.is_none_or(|dangling| dangling != is_used)
                    && filters.allow_labels(&view.labels)
            })
            .map(document)
            .collect();
        let warnings: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Ok::<_, Refusal>((shown, warnings))
    })
    .await?;
    let warnings = if warnings.is_empty() {
        Value::Null
    } else {
        json!(warnings)
    };
    Ok(json(StatusCode::OK, &json!({"Volumes": shown, "Warnings": warnings})))
}

/// Shows a volume.
///
/// # Errors
/// 404.
pub async fn inspect(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let shown = blocking(app, move |app| {
        let view = app.engine.volume(&name).map_err(|failure| match failure.class {
            Class::NotFound | Class::Usage => missing(&name),
            _ => failure.into(),
        })?;
        Ok::<_, Refusal>(document(&view))
    })
    .await?;
    Ok(json(StatusCode::OK, &shown))
}

/// Makes a volume. One of that name that is there is taken, as docker does.
///
/// # Errors
/// 400 for what a volume here cannot be.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::VolumeCreate = body::read(call.request.into_body()).await?;
    let shown = blocking(app, move |app| {
        let new = new_volume(wanted)?;
        let name = new.name.clone();
        match app.engine.volumes().create(&new) {
            Err(failure) if failure.class != Class::Conflict => return Err(Refusal::from(failure)),
            _ => {}
        }
        Ok(document(&app.engine.volume(&name)?))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &shown))
}

fn new_volume(wanted: body::VolumeCreate) -> Result<NewVolume, Refusal> {
    if !matches!(wanted.driver.as_str(), "" | "local") {
        let message = format!(
            "volume driver {:?} is not supported: volumes are disks of this host",
            wanted.driver
        );
        return Err(Refusal::bad(message));
    }
    let (mut size_bytes, mut fs) = (DEFAULT_SIZE, Fs::default());
    for (option, value) in &wanted.driver_opts {
        match option.as_str() {
            "size" => {
                size_bytes = bytes::parse(value).map_err(|e| Refusal::bad(format!("size {value:?}: {e}")))?;
            }
            "fs" => fs = value.parse().map_err(Refusal::bad)?,
            other => {
                return Err(Refusal::bad(format!(
                    "volumes have no option {other:?}: known are size and fs; a directory of the host is given with -v /DIR:/PATH"
                )));
            }
        }
    }
    let name = match wanted.name.is_empty() {
        true => ids::inside("")[..NAME].to_owned(),
        false => wanted.name,
    };
    Ok(NewVolume {
        name,
        size_bytes,
        fs,
        anonymous_of: None,
        labels: wanted.labels,
    })
}

/// Removes a volume with its data.
///
/// # Errors
/// 404, 409 for one that a container uses.
pub async fn remove(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let force = call.query.flag("force");
    blocking(app, move |app| match app.engine.volumes().remove(&name) {
        Ok(()) => Ok(()),
        Err(failure) => match failure.class {
            Class::NotFound | Class::Usage if force => Ok(()),
            Class::NotFound | Class::Usage => Err(missing(&name)),
            Class::Conflict => Err(Refusal::conflict(format!(
                "remove {name}: volume is in use - {}",
                crate::http::text_of(&failure)
            ))),
            _ => Err(failure.into()),
        },
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Removes volumes that nobody uses: those that were made without a name, with `all` the others too.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn prune(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&["all", "label", "label!"])?;
    // Before 1.42 there was no such choice, and all was meant.
    let all = filters.flag("all")?.unwrap_or(call.version < (1, 42));
    let (deleted, bytes) = blocking(app, move |app| {
        let (views, _) = app.engine.volume_list()?;
        let (mut deleted, mut bytes) = (Vec::new(), 0);
        for view in views {
            let is_unused = view.machines.as_ref().is_some_and(Vec::is_empty);
            if !is_unused || !(all || view.anonymous) || !filters.allow_labels(&view.labels) {
                continue;
            }
            match app.engine.volumes().remove(&view.name) {
                Ok(()) => {
                    bytes += view.used_bytes;
                    deleted.push(view.name);
                }
                // Somebody has come to use it, or removed it.
                Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
                Err(failure) => return Err(Refusal::from(failure)),
            }
        }
        Ok::<_, Refusal>((deleted, bytes))
    })
    .await?;
    Ok(json(
        StatusCode::OK,
        &json!({"VolumesDeleted": deleted, "SpaceReclaimed": bytes}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_gets_a_name_and_refuses_what_it_cannot_be() {
        let made = |text: &str| new_volume(serde_json::from_str(text).unwrap());
        let volume = made(r#"{"Name":"","Driver":"local","DriverOpts":{"size":"1G"}}"#).unwrap();
        assert!(volume.name.len() == NAME && volume.size_bytes == 1 << 30);
        for text in [
            r#"{"Driver":"nfs"}"#,
            r#"{"DriverOpts":{"type":"nfs"}}"#,
            r#"{"DriverOpts":{"size":"x"}}"#,
        ] {
            assert!(made(text).is_err(), "{text}");
        }
    }
}
