//! `run`, `create`, `exec`, `attach`, `console`: processes elsewhere.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::{Value, json};
use zmachine_spec::{Class, Failure};

use super::output;
use crate::connection::{Ask, Server, part};
use crate::terminal::{self, Followed};
use crate::words::{Exec, Follow, Run};

/// The largest machine that is read, in bytes: as large as the server takes.
const SPEC_BYTES: u64 = 4 << 20;

/// The code of a command whose machine ended before it.
const GONE: u8 = 137;

/// The wanted machine, as `zmachine` read it from its command line.
fn wanted(args: &Run) -> Result<Value, Failure> {
    let descriptor = zmachine_sys::fd::take_inherited(args.spec_fd).map_err(|e| {
        Failure::from_error(Class::Usage, &e).context("this is started by 'zmachine --host URL run' alone")
    })?;
    let mut bytes = Vec::new();
    std::fs::File::from(descriptor)
        .take(SPEC_BYTES)
        .read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::from_error(Class::Usage, &e))
}

async fn made(server: &Server, wanted: Value) -> Result<String, Failure> {
    let made = server.ask(&Ask::new("POST", "/v1/machines").sending(wanted)).await?;
    let name = made["name"].as_str();
    name.map(str::to_owned)
        .ok_or_else(|| Failure::new(Class::Fetch, "the host does not tell the machine's name"))
}

pub(super) async fn create(server: &Server, args: &Run) -> Result<u8, Failure> {
    let name = made(server, wanted(args)?).await?;
    output::line(&name)?;
    Ok(0)
}

/// Creates a machine, starts it, and follows it. One that never ran its entrypoint is removed again.
pub(super) async fn run(server: &Server, args: &Run) -> Result<u8, Failure> {
    let wanted = wanted(args)?;
    if args.dry_run {
        output::json(&server.ask(&Ask::new("POST", "/v1/plans").sending(wanted)).await?)?;
        return Ok(0);
    }
    let is_set = |name: &str| wanted[name] == true;
    let (stdin, is_terminal, goes) = (is_set("stdin"), is_set("terminal"), is_set("auto_remove"));
    if stdin && is_terminal && !args.detach && !terminal::is_terminal() {
        return Err(Failure::new(Class::Usage, "standard input is no terminal").hint("leave -t or -i out in scripts"));
    }
    let name = made(server, wanted).await?;
    let path = format!("/v1/machines/{}", part(&name));
    let followed = match args.detach {
        true => start(server, &path).await.map(|()| None),
        false => followed(server, &path, stdin).await.map(Some),
    };
    let followed = match followed {
        Ok(followed) => followed,
        Err(failure) => {
            // What never ran leaves nothing to tidy up; what ended in a start is there to be asked why.
            let state = server.ask(&Ask::new("GET", path.clone())).await.unwrap_or_default();
            if state["state"]["started_at"].is_null() {
                let _ = server.ask(&Ask::new("DELETE", path).with("force", "1")).await;
            }
            return Err(failure);
        }
    };
    match followed {
        None => {
            output::line(&name)?;
            Ok(0)
        }
        Some(Followed::Exited(code)) => Ok(code),
        Some(Followed::Detached) => {
            eprintln!("left: '{name}' runs on");
            Ok(0)
        }
        // It may be gone with its code.
        Some(Followed::Cut) => match server.ask(&Ask::new("POST", format!("{path}/wait"))).await {
            Ok(exit) => Ok(exit["code"]
                .as_u64()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(GONE)),
            Err(failure) if goes && failure.class == Class::NotFound => Ok(GONE),
            Err(failure) => Err(failure),
        },
    }
}

async fn start(server: &Server, path: &str) -> Result<(), Failure> {
    server.ask(&Ask::new("POST", format!("{path}/start"))).await.map(drop)
}

/// Attached before the start, so that nothing is missed.
async fn followed(server: &Server, path: &str, stdin: bool) -> Result<Followed, Failure> {
    let mut ask = Ask::new("GET", format!("{path}/attach"));
    if stdin {
        ask = ask.with("stdin", "1");
    }
    let socket = server.socket(&ask).await?;
    let following = terminal::follow(socket, stdin);
    let starting = start(server, path);
    tokio::pin!(following, starting);
    tokio::select! {
        // What it says at its start is printed meanwhile; it may have ended when the start is answered.
        followed = &mut following => {
            let followed = followed?;
            match starting.await {
                Err(failure) if followed == Followed::Cut => Err(failure),
                _ => Ok(followed),
            }
        }
        started = &mut starting => {
            started?;
            following.await
        }
    }
}

/// The variables of a command: those of this host that are named alone, where it has them.
fn variables(args: &Exec) -> Vec<(String, String)> {
    let read = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((text.clone(), std::env::var(text).ok()?)),
    };
    args.env.iter().filter_map(read).collect()
}

/// Starts a command that runs on by itself.
async fn begin(server: &Server, args: &Exec) -> Result<u8, Failure> {
    let env: BTreeMap<String, String> = variables(args).into_iter().collect();
    let mut body = json!({"command": args.command, "env": env});
    for (name, value) in [("workdir", &args.workdir), ("user", &args.user)] {
        value.iter().for_each(|value| body[name] = json!(value));
    }
    let ask = Ask::new("POST", format!("/v1/machines/{}/execs", part(&args.name))).sending(body);
    output::line(&output::text(&server.ask(&ask).await?["id"]))?;
    Ok(0)
}

pub(super) async fn exec(server: &Server, args: &Exec) -> Result<u8, Failure> {
    if args.detach {
        return begin(server, args).await;
    }
    let mut ask = Ask::new("GET", format!("/v1/machines/{}/exec", part(&args.name)));
    ask.query
        .extend(args.command.iter().map(|word| ("command", word.clone())));
    let pair = |(name, value)| ("env", format!("{name}={value}"));
    ask.query.extend(variables(args).into_iter().map(pair));
    ask.query.extend(args.workdir.clone().map(|folder| ("workdir", folder)));
    ask.query.extend(args.user.clone().map(|user| ("user", user)));
    if args.interactive {
        ask = ask.with("stdin", "1");
    }
    if args.tty {
        if args.interactive && !terminal::is_terminal() {
            return Err(
                Failure::new(Class::Usage, "standard input is no terminal").hint("leave -t or -i out in scripts")
            );
        }
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        ask = ask
            .with("tty", "1")
            .with("rows", rows.to_string())
            .with("columns", columns.to_string());
    }
    let socket = server.socket(&ask).await?;
    Ok(match terminal::follow(socket, args.interactive).await? {
        Followed::Exited(code) => code,
        Followed::Detached => 0,
        Followed::Cut => GONE,
    })
}

pub(super) async fn follow(server: &Server, args: &Follow, what: &str) -> Result<u8, Failure> {
    let mut ask = Ask::new("GET", format!("/v1/machines/{}/{what}", part(&args.name)));
    if !args.no_stdin {
        ask = ask.with("stdin", "1");
    }
    let socket = server.socket(&ask).await?;
    Ok(match terminal::follow(socket, !args.no_stdin).await? {
        Followed::Exited(code) => code,
        Followed::Detached | Followed::Cut => 0,
    })
}
