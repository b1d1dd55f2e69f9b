//! Operations on what runs in machines: commands, entrypoints, consoles.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use zmachine_agent_protocol::{Frame, Process, WindowSize};
use zmachine_spec::control::ExecRecord;
use zmachine_spec::{Class, Failure, Kind};

use super::machines::{failing, read};
use super::problem::Problem;
use super::{Call, websocket};
use crate::app::App;
use crate::docker::attach::ready;
use crate::docker::exec::followed;
use crate::docker::stream::{Input, ToMonitor, end_of};
use crate::http::{Answer, json};

/// The most that is told of a stream of a command, in bytes.
const MOST: usize = 1 << 20;

/// The size of a terminal that nobody has told.
const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// A wanted command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    workdir: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    stdin: Option<String>,
}

impl Command {
    fn process(&self) -> Process {
        Process {
            args: self.command.clone(),
            env: self.env.clone().into_iter().collect(),
            cwd: self.workdir.clone(),
            user: self.user.clone(),
            terminal: None,
            stdin: self.stdin.is_some(),
            init: false,
            restrictions: None,
        }
    }
}

fn require_command(command: &[String]) -> Result<(), Failure> {
    match command.first().is_some_and(|program| !program.is_empty()) {
        true => Ok(()),
        false => Err(Failure::new(
            Class::Usage,
            "'command' is missing: the program and its arguments",
        )),
    }
}

/// Runs a command to its end.
///
/// # Errors
/// 404; 409 for a machine that does not run; 400 for a command that is not there.
pub async fn run(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let wanted: Command = read(call).await?;
    require_command(&wanted.command)?;
    let process = wanted.process();
    let (_pid, monitor) = failing(app, move |app| followed(&app.engine, &name, process)).await?;
    let (mut reader, mut writer) = monitor.split().map_err(Failure::from)?;
    let feeding = async {
        let Some(text) = wanted.stdin else { return };
        for piece in text.as_bytes().chunks(zmachine_agent_protocol::MAX_DATA) {
            if writer
                .write_all(&Frame::Stdin(piece.to_vec()).to_bytes())
                .await
                .is_err()
            {
                return;
            }
        }
        let _ = writer.write_all(&Frame::StdinEof.to_bytes()).await;
    };
    let following = async {
        let (mut streams, mut is_cut) = ([Vec::new(), Vec::new()], false);
        loop {
            let ended = || Failure::new(Class::Conflict, "the machine ended before the command");
            let frame = reader.next().await.ok_or_else(ended)?;
            if let Some(end) = end_of(&frame) {
                let status = end.map_err(|why| Failure::new(Class::Failed, why))?;
                return Ok::<_, Failure>((status.shell_code(), streams, is_cut));
            }
            let (stream, bytes) = match frame {
                Frame::Stdout(bytes) => (0, bytes),
                Frame::Stderr(bytes) => (1, bytes),
                _ => continue,
            };
            let room = (MOST - streams[stream].len()).min(bytes.len());
            streams[stream].extend_from_slice(&bytes[..room]);
            is_cut |= room < bytes.len();
        }
    };
    let (code, streams, is_cut) = tokio::select! {
        done = following => done?,
        // The connection is kept by it: input is given, then the end is waited for.
        () = async { feeding.await; std::future::pending::<()>().await } => unreachable!("it never ends"),
    };
    let [stdout, stderr] = streams.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(json(
        StatusCode::OK,
        &json!({"code": code, "stdout": stdout, "stderr": stderr, "truncated": is_cut}),
    ))
}

/// Starts a command that runs on by itself; what it writes is dropped.
///
/// # Errors
/// 404; 409 for a machine that does not run; 400 for a command that is not there.
pub async fn begin(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let wanted: Command = read(call).await?;
    require_command(&wanted.command)?;
    if wanted.stdin.is_some() {
        return Err(Failure::new(Class::Usage, "a command that runs by itself has no 'stdin'").into());
    }
    let process = wanted.process();
    let begun = failing(app, move |app| app.engine.start_exec(&name, None, process, true)).await?;
    Ok(json(StatusCode::CREATED, &shown(&begun)))
}

/// Lists the commands of a machine that have ids: those that run, and those that ended lately.
///
/// # Errors
/// 404; 409 for a machine that does not run.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    let execs = failing(app, move |app| app.engine.execs(&name)).await?;
    let shown: Vec<_> = execs.iter().map(shown).collect();
    Ok(json(StatusCode::OK, &json!({"execs": shown})))
}

