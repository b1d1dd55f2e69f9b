//! `exec`: one more command in a container.
//!
//! A command goes on when its client leaves; what it writes is read for nobody then. One that nobody follows from the start (`-d`) outlives
//! the server too: it is one of the machine's sessions, with an id that begins with the machine's, by which the next server finds it. The
//! others end with the server, as their clients do. What was asked for is kept in memory from the request that makes a command to its
//! start, and for a while after its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use zmachine_agent_protocol::{ExitStatus, Frame, Input as Said, Process, Reply, Restrictions, WindowSize};
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure, Phase};
use zmachine_store::events::Event;

use super::attach::size;
use super::query::Query;
use super::stream::{Input, Shown, ToMonitor, end_of, pump, upgraded};
use super::{Call, body, exec_events, ids};
use crate::app::{App, blocking, locked};
use crate::http::{Answer, Body, Refusal, empty, json, typed};
use crate::place::Place;

/// How long a command is known that has ended, or was not started.
const KEPT: Duration = Duration::from_secs(300);

/// Commands that are known at a time, so that memory has a limit.
const MOST: usize = 4096;

/// The size of a terminal that nobody has told.
const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// The commands that are known.
#[derive(Debug, Default)]
pub struct Execs(HashMap<String, Known>);

/// One of them.
#[derive(Debug)]
struct Known {
    machine: String,
    /// The machine's name when the command was made.
    name: String,
    process: Process,
    shown: Shown,
    privileged: bool,
    since: Instant,
    state: State,
    control: Option<mpsc::Sender<Frame>>,
    size: Option<WindowSize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Made,
    Running { pid: u32 },
    Ended { pid: u32, code: i64 },
}

impl Execs {
    /// Forgets those that ended, or were never started, long ago.
    fn tidy(&mut self) {
        self.0
            .retain(|_, known| matches!(known.state, State::Running { .. }) || known.since.elapsed() < KEPT);
    }

    fn end(&mut self, id: &str, code: i64) {
        if let Some(known) = self.0.get_mut(id) {
            let pid = match known.state {
                State::Running { pid } => pid,
                _ => 0,
            };
            known.state = State::Ended { pid, code };
            known.since = Instant::now();
            known.control = None;
        }
    }
}

/// Makes a command; it does not run yet.
///
/// # Errors
/// 404; 409 for a container that does not run; 400 for no command.
pub async fn create(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::Exec = body::read(call.request.into_body()).await?;
    let args = wanted.cmd.0.unwrap_or_default();
    if args.is_empty() {
        return Err(Refusal::bad("No exec command specified"));
    }
    let machine = blocking(app, move |app| ids::machine(&app.engine, &name)).await?;
    let shown_id = ids::container(&machine.id);
    match machine.state.phase {
        Phase::Running => {}
        Phase::Paused => {
            let message = format!("Container {shown_id} is paused, unpause the container before exec");
            return Err(Refusal::conflict(message));
        }
        Phase::Restarting { .. } => {
            let message = format!("Container {shown_id} is restarting, wait until the container is running");
            return Err(Refusal::conflict(message));
        }
        _ => return Err(Refusal::conflict(format!("container {shown_id} is not running"))),
    }
    let mut env: Vec<(String, String)> = wanted
        .env
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if wanted.tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let process = Process {
        args,
        env,
        cwd: Some(wanted.working_dir).filter(|dir| !dir.is_empty()),
        user: Some(wanted.user).filter(|user| !user.is_empty()),
        terminal: wanted.tty.then(|| console_size(&wanted.console_size).unwrap_or(SIZE)),
        stdin: wanted.attach_stdin,
        init: false,
        restrictions: wanted.privileged.then(Restrictions::default),
    };
    let known = Known {
        process,
        shown: Shown {
            terminal: wanted.tty,
            stdout: wanted.attach_stdout,
            stderr: wanted.attach_stderr,
        },
        privileged: wanted.privileged,
        since: Instant::now(),
        state: State::Made,
        control: None,
        size: None,
        name: machine.spec.name.clone(),
        machine: machine.id.clone(),
    };
    let id = ids::inside(&machine.id);
    let created = exec_events::event(
        (&machine.id, &machine.spec.name),
        "exec_created",
        &id,
        &known.process.args,
    );
    let mut execs = locked(&app.execs);
    execs.tidy();
    if execs.0.len() >= MOST {
        return Err(Refusal::conflict(format!(
            "{MOST} commands are known already: wait until some have ended"
        )));
    }
    execs.0.insert(id.clone(), known);
    drop(execs);
    exec_events::tell(app, created);
    Ok(json(StatusCode::CREATED, &json!({"Id": id})))
}

/// Rows and columns, where both are there.
fn console_size(size: &[u16]) -> Option<WindowSize> {
    match *size {
        [rows, columns] if rows > 0 && columns > 0 => Some(WindowSize { rows, columns }),
        _ => None,
    }
}

