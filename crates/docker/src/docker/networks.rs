//! Networks. Docker's own, `bridge`, is the default network of the home.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use zmachine_engine::Engine;
use zmachine_engine::views::NetworkView;
use zmachine_network::user::USER_NETWORK;
use zmachine_network::{DEFAULT_NETWORK, Ipv6Choice, NetworkSpec};
use zmachine_spec::{Class, Failure, Kind};

use super::query::{Filters, name_fits};
use super::{Call, body, create, ids, images, text};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, empty, json};

/// What docker calls the default network.
pub const BRIDGE: &str = "bridge";

const FILTERS: [&str; 8] = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];

/// The name of a network as docker has it.
pub fn shown_name(name: &str) -> String {
    match name {
        DEFAULT_NETWORK => BRIDGE.to_owned(),
        name => name.to_owned(),
    }
}

/// The id of a network: of one that is gone, or is nobody's, one that follows from its name.
pub fn id(engine: &Engine, name: &str) -> String {
    engine
        .network_id(name)
        .unwrap_or_else(|_| ids::of(&format!("network {name}")))
}

/// The own name of a network that a client means by a name, an id or the beginning of an id.
///
/// # Errors
/// 404.
pub fn own_name(engine: &Engine, text: &str) -> Result<String, Refusal> {
    match text {
        "" | BRIDGE | DEFAULT_NETWORK => return Ok(DEFAULT_NETWORK.to_owned()),
        USER_NETWORK => return Ok(USER_NETWORK.to_owned()),
        _ => {}
    }
    let views = engine.network_list()?;
    if let Some(view) = views.iter().find(|view| view.name == text) {
        return Ok(view.name.clone());
    }
    let mut by_id = views.iter().filter(|view| view.id.starts_with(text));
    match (by_id.next(), by_id.next()) {
        (Some(view), None) => Ok(view.name.clone()),
        _ => Err(Refusal::not_found(format!("network {text} not found"))),
    }
}

fn document(view: &NetworkView) -> Value {
    let mut containers = Map::new();
    for member in view.machines.iter().filter(|member| member.attached) {
        let address = |is_wanted: fn(&std::net::IpAddr) -> bool, subnet: Option<&String>| {
            let found = member.addresses.iter().find(|address| is_wanted(address));
            let length = subnet.and_then(|subnet| subnet.split('/').nth(1)).unwrap_or_default();
            found.map_or_else(String::new, |address| format!("{address}/{length}"))
        };
        containers.insert(
            ids::container(&member.id),
            json!({
                "Name": member.name,
                "EndpointID": ids::container(&member.id),
                "MacAddress": member.mac,
                "IPv4Address": address(std::net::IpAddr::is_ipv4, Some(&view.subnet)),
                "IPv6Address": address(std::net::IpAddr::is_ipv6, view.ipv6_subnet.as_ref()),
            }),
        );
    }
    let mut pools = vec![json!({"Subnet": view.subnet, "Gateway": view.gateway})];
    if let (Some(subnet), Some(gateway)) = (&view.ipv6_subnet, &view.ipv6_gateway) {
        pools.push(json!({"Subnet": subnet, "Gateway": gateway}));
    }
    json!({
        "Name": shown_name(&view.name),
        "Id": view.id,
        "Created": text::time(Some(view.created_at.unwrap_or(Timestamp::UNIX_EPOCH))),
        "Scope": "local",
        "Driver": BRIDGE,
        "EnableIPv6": view.ipv6_subnet.is_some(),
        "IPAM": {"Driver": "default", "Options": null, "Config": pools},
        "Internal": view.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": containers,
        "Options": {"com.docker.network.bridge.name": view.bridge, "com.docker.network.driver.mtu": view.mtu.to_string()},
        "Labels": view.labels,
    })
}

fn has(filters: &Filters, view: &NetworkView) -> bool {
    let is_own = view.name == DEFAULT_NETWORK;
    filters.allow("name", |wanted| name_fits(&shown_name(&view.name), wanted))
        && filters.allow("id", |wanted| view.id.starts_with(wanted))
        && filters.allow("driver", |wanted| wanted == BRIDGE)
        && filters.allow("scope", |wanted| wanted == "local")
        && filters.allow("type", |wanted| (wanted == "builtin") == is_own)
        && filters.allow_labels(&view.labels)
}

