//! `compose run`: a command of the user's in a machine made as those of a service.

use std::ffi::OsString;
use std::io::IsTerminal;

use zmachine_compose::{Project, order};
use zmachine_engine::Engine;
use zmachine_project::converge::{Convergence, Wish};
use zmachine_project::words::Instance;
use zmachine_project::{labels, resources};
use zmachine_spec::{Class, Failure};

use super::front::{Terminal, parsed};
use super::of_service;
use crate::args::Command;
use crate::args::compose::ComposeRunArgs;
use crate::args::run::texts;
use crate::commands;

pub(super) fn run(engine: &Engine, project: &Project, args: &ComposeRunArgs, slots: usize) -> Result<u8, Failure> {
    let Some(service) = project.services.get(&args.service) else {
        return Err(super::no_service(&args.service, project.services.keys()));
    };
    let mut needed = order::with_dependencies(&project.services, std::slice::from_ref(&args.service));
    needed.remove(&args.service);
    if !args.no_deps && !needed.is_empty() {
        let wish = Wish {
            services: needed,
            force: false,
            keeps_changed: true,
            starts: true,
            pull: None,
            grace: None,
            until: None,
            slots,
        };
        Convergence::new(engine, &Terminal, project, wish)?.run()?;
    }
    let files = resources::files(engine, project, &[service])?;
    let used = resources::used(std::iter::once(service));
    let joins = resources::networks(engine, &Terminal, project, &used, 1)?;
    // Any that is free: several may run at once.
    let suffix = zmachine_store::catalog::new_id();
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("{}-{}-run-{suffix}", project.name, service.name));
    let instance = Instance {
        project,
        service,
        labels: labels(project, service, 1, &resources::hash(project, service), true),
        name,
        files: &files,
        joins,
        publishes: args.service_ports,
        once: true,
    };
    let mut more: Vec<String> = Vec::new();
    more.extend(args.rm.then(|| "--rm".to_owned()));
    more.extend(args.detach.then(|| "--detach".to_owned()));
    if !args.detach {
        more.push("--interactive".to_owned());
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        more.extend((is_terminal && !args.no_tty).then(|| "--tty".to_owned()));
    }
    let each = |flag: &str, values: &[String]| -> Vec<String> {
        values.iter().map(|value| format!("--{flag}={value}")).collect()
    };
    more.extend(each("env", &args.env));
    more.extend(each("volume", &args.volume));
    more.extend(each("publish", &args.publish));
    let replaced = [
        ("entrypoint", &args.entrypoint, service.entrypoint.is_some()),
        ("user", &args.user, service.user.is_some()),
        ("workdir", &args.workdir, service.working_dir.is_some()),
    ];
    let mut changed = service.clone();
    for (flag, value, is_set) in replaced {
        let Some(value) = value else { continue };
        if is_set {
            match flag {
                "entrypoint" => changed.entrypoint = None,
                "user" => changed.user = None,
                _ => changed.working_dir = None,
            }
        }
        more.push(format!("--{flag}={value}"));
    }
    let command = match (args.command.is_empty(), &args.entrypoint) {
        (true, None) => service.command.clone().unwrap_or_default(),
        _ => texts(&args.command)?,
    };
    let instance = Instance {
        service: &changed,
        ..instance
    };
    let mut words = instance.words(&Terminal).map_err(of_service(&service.name))?;
    words.extend(more.into_iter().map(OsString::from));
    words.extend(instance.positionals(&command));
    match parsed("run", words).map_err(of_service(&service.name))? {
        Command::Run(run) => commands::run::run(engine, &run).map_err(of_service(&service.name)),
        _ => Err(Failure::new(Class::Failed, "'run' was read as another command")),
    }
}
