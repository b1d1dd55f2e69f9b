//! `zmachine volume`.

use zmachine_engine::views::VolumeView;
use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{DEFAULT_SIZE, NewVolume};
use zmachine_spec::{Class, Failure, bytes};
use zmachine_store::volume::Volumes;

use crate::args::VolumeCommand;
use crate::commands::machines::each;
use crate::listing::{self, ListingArgs, Row};
use crate::{context, output};

/// Makes, lists, shows, grows and removes volumes.
pub(crate) fn volume(command: VolumeCommand) -> Result<u8, Failure> {
    let volumes = Volumes::new(&context::home()?);
    match command {
        VolumeCommand::Create { name, size, fs } => {
            let volume = volumes.create(&NewVolume {
                name,
                size_bytes: size.as_deref().map_or(Ok(DEFAULT_SIZE), parse_size)?,
                fs,
                anonymous_of: None,
                labels: Default::default(),
            })?;
            output::print(&format!("{}\n", volume.name))?;
            Ok(0)
        }
        VolumeCommand::Ls(args) => list(&args),
        VolumeCommand::Inspect { names, format } => {
            let engine = context::quiet_engine()?;
            let views = names
                .iter()
                .map(|name| engine.volume(name))
                .collect::<Result<Vec<_>, Failure>>()?;
            match format {
                Some(format) => listing::by_template(&format, &views)?,
                None => output::json(&views)?,
            }
            Ok(0)
        }
        VolumeCommand::Prune { all, force } => {
            let which = if all {
                "all volumes"
            } else {
                "all volumes without a name"
            };
            let question = format!("This removes {which} that no machine uses, with their data.");
            if !output::confirm(&question, force)? {
                return Ok(0);
            }
            prune(all)
        }
        VolumeCommand::Grow { name, size } => {
            let grown = context::engine()?.grow_volume(&name, parse_size(&size)?)?;
            output::print(&format!("{name} {}\n", Human(grown.size_bytes)))?;
            Ok(0)
        }
        VolumeCommand::Rm { names } => each(&names, |name| volumes.remove(name)),
    }
}

fn parse_size(text: &str) -> Result<u64, Failure> {
    bytes::parse(text).map_err(|e| Failure::from_error(Class::Usage, &e).hint(e.hint()))
}

/// Removes the volumes that nobody uses.
pub(super) fn prune(all: bool) -> Result<u8, Failure> {
    let pruned = context::engine()?.prune_volumes(all)?;
    for name in &pruned.removed {
        output::print(&format!("{name}\n"))?;
    }
    output::print(&format!("Total reclaimed space: {}\n", Human(pruned.bytes)))?;
    let mut code = 0;
    for failure in pruned.failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    Ok(code)
}

fn list(args: &ListingArgs) -> Result<u8, Failure> {
    let filters = args.filters(&["dangling", "name"])?;
    let (mut views, failures) = context::quiet_engine()?.volume_list()?;
    let mut code = 0;
    for failure in failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    views.retain(|view| {
        let is_used = view.machines.as_ref().is_none_or(|machines| !machines.is_empty());
        filters.allow("name", |name| view.name.contains(name))
            && filters.allow("dangling", |dangling| {
                (dangling == "true" || dangling == "1") != is_used
            })
    });
    let row = |view: &VolumeView| {
        let cells = vec![
            view.name.clone(),
            view.fs.to_string(),
            view.state.clone(),
            Human(view.size_bytes).to_string(),
            Human(view.used_bytes).to_string(),
            match &view.machines {
                None => "?".to_owned(),
                Some(none) if none.is_empty() => "-".to_owned(),
                Some(machines) => machines.join(", "),
            },
        ];
        let mut fields = serde_json::to_value(view).unwrap_or_default();
        if let serde_json::Value::Object(fields) = &mut fields {
            fields.insert("Driver".to_owned(), "local".into());
            fields.insert("Mountpoint".to_owned(), view.path.as_str().into());
            fields.insert("Size".to_owned(), Human(view.size_bytes).to_string().into());
        }
        Row {
            name: view.name.clone(),
            cells,
            fields,
        }
    };
    let rows: Vec<Row> = views.iter().map(row).collect();
    args.show(&["NAME", "FS", "STATE", "SIZE", "USED", "MACHINES"], &rows, &views)?;
    Ok(code)
}
