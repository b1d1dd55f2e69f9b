//! `system`: what everything takes on this host, and freeing it.

use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_image::Library;
use zmachine_spec::Failure;
use zmachine_spec::bytes::Human;

use crate::args::{Format, SystemCommand};
use crate::commands::{image, list, machines, network, volume};
use crate::output;

/// Things of one kind.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    #[serde(rename = "Type")]
    kind: &'static str,
    total_count: usize,
    active: usize,
    /// Bytes on this host.
    size: u64,
    /// Bytes that go when what is not active goes.
    reclaimable: u64,
}

/// Shows or frees space.
pub(crate) fn system(engine: &Engine, command: SystemCommand) -> Result<u8, Failure> {
    match command {
        SystemCommand::Df { output } => df(engine, output),
        SystemCommand::Prune { volumes, force } => {
            let mut what = "This removes:\n  - all machines that do not run, with their disks\n  - all networks that no machine is in\n  \
                            - all images and blocks without a name that no machine needs"
                .to_owned();
            if volumes {
                what.push_str("\n  - all volumes without a name that no machine uses, with their data");
            }
            if !output::confirm(&what, force)? {
                return Ok(0);
            }
            let mut codes = vec![machines::prune(engine)?, network::prune(engine)?];
            if volumes {
                codes.push(volume::prune(false)?);
            }
            codes.push(image::prune(Format::Table)?);
            Ok(codes.into_iter().find(|code| *code != 0).unwrap_or(0))
        }
    }
}

fn df(engine: &Engine, format: Format) -> Result<u8, Failure> {
    let (all, mut code) = list::readable(engine)?;
    let mut machines = Usage {
        kind: "Machines",
        ..Usage::default()
    };
    for machine in &all {
        let bytes = list::disk_bytes(machine);
        machines.total_count += 1;
        machines.size += bytes;
        match machine.state.phase.is_active() {
            true => machines.active += 1,
            false => machines.reclaimable += bytes,
        }
    }
    let library = Library::open(engine.home().data())?;
    let (listed, _) = library.list_readable()?;
    let used: Vec<String> = all
        .iter()
        .filter_map(|machine| machine.plan().ok()?.image().map(str::to_owned))
        .collect();
    let is_used = |digest: &str| used.iter().any(|used| used == digest);
    let images = Usage {
        kind: "Images",
        total_count: listed.len(),
        active: listed.iter().filter(|image| is_used(&image.digest.to_string())).count(),
        size: listed.iter().map(|image| image.flist_bytes).sum(),
        reclaimable: listed
            .iter()
            .filter(|image| image.names.is_empty() && !is_used(&image.digest.to_string()))
            .map(|image| image.flist_bytes)
            .sum(),
    };
    let cache = library.cache_usage()?;
    let blocks = Usage {
        kind: "Blocks of images",
        total_count: cache.blocks as usize,
        active: 0,
        size: cache.bytes,
        reclaimable: 0,
    };
    let found = engine.template_uses()?;
    let templates = Usage {
        kind: "Templates",
        total_count: found.values().map(|found| found.count).sum(),
        active: 0,
        size: found.values().map(|found| found.bytes).sum(),
        reclaimable: 0,
    };
    let (views, failures) = engine.volume_list()?;
    for failure in failures {
        crate::failure::print(&failure);
        code = crate::failure::exit_code(failure.class, false);
    }
    let mut volumes = Usage {
        kind: "Volumes",
        ..Usage::default()
    };
    for view in &views {
        volumes.total_count += 1;
        volumes.size += view.used_bytes;
        match view.machines.as_ref().is_some_and(Vec::is_empty) {
            true => volumes.reclaimable += view.used_bytes,
            false => volumes.active += 1,
        }
    }
    let all = [images, blocks, templates, machines, volumes];
    if format == Format::Json {
        output::json(&all)?;
        return Ok(code);
    }
    let rows = all.iter().map(|usage| {
        vec![
            usage.kind.to_owned(),
            usage.total_count.to_string(),
            usage.active.to_string(),
            Human(usage.size).to_string(),
            Human(usage.reclaimable).to_string(),
        ]
    });
    output::table(
        &["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        &rows.collect::<Vec<_>>(),
    )?;
    Ok(code)
}
