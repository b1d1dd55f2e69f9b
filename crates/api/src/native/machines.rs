//! Operations on machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zmachine_engine::views::MachineSummary;
use zmachine_engine::{CreateOptions, Engine};
use zmachine_image::{PullPolicy, Silent};
use zmachine_spec::{Change, Class, Exit, Failure, MachineSpec, RestartPolicy, Signal, redact};
use zmachine_store::attempt::explain;
use zmachine_store::catalog::{self, Machine};

use super::Call;
use super::problem::Problem;
use crate::app::{App, blocking};
use crate::docker::ids;
use crate::http::{Answer, Body, Refusal, empty, json, typed, whole};

/// The label by which a machine is known that was made by a request with a key.
pub const KEY_LABEL: &str = "org.zmachine.idempotency-key";

/// Machines on a page where nothing is said, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// Carries out a call that blocks; its failure keeps its class and hint.
///
/// # Errors
/// Those of the call.
pub async fn failing<T: Send + 'static>(
    app: &Arc<App>,
    call: impl FnOnce(&App) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Problem> {
    let done = blocking(app, move |app| Ok::<_, Refusal>(call(app))).await?;
    Ok(done?)
}

/// Reads a body in JSON.
///
/// # Errors
/// 400 for what is none.
pub async fn read<T: DeserializeOwned>(call: Call) -> Result<T, Problem> {
    let bytes = whole(call.body).await?;
    let wrong = |e: serde_json::Error| Failure::new(Class::Usage, format!("the body is not what is expected: {e}"));
    Ok(serde_json::from_slice(&bytes).map_err(wrong)?)
}

/// What changes with the spec of a machine.
fn tag(machine: &Machine) -> String {
    let text = serde_json::to_string(&machine.spec).unwrap_or_default();
    format!("\"{}\"", &ids::of(&text)[..16])
}

/// That the caller knows the spec as it is, when it says which one it knows.
fn require_match(machine: &Machine, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(known) = headers.get(IF_MATCH) else {
        return Ok(());
    };
    let known = known.to_str().unwrap_or_default();
    let own = tag(machine);
    if known.split(',').any(|one| one.trim() == "*" || one.trim() == own) {
        return Ok(());
    }
    let message = format!("machine '{}' has been changed meanwhile", machine.spec.name);
    let failure = Failure::new(Class::Conflict, message).hint("get it again, and decide anew");
    Err(Problem::with_status(failure, StatusCode::PRECONDITION_FAILED))
}

pub(super) fn shown(engine: &Engine, id: &str) -> Result<(Value, String), Failure> {
    let machine = engine.machine(id)?;
    Ok((redact::shown(&engine.inspect(id)?), tag(&machine)))
}

pub(super) fn tagged(status: StatusCode, (document, tag): (Value, String)) -> Answer {
    let mut answer = json(status, &document);
    if let Ok(value) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(ETAG, value);
    }
    answer
}

async fn machine_after(
    app: &Arc<App>,
    call: &Call,
    act: impl FnOnce(&Engine, &str) -> Result<(), Failure> + Send + 'static,
) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| {
        let id = app.engine.machine(&name)?.id;
        act(&app.engine, &id)?;
        shown(&app.engine, &id)
    })
    .await?;
    Ok(tagged(StatusCode::OK, found))
}

