//! Operations on the host: its kernels, its fitness, and reservations of a grid.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use zmachine_engine::CreateOptions;
use zmachine_image::{PullPolicy, Silent};
use zmachine_kernel::KernelLibrary;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog;
use zmachine_zos::{Deployed, Reservation, explain};

use super::Call;
use super::machines::failing;
use super::problem::Problem;
use crate::app::App;
use crate::http::{Answer, json, whole};

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

/// Checks the host, by the command line's own checks.
///
/// # Errors
/// When they cannot be made.
pub async fn doctor(app: &Arc<App>) -> Result<Answer, Problem> {
    let mut command = tokio::process::Command::new(app.engine.programs().host());
    command.args(["doctor", "--output", "json"]).kill_on_drop(true);
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
