//! The sandbox API on the wire (containerd 2.0 and later, `sandboxer = "shim"`): a pod without a container that does nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::r#async::{Service, TtrpcContext};
use containerd_shim_protos::types::platform::Platform;
use tokio::sync::watch;

use crate::cri::{self, PodConfig};
use crate::error::ShimError;
use crate::etc::EtcFiles;
use crate::events::timestamp;
use crate::oci::Spec;
use crate::pod::{self, Needs};
use crate::service::blocking;
use crate::shim::Shim;
use crate::table::Status;

/// SIGKILL.
const KILL: u32 = 9;

/// The service.
struct SandboxService {
    shim: Arc<Shim>,
    ends: watch::Sender<bool>,
    /// What the sandbox is made of, until it starts, and since when it is there.
    wanted: Mutex<Option<Wanted>>,
    created_at: SystemTime,
}

struct Wanted {
    spec: Spec,
    network: Option<PathBuf>,
    files: EtcFiles,
}

/// The service, by its name.
pub(crate) fn service(shim: &Arc<Shim>, ends: &watch::Sender<bool>) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService {
        shim: Arc::clone(shim),
        ends: ends.clone(),
        wanted: Mutex::default(),
        created_at: SystemTime::now(),
    }))
}

impl SandboxService {
    fn wanted(&self) -> std::sync::MutexGuard<'_, Option<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse> {
        let bundle = PathBuf::from(&request.bundle_path);
        let mut spec = match bundle.join("config.json").is_file() {
            true => Spec::read(&bundle)?,
            false => Spec::default(),
        };
        spec.annotations.extend(request.annotations);
        let config = request
            .options
            .as_ref()
            .filter(|options| options.type_url.ends_with(cri::TYPE));
        let config = config
            .map(|options| PodConfig::read(&options.value))
            .unwrap_or_default();
        if config.is_host_network {
            return Err(pod::no_host_network().into());
        }
        config.add_to(&mut spec, &request.sandbox_id);
        self.shim.add_sandbox(&request.sandbox_id, &request.bundle_path)?;
        let netns = Some(PathBuf::from(request.netns_path)).filter(|path| !path.as_os_str().is_empty());
        *self.wanted() = Some(Wanted {
            spec,
            network: netns,
            files: EtcFiles::of(&config),
        });
        Ok(api::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> Result<api::StartSandboxResponse> {
        let wanted = self.wanted().take();
        let missing = || ShimError::State(format!("the sandbox {} is not created", request.sandbox_id));
        let Wanted { spec, network, files } = wanted.ok_or_else(missing)?;
        let id = request.sandbox_id.clone();
        blocking(&self.shim, move |shim| {
            shim.boot(&spec, network.as_deref(), &Needs::default())
                .inspect_err(|error| shim.log.line(&format!("start sandbox {id}: {error}")))?;
            shim.pod()?.bring_files(&files)?;
            shim.start(&id, "")
        })
        .await?;
        Ok(api::StartSandboxResponse {
            pid: self.shim.pid(),
            created_at: MessageField::some(timestamp(self.created_at)),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: api::PlatformRequest) -> Result<api::PlatformResponse> {
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            ..Default::default()
        };
        Ok(api::PlatformResponse {
            platform: MessageField::some(platform),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> Result<api::StopSandboxResponse> {
        let id = request.sandbox_id;
        let stopped = blocking(&self.shim, move |shim| match shim.kill(&id, "", KILL, true) {
            // It has stopped already.
            Err(ShimError::NotFound(_)) => Ok(()),
            other => other,
        });
        stopped.await?;
        Ok(api::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> Result<api::WaitSandboxResponse> {
        let (code, at) = self.shim.process(&request.sandbox_id, "")?.wait().await;
        Ok(api::WaitSandboxResponse {
            exit_status: code,
            exited_at: MessageField::some(timestamp(at)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse> {
        let process = self.shim.process(&request.sandbox_id, "")?;
        let mut response = api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id.clone(),
            pid: self.shim.pid(),
            created_at: MessageField::some(timestamp(self.created_at)),
            ..Default::default()
        };
        response.state = match process.status() {
            Status::Running => "SANDBOX_READY".to_owned(),
            Status::Created => "SANDBOX_NOTREADY".to_owned(),
            Status::Stopped(_, at) => {
                response.exited_at = MessageField::some(timestamp(at));
                "SANDBOX_NOTREADY".to_owned()
            }
        };
        Ok(response)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: api::PingRequest) -> Result<api::PingResponse> {
        self.shim.process(&request.sandbox_id, "")?;
        Ok(api::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse> {
        let id = request.sandbox_id;
        let deleted = blocking(&self.shim, move |shim| {
            let _ = shim.kill(&id, "", KILL, true);
            match shim.delete(&id, "") {
                Err(ShimError::NotFound(_)) => Ok(()),
                other => other.map(drop),
            }
        });
        deleted.await?;
        self.ends.send_replace(true);
        Ok(api::ShutdownSandboxResponse::default())
    }
}
