//! What the server says about itself and its host.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use zmachine_image::Library;
use zmachine_spec::{Kind, Phase};

use super::{Call, LEAST, VERSION_TEXT, body, images, list, text, volumes};
use crate::app::{App, blocking};
use crate::http::{Answer, Refusal, json};

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

fn kernel() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Versions.
///
/// # Errors
/// None.
pub async fn version(_app: &Arc<App>) -> Result<Answer, Refusal> {
    let (major, minor) = LEAST;
    let least = format!("{major}.{minor}");
    let document = json!({
        "Platform": {"Name": "zmachine"},
        "Components": [{
            "Name": "Engine",
            "Version": OWN_VERSION,
            "Details": {
                "ApiVersion": VERSION_TEXT, "MinAPIVersion": least, "Os": "linux", "Arch": "amd64",
                "KernelVersion": kernel(), "Experimental": "false", "GitCommit": "", "GoVersion": "", "BuildTime": "",
            },
        }],
        "Version": OWN_VERSION,
        "ApiVersion": VERSION_TEXT,
        "MinAPIVersion": least,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": "amd64",
        "KernelVersion": kernel(),
        "BuildTime": "",
    });
    Ok(json(StatusCode::OK, &document))
}

/// The name of the operating system of this host.
fn system_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Memory of this host in bytes.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What there is, and where.
///
/// # Errors
/// When machines cannot be listed.
pub async fn info(app: &Arc<App>) -> Result<Answer, Refusal> {
    let document = blocking(app, |app| {
        let machines: Vec<_> = app
            .engine
            .machines()?
            .into_iter()
            .flatten()
            .filter(|machine| machine.state.kind == Kind::Container)
            .collect();
        let count = |fits: &dyn Fn(&Phase) -> bool| machines.iter().filter(|m| fits(&m.state.phase)).count();
        let paused = count(&|phase| *phase == Phase::Paused);
        let running = count(&|phase| phase.is_active()) - paused;
        let images = Library::open(app.engine.home().data())?.list_readable()?.0;
        let images = images.iter().filter(|image| !image.is_superseded).count();
        let node = rustix::system::uname();
        Ok::<_, Refusal>(json!({
            "ID": app.engine.home().data().display().to_string(),
            "Containers": machines.len(),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": machines.len() - running - paused,
            "Images": images,
            "Driver": "zmachine",
            "DriverStatus": [],
            "Plugins": {"Volume": ["local"], "Network": ["bridge", "null"], "Authorization": null, "Log": ["json-file"]},
            "MemoryLimit": true, "SwapLimit": false, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": false,
            "CPUSet": true, "PidsLimit": false, "IPv4Forwarding": true, "OomKillDisable": false,
            "BridgeNfIptables": false, "BridgeNfIp6tables": false,
            "Debug": false, "NFd": 0, "NGoroutines": 0, "NEventsListener": 0,
            "SystemTime": text::time(Some(Timestamp::now())),
            "LoggingDriver": "json-file",
            "CgroupDriver": "none",
            "CgroupVersion": "2",
            "KernelVersion": kernel(),
            "OperatingSystem": system_name(),
            "OSVersion": "",
            "OSType": "linux",
            "Architecture": "x86_64",
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "IndexConfigs": {}, "Mirrors": null},
            "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
            "MemTotal": memory_bytes(),
            "GenericResources": null,
            "DockerRootDir": app.engine.home().data().display().to_string(),
            "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
            "Name": node.nodename().to_string_lossy(),
            "Labels": [],
            "ExperimentalBuild": false,
            "ServerVersion": OWN_VERSION,
            "Runtimes": {"zmachine": {"path": "zmachine"}},
            "DefaultRuntime": "zmachine",
            "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null},
            "LiveRestoreEnabled": true,
            "Isolation": "",
            "InitBinary": "zmachine-agent",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": ["name=seccomp,profile=builtin"],
            "Warnings": null,
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &document))
}

/// What everything takes on this host.
///
/// # Errors
/// When something cannot be listed.
pub async fn usage(app: &Arc<App>) -> Result<Answer, Refusal> {
    let document = blocking(app, |app| {
        let engine = &app.engine;
        let library = Library::open(engine.home().data())?;
        let images = images::documents(engine)?;
        let known = list::Known::new(engine, &library);
        let containers: Vec<Value> = list::chosen(engine, &Default::default(), true)?
            .iter()
            .map(|machine| list::row(&known, machine, true))
            .collect();
        let (views, _) = engine.volume_list()?;
        let volumes: Vec<Value> = views
            .iter()
            .map(|view| {
                let mut document = volumes::document(view);
                let users = view.machines.as_ref().map_or(-1, |machines| machines.len() as i64);
                document["UsageData"] = json!({"Size": view.used_bytes, "RefCount": users});
                document
            })
            .collect();
        Ok::<_, Refusal>(json!({
            "LayersSize": library.cache_usage()?.bytes,
            "Images": images,
            "Containers": containers,
            "Volumes": volumes,
            "BuildCache": [],
        }))
    })
    .await?;
    Ok(json(StatusCode::OK, &document))
}

/// Credentials are looked at when they are used: registries differ in what they answer without a repository.
///
/// # Errors
/// 400 for what is no JSON.
pub async fn auth(call: Call) -> Result<Answer, Refusal> {
    let _: Value = body::read(call.request.into_body()).await?;
    Ok(json(
        StatusCode::OK,
        &json!({"Status": "Login Succeeded", "IdentityToken": ""}),
    ))
}
