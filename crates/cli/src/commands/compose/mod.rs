//! `compose`: the machines of a project, made of its files.
//!
//! ```text
//! files ─> Project (zmachine-compose) ─> its machines (zmachine-project), with the flags and the terminal of this program (front)
//! ```

mod act;
mod down;
mod front;
mod logs;
mod once;
mod up;
mod view;
#[cfg(test)]
mod words_tests;

use std::collections::BTreeMap;

use zmachine_compose::{ComposeError, Project};
use zmachine_engine::Engine;
use zmachine_project::{Owned, levels, owned};
use zmachine_spec::{Class, Failure};

use self::front::Terminal;
use crate::args::ComposeArgs;
use crate::args::compose::ComposeCommand;
use crate::context;

/// Carries a command out.
pub(super) fn compose(args: ComposeArgs) -> Result<u8, Failure> {
    let ComposeArgs { parallel, .. } = args;
    let load = |services: &[String]| load(&args, services);
    match &args.command {
        ComposeCommand::Config(config) => return view::config(&load(&config.names)?, config),
        ComposeCommand::Ls(list) => return view::ls(&context::engine()?, list),
        _ => {}
    }
    let engine = context::engine()?;
    let slots = parallel.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from).max(2));
    match &args.command {
        ComposeCommand::Up(up) => self::up::up(&engine, &load(&up.services)?, up, slots),
        ComposeCommand::Run(run) => once::run(&engine, &load(std::slice::from_ref(&run.service))?, run, slots),
        ComposeCommand::Pull(pull) => act::pull(&engine, &load(&pull.services)?, &pull.services),
        _ => {
            let scope = Scope::new(&engine, &args)?;
            with_machines(args.command, &engine, &scope)
        }
    }
}

/// The commands that work on the machines that are there.
fn with_machines(command: ComposeCommand, engine: &Engine, scope: &Scope) -> Result<u8, Failure> {
    match command {
        ComposeCommand::Down(args) => down::down(engine, scope, &args),
        ComposeCommand::Ps(args) => view::ps(scope, args),
        ComposeCommand::Logs(args) => logs::logs(engine, scope, &args),
        ComposeCommand::Exec(args) => act::exec(engine, scope, args),
        ComposeCommand::Stop(args) => act::stop(engine, scope, &args),
        ComposeCommand::Start(args) => act::start(engine, scope, &args),
        ComposeCommand::Restart(args) => act::restart(engine, scope, &args),
        ComposeCommand::Kill(args) => act::kill(engine, scope, &args),
        ComposeCommand::Pause(args) => act::each(scope, &args.services, "paused", |name| engine.pause(name)),
        ComposeCommand::Unpause(args) => act::each(scope, &args.services, "resumed", |name| engine.resume(name)),
        ComposeCommand::Rm(args) => down::rm(engine, scope, &args),
        ComposeCommand::Top(args) => act::top(engine, scope, &args),
        ComposeCommand::Up(_)
        | ComposeCommand::Run(_)
        | ComposeCommand::Pull(_)
        | ComposeCommand::Config(_)
        | ComposeCommand::Ls(_) => Ok(0),
    }
}

/// Reads the project; what changes nothing is told.
fn load(args: &ComposeArgs, services: &[String]) -> Result<Project, Failure> {
    let project = project(args, services).map_err(failure)?;
    for note in &project.notes {
        eprintln!("warning: {}", note.text);
    }
    for name in services {
        if !project.services.contains_key(name) {
            return Err(no_service(name, project.services.keys()));
        }
    }
    Ok(project)
}

fn project(args: &ComposeArgs, services: &[String]) -> Result<Project, ComposeError> {
    let cwd = std::env::current_dir().map_err(|e| ComposeError::new(format!("there is no current folder: {e}")))?;
    // Variables that are not UTF-8 cannot be a part of a file that is.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    zmachine_compose::project(&zmachine_compose::Options {
        files: args.file.clone(),
        name: args.project_name.clone(),
        profiles: args.profile.clone(),
        env_files: args.env_file.clone(),
        folder: args.project_directory.clone(),
        cwd,
        environment,
        services: services.to_vec(),
    })
}

fn failure(error: ComposeError) -> Failure {
    let class = if error.is_not_found {
        Class::NotFound
    } else {
        Class::Usage
    };
    Failure::new(class, error.to_string()).hint(error.hint.unwrap_or_default())
}

fn no_service<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Failure {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let hint = match known.is_empty() {
        true => "the project has none".to_owned(),
        false => format!("its services are {}", known.join(", ")),
    };
    Failure::new(Class::NotFound, format!("there is no service '{name}' in the project")).hint(hint)
}

/// The project of a command that needs no files: its machines say enough.
struct Scope {
    name: String,
    /// `None` without files, when the name is given.
    project: Option<Project>,
    machines: Vec<Owned>,
}

impl Scope {
    fn new(engine: &Engine, args: &ComposeArgs) -> Result<Scope, Failure> {
        // Whatever its profile: what runs can be stopped.
        let all = ComposeArgs {
            file: args.file.clone(),
            project_name: args.project_name.clone(),
            profile: vec!["*".to_owned()],
            env_file: args.env_file.clone(),
            project_directory: args.project_directory.clone(),
            parallel: None,
            command: ComposeCommand::Pause(crate::args::compose::ServicesArgs { services: Vec::new() }),
        };
        // What a profile nobody asks for cannot be here is no reason not to stop the others.
        let read = project(&all, &[]).or_else(|_| project(args, &[]));
        let (name, project) = match read {
            Ok(project) => (project.name.clone(), Some(project)),
            Err(error) => match &args.project_name {
                Some(name) if error.is_not_found && args.file.is_empty() => (name.clone(), None),
                _ => return Err(failure(error)),
            },
        };
        let machines = owned(engine, &name)?;
        Ok(Scope {
            name,
            project,
            machines,
        })
    }

    /// The machines of these services; all when none is named, those of `run` left out.
    fn of(&self, services: &[String]) -> Result<Vec<&Owned>, Failure> {
        for name in services {
            let is_defined = self
                .project
                .as_ref()
                .is_some_and(|project| project.services.contains_key(name));
            if !is_defined && !self.machines.iter().any(|owned| owned.service == *name) {
                let known: std::collections::BTreeSet<&String> = match &self.project {
                    Some(project) => project.services.keys().collect(),
                    None => self.machines.iter().map(|owned| &owned.service).collect(),
                };
                return Err(no_service(name, known.into_iter()));
            }
        }
        let is_meant = |owned: &&Owned| !owned.is_once && (services.is_empty() || services.contains(&owned.service));
        Ok(self.machines.iter().filter(is_meant).collect())
    }

    /// Services by how many others are below them: what is higher is stopped first.
    fn levels(&self) -> BTreeMap<String, usize> {
        self.project.as_ref().map(levels).unwrap_or_default()
    }
}

/// The failure as one of a service, in the words of compose files.
fn of_service(service: &str) -> impl Fn(Failure) -> Failure {
    move |error| zmachine_project::of_service(&Terminal, service, error)
}
