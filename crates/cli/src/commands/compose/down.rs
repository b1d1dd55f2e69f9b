//! `compose down` and `rm`.

use std::time::Duration;

use zmachine_engine::Engine;
use zmachine_project::end::{at_once, from_the_top, remove, stop};
use zmachine_project::words::disk_name;
use zmachine_project::{Front, Owned, resources};
use zmachine_spec::Failure;

use super::Scope;
use super::front::Terminal;
use crate::args::compose::{ComposeRmArgs, DownArgs};
use crate::output;

/// Removes all of a project but its volumes.
pub(super) fn down(engine: &Engine, scope: &Scope, args: &DownArgs) -> Result<u8, Failure> {
    let grace = args.timeout.map(Duration::from_secs);
    let is_known = |owned: &&Owned| match &scope.project {
        Some(project) => project.services.contains_key(&owned.service),
        // Nothing says which ones there should be.
        None => true,
    };
    let (known, orphans): (Vec<&Owned>, Vec<&Owned>) = scope.machines.iter().partition(is_known);
    from_the_top(&Terminal, &known, &scope.levels(), |owned| {
        remove(engine, &Terminal, owned, grace)
    })?;
    match args.remove_orphans {
        true => at_once(&Terminal, orphans.iter().copied(), |owned| {
            remove(engine, &Terminal, owned, grace)
        })?,
        false if orphans.is_empty() => {}
        false => {
            let names: Vec<&str> = orphans.iter().map(|owned| owned.name()).collect();
            eprintln!(
                "warning: no file has the services of the machines {}; --remove-orphans removes them",
                names.join(", ")
            );
        }
    }
    resources::remove_networks(engine, &Terminal, &networks(scope))?;
    if args.volumes {
        remove_volumes(engine, scope)?;
    }
    let files = resources::files_of(engine, &scope.name);
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
        Terminal.done(&format!("Volume {name}"), "removed");
    }
    Ok(())
}

/// Removes machines that have stopped.
pub(super) fn rm(engine: &Engine, scope: &Scope, args: &ComposeRmArgs) -> Result<u8, Failure> {
    let all = scope.of(&args.services)?;
    if args.stop {
        from_the_top(&Terminal, &all, &scope.levels(), |owned| {
            stop(engine, &Terminal, owned, None)
        })?;
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
    at_once(&Terminal, stopped, |owned| remove(engine, &Terminal, owned, None))?;
    Ok(0)
}
