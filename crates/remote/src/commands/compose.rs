//! `compose`: files of this host, machines of another one.
//!
//! The files are read here, and go there as one document in which variables have their values and secrets and configs their contents. What
//! is a folder of this host cannot go there, and is refused by name.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use serde_json::{Value, json};
use zmachine_compose::{ComposeError, FileSource, MountSource, Project, Service};
use zmachine_spec::{Class, Failure};

use super::{machines, output, resources, run, watch};
use crate::connection::{Ask, Server, part};
use crate::words::{Compose, ComposeCommand, ComposePs, Listing, Timed, Up};

/// Labels by which a machine is known as one of a project, as docker's compose has them.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const ONE_OFF: &str = "com.docker.compose.oneoff";

/// As a shell tells of one that ctrl-c ended.
const INTERRUPTED: u8 = 130;

/// Carries a command out, and gives the exit code.
pub(super) async fn compose(server: &Server, mut args: Compose) -> Result<u8, Failure> {
    let Some(command) = args.command.take() else {
        return Ok(0);
    };
    match command {
        ComposeCommand::Ls(listing) => projects(server, &listing).await,
        ComposeCommand::Config(config) => {
            let project = load(&args, &[])?;
            match (config.quiet, config.format.as_str()) {
                (true, _) => {}
                (false, "json") => output::json(&project.config)?,
                _ => output::print(&zmachine_compose::yaml(&project.config))?,
            }
            Ok(0)
        }
        ComposeCommand::Up(up) => self::up(server, &load(&args, &up.services.services)?, &up).await,
        ComposeCommand::Pull(services) => {
            let project = load(&args, &services.services)?;
            let mut wish = with_document(&project, "pull")?;
            wish["services"] = json!(services.services);
            act(server, &project.name, wish).await
        }
        command => {
            // What runs can be stopped, whatever its profile; without files, its machines say enough.
            let (name, document) = match load_all(&args) {
                Ok(project) => (project.name.clone(), Some(project.config)),
                Err(error) => match &args.project_name {
                    Some(name) if error.is_not_found && args.file.is_empty() => (name.clone(), None),
                    _ => return Err(failure(error)),
                },
            };
            with_machines(server, &name, document, command).await
        }
    }
}

fn options(args: &Compose, services: &[String]) -> Result<zmachine_compose::Options, Failure> {
    Ok(zmachine_compose::Options {
        files: args.file.clone(),
        name: args.project_name.clone(),
        profiles: args.profile.clone(),
        env_files: args.env_file.clone(),
        folder: args.project_directory.clone(),
        cwd: std::env::current_dir()?,
        // Variables that are not UTF-8 cannot be a part of a file that is.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        services: services.to_vec(),
    })
}

fn load(args: &Compose, services: &[String]) -> Result<Project, Failure> {
    let project = zmachine_compose::project(&options(args, services)?).map_err(failure)?;
    for note in &project.notes {
        eprintln!("warning: {}", note.text);
    }
    match services.iter().find(|name| !project.services.contains_key(*name)) {
        None => Ok(project),
        Some(name) => {
            let known: Vec<&str> = project.services.keys().map(String::as_str).collect();
            let message = format!("there is no service '{name}' in the project");
            Err(Failure::new(Class::NotFound, message).hint(format!("its services are {}", known.join(", "))))
        }
    }
}

/// The project with the services of all profiles.
fn load_all(args: &Compose) -> Result<Project, ComposeError> {
    let options = options(args, &[]).map_err(|failure| ComposeError::new(failure.to_string()))?;
    let all = zmachine_compose::Options {
        profiles: vec!["*".to_owned()],
        ..options.clone()
    };
    zmachine_compose::project(&all).or_else(|_| zmachine_compose::project(&options))
}

fn failure(error: ComposeError) -> Failure {
    let class = if error.is_not_found {
        Class::NotFound
    } else {
        Class::Usage
    };
    Failure::new(class, error.to_string()).hint(error.hint.unwrap_or_default())
}

/// A wish for an action with the document of the project, as it can be read elsewhere.
fn with_document(project: &Project, action: &str) -> Result<Value, Failure> {
    project
        .services
        .values()
        .try_for_each(|service| require_nothing_here(project, service))?;
    let mut config = project.config.clone();
    let secrets = contents(project, "secret", &project.secrets, |service| &service.secrets)?;
    for (name, content) in contents(project, "config", &project.configs, |service| &service.configs)? {
        config["configs"][name] = json!({"content": content});
    }
    // What no service has is not looked for there, where its file is not.
    if let Some(defined) = config.get_mut("secrets").and_then(Value::as_object_mut) {
        defined.retain(|name, _| secrets.contains_key(name));
    }
    Ok(json!({"action": action, "config": config, "secrets": secrets}))
}

