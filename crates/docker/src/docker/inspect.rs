//! What a container looks like from near.
//!
//! What was asked for is kept beside the machine as it came (`machines/<id>/docker.json`, gone with the machine) and echoed: clients find
//! their own words again. How the machine is comes from its spec, plan and state, which is all there is of one that was made by
//! another command.

use std::path::PathBuf;
use std::sync::Arc;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zmachine_engine::Engine;
use zmachine_engine::image_view::document;
use zmachine_flist::Digest;
use zmachine_image::Library;
use zmachine_network::Attachment;
use zmachine_pack::oci::pull::CONFIGURATION;
use zmachine_plan::Plan;
use zmachine_spec::volume::anonymous;
use zmachine_spec::{Failure, Health, MachineSpec, Origin, Phase, RestartPolicy};
use zmachine_store::catalog::Machine;
use zmachine_store::log;
use zmachine_sys::file;

use super::{Call, ids, images, networks, text};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, json};

/// Version of the file.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    version: u32,
    /// The body by which the machine was made.
    create: Value,
}

fn path(machine: &Machine) -> PathBuf {
    machine.dir.join("docker.json")
}

/// Keeps the body by which a machine was made.
///
/// # Errors
/// When it cannot be written.
pub fn remember(machine: &Machine, create: &Value) -> Result<(), Failure> {
    let remembered = Remembered {
        version: VERSION,
        create: without_nothing(create.clone()),
    };
    Ok(file::replace_json(&path(machine), &remembered)?)
}

/// A document without its nulls and empty members.
fn without_nothing(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields
                .into_iter()
                .map(|(name, value)| (name, without_nothing(value)))
                .filter(|(_, value)| !matches!(value, Value::Null) && *value != json!({}) && *value != json!([]));
            Value::Object(kept.collect())
        }
        // Of a map to nothing the keys count.
        other => other,
    }
}

/// The body by which a machine was made; an empty one for a machine of another command.
pub fn remembered(machine: &Machine) -> Value {
    let read: Option<Remembered> = file::read_json(&path(machine)).ok();
    read.filter(|read| read.version == VERSION)
        .map_or_else(|| json!({}), |read| read.create)
}