fn shown(exec: &ExecRecord) -> serde_json::Value {
    let ended = exec.ended.as_ref();
    let code = ended.and_then(|end| end.status).map(|status| status.shell_code());
    json!({
        "id": exec.id, "command": exec.args, "pid": exec.pid, "started_at": exec.started_at,
        "ended_at": ended.map(|end| end.at), "code": code,
    })
}

/// A number of rows or columns.
fn side(call: &Call, name: &str) -> Result<Option<u16>, Problem> {
    let Some(number) = call.query.number(name)? else {
        return Ok(None);
    };
    let wrong = |_| Failure::new(Class::Usage, format!("{name}: {number} is no size of a terminal"));
    Ok(Some(u16::try_from(number).map_err(wrong)?))
}

/// Runs a command over a WebSocket.
///
/// # Errors
/// As [`run`]; 426 for a request that asks for none.
pub async fn enter(app: &Arc<App>, mut call: Call) -> Result<Answer, Problem> {
    let upgrade = websocket::upgrade(&mut call)?;
    let words = |name: &str| call.query.all(name).map(str::to_owned).collect::<Vec<_>>();
    let args = words("command");
    require_command(&args)?;
    let mut env = Vec::new();
    for pair in words("env") {
        let wrong = || Failure::new(Class::Usage, format!("env: '{pair}' is not NAME=VALUE"));
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        env.push((name.to_owned(), value.to_owned()));
    }
    let size = WindowSize {
        rows: side(&call, "rows")?.unwrap_or(SIZE.rows),
        columns: side(&call, "columns")?.unwrap_or(SIZE.columns),
    };
    let terminal = call.query.flag("tty");
    let process = Process {
        args,
        env,
        cwd: call.query.get("workdir").map(str::to_owned),
        user: call.query.get("user").map(str::to_owned),
        terminal: terminal.then_some(size),
        stdin: call.query.flag("stdin"),
        init: false,
        restrictions: None,
    };
    let input = Input {
        wanted: process.stdin,
        ends: true,
    };
    let name = call.place("name");
    let (pid, monitor) = failing(app, move |app| followed(&app.engine, &name, process)).await?;
    let attached = json!({"terminal": terminal, "pid": pid});
    Ok(upgrade.answer(move |socket| websocket::carry(socket, monitor, attached, input)))
}

/// Follows an entrypoint.
///
/// # Errors
/// 404; 409 for a machine that is paused; 426.
pub async fn attach(app: &Arc<App>, mut call: Call) -> Result<Answer, Problem> {
    let upgrade = websocket::upgrade(&mut call)?;
    let (name, wants_input) = (call.place("name"), call.query.flag("stdin"));
    let (machine, monitor) = failing(app, move |app| {
        let machine = app.engine.machine(&name)?;
        let monitor = match machine.state.phase.is_active() {
            true => Some(ToMonitor::new(app.engine.attach(&machine.id, wants_input, false)?.1)),
            false => None,
        };
        Ok((machine, monitor))
    })
    .await?;
    let is_container = machine.state.kind == Kind::Container;
    let input = Input {
        wanted: wants_input && (machine.spec.stdin || !is_container),
        ends: true,
    };
    let waits = match monitor {
        Some(_) => None,
        None => Some(app.wait_for_start(&machine.id, input.wanted)?),
    };
    let attached = json!({"terminal": machine.spec.terminal || !is_container});
    let app = Arc::clone(app);
    Ok(upgrade.answer(move |socket| async move {
        // A client that leaves before the start is found when the stream is there.
        let Some(monitor) = ready(&app, &machine.id, monitor, waits).await else {
            return;
        };
        websocket::carry(socket, monitor, attached, input).await;
    }))
}

/// The serial console.
///
/// # Errors
/// 404; 409 for a machine that does not run; 426.
pub async fn console(app: &Arc<App>, mut call: Call) -> Result<Answer, Problem> {
    let upgrade = websocket::upgrade(&mut call)?;
    let (name, wants_input) = (call.place("name"), call.query.flag("stdin"));
    let monitor = failing(app, move |app| {
        Ok(ToMonitor::new(app.engine.console(&name, wants_input)?.1))
    })
    .await?;
    let input = Input {
        wanted: wants_input,
        ends: false,
    };
    let attached = json!({"terminal": true});
    Ok(upgrade.answer(move |socket| websocket::carry(socket, monitor, attached, input)))
}