async fn nothing_after(
    app: &Arc<App>,
    call: &Call,
    act: impl FnOnce(&Engine, &str) -> Result<(), Failure> + Send + 'static,
) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| {
        let id = app.engine.machine(&name)?.id;
        act(&app.engine, &id)
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Lists machines.
///
/// # Errors
/// 400 for parameters that make no sense.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let limit = match call.query.number("limit")? {
        None => PAGE.0,
        Some(limit) => usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=PAGE.1).contains(limit))
            .ok_or_else(|| Failure::new(Class::Usage, format!("limit: {limit} is not from 1 to {}", PAGE.1)))?,
    };
    let text = |name: &str| call.query.get(name).map(str::to_owned);
    let (after, state, kind) = (text("after"), text("state"), text("kind"));
    let labels: Vec<String> = call.query.all("label").map(str::to_owned).collect();
    let page = failing(app, move |app| {
        let all = app.listing.all(&app.engine)?;
        let mut page = Page::default();
        let mut is_behind = after.is_none();
        for listed in &all {
            let machine = match listed {
                Ok(machine) => machine.as_ref(),
                Err((id, failure)) => {
                    page.unreadable.push(json!({"id": id, "detail": failure.to_string()}));
                    continue;
                }
            };
            if !is_behind {
                is_behind = after.as_deref() == Some(machine.id.as_str());
                continue;
            }
            let has = |wanted: &String| match wanted.split_once('=') {
                Some((key, value)) => machine.labels.get(key).is_some_and(|found| found == value),
                None => machine.labels.contains_key(wanted),
            };
            let is_wanted = labels.iter().all(has)
                && state.as_deref().is_none_or(|state| machine.state == state)
                && kind.as_deref().is_none_or(|kind| machine.kind == kind);
            if !is_wanted {
                continue;
            }
            if page.machines.len() == limit {
                page.next = page.machines.last().map(|last| last.id.as_str());
                break;
            }
            page.machines.push(machine);
        }
        if !is_behind {
            let message = format!("after: there is no machine '{}' any more", after.unwrap_or_default());
            return Err(Failure::new(Class::Usage, message).hint("begin again without it"));
        }
        // Here, in a thread of its own: a long page is no work for the one that serves all connections.
        Ok(serde_json::to_vec(&page).map_err(std::io::Error::from)?)
    })
    .await?;
    Ok(typed(
        StatusCode::OK,
        "application/json",
        Body::Whole(Some(page.into())),
    ))
}

/// Some machines.
#[derive(Debug, Default, Serialize)]
struct Page<'a> {
    machines: Vec<&'a MachineSummary>,
    next: Option<&'a str>,
    unreadable: Vec<Value>,
}

/// A spec from a body: what is not there is the default.
fn spec_of(engine: &Engine, wanted: Value) -> Result<MachineSpec, Failure> {
    let wrong =
        |message: String| Failure::new(Class::Usage, message).hint("'zmachine inspect' shows the 'spec' of a machine");
    let Value::Object(wanted) = wanted else {
        return Err(wrong("the body is no object".to_owned()));
    };
    let image = wanted.get("flist").and_then(Value::as_str).unwrap_or_default();
    if image.is_empty() {
        return Err(wrong("'flist' is missing: the image".to_owned()));
    }
    let name = wanted.get("name").and_then(Value::as_str);
    let name = name.map_or_else(|| catalog::free_name(engine.home()), str::to_owned);
    let mut whole = serde_json::to_value(MachineSpec::new(name, image)).map_err(std::io::Error::from)?;
    if let Some(fields) = whole.as_object_mut() {
        fields.extend(wanted);
    }
    let spec: MachineSpec = serde_json::from_value(whole).map_err(|e| wrong(format!("the spec: {e}")))?;
    if spec.auto_remove && spec.restart != RestartPolicy::No {
        return Err(
            Failure::new(Class::Usage, "'auto_remove' and 'restart' contradict each other").hint("use one of them"),
        );
    }
    Ok(spec)
}

fn options(engine: &Engine) -> (std::path::PathBuf, PullPolicy) {
    (engine.home().machines(), PullPolicy::Missing)
}

/// Creates a machine.
///
/// # Errors
/// Whatever is wrong with the spec, the image or the host.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let key = call.headers.get("idempotency-key").cloned();
    let key = match key.as_ref().map(HeaderValue::to_str) {
        None => None,
        Some(Ok(key)) if (1..=128).contains(&key.len()) => Some(key.to_owned()),
        Some(_) => return Err(Failure::new(Class::Usage, "Idempotency-Key has from 1 to 128 plain characters").into()),
    };
    let wanted: Value = read(call).await?;
    let (is_new, found) = failing(app, move |app| {
        let engine = &app.engine;
        if let Some(key) = &key {
            let known = engine.machines()?.into_iter().flatten();
            let mut known = known.filter(|machine| machine.spec.labels.get(KEY_LABEL) == Some(key));
            if let Some(machine) = known.next() {
                return Ok((false, shown(engine, &machine.id)?));
            }
        }
        let mut spec = spec_of(engine, wanted)?;
        if let Some(key) = key {
            spec.labels.insert(KEY_LABEL.to_owned(), key);
        }
        let (cwd, pull) = options(engine);
        let options = CreateOptions {
            cwd: &cwd,
            pull,
            installs_kernel: true,
            progress: &Silent,
        };
        let machine = engine.create(&spec, &options)?;
        Ok((true, shown(engine, &machine.id)?))
    })
    .await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(tagged(status, found))
}

