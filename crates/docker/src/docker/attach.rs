//! `attach`: a client that follows the entrypoint of a container, also of one that is started next.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use zmachine_agent_protocol::{Frame, Input as Said, WindowSize};

use super::stream::{Input, Shown, ToMonitor, pump, tell, upgraded};
use super::{Call, ids, inspect};
use crate::app::{App, blocking};
use crate::http::{Answer, Body, Refusal, empty, typed};
use crate::place::Place;

/// Follows the entrypoint. One that has not been started is followed from its start on.
///
/// # Errors
/// 404; 409 for a container that is paused, or has too many clients that wait.
pub async fn attach(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let wants_input = call.query.flag("stdin");
    let found = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        let is_active = machine.state.phase.is_active();
        let attached = match is_active {
            true => Some(app.engine.attach(&machine.id, wants_input, false)?),
            false => None,
        };
        let closes = inspect::closes_input(&machine);
        Ok::<_, Refusal>((machine, attached.map(|(_input, output)| ToMonitor::new(output)), closes))
    })
    .await?;
    let (machine, monitor, closes) = found;
    let shown = Shown {
        terminal: machine.spec.terminal,
        stdout: call.query.flag("stdout"),
        stderr: call.query.flag("stderr"),
    };
    let input = Input {
        wanted: wants_input && machine.spec.stdin,
        ends: closes && !machine.spec.terminal,
    };
    let kind = shown.content_type(call.version);
    let waits = match monitor {
        Some(_) => None,
        None => Some(app.wait_for_start(&machine.id, input.wanted)?),
    };
    let past = match call.query.flag("logs") {
        true => super::logs::past(app, &machine, shown).await?,
        false => Vec::new(),
    };
    let streams = call.query.flag("stream") || call.upgrades;
    let (app, id) = (Arc::clone(app), machine.id);
    let mut request = call.request;
    if !call.upgrades {
        let (sender, body) = Body::stream();
        tokio::spawn(async move {
            if !past.is_empty() && sender.send(past.into()).await.is_err() {
                return;
            }
            if !streams {
                return;
            }
            let Some(monitor) = ready(&app, &id, monitor, waits).await else {
                return;
            };
            let Ok((mut reader, _writer)) = monitor.split() else {
                return;
            };
            while let Some(frame) = reader.next().await {
                if super::stream::end_of(&frame).is_some() {
                    return;
                }
                if let Some(bytes) = shown.bytes(frame)
                    && sender.send(bytes.into()).await.is_err()
                {
                    return;
                }
            }
        });
        return Ok(typed(StatusCode::OK, kind, body));
    }
    let place = request.extensions().get::<Place>().cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        let Ok(client) = upgrade.await else { return };
        let mut client = TokioIo::new(client);
        if !past.is_empty() && tokio::io::AsyncWriteExt::write_all(&mut client, &past).await.is_err() {
            return;
        }
        // What the client sends meanwhile stays in its socket.
        let Some(monitor) = ready(&app, &id, monitor, waits).await else {
            return;
        };
        let (_nobody, control) = mpsc::channel(1);
        pump(client, monitor, shown, input, control, false).await;
    });
    Ok(upgraded(kind))
}

/// How often who waits for a start looks whether there is anything to wait for.
const LOOK: Duration = Duration::from_secs(60);

/// The stream, as soon as there is one; `None` when the start came to nothing, or the container is removed.
pub async fn ready(
    app: &Arc<App>,
    id: &str,
    monitor: Option<ToMonitor>,
    waits: Option<tokio::sync::oneshot::Receiver<ToMonitor>>,
) -> Option<ToMonitor> {
    if monitor.is_some() {
        return monitor;
    }
    let mut waits = waits?;
    loop {
        match tokio::time::timeout(LOOK, &mut waits).await {
            Ok(stream) => return stream.ok(),
            Err(_) => {
                let id = id.to_owned();
                blocking(app, move |app| app.engine.machine(&id)).await.ok()?;
            }
        }
    }
}

/// A size from the parameters `h` and `w`.
///
/// # Errors
/// 400 when one is none.
pub fn size(query: &super::query::Query) -> Result<WindowSize, Refusal> {
    let side = |name: &str| {
        let number = query.number(name)?.unwrap_or_default();
        u16::try_from(number).map_err(|_| Refusal::bad(format!("{name}: {number} is no number of rows or columns")))
    };
    Ok(WindowSize {
        rows: side("h")?,
        columns: side("w")?,
    })
}

/// Tells a container that its terminal has another size.
///
/// # Errors
/// 404; 409 when it does not run.
pub async fn resize(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let size = size(&call.query)?;
    let monitor = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        let (_input, output) = app.engine.attach(&machine.id, false, false)?;
        Ok::<_, Refusal>(ToMonitor::new(output))
    })
    .await?;
    tell(monitor, &Frame::message(&Said::Resize(size))).await?;
    Ok(empty(StatusCode::OK))
}
