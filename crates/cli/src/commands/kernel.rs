//! `zmachine kernel`.

use serde::Serialize;
use zmachine_engine::Programs;
use zmachine_kernel::{BuildSource, DEFAULT_FRAGMENT, KernelLibrary, KernelSource, Progress};
use zmachine_plan::Plan;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog::Machine;

use crate::args::{Format, KernelCommand};
use crate::commands::machines::each;
use crate::{context, output};

#[derive(Serialize)]
struct Row {
    name: String,
    release: String,
    source: String,
    default: bool,
}

/// Lists, installs, builds and removes guest kernels.
pub(crate) fn kernel(command: KernelCommand) -> Result<u8, Failure> {
    let library = KernelLibrary::open(context::home()?.data())?;
    match command {
        KernelCommand::Ls { quiet, output } => list(&library, quiet, output),
        KernelCommand::Install {
            name,
            deb,
            vmlinux,
            modules,
        } => {
            let source = match (deb, vmlinux) {
                (Some(deb), _) => KernelSource::Deb(deb),
                (None, Some(kernel)) => KernelSource::Files { kernel, modules },
                (None, None) => Programs::own().kernel_source(),
            };
            let kernel = library.install(&source, name.as_deref(), &mut tell)?;
            // Made here, so that the first machine need not wait for it; a missing agent is what `doctor` reports.
            let agent = Programs::own().agent().to_owned();
            if agent.is_file() {
                library.initramfs(&kernel, &agent, &[])?;
            }
            output::print(&format!("{}\n", kernel.name()))?;
            Ok(0)
        }
        KernelCommand::Build { name } => {
            let name = name.unwrap_or_else(|| "own".to_owned());
            let work = library.dir().join(".build");
            let kernel = library.build(&BuildSource::Debian, DEFAULT_FRAGMENT, &name, &work, &mut tell)?;
            output::print(&format!("{}\n", kernel.name()))?;
            Ok(0)
        }
        KernelCommand::Rm { force, names } => each(&names, |name| {
            if !force {
                require_unused(name)?;
            }
            Ok(library.remove(name)?)
        }),
        KernelCommand::Default { name } => {
            library.set_default(&name)?;
            Ok(0)
        }
    }
}

/// That no machine would be without its kernel.
fn require_unused(kernel: &str) -> Result<(), Failure> {
    let uses = |machine: &Machine| matches!(machine.plan(), Ok(Plan::Container(plan)) if plan.kernel.name == kernel);
    let machines = context::engine()?.machines()?;
    let user = machines.into_iter().flatten().find(uses);
    match user.map(|machine| machine.spec.name) {
        None => Ok(()),
        Some(name) => {
            let message = format!("the machine '{name}' starts with the kernel '{kernel}'");
            Err(Failure::new(Class::Conflict, message).hint(
                "remove the machine first, or use --force: it cannot start until a kernel of that name is there again",
            ))
        }
    }
}

fn tell(progress: Progress) {
    match progress {
        Progress::Downloading { package } => eprintln!("downloading {package}"),
        Progress::Reading { path } => eprintln!("reading {}", path.display()),
        Progress::Treating { release } => eprintln!("preparing kernel {release}"),
        Progress::Unpacking { path } => eprintln!("unpacking {}", path.display()),
        Progress::Configuring => eprintln!("configuring"),
        Progress::Compiling { jobs } => eprintln!("compiling with {jobs} jobs; this takes 10 to 60 minutes"),
        _ => {}
    }
}

fn list(library: &KernelLibrary, quiet: bool, format: Format) -> Result<u8, Failure> {
    let default = library.default().ok().map(|kernel| kernel.name().to_owned());
    let mut rows = Vec::new();
    for kernel in library.list()? {
        match kernel {
            Ok(kernel) => rows.push(Row {
                name: kernel.name().to_owned(),
                release: kernel.description.release.clone(),
                source: kernel.description.source.clone(),
                default: default.as_deref() == Some(kernel.name()),
            }),
            Err(error) => crate::failure::print(&Failure::from(error)),
        }
    }
    if quiet {
        rows.iter()
            .try_for_each(|row| output::print(&format!("{}\n", row.name)))?;
    } else if format == Format::Json {
        output::json(&rows)?;
    } else {
        let cells = |row: &Row| {
            let default = if row.default { "yes" } else { "" };
            vec![
                row.name.clone(),
                row.release.clone(),
                default.to_owned(),
                row.source.clone(),
            ]
        };
        output::table(
            &["NAME", "RELEASE", "DEFAULT", "SOURCE"],
            &rows.iter().map(cells).collect::<Vec<_>>(),
        )?;
    }
    Ok(0)
}
