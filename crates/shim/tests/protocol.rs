//! The conversation with containerd, as every version of it has it: with the built shim, and without a machine.
#![allow(missing_docs)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message};
use containerd_shim_protos::sandbox_api;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc::proto::Code;
use containerd_shim_protos::ttrpc::{Error, Request};
use zmachine_testkit::{Need, lacking, skip};

const NAMESPACE: &str = "zmachine-test";

/// A bundle of a container, and what its start is called with.
struct Bundle {
    folder: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(id: &str, annotations: &serde_json::Value) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2", "annotations": annotations, "linux": {"namespaces": [{"type": "network"}]},
        });
        fs::write(folder.path().join("config.json"), spec.to_string()).unwrap();
        Bundle {
            folder,
            id: id.to_owned(),
        }
    }

    /// `start`, with the largest version that containerd says it speaks, and what it says on standard input.
    fn start(&self, home: &Path, max_version: Option<&str>, input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-zmachine-v2"));
        command
            .args(["-namespace", NAMESPACE, "-id", &self.id, "-address"])
            .arg(home.join("containerd.sock"))
            .args(["-publish-binary", "/usr/bin/containerd", "start"])
            .current_dir(self.folder.path())
            .env("ZMACHINE_HOME", home)
            .env_remove("MAX_SHIM_VERSION")
            .env_remove("TTRPC_ADDRESS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(version) = max_version {
            command.env("MAX_SHIM_VERSION", version);
        }
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `BootstrapParams` of containerd 2.3.
fn params(id: &str, address: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut output = CodedOutputStream::vec(&mut bytes);
    let address = address.display().to_string();
    for (field, value) in [(1, id), (2, NAMESPACE), (4, "v2.3.0"), (6, &address)] {
        output.write_string(field, value).unwrap();
    }
    output.flush().unwrap();
    drop(output);
    bytes
}

async fn call<T: Message>(client: &Client, service: &str, method: &str, request: &impl Message) -> Result<T, Error> {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: request.write_to_bytes().unwrap(),
        timeout_nano: 10_000_000_000,
        ..Request::default()
    };
    let response = client.request(request).await?;
    Ok(T::parse_from_bytes(&response.payload).unwrap())
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    match result {
        Err(Error::RpcStatus(status)) => status.code.enum_value().unwrap(),
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn a_shim_answers_every_containerd_in_its_own_form_and_ends_without_a_trace() {
    if let Some(reason) = lacking(&[Need::Root]) {
        return skip(&reason);
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let sandbox = Bundle::new(
        "pod",
        &serde_json::json!({"io.kubernetes.cri.container-type": "sandbox"}),
    );
    let address = text(&sandbox.start(home, None, b""));
    assert!(address.starts_with("unix:///run/containerd/s/"), "{address}");
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    assert_eq!(
        fs::read_to_string(sandbox.folder.path().join("address")).unwrap(),
        address
    );

    // A container of the pod has the same shim, and every later containerd is told of it in its own words.
    let member = Bundle::new(
        "container",
        &serde_json::json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}),
    );
    assert_eq!(text(&member.start(home, Some("2"), b"")), address);
    let json: serde_json::Value = serde_json::from_str(&text(&member.start(home, Some("3"), b""))).unwrap();
    let expected = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"});
    assert_eq!(json, expected);
    let message = member.start(home, Some("3"), &params("container", &home.join("containerd.sock")));
    assert_eq!(&message.stdout[..2], b"\x08\x03", "version 3");
    assert!(text(&message).contains(&address));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::connect(&address).await.unwrap();
        for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
            let connect = api::ConnectRequest::default();
            let connected: api::ConnectResponse = call(&client, service, "Connect", &connect).await.unwrap();
            assert!(Path::new(&format!("/proc/{}", connected.shim_pid)).exists());
            let state = api::StateRequest {
                id: "nobody".to_owned(),
                ..Default::default()
            };
            let missing = call::<api::StateResponse>(&client, service, "State", &state).await;
            assert_eq!(code(missing), Code::NOT_FOUND);
            let checkpoint = api::CheckpointTaskRequest::default();
            let refused = call::<api::Empty>(&client, service, "Checkpoint", &checkpoint).await;
            assert_eq!(code(refused), Code::UNIMPLEMENTED);
        }
        let platform = sandbox_api::PlatformRequest::default();
        let service = "containerd.runtime.sandbox.v1.Sandbox";
        let platform: sandbox_api::PlatformResponse = call(&client, service, "Platform", &platform).await.unwrap();
        assert_eq!(
            (&*platform.platform.os, &*platform.platform.architecture),
            ("linux", "amd64")
        );
        let ping = sandbox_api::PingRequest::default();
        let missing = call::<sandbox_api::PingResponse>(&client, service, "PingSandbox", &ping).await;
        assert_eq!(code(missing), Code::NOT_FOUND);
        // A pod that never came to be ends by that: there is nothing that could be shut down.
        let create = api::CreateTaskRequest {
            id: "bad".to_owned(),
            bundle: "/nowhere".to_owned(),
            ..Default::default()
        };
        let failed = call::<api::CreateTaskResponse>(&client, "containerd.task.v3.Task", "Create", &create).await;
        assert_eq!(code(failed), Code::INVALID_ARGUMENT);
    });

    let deadline = Instant::now() + Duration::from_secs(20);
    let pods = || fs::read_dir(home.join("run/pods")).map_or(0, Iterator::count);
    while socket.exists() || pods() > 0 {
        assert!(Instant::now() < deadline, "left: {} {}", socket.display(), pods());
        std::thread::sleep(Duration::from_millis(50));
    }
    let orphan = member.start(home, None, b"");
    let why = String::from_utf8_lossy(&orphan.stderr).into_owned();
    assert!(
        !orphan.status.success() && why.contains("the shim of the pod pod is gone"),
        "{why}"
    );
}
