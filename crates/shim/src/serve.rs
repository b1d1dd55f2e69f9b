//! `serve`: the shim of one pod, from its start to its end.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::address;
use crate::arguments::Arguments;
use crate::cleanup::remove_file;
use crate::error::ShimError;
use crate::events::Events;
use crate::hold;
use crate::host;
use crate::log::Log;
use crate::oci::{Place, Spec};
use crate::pod;
use crate::role::Role;
use crate::sandbox;
use crate::service;
use crate::share::PodFolder;
use crate::shim::Shim;
use crate::start::EVENTS_ADDRESS;

/// How long containerd may take for the last events.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// How long the shim of a pod of the same name may take to end.
const PREDECESSOR: Duration = Duration::from_secs(60);

/// The answer to the call that ends the shim is on its way for so long at most.
const GOODBYE: Duration = Duration::from_millis(200);

/// Serves containerd until the pod is over. The working directory is the bundle of the pod's sandbox.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn serve(arguments: &Arguments) -> Result<(), ShimError> {
    host::leave().map_err(|e| ShimError::failed("cannot have mounts of its own", e))?;
    let bundle = std::env::current_dir().map_err(|e| ShimError::failed("the bundle", e))?;
    let spec = match bundle.join("config.json").is_file() {
        true => Spec::read(&bundle)?,
        false => Spec::default(),
    };
    let role = Role::of(&spec.annotations);
    let key = address::key(&arguments.address, &arguments.namespace, role.group(&arguments.id));
    let folder = PodFolder::of(&pod::state_dirs()?.1, &key);
    let taken = folder
        .lock(PREDECESSOR)
        .map_err(|e| ShimError::failed("cannot lock the pod's folder", e))?;
    let _lock =
        taken.ok_or_else(|| ShimError::State("the pod of the same name before this one does not end".to_owned()))?;
    folder
        .make()
        .map_err(|e| ShimError::failed("cannot make the pod's folder", e))?;
    let log = Log::open(&folder.log(), &bundle);
    log.take_panics();
    let served = serve_logged(arguments, &spec, &key, &folder, &log);
    served.inspect_err(|error| log.line(&error.to_string()))
}

fn serve_logged(arguments: &Arguments, spec: &Spec, key: &str, folder: &PodFolder, log: &Log) -> Result<(), ShimError> {
    let namespace = match spec.namespace("network") {
        Place::At(path) => Some(path),
        Place::Own | Place::Host => None,
    };
    // In this thread, which is the one that lives longest.
    let mut holder = hold::start(namespace)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ShimError::failed("cannot start the runtime", e))?;
    let containerd = std::env::var(EVENTS_ADDRESS).ok().filter(|address| !address.is_empty());
    let containerd = containerd.unwrap_or_else(|| format!("{}.ttrpc", arguments.address));
    let (shim, events) = {
        let _entered = runtime.enter();
        let events = Events::open(containerd, arguments.namespace.clone(), log.clone());
        let shim = Shim::new(key.to_owned(), holder.id(), log.clone(), events.clone());
        (Arc::new(shim), events)
    };
    let result = runtime.block_on(serve_pod(arguments, (key, folder), &shim, &events));
    // Threads that wait for a machine which is gone are not waited for.
    runtime.shutdown_background();
    let _ = holder.kill();
    let _ = holder.wait();
    shim.leave_group();
    result
}

async fn serve_pod(
    arguments: &Arguments,
    (key, folder): (&str, &PodFolder),
    shim: &Arc<Shim>,
    events: &Events,
) -> Result<(), ShimError> {
    let (ends, mut is_over) = watch::channel(false);
    let number = arguments
        .listener
        .ok_or_else(|| ShimError::Invalid("this action is for the shim itself: containerd says start".to_owned()))?;
    let failed = |error: &dyn std::fmt::Display| ShimError::failed("cannot serve containerd", error);
    let listener = zmachine_sys::fd::take_inherited(number).map_err(|e| failed(&e))?;
    let listener = Listener::try_from(UnixListener::from(listener)).map_err(|e| failed(&e))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service::services(shim, &ends))
        .register_service(sandbox::service(shim, &ends));
    server.start().await.map_err(|e| failed(&e))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed(&e))?;
    tokio::select! {
        _ = is_over.wait_for(|is_over| *is_over) => {}
        _ = terminate.recv() => {}
    }
    tokio::time::sleep(GOODBYE).await;
    // Nobody is served by it any more, and a new pod of the same name has another one.
    let _ = remove_file(Path::new(&address::socket(key)));
    let (finishing, folder) = (Arc::clone(shim), folder.clone());
    let _ = tokio::task::spawn_blocking(move || finishing.finish(&folder)).await;
    events.drained(LAST_EVENTS).await;
    Ok(())
}
