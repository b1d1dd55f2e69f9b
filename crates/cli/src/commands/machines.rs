//! Commands over several machines: each is tried, the first failure decides the exit code.

use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_spec::{Class, Exit, Failure, Signal};

use crate::args::{KillArgs, RmArgs, StartArgs, StopArgs};
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

pub(crate) fn stop(engine: &Engine, args: &StopArgs) -> Result<u8, Failure> {
    each(&args.names.names, |name| {
        engine.stop(name, args.time.map(Duration::from_secs))
    })
}

pub(crate) fn restart(engine: &Engine, args: &StopArgs) -> Result<u8, Failure> {
    each(&args.names.names, |name| {
        engine.stop(name, args.time.map(Duration::from_secs))?;
        engine.start(name, false)?.wait_ready(&Bars::bytes())
    })
}

pub(crate) fn kill(engine: &Engine, args: &KillArgs) -> Result<u8, Failure> {
    let signal = args.signal.as_deref().map(str::parse::<Signal>).transpose()?;
    each(&args.names.names, |name| match signal {
        None => engine.kill(name),
        Some(signal) => engine.signal(name, signal.number()),
    })
}

pub(crate) fn rm(engine: &Engine, args: &RmArgs) -> Result<u8, Failure> {
    each(&args.names.names, |name| engine.remove(name, args.force, args.volumes))
}

/// Prints one exit status per machine, as docker does; the machine's failure is a failure here.
pub(crate) fn wait(engine: &Engine, names: &[String]) -> Result<u8, Failure> {
    for name in names {
        let exit = engine.wait(name).map_err(|failure| match failure.class {
            Class::NotFound => failure,
            _ => failure.context(format!("machine '{name}' failed")),
        })?;
        output::print(&format!("{}\n", exit.map_or(0, Exit::shell_code)))?;
    }
    Ok(0)
}