/// That a service has no folder or file of this host.
fn require_nothing_here(project: &Project, service: &Service) -> Result<(), Failure> {
    let refused = |path: &std::path::Path, target: &str| {
        let message = format!(
            "service '{}': {} of this host cannot be at {target} of a machine on another one",
            service.name,
            path.display()
        );
        Failure::new(Class::Unsupported, message)
            .hint("use a volume, and 'zmachine --host URL cp'; a config or a secret for a small file")
    };
    for mount in &service.mounts {
        match &mount.source {
            MountSource::Host { path, .. } => return Err(refused(path, &mount.target)),
            MountSource::Volume { key, .. } => {
                if let Some(path) = project.volumes.get(key).and_then(|volume| volume.bind.as_ref()) {
                    return Err(refused(path, &mount.target));
                }
            }
            MountSource::Anonymous | MountSource::Memory { .. } => {}
        }
    }
    Ok(())
}

/// The contents of the secrets or configs that services have, by their names.
fn contents(
    project: &Project,
    word: &str,
    defined: &BTreeMap<String, FileSource>,
    granted: impl Fn(&Service) -> &Vec<zmachine_compose::Grant>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for name in project.services.values().flat_map(&granted).map(|grant| &grant.source) {
        let content = match defined.get(name) {
            Some(FileSource::File(path)) => std::fs::read_to_string(path).map_err(|e| {
                Failure::from_error(Class::NotFound, &e).context(format!(
                    "the {word} '{name}': {} cannot be read as text",
                    path.display()
                ))
            })?,
            Some(FileSource::Content(content)) => content.clone(),
            Some(FileSource::Environment { value: Some(value), .. }) => value.clone(),
            Some(FileSource::Environment {
                name: variable,
                value: None,
            }) => {
                let message = format!("the {word} '{name}': the variable {variable} is not set");
                return Err(Failure::new(Class::Usage, message).hint("set it in the environment or in .env"));
            }
            Some(FileSource::External) | None => continue,
        };
        all.insert(name.clone(), content);
    }
    Ok(all)
}

/// Has something done with a project, and shows what is told of it.
async fn act(server: &Server, project: &str, wish: Value) -> Result<u8, Failure> {
    let ask = Ask::new("POST", format!("/v1/projects/{}/actions", part(project))).sending(wish);
    let answer = server.open(&ask).await?;
    let mut end = None;
    watch::lines(answer, |line| {
        let told: Value = serde_json::from_slice(line).unwrap_or_default();
        if let Some(text) = told["text"].as_str() {
            match told["stream"] == "stdout" {
                true => output::print(text)?,
                false => std::io::stderr().lock().write_all(text.as_bytes())?,
            }
        }
        if let Some(why) = told["failed"].as_str() {
            return Err(Failure::new(Class::Failed, why));
        }
        end = told["exit"].as_u64().or(end);
        Ok(())
    })
    .await?;
    let code = end.ok_or_else(|| Failure::new(Class::Fetch, "the stream of the host broke off"))?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

async fn up(server: &Server, project: &Project, args: &Up) -> Result<u8, Failure> {
    if args.build {
        eprintln!("warning: --build changes nothing: images are not built here");
    }
    let mut scale = BTreeMap::new();
    for text in &args.scale {
        let wrong = || Failure::new(Class::Usage, format!("--scale {text}: it is written SERVICE=N"));
        let (service, number) = text.split_once('=').ok_or_else(wrong)?;
        scale.insert(service, number.parse::<u32>().map_err(|_| wrong())?);
    }
    let mut wish = with_document(project, "up")?;
    let flags = [
        ("wait", args.wait),
        ("force_recreate", args.force_recreate),
        ("no_recreate", args.no_recreate),
        ("no_deps", args.no_deps),
        ("no_start", args.no_start),
        ("remove_orphans", args.remove_orphans),
    ];
    flags
        .iter()
        .filter(|(_, is_set)| *is_set)
        .for_each(|(name, _)| wish[*name] = json!(true));
    wish["services"] = json!(args.services.services);
    wish["scale"] = json!(scale);
    for (name, seconds) in [("timeout", args.timeout), ("wait_timeout", args.wait_timeout)] {
        seconds.iter().for_each(|seconds| wish[name] = json!(seconds));
    }
    args.pull.iter().for_each(|pull| wish["pull"] = json!(pull));
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let begun = begun.map_or(0, |time| time.as_secs());
    let code = act(server, &project.name, wish).await?;
    if code != 0 || args.detach || args.wait || args.no_start {
        return Ok(code);
    }
    // In the foreground: what they write, and their end when the user wants that.
    let mut ask = Ask::new("GET", format!("/v1/projects/{}/logs", part(&project.name)))
        .with("follow", "1")
        .with("since", begun.to_string());
    if args.no_log_prefix {
        ask = ask.with("no_prefix", "1");
    }
    let following = shown(server, &ask);
    tokio::select! {
        followed = following => followed.map(|()| 0),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            eprintln!("\nstopping");
            let mut wish = json!({"action": "stop"});
            args.timeout.iter().for_each(|seconds| wish["timeout"] = json!(seconds));
            act(server, &project.name, wish).await?;
            Ok(INTERRUPTED)
        }
    }
}

