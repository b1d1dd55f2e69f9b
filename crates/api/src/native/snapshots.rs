//! Operations on snapshots: machines saved while they run, restored, and forked.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use zmachine_engine::{Engine, Saves};
use zmachine_image::Silent;
use zmachine_spec::keep::Keep;
use zmachine_spec::{Class, Failure};
use zmachine_store::snapshot::SnapshotName;

use super::Call;
use super::files::ARCHIVE;
use super::machines::{failing, read, shown, tagged};
use super::problem::Problem;
use crate::app::App;
use crate::files;
use crate::http::{Answer, empty, json, reader, typed};

/// The most forks that one request makes.
const MOST_FORKS: u16 = 1000;

/// Lists snapshots.
///
/// # Errors
/// When they cannot be listed.
pub async fn list(app: &Arc<App>) -> Result<Answer, Problem> {
    let listed = failing(app, |app| {
        let (views, failures) = app.engine.snapshot_list()?;
        let unreadable: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Ok(json!({"snapshots": views, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &listed))
}

/// Saves a machine as it is, or its disks.
///
/// # Errors
/// 404; 409 for a machine that does not run, unless its disks alone are saved, and for a tag that is taken.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: NewMachineSnapshot = read(call).await?;
    let keep = wanted.keep()?;
    let made = failing(app, move |app| {
        let snapshot =
            app.engine
                .create_snapshot(&SnapshotName::parse(&wanted.name)?, wanted.saves(), keep.as_ref())?;
        app.engine.snapshot_view(&SnapshotName::parse(&snapshot.name())?)
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Shows a snapshot.
///
/// # Errors
/// 404.
pub async fn get(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| app.engine.snapshot_view(&SnapshotName::parse(&name)?)).await?;
    Ok(json(StatusCode::OK, &found))
}

/// Removes a snapshot.
///
/// # Errors
/// 404.
pub async fn remove(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| app.engine.remove_snapshot(&SnapshotName::parse(&name)?)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Lets a machine go on from a snapshot.
///
/// # Errors
/// 404; 409 for a machine that runs; 422 for a snapshot that does not fit.
pub async fn restore(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| {
        let name = SnapshotName::parse(&name)?;
        app.engine.restore(&name)?.wait_ready(&Silent)?;
        shown(&app.engine, &name.machine)
    })
    .await?;
    Ok(tagged(StatusCode::OK, found))
}

/// Gives a snapshot as an archive.
///
/// # Errors
/// 404.
pub async fn export(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let ((), body) = files::written(app, move |app, begin, out| {
        let name = SnapshotName::parse(&name)?;
        // What cannot be read is told before the stream begins.
        app.engine.snapshot_view(&name)?;
        begin(());
        app.engine.export_snapshot(&name, out).map_err(Problem::from)
    })
    .await?;
    Ok(typed(StatusCode::OK, ARCHIVE, body))
}

/// Takes a snapshot from an archive.
///
/// # Errors
/// 400 for what is none; 409 for a name that is taken.
pub async fn import(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.query.get("name").map(SnapshotName::parse).transpose()?;
    let archive = reader(call.body);
    let made = failing(app, move |app| {
        let snapshot = app.engine.import_snapshot(archive, name.as_ref())?;
        app.engine.snapshot_view(&SnapshotName::parse(&snapshot.name())?)
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Wanted machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fork {
    source: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default = "one")]
    number: u16,
    #[serde(default)]
    env: Vec<String>,
}

/// A wanted snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSnapshot {
    pub(super) name: String,
    #[serde(default)]
    keep: Option<String>,
}

impl NewSnapshot {
    /// Which older ones stay.
    pub(super) fn keep(&self) -> Result<Option<Keep>, Failure> {
        kept(self.keep.as_deref())
    }
}

/// A wanted snapshot of a machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMachineSnapshot {
    name: String,
    #[serde(default)]
    disk_only: bool,
    #[serde(default)]
    keep: Option<String>,
}

impl NewMachineSnapshot {
    fn keep(&self) -> Result<Option<Keep>, Failure> {
        kept(self.keep.as_deref())
    }

    fn saves(&self) -> Saves {
        match self.disk_only {
            true => Saves::Disks,
            false => Saves::Machine,
        }
    }
}

fn kept(text: Option<&str>) -> Result<Option<Keep>, Failure> {
    let keep = text.map(str::parse::<Keep>).transpose();
    keep.map_err(|message| Failure::new(Class::Usage, format!("keep: {message}")))
}

fn one() -> u16 {
    1
}

/// Makes machines that go on from where another one is, or was.
///
/// # Errors
/// 404; 409 for a name that is taken; 422 for what does not fit. Those that are there by then run on, and are named in `machines` when
/// there is one at least.
pub async fn fork(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: Fork = read(call).await?;
    if !(1..=MOST_FORKS).contains(&wanted.number) {
        let message = format!("number: {} is not from 1 to {MOST_FORKS}", wanted.number);
        return Err(Failure::new(Class::Usage, message).into());
    }
    let made = failing(app, move |app| forked(&app.engine, &wanted)).await?;
    Ok(json(StatusCode::CREATED, &made))
}

fn forked(engine: &Engine, wanted: &Fork) -> Result<serde_json::Value, Failure> {
    let variable = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::new(Class::Usage, format!("env: '{text}' is not NAME=VALUE"))),
    };
    let env: Vec<(String, String)> = wanted.env.iter().map(variable).collect::<Result<_, _>>()?;
    let source = engine.fork_source(&SnapshotName::parse(&wanted.source)?)?;
    let (mut starting, mut first) = (Vec::new(), None);
    for number in 1..=wanted.number {
        let name = match &wanted.name {
            Some(name) if wanted.number == 1 => Ok(name.clone()),
            Some(prefix) => Ok(format!("{prefix}-{number}")),
            None => engine.free_fork_name(source.machine()),
        };
        match name.and_then(|name| engine.fork(&source, &name, &env, &Silent)) {
            Ok(one) => starting.push(one),
            Err(failure) => {
                first = Some(failure);
                break;
            }
        }
    }
    let mut made = Vec::new();
    for (machine, mut starting) in starting {
        match starting.wait_ready(&Silent) {
            Ok(()) => made.push(machine.spec.name),
            Err(failure) => {
                starting.wait_gone();
                let _ = engine.remove(&machine.id, true, true);
                first.get_or_insert(failure);
            }
        }
    }
    match first {
        Some(failure) if made.is_empty() => Err(failure),
        first => Ok(json!({"machines": made, "failed": first.map(|failure| failure.to_string())})),
    }
}
