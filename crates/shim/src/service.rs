//! The task API on the wire: versions 2 and 3 have the same messages, under two names of the service.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::r#async::{Service, TtrpcContext};
use containerd_shim_protos::types::task::{ProcessInfo, Status as WireStatus};
use tokio::sync::watch;

use crate::error::ShimError;
use crate::events::timestamp;
use crate::share::SnapshotMount;
use crate::shim::{Creation, Shim};
use crate::stats;
use crate::streams::Files;
use crate::table::Status;

/// The name of the service in version 3.
const VERSION3: &str = "containerd.task.v3.Task";

/// The service.
pub(crate) struct TaskService {
    shim: Arc<Shim>,
    /// Set when the shim is to end.
    ends: watch::Sender<bool>,
    /// Tasks that are being made.
    creating: watch::Sender<Vec<String>>,
}

/// The services of both versions.
pub(crate) fn services(shim: &Arc<Shim>, ends: &watch::Sender<bool>) -> HashMap<String, Service> {
    let creating = watch::Sender::default();
    let service = || {
        Arc::new(TaskService {
            shim: Arc::clone(shim),
            ends: ends.clone(),
            creating: creating.clone(),
        })
    };
    let mut all = create_task(service());
    all.extend(
        create_task(service())
            .into_values()
            .map(|service| (VERSION3.to_owned(), service)),
    );
    all
}

/// Does what blocks in a thread.
pub(crate) async fn blocking<T: Send + 'static>(
    shim: &Arc<Shim>,
    work: impl FnOnce(&Arc<Shim>) -> std::result::Result<T, ShimError> + Send + 'static,
) -> Result<T> {
    let shim = Arc::clone(shim);
    let done = tokio::task::spawn_blocking(move || work(&shim)).await;
    let ended = |_| ShimError::Failed("a thread of the shim ended early".to_owned());
    Ok(done.map_err(ended).and_then(|done| done)?)
}

/// A task that is being made, for as long as this lives.
struct Pending {
    creating: watch::Sender<Vec<String>>,
    id: String,
}

