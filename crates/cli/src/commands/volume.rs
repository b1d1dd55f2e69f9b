//! `zmachine volume`.

use std::path::Path;

use zmachine_engine::VolumeSnapshotView;
use zmachine_engine::views::VolumeView;
use zmachine_spec::bytes::Human;
use zmachine_spec::volume::{DEFAULT_SIZE, NewVolume};
use zmachine_spec::{Class, Failure, bytes};
use zmachine_store::volume::{VolumeName, Volumes};

use crate::args::flist::WriteArgs;
use crate::args::{VolumeCommand, VolumeSnapshotCommand};
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
        VolumeCommand::Snapshot(command) => snapshot(command),
        VolumeCommand::Restore { name, from, store } => restore(&name, from.as_deref(), store),
        VolumeCommand::Clone { source, new } => {
            let made = context::engine()?.clone_volume(&VolumeName::parse(&source)?, &new)?;
            output::print(&format!("{}\n", made.name))?;
            Ok(0)
        }
        VolumeCommand::Backup { name, output, to } => backup(&VolumeName::parse(&name)?, &output, &to),
        VolumeCommand::Rm { names } => each(&names, |name| volumes.remove(name)),
    }
}

fn snapshot(command: VolumeSnapshotCommand) -> Result<u8, Failure> {
    let engine = context::engine()?;
    match command {
        VolumeSnapshotCommand::Create { name, keep } => {
            let made = engine.snapshot_volume(&VolumeName::parse(&name)?, keep.as_ref())?;
            output::print(&format!("{}\n", made.name()))?;
            Ok(0)
        }
        VolumeSnapshotCommand::Ls { volume, listing } => list_snapshots(volume.as_deref(), &listing),
        VolumeSnapshotCommand::Rm { names } => each(&names, |name| {
            let name = VolumeName::parse(name)?;
            engine.volumes().remove_snapshot(&name.volume, name.require_tag()?)
        }),
    }
}

fn list_snapshots(of: Option<&str>, args: &ListingArgs) -> Result<u8, Failure> {
    let filters = args.filters(&["name", "volume"])?;
    let (mut views, failures) = context::quiet_engine()?.volume_snapshots(of)?;
    let mut code = 0;
    for failure in failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    views.retain(|view| {
        filters.allow("name", |name| view.name.contains(name))
            && filters.allow("volume", |volume| view.volume == volume)
    });
    let now = jiff::Timestamp::now();
    let row = |view: &VolumeSnapshotView| Row {
        name: view.name.clone(),
        cells: vec![
            view.name.clone(),
            output::human_age(view.created_at, now),
            view.state.clone(),
            Human(view.size_bytes).to_string(),
            Human(view.used_bytes).to_string(),
        ],
        fields: serde_json::to_value(view).unwrap_or_default(),
    };
    let rows: Vec<Row> = views.iter().map(row).collect();
    args.show(&["NAME", "CREATED", "STATE", "SIZE", "USED"], &rows, &views)?;
    Ok(code)
}

fn restore(name: &str, from: Option<&Path>, store: Vec<String>) -> Result<u8, Failure> {
    let engine = context::engine()?;
    let (name, volumes) = (VolumeName::parse(name)?, engine.volumes());
    let restored = match (from, &name.tag) {
        (None, _) => {
            name.require_tag()?;
            volumes.restore_snapshot(&volumes.find_snapshot(&name)?)?
        }
        (Some(_), Some(_)) => {
            let message = "a backup becomes a volume, not a snapshot";
            return Err(Failure::new(Class::Usage, message).hint("give the name of the new volume, without a tag"));
        }
        (Some(file), None) => {
            // Before its blocks are fetched.
            if volumes.find(&name.volume)?.is_some() {
                let message = format!("there is a volume '{}' already", name.volume);
                return Err(Failure::new(Class::Conflict, message).hint("restore the backup under another name"));
            }
            let arrival = volumes.arrival()?;
            super::flist::unpack_backup(file, &arrival.files(), &store)?;
            volumes.create_arrived(&name.volume, &arrival)?
        }
    };
    output::print(&format!("{}\n", restored.name))?;
    Ok(0)
}

/// Packs a snapshot: the one that is named, or one that is made for this.
fn backup(name: &VolumeName, file: &Path, to: &WriteArgs) -> Result<u8, Failure> {
    let engine = context::engine()?;
    let volumes = engine.volumes();
    let snapshot = match &name.tag {
        Some(_) => volumes.find_snapshot(name)?,
        None => engine.snapshot_volume(name, None)?,
    };
    let packed = super::flist::pack_backup(&volumes.snapshot_folder(&snapshot), file, to);
    if name.tag.is_none() {
        volumes.remove_snapshot(&snapshot.volume, &snapshot.tag)?;
    }
    packed
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
