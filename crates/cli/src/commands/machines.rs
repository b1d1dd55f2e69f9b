//! Commands over several machines: each is tried, the first failure decides the exit code.

use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_spec::{Class, Exit, Failure, HealthStatus, Signal};
use zmachine_store::catalog::Machine;

use crate::args::{AllOrNamesArgs, Condition, KillArgs, RmArgs, StartArgs, StopArgs, WaitArgs};
use crate::progress::Bars;
use crate::{failure, output};

/// Does `f` for every name, prints the names done, and goes on after a failure.
pub(crate) fn each(names: &[String], f: impl Fn(&str) -> Result<(), Failure>) -> Result<u8, Failure> {
    let mut first = None;
    for name in names {
        match f(name) {
            Ok(()) => output::print(&format!("{name}\n"))?,
            Err(error) => {
                failure::print(&error);
                first.get_or_insert(failure::exit_code(error.class, false));
            }
        }
    }
    Ok(first.unwrap_or(0))
}

pub(crate) fn start(engine: &Engine, args: &StartArgs) -> Result<u8, Failure> {
    if let Some(name) = &args.from {
        return super::snapshot::restore(engine, name);
    }
    if args.attach {
        let [name] = args.names.as_slice() else {
            return Err(Failure::new(Class::Usage, "one machine alone can be followed")
                .hint("name one with --attach; without it, any number"));
        };
        let spec = engine.machine(name)?.spec;
        return super::run::attached(engine, &spec, args.interactive, None);
    }
    let (names, unread) = match args.all_enabled {
        true => {
            let (machines, code) = super::list::readable(engine)?;
            let enabled = machines
                .into_iter()
                .filter(|machine| machine.spec.restart.starts_at_boot(&machine.state));
            (enabled.map(|machine| machine.spec.name).collect(), code)
        }
        false if args.names.is_empty() => {
            return Err(Failure::new(
                Class::Usage,
                "name the machines to start, or use --all-enabled",
            ));
        }
        false => (args.names.clone(), 0),
    };
    let started = each(&names, |name| engine.start(name, false)?.wait_ready(&Bars::bytes()))?;
    Ok(if started == 0 { unread } else { started })
}

/// The machines that are meant: those named, or all that `is_meant` holds for.
fn meant(
    engine: &Engine,
    args: &AllOrNamesArgs,
    is_meant: impl Fn(&Machine) -> bool,
) -> Result<(Vec<String>, u8), Failure> {
    if !args.all {
        return Ok((args.names.clone(), 0));
    }
    let (machines, code) = super::list::readable(engine)?;
    let names = machines.into_iter().filter(is_meant).map(|machine| machine.spec.name);
    Ok((names.collect(), code))
}

pub(crate) fn stop(engine: &Engine, args: &StopArgs) -> Result<u8, Failure> {
    let (names, unread) = meant(engine, &args.names, |machine| machine.state.phase.is_active())?;
    let stopped = each(&names, |name| engine.stop(name, args.time.map(Duration::from_secs)))?;
    Ok(if stopped == 0 { unread } else { stopped })
}

pub(crate) fn restart(engine: &Engine, args: &StopArgs) -> Result<u8, Failure> {
    let (names, unread) = meant(engine, &args.names, |machine| machine.state.phase.is_active())?;
    let restarted = each(&names, |name| {
        engine.stop(name, args.time.map(Duration::from_secs))?;
        engine.start(name, false)?.wait_ready(&Bars::bytes())
    })?;
    Ok(if restarted == 0 { unread } else { restarted })
}

pub(crate) fn kill(engine: &Engine, args: &KillArgs) -> Result<u8, Failure> {
    let signal = args.signal.as_deref().map(str::parse::<Signal>).transpose()?;
    each(&args.names.names, |name| match signal {
        None => engine.kill(name),
        Some(signal) => engine.signal(name, signal.number()),
    })
}

pub(crate) fn rm(engine: &Engine, args: &RmArgs) -> Result<u8, Failure> {
    let is_meant = |machine: &Machine| args.force || !machine.state.phase.is_active();
    let (names, unread) = meant(engine, &args.names, is_meant)?;
    let removed = each(&names, |name| engine.remove(name, args.force, true))?;
    Ok(if removed == 0 { unread } else { removed })
}

/// Removes the machines that do not run.
pub(super) fn prune(engine: &Engine) -> Result<u8, Failure> {
    let (machines, code) = super::list::readable(engine)?;
    let stopped = machines.into_iter().filter(|machine| !machine.state.phase.is_active());
    let names: Vec<String> = stopped.map(|machine| machine.spec.name).collect();
    let removed = each(&names, |name| engine.remove(name, false, true))?;
    Ok(if removed == 0 { code } else { removed })
}

/// Prints one exit status per machine, as docker does; the machine's failure is a failure here.
pub(crate) fn wait(engine: &Engine, args: &WaitArgs) -> Result<u8, Failure> {
    for name in &args.names.names {
        let exit = match args.condition {
            Condition::NotRunning => engine.wait(name),
            Condition::NextExit => engine.wait_for_next_exit(name),
            Condition::Removed => engine.wait_for_removal(name),
            Condition::Healthy => {
                engine.wait_for_health(name, &[HealthStatus::Healthy], None)?;
                continue;
            }
            Condition::Unhealthy => {
                engine.wait_for_health(name, &[HealthStatus::Unhealthy], None)?;
                continue;
            }
        };
        let exit = exit.map_err(|failure| match failure.class {
            Class::NotFound => failure,
            _ => failure.context(format!("machine '{name}' failed")),
        })?;
        output::print(&format!("{}\n", exit.map_or(0, Exit::shell_code)))?;
    }
    Ok(0)
}
