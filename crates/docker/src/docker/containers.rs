//! What is done with containers: started, stopped, changed, removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use zmachine_engine::{CommitRequest, Engine};
use zmachine_image::{Library, Silent};
use zmachine_spec::{Change, Class, Cpus, Failure, Phase, RestartPolicy, Signal};
use zmachine_store::catalog::Machine;
use zmachine_transfer::Change as FileChange;

use super::stream::ToMonitor;
use super::{Call, body, create, ids, images, inspect, list, text};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, empty, json};

/// How long a container may take to end after SIGKILL, before its virtual machine is ended.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// The number of SIGKILL.
const KILL: i32 = 9;

fn done() -> Answer {
    empty(StatusCode::NO_CONTENT)
}

/// Starts a container; who attached before follows it from the first byte on.
///
/// # Errors
/// 404; 400 and 500 with the reason when it does not start.
pub async fn start(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let started = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if machine.state.phase.is_active() {
            return Ok(false);
        }
        let program = program_of(&machine);
        match begin(app, &machine) {
            Ok(()) => Ok(true),
            // Somebody else has.
            Err(failure) if failure.class == Class::Conflict && is_active(&app.engine, &machine.id) => Ok(false),
            Err(failure) => Err(start_refused(app, &machine, &failure, program.as_deref())),
        }
    })
    .await?;
    Ok(match started {
        true => done(),
        false => empty(StatusCode::NOT_MODIFIED),
    })
}

fn is_active(engine: &Engine, id: &str) -> bool {
    engine.machine(id).is_ok_and(|machine| machine.state.phase.is_active())
}

/// Starts it, and hands those who wait for it their streams.
///
/// # Errors
/// Why it did not start.
pub fn begin(app: &App, machine: &Machine) -> Result<(), Failure> {
    let waiting = app.take_attachers(&machine.id);
    let mut starting = app.engine.start(&machine.id, !waiting.is_empty())?;
    if !waiting.is_empty() {
        starting.wait_listening()?;
    }
    // The one with input is the one whose end is that of the input.
    let owner = waiting.iter().position(|attacher| attacher.stdin).unwrap_or(0);
    for (index, attacher) in waiting.into_iter().enumerate() {
        // When it ended already, its own words below say why.
        if let Ok((_input, output)) = app.engine.attach(&machine.id, attacher.stdin, index == owner) {
            let _ = attacher.stream.send(ToMonitor::new(output));
        }
    }
    starting.wait_ready(&Silent)
}

/// What a container runs. Asked before its start: one that removes itself at its end is gone when that fails.
fn program_of(machine: &Machine) -> Option<String> {
    inspect::args(&machine.plan().ok()?).first().cloned()
}

/// Why it did not start; one that was to be removed at its end is.
fn start_refused(app: &App, machine: &Machine, failure: &Failure, program: Option<&str>) -> Refusal {
    if machine.spec.auto_remove
        && let Ok(now) = app.engine.machine(&machine.id)
        && !now.state.phase.is_active()
    {
        let _ = app.engine.remove(&machine.id, false, true);
    }
    let status = Refusal::from(failure.clone()).status;
    let message = text::start_failure(failure, program);
    // A port that is taken is nothing that the request could say better.
    let is_port = failure.to_string().contains("port");
    match failure.class {
        Class::Conflict if is_port => Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{message}: port is already allocated"),
        ),
        // Clients take 404 for a missing container.
        Class::NotFound => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        _ => Refusal::new(status, message),
    }
}

/// Time between the stop signal and the end by force, of the parameter `t`; less than nothing is for ever.
fn grace(call: &Call) -> Result<Option<Duration>, Refusal> {
    Ok(call.query.number("t")?.map(|seconds| match u64::try_from(seconds) {
        Ok(seconds) => Duration::from_secs(seconds.min(u64::from(u32::MAX))),
        Err(_) => Duration::from_secs(u64::from(u32::MAX)),
    }))
}

/// Stops a container in an orderly way.
///
/// # Errors
/// 404; 500 when it does not end.
pub async fn stop(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let grace = grace(call)?;
    let signal = signal_of(call)?;
    let stopped = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if !machine.state.phase.is_active() {
            return Ok::<_, Refusal>(false);
        }
        end(&app.engine, &machine, grace, signal)?;
        Ok(true)
    })
    .await?;
    Ok(match stopped {
        true => done(),
        false => empty(StatusCode::NOT_MODIFIED),
    })
}

