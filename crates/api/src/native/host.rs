//! Operations on the host: its kernels, its fitness, and reservations of a grid.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use zmachine_engine::CreateOptions;
use zmachine_image::{PullPolicy, Silent};
use zmachine_kernel::KernelLibrary;
use zmachine_plan::Plan;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog::{self, Machine};
use zmachine_zos::{Deployed, Reservation, explain};

use super::Call;
use super::machines::{failing, read};
use super::problem::Problem;
use crate::app::App;
use crate::http::{Answer, empty, json, whole};

/// Where the kernel shows devices that can be isolated; empty or absent without an IOMMU.
const IOMMU_GROUPS: &str = "/sys/kernel/iommu_groups";

/// How long the checks of a host may take: they start hypervisors and a jail.
const DOCTOR: Duration = Duration::from_secs(120);

/// Lists guest kernels.
///
/// # Errors
/// When they cannot be listed.
pub async fn kernels(app: &Arc<App>) -> Result<Answer, Problem> {
    let listed = failing(app, |app| {
        let library = KernelLibrary::open(app.engine.home().data())?;
        let default = library.default().ok().map(|kernel| kernel.name().to_owned());
        let (mut kernels, mut unreadable) = (Vec::new(), Vec::new());
        for kernel in library.list()? {
            match kernel {
                Ok(kernel) => kernels.push(json!({
                    "name": kernel.name(),
                    "release": kernel.description.release,
                    "source": kernel.description.source,
                    "default": default.as_deref() == Some(kernel.name()),
                })),
                Err(error) => unreadable.push(Failure::from(error).to_string()),
            }
        }
        Ok(json!({"kernels": kernels, "unreadable": unreadable}))
    })
    .await?;
    Ok(json(StatusCode::OK, &listed))
}

/// Makes a kernel the one that machines get by default.
///
/// # Errors
/// 404.
pub async fn default_kernel(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let name = call.place("name");
    failing(app, move |app| {
        Ok(KernelLibrary::open(app.engine.home().data())?.set_default(&name)?)
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Removes a kernel.
///
/// # Errors
/// 404; 409 for one that a machine starts with, unless `force` is said.
pub async fn remove_kernel(app: &Arc<App>, call: &Call) -> Result<Answer, Problem> {
    let (name, force) = (call.place("name"), call.query.flag("force"));
    failing(app, move |app| {
        let uses = |machine: &Machine| matches!(machine.plan(), Ok(Plan::Container(plan)) if plan.kernel.name == name);
        let mut machines = app.engine.machines()?.into_iter().flatten();
        if let Some(user) = machines.find(|machine| !force && uses(machine)) {
            let message = format!("the machine '{}' starts with the kernel '{name}'", user.spec.name);
            return Err(Failure::new(Class::Conflict, message).hint("remove the machine first, or use force"));
        }
        Ok(KernelLibrary::open(app.engine.home().data())?.remove(&name)?)
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// A wanted kernel.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NewKernel {
    name: Option<String>,
}

/// Installs the distribution's kernel for guests.
///
/// # Errors
/// 502 when it cannot be fetched; 409 for a name that is taken.
pub async fn install_kernel(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let wanted: NewKernel = read(call).await?;
    let made = failing(app, move |app| {
        let library = KernelLibrary::open(app.engine.home().data())?;
        let programs = app.engine.programs();
        let kernel = library.install(&programs.kernel_source(), wanted.name.as_deref(), &mut |_| ())?;
        // Made here, so that the first machine need not wait for it.
        if programs.agent().is_file() {
            library.initramfs(&kernel, programs.agent(), &[])?;
        }
        let default = library.default().ok();
        Ok(json!({
            "name": kernel.name(),
            "release": kernel.description.release,
            "source": kernel.description.source,
            "default": default.is_some_and(|default| default.name() == kernel.name()),
        }))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// Checks the host, by the command line's own checks.
///
/// # Errors
/// When they cannot be made.
pub async fn doctor(app: &Arc<App>) -> Result<Answer, Problem> {
    let mut command = tokio::process::Command::new(app.engine.programs().host());
    let words = ["--context", "local", "doctor", "--output", "json"];
    command.args(words).kill_on_drop(true);
    let failed = |why: String| Failure::new(Class::Failed, why).context("the host cannot be checked");
    let done = tokio::time::timeout(DOCTOR, command.output()).await;
    let done = done.map_err(|_| failed("the checks did not end in time".to_owned()))?;
    let done = done.map_err(|e| failed(e.to_string()))?;
    // 6 is for a host that lacks something; it is told all the same.
    let checks: Value = serde_json::from_slice(&done.stdout)
        .map_err(|_| failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()))?;
    Ok(json(
        StatusCode::OK,
        &json!({"works": done.status.success(), "checks": checks}),
    ))
}

async fn reservation(call: Call) -> Result<Reservation, Problem> {
    let bytes = whole(call.body).await?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Failure::from_error(Class::Usage, &e))?;
    Ok(Reservation::parse(text)?)
}

fn has_vfio() -> bool {
    std::fs::read_dir(IOMMU_GROUPS).is_ok_and(|mut groups| groups.next().is_some())
}

/// Tells what each field of a reservation means here.
///
/// # Errors
/// 400 for what is none.
pub async fn explain(_app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let reservation = reservation(call).await?;
    let fields: Vec<Value> = explain::explain(&reservation)
        .into_iter()
        .map(|line| json!({"field": line.field, "value": line.value, "effect": line.effect}))
        .collect();
    let refused = reservation
        .check_offered(has_vfio())
        .err()
        .map(|failure| failure.to_string());
    Ok(json(StatusCode::OK, &json!({"fields": fields, "refused": refused})))
}

/// Creates and starts the machine of a reservation. One that does not start is not there afterwards.
///
/// # Errors
/// Whatever is wrong with the reservation, or with its start.
pub async fn deploy(app: &Arc<App>, call: Call) -> Result<Answer, Problem> {
    let name = call.query.get("name").map(str::to_owned);
    let reservation = reservation(call).await?;
    reservation.check_offered(has_vfio())?;
    let deployed = failing(app, move |app| {
        let engine = &app.engine;
        // Volumes are workloads of their own in a reservation, so none is made by the way.
        for (index, mount) in reservation.mounts.iter().enumerate() {
            engine
                .volumes()
                .get(&mount.name)
                .map_err(|e| e.context(format!("mounts[{index}]: volume '{}' cannot be used", mount.name)))?;
        }
        let name = name.unwrap_or_else(|| catalog::free_name(engine.home()));
        let options = CreateOptions {
            cwd: &engine.home().machines(),
            pull: PullPolicy::Missing,
            installs_kernel: true,
            progress: &Silent,
        };
        let machine = engine.create(&reservation.spec(&name), &options)?;
        let started = engine
            .start(&machine.id, false)
            .and_then(|mut starting| starting.wait_ready(&Silent));
        started.inspect_err(|_| drop(engine.remove(&machine.id, true, true)))?;
        Ok(json!(Deployed::new(&engine.machine(&machine.id)?)))
    })
    .await?;
    Ok(json(StatusCode::CREATED, &deployed))
}
