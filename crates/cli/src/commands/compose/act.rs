//! Commands on machines that are there: `stop`, `start`, `restart`, `kill`, `pause`, `exec`, `top`, `pull`.

use std::io::IsTerminal;
use std::time::Duration;

use zmachine_compose::Project;
use zmachine_engine::{Engine, ImageRequest};
use zmachine_image::{Mode, PullPolicy};
use zmachine_project::{Front, end};
use zmachine_spec::{Class, Failure, Signal};

use super::Scope;
use super::front::Terminal;
use crate::args::compose::{ComposeExecArgs, ComposeKillArgs, ComposeStopArgs, ServicesArgs};
use crate::args::{Format, TopArgs};
use crate::commands;
use crate::output;
use crate::progress::Bars;

pub(super) fn stop(engine: &Engine, scope: &Scope, args: &ComposeStopArgs) -> Result<u8, Failure> {
    let grace = args.timeout.map(Duration::from_secs);
    let machines = scope.of(&args.services)?;
    end::from_the_top(&Terminal, &machines, &scope.levels(), |owned| {
        end::stop(engine, &Terminal, owned, grace)
    })?;
    Ok(0)
}

/// Starts what has stopped, those first that others need.
pub(super) fn start(engine: &Engine, scope: &Scope, args: &ServicesArgs) -> Result<u8, Failure> {
    let machines = scope.of(&args.services)?;
    if machines.is_empty() {
        return Err(nothing_made(scope));
    }
    end::start(engine, &Terminal, &machines, &scope.levels())?;
    Ok(0)
}

fn nothing_made(scope: &Scope) -> Failure {
    Failure::new(Class::NotFound, format!("the project '{}' has no machines", scope.name))
        .hint("'compose up' makes them")
}

pub(super) fn restart(engine: &Engine, scope: &Scope, args: &ComposeStopArgs) -> Result<u8, Failure> {
    stop(engine, scope, args)?;
    let machines = scope.of(&args.services)?;
    end::start(engine, &Terminal, &machines, &scope.levels())?;
    Ok(0)
}

pub(super) fn kill(engine: &Engine, scope: &Scope, args: &ComposeKillArgs) -> Result<u8, Failure> {
    let signal = args.signal.as_deref().map(str::parse::<Signal>).transpose()?;
    each(scope, &args.services, "killed", |name| match signal {
        None => engine.kill(name),
        Some(signal) => engine.signal(name, signal.number()),
    })
}

/// Does `f` for every machine that runs.
pub(super) fn each(
    scope: &Scope,
    services: &[String],
    done: &str,
    f: impl Fn(&str) -> Result<(), Failure> + Sync,
) -> Result<u8, Failure> {
    let machines = scope.of(services)?;
    let running = machines.into_iter().filter(|owned| owned.is_active());
    end::at_once(&Terminal, running, |owned| {
        f(owned.name())?;
        Terminal.done(&format!("Machine {}", owned.name()), done);
        Ok(())
    })?;
    Ok(0)
}

/// Runs a command in one of a service's machines; on a terminal it has one, as with docker.
pub(super) fn exec(engine: &Engine, scope: &Scope, args: ComposeExecArgs) -> Result<u8, Failure> {
    let mut exec = args.exec;
    let service = exec.name.clone();
    let machines = scope.of(std::slice::from_ref(&service))?;
    let owned = machines
        .iter()
        .find(|owned| owned.number == args.index)
        .ok_or_else(|| {
            let message = format!("the service '{service}' has no machine {}", args.index);
            Failure::new(Class::NotFound, message).hint("'compose ps -a' lists them; 'compose up' makes them")
        })?;
    exec.name = owned.name().to_owned();
    let says_nothing = !exec.tty && !exec.interactive && !exec.detach;
    if says_nothing {
        exec.interactive = true;
        exec.tty = !args.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    }
    commands::exec::exec(engine, &exec)
}

pub(super) fn top(engine: &Engine, scope: &Scope, args: &ServicesArgs) -> Result<u8, Failure> {
    for owned in scope.of(&args.services)?.into_iter().filter(|owned| owned.is_active()) {
        output::print(&format!("{}\n", owned.name()))?;
        let one = TopArgs {
            name: owned.name().to_owned(),
            output: Format::Table,
        };
        commands::top::top(engine, &one)?;
        output::print("\n")?;
    }
    Ok(0)
}

/// Brings images here, also those that are here already.
pub(super) fn pull(engine: &Engine, project: &Project, services: &[String]) -> Result<u8, Failure> {
    let mut done: Vec<&str> = Vec::new();
    for service in project.services.values() {
        let Some(image) = service.image.as_deref() else {
            continue;
        };
        let is_meant = services.is_empty() || services.contains(&service.name);
        if !is_meant || done.contains(&image) {
            continue;
        }
        done.push(image);
        let found = engine.image(&ImageRequest {
            text: image,
            cwd: &project.folder,
            pull: PullPolicy::Always,
            mode: Mode::Auto,
            is_lazy: false,
            stores: &[],
            progress: &Bars::bytes(),
        });
        found.map_err(super::of_service(&service.name))?;
        Terminal.done(&format!("Image {image}"), "here");
    }
    Ok(0)
}
