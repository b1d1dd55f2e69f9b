//! `zmachine volume`.

use serde::Serialize;
use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{Content, DEFAULT_SIZE, Fs, NewVolume};
use zmachine_spec::{Class, Failure, bytes};
use zmachine_store::volume::{Volume, Volumes};

use crate::args::{Format, VolumeCommand};
use crate::commands::machines::each;
use crate::{context, output};

#[derive(Serialize)]
struct Row {
    name: String,
    state: String,
    fs: Fs,
    size_bytes: u64,
    used_bytes: u64,
    image: Option<String>,
    created_at: String,
    /// `None` when a machine cannot be read, which might be one of them.
    machines: Option<Vec<String>>,
    anonymous: bool,
    path: String,
}

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
        VolumeCommand::Ls { quiet, output } => list(&volumes, quiet, output),
        VolumeCommand::Inspect { names } => {
            let rows = names.iter().map(|name| {
                let users = volumes.users(name)?;
                Ok(row(&volumes.get(name)?, Some(users)))
            });
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

fn list(volumes: &Volumes, quiet: bool, format: Format) -> Result<u8, Failure> {
    let mut rows = Vec::new();
    let mut code = 0;
    for volume in volumes.list()? {
        let failure = match volume {
            Ok(volume) => {
                let users = volumes.users(&volume.name);
                let failure = users.as_ref().err().cloned();
                rows.push(row(&volume, users.ok()));
                // The same machine for every volume: told once.
                failure.filter(|_| code == 0)
            }
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            crate::failure::print(&failure);
            code = crate::failure::exit_code(failure.class, false);
        }
    }
    if quiet {
        rows.iter()
            .try_for_each(|row| output::print(&format!("{}\n", row.name)))?;
    } else if format == Format::Json {
        output::json(&rows)?;
    } else {
        let cells = |row: &Row| {
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

fn row(volume: &Volume, machines: Option<Vec<String>>) -> Row {
    let image = match &volume.record.content {
        Content::Installing { digest } | Content::Installed { digest } => Some(digest.clone()),
        Content::Empty | Content::Formatting | Content::Formatted | Content::Raw => None,
    };
    Row {
        name: volume.name.clone(),
        state: volume.record.content.to_string(),
        fs: volume.record.fs,
        size_bytes: volume.size_bytes,
        used_bytes: volume.used_bytes,
        image,
        created_at: volume.record.created_at.to_string(),
        machines,
        anonymous: volume.record.anonymous_of.is_some(),
        path: volume.data().display().to_string(),
    }
}
