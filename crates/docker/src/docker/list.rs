//! `containers/json`: all containers, or some.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use zmachine_engine::Engine;
use zmachine_engine::views::MachineSummary;
use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_spec::{Kind, Phase};
use zmachine_store::catalog::Machine;

use super::query::{Filters, name_fits};
use super::{Call, ids, images, inspect, networks, text, wait};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, json};

const FILTERS: [&str; 14] = [
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish",
    "since", "status", "volume",
];

/// Lists containers: those that run, unless all or some state are asked for; the newest first.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&FILTERS)?;
    let limit = call.query.number("limit")?.filter(|limit| *limit > 0);
    let with_size = call.query.flag("size");
    let asks_state = filters.has("status") || filters.has("exited");
    let all = call.query.flag("all") || limit.is_some() || asks_state;
    let rows = blocking(app, move |app| {
        let machines = chosen(&app.engine, &filters, all)?;
        let library = Library::open(app.engine.home().data())?;
        let limit = limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        let shown = machines.iter().take(limit);
        let known = Known::new(&app.engine, &library);
        Ok::<_, Refusal>(shown.map(|machine| row(&known, machine, with_size)).collect::<Vec<_>>())
    })
    .await?;
    Ok(json(StatusCode::OK, &rows))
}

/// The containers that a filter lets through, the newest first. One that cannot be read is left out: it would make the listing fail for
/// all others.
///
/// # Errors
/// 404 for a container of a filter that is not there.
pub fn chosen(engine: &Engine, filters: &Filters, all: bool) -> Result<Vec<Machine>, Refusal> {
    let mut machines: Vec<Machine> = engine.machines()?.into_iter().flatten().collect();
    machines.retain(|machine| machine.state.kind == Kind::Container);
    machines.reverse();
    let age = |name: &String| ids::machine(engine, name).map(|machine| machine.state.created_at);
    let before = filters
        .values("before")
        .iter()
        .map(age)
        .collect::<Result<Vec<_>, _>>()?;
    let since = filters.values("since").iter().map(age).collect::<Result<Vec<_>, _>>()?;
    let ancestors: Vec<String> = filters
        .values("ancestor")
        .iter()
        .filter_map(|name| Some(images::find(engine, name).ok()?.digest.to_string()))
        .collect();
    machines.retain(|machine| {
        let state = text::state(&machine.state.phase);
        let is_shown = all || machine.state.phase.is_active();
        is_shown
            && filters.allow("status", |wanted| wanted == state)
            && filters.allow("id", |wanted| ids::container(&machine.id).starts_with(wanted))
            && filters.allow("name", |wanted| name_fits(&machine.spec.name, wanted))
            && before.iter().all(|at| machine.state.created_at < *at)
            && since.iter().all(|at| machine.state.created_at > *at)
            && filters.allow("is-task", |wanted| wanted == "false")
            && filters.allow("exited", |code| {
                state == "exited" && text::exit_code(&machine.state.phase).to_string() == code
            })
            && fits_plan(engine, machine, filters, &ancestors)
    });
    Ok(machines)
}

/// What of a filter needs the plan of a machine.
fn fits_plan(engine: &Engine, machine: &Machine, filters: &Filters, ancestors: &[String]) -> bool {
    const OF_PLAN: [&str; 7] = ["label", "health", "ancestor", "publish", "expose", "volume", "network"];
    if !OF_PLAN.iter().any(|name| filters.has(name)) {
        return true;
    }
    let summary = MachineSummary::new(machine);
    let Ok(plan) = machine.plan() else { return false };
    let labels = match &plan {
        zmachine_plan::Plan::Container(plan) => {
            let mut labels = plan.labels.clone();
            labels.extend(machine.spec.labels.clone());
            labels
        }
        zmachine_plan::Plan::Vm(_) => machine.spec.labels.clone(),
    };
    let is_of = |wanted: &str| {
        summary.flist == wanted
            || plan
                .image()
                .is_some_and(|image| ancestors.iter().any(|known| known == image))
    };
    let has_port = |wanted: &str| {
        let bare = wanted.split('/').next().unwrap_or(wanted);
        inspect::open_ports(machine, &plan)
            .iter()
            .any(|(_, host, guest, _)| host.to_string() == bare || guest.to_string() == bare)
    };
    filters.allow_labels(&labels)
        && filters.allow("health", |wanted| summary.health.unwrap_or("none") == wanted)
        && filters.allow("ancestor", is_of)
        && filters.allow("publish", has_port)
        && filters.allow("expose", has_port)
        && filters.allow("volume", |wanted| {
            summary.volumes.iter().any(|volume| volume == wanted)
                || machine.spec.volumes.iter().any(|volume| volume.target == wanted)
        })
        && filters.allow("network", |wanted| {
            summary.networks.iter().any(|network| {
                networks::shown_name(network) == wanted || networks::id(engine, network).starts_with(wanted)
            })
        })
}

