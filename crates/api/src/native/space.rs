//! What everything takes on this host, and freeing it.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use zmachine_image::Library;
use zmachine_network::DEFAULT_NETWORK;
use zmachine_spec::{Class, Failure};

use super::Call;
use super::machines::failing;
use super::problem::Problem;
use crate::app::App;
use crate::docker::inspect::disk_bytes;
use crate::http::{Answer, json};

/// Tells what everything takes.
///
/// # Errors
/// When something cannot be listed.
pub async fn usage(app: &Arc<App>) -> Result<Answer, Problem> {
    let document = failing(app, |app| {
        let engine = &app.engine;
        let mut unreadable = Vec::new();
        let mut machines = Vec::new();
        for listed in engine.machines()? {
            match listed {
                Ok(machine) => machines.push(machine),
                Err((_, failure)) => unreadable.push(failure.to_string()),
            }
        }
        let of = |kind: &str, all: &[(bool, u64)], reclaimable: u64| {
            json!({
                "kind": kind, "total": all.len(), "active": all.iter().filter(|(is_active, _)| *is_active).count(),
                "bytes": all.iter().map(|(_, bytes)| bytes).sum::<u64>(), "reclaimable_bytes": reclaimable,
            })
        };
        let idle =
            |all: &[(bool, u64)]| -> u64 { all.iter().filter(|(active, _)| !active).map(|(_, bytes)| bytes).sum() };
        let disks: Vec<_> = machines
            .iter()
            .map(|machine| (machine.state.phase.is_active(), disk_bytes(machine)))
            .collect();
        let library = Library::open(engine.home().data())?;
        let used: Vec<String> = machines
            .iter()
            .filter_map(|machine| machine.plan().ok()?.image().map(str::to_owned))
            .collect();
        let listed = library.list_readable()?.0;
        let is_used = |digest: &str| used.iter().any(|used| used == digest);
        let images: Vec<_> = listed
            .iter()
            .map(|image| (is_used(&image.digest.to_string()), image.flist_bytes))
            .collect();
        let nameless = listed.iter().zip(&images);
        let nameless = nameless.filter(|(image, (is_used, _))| image.names.is_empty() && !is_used);
        let nameless = nameless.map(|(_, (_, bytes))| bytes).sum();
        let cache = library.cache_usage()?;
        let templates: Vec<_> = engine.template_uses()?.into_iter().collect();
        let of_templates = json!({
            "kind": "templates",
            "total": templates.iter().map(|(_, found)| found.count).sum::<usize>(),
            "active": 0,
            "bytes": templates.iter().map(|(_, found)| found.bytes).sum::<u64>(),
            "reclaimable_bytes": 0,
        });
        let (views, failures) = engine.volume_list()?;
        unreadable.extend(failures.iter().map(ToString::to_string));
        let volumes: Vec<_> = views
            .iter()
            .map(|view| {
                (
                    view.machines.as_ref().is_none_or(|users| !users.is_empty()),
                    view.used_bytes,
                )
            })
            .collect();
        Ok(json!({
            "usage": [
                of("images", &images, nameless),
                {"kind": "blocks", "total": cache.blocks, "active": 0, "bytes": cache.bytes, "reclaimable_bytes": 0},
                of_templates,
                of("machines", &disks, idle(&disks)),
                of("volumes", &volumes, idle(&volumes)),
            ],
            "unreadable": unreadable,
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &document))
}

/// What a prune has removed.
#[derive(Default)]
struct Pruned {
    removed: Vec<String>,
    bytes: u64,
    failures: Vec<String>,
}

impl Pruned {
    /// Takes down how the removal of one thing went.
    fn note(&mut self, name: String, bytes: u64, removed: Result<(), Failure>) {
        match removed {
            Ok(()) => {
                self.removed.push(name);
                self.bytes += bytes;
            }
            // Somebody has come to use it, or removed it.
            Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
            Err(failure) => self.failures.push(failure.to_string()),
        }
    }

    fn answer(self) -> Value {
        json!({"removed": self.removed, "bytes": self.bytes, "failures": self.failures})
    }
}

/// Removes the machines that do not run.
///
/// # Errors
/// When they cannot be listed.
pub async fn prune_machines(app: &Arc<App>) -> Result<Answer, Problem> {
    let pruned = failing(app, |app| {
        let mut pruned = Pruned::default();
        for listed in app.engine.machines()? {
            match listed {
                Ok(machine) if machine.state.phase.is_active() => {}
                Ok(machine) => {
                    let (name, bytes) = (machine.spec.name.clone(), disk_bytes(&machine));
                    pruned.note(name, bytes, app.engine.remove(&machine.id, false, true));
                }
                Err((_, failure)) => pruned.failures.push(failure.to_string()),
            }
        }
        Ok(pruned.answer())
    })
    .await?;
    Ok(json(StatusCode::OK, &pruned))
}

/// Removes the networks that no machine is in, but the default one.
///
/// # Errors
/// When they cannot be listed.
pub async fn prune_networks(app: &Arc<App>) -> Result<Answer, Problem> {
    let pruned = failing(app, |app| {
        app.engine.reconcile()?;
        let mut pruned = Pruned::default();
        for network in app.engine.network_list()? {
            if network.machines.is_empty() && network.name != DEFAULT_NETWORK {
                let removed = app.engine.remove_network(&network.name);
                pruned.note(network.name, 0, removed);
            }
        }
        Ok(pruned.answer())
    })
    .await?;
    Ok(json(StatusCode::OK, &pruned))
}

/// Removes the volumes that no machine uses.
///
/// # Errors
/// When they cannot be listed.
pub async fn prune_volumes(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let all = call.query.flag("all");
    let pruned = failing(app, move |app| {
        let pruned = app.engine.prune_volumes(all)?;
        Ok(Pruned {
            removed: pruned.removed,
            bytes: pruned.bytes,
            failures: pruned.failures.iter().map(ToString::to_string).collect(),
        }
        .answer())
    })
    .await?;
    Ok(json(StatusCode::OK, &pruned))
}

/// Removes images without a name that no machine uses, and blocks that no image has.
///
/// # Errors
/// 409 while an image is being used for something new.
pub async fn prune_images(app: &Arc<App>) -> Result<Answer, Problem> {
    let pruned = failing(app, |app| {
        let report = app.engine.prune_images()?;
        Ok(json!({"images": report.images, "blocks": report.blocks, "bytes": report.bytes}))
    })
    .await?;
    Ok(json(StatusCode::OK, &pruned))
}
