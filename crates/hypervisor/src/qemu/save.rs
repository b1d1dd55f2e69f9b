//! Saving a machine that runs, and going on from there, by QEMU's migration to a file.
//!
//! The guest's memory is a file that the caller has, so the stream holds the devices alone (`x-ignore-shared`). Measured with QEMU
//! 7.2: some 220 KB in 6 ms, however large the memory is. The capability is set on both sides, because a stream with it is refused by
//! a QEMU without it.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::qmp::{Event, Qmp};
use crate::ControlError;

/// The name under which QEMU knows the file.
const STATE: &str = "saved-state";

/// How long the state may take: milliseconds, unless the host is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long QEMU may take to tell that it has stopped or gone on, which it has by then.
const EVENT: Duration = Duration::from_secs(5);

/// Stops the machine and writes its state. Answer: when it stopped.
///
/// # Errors
/// When QEMU refuses or does not come to an end.
pub(super) async fn save(qmp: &mut Qmp, state: OwnedFd) -> Result<SystemTime, ControlError> {
    qmp.execute("stop", json!({})).await?;
    let stopped = time_of(qmp, "STOP").await?;
    set_up(qmp).await?;
    // No limit: the machine stands still for as long as this takes.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": i64::MAX }))
        .await?;
    qmp.pass_descriptor(STATE, state).await?;
    qmp.execute("migrate", json!({ "uri": format!("fd:{STATE}") })).await?;
    ended(qmp, "migrate").await?;
    Ok(stopped)
}

/// Lets a saved machine run on. Answer: since when it does.
///
/// # Errors
/// When QEMU refuses.
pub(super) async fn go_on(qmp: &mut Qmp) -> Result<SystemTime, ControlError> {
    qmp.execute("cont", json!({})).await?;
    time_of(qmp, "RESUME").await
}

/// When this event happened, which is on its way.
async fn time_of(qmp: &mut Qmp, event: &str) -> Result<SystemTime, ControlError> {
    let come = qmp.await_event(|come| come.name == event, EVENT).await?;
    Ok(come.and_then(|event| event.at).unwrap_or_else(SystemTime::now))
}

/// Gives a QEMU that waits for it the state. The machine stands still until [`go_on`].
///
/// # Errors
/// When QEMU refuses: the state is of another machine.
pub(super) async fn restore(qmp: &mut Qmp, state: OwnedFd, version: &str) -> Result<(), ControlError> {
    if qmp.version() != version {
        // It would refuse some of what does not fit, and take the rest for something else.
        return Err(ControlError::Refused {
            command: "restore".to_owned(),
            reason: format!("the machine was saved by {version}, and this is {}", qmp.version()),
        });
    }
    set_up(qmp).await?;
    // Nor does QEMU itself: the guest says its addresses once it has its own.
    qmp.execute("migrate-set-parameters", json!({ "announce-rounds": 0 }))
        .await?;
    qmp.pass_descriptor(STATE, state).await?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{STATE}") }))
        .await?;
    ended(qmp, "migrate-incoming").await
}

async fn set_up(qmp: &mut Qmp) -> Result<(), ControlError> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [on("events"), on("x-ignore-shared")] });
    qmp.execute("migrate-set-capabilities", capabilities).await.map(drop)
}

/// Waits for the end of a migration.
async fn ended(qmp: &mut Qmp, command: &str) -> Result<(), ControlError> {
    let has_ended = |event: &Event| {
        event.name == "MIGRATION"
            && matches!(
                event.data["status"].as_str(),
                Some("completed" | "failed" | "cancelled")
            )
    };
    if qmp.await_event(has_ended, PATIENCE).await?.is_none() {
        return Err(ControlError::Silent {
            command: command.to_owned(),
            patience: PATIENCE,
        });
    }
    let info = qmp.execute("query-migrate", json!({})).await?;
    match info["status"].as_str() {
        Some("completed") => Ok(()),
        status => Err(ControlError::Refused {
            command: command.to_owned(),
            reason: info
                .get("error-desc")
                .and_then(Value::as_str)
                .or(status)
                .unwrap_or("no reason given")
                .to_owned(),
        }),
    }
}