async fn shown(server: &Server, ask: &Ask<'_>) -> Result<(), Failure> {
    server
        .download(ask, |stream| super::files::pass_on(stream, &mut std::io::stdout()))
        .await
}

async fn with_machines(
    server: &Server,
    project: &str,
    document: Option<Value>,
    command: ComposeCommand,
) -> Result<u8, Failure> {
    let mut wish = json!({});
    let services = match command {
        ComposeCommand::Down {
            volumes,
            remove_orphans,
            timeout,
        } => {
            // What the files define is theirs: networks and volumes of other names too.
            wish = json!({"action": "down", "volumes": volumes, "remove_orphans": remove_orphans});
            document
                .into_iter()
                .for_each(|config| wish["config"] = without_files(config));
            timeout.iter().for_each(|seconds| wish["timeout"] = json!(seconds));
            Vec::new()
        }
        ComposeCommand::Stop(timed) => timely(&mut wish, "stop", timed),
        ComposeCommand::Restart(timed) => timely(&mut wish, "restart", timed),
        ComposeCommand::Kill { signal, services } => {
            wish["action"] = json!("kill");
            signal.iter().for_each(|signal| wish["signal"] = json!(signal));
            services.services
        }
        ComposeCommand::Rm {
            force, stop, services, ..
        } => {
            if !output::confirm("This removes the machines that have stopped.", force)? {
                return Ok(0);
            }
            wish = json!({"action": "rm", "stop": stop});
            services.services
        }
        ComposeCommand::Start(services) => acting(&mut wish, "start", services.services),
        ComposeCommand::Pause(services) => acting(&mut wish, "pause", services.services),
        ComposeCommand::Unpause(services) => acting(&mut wish, "unpause", services.services),
        ComposeCommand::Ps(args) => return ps(server, project, &args).await,
        ComposeCommand::Top(services) => {
            for machine in members(server, project, &services.services).await? {
                if machines::is_active(&machine) {
                    let name = resources::named(&machine);
                    output::line(&name)?;
                    machines::top(server, &name).await?;
                    output::line("")?;
                }
            }
            return Ok(0);
        }
        ComposeCommand::Logs {
            follow,
            timestamps,
            since,
            until,
            tail,
            no_log_prefix,
            services,
        } => {
            let mut ask = Ask::new("GET", format!("/v1/projects/{}/logs", part(project)));
            for (name, is_set) in [
                ("follow", follow),
                ("timestamps", timestamps),
                ("no_prefix", no_log_prefix),
            ] {
                ask.query.extend(is_set.then(|| (name, "1".to_owned())));
            }
            for (name, value) in [("since", since), ("until", until), ("tail", tail)] {
                ask.query.extend(value.map(|value| (name, value)));
            }
            ask.query
                .extend(services.services.into_iter().map(|service| ("service", service)));
            return shown(server, &ask).await.map(|()| 0);
        }
        ComposeCommand::Exec {
            index,
            no_tty,
            mut exec,
        } => {
            let found = members(server, project, std::slice::from_ref(&exec.name)).await?;
            let is_meant = |machine: &&Value| machine["labels"][NUMBER] == index.to_string();
            let machine = found.iter().find(is_meant).ok_or_else(|| {
                let message = format!("the service '{}' has no machine {index}", exec.name);
                Failure::new(Class::NotFound, message).hint("'compose ps -a' lists them; 'compose up' makes them")
            })?;
            exec.name = resources::named(machine);
            if !exec.tty && !exec.interactive && !exec.detach {
                exec.interactive = true;
                exec.tty = !no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
            }
            return run::exec(server, &exec).await;
        }
        ComposeCommand::Up(_) | ComposeCommand::Pull(_) | ComposeCommand::Config(_) | ComposeCommand::Ls(_) => {
            return Ok(0);
        }
    };
    if !services.is_empty() {
        members(server, project, &services).await?;
        wish["services"] = json!(services);
    }
    act(server, project, wish).await
}

