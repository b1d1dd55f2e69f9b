//! Stopping and removing: `down`, `rm`, and what a second ctrl-c does.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use zmachine_compose::Project;
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};

use super::words::disk_name;
use super::{Owned, Scope, files_of, levels, owned, resources, tell};
use crate::args::compose::{ComposeRmArgs, DownArgs};
use crate::output;

/// Does `f` for each, all at once; every failure but the first is told.
pub(super) fn at_once<'a>(
    machines: impl IntoIterator<Item = &'a Owned>,
    f: impl Fn(&Owned) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for owned in machines {
            let (f, failures) = (&f, &failures);
            scope.spawn(move || {
                if let Err(failure) = f(owned) {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failures.pop() {
        None => Ok(()),
        Some(last) => {
            failures.iter().for_each(crate::failure::print);
            Err(last)
        }
    }
}

/// Does `f` for each, those first that need others.
pub(super) fn from_the_top(
    machines: &[&Owned],
    levels: &std::collections::BTreeMap<String, usize>,
    f: impl Fn(&Owned) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let level = |owned: &Owned| levels.get(&owned.service).copied().unwrap_or_default();
    let highest = machines.iter().map(|owned| level(owned)).max().unwrap_or_default();
    for current in (0..=highest).rev() {
        at_once(machines.iter().copied().filter(|owned| level(owned) == current), &f)?;
    }
    Ok(())
}

/// Stops one that runs.
pub(super) fn stop(engine: &Engine, owned: &Owned, grace: Option<Duration>) -> Result<(), Failure> {
    if !owned.is_active() {
        return Ok(());
    }
    engine.stop(owned.name(), grace)?;
    tell(&format!("Machine {}", owned.name()), "stopped");
    Ok(())
}

/// Stops and removes one.
pub(super) fn remove(engine: &Engine, owned: &Owned, grace: Option<Duration>) -> Result<(), Failure> {
    match stop(engine, owned, grace).and_then(|()| engine.remove(owned.name(), true, true)) {
        // Made with --rm, and gone when it stopped.
        Err(failure) if failure.class != Class::NotFound => return Err(failure),
        _ => tell(&format!("Machine {}", owned.name()), "removed"),
    }
    Ok(())
}

/// Stops all machines of a project; failures are told.
pub(super) fn stop_all(engine: &Engine, project: &Project, grace: Option<Duration>) {
    let stopped = owned(engine, &project.name).and_then(|all| {
        let all: Vec<&Owned> = all.iter().filter(|owned| !owned.is_once).collect();
        from_the_top(&all, &levels(project), |owned| stop(engine, owned, grace))
    });
    if let Err(failure) = stopped {
        crate::failure::print(&failure);
    }
}

/// Ends all machines of a project at once; failures are told.
pub(super) fn kill_all(engine: &Engine, project: &str) {
    let killed = owned(engine, project).and_then(|all| {
        at_once(all.iter().filter(|owned| owned.is_active()), |owned| {
            match engine.kill(owned.name()) {
                // It has ended meanwhile.
                Err(failure) if failure.class != Class::Conflict => Err(failure),
                _ => Ok(()),
            }
        })
    });
    if let Err(failure) = killed {
        crate::failure::print(&failure);
    }
}

/// Removes all of a project but its volumes.
pub(super) fn down(engine: &Engine, scope: &Scope, args: &DownArgs) -> Result<u8, Failure> {
    let grace = args.timeout.map(Duration::from_secs);
    let is_known = |owned: &&Owned| match &scope.project {
        Some(project) => project.services.contains_key(&owned.service),
        // Nothing says which ones there should be.
        None => true,
    };
    let (known, orphans): (Vec<&Owned>, Vec<&Owned>) = scope.machines.iter().partition(is_known);
    from_the_top(&known, &scope.levels(), |owned| remove(engine, owned, grace))?;
    match args.remove_orphans {
        true => at_once(orphans.iter().copied(), |owned| remove(engine, owned, grace))?,
        false if orphans.is_empty() => {}
        false => {
            let names: Vec<&str> = orphans.iter().map(|owned| owned.name()).collect();
            eprintln!(
                "warning: no file has the services of the machines {}; --remove-orphans removes them",
                names.join(", ")
            );
        }
    }
    resources::remove_networks(engine, &networks(scope))?;
    if args.volumes {
        remove_volumes(engine, scope)?;
    }
    let files = files_of(engine, &scope.name);
    match std::fs::remove_dir_all(&files) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::from(e).context(format!("{} cannot be removed", files.display())));
        }
        _ => {}
    }
    Ok(0)
}

/// The networks that are the project's own: those its files define, or, without files, those its machines were in that bear its name.
fn networks(scope: &Scope) -> Vec<String> {
    match &scope.project {
        Some(project) => project
            .networks
            .values()
            .filter(|network| !network.external)
            .map(resources::network_name)
            .collect(),
        None => {
            let own = format!("{}_", scope.name);
            let all = scope.machines.iter().flat_map(|owned| &owned.machine.spec.networks);
            let mut names: Vec<String> = all
                .map(|network| network.name.clone())
                .filter(|name| name.starts_with(&own))
                .collect();
            names.sort();
            names.dedup();
            names
        }
    }
}

fn remove_volumes(engine: &Engine, scope: &Scope) -> Result<(), Failure> {
    let mut names: Vec<String> = match &scope.project {
        Some(project) => project
            .volumes
            .values()
            .filter(|volume| !volume.external)
            .map(|volume| volume.name.clone())
            .collect(),
        None => Vec::new(),
    };
    names.extend(scope.machines.iter().map(|owned| disk_name(owned.name())));
    let there: Vec<String> = engine.volume_list()?.0.into_iter().map(|view| view.name).collect();
    for name in names.iter().filter(|name| there.contains(name)) {
        engine.volumes().remove(name)?;
        tell(&format!("Volume {name}"), "removed");
    }
    Ok(())
}

/// Removes machines that have stopped.
pub(super) fn rm(engine: &Engine, scope: &Scope, args: &ComposeRmArgs) -> Result<u8, Failure> {
    let all = scope.of(&args.services)?;
    if args.stop {
        from_the_top(&all, &scope.levels(), |owned| stop(engine, owned, None))?;
    }
    let stopped: Vec<&Owned> = all
        .into_iter()
        .filter(|owned| args.stop || !owned.is_active())
        .collect();
    if stopped.is_empty() {
        eprintln!("no machine has stopped");
        return Ok(0);
    }
    let names: Vec<&str> = stopped.iter().map(|owned| owned.name()).collect();
    if !output::confirm(&format!("This removes {}.", names.join(", ")), args.force)? {
        return Ok(0);
    }
    at_once(stopped, |owned| remove(engine, owned, None))?;
    Ok(0)
}