impl Pending {
    fn begin(creating: &watch::Sender<Vec<String>>, id: &str) -> Pending {
        creating.send_modify(|ids| ids.push(id.to_owned()));
        Pending {
            creating: creating.clone(),
            id: id.to_owned(),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.creating.send_modify(|ids| {
            if let Some(at) = ids.iter().position(|id| *id == self.id) {
                ids.remove(at);
            }
        });
    }
}

fn empty() -> api::Empty {
    api::Empty::default()
}

fn value(any: MessageField<Any>) -> Vec<u8> {
    any.into_option().map(|any| any.value).unwrap_or_default()
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> Result<api::StateResponse> {
        self.made(&request.id).await;
        let process = self.shim.process(&request.id, &request.exec_id)?;
        let mut response = api::StateResponse {
            id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            bundle: process.bundle.clone(),
            pid: self.shim.pid(),
            stdin: process.files.stdin.clone(),
            stdout: process.files.stdout.clone(),
            stderr: process.files.stderr.clone(),
            terminal: process.files.terminal,
            ..Default::default()
        };
        let status = match process.status() {
            Status::Created => WireStatus::CREATED,
            Status::Running if self.shim.is_paused(&request.id) => WireStatus::PAUSED,
            Status::Running => WireStatus::RUNNING,
            Status::Stopped(code, at) => {
                response.exit_status = code;
                response.exited_at = MessageField::some(timestamp(at));
                WireStatus::STOPPED
            }
        };
        response.status = EnumOrUnknown::new(status);
        Ok(response)
    }

    async fn create(&self, _: &TtrpcContext, request: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(
                ShimError::Unsupported("a machine cannot go on from a checkpoint of a process".to_owned()).into(),
            );
        }
        let mount = |mount: containerd_shim_protos::types::mount::Mount| SnapshotMount {
            kind: mount.type_,
            source: mount.source,
            options: mount.options,
        };
        let creation = Creation {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs.into_iter().map(mount).collect(),
            files: Files {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        let pending = Pending::begin(&self.creating, &creation.id);
        let created = blocking(&self.shim, move |shim| {
            let _pending = pending;
            shim.create(&creation)
                .inspect_err(|error| shim.log.line(&format!("create {}: {error}", creation.id)))
        });
        let pid = created.await.inspect_err(|_| self.end_if_empty())?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> Result<api::StartResponse> {
        let pid = blocking(&self.shim, move |shim| {
            shim.start(&request.id, &request.exec_id).inspect_err(|error| {
                shim.log
                    .line(&format!("start {} {}: {error}", request.id, request.exec_id))
            })
        });
        Ok(api::StartResponse {
            pid: pid.await?,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> Result<api::DeleteResponse> {
        self.made(&request.id).await;
        let (code, at) = blocking(&self.shim, move |shim| shim.delete(&request.id, &request.exec_id)).await?;
        Ok(api::DeleteResponse {
            pid: self.shim.pid(),
            exit_status: code,
            exited_at: MessageField::some(timestamp(at)),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
        self.made(&request.id).await;
        let pids = blocking(&self.shim, move |shim| shim.pids(&request.id)).await?;
        let process = |pid| ProcessInfo {
            pid,
            ..Default::default()
        };
        Ok(api::PidsResponse {
            processes: pids.into_iter().map(process).collect(),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Result<api::Empty> {
        blocking(&self.shim, move |shim| shim.freeze(&request.id, true)).await?;
        Ok(empty())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Result<api::Empty> {
        blocking(&self.shim, move |shim| shim.freeze(&request.id, false)).await?;
        Ok(empty())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Result<api::Empty> {
        Err(ShimError::Unsupported("processes of a machine cannot be checkpointed".to_owned()).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
        self.made(&request.id).await;
        let kill = move |shim: &Arc<Shim>| shim.kill(&request.id, &request.exec_id, request.signal, request.all);
        blocking(&self.shim, kill).await?;
        Ok(empty())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Result<api::Empty> {
        let files = Files {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        self.shim
            .exec(&request.id, &request.exec_id, &value(request.spec), files)?;
        Ok(empty())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Result<api::Empty> {
        let resize = move |shim: &Arc<Shim>| shim.resize(&request.id, &request.exec_id, request.width, request.height);
        blocking(&self.shim, resize).await?;
        Ok(empty())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Result<api::Empty> {
        let process = self.shim.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_input();
        }
        Ok(empty())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Result<api::Empty> {
        let resources = value(request.resources);
        blocking(&self.shim, move |shim| shim.update(&request.id, &resources)).await?;
        Ok(empty())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Result<api::WaitResponse> {
        let process = self.shim.process(&request.id, &request.exec_id)?;
        let (code, at) = process.wait().await;
        Ok(api::WaitResponse {
            exit_status: code,
            exited_at: MessageField::some(timestamp(at)),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> Result<api::StatsResponse> {
        let figures = blocking(&self.shim, move |shim| shim.stats(&request.id)).await?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats::message(&figures)),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> Result<api::ConnectResponse> {
        // containerd asks for tasks that it knows; one that is not here is told by what it asks next.
        drop(request);
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.shim.pid(),
            version: "v2".to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> Result<api::Empty> {
        if request.now || self.shim.is_empty() {
            self.ends.send_replace(true);
        }
        Ok(empty())
    }
}

impl TaskService {
    /// Waits while a task is being made. A containerd that was killed and is back asks for it: that there is none would be true for a moment
    /// alone, and what is made after that nobody would know.
    async fn made(&self, id: &str) {
        let mut creating = self.creating.subscribe();
        // The sender is this very service's.
        let _ = creating.wait_for(|ids| !ids.iter().any(|pending| pending == id)).await;
    }

    /// A pod that never came to be has no task to shut down.
    fn end_if_empty(&self) {
        if self.shim.is_empty() && self.shim.pod().is_err() {
            self.ends.send_replace(true);
        }
    }
}
