//! `version` and `info`: what this program is, and what it has to work with.

use serde::Serialize;
use zmachine_engine::Engine;
use zmachine_hypervisor::Accel;
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};
use zmachine_hypervisor::choice;
use zmachine_kernel::KernelLibrary;
use zmachine_spec::Failure;

use crate::args::{Format, InfoArgs};
use crate::output;

/// Prints the version.
pub(crate) fn version() -> Result<u8, Failure> {
    output::print(&format!("zmachine {}\n", env!("CARGO_PKG_VERSION")))?;
    Ok(0)
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    home: String,
    run: String,
    machines: usize,
    running: usize,
    volumes: usize,
    kernel: Option<String>,
    /// What machines run on by default, and why; or why none does.
    hypervisor: String,
    host_cpus: usize,
}

/// Shows where the state is, what machines run on, and how many there are.
pub(crate) fn info(engine: &Engine, args: &InfoArgs) -> Result<u8, Failure> {
    let machines = engine.machines()?;
    let is_running =
        |machine: &&zmachine_engine::Listed| machine.as_ref().is_ok_and(|machine| machine.state.phase.is_active());
    let kernel = KernelLibrary::open(engine.home().data()).and_then(|library| library.default());
    let hypervisor = accel::choose(Requested::Auto, &AccelFacts::gather())
        .map_err(|e| e.to_string())
        .and_then(|accel| {
            let chosen = choice::choose(choice::Requested::Auto, &accel, &choice::Found::gather(), None);
            let with = match accel.accel {
                Accel::Kvm => "KVM",
                Accel::Tcg => "emulation (TCG)",
            };
            chosen
                .map(|chosen| format!("{} with {with} ({})", chosen.driver.name(), accel.why))
                .map_err(|e| e.to_string())
        });
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        home: engine.home().data().display().to_string(),
        run: engine.home().run().display().to_string(),
        running: machines.iter().filter(is_running).count(),
        machines: machines.len(),
        volumes: engine.volumes().list()?.len(),
        kernel: kernel.ok().map(|kernel| kernel.name().to_owned()),
        hypervisor: hypervisor.unwrap_or_else(|why| format!("none: {why}")),
        host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
    };
    if args.output == Format::Json {
        output::json(&info)?;
        return Ok(0);
    }
    let kernel = info
        .kernel
        .as_deref()
        .unwrap_or("none ('zmachine kernel install' installs one)");
    output::print(&format!(
        "version     {}\nstate       {}\nruntime     {}\nmachines    {}, {} running\nvolumes     {}\nkernel      {kernel}\nhypervisor  {}\nhost CPUs   {}\n",
        info.version, info.home, info.run, info.machines, info.running, info.volumes, info.hypervisor, info.host_cpus,
    ))?;
    Ok(0)
}