fn missing(id: &str) -> Refusal {
    Refusal::not_found(format!("No such exec instance: {id}"))
}

/// Starts a command, and follows it unless it is to run by itself.
///
/// # Errors
/// 404; 409 when it has been started.
pub async fn start(app: &Arc<App>, id: &str, call: Call) -> Result<Answer, Refusal> {
    let mut request = call.request;
    let place = request.extensions().get::<Place>().cloned();
    let upgrade = call.upgrades.then(|| hyper::upgrade::on(&mut request));
    let wanted: body::ExecStart = body::read(request.into_body()).await?;
    let (control, said) = mpsc::channel(4);
    let (machine, name, process, shown) = {
        let mut execs = locked(&app.execs);
        let known = execs.0.get_mut(id).ok_or_else(|| missing(id))?;
        if known.state != State::Made {
            return Err(Refusal::conflict(format!("exec {id} has been started already")));
        }
        if let (Some(size), Some(terminal)) = (console_size(&wanted.console_size), &mut known.process.terminal) {
            *terminal = size;
        }
        known.state = State::Running { pid: 0 };
        known.control = Some(control.clone());
        (
            known.machine.clone(),
            known.name.clone(),
            known.process.clone(),
            known.shown,
        )
    };
    let input = Input {
        wanted: process.stdin,
        ends: process.terminal.is_none(),
    };
    let session = id.to_owned();
    let told_of = |what: &str| exec_events::event((&machine, &name), what, id, &process.args);
    let (started, ends) = (told_of("exec_started"), told_of("exec_ended"));
    let of = machine.clone();
    let begun = blocking(app, move |app| {
        if wanted.detach {
            let record = app.engine.start_exec(&machine, Some(session), process, true)?;
            return Ok((record.pid, None));
        }
        let (pid, monitor) = followed(&app.engine, &machine, process)?;
        Ok::<_, Failure>((pid, Some(monitor)))
    })
    .await;
    let kind = shown.content_type(call.version);
    let (pid, monitor) = match begun {
        Ok(begun) => begun,
        Err(refusal) => {
            // As docker has it: what cannot be run is told in the stream.
            locked(&app.execs).end(id, 126);
            let reason = format!("OCI runtime exec failed: {}\r\n", refusal.message);
            return match (wanted.detach, upgrade) {
                (true, _) => Err(refusal),
                (false, upgrade) => Ok(told(shown, kind, reason, upgrade)),
            };
        }
    };
    exec_events::tell(app, started);
    if let Some(known) = locked(&app.execs).0.get_mut(id) {
        known.state = State::Running { pid };
        if let Some(size) = known.size.take() {
            let _ = control.try_send(Frame::message(&Said::Resize(size)));
        }
    }
    let Some(monitor) = monitor else {
        // Its end is asked for when somebody wants to know.
        locked(&app.execs).0.remove(id);
        exec_events::tell_of_end(app, of, id.to_owned(), ends);
        return Ok(empty(StatusCode::OK));
    };
    let (app, id) = (Arc::clone(app), id.to_owned());
    let Some(upgrade) = upgrade else {
        let (sender, body) = Body::stream();
        tokio::spawn(async move {
            let Ok((mut reader, _writer)) = monitor.split() else {
                return;
            };
            let mut code = GONE;
            while let Some(frame) = reader.next().await {
                if let Some(end) = end_of(&frame) {
                    code = code_of(&end);
                    break;
                }
                if let Some(bytes) = shown.bytes(frame) {
                    // Without a client the rest is for nobody, and is read all the same.
                    let _ = sender.send(bytes.into()).await;
                }
            }
            ended(&app, &id, code, ends);
            drop(sender);
        });
        return Ok(typed(StatusCode::OK, kind, body));
    };
    tokio::spawn(async move {
        let _place = place;
        let end = match upgrade.await {
            Ok(client) => pump(TokioIo::new(client), monitor, shown, input, said, true).await,
            Err(_) => None,
        };
        ended(&app, &id, end.as_ref().map_or(GONE, code_of), ends);
    });
    Ok(upgraded(kind))
}

/// Takes down how a command ended.
fn ended(app: &Arc<App>, id: &str, code: i64, mut event: Event) {
    locked(&app.execs).end(id, code);
    event.time = jiff::Timestamp::now();
    event.exit_code = u8::try_from(code).ok();
    exec_events::tell(app, event);
}

/// How long a guest may take to start a command.
const BEGIN: Duration = Duration::from_secs(90);

