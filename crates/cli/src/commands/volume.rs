//! `zmachine volume`.

use zmachine_engine::views::VolumeView;
use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{DEFAULT_SIZE, NewVolume};
use zmachine_spec::{Class, Failure, bytes};
use zmachine_store::volume::Volumes;

use crate::args::{Format, VolumeCommand};
use crate::commands::machines::each;
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
            })?;
            output::print(&format!("{}\n", volume.name))?;
            Ok(0)
        }
        VolumeCommand::Ls { quiet, output } => list(quiet, output),
        VolumeCommand::Inspect { names } => {
            let engine = context::quiet_engine()?;
            let rows = names.iter().map(|name| engine.volume(name));
            output::json(&rows.collect::<Result<Vec<_>, Failure>>()?)?;
            Ok(0)
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

fn list(quiet: bool, format: Format) -> Result<u8, Failure> {
    let (rows, failures) = context::quiet_engine()?.volume_list()?;
    let mut code = 0;
    for failure in failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    if quiet {
        rows.iter()
            .try_for_each(|row| output::print(&format!("{}\n", row.name)))?;
    } else if format == Format::Json {
        output::json(&rows)?;
    } else {
        let cells = |row: &VolumeView| {
            vec![
                row.name.clone(),
                row.fs.to_string(),
                row.state.clone(),
                Human(row.size_bytes).to_string(),
                Human(row.used_bytes).to_string(),
                match &row.machines {
                    None => "?".to_owned(),
                    Some(none) if none.is_empty() => "-".to_owned(),
                    Some(machines) => machines.join(", "),
                },
            ]
        };
        output::table(
            &["NAME", "FS", "STATE", "SIZE", "USED", "MACHINES"],
            &rows.iter().map(cells).collect::<Vec<_>>(),
        )?;
    }
    Ok(code)
}
