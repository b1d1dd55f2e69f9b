//! Docker's API: paths, versions and answers, over the engine.
//!
//! | module | owns |
//! |---|---|
//! | [`query`] | parameters and filters of a request |
//! | [`ids`] | the ids that clients see |
//! | [`body`] | the bodies of requests, as far as they matter |
//! | [`create`] | from a body to the spec of a machine, and every refusal |
//! | [`containers`] | what is done with containers |
//! | [`list`], [`inspect`] | what containers look like |
//! | [`wait`], [`logs`], [`stats`], [`events`] | what is told as time goes by |
//! | [`stream`], [`attach`], [`exec`], [`exec_events`] | processes: their input, output and end |
//! | [`archive`] | files to and from containers |
//! | [`images`], [`exchange`] | images here, and to and from elsewhere |
//! | [`networks`], [`volumes`], [`system`] | the rest |
//!
//! What is known about clients and their needs was measured with the docker command 28, Compose 2.40, docker-py 7.2 and
//! Testcontainers 4.15 (Python) and 11.14 (Node). Containers of this API are the machines that are containers; VMs are not
//! shown, so nothing that tidies up here takes one away.

pub mod archive;
pub mod attach;
pub mod body;
pub mod containers;
pub mod create;
pub mod events;
pub mod exchange;
pub mod exec;
pub mod exec_events;
pub mod ids;
pub mod images;
pub mod inspect;
pub mod list;
pub mod logs;
pub mod networks;
pub mod query;
pub mod stats;
pub mod stream;
pub mod system;
pub mod text;
pub mod volumes;
pub mod wait;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, UPGRADE};
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use self::query::Query;
use crate::app::App;
use crate::http::{Answer, Refusal, empty, json};
use zmachine_access::Role;

/// The version of the API that is promised: everything was compared with it.
pub const VERSION: (u32, u32) = (1, 45);

/// The oldest one that is spoken.
pub const LEAST: (u32, u32) = (1, 24);

const VERSION_TEXT: &str = "1.45";

/// One request, taken apart.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path without the version, cut at its slashes and decoded.
    pub path: Vec<String>,
    /// The parameters.
    pub query: Query,
    /// The version of the API that the client speaks.
    pub version: (u32, u32),
    /// The client asks to go on in its own protocol on this connection.
    pub upgrades: bool,
    /// The request, with its body.
    pub request: Request<Incoming>,
}

/// The role that a request needs. Whoever speaks this API can do everything on this host: `inspect` shows secrets, and a container may have any
/// directory. So there is nothing in it for lesser roles but to find out what is spoken.
pub fn role(method: &str, path: &str) -> Role {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts.split_first() {
        Some((first, rest)) if version_of(first).is_some() => rest,
        _ => parts.as_slice(),
    };
    match (method, rest) {
        ("GET" | "HEAD", ["_ping"]) | ("GET", ["version"]) => Role::Viewer,
        _ => Role::Admin,
    }
}

/// Whether a request changes something. Others are not recorded.
pub fn is_change(method: &str, path: &str) -> bool {
    let asks = ["/wait", "/resize", "/auth"];
    !matches!(method, "GET" | "HEAD") && !asks.iter().any(|end| path.ends_with(end))
}

/// A refusal as clients of this API read it.
pub fn refused(refusal: &Refusal) -> Answer {
    json(refusal.status, &json!({"message": refusal.message}))
}

