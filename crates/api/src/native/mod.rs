//! The REST API `/v1`: machines, images, volumes and networks in this project's own words, as the command line has them.
//!
//! | module | owns |
//! |---|---|
//! | [`routes`] | every operation: path, parameters, body, answer |
//! | [`openapi`] | the description of the API, made of the operations |
//! | [`schemas`] | the shapes of what goes to and fro |
//! | [`problem`] | failures, as RFC 9457 has them |
//! | [`machines`], [`files`], [`snapshots`], [`processes`], [`streams`], [`images`], [`resources`], [`projects`], [`space`], [`host`] | the operations |
//! | [`websocket`] | processes and consoles over WebSockets |
//!
//! # Invariants
//! What an operation is called, takes and gives is in [`routes`] alone; a request for which no line is there is not answered, and what is
//! there is in the description.

pub mod files;
pub mod host;
pub mod images;
pub mod machines;
pub mod openapi;
pub mod problem;
pub mod processes;
pub mod projects;
pub mod resources;
pub mod routes;
pub mod schemas;
pub mod snapshots;
pub mod space;
pub mod streams;
pub mod volume_snapshots;
pub mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, StatusCode};
use zmachine_spec::{Class, Failure};

use self::problem::Problem;
use self::routes::{Operation, ROUTES};
use crate::app::App;
use crate::docker::query::{Query, decoded};
use crate::http::{Answer, json};
use crate::place::Place;
use zmachine_access::Role;

/// One request, taken apart.
#[derive(Debug)]
pub struct Call {
    /// What stands in the places of the path.
    pub places: BTreeMap<&'static str, String>,
    /// The parameters.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Incoming,
    /// The connection, when the client asks for another protocol on it.
    pub upgrade: Option<OnUpgrade>,
    /// The connection's place among all.
    pub place: Option<Place>,
}

impl Call {
    /// What stands in a place of the path.
    pub fn place(&self, name: &str) -> String {
        self.places.get(name).cloned().unwrap_or_default()
    }
}

/// The parts of a path, decoded.
fn parts_of(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(decoded).collect()
}

/// The role that a request needs. What is not there may be asked for by everybody.
pub fn role(method: &str, path: &str) -> Role {
    let path = parts_of(path);
    let asked = |route: &&routes::Route| route.method == method && route.places(&path).is_some();
    ROUTES.iter().find(asked).map_or(Role::Viewer, |route| route.role)
}

/// Whether a request changes something, or lets somebody into a machine. Others are not recorded.
pub fn is_change(method: &str, path: &str) -> bool {
    let asks = ["/wait", "/plans"];
    match method {
        "GET" | "HEAD" => role(method, path) > Role::Viewer,
        _ => !asks.iter().any(|end| path.ends_with(end)),
    }
}