/// Asks a container to end, by another signal than its own where one is named.
fn end(engine: &Engine, machine: &Machine, grace: Option<Duration>, signal: Option<Signal>) -> Result<(), Refusal> {
    if let Some(signal) = signal {
        let _ = engine.signal(&machine.id, signal.number());
        let default = machine
            .spec
            .stop_timeout_s
            .map_or(Duration::from_secs(10), Duration::from_secs);
        if has_ended(engine, &machine.id, grace.unwrap_or(default)) {
            return Ok(());
        }
        return Ok(engine.stop(&machine.id, Some(Duration::ZERO))?);
    }
    Ok(engine.stop(&machine.id, grace)?)
}

fn has_ended(engine: &Engine, id: &str, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if !is_active(engine, id) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Stops a container that runs, and starts it.
///
/// # Errors
/// 404; those of a start.
pub async fn restart(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let grace = grace(call)?;
    let signal = signal_of(call)?;
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if machine.state.phase.is_active() {
            end(&app.engine, &machine, grace, signal)?;
        }
        let program = program_of(&machine);
        begin(app, &machine).map_err(|failure| start_refused(app, &machine, &failure, program.as_deref()))
    })
    .await?;
    Ok(done())
}

fn signal_of(call: &Call) -> Result<Option<Signal>, Refusal> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| Refusal::bad(format!("Invalid signal: {text}")))
    };
    call.query.get("signal").map(parse).transpose()
}

/// Sends a signal to the entrypoint of a container.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn kill(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let signal = signal_of(call)?.map_or(KILL, Signal::number);
    blocking(app, move |app| {
        let engine = &app.engine;
        let machine = ids::machine(engine, &name)?;
        let id = ids::container(&machine.id);
        match machine.state.phase {
            // What a terminal says about its size while the container starts is no reason to fail.
            Phase::Starting if signal != KILL => return Ok(()),
            ref phase if !phase.is_active() => {
                return Err(Refusal::conflict(format!(
                    "cannot kill container: {name}: container {id} is not running"
                )));
            }
            _ => {}
        }
        if signal != KILL {
            return Ok(engine.signal(&machine.id, signal)?);
        }
        // By the guest, so that what the container wrote to its volumes is on them.
        let is_awake = machine.state.phase == Phase::Running && engine.signal(&machine.id, KILL).is_ok();
        if is_awake && machine.spec.restart != RestartPolicy::No {
            let _ = engine.stop(&machine.id, Some(Duration::ZERO));
        }
        if !is_awake || !has_ended(engine, &machine.id, KILL_TIMEOUT) {
            match engine.kill(&machine.id) {
                Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
                killed => killed?,
            }
        }
        Ok(())
    })
    .await?;
    Ok(done())
}

/// Halts a container.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn pause(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        let id = ids::container(&machine.id);
        match machine.state.phase {
            Phase::Running => Ok(app.engine.pause(&machine.id)?),
            Phase::Paused => Err(Refusal::conflict(format!("Container {id} is already paused"))),
            _ => Err(Refusal::conflict(format!("Container {id} is not running"))),
        }
    })
    .await?;
    Ok(done())
}

/// Lets a container run on.
///
/// # Errors
/// 404; 409 for one that is not paused.
pub async fn unpause(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        match machine.state.phase {
            Phase::Paused => Ok(app.engine.resume(&machine.id)?),
            _ => Err(Refusal::conflict(format!(
                "Container {} is not paused",
                ids::container(&machine.id)
            ))),
        }
    })
    .await?;
    Ok(done())
}

/// Gives a container another name.
///
/// # Errors
/// 404; 409 for a name that is taken.
pub async fn rename(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let new = call
        .query
        .get("name")
        .unwrap_or_default()
        .trim_start_matches('/')
        .to_owned();
    if new.is_empty() {
        return Err(Refusal::bad("Neither old nor new names may be empty"));
    }
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        Ok::<_, Refusal>(app.engine.rename(&machine.id, &new)?)
    })
    .await?;
    Ok(done())
}

/// Changes what of a container may be another.
///
/// # Errors
/// 404; 409 for what waits for a stop.
pub async fn update(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::HostConfig = body::read(call.request.into_body()).await?;
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        let milli = create::milli_cpus(wanted.nano_cpus, wanted.cpu_quota, wanted.cpu_period);
        let cpus = milli.map(|milli| format!("{}.{:03}", milli / 1000, milli % 1000).parse::<Cpus>());
        let policy = &wanted.restart_policy;
        let restart = match (policy.name.as_str(), policy.maximum_retry_count) {
            ("", _) => None,
            ("on-failure", count) if count > 0 => Some(format!("on-failure:{count}").parse()?),
            (name, _) => Some(name.parse()?),
        };
        let cpuset = (!wanted.cpuset_cpus.is_empty()).then(|| wanted.cpuset_cpus.parse());
        let change = Change {
            restart,
            cpus: cpus.transpose()?,
            cpuset: cpuset.transpose()?,
            memory_bytes: create::memory(wanted.memory),
            ..Change::default()
        };
        Ok::<_, Refusal>(app.engine.update(&machine.id, &change)?)
    })
    .await?;
    Ok(json(StatusCode::OK, &json!({"Warnings": null})))
}

