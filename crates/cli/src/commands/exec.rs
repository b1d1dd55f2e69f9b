//! `exec`, `attach` and `console`.

use std::env;
use std::ffi::OsString;

use zmachine_agent_protocol::{ExitStatus, Process, Restrictions, WindowSize};
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure, Kind, Phase};

use crate::args::run::{texts, variables};
use crate::args::{AttachArgs, ConsoleArgs, ExecArgs};
use crate::terminal::{self, Follow, Followed};

/// Runs a command in a machine; its status is ours.
pub(crate) fn exec(engine: &Engine, args: &ExecArgs) -> Result<u8, Failure> {
    if args.tty && args.interactive {
        terminal::require_terminal()?;
    }
    let mut environment = variables(&args.env_file, &args.env, |name| env::var(name).ok())?;
    if args.tty && !environment.iter().any(|(name, _)| name == "TERM") {
        environment.push((
            "TERM".to_owned(),
            env::var("TERM").unwrap_or_else(|_| "xterm".to_owned()),
        ));
    }
    let process = Process {
        args: texts(&args.command)?,
        env: environment,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: args.tty.then_some(WindowSize { rows: 24, columns: 80 }),
        stdin: args.interactive,
        init: false,
        restrictions: args.privileged.then(Restrictions::default),
    };
    if args.detach {
        let started = engine.start_exec(&args.name, None, process, true)?;
        crate::output::print(&format!("{}\n", started.id))?;
        return Ok(0);
    }
    let follow = Follow {
        stdin: args.interactive,
        terminal: args.tty,
        detachable: true,
    };
    followed(engine, &args.name, process, follow)
}

/// Runs a command in a machine, without input or a terminal; its status is ours.
pub(super) fn plain(engine: &Engine, name: &str, command: &[OsString]) -> Result<u8, Failure> {
    let follow = Follow {
        stdin: false,
        terminal: false,
        detachable: false,
    };
    followed(engine, name, Process::new(texts(command)?), follow)
}

/// Starts a command in a machine, and waits for nothing.
pub(super) fn in_background(engine: &Engine, name: &str, command: &[OsString]) -> Result<(), Failure> {
    let process = Process::new(texts(command)?);
    engine.start_exec(name, None, process, true).map(drop)
}

fn followed(engine: &Engine, name: &str, process: Process, follow: Follow) -> Result<u8, Failure> {
    let (input, output) = engine.exec(name, process)?;
    let interrupted = || std::process::exit(i32::from(ExitStatus::Signal(2).shell_code()));
    match terminal::follow(input, output, follow, || (), interrupted)? {
        Followed::Exited(status) => Ok(status.shell_code()),
        Followed::Detached => Ok(0),
        Followed::GivenUp(code) => Ok(code),
        Followed::Cut => Err(cut(engine, name)),
    }
}

/// The command's stream ended before the command did.
fn cut(engine: &Engine, name: &str) -> Failure {
    let is_running = engine
        .machine(name)
        .is_ok_and(|machine| machine.state.phase == Phase::Running);
    match is_running {
        true => Failure::new(
            Class::Failed,
            format!("the agent in machine '{name}' went away while the command ran"),
        )
        .hint("a command that restarts the agent loses its own output; what it started may have gone on"),
        false => Failure::new(Class::Failed, format!("machine '{name}' ended while the command ran")),
    }
}

/// Follows a machine's entrypoint; its status is ours.
pub(crate) fn attach(engine: &Engine, args: &AttachArgs) -> Result<u8, Failure> {
    let machine = engine.machine(&args.name)?;
    if machine.state.kind == Kind::Vm {
        return serial(engine, &machine.id, &args.name, !args.no_stdin);
    }
    let stdin = machine.spec.stdin && !args.no_stdin;
    let (input, output) = engine.attach(&args.name, stdin, false)?;
    let follow = Follow {
        stdin,
        terminal: machine.spec.terminal,
        detachable: true,
    };
    match terminal::follow(input, output, follow, || (), || std::process::exit(130))? {
        Followed::Exited(status) => Ok(status.shell_code()),
        Followed::Detached => Ok(0),
        Followed::GivenUp(code) => Ok(code),
        Followed::Cut => match engine.wait(&machine.id)? {
            Some(exit) => Ok(exit.shell_code()),
            None => Err(Failure::new(Class::Failed, format!("machine '{}' ended", args.name))),
        },
    }
}

/// Shows a machine's serial console and types on it, until the machine ends or the user leaves.
pub(crate) fn console(engine: &Engine, args: &ConsoleArgs) -> Result<u8, Failure> {
    serial(engine, &args.name, &args.name, !args.no_stdin)
}

fn serial(engine: &Engine, id: &str, name: &str, stdin: bool) -> Result<u8, Failure> {
    let (input, output) = engine.console(id, stdin)?;
    if stdin && terminal::is_terminal() {
        eprintln!("the console of '{name}'; ctrl-p ctrl-q leaves it\r");
    }
    let follow = Follow {
        stdin,
        terminal: true,
        detachable: true,
    };
    terminal::follow(input, output, follow, || (), || std::process::exit(130))?;
    Ok(0)
}
