//! `compose`: files of this host, machines of another one.
//!
//! The files are read here, and go there as one [`document`]. What is done with it, that host's own command line does; what is only looked at
//! or entered is done from here, by the labels of machines.

mod document;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use serde_json::{Value, json};
use zmachine_compose::Project;
use zmachine_spec::{Class, Failure};

use self::document::{failure, load, load_all, with_document, without_files};
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
            let number = index.to_string();
            let is_meant = |machine: &&Value| machine["labels"][NUMBER] == number.as_str();
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
