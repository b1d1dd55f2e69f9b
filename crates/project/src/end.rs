//! Stopping, removing and starting machines of a project that are there.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use zmachine_compose::Project;
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure};

use crate::Front;
use crate::owned::{Owned, levels, owned};

/// Does `f` for each, all at once.
///
/// # Errors
/// One of the failures; the others are told.
pub fn at_once<'a>(
    front: &dyn Front,
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
            failures.iter().for_each(|failure| front.failed(failure));
            Err(last)
        }
    }
}

/// Does `f` for each, those first that need others.
///
/// # Errors
/// As [`at_once`]; those that are needed are left alone then.
pub fn from_the_top(
    front: &dyn Front,
    machines: &[&Owned],
    levels: &BTreeMap<String, usize>,
    f: impl Fn(&Owned) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let level = |owned: &Owned| levels.get(&owned.service).copied().unwrap_or_default();
    let highest = machines.iter().map(|owned| level(owned)).max().unwrap_or_default();
    for current in (0..=highest).rev() {
        at_once(
            front,
            machines.iter().copied().filter(|owned| level(owned) == current),
            &f,
        )?;
    }
    Ok(())
}

/// Stops one that runs.
///
/// # Errors
/// When it does not stop.
pub fn stop(engine: &Engine, front: &dyn Front, owned: &Owned, grace: Option<Duration>) -> Result<(), Failure> {
    if !owned.is_active() {
        return Ok(());
    }
    engine.stop(owned.name(), grace)?;
    front.done(&format!("Machine {}", owned.name()), "stopped");
    Ok(())
}

/// Stops and removes one, with its volumes that have no name.
///
/// # Errors
/// When it does not stop, or cannot be removed.
pub fn remove(engine: &Engine, front: &dyn Front, owned: &Owned, grace: Option<Duration>) -> Result<(), Failure> {
    remove_but(engine, front, owned, grace, false)
}

/// [`remove`] that leaves its volumes to another machine when `keeps_volumes`.
pub(crate) fn remove_but(
    engine: &Engine,
    front: &dyn Front,
    owned: &Owned,
    grace: Option<Duration>,
    keeps_volumes: bool,
) -> Result<(), Failure> {
    match stop(engine, front, owned, grace).and_then(|()| engine.remove(owned.name(), true, !keeps_volumes)) {
        // Made with --rm, and gone when it stopped.
        Err(failure) if failure.class != Class::NotFound => return Err(failure),
        _ => front.done(&format!("Machine {}", owned.name()), "removed"),
    }
    Ok(())
}

/// Stops all machines of a project; failures are told.
pub fn stop_all(engine: &Engine, front: &dyn Front, project: &Project, grace: Option<Duration>) {
    let stopped = owned(engine, &project.name).and_then(|all| {
        let all: Vec<&Owned> = all.iter().filter(|owned| !owned.is_once).collect();
        from_the_top(front, &all, &levels(project), |owned| stop(engine, front, owned, grace))
    });
    if let Err(failure) = stopped {
        front.failed(&failure);
    }
}

/// Ends all machines of a project at once; failures are told.
pub fn kill_all(engine: &Engine, front: &dyn Front, project: &str) {
    let killed = owned(engine, project).and_then(|all| {
        at_once(front, all.iter().filter(|owned| owned.is_active()), |owned| {
            match engine.kill(owned.name()) {
                // It has ended meanwhile.
                Err(failure) if failure.class != Class::Conflict => Err(failure),
                _ => Ok(()),
            }
        })
    });
    if let Err(failure) = killed {
        front.failed(&failure);
    }
}

/// Starts what does not run, those first that are needed.
///
/// # Errors
/// As [`at_once`]; those that need others are left alone then.
pub fn start(
    engine: &Engine,
    front: &dyn Front,
    machines: &[&Owned],
    levels: &BTreeMap<String, usize>,
) -> Result<(), Failure> {
    let level = |owned: &Owned| levels.get(&owned.service).copied().unwrap_or_default();
    let highest = machines.iter().map(|owned| level(owned)).max().unwrap_or_default();
    for current in 0..=highest {
        let here = machines.iter().copied().filter(|owned| level(owned) == current);
        at_once(front, here, |owned| {
            if engine.machine(owned.name())?.state.phase.is_active() {
                return Ok(());
            }
            engine.start(owned.name(), false)?.wait_ready(&*front.progress())?;
            front.done(&format!("Machine {}", owned.name()), "started");
            Ok(())
        })?;
    }
    Ok(())
}
