//! `compose`: the machines of a project, made of its files.
//!
//! ```text
//! files ─> Project (zmachine-compose) ─> words of `create` for each machine (words) ─> MachineSpec ─> engine
//! ```
//! # Invariants
//! What belongs to a project is known by labels, those of docker's compose: nothing else remembers it. A machine is left alone as long as
//! the hash of its service, which is one of them, is the same. Volumes go only when that is asked for.

mod act;
mod converge;
mod down;
mod follow;
mod health;
mod logs;
mod once;
mod resources;
mod up;
mod view;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

use zmachine_compose::{ComposeError, Project};
use zmachine_engine::Engine;
use zmachine_spec::{Class, Failure, Setting};
use zmachine_store::catalog::Machine;

use crate::args::ComposeArgs;
use crate::args::compose::ComposeCommand;
use crate::context;

const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const HASH: &str = "com.docker.compose.config-hash";
const ONE_OFF: &str = "com.docker.compose.oneoff";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
const DEPENDS_ON: &str = "com.docker.compose.depends_on";

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
        ComposeCommand::Ps(args) => view::ps(engine, scope, args),
        ComposeCommand::Logs(args) => logs::logs(engine, scope, &args),
        ComposeCommand::Exec(args) => act::exec(engine, scope, args),
        ComposeCommand::Stop(args) => act::stop(engine, scope, &args),
        ComposeCommand::Start(args) => act::start(engine, scope, &args),
        ComposeCommand::Restart(args) => act::restart(engine, scope, &args),
        ComposeCommand::Kill(args) => act::kill(engine, scope, &args),
        ComposeCommand::Pause(args) => act::each(engine, scope, &args.services, "paused", |name| engine.pause(name)),
        ComposeCommand::Unpause(args) => {
            act::each(engine, scope, &args.services, "resumed", |name| engine.resume(name))
        }
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

/// A machine of a project.
#[derive(Debug, Clone)]
struct Owned {
    machine: Machine,
    service: String,
    number: u32,
    is_once: bool,
}

impl Owned {
    fn name(&self) -> &str {
        &self.machine.spec.name
    }

    fn is_active(&self) -> bool {
        self.machine.state.phase.is_active()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.machine.spec.labels.get(key).map(String::as_str)
    }

    /// As lines of a log begin: without the project, as docker has it.
    fn short_name(&self, project: &str) -> &str {
        let name = self.name();
        let short = name.strip_prefix(project).and_then(|rest| rest.strip_prefix('-'));
        short.unwrap_or(name)
    }
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

fn levels(project: &Project) -> BTreeMap<String, usize> {
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    for name in zmachine_compose::order::sorted(&project.services) {
        let needs = project.services.get(&name).map(|service| &service.depends_on);
        let below = needs.into_iter().flatten().filter_map(|(needed, _)| levels.get(needed));
        let level = below.max().map_or(0, |level| level + 1);
        levels.insert(name, level);
    }
    levels
}

/// The machines of a project, by service and number.
fn owned(engine: &Engine, project: &str) -> Result<Vec<Owned>, Failure> {
    let (machines, _) = super::list::readable(engine)?;
    let mut all: Vec<Owned> = machines
        .into_iter()
        .filter(|machine| machine.spec.labels.get(PROJECT).is_some_and(|name| name == project))
        .map(|machine| {
            let label = |key: &str| machine.spec.labels.get(key).cloned().unwrap_or_default();
            Owned {
                service: label(SERVICE),
                number: label(NUMBER).parse().unwrap_or(1),
                is_once: label(ONE_OFF) == "True",
                machine,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.service, a.number).cmp(&(&b.service, b.number)));
    Ok(all)
}

/// One line of what was done.
fn tell(name: &str, what: &str) {
    eprintln!(" {name}  {what}");
}

/// The failure as one of a service, in the words of compose files.
fn of_service(service: &str) -> impl Fn(Failure) -> Failure {
    let context = format!("service '{service}'");
    move |error| crate::failure::respelled(error, spelling).context(context.clone())
}

/// The key of a compose file for a setting.
fn spelling(setting: Setting) -> Option<&'static str> {
    Some(match setting {
        Setting::Name => "container_name",
        Setting::Flist => "image",
        Setting::Cpus => "cpus",
        Setting::CpuSet => "cpuset",
        Setting::Memory => "mem_limit",
        Setting::Size => "x-zmachine: size",
        Setting::Env => "environment",
        Setting::Entrypoint => "entrypoint",
        Setting::Workdir => "working_dir",
        Setting::User => "user",
        Setting::Hostname => "hostname",
        Setting::Networks | Setting::NetworkAliases => "networks",
        Setting::Publish => "ports",
        Setting::Dns => "dns",
        Setting::Terminal => "tty",
        Setting::ReadOnly => "read_only",
        Setting::Init => "init",
        Setting::Kernel => "x-zmachine: kernel",
        Setting::Accel => "x-zmachine: accel",
        Setting::Hypervisor => "x-zmachine: hypervisor",
        Setting::StopSignal => "stop_signal",
        Setting::Stores => "x-zmachine: store",
        Setting::Mode => "x-zmachine: kind",
        Setting::Volumes => "volumes",
        Setting::UserData => "x-zmachine: user-data",
        Setting::Reinstall => "x-zmachine: reinstall",
        Setting::Rootfs => "x-zmachine: rootfs",
        Setting::Restart => "restart",
        Setting::LogLimits | Setting::LogTo => "logging",
        Setting::Secrets => "secrets",
        Setting::Tmpfs => "tmpfs",
        Setting::Hosts => "extra_hosts",
        Setting::Sysctls => "sysctls",
        Setting::Ulimits => "ulimits",
        Setting::Capabilities => "cap_drop",
        Setting::Health => "healthcheck",
    })
}

/// Where the contents of a project's secrets and configs are that have no file of their own.
fn files_of(engine: &Engine, project: &str) -> PathBuf {
    engine.home().data().join("compose").join(project)
}