/// Ids of images and networks, each looked up once for a whole listing.
pub struct Known<'a> {
    engine: &'a Engine,
    library: &'a Library,
    images: RefCell<BTreeMap<String, String>>,
    networks: RefCell<BTreeMap<String, String>>,
}

impl<'a> Known<'a> {
    /// Nothing is known yet.
    pub fn new(engine: &'a Engine, library: &'a Library) -> Known<'a> {
        Known {
            engine,
            library,
            images: RefCell::default(),
            networks: RefCell::default(),
        }
    }

    fn image(&self, digest: &Digest) -> String {
        let mut images = self.images.borrow_mut();
        let id = images
            .entry(digest.to_string())
            .or_insert_with(|| images::id(self.library, digest));
        id.clone()
    }

    /// The id of a network.
    pub fn network(&self, name: &str) -> String {
        let mut networks = self.networks.borrow_mut();
        let id = networks
            .entry(name.to_owned())
            .or_insert_with(|| networks::id(self.engine, name));
        id.clone()
    }
}

/// One container of a listing.
pub fn row(known: &Known<'_>, machine: &Machine, with_size: bool) -> Value {
    let summary = MachineSummary::new(machine);
    let now = Timestamp::now();
    let last = match machine.state.phase {
        Phase::Restarting { .. } => wait::last_code(&machine.dir),
        _ => 0,
    };
    let plan = machine.plan().ok();
    let digest: Option<Digest> = plan.as_ref().and_then(|plan| plan.image()?.parse().ok());
    let create = inspect::remembered(machine);
    let image = create.get("Image").and_then(Value::as_str).unwrap_or(&summary.flist);
    let ports: Vec<Value> = plan
        .iter()
        .flat_map(|plan| inspect::open_ports(machine, plan))
        .map(|(address, host, guest, protocol)| {
            json!({"IP": address, "PrivatePort": guest, "PublicPort": host, "Type": protocol})
        })
        .collect();
    let mut labels = match &plan {
        Some(zmachine_plan::Plan::Container(plan)) => plan.labels.clone(),
        _ => Default::default(),
    };
    labels.extend(machine.spec.labels.clone());
    let mut shown = json!({
        "Id": ids::container(&machine.id),
        "Names": [format!("/{}", machine.spec.name)],
        "Image": image,
        "ImageID": digest.map_or_else(String::new, |digest| known.image(&digest)),
        "Command": summary.command.join(" "),
        "Created": machine.state.created_at.as_second(),
        "Ports": ports,
        "Labels": labels,
        "State": text::state(&machine.state.phase),
        "Status": text::status(&summary, &machine.state.phase, last, now),
        "HostConfig": {"NetworkMode": inspect::mode_of(&machine.spec)},
        "NetworkSettings": {
            "Networks": plan.as_ref().map_or_else(Map::new, |plan| inspect::endpoints(&|name| known.network(name), machine, plan)),
        },
        "Mounts": inspect::mounts(machine),
    });
    if with_size {
        let bytes = inspect::disk_bytes(machine);
        shown["SizeRw"] = json!(bytes);
        shown["SizeRootFs"] = json!(bytes);
    }
    shown
}