/// Carries out a request.
pub async fn answer(app: &Arc<App>, request: Request<Incoming>) -> Answer {
    let is_head = request.method() == Method::HEAD;
    let answered = match call(request) {
        Ok(call) => route(app, call).await,
        Err(refusal) => Err(refusal),
    };
    let mut answer = match answered {
        Ok(answer) => answer,
        Err(refusal) if is_head => empty(refusal.status),
        Err(refusal) => refused(&refusal),
    };
    let headers = answer.headers_mut();
    headers.insert(
        HeaderName::from_static("api-version"),
        HeaderValue::from_static(VERSION_TEXT),
    );
    headers.insert(HeaderName::from_static("ostype"), HeaderValue::from_static("linux"));
    headers.insert(
        HeaderName::from_static("docker-experimental"),
        HeaderValue::from_static("false"),
    );
    headers.insert(
        HeaderName::from_static("server"),
        HeaderValue::from_static(concat!("zmachine/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    answer
}

fn call(request: Request<Incoming>) -> Result<Call, Refusal> {
    let whole = request.uri().path();
    let mut path: Vec<String> = whole
        .split('/')
        .filter(|part| !part.is_empty())
        .map(query::decoded)
        .collect();
    let mut version = VERSION;
    if let Some(spoken) = path.first().and_then(|first| version_of(first)) {
        path.remove(0);
        if spoken > VERSION {
            let (major, minor) = spoken;
            let message =
                format!("client version {major}.{minor} is too new. Maximum supported API version is {VERSION_TEXT}");
            return Err(Refusal::bad(message));
        }
        if spoken < LEAST {
            let (major, minor) = spoken;
            let (least_major, least_minor) = LEAST;
            let message = format!(
                "client version {major}.{minor} is too old. Minimum supported API version is {least_major}.{least_minor}, please upgrade your client to a newer version"
            );
            return Err(Refusal::bad(message));
        }
        version = spoken;
    }
    Ok(Call {
        method: request.method().clone(),
        path,
        query: Query::parse(request.uri().query().unwrap_or_default()),
        version,
        upgrades: request.headers().contains_key(UPGRADE),
        request,
    })
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.strip_prefix('v')?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

async fn route(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let owned = |text: &str| text.to_owned();
    let method = call.method.clone();
    let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
    let head = method == Method::HEAD;
    match path.as_slice() {
        ["_ping"] if get || head => Ok(ping(head)),
        ["version"] if get => system::version(app).await,
        ["info"] if get => system::info(app).await,
        ["system", "df"] if get => system::usage(app).await,
        ["auth"] if post => system::auth(call).await,
        ["events"] if get => events::events(app, &call).await,

        ["containers", "json"] if get => list::list(app, &call).await,
        ["containers", "create"] if post => create::create(app, call).await,
        ["containers", "prune"] if post => containers::prune(app, &call).await,
        ["containers", name] if delete => containers::remove(app, owned(name), &call).await,
        ["containers", name, action] => {
            let (name, action) = (owned(name), owned(action));
            container(app, &name, &action, call).await
        }
        ["containers", _, "attach", "ws"] => Err(unsupported(
            "attaching by WebSocket is not supported: attach by an upgraded connection",
        )),
        ["commit"] if post => containers::commit(app, call).await,
        ["exec", id, "start"] if post => {
            let id = owned(id);
            exec::start(app, &id, call).await
        }
        ["exec", id, "resize"] if post => exec::resize(app, id, &call.query).await,
        ["exec", id, "json"] if get => exec::inspect(app, &owned(id)).await,

        ["images", ..] | ["build"] | ["build", "prune"] => images_route(app, call).await,

        ["networks"] if get => networks::list(app, &call).await,
        ["networks", "create"] if post => networks::create(app, call).await,
        ["networks", "prune"] if post => networks::prune(app, &call).await,
        ["networks", name] if get => networks::inspect(app, owned(name)).await,
        ["networks", name] if delete => networks::remove(app, owned(name)).await,
        ["networks", name, "connect"] if post => {
            let name = owned(name);
            networks::connect(app, name, call).await
        }
        ["networks", name, "disconnect"] if post => {
            let name = owned(name);
            networks::disconnect(app, name, call).await
        }

        ["volumes"] if get => volumes::list(app, &call).await,
        ["volumes", "create"] if post => volumes::create(app, call).await,
        ["volumes", "prune"] if post => volumes::prune(app, &call).await,
        ["volumes", name] if get => volumes::inspect(app, owned(name)).await,
        ["volumes", name] if delete => volumes::remove(app, owned(name), &call).await,

        ["session" | "grpc"] => Err(unsupported(images::NO_BUILD)),
        ["swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", ..] => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "This node is not a swarm manager. zmachine runs machines of one host",
        )),
        ["plugins"] if get => Ok(json(StatusCode::OK, &json!([]))),
        ["plugins", name, "json"] if get => Err(Refusal::not_found(format!("plugin {name:?} not found"))),
        _ => Err(Refusal::not_found("page not found")),
    }
}

async fn container(app: &Arc<App>, name: &str, action: &str, call: Call) -> Result<Answer, Refusal> {
    let name = name.to_owned();
    match (call.method.as_str(), action) {
        ("GET", "json") => inspect::inspect(app, name, &call).await,
        ("POST", "start") => containers::start(app, name).await,
        ("POST", "stop") => containers::stop(app, name, &call).await,
        ("POST", "restart") => containers::restart(app, name, &call).await,
        ("POST", "kill") => containers::kill(app, name, &call).await,
        ("POST", "pause") => containers::pause(app, name).await,
        ("POST", "unpause") => containers::unpause(app, name).await,
        ("POST", "rename") => containers::rename(app, name, &call).await,
        ("POST", "update") => containers::update(app, name, call).await,
        ("POST", "wait") => wait::wait(app, name, &call).await,
        ("POST", "resize") => attach::resize(app, name, &call).await,
        ("POST", "attach") => attach::attach(app, name, call).await,
        ("POST", "exec") => exec::create(app, name, call).await,
        ("GET", "logs") => logs::logs(app, name, &call).await,
        ("GET", "top") => containers::top(app, name).await,
        ("GET", "stats") => stats::stats(app, name, &call).await,
        ("GET", "changes") => containers::changes(app, name).await,
        ("GET", "export") => archive::export(app, name).await,
        ("HEAD", "archive") => archive::stat(app, name, &call).await,
        ("GET", "archive") => archive::get(app, name, &call).await,
        ("PUT", "archive") => archive::put(app, name, call).await,
        _ => Err(Refusal::not_found("page not found")),
    }
}

/// Names of images have slashes, which nobody escapes: what stands at the ends of the path decides.
async fn images_route(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let name = |parts: &[&str]| parts.join("/");
    match (call.method.as_str(), path.as_slice()) {
        ("POST", ["build"]) => Err(unsupported(images::NO_BUILD)),
        ("POST", ["build", "prune"]) => Ok(json(StatusCode::OK, &json!({"CachesDeleted": [], "SpaceReclaimed": 0}))),
        ("GET", ["images", "json"]) => images::list(app, &call).await,
        ("GET", ["images", "search"]) => Err(unsupported("registries are not searched: name the image")),
        ("GET", ["images", "get"]) => {
            let names = call.query.all("names").map(str::to_owned).collect();
            exchange::save(app, names).await
        }
        ("POST", ["images", "create"]) => exchange::pull(app, &call).await,
        ("POST", ["images", "load"]) => exchange::load(app, call).await,
        ("POST", ["images", "prune"]) => images::prune(app, &call).await,
        ("GET", ["images", parts @ .., "json"]) if !parts.is_empty() => images::inspect(app, name(parts)).await,
        ("GET", ["images", parts @ .., "history"]) if !parts.is_empty() => images::history(app, name(parts)).await,
        ("GET", ["images", parts @ .., "get"]) if !parts.is_empty() => exchange::save(app, vec![name(parts)]).await,
        ("POST", ["images", parts @ .., "tag"]) if !parts.is_empty() => images::tag(app, name(parts), &call).await,
        ("POST", ["images", parts @ .., "push"]) if !parts.is_empty() => exchange::push(app, name(parts), &call).await,
        ("DELETE", ["images", parts @ ..]) if !parts.is_empty() => images::remove(app, name(parts), &call).await,
        _ => Err(Refusal::not_found("page not found")),
    }
}

/// What is not done here at all.
pub fn unsupported(message: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_IMPLEMENTED, message)
}

fn ping(head: bool) -> Answer {
    let body = crate::http::Body::Whole((!head).then(|| "OK".into()));
    let mut answer = crate::http::typed(StatusCode::OK, "text/plain; charset=utf-8", body);
    let headers = answer.headers_mut();
    // 1: without BuildKit, so that nobody tries to open a session for it.
    for (name, value) in [("builder-version", "1"), ("swarm", "inactive"), ("pragma", "no-cache")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_nothing_else_is_one() {
        assert_eq!(version_of("v1.45"), Some((1, 45)));
        for text in ["1.45", "v1", "vx.y", "v1.45.0", "volumes"] {
            assert_eq!(version_of(text), None, "{text}");
        }
    }
}