/// Starts a command, and gives its number in the guest and its stream.
///
/// # Errors
/// Why it did not start.
pub fn followed(engine: &Engine, machine: &str, process: Process) -> Result<(u32, ToMonitor), Failure> {
    let (_input, mut output) = engine.exec(machine, process)?;
    let ended = || Failure::new(Class::Conflict, "the container ended before the command ran");
    let first = output.next_frame_within(BEGIN)?.ok_or_else(ended)?;
    match first.parse::<Reply>() {
        Ok(Reply::Started { pid }) => Ok((pid, ToMonitor::new(output))),
        Ok(Reply::Error(error)) => Err(error.into()),
        _ => match end_of(&first) {
            Some(Err(reason)) => Err(Failure::new(Class::Failed, reason)),
            _ => Err(ended()),
        },
    }
}

/// The code of a command whose machine ended before it.
pub const GONE_CODE: u8 = 137;

/// The same, as clients are told it.
const GONE: i64 = GONE_CODE as i64;

fn code_of(end: &Result<ExitStatus, String>) -> i64 {
    match end {
        Ok(status) => status.shell_code().into(),
        Err(_) => 126,
    }
}

/// An answer that tells a reason where output was expected.
fn told(shown: Shown, kind: &'static str, reason: String, upgrade: Option<hyper::upgrade::OnUpgrade>) -> Answer {
    let shown = Shown { stdout: true, ..shown };
    let bytes = shown.bytes(Frame::Stdout(reason.into_bytes())).unwrap_or_default();
    let Some(upgrade) = upgrade else {
        return typed(StatusCode::OK, kind, Body::Whole(Some(bytes.into())));
    };
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            let mut client = TokioIo::new(client);
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, &bytes).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut client).await;
        }
    });
    upgraded(kind)
}

/// Tells a command that its terminal has another size.
///
/// # Errors
/// 404.
pub async fn resize(app: &Arc<App>, id: &str, query: &Query) -> Result<Answer, Refusal> {
    let size = size(query)?;
    let control = {
        let mut execs = locked(&app.execs);
        let known = execs.0.get_mut(id).ok_or_else(|| missing(id))?;
        // It may come before the process is there.
        if matches!(known.state, State::Made | State::Running { pid: 0 }) {
            known.size = Some(size);
        }
        known.control.clone()
    };
    if let Some(control) = control {
        let _ = control.send(Frame::message(&Said::Resize(size))).await;
    }
    Ok(empty(StatusCode::OK))
}

/// What is known of a command.
///
/// # Errors
/// 404.
pub async fn inspect(app: &Arc<App>, id: &str) -> Result<Answer, Refusal> {
    if let Some(document) = known(app, id) {
        return Ok(json(StatusCode::OK, &document));
    }
    // Of a server before this one, or one that nobody follows: the machine knows.
    let wanted = id.to_owned();
    let document = blocking(app, move |app| {
        let gone = || missing(&wanted);
        let machine = wanted.get(..ids::OWN).filter(|id| ids::is_hex(id)).ok_or_else(gone)?;
        let machine = app.engine.machine(machine).map_err(|failure| match failure.class {
            Class::NotFound => gone(),
            _ => failure.into(),
        })?;
        let records = app.engine.execs(&machine.id).map_err(|_| gone())?;
        let record = records
            .into_iter()
            .find(|record| record.id == wanted)
            .ok_or_else(gone)?;
        let code = record
            .ended
            .as_ref()
            .map(|end| end.status.map_or(GONE, |status| status.shell_code().into()));
        let (program, arguments) = record
            .args
            .split_first()
            .map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
        Ok::<_, Refusal>(document_of(
            &wanted,
            &machine.id,
            record.pid,
            code,
            &json!({"tty": false, "entrypoint": program, "arguments": arguments, "privileged": false}),
            false,
        ))
    })
    .await?;
    Ok(json(StatusCode::OK, &document))
}

fn known(app: &Arc<App>, id: &str) -> Option<Value> {
    let execs = locked(&app.execs);
    let known = execs.0.get(id)?;
    let (program, arguments) = known.process.args.split_first()?;
    let (pid, code) = match known.state {
        State::Made => (0, None),
        State::Running { pid } => (pid, None),
        State::Ended { pid, code } => (pid, Some(code)),
    };
    let mut document = document_of(
        id,
        &known.machine,
        pid,
        code,
        &json!({
            "tty": known.shown.terminal,
            "entrypoint": program,
            "arguments": arguments,
            "privileged": known.privileged,
            "user": known.process.user.clone().unwrap_or_default(),
        }),
        known.process.stdin,
    );
    if known.state == State::Made {
        document["Running"] = json!(false);
    }
    Some(document)
}

fn document_of(id: &str, machine: &str, pid: u32, code: Option<i64>, process: &Value, stdin: bool) -> Value {
    json!({
        "ID": id,
        "Running": code.is_none(),
        "ExitCode": code,
        "ProcessConfig": process,
        "OpenStdin": stdin,
        "OpenStderr": true,
        "OpenStdout": true,
        "CanRemove": false,
        "ContainerID": ids::container(machine),
        "DetachKeys": "",
        "Pid": pid,
    })
}
