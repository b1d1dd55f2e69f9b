//! `compose up`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zmachine_compose::{Project, order};
use zmachine_engine::Engine;
use zmachine_image::PullPolicy;
use zmachine_project::converge::{Convergence, Wish};
use zmachine_project::follow::{Begun, Following, Starting};
use zmachine_project::{end, owned};
use zmachine_spec::{Class, Failure};

use super::front::Terminal;
use super::no_service;
use crate::args::compose::UpArgs;

/// As a shell tells of one that ctrl-c ended.
const INTERRUPTED: u8 = 130;

/// Makes what the files say so.
pub(super) fn up(engine: &Engine, project: &Project, args: &UpArgs, slots: usize) -> Result<u8, Failure> {
    let project = &scaled(project, &args.scale)?;
    if args.build {
        eprintln!("warning: --build changes nothing: images are not built here");
    }
    if let Some(name) = args
        .exit_code_from
        .as_ref()
        .filter(|name| !project.services.contains_key(*name))
    {
        return Err(no_service(name, project.services.keys()));
    }
    orphans(engine, project, args)?;
    let services = match args.no_deps && !args.services.is_empty() {
        true => args.services.iter().cloned().collect(),
        false => order::with_dependencies(&project.services, &args.services),
    };
    let grace = args.timeout.map(Duration::from_secs);
    let wish = Wish {
        services: services.clone(),
        force: args.force_recreate,
        keeps_changed: args.no_recreate,
        starts: !args.no_start,
        pull: args.pull.map(PullPolicy::from),
        grace,
        until: args
            .wait_timeout
            .map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        slots,
    };
    if args.detach || args.wait || args.no_start {
        let convergence = Convergence::new(engine, &Terminal, project, wish)?;
        convergence.run()?;
        if args.wait {
            convergence.wait_healthy()?;
        }
        return Ok(0);
    }
    let following = Following {
        engine,
        front: &Terminal,
        project,
        services: &services,
        look: super::logs::look(args.look, false),
        ends_with_one: args.abort_on_container_exit || args.exit_code_from.is_some(),
        status_of: args.exit_code_from.as_deref(),
        grace,
    };
    attached(engine, project, wish, &following)
}

/// Starts, shows logs, and stops all when the user wants that.
fn attached(engine: &Engine, project: &Project, wish: Wish, following: &Following<'_>) -> Result<u8, Failure> {
    let interrupts = Arc::new(AtomicU32::new(0));
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let handle = signals.handle();
    let begun = Begun::now(engine, project)?;
    let convergence = &Convergence::new(engine, &Terminal, project, wish)?;
    let (has_failed, is_stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    let stop = || {
        is_stopped.store(true, Ordering::SeqCst);
        convergence.stop();
    };
    let ended = thread::scope(|scope| {
        let counted = interrupts.clone();
        scope.spawn(move || {
            for _ in &mut signals {
                match counted.fetch_add(1, Ordering::SeqCst) {
                    0 => {
                        eprintln!("\nstopping; ctrl-c again kills");
                        convergence.stop();
                        let grace = following.grace;
                        scope.spawn(move || end::stop_all(engine, &Terminal, project, grace));
                    }
                    _ => end::kill_all(engine, &Terminal, &project.name),
                }
            }
        });
        // Logs are shown from the first machine on, while others are still waiting.
        let starting = Starting {
            thread: scope.spawn(|| {
                let started = convergence.run();
                if is_stopped.load(Ordering::SeqCst) {
                    return Ok(());
                }
                has_failed.store(started.is_err(), Ordering::SeqCst);
                started
            }),
            has_failed: &has_failed,
            stop: &stop,
        };
        let ended = following.run(begun, &interrupts, &starting);
        let started = match starting.thread.join() {
            Ok(started) => started,
            Err(_) => Err(Failure::new(
                Class::Failed,
                "the thread that starts machines ended early",
            )),
        };
        handle.close();
        match interrupts.load(Ordering::SeqCst) {
            0 => started.and(ended),
            _ => ended.map(|_| INTERRUPTED),
        }
    });
    if interrupts.load(Ordering::SeqCst) > 0 {
        return ended.or(Ok(INTERRUPTED));
    }
    ended
}

/// The project with `--scale SERVICE=N`.
fn scaled(project: &Project, scales: &[String]) -> Result<Project, Failure> {
    let mut project = project.clone();
    for text in scales {
        let wrong = || Failure::new(Class::Usage, format!("--scale {text}: it is written SERVICE=N"));
        let (name, number) = text.split_once('=').ok_or_else(wrong)?;
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let known: Vec<String> = project.services.keys().cloned().collect();
        match project.services.get_mut(name) {
            Some(service) => service.scale = number,
            None => return Err(no_service(name, known.iter())),
        }
    }
    Ok(project)
}

/// Machines of services that the files do not have any more.
fn orphans(engine: &Engine, project: &Project, args: &UpArgs) -> Result<(), Failure> {
    let is_known = |name: &String| project.services.contains_key(name) || project.disabled.contains_key(name);
    let all = owned(engine, &project.name)?;
    let orphans: Vec<_> = all
        .iter()
        .filter(|owned| !owned.is_once && !is_known(&owned.service))
        .collect();
    if orphans.is_empty() {
        return Ok(());
    }
    if args.remove_orphans {
        return orphans
            .into_iter()
            .try_for_each(|owned| end::remove(engine, &Terminal, owned, args.timeout.map(Duration::from_secs)));
    }
    let names: Vec<&str> = orphans.iter().map(|owned| owned.name()).collect();
    eprintln!(
        "warning: no file has the services of the machines {}; --remove-orphans removes them",
        names.join(", ")
    );
    Ok(())
}