fn timely(wish: &mut Value, action: &str, timed: Timed) -> Vec<String> {
    timed
        .timeout
        .iter()
        .for_each(|seconds| wish["timeout"] = json!(seconds));
    acting(wish, action, timed.services.services)
}

fn acting(wish: &mut Value, action: &str, services: Vec<String>) -> Vec<String> {
    wish["action"] = json!(action);
    services
}

/// A document that needs no files: what is removed does not need its secrets and configs.
fn without_files(mut config: Value) -> Value {
    if let Some(members) = config.as_object_mut() {
        members.remove("secrets");
        members.remove("configs");
        for service in members
            .get_mut("services")
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
        {
            if let Some(service) = service.1.as_object_mut() {
                service.remove("secrets");
                service.remove("configs");
            }
        }
    }
    config
}

/// The machines of a project, those of `run` left out; of these services, when some are named.
async fn members(server: &Server, project: &str, services: &[String]) -> Result<Vec<Value>, Failure> {
    let mut found = machines::machines(server, None, &[format!("{PROJECT}={project}")]).await?;
    found.retain(|machine| machine["labels"][ONE_OFF] != "True");
    let service = |machine: &Value| output::text(&machine["labels"][SERVICE]);
    for name in services {
        if !found.iter().any(|machine| service(machine) == *name) {
            let message = format!("the project '{project}' has no machine of a service '{name}' there");
            return Err(
                Failure::new(Class::NotFound, message).hint("'compose ps -a' lists them; 'compose up' makes them")
            );
        }
    }
    found.retain(|machine| services.is_empty() || services.contains(&service(machine)));
    Ok(found)
}

async fn ps(server: &Server, project: &str, args: &ComposePs) -> Result<u8, Failure> {
    let mut found = members(server, project, &args.services.services).await?;
    found.retain(|machine| args.all || machines::is_active(machine));
    resources::print(
        &args.listing,
        &found,
        resources::named,
        &["NAME", "IMAGE", "SERVICE", "STATUS", "PORTS"],
        |machine| {
            vec![
                resources::named(machine),
                output::text(&machine["flist"]),
                output::text(&machine["labels"][SERVICE]),
                machines::state(machine),
                output::text(&machine["ports"]),
            ]
        },
    )?;
    Ok(0)
}

async fn projects(server: &Server, listing: &Listing) -> Result<u8, Failure> {
    let projects = resources::listed(server, "projects").await?;
    resources::print(
        listing,
        &projects,
        resources::named,
        &["NAME", "STATUS", "CONFIG FILES"],
        |project| {
            let states = project["states"].as_object().into_iter().flatten();
            let states: Vec<String> = states.map(|(state, number)| format!("{state}({number})")).collect();
            vec![
                resources::named(project),
                states.join(", "),
                output::text(&project["files"]),
            ]
        },
    )?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(folder: &std::path::Path, text: &str) -> Project {
        std::fs::write(folder.join("compose.yaml"), text).unwrap();
        zmachine_compose::project(&zmachine_compose::Options {
            files: vec![folder.join("compose.yaml")],
            cwd: folder.to_owned(),
            ..zmachine_compose::Options::default()
        })
        .unwrap()
    }

    #[test]
    fn a_document_has_contents_in_place_of_files_and_a_folder_of_this_host_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "hidden").unwrap();
        std::fs::write(folder.path().join("motd"), "hello $HOME").unwrap();
        let whole = project(
            folder.path(),
            "name: p\nservices:\n  web:\n    image: bb\n    secrets: [key]\n    configs: [motd]\n    volumes: ['data:/data']\n\
             secrets:\n  key: {file: ./key}\n  other: {file: ./none}\nconfigs:\n  motd: {file: ./motd}\nvolumes:\n  data: {}\n",
        );
        let wish = with_document(&whole, "up").unwrap();
        assert_eq!(wish["secrets"], json!({"key": "hidden"}));
        assert_eq!(wish["config"]["configs"]["motd"], json!({"content": "hello $HOME"}));
        assert_eq!(wish["config"]["secrets"].as_object().unwrap().len(), 1);
        let bound = project(
            folder.path(),
            "name: p\nservices:\n  web:\n    image: bb\n    volumes: ['./src:/app']\n",
        );
        let refused = with_document(&bound, "up").unwrap_err();
        assert_eq!(refused.class, Class::Unsupported);
        assert!(refused.to_string().contains("/src of this host"), "{refused}");
        assert!(without_files(whole.config)["services"]["web"].get("secrets").is_none());
    }
}