/// Tells what would be made.
///
/// # Errors
/// As [`create`].
pub async fn plan(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: Value = read(call).await?;
    let plan = failing(app, move |app| {
        let spec = spec_of(&app.engine, wanted)?;
        let (cwd, pull) = options(&app.engine);
        let options = CreateOptions {
            cwd: &cwd,
            pull,
            installs_kernel: true,
            progress: &Silent,
        };
        Ok(redact::shown(&app.engine.plan(&spec, &options)?))
    })
    .await?;
    Ok(json(StatusCode::OK, &plan))
}

/// Everything about a machine.
///
/// # Errors
/// 404.
pub async fn get(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    machine_after(app, call, |_, _| Ok(())).await
}

/// Changes a machine.
///
/// # Errors
/// 404; 409 for what waits for a stop; 412 when its spec is another by now.
pub async fn change(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let (name, headers) = (call.place("name"), call.headers.clone());
    let change: Value = read(call).await?;
    const KNOWN: [&str; 8] = [
        "name",
        "restart",
        "labels",
        "labels_removed",
        "cpus",
        "cpuset",
        "memory_bytes",
        "idle_timeout_ms",
    ];
    let fields = change.as_object().cloned().unwrap_or_default();
    if let Some(unknown) = fields.keys().find(|field| !KNOWN.contains(&field.as_str())) {
        let message = format!("'{unknown}' of a machine cannot be changed");
        return Err(Failure::new(Class::Usage, message)
            .hint(format!("what can be is {}", KNOWN.join(", ")))
            .into());
    }
    let wrong = |e: serde_json::Error| Failure::new(Class::Usage, format!("the change: {e}"));
    let change: Change = serde_json::from_value(change).map_err(wrong)?;
    let done = blocking(app, move |app| {
        let act = || -> Result<(Value, String), Problem> {
            let machine = app.engine.machine(&name)?;
            require_match(&machine, &headers)?;
            if let Some(new) = &change.name {
                app.engine.rename(&machine.id, new)?;
            }
            let rest = Change { name: None, ..change };
            if rest != Change::default() {
                app.engine.update(&machine.id, &rest)?;
            }
            Ok(shown(&app.engine, &machine.id)?)
        };
        Ok::<_, Refusal>(act())
    })
    .await??;
    Ok(tagged(StatusCode::OK, done))
}

/// Removes a machine.
///
/// # Errors
/// 404; 409 for one that runs; 412 when its spec is another by now.
pub async fn remove(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let (name, headers) = (call.place("name"), call.headers.clone());
    let force = call.query.flag("force");
    let volumes = call.query.get("volumes").is_none() || call.query.flag("volumes");
    blocking(app, move |app| {
        let act = || -> Result<(), Problem> {
            if headers.contains_key(IF_MATCH) {
                require_match(&app.engine.machine(&name)?, &headers)?;
            }
            Ok(app.engine.remove(&name, force, volumes)?)
        };
        Ok::<_, Refusal>(act())
    })
    .await??;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Starts a machine.
///
/// # Errors
/// 404; 409 for one that runs; why it did not start.
pub async fn start(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let found = failing(app, move |app| {
        let machine = app.engine.machine(&name)?;
        crate::docker::containers::begin(app, &machine)?;
        shown(&app.engine, &machine.id)
    })
    .await?;
    Ok(tagged(StatusCode::OK, found))
}

fn grace(call: &Call) -> Result<Option<Duration>, Problem> {
    let seconds = call.query.number("time")?;
    let grace = seconds.map(|seconds| {
        u64::try_from(seconds)
            .map(Duration::from_secs)
            .map_err(|_| Failure::new(Class::Usage, format!("time: {seconds} is less than nothing")))
    });
    Ok(grace.transpose()?)
}

/// Stops a machine.
///
/// # Errors
/// 404; that it does not end.
pub async fn stop(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let grace = grace(call)?;
    let name = call.place("name");
    let found = failing(app, move |app| {
        let id = app.engine.machine(&name)?.id;
        app.engine.stop(&id, grace)?;
        match shown(&app.engine, &id) {
            // Made to go when it ends.
            Err(failure) if failure.class == Class::NotFound => Ok(None),
            found => found.map(Some),
        }
    })
    .await?;
    Ok(found.map_or_else(|| empty(StatusCode::NO_CONTENT), |found| tagged(StatusCode::OK, found)))
}

/// Stops a machine and starts it.
///
/// # Errors
/// As [`stop`] and [`start`].
pub async fn restart(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let grace = grace(call)?;
    machine_after(app, call, move |engine, id| {
        engine.stop(id, grace)?;
        engine.start(id, false)?.wait_ready(&Silent)
    })
    .await
}

/// Ends a machine, or sends it a signal.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn kill(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let signal = call.query.get("signal").map(str::parse::<Signal>).transpose()?;
    nothing_after(app, call, move |engine, id| match signal {
        None => engine.kill(id),
        Some(signal) => engine.signal(id, signal.number()),
    })
    .await
}

