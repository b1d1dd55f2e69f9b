//! The fields of docker's `inspect` that scripts ask for (`{{.State.Health.Status}}`, `{{.NetworkSettings.IPAddress}}`), beside
//! our own, for templates alone: what `inspect` prints as JSON has one name for each thing.

use std::collections::BTreeMap;

use crate::views::Inspection;
use serde_json::{Map, Value, json};
use zmachine_spec::{Origin, Phase};

/// Adds them to `document`, which is `machine` without its secrets.
pub fn add(document: &mut Value, machine: &Inspection) {
    let (spec, state) = (&machine.spec, &machine.state.state);
    let config = config(document, machine);
    let exit_code = match &state.phase {
        Phase::Stopped { exit } => exit.shell_code(),
        _ => 0,
    };
    let runs = matches!(state.phase, Phase::Running | Phase::Paused);
    let for_state = json!({
        "Status": match state.phase.word() {
            "stopped" => "exited",
            "failed" => "dead",
            word => word,
        },
        "Running": runs,
        "Paused": state.phase == Phase::Paused,
        "Restarting": matches!(state.phase, Phase::Restarting { .. }),
        "Pid": state.hypervisor.as_ref().map_or(0, |hypervisor| hypervisor.pid),
        "ExitCode": exit_code,
    });
    let fields = json!({
        "Created": state.created_at,
        "Image": document.pointer("/plan/image").cloned(),
        "RestartCount": state.restarts,
        "Config": config,
        "HostConfig": {
            "RestartPolicy": {"Name": spec.restart.to_string()},
            "AutoRemove": spec.auto_remove,
            "Memory": spec.memory_bytes,
        },
        "NetworkSettings": networks(machine),
        "Mounts": mounts(machine),
    });
    if let Some(state) = document.get_mut("state") {
        merge(state, for_state);
    }
    merge(document, fields);
}

fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}

fn config(document: &Value, machine: &Inspection) -> Value {
    let process = |field: &str| {
        document
            .pointer("/plan/process")
            .and_then(|process| process.get(field))
            .cloned()
    };
    let env = process("env").and_then(|env| serde_json::from_value::<Vec<(String, String)>>(env).ok());
    let env: Vec<String> = env
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "Image": document.pointer("/spec/flist").cloned(),
        "Cmd": process("args"),
        "Env": env,
        "WorkingDir": process("cwd"),
        "User": process("user").unwrap_or_default(),
        "Hostname": document.pointer("/plan/boot/hostname").cloned(),
        "Labels": document.pointer("/plan/labels").cloned().unwrap_or_else(|| json!({})),
        "Tty": machine.spec.terminal,
    })
}

fn networks(machine: &Inspection) -> Value {
    let mut networks = Map::new();
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut first = String::new();
    for attachment in machine.plan.attachments() {
        let address = |is_wanted: fn(&std::net::IpAddr) -> bool| {
            let found = attachment
                .addresses
                .iter()
                .map(|network| network.addr())
                .find(is_wanted);
            found.map_or_else(String::new, |address| address.to_string())
        };
        let v4 = address(std::net::IpAddr::is_ipv4);
        if first.is_empty() {
            first.clone_from(&v4);
        }
        let network = json!({
            "IPAddress": v4,
            "GlobalIPv6Address": address(std::net::IpAddr::is_ipv6),
            "MacAddress": attachment.mac.to_string(),
            "Aliases": attachment.membership.names,
        });
        networks.insert(attachment.network.clone(), network);
        for publish in &attachment.publish {
            let host_ip = publish
                .address
                .map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
            for (host, guest) in publish.host.ports().zip(publish.guest.ports()) {
                let entry = json!({"HostIp": host_ip, "HostPort": host.to_string()});
                let port = format!("{guest}/{}", publish.protocol);
                ports.entry(port).or_default().push(entry);
            }
        }
    }
    json!({"IPAddress": first, "Networks": networks, "Ports": ports})
}

fn mounts(machine: &Inspection) -> Vec<Value> {
    let mount = |volume: &zmachine_spec::VolumeRequest| {
        let (kind, source) = match &volume.origin {
            Origin::Named(name) => ("volume", name.clone()),
            Origin::Anonymous => ("volume", String::new()),
            Origin::Directory(path) => ("bind", path.display().to_string()),
        };
        json!({"Type": kind, "Source": source, "Name": source, "Destination": volume.target, "RW": !volume.read_only})
    };
    machine.spec.volumes.iter().map(mount).collect()
}