/// Whether the input of the entrypoint ends with that of its client.
pub fn closes_input(machine: &Machine) -> bool {
    remembered(machine)
        .get("StdinOnce")
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// Shows everything about a container.
///
/// # Errors
/// 404.
pub async fn inspect(app: &Arc<App>, name: String, call: &Call) -> Result<Answer, Refusal> {
    let with_size = call.query.flag("size");
    let shown = blocking(app, move |app| {
        let machine = ids::machine(&app.engine, &name)?;
        let mut shown = container(&app.engine, &machine)?;
        if with_size {
            let bytes = disk_bytes(&machine);
            shown["SizeRw"] = json!(bytes);
            shown["SizeRootFs"] = json!(bytes);
        }
        Ok::<_, Refusal>(shown)
    })
    .await?;
    Ok(json(StatusCode::OK, &shown))
}

/// What a machine's own disk takes on this host, in bytes.
pub fn disk_bytes(machine: &Machine) -> u64 {
    let disk = machine.dir.join("root.img").metadata();
    disk.map_or(0, |disk| std::os::unix::fs::MetadataExt::blocks(&disk) * 512)
}

fn container(engine: &Engine, machine: &Machine) -> Result<Value, Refusal> {
    let plan = machine.plan()?;
    let library = Library::open(engine.home().data())?;
    let digest: Option<Digest> = plan.image().and_then(|digest| digest.parse().ok());
    let of_image = digest
        .and_then(|digest| document(&library, &digest, CONFIGURATION).ok())
        .and_then(|configuration| configuration.get("config").cloned())
        .unwrap_or_default();
    let create = remembered(machine);
    let (program, arguments) = match args(&plan).split_first() {
        Some((program, arguments)) => (program.clone(), arguments.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let spec = &machine.spec;
    Ok(json!({
        "Id": ids::container(&machine.id),
        "Created": text::time(Some(machine.state.created_at)),
        "Path": program,
        "Args": arguments,
        "State": state(machine),
        "Image": digest.map_or_else(String::new, |digest| images::id(&library, &digest)),
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": log::path(&machine.dir).display().to_string(),
        "Name": format!("/{}", spec.name),
        "RestartCount": machine.state.restarts,
        "Driver": "zmachine",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(machine, &create),
        "GraphDriver": {"Name": "zmachine", "Data": {}},
        "Mounts": mounts(machine),
        "Config": config(machine, &plan, &create, &of_image),
        "NetworkSettings": network_settings(engine, machine, &plan, &create),
    }))
}

/// Entrypoint and command, as they are run.
pub fn args(plan: &Plan) -> &[String] {
    match plan {
        Plan::Container(plan) => &plan.process.args,
        Plan::Vm(_) => &[],
    }
}

fn state(machine: &Machine) -> Value {
    let state = &machine.state;
    let phase = &state.phase;
    let runs = matches!(
        phase,
        Phase::Running | Phase::Paused | Phase::Stopping | Phase::Restarting { .. }
    );
    let error = match phase {
        Phase::Failed { failure, .. } => crate::http::text_of(failure),
        _ => String::new(),
    };
    let mut shown = json!({
        "Status": text::state(phase),
        "Running": runs,
        "Paused": *phase == Phase::Paused,
        "Restarting": matches!(phase, Phase::Restarting { .. }),
        "OOMKilled": false,
        "Dead": false,
        "Pid": state.hypervisor.as_ref().filter(|_| runs).map_or(0, |hypervisor| hypervisor.pid),
        "ExitCode": text::exit_code(phase),
        "Error": error,
        "StartedAt": text::time(state.ready_at.or(state.started_at)),
        "FinishedAt": text::time(state.finished_at),
    });
    if let Some(health) = machine.health() {
        shown["Health"] = health_view(&health);
    }
    shown
}

fn health_view(health: &Health) -> Value {
    let probe = |probe: &zmachine_spec::health::Probe| {
        json!({
            "Start": text::time(Some(probe.start)),
            "End": text::time(Some(probe.end)),
            "ExitCode": probe.exit_code,
            "Output": probe.output,
        })
    };
    json!({
        "Status": health.status.word(),
        "FailingStreak": health.failing_streak,
        "Log": health.log.iter().map(probe).collect::<Vec<_>>(),
    })
}

/// The fields of `over` in the place of those of `base`.
fn merged(base: Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (name, value) in over {
                base.insert(name.clone(), value.clone());
            }
            Value::Object(base)
        }
        (base, _) => base,
    }
}

fn config(machine: &Machine, plan: &Plan, create: &Value, of_image: &Value) -> Value {
    let spec = &machine.spec;
    let of_image = |name: &str| of_image.get(name).cloned().unwrap_or_default();
    let mut asked = create.clone();
    if let Some(fields) = asked.as_object_mut() {
        fields.remove("HostConfig");
        fields.remove("NetworkingConfig");
    }
    let (env, cwd, user, labels, hostname) = match plan {
        Plan::Container(plan) => (
            plan.process.env.clone(),
            plan.process.cwd.clone(),
            plan.process.user.clone(),
            plan.labels.clone(),
            plan.boot.hostname.clone(),
        ),
        Plan::Vm(_) => (spec.env.clone(), None, None, spec.labels.clone(), spec.name.clone()),
    };
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let cmd = match spec.command.is_empty() {
        false => json!(spec.command),
        true if spec.entrypoint.is_none() => of_image("Cmd"),
        true => Value::Null,
    };
    let entrypoint = match &spec.entrypoint {
        Some(words) => json!(words),
        None => of_image("Entrypoint"),
    };
    let defaults = json!({
        "Domainname": "",
        "AttachStdin": false,
        "AttachStdout": true,
        "AttachStderr": true,
        "OpenStdin": spec.stdin,
        "StdinOnce": false,
        "Image": spec.flist,
        "Volumes": of_image("Volumes"),
        "OnBuild": null,
        "Healthcheck": of_image("Healthcheck"),
        "StopSignal": spec.stop_signal.map(|signal| signal.to_string()),
        "StopTimeout": spec.stop_timeout_s,
    });
    let live = json!({
        "Hostname": hostname,
        "User": spec.user.as_ref().map(ToString::to_string).or(user).unwrap_or_default(),
        "Tty": spec.terminal,
        "Env": env,
        "Cmd": cmd,
        "Entrypoint": entrypoint,
        "WorkingDir": spec.workdir.clone().or(cwd).unwrap_or_default(),
        "Labels": labels.into_iter().chain(spec.labels.clone()).collect::<std::collections::BTreeMap<_, _>>(),
    });
    let mut shown = merged(merged(defaults, &asked), &live);
    let exposed = exposed(plan, create);
    if !exposed.is_empty() {
        shown["ExposedPorts"] = Value::Object(exposed);
    }
    if let Some(fields) = shown.as_object_mut() {
        for name in ["Healthcheck", "StopSignal", "StopTimeout"] {
            if fields.get(name) == Some(&Value::Null) {
                fields.remove(name);
            }
        }
    }
    shown
}

/// The ports that image and user expose, as keys of a map to nothing.
fn exposed(plan: &Plan, create: &Value) -> Map<String, Value> {
    let mut ports = Map::new();
    if let Plan::Container(plan) = plan {
        for port in &plan.exposed_ports {
            let port = match port.contains('/') {
                true => port.clone(),
                false => format!("{port}/tcp"),
            };
            ports.insert(port, json!({}));
        }
    }
    for field in ["/ExposedPorts", "/HostConfig/PortBindings"] {
        let more = create.pointer(field).and_then(Value::as_object);
        for port in more.into_iter().flatten().map(|(port, _)| port) {
            ports.insert(port.clone(), json!({}));
        }
    }
    ports
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let (name, count) = match policy {
        RestartPolicy::OnFailure { most } => ("on-failure".to_owned(), most.map_or(0, u32::from)),
        other => (other.to_string(), 0),
    };
    json!({"Name": name, "MaximumRetryCount": count})
}

/// What was asked of the host; where nothing was, what docker says then.
fn host_config(machine: &Machine, create: &Value) -> Value {
    let spec = &machine.spec;
    let mode = mode_of(spec);
    let defaults = json!({
        "Binds": binds(spec),
        "ContainerIDFile": "",
        "NetworkMode": mode,
        "PortBindings": port_bindings(spec),
        "AutoRemove": spec.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": null,
        "ConsoleSize": [0, 0],
        "CapAdd": null,
        "CapDrop": null,
        "CgroupnsMode": "private",
        "Dns": spec.dns,
        "DnsOptions": [],
        "DnsSearch": [],
        "ExtraHosts": null,
        "GroupAdd": null,
        "IpcMode": "private",
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": 0,
        "PidMode": "",
        "Privileged": false,
        "PublishAllPorts": spec.publish_all,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": null,
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": spec.guest.shm_bytes.unwrap_or(64 << 20),
        "Runtime": "zmachine",
        "Isolation": "",
        "Memory": 0,
        "NanoCpus": 0,
        "MemorySwap": 0,
        "Init": spec.init,
    });
    let asked = create.get("HostConfig").cloned().unwrap_or_default();
    let mut shown = merged(defaults, &asked);
    // Output is fetched by clients only where they know the driver.
    shown["LogConfig"] = json!({
        "Type": "json-file",
        "Config": asked.pointer("/LogConfig/Config").cloned().unwrap_or_else(|| json!({})),
    });
    shown["RestartPolicy"] = restart_policy(spec.restart);
    shown["NetworkMode"] = json!(mode);
    shown
}

/// The network mode of a machine, in docker's words.
pub fn mode_of(spec: &MachineSpec) -> String {
    spec.networks
        .first()
        .map_or_else(|| "none".to_owned(), |network| networks::shown_name(&network.name))
}

fn binds(spec: &MachineSpec) -> Value {
    let texts: Vec<String> = spec
        .volumes
        .iter()
        .filter(|volume| volume.origin != Origin::Anonymous)
        .map(ToString::to_string)
        .collect();
    match texts.is_empty() {
        true => Value::Null,
        false => json!(texts),
    }
}

fn port_bindings(spec: &MachineSpec) -> Value {
    let mut bindings: Map<String, Value> = Map::new();
    for request in &spec.publish {
        let hosts = request.host.map(|host| host.ports().collect::<Vec<_>>());
        for (index, guest) in request.guest.ports().enumerate() {
            let host = hosts.as_ref().and_then(|hosts| hosts.get(index));
            let entry = json!({
                "HostIp": request.address.map_or_else(String::new, |address| address.to_string()),
                "HostPort": host.map_or_else(String::new, ToString::to_string),
            });
            let key = format!("{guest}/{}", request.protocol);
            match bindings.get_mut(&key).and_then(Value::as_array_mut) {
                Some(entries) => entries.push(entry),
                None => drop(bindings.insert(key, json!([entry]))),
            }
        }
    }
    Value::Object(bindings)
}

/// Volumes and directories.
pub fn mounts(machine: &Machine) -> Vec<Value> {
    let mut all = Vec::new();
    for (index, volume) in machine.spec.volumes.iter().enumerate() {
        let mode = if volume.read_only { "ro" } else { "" };
        all.push(match &volume.origin {
            Origin::Directory(path) => json!({
                "Type": "bind", "Source": path.display().to_string(), "Destination": volume.target,
                "Mode": mode, "RW": !volume.read_only, "Propagation": "rprivate",
            }),
            origin => {
                let name = match origin {
                    Origin::Named(name) => name.clone(),
                    _ => anonymous(&machine.id, index),
                };
                json!({
                    "Type": "volume", "Name": name, "Source": name, "Destination": volume.target,
                    "Driver": "local", "Mode": mode, "RW": !volume.read_only, "Propagation": "",
                })
            }
        });
    }
    let copied = machine.spec.secrets.iter().filter(|(name, _)| name.starts_with('/'));
    for (target, path) in copied.chain(&machine.spec.sockets) {
        all.push(json!({
            "Type": "bind", "Source": path.display().to_string(), "Destination": target,
            "Mode": "", "RW": true, "Propagation": "rprivate",
        }));
    }
    for tmpfs in &machine.spec.guest.tmpfs {
        all.push(json!({
            "Type": "tmpfs", "Source": "", "Destination": tmpfs.target, "Mode": "", "RW": !tmpfs.read_only, "Propagation": "",
        }));
    }
    all
}

/// The ports that lead to a machine which runs: host address, host port, port and protocol.
pub fn open_ports(machine: &Machine, plan: &Plan) -> Vec<(String, u16, u16, String)> {
    if !machine.state.phase.is_active() {
        return Vec::new();
    }
    let mut ports = Vec::new();
    for publish in plan.attachments().iter().flat_map(|attachment| &attachment.publish) {
        let addresses = match publish.address {
            // As docker lists them: one for each family.
            None => vec!["0.0.0.0".to_owned(), "::".to_owned()],
            Some(address) => vec![address.to_string()],
        };
        for (host, guest) in publish.host.ports().zip(publish.guest.ports()) {
            for address in &addresses {
                ports.push((address.clone(), host, guest, publish.protocol.to_string()));
            }
        }
    }
    ports
}

/// A machine in one of its networks, whose ids `id_of` tells.
pub fn endpoint(id_of: &dyn Fn(&str) -> String, attachment: &Attachment, machine: &Machine) -> Value {
    let v4 = attachment.addresses.iter().find(|net| net.addr().is_ipv4());
    let v6 = attachment.addresses.iter().find(|net| net.addr().is_ipv6());
    let text = |net: Option<&ipnet::IpNet>| net.map_or_else(String::new, |net| net.addr().to_string());
    let length = |net: Option<&ipnet::IpNet>| net.map_or(0, |net| net.prefix_len());
    let names = &attachment.membership.names;
    json!({
        "IPAMConfig": null,
        "Links": null,
        "Aliases": names,
        "MacAddress": attachment.mac.to_string(),
        "NetworkID": id_of(&attachment.network),
        "EndpointID": ids::container(&machine.id),
        "Gateway": attachment.gateway4.to_string(),
        "IPAddress": text(v4),
        "IPPrefixLen": length(v4),
        "IPv6Gateway": attachment.gateway6.map_or_else(String::new, |gateway| gateway.to_string()),
        "GlobalIPv6Address": text(v6),
        "GlobalIPv6PrefixLen": length(v6),
        "DriverOpts": null,
        "DNSNames": names,
    })
}

/// The networks of a machine, by docker's names.
pub fn endpoints(id_of: &dyn Fn(&str) -> String, machine: &Machine, plan: &Plan) -> Map<String, Value> {
    let mut all = Map::new();
    for attachment in plan.attachments() {
        let name = networks::shown_name(&attachment.network);
        all.insert(name, endpoint(id_of, attachment, machine));
    }
    all
}

fn network_settings(engine: &Engine, machine: &Machine, plan: &Plan, create: &Value) -> Value {
    let networks = endpoints(&|name| networks::id(engine, name), machine, plan);
    let mut ports: Map<String, Value> = Map::new();
    if machine.state.phase.is_active() {
        for (port, _) in exposed(plan, create) {
            ports.insert(port, Value::Null);
        }
    }
    for (address, host, guest, protocol) in open_ports(machine, plan) {
        let entry = json!({"HostIp": address, "HostPort": host.to_string()});
        let key = format!("{guest}/{protocol}");
        match ports.get_mut(&key).and_then(Value::as_array_mut) {
            Some(entries) => entries.push(entry),
            None => drop(ports.insert(key, json!([entry]))),
        }
    }
    // At the top are those of docker's own network.
    let own = networks.get(networks::BRIDGE).cloned().unwrap_or_default();
    let of_own = |name: &str, default: Value| own.get(name).cloned().unwrap_or(default);
    json!({
        "Bridge": "",
        "SandboxID": ids::container(&machine.id),
        "SandboxKey": "",
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": of_own("EndpointID", json!("")),
        "Gateway": of_own("Gateway", json!("")),
        "GlobalIPv6Address": of_own("GlobalIPv6Address", json!("")),
        "GlobalIPv6PrefixLen": of_own("GlobalIPv6PrefixLen", json!(0)),
        "IPAddress": of_own("IPAddress", json!("")),
        "IPPrefixLen": of_own("IPPrefixLen", json!(0)),
        "IPv6Gateway": of_own("IPv6Gateway", json!("")),
        "MacAddress": of_own("MacAddress", json!("")),
        "Networks": networks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_said_is_not_kept_but_keys_to_nothing_are() {
        let create = json!({
            "Cmd": ["a"], "Env": null, "Volumes": {}, "HostConfig": {"Binds": [], "Memory": 0, "Tmpfs": null},
            "Labels": {"a": ""},
        });
        assert_eq!(
            without_nothing(create),
            json!({"Cmd": ["a"], "HostConfig": {"Memory": 0}, "Labels": {"a": ""}})
        );
    }

    #[test]
    fn restart_policies_are_told_in_two_parts() {
        let policy: RestartPolicy = "on-failure:3".parse().unwrap();
        assert_eq!(
            restart_policy(policy),
            json!({"Name": "on-failure", "MaximumRetryCount": 3})
        );
        assert_eq!(restart_policy(RestartPolicy::No)["Name"], "no");
    }
}