/// Halts a machine.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn pause(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    nothing_after(app, call, Engine::pause).await
}

/// Lets a machine run on.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn resume(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    nothing_after(app, call, Engine::resume).await
}

/// Waits for the end of a machine.
///
/// # Errors
/// 404; the machine's own failure.
pub async fn wait(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let mut events = app.hub.subscribe();
    // Not by a thread that waits: clients may leave, and be many.
    loop {
        let of = name.clone();
        let machine = failing(app, move |app| app.engine.machine(&of)).await?;
        if !machine.state.phase.is_active() {
            break;
        }
        events.next(Duration::from_secs(1)).await;
    }
    let exit = failing(app, move |app| app.engine.wait(&name)).await?;
    Ok(json(
        StatusCode::OK,
        &json!({"exit": exit, "code": exit.map(Exit::shell_code)}),
    ))
}

/// Tells why a machine ended as it did.
///
/// # Errors
/// 404.
pub async fn why(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let told = failing(app, move |app| {
        let history = app.engine.history(&name)?;
        let attempts: Vec<Value> = history
            .attempts
            .iter()
            .map(|attempt| {
                let explanation = explain(attempt);
                json!({
                    "number": attempt.number,
                    "started_at": attempt.started_at,
                    "ended_at": attempt.ended_at,
                    "outcome": attempt.outcome,
                    "what": explanation.what,
                    "hint": explanation.hint,
                })
            })
            .collect();
        Ok(json!({
            "id": history.id,
            "name": history.spec.name,
            "removed_at": history.removed_at,
            "state": history.state.map(|state| state.phase),
            "attempts": attempts,
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &told))
}

/// What a machine uses.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn stats(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let sample = failing(app, move |app| {
        let machine = app.engine.machine(&name)?;
        app.engine.sample(&machine)?.ok_or_else(|| {
            let message = format!("machine '{name}' is not running (it is {})", machine.state.phase.word());
            Failure::new(Class::Conflict, message).hint("start it first")
        })
    })
    .await?;
    Ok(json(StatusCode::OK, &sample))
}

/// What all machines use that run.
///
/// # Errors
/// When they cannot be listed.
pub async fn all_stats(app: &Arc<App>) -> Result<Answer, Problem> {
    let samples = failing(app, |app| {
        let mut samples = Vec::new();
        for machine in app.engine.machines()?.into_iter().flatten() {
            // One that ends meanwhile has none.
            if let Ok(Some(sample)) = app.engine.sample(&machine) {
                samples.push(json!({"id": machine.id, "name": machine.spec.name, "sample": sample}));
            }
        }
        Ok(samples)
    })
    .await?;
    Ok(json(StatusCode::OK, &json!({"machines": samples})))
}

/// The processes in a machine.
///
/// # Errors
/// 404; 409 for one that does not run.
pub async fn processes(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let processes = failing(app, move |app| app.engine.processes(&name)).await?;
    let shown: BTreeMap<&str, _> = BTreeMap::from([("processes", processes)]);
    Ok(json(StatusCode::OK, &shown))
}