/// Carries out a request.
pub async fn answer(app: &Arc<App>, mut request: Request<Incoming>) -> Answer {
    let upgrade = request
        .headers()
        .contains_key(UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let place = request.extensions().get::<Place>().cloned();
    let (parts, body) = request.into_parts();
    let path = parts_of(parts.uri.path());
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let mut is_known = false;
    for route in ROUTES {
        let Some(places) = route.places(&path) else { continue };
        is_known = true;
        if route.method != parts.method.as_str() {
            continue;
        }
        let call = Call {
            places,
            query,
            headers: parts.headers,
            body,
            upgrade,
            place,
        };
        return match perform(app, route.operation, call).await {
            Ok(answer) => answer,
            Err(problem) => problem.answer(),
        };
    }
    let (status, message) = match is_known {
        true => (StatusCode::METHOD_NOT_ALLOWED, "this path does not have this method"),
        false => (StatusCode::NOT_FOUND, "there is no such path"),
    };
    let failure = Failure::new(Class::NotFound, message).hint("GET /v1/openapi.json tells what there is");
    Problem::with_status(failure, status).answer()
}

async fn perform(app: &Arc<App>, operation: Operation, call: Call) -> Result<Answer, Problem> {
    match operation {
        Operation::OpenApi => Ok(json(StatusCode::OK, &openapi::document())),
        Operation::Version => Ok(resources::version()),
        Operation::ListMachines => machines::list(app, &call).await,
        Operation::CreateMachine => machines::create(app, call).await,
        Operation::PlanMachine => machines::plan(app, call).await,
        Operation::GetMachine => machines::get(app, &call).await,
        Operation::ChangeMachine => machines::change(app, call).await,
        Operation::RemoveMachine => machines::remove(app, &call).await,
        Operation::StartMachine => machines::start(app, &call).await,
        Operation::StopMachine => machines::stop(app, &call).await,
        Operation::RestartMachine => machines::restart(app, &call).await,
        Operation::KillMachine => machines::kill(app, &call).await,
        Operation::PauseMachine => machines::pause(app, &call).await,
        Operation::ResumeMachine => machines::resume(app, &call).await,
        Operation::WaitMachine => machines::wait(app, &call).await,
        Operation::WhyMachine => machines::why(app, &call).await,
        Operation::MachineStats => machines::stats(app, &call).await,
        Operation::MachineProcesses => machines::processes(app, &call).await,
        Operation::MachineLogs => streams::logs(app, &call).await,
        Operation::AllStats => machines::all_stats(app).await,
        Operation::ReadFiles => files::get(app, &call).await,
        Operation::WriteFiles => files::put(app, call).await,
        Operation::ExportMachine => files::export(app, &call).await,
        Operation::MachineChanges => files::changes(app, &call).await,
        Operation::CommitMachine => files::commit(app, call).await,
        Operation::CopyMachine => files::copy(app, call).await,
        Operation::PruneMachines => space::prune_machines(app).await,
        Operation::ListSnapshots => snapshots::list(app).await,
        Operation::CreateSnapshot => snapshots::create(app, call).await,
        Operation::GetSnapshot => snapshots::get(app, &call).await,
        Operation::RemoveSnapshot => snapshots::remove(app, &call).await,
        Operation::RestoreSnapshot => snapshots::restore(app, &call).await,
        Operation::ExportSnapshot => snapshots::export(app, &call).await,
        Operation::ImportSnapshot => snapshots::import(app, call).await,
        Operation::Fork => snapshots::fork(app, call).await,
        Operation::BeginInMachine => processes::begin(app, call).await,
        Operation::ListExecs => processes::list(app, &call).await,
        Operation::RunInMachine => processes::run(app, call).await,
        Operation::EnterMachine => processes::enter(app, call).await,
        Operation::AttachMachine => processes::attach(app, call).await,
        Operation::MachineConsole => processes::console(app, call).await,
        Operation::Events => streams::events(app, &call).await,
        Operation::ListImages => images::list(app).await,
        Operation::PullImage => images::pull(app, call).await,
        Operation::GetImage => images::get(app, &call).await,
        Operation::ImageHistory => images::history(app, &call).await,
        Operation::TagImage => images::tag(app, call).await,
        Operation::PushImage => images::push(app, call).await,
        Operation::SaveImages => images::save(app, &call).await,
        Operation::LoadImages => images::load(app, call).await,
        Operation::PruneImages => space::prune_images(app).await,
        Operation::RemoveImage => images::remove(app, &call).await,
        Operation::ListVolumes => resources::volumes(app).await,
        Operation::CreateVolume => resources::create_volume(app, call).await,
        Operation::GetVolume => resources::volume(app, &call).await,
        Operation::GrowVolume => resources::grow_volume(app, call).await,
        Operation::CopyVolume => volume_snapshots::copy(app, call).await,
        Operation::ListVolumeSnapshots => volume_snapshots::list(app).await,
        Operation::CreateVolumeSnapshot => volume_snapshots::create(app, call).await,
        Operation::RemoveVolumeSnapshot => volume_snapshots::remove(app, &call).await,
        Operation::RestoreVolumeSnapshot => volume_snapshots::restore(app, &call).await,
        Operation::PruneVolumes => space::prune_volumes(app, &call).await,
        Operation::RemoveVolume => resources::remove_volume(app, &call).await,
        Operation::ListNetworks => resources::networks(app).await,
        Operation::CreateNetwork => resources::create_network(app, call).await,
        Operation::GetNetwork => resources::network(app, &call).await,
        Operation::ConnectNetwork => resources::connect(app, call).await,
        Operation::DisconnectNetwork => resources::disconnect(app, call).await,
        Operation::PruneNetworks => space::prune_networks(app).await,
        Operation::RemoveNetwork => resources::remove_network(app, &call).await,
        Operation::ListKernels => host::kernels(app).await,
        Operation::InstallKernel => host::install_kernel(app, call).await,
        Operation::DefaultKernel => host::default_kernel(app, &call).await,
        Operation::RemoveKernel => host::remove_kernel(app, &call).await,
        Operation::ListProjects => projects::list(app).await,
        Operation::ActOnProject => projects::act(app, call).await,
        Operation::ProjectLogs => projects::logs(app, &call).await,
        Operation::Usage => space::usage(app).await,
        Operation::Deploy => host::deploy(app, call).await,
        Operation::ExplainReservation => host::explain(app, call).await,
        Operation::Doctor => host::doctor(app).await,
        Operation::Metrics => resources::metrics(app).await,
    }
}
