//! `zmachine snapshot`, `restore` and `fork`.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal as _};

use serde_json::json;
use zmachine_engine::views::SnapshotView;
use zmachine_engine::{Engine, Saves};
use zmachine_spec::bytes::Human;
use zmachine_spec::{Class, Failure};
use zmachine_store::snapshot::SnapshotName;
use zmachine_sys::file::FileError;

use super::machines::each;
use crate::args::run::variables;
use crate::args::{ForkArgs, SnapshotCommand};
use crate::listing::{self, ListingArgs, Row};
use crate::output;
use crate::progress::Bars;

/// Makes, lists, shows and removes snapshots.
pub(crate) fn snapshot(engine: &Engine, command: SnapshotCommand) -> Result<u8, Failure> {
    match command {
        SnapshotCommand::Create { name, disk_only, keep } => {
            let what = if disk_only { Saves::Disks } else { Saves::Machine };
            let made = engine.create_snapshot(&SnapshotName::parse(&name)?, what, keep.as_ref())?;
            output::print(&format!("{}\n", made.name()))?;
            Ok(0)
        }
        SnapshotCommand::Ls(args) => list(engine, &args),
        SnapshotCommand::Inspect { format, names } => {
            let view = |name: &String| engine.snapshot_view(&SnapshotName::parse(name)?);
            let views = names.iter().map(view).collect::<Result<Vec<_>, Failure>>()?;
            match format {
                Some(format) => listing::by_template(&format, &views)?,
                None => output::json(&views)?,
            }
            Ok(0)
        }
        SnapshotCommand::Export { name, output } => {
            let name = SnapshotName::parse(&name)?;
            match output {
                None if std::io::stdout().is_terminal() => {
                    Err(Failure::new(Class::Usage, "an archive is not shown on a terminal")
                        .hint("write it to a file with -o, or into a pipe"))
                }
                None => engine.export_snapshot(&name, BufWriter::new(std::io::stdout().lock())),
                Some(path) => {
                    let file = File::create_new(&path).map_err(|e| FileError::io("make", &path, e))?;
                    let exported = engine.export_snapshot(&name, BufWriter::new(&file));
                    exported.inspect_err(|_| drop(std::fs::remove_file(&path)))
                }
            }?;
            Ok(0)
        }
        SnapshotCommand::Import { file, name } => {
            let name = name.as_deref().map(SnapshotName::parse).transpose()?;
            let made = match file {
                None => engine.import_snapshot(std::io::stdin().lock(), name.as_ref()),
                Some(path) => {
                    let file = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
                    engine.import_snapshot(BufReader::new(file), name.as_ref())
                }
            }?;
            output::print(&format!("{}\n", made.name()))?;
            Ok(0)
        }
        SnapshotCommand::Rm { names } => each(&names, |name| engine.remove_snapshot(&SnapshotName::parse(name)?)),
    }
}

fn list(engine: &Engine, args: &ListingArgs) -> Result<u8, Failure> {
    let filters = args.filters(&["machine", "name"])?;
    let (mut views, failures) = engine.snapshot_list()?;
    let mut code = 0;
    for failure in failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    views.retain(|view| {
        filters.allow("name", |name| view.name.contains(name))
            && filters.allow("machine", |machine| view.machine == machine)
    });
    let now = jiff::Timestamp::now();
    let row = |view: &SnapshotView| Row {
        name: view.name.clone(),
        cells: vec![
            view.name.clone(),
            output::human_age(view.created_at, now),
            view.kind.to_owned(),
            match view.memory_bytes {
                0 => "-".to_owned(),
                bytes => Human(bytes).to_string(),
            },
            view.volumes.len().to_string(),
            Human(view.used_bytes).to_string(),
            view.image.chars().take(12).collect(),
        ],
        fields: json!(view),
    };
    let rows: Vec<Row> = views.iter().map(row).collect();
    args.show(
        &["NAME", "CREATED", "KIND", "MEMORY", "VOLUMES", "USED", "IMAGE"],
        &rows,
        &views,
    )?;
    Ok(code)
}

/// Lets a machine go on from a snapshot of it.
pub(crate) fn restore(engine: &Engine, name: &str) -> Result<u8, Failure> {
    engine
        .restore(&SnapshotName::parse(name)?)?
        .wait_ready(&Bars::bytes())?;
    Ok(0)
}

/// Makes machines that go on from where another one is, and prints their names.
pub(crate) fn fork(engine: &Engine, args: &ForkArgs) -> Result<u8, Failure> {
    let env = variables(&[], &args.env, |name| std::env::var(name).ok())?;
    let source = engine.fork_source(&SnapshotName::parse(&args.source)?)?;
    let progress = Bars::bytes();
    let (mut started, mut first) = (Vec::new(), None);
    for number in 1..=args.number {
        let name = match &args.name {
            Some(name) if args.number == 1 => Ok(name.clone()),
            Some(prefix) => Ok(format!("{prefix}-{number}")),
            None => engine.free_fork_name(source.machine()),
        };
        match name.and_then(|name| engine.fork(&source, &name, &env, &progress)) {
            Ok(one) => started.push(one),
            Err(failure) => {
                first = Some(failure);
                break;
            }
        }
    }
    // Those that are there run on, whatever became of others.
    let mut ready = Vec::new();
    for (machine, mut starting) in started {
        let name = &machine.spec.name;
        match starting.wait_ready(&progress) {
            Ok(()) => ready.push(name.clone()),
            Err(failure) => {
                starting.wait_gone();
                super::run::remove_if_it_never_ran(engine, name);
                first.get_or_insert(failure);
            }
        }
    }
    drop(progress);
    match (ready.as_slice(), first) {
        // The command's output is all there is, as with exec.
        ([one], None) if args.number == 1 && !args.command.is_empty() => super::exec::plain(engine, one, &args.command),
        (names, first) => {
            for name in names {
                if !args.command.is_empty() {
                    super::exec::in_background(engine, name, &args.command)?;
                }
                output::print(&format!("{name}\n"))?;
            }
            first.map_or(Ok(0), Err)
        }
    }
}
