//! What requests share.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, oneshot};
use zmachine_engine::Engine;
use zmachine_spec::Failure;

use crate::docker::exec::Execs;
use crate::docker::stream::ToMonitor;
use crate::guard::Guard;
use crate::http::Refusal;
use crate::hub::Hub;
use crate::listing::Listing;
use zmachine_access::audit::Audit;

/// Logs that are read at the same moment.
const READERS: usize = 4;

/// Clients that may wait for the start of one machine.
const MOST_WAITING: usize = 16;

/// What requests share.
#[derive(Debug)]
pub struct App {
    /// All operations.
    pub engine: Engine,
    /// When something has happened.
    pub hub: Hub,
    /// Who may do what.
    pub guard: Guard,
    /// Who did what.
    pub audit: Audit,
    /// What listings show.
    pub listing: Listing,
    /// Commands in machines.
    pub execs: Mutex<Execs>,
    /// The path of the socket that clients use; they may want it in a container.
    pub socket: Option<PathBuf>,
    /// Places for those who read logs: so many threads at a time, however many followers there are.
    pub readers: Semaphore,
    attachers: Mutex<HashMap<String, Vec<Attacher>>>,
}

/// A client that waits for the start of a machine.
#[derive(Debug)]
pub struct Attacher {
    /// Its input goes to the entrypoint.
    pub stdin: bool,
    /// Takes its stream.
    pub stream: oneshot::Sender<ToMonitor>,
}

impl App {
    /// Over an engine.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new(engine: Engine, socket: Option<PathBuf>) -> Result<App, Failure> {
        Ok(App {
            hub: Hub::start(engine.home())?,
            guard: Guard::of(engine.home().data()),
            audit: Audit::of(engine.home().data()),
            engine,
            listing: Listing::default(),
            execs: Mutex::default(),
            socket,
            readers: Semaphore::new(READERS),
            attachers: Mutex::default(),
        })
    }

    /// Registers a client that wants to follow a machine which has not been started yet. It gets its stream from the start.
    ///
    /// # Errors
    /// When too many wait already.
    pub fn wait_for_start(&self, id: &str, stdin: bool) -> Result<oneshot::Receiver<ToMonitor>, Refusal> {
        let mut attachers = locked(&self.attachers);
        let waiting = attachers.entry(id.to_owned()).or_default();
        waiting.retain(|attacher| !attacher.stream.is_closed());
        if waiting.len() >= MOST_WAITING {
            let message = format!("{MOST_WAITING} clients wait for the start of container {id} already");
            return Err(Refusal::conflict(message));
        }
        let (stream, receiver) = oneshot::channel();
        waiting.push(Attacher { stdin, stream });
        Ok(receiver)
    }

    /// Those who wait for the start of a machine, and are still there.
    pub fn take_attachers(&self, id: &str) -> Vec<Attacher> {
        let mut waiting = locked(&self.attachers).remove(id).unwrap_or_default();
        waiting.retain(|attacher| !attacher.stream.is_closed());
        waiting
    }
}

/// What a lock guards, whatever became of a thread that had it: every value here is whole at any time.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`blocking`] for a short reading of files, of which many clients may want one again and again.
///
/// # Errors
/// Those of the call.
pub async fn reading<T, E>(
    app: &Arc<App>,
    call: impl FnOnce(&App) -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Into<Refusal> + Send + 'static,
{
    // It is never closed.
    let _place = app.readers.acquire().await;
    blocking(app, call).await
}

/// Carries out a call that blocks in a thread of its own.
///
/// # Errors
/// Those of the call; that it panicked, which ends nothing but this request.
pub async fn blocking<T, E>(
    app: &Arc<App>,
    call: impl FnOnce(&App) -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Into<Refusal> + Send + 'static,
{
    let app = Arc::clone(app);
    let done = tokio::task::spawn_blocking(move || call(&app).map_err(Into::into)).await;
    done.unwrap_or_else(|error| {
        Err(Refusal::new(
            hyper::StatusCode::INTERNAL_SERVER_ERROR,
            format!("the request ended early: {error}"),
        ))
    })
}
