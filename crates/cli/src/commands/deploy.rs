//! `deploy`: Zero-OS reservations.

use std::io::Read;
use std::path::Path;
use std::{env, fs, io};

use zmachine_engine::{CreateOptions, Engine};
use zmachine_image::PullPolicy;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog;
use zmachine_store::volume::Volumes;
use zmachine_zos::{Deployed, Reservation, explain};

use super::run::remove_if_it_never_ran;
use crate::args::DeployArgs;
use crate::failure::respelled;
use crate::progress::Bars;
use crate::{context, output};

/// Where the kernel shows devices that can be isolated; empty or absent without an IOMMU.
const IOMMU_GROUPS: &str = "/sys/kernel/iommu_groups";

/// Explains a reservation, or creates and starts its machine.
pub(crate) fn deploy(args: &DeployArgs) -> Result<u8, Failure> {
    let reservation = Reservation::parse(&read(&args.file)?)?;
    let offered = reservation.check_offered(has_vfio());
    if args.explain {
        let lines = explain::explain(&reservation);
        let cells = |line: explain::Explained| vec![line.field.to_owned(), line.value, line.effect];
        output::table(
            &["FIELD", "VALUE", "EFFECT"],
            &lines.into_iter().map(cells).collect::<Vec<_>>(),
        )?;
        return offered.map(|()| 0);
    }
    offered?;
    let engine = context::engine()?;
    let deployed = deployed(&engine, &reservation, args.name.as_deref());
    output::json(&deployed.map_err(|failure| respelled(failure, zmachine_zos::field))?)?;
    Ok(0)
}

fn deployed(engine: &Engine, reservation: &Reservation, name: Option<&str>) -> Result<Deployed, Failure> {
    check_volumes(engine, reservation)?;
    let name = name.map_or_else(|| catalog::free_name(engine.home()), str::to_owned);
    let bars = Bars::bytes();
    let options = CreateOptions {
        cwd: &env::current_dir()?,
        pull: PullPolicy::Missing,
        installs_kernel: true,
        progress: &bars,
    };
    engine.create(&reservation.spec(&name), &options)?;
    let started = engine
        .start(&name, false)
        .and_then(|mut starting| starting.wait_ready(&crate::progress::Bars::bytes()));
    started.inspect_err(|_| remove_if_it_never_ran(engine, &name))?;
    Ok(Deployed::new(&engine.machine(&name)?))
}

/// Volumes are workloads of their own in a reservation, so none is made by the way, as `run -v` does.
fn check_volumes(engine: &Engine, reservation: &Reservation) -> Result<(), Failure> {
    let volumes = Volumes::new(engine.home());
    for (index, mount) in reservation.mounts.iter().enumerate() {
        volumes
            .get(&mount.name)
            .map_err(|e| e.context(format!("mounts[{index}]: volume '{}' cannot be used", mount.name)))?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<String, Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(file).map_err(|e| {
        let class = match e.kind() {
            io::ErrorKind::NotFound => Class::NotFound,
            _ => Class::Failed,
        };
        Failure::from_error(class, &e).context(format!("cannot read {}", file.display()))
    })
}

fn has_vfio() -> bool {
    fs::read_dir(IOMMU_GROUPS).is_ok_and(|mut groups| groups.next().is_some())
}
