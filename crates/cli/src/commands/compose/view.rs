//! `compose config`, `ps` and `ls`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};
use zmachine_compose::Project;
use zmachine_engine::Engine;
use zmachine_engine::views::MachineSummary;
use zmachine_project::{CONFIG_FILES, PROJECT};
use zmachine_spec::Failure;

use super::Scope;
use crate::args::PsArgs;
use crate::args::compose::{ComposeLsArgs, ComposePsArgs, ConfigArgs, ConfigFormat};
use crate::commands::list;
use crate::listing::{ListingArgs, Row};
use crate::output;

/// Shows what the files say together.
pub(super) fn config(project: &Project, args: &ConfigArgs) -> Result<u8, Failure> {
    let is_meant = |name: &String| args.names.is_empty() || args.names.contains(name);
    let services = project.services.values().filter(|service| is_meant(&service.name));
    let lines: Vec<String> = match args {
        _ if args.quiet => return Ok(0),
        _ if args.services => services.map(|service| service.name.clone()).collect(),
        _ if args.volumes => project.volumes.keys().cloned().collect(),
        _ if args.networks => project.networks.keys().cloned().collect(),
        _ if args.images => services.filter_map(|service| service.image.clone()).collect(),
        _ if args.profiles => {
            let all = project.services.values().chain(project.disabled.values());
            let profiles: BTreeSet<&String> = all.flat_map(|service| &service.profiles).collect();
            profiles.into_iter().cloned().collect()
        }
        _ => {
            let mut config = project.config.clone();
            if let Some(services) = config.get_mut("services").and_then(Value::as_object_mut) {
                services.retain(|name, _| is_meant(name));
            }
            match args.format {
                ConfigFormat::Yaml => output::print(&zmachine_compose::yaml(&config))?,
                ConfigFormat::Json => output::json(&config)?,
            }
            return Ok(0);
        }
    };
    lines.iter().try_for_each(|line| output::print(&format!("{line}\n")))?;
    Ok(0)
}

/// Lists the machines of a project.
pub(super) fn ps(scope: &Scope, args: ComposePsArgs) -> Result<u8, Failure> {
    let filters = args.listing.filters(&["status", "name"])?;
    let all = args.all || args.listing.filter.iter().any(|filter| filter.starts_with("status="));
    let machines = scope.of(&args.names)?;
    let mut chosen: Vec<(String, MachineSummary)> = Vec::new();
    for owned in machines.into_iter().filter(|owned| all || owned.is_active()) {
        let summary = MachineSummary::new(&owned.machine);
        let is_wanted = filters.allow("status", |status| summary.has_status(status))
            && filters.allow("name", |name| summary.name.contains(name));
        if is_wanted {
            chosen.push((owned.service.clone(), summary));
        }
    }
    if args.services {
        let services: BTreeSet<&String> = chosen.iter().map(|(service, _)| service).collect();
        services
            .into_iter()
            .try_for_each(|service| output::print(&format!("{service}\n")))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let ps = PsArgs {
        all: true,
        latest: false,
        last: None,
        size: false,
        pods: false,
        listing: args.listing,
    };
    let rows: Vec<Row> = chosen
        .iter()
        .map(|(service, summary)| {
            let mut row = list::row(summary, None, &ps, now);
            // Kind and address make way for the service.
            let mut cells = row.cells.into_iter();
            let (name, _kind) = (cells.next().unwrap_or_default(), cells.next());
            let (image, command) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
            let (status, _address) = (cells.next().unwrap_or_default(), cells.next());
            row.cells = vec![
                name,
                image,
                command,
                service.clone(),
                status,
                cells.next().unwrap_or_default(),
            ];
            if let Value::Object(fields) = &mut row.fields {
                fields.insert("Service".to_owned(), service.as_str().into());
                fields.insert("Project".to_owned(), scope.name.as_str().into());
                fields.insert("Name".to_owned(), summary.name.as_str().into());
                fields.insert("State".to_owned(), summary.state.into());
                fields.insert("ExitCode".to_owned(), summary.exit_code.unwrap_or_default().into());
            }
            row
        })
        .collect();
    let json: Vec<Value> = rows.iter().map(|row| row.fields.clone()).collect();
    ps.listing.show(
        &["NAME", "IMAGE", "COMMAND", "SERVICE", "STATUS", "PORTS"],
        &rows,
        &json,
    )?;
    Ok(0)
}

/// Lists projects.
pub(super) fn ls(engine: &Engine, args: &ComposeLsArgs) -> Result<u8, Failure> {
    let filters = args.listing.filters(&["name"])?;
    let (machines, code) = list::readable(engine)?;
    let mut projects: BTreeMap<&str, Listed<'_>> = BTreeMap::new();
    for machine in &machines {
        let label = |key: &str| machine.spec.labels.get(key).map(String::as_str);
        let Some(name) = label(PROJECT) else { continue };
        let project = projects.entry(name).or_default();
        *project.states.entry(machine.state.phase.word()).or_default() += 1;
        project.is_active |= machine.state.phase.is_active();
        project.files = label(CONFIG_FILES).unwrap_or_default();
    }
    projects
        .retain(|name, project| (args.all || project.is_active) && filters.allow("name", |part| name.contains(part)));
    let rows: Vec<Row> = projects
        .iter()
        .map(|(name, project)| {
            let states: Vec<String> = project.states.iter().map(|(word, n)| format!("{word}({n})")).collect();
            let states = states.join(", ");
            Row {
                name: (*name).to_owned(),
                cells: vec![(*name).to_owned(), states.clone(), project.files.to_owned()],
                fields: json!({"Name": name, "Status": states, "ConfigFiles": project.files}),
            }
        })
        .collect();
    let json: Vec<&Value> = rows.iter().map(|row| &row.fields).collect();
    show(&args.listing, &rows, &json)?;
    Ok(code)
}

fn show(listing: &ListingArgs, rows: &[Row], json: &[&Value]) -> Result<(), Failure> {
    listing.show(&["NAME", "STATUS", "CONFIG FILES"], rows, json)
}

/// A project of the list.
#[derive(Default)]
struct Listed<'a> {
    states: BTreeMap<&'static str, usize>,
    is_active: bool,
    files: &'a str,
}