/// Lists networks.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn list(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let shown = blocking(app, move |app| {
        // Docker's own is always there.
        let _ = app.engine.ensure_default_network();
        let mut views = app.engine.network_list()?;
        views
            .retain(|view| has(&filters, view) && dangling.is_none_or(|dangling| dangling == view.machines.is_empty()));
        Ok::<_, Failure>(views.iter().map(document).collect::<Vec<_>>())
    })
    .await?;
    Ok(json(StatusCode::OK, &shown))
}

/// Shows a network.
///
/// # Errors
/// 404.
pub async fn inspect(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    let shown = blocking(app, move |app| {
        let own = own_name(&app.engine, &name)?;
        if own == DEFAULT_NETWORK {
            app.engine.ensure_default_network()?;
        }
        let view = app.engine.network(&own).map_err(|failure| match failure.class {
            Class::NotFound => Refusal::not_found(format!("network {name} not found")),
            _ => failure.into(),
        })?;
        Ok::<_, Refusal>(document(&view))
    })
    .await?;
    Ok(json(StatusCode::OK, &shown))
}

/// Makes a network.
///
/// # Errors
/// 409 for a name that is taken; 400 for what a network here cannot be.
pub async fn create(app: &Arc<App>, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::NetworkCreate = body::read(call.request.into_body()).await?;
    let id = blocking(app, move |app| {
        let spec = spec(&wanted)?;
        if matches!(wanted.name.as_str(), BRIDGE | "host" | "none" | "default") {
            let message = format!("operation is not permitted on predefined {} network", wanted.name);
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        let made = app
            .engine
            .create_network(&spec)
            .map_err(|failure| match failure.class {
                Class::Conflict if app.engine.network(&spec.name).is_ok() => {
                    Refusal::conflict(format!("network with name {} already exists", spec.name))
                }
                _ => failure.into(),
            })?;
        Ok(made.id())
    })
    .await?;
    Ok(json(StatusCode::CREATED, &json!({"Id": id, "Warning": ""})))
}

fn spec(wanted: &body::NetworkCreate) -> Result<NetworkSpec, Refusal> {
    if !matches!(wanted.driver.as_str(), "" | BRIDGE | "default") {
        let message = format!("network driver {:?} is not supported: use {BRIDGE:?}", wanted.driver);
        return Err(Refusal::bad(message));
    }
    let mut spec = NetworkSpec {
        name: wanted.name.clone(),
        internal: wanted.internal,
        labels: wanted.labels.clone(),
        ..NetworkSpec::default()
    };
    if wanted.enable_ipv6 == Some(false) {
        spec.ipv6 = Ipv6Choice::Without;
    }
    for pool in wanted.ipam.config.iter().filter(|pool| !pool.subnet.is_empty()) {
        match (pool.subnet.parse(), pool.subnet.parse()) {
            (Ok(subnet), _) => spec.ipv4 = Some(subnet),
            (_, Ok(subnet)) => spec.ipv6 = Ipv6Choice::Subnet(subnet),
            _ => {
                return Err(Refusal::bad(format!(
                    "invalid subnet {}: it is no CIDR block",
                    pool.subnet
                )));
            }
        }
    }
    if let Some(mtu) = wanted.options.get("com.docker.network.driver.mtu") {
        let parsed = mtu
            .parse()
            .map_err(|_| Refusal::bad(format!("the MTU {mtu:?} is no number")))?;
        spec.mtu = Some(parsed);
    }
    Ok(spec)
}

/// Removes a network.
///
/// # Errors
/// 404; 403 for one that containers are in.
pub async fn remove(app: &Arc<App>, name: String) -> Result<Answer, Refusal> {
    blocking(app, move |app| {
        let own = own_name(&app.engine, &name)?;
        if own == DEFAULT_NETWORK {
            let message = format!("{name} is a pre-defined network and cannot be removed");
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        app.engine.remove_network(&own).map_err(|failure| match failure.class {
            Class::Conflict => Refusal::new(
                StatusCode::FORBIDDEN,
                format!(
                    "error while removing network: network {name} has active endpoints: {}",
                    failure.message
                ),
            ),
            _ => failure.into(),
        })
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Has a container join a network.
///
/// # Errors
/// 404; 403 for one that is in it.
pub async fn connect(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::NetworkConnect = body::read(call.request.into_body()).await?;
    blocking(app, move |app| {
        let own = own_name(&app.engine, &name)?;
        let machine = ids::machine(&app.engine, &wanted.container)?;
        let request = create::request(&own, Some(&wanted.endpoint_config))?;
        app.engine
            .connect_network(&machine.id, &request)
            .map_err(|failure| match failure.class {
                Class::Conflict => Refusal::new(StatusCode::FORBIDDEN, failure.to_string()),
                _ => failure.into(),
            })
    })
    .await?;
    Ok(empty(StatusCode::OK))
}

/// Has a container leave a network.
///
/// # Errors
/// 404; 403 for one that is not in it.
pub async fn disconnect(app: &Arc<App>, name: String, call: Call) -> Result<Answer, Refusal> {
    let wanted: body::NetworkDisconnect = body::read(call.request.into_body()).await?;
    blocking(app, move |app| {
        let own = own_name(&app.engine, &name)?;
        let machine = match ids::machine(&app.engine, &wanted.container) {
            // What is not there is in no network.
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND && wanted.force => return Ok(()),
            found => found?,
        };
        app.engine
            .disconnect_network(&machine.id, &own)
            .map_err(|failure| match failure.class {
                Class::Conflict => Refusal::new(StatusCode::FORBIDDEN, failure.to_string()),
                _ => failure.into(),
            })
    })
    .await?;
    Ok(empty(StatusCode::OK))
}

/// Removes networks that nobody is in.
///
/// # Errors
/// 400 for filters that make no sense.
pub async fn prune(app: &Arc<App>, call: &Call) -> Result<Answer, Refusal> {
    let filters = call.query.filters(&["label", "label!", "until"])?;
    let deleted = blocking(app, move |app| {
        app.engine.reconcile()?;
        let until = filters
            .values("until")
            .first()
            .map(|text| images::until(text))
            .transpose()?;
        // A network of VMs is somebody's, too.
        let used: Vec<String> = app
            .engine
            .machines()?
            .into_iter()
            .flatten()
            .filter(|machine| matches!(machine.state.kind, Kind::Container | Kind::Vm))
            .flat_map(|machine| machine.spec.networks)
            .map(|network| network.name)
            .collect();
        let mut deleted = Vec::new();
        for view in app.engine.network_list()? {
            let is_used = view.name == DEFAULT_NETWORK || !view.machines.is_empty() || used.contains(&view.name);
            let is_young = until.is_some_and(|until| view.created_at.is_some_and(|at| at > until));
            if is_used || is_young || !filters.allow_labels(&view.labels) {
                continue;
            }
            match app.engine.remove_network(&view.name) {
                Ok(()) => deleted.push(view.name),
                // Somebody has come to use it, or removed it.
                Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok::<_, Refusal>(deleted)
    })
    .await?;
    Ok(json(StatusCode::OK, &json!({"NetworksDeleted": deleted})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_network_cannot_be_is_refused() {
        let spec = |text: &str| spec(&serde_json::from_str(text).unwrap());
        let made = spec(r#"{"Name":"n","Driver":"","IPAM":{"Config":[{"Subnet":"10.9.0.0/24"}]},"Labels":{"a":"b"}}"#);
        let made = made.unwrap();
        assert_eq!(
            (made.ipv4.unwrap().to_string().as_str(), made.labels.len()),
            ("10.9.0.0/24", 1)
        );
        assert!(spec(r#"{"Name":"n","IPAM":null,"Labels":null}"#).is_ok());
        for text in [
            r#"{"Name":"n","Driver":"overlay"}"#,
            r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.9"}]}}"#,
            r#"{"Name":"n","Options":{"com.docker.network.driver.mtu":"x"}}"#,
        ] {
            assert_eq!(spec(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
    }

    #[test]
    fn dockers_own_network_has_its_name() {
        assert_eq!(shown_name("default"), "bridge");
        assert_eq!(shown_name("demo_back"), "demo_back");
    }
}
