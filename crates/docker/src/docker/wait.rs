//! `wait`: the exit code of a container, as soon as there is one.
//!
//! The head of the answer goes out at once: clients start the container only then. Whatever happens to the container meanwhile, its
//! removal included, the code is told.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use zmachine_engine::Engine;
use zmachine_spec::{Class, Phase, State};
use zmachine_store::attempt::{Attempt, Outcome};
use zmachine_store::catalog::Machine;

use super::{Call, ids, text};
use crate::app::{App, blocking};
use crate::http::{Answer, Body, Refusal, typed};

/// How long nothing may be heard before it is looked all the same.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// What is known of a machine: from the beginning, and the last that was seen of it.
#[derive(Debug, Clone)]
struct Known {
    starts: u64,
    was_active: bool,
    last: Machine,
}

/// Waits for a container.
///
/// # Errors
/// 404; 400 for an unknown condition.
pub async fn wait(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let condition = match call.query.get("condition") {
        None | Some("not-running") => Condition::NotRunning,
        Some("next-exit") => Condition::NextExit,
        Some("removed") => Condition::Removed,
        Some(other) => return Err(Refusal::bad(format!("invalid condition: {other:?}"))),
    };
    // From before the first look on.
    let mut events = app.hub.subscribe();
    let machine = blocking(app, move |app| ids::machine(&app.engine, &name)).await?;
    let mut known = Known {
        starts: machine.state.starts,
        was_active: machine.state.phase.is_active(),
        last: machine,
    };
    let (sender, body) = Body::stream();
    let app = Arc::clone(app);
    tokio::spawn(async move {
        loop {
            let looked = blocking(&app, move |app| {
                let found = look(&app.engine, &mut known, condition);
                Ok::<_, Refusal>((known, found))
            })
            .await;
            let Ok((seen, found)) = looked else { return };
            known = seen;
            if let Some(answer) = found {
                let mut bytes = serde_json::to_vec(&answer).unwrap_or_default();
                bytes.push(b'\n');
                let _ = sender.send(bytes.into()).await;
                return;
            }
            tokio::select! {
                () = events.next(LOOK) => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(typed(StatusCode::OK, "application/json", body))
}

/// The answer, once there is one.
fn look(engine: &Engine, known: &mut Known, condition: Condition) -> Option<Value> {
    match engine.machine(&known.last.id) {
        Ok(machine) => {
            let is_over = !machine.state.phase.is_active();
            let has_run = known.was_active || machine.state.starts > known.starts;
            let is_again = matches!(machine.state.phase, Phase::Restarting { .. });
            known.last = machine;
            let is_done = match condition {
                Condition::NotRunning => is_over,
                Condition::NextExit => has_run && (is_over || is_again),
                Condition::Removed => false,
            };
            is_done.then(|| answer(&known.last.state, &known.last.dir))
        }
        Err(failure) if failure.class == Class::NotFound => {
            let state = engine.last_state(&known.last);
            Some(answer(&state, &known.last.dir))
        }
        // It cannot be read now; perhaps later.
        Err(_) => None,
    }
}

fn code(code: i64) -> Value {
    json!({"StatusCode": code})
}

/// How the last run of a machine ended that starts again, from the records in its folder.
pub fn last_code(dir: &std::path::Path) -> i64 {
    let last = Attempt::all(dir).into_iter().rev().find_map(|attempt| attempt.outcome);
    match last {
        Some(Outcome::Stopped { exit, .. }) => exit.shell_code().into(),
        Some(Outcome::Failed { failure, .. }) => text::failed_code(&failure),
        None => 0,
    }
}

/// How the last run ended. Why one failed, its start has told already.
fn answer(state: &State, dir: &std::path::Path) -> Value {
    match &state.phase {
        Phase::Restarting { .. } => code(last_code(dir)),
        phase => code(text::exit_code(phase)),
    }
}
