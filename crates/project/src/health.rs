//! Waiting for machines that others need.

use std::thread;
use std::time::{Duration, Instant};

use zmachine_engine::Engine;
use zmachine_spec::{Class, Exit, Failure, HealthStatus, Phase};
use zmachine_store::catalog::Machine;

/// How often a machine is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Waits until a machine has ended with status 0; `false` when `goes_on` says that nobody waits any more.
///
/// # Errors
/// When it ended otherwise.
pub(crate) fn wait_completed(engine: &Engine, name: &str, goes_on: impl Fn() -> bool) -> Result<bool, Failure> {
    loop {
        if !goes_on() {
            return Ok(false);
        }
        match engine.machine(name)?.state.phase {
            Phase::Stopped { exit } if exit.shell_code() == 0 => return Ok(true),
            Phase::Stopped { exit } => return Err(ended(name, exit, "was to end with status 0")),
            Phase::Failed { failure, .. } => return Err(failure.context(format!("machine '{name}' failed"))),
            _ => thread::sleep(POLL),
        }
    }
}

fn ended(name: &str, exit: Exit, what: &str) -> Failure {
    let message = format!("machine '{name}' {what}, and ended with status {}", exit.shell_code());
    Failure::new(Class::Failed, message).hint(format!("'zmachine logs {name}' shows what it wrote"))
}

/// Waits until a machine is healthy; `false` when `goes_on` says that nobody waits any more.
///
/// # Errors
/// When it has no health check, is unhealthy, or has ended; or when it takes too long.
pub(crate) fn wait_healthy(
    engine: &Engine,
    name: &str,
    until: Option<Instant>,
    goes_on: impl Fn() -> bool,
) -> Result<bool, Failure> {
    loop {
        if !goes_on() {
            return Ok(false);
        }
        let machine = engine.machine(name)?;
        still_running(&machine, "was to become healthy")?;
        match health(&machine)? {
            Health::Healthy => return Ok(true),
            Health::Starting => {}
            Health::Unhealthy => return Err(unhealthy(name)),
            Health::None => {
                let message = format!("machine '{name}' has no health check, and others wait for its health");
                let hint = "give its service a healthcheck, or wait for service_started";
                return Err(Failure::new(Class::Usage, message).hint(hint));
            }
        }
        in_time(name, until)?;
        thread::sleep(POLL);
    }
}

/// Waits until a machine runs and, where it has a health check, is healthy.
///
/// # Errors
/// As [`wait_healthy`]; one that has ended with status 0 has done what it was to do.
pub(crate) fn wait_up(engine: &Engine, name: &str, until: Option<Instant>) -> Result<(), Failure> {
    loop {
        let machine = engine.machine(name)?;
        if matches!(machine.state.phase, Phase::Stopped { exit } if exit.shell_code() == 0) {
            return Ok(());
        }
        still_running(&machine, "was to run")?;
        match (&machine.state.phase, health(&machine)?) {
            (_, Health::Unhealthy) => return Err(unhealthy(name)),
            (Phase::Running | Phase::Paused, Health::Healthy | Health::None) => return Ok(()),
            _ => {}
        }
        in_time(name, until)?;
        thread::sleep(POLL);
    }
}

fn still_running(machine: &Machine, what: &str) -> Result<(), Failure> {
    let name = &machine.spec.name;
    match &machine.state.phase {
        Phase::Stopped { exit } => Err(ended(name, *exit, what)),
        Phase::Failed { failure, .. } => Err(failure.clone().context(format!("machine '{name}' failed"))),
        _ => Ok(()),
    }
}

fn unhealthy(name: &str) -> Failure {
    Failure::new(Class::Failed, format!("machine '{name}' is unhealthy"))
        .hint(format!("'zmachine inspect {name}' shows what its health check said"))
}

fn in_time(name: &str, until: Option<Instant>) -> Result<(), Failure> {
    match until {
        Some(until) if Instant::now() > until => Err(Failure::new(
            Class::Failed,
            format!("machine '{name}' was not ready in time"),
        )
        .hint("see --wait-timeout")),
        _ => Ok(()),
    }
}

/// What is known of a machine's health.
enum Health {
    /// It has no check.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

fn health(machine: &Machine) -> Result<Health, Failure> {
    if machine.plan()?.health().is_none() {
        return Ok(Health::None);
    }
    // Before it runs, what is known is of its last run.
    if machine.state.phase != Phase::Running {
        return Ok(Health::Starting);
    }
    Ok(match machine.health().map(|health| health.status) {
        Some(HealthStatus::Healthy) => Health::Healthy,
        Some(HealthStatus::Unhealthy) => Health::Unhealthy,
        Some(HealthStatus::Starting) | None => Health::Starting,
    })
}
