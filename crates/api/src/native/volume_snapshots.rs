//! Operations on snapshots of volumes, and copies of volumes.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;
use zmachine_store::volume::VolumeName;

use super::Call;
use super::files::NewName;
use super::machines::{failing, read};
use super::problem::Problem;
use super::snapshots::NewSnapshot;
use crate::app::App;
use crate::http::{Answer, empty, json};

/// Lists snapshots.
///
/// # Errors
/// When they cannot be listed.
pub async fn list(app: &Arc<App>) -> Result<Answer, Problem> {
    let listed = failing(app, |app| {
        let (views, failures) = app.engine.volume_snapshots(None)?;
        let unreadable: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Ok(json!({"snapshots": views, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &listed))
}

/// Saves a volume as it is.
///
/// # Errors
/// 404; 409 for a tag that is taken, and for a guest that does not stand still.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: NewSnapshot = read(call).await?;
    let keep = wanted.keep()?;
    let made = failing(app, move |app| {
        let name = VolumeName::parse(&wanted.name)?;
        let made = app.engine.snapshot_volume(&name, keep.as_ref())?;
        Ok(app.engine.volume_snapshot_view(made))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Removes a snapshot.
///
/// # Errors
/// 404.
pub async fn remove(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| {
        let name = VolumeName::parse(&name)?;
        app.engine.volumes().remove_snapshot(&name.volume, name.require_tag()?)
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Makes a volume what it was.
///
/// # Errors
/// 404; 409 for a volume that is in use.
pub async fn restore(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let restored = failing(app, move |app| {
        let name = VolumeName::parse(&name)?;
        name.require_tag()?;
        let volumes = app.engine.volumes();
        volumes.restore_snapshot(&volumes.find_snapshot(&name)?)?;
        app.engine.volume(&name.volume)
    })
    .await?;
    Ok(json(StatusCode::OK, &restored))
}

/// Copies a volume, or a snapshot of one.
///
/// # Errors
/// 404; 409 for a name that is taken, and for a guest that does not stand still.
pub async fn copy(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let of = call.place("name");
    let new: NewName = read(call).await?;
    let made = failing(app, move |app| {
        let made = app.engine.clone_volume(&VolumeName::parse(&of)?, &new.name)?;
        app.engine.volume(&made.name)
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}