/// Removes a container.
///
/// # Errors
/// 404; 409 for one that runs, unless it is forced.
pub async fn remove(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let (force, volumes) = (call.query.flag("force"), call.query.flag("v"));
    blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if machine.state.phase.is_active() && !force {
            let state = text::state(&machine.state.phase);
            let own = &machine.spec.name;
            return Err(Refusal::conflict(format!(
                "cannot remove container \"/{own}\": container is {state}: stop the container before removing or force remove"
            )));
        }
        match app.engine.remove(&machine.id, force, volumes) {
            // It has removed itself.
            Err(failure) if failure.class == Class::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    })
    .await?;
    Ok(done())
}

/// Removes the containers that do not run.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn prune(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&["label", "label!", "until"])?;
    let (deleted, bytes) = blocking(app, move |app| {
        let until: Option<Timestamp> = filters
            .values("until")
            .first()
            .map(|text| images::until(text))
            .transpose()?;
        let (mut deleted, mut bytes) = (Vec::new(), 0);
        for machine in list::chosen(&app.engine, &filters, true)? {
            let is_young = until.is_some_and(|until| machine.state.created_at > until);
            if machine.state.phase.is_active() || is_young || !filters.allow_labels(&machine.spec.labels) {
                continue;
            }
            let size = inspect::disk_bytes(&machine);
            match app.engine.remove(&machine.id, false, false) {
                Ok(()) => {
                    deleted.push(ids::container(&machine.id));
                    bytes += size;
                }
                // It was started, or removed, meanwhile.
                Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
                Err(failure) => return Err(Refusal::from(failure)),
            }
        }
        Ok((deleted, bytes))
    })
    .await?;
    Ok(json(
        StatusCode::OK,
        &json!({"ContainersDeleted": deleted, "SpaceReclaimed": bytes}),
    ))
}

/// Lists the processes of a container.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn top(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let processes = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        if !machine.state.phase.is_active() {
            let id = ids::container(&machine.id);
            return Err(Refusal::conflict(format!("container {id} is not running")));
        }
        Ok(app.engine.processes(&machine.id)?)
    })
    .await?;
    let now = Timestamp::now();
    let row = |process: &zmachine_agent_protocol::ProcessState| {
        let age = jiff::SignedDuration::from_millis(i64::try_from(process.age_ms).unwrap_or(i64::MAX));
        let started = (now - age).to_string();
        let seconds = process.cpu_ms / 1000;
        json!([
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            "0",
            started.get(11..16).unwrap_or_default(),
            "?",
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            process.command,
        ])
    };
    let rows: Vec<Value> = processes.iter().map(row).collect();
    Ok(json(
        StatusCode::OK,
        &json!({"Titles": ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "Processes": rows}),
    ))
}

/// Lists what a container has other than its image.
///
/// # Errors
/// 404.
pub async fn changes(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let changes = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        Ok::<_, Refusal>(app.engine.open_root(&machine.id, &Silent)?.changes()?)
    })
    .await?;
    let row = |(change, path): &(FileChange, std::path::PathBuf)| {
        let kind = match change {
            FileChange::Changed => 0,
            FileChange::Added => 1,
            FileChange::Deleted => 2,
        };
        let path = path.to_string_lossy();
        json!({"Path": format!("/{}", path.trim_start_matches('/')), "Kind": kind})
    };
    Ok(json(StatusCode::OK, &changes.iter().map(row).collect::<Vec<_>>()))
}

/// Makes an image of a container.
///
/// # Errors
/// 404; 400 for changes that are no instructions.
pub async fn commit(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let query = call.query.clone();
    let container = query.get("container").unwrap_or_default().to_owned();
    let name = query.get("repo").map(|repository| match query.get("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    });
    // Clients that send a body mean what the container was made with.
    drop(call.request);
    let id = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &container)?;
        let name = name.as_deref().map(images::new_name).transpose()?;
        let changes: Vec<String> = query
            .all("changes")
            .flat_map(str::lines)
            .filter(|line| !line.trim().is_empty())
            .map(str::to_owned)
            .collect();
        let request = CommitRequest {
            machine: &machine.id,
            name: name.as_ref(),
            author: query.get("author").map(str::to_owned),
            message: query.get("comment").map(str::to_owned),
            changes: &changes,
            paused: query.flag_or("pause", true),
        };
        let image = app.engine.commit(&request, &Silent, |_| ())?;
        let library = Library::open(app.engine.home().data())?;
        Ok::<_, Refusal>(images::id(&library, &image.digest))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &json!({"Id": id})))
}
