//! A running Cloud Hypervisor: orders, and why a machine ended.
//!
//! Measured with v53 and `--no-shutdown`:
//!
//! | the guest | the process | vm.info | events |
//! |---|---|---|---|
//! | powers off | stays | state `Created` | `vm shutdown` |
//! | resets | stays, and starts the guest again | state `Running` | `vm rebooting`, `vm rebooted` |
//! | ends by a triple fault | exits with 0 | gone | `vm shutdown`, `vm deleted`, `vmm shutdown` |
//! | panics, with a driver for pvpanic | stays | state `Running` | `guest panic` |
//! | has a virtual CPU that KVM cannot run | exits with 0 | gone | none that tells it apart |
//!
//! The last of these is told apart by the process's log alone ([`VCPU_FAILED`]). The events and the end of the serial console are hints; what they hint at is looked up. The exit status says nothing
//! about the guest. SIGTERM from outside also ends the process with 0, and is taken for a reset.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::process_log::Log;
use crate::{AgentStream, ControlError, ExitReason, LogLines, Nic, Platform, Vm, VmEvent};

use super::client::{ApiError, Client};
use super::config::{NetConfig, RemoveDevice, ResizeDisk, SnapshotConfig};
use super::events::Event;
use super::save::Saves;

/// It needs milliseconds to go; then it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(20);
/// What its log says when a thread of a virtual CPU ends in an error or a panic: its process ends with success all the same.
const VCPU_FAILED: &str = "VCPU generated error";
/// How long a guest may take to let an interface go, as with QEMU.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks whether it has.
const UNPLUG_PAUSE: Duration = Duration::from_millis(50);
/// How long the last events may take to be read.
const LAST_HINTS: Duration = Duration::from_millis(100);
/// Agents that called and were not connected to yet.
const CALLS: usize = 4;

/// Something that may have happened.
#[derive(Debug)]
pub(super) enum Hint {
    /// An event was written.
    Event(Event),
    /// The serial console's connection ended.
    ConsoleLost,
    /// The guest's agent called.
    AgentCalled(UnixStream),
}

/// How far the machine's end has come.
#[derive(Debug)]
enum End {
    /// It runs.
    None,
    /// The guest ended, or the process will: it is still to go.
    Known(ExitReason),
    /// The process is gone.
    Over(ExitReason),
}

/// What a launch has made.
pub(super) struct Parts {
    pub(super) child: Child,
    pub(super) client: Client,
    pub(super) patience: Duration,
    pub(super) platform: Platform,
    pub(super) version: String,
    pub(super) console: UnixStream,
    pub(super) agent: Option<AgentStream>,
    pub(super) log: Log,
    pub(super) hints: mpsc::Receiver<Hint>,
    pub(super) over: watch::Sender<bool>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) saves: Option<Arc<Saves>>,
}

pub(super) struct ChVm {
    child: Child,
    pid: u32,
    client: Client,
    patience: Duration,
    platform: Platform,
    version: String,
    console: Option<UnixStream>,
    agent: Option<AgentStream>,
    calls: VecDeque<UnixStream>,
    log: Log,
    hints: mpsc::Receiver<Hint>,
    /// Tells the console's task that no other life follows.
    over: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// What is to be told before anything else.
    events: VecDeque<VmEvent>,
    end: End,
    /// The guest's kernel has said that it panicked.
    panicked: bool,
    /// Something hints at a power-off that was not looked up yet. Kept here, because looking may be interrupted.
    suspects_power_off: bool,
    quit: bool,
    saves: Option<Arc<Saves>>,
    went_on: Option<SystemTime>,
}

impl ChVm {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            pid: parts.child.id().unwrap_or_default(),
            child: parts.child,
            client: parts.client,
            patience: parts.patience,
            platform: parts.platform,
            version: parts.version,
            console: Some(parts.console),
            agent: parts.agent,
            calls: VecDeque::new(),
            log: parts.log,
            hints: parts.hints,
            over: parts.over,
            tasks: parts.tasks,
            events: VecDeque::new(),
            end: End::None,
            panicked: false,
            suspects_power_off: false,
            quit: false,
            saves: parts.saves,
            went_on: None,
        }
    }

    /// Waits for a hint or for the process's end, and looks at what happened.
    async fn one_step(&mut self) {
        if self.suspects_power_off {
            self.look_for_power_off().await;
            self.suspects_power_off = false;
            return;
        }
        tokio::select! {
            // What was written before the end is looked at before it.
            biased;
            Some(hint) = self.hints.recv() => self.take(hint),
            status = self.child.wait() => self.note_process_end(status.ok()).await,
        }
    }

    fn take(&mut self, hint: Hint) {
        match hint {
            Hint::Event(event) if event.is_panic() && !self.panicked => {
                self.panicked = true;
                self.end = End::Known(ExitReason::GuestPanic);
                self.events.push_back(VmEvent::Panicked);
            }
            Hint::Event(event) if event.is("vm", "rebooted") => match self.platform {
                Platform::Pc => self.events.push_back(VmEvent::Rebooted),
                Platform::Lean => self.end = End::Known(ExitReason::GuestReset),
            },
            Hint::Event(event) if event.is("vm", "shutdown") => self.suspects_power_off = true,
            Hint::ConsoleLost => self.suspects_power_off = true,
            Hint::Event(_) => {}
            Hint::AgentCalled(stream) => {
                if self.calls.len() == CALLS {
                    self.calls.pop_front();
                }
                self.calls.push_back(stream);
                self.events.push_back(VmEvent::AgentPort { is_open: true });
            }
        }
    }

    /// Whether the guest has powered off. Nothing changes when that cannot be told: the process's end says more then.
    async fn look_for_power_off(&mut self) {
        if let Ok(info) = self.client.get("vm.info", self.patience).await
            && matches!(info["state"].as_str(), Some("Created" | "Shutdown"))
        {
            self.end = End::Known(ExitReason::GuestShutdown);
        }
    }

    /// Lets the process go, for a guest that has ended, and reaps it.
    async fn wind_up(&mut self, reason: ExitReason) {
        // Its death is what counts, not its answer.
        let _ = self.client.put("vmm.shutdown", QUIT_TIMEOUT).await;
        if tokio::time::timeout(QUIT_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        self.close(reason);
    }

    async fn note_process_end(&mut self, status: Option<ExitStatus>) {
        // Its last words may still be on their way: a panic that ended in a triple fault.
        while let Ok(Some(hint)) = tokio::time::timeout(LAST_HINTS, self.hints.recv()).await {
            if !matches!(hint, Hint::AgentCalled(_)) {
                self.take(hint);
            }
        }
        let reason = match status {
            Some(status) if status.success() && self.panicked => ExitReason::GuestPanic,
            Some(status) if status.success() && self.quit => ExitReason::HostQuit,
            Some(status) if status.success() => match self.log.last_lines().await {
                lines if lines.iter().any(|line| line.contains(VCPU_FAILED)) => ExitReason::Crashed {
                    status: status.to_string(),
                    last_stderr_lines: lines,
                },
                _ => ExitReason::GuestReset,
            },
            other => self.log.reason_of(other).await,
        };
        self.close(reason);
    }

    fn close(&mut self, reason: ExitReason) {
        self.end = End::Over(reason);
        let _ = self.over.send(true); // the task may be gone
        self.hints.close();
        // The console's task, the first, ends by itself once it has passed on everything.
        self.tasks.drain(1..).for_each(|task| task.abort());
        // Whoever waits for a call of the agent learns that there will be none.
        self.calls.clear();
    }

    fn require_running(&self) -> Result<(), ControlError> {
        match self.end {
            End::None => Ok(()),
            _ => Err(ControlError::Gone),
        }
    }

    async fn order(&mut self, route: &str) -> Result<(), ControlError> {
        self.require_running()?;
        let done = self.client.put(route, self.patience).await;
        done.map(drop).map_err(|error| error.of(route))
    }

    async fn order_with(&mut self, route: &str, body: &(impl Serialize + Sync)) -> Result<(), ControlError> {
        self.require_running()?;
        let done = self.client.put_with(route, body, &[], self.patience).await;
        done.map(drop).map_err(|error| error.of(route))
    }

    /// Pauses or resumes. When that is refused, it may be so already, which is as good (QEMU answers so).
    async fn switch(&mut self, route: &str, wanted: &str, event: VmEvent) -> Result<(), ControlError> {
        let done = self.order(route).await;
        if let Err(error @ ControlError::Refused { .. }) = done {
            let info = self
                .client
                .get("vm.info", self.patience)
                .await
                .map_err(|e| e.of("vm.info"))?;
            return match info["state"].as_str() {
                Some(state) if state == wanted => Ok(()),
                _ => Err(error),
            };
        }
        done?;
        self.events.push_back(event);
        Ok(())
    }
}

impl Drop for ChVm {
    fn drop(&mut self) {
        let _ = self.over.send(true);
        self.tasks.drain(1..).for_each(|task| task.abort());
    }
}

#[async_trait]
impl Vm for ChVm {
    async fn next_event(&mut self) -> VmEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            match &self.end {
                End::Over(reason) => return VmEvent::Exited(reason.clone()),
                End::Known(reason) => {
                    let reason = reason.clone();
                    self.wind_up(reason).await;
                }
                End::None => self.one_step().await,
            }
        }
    }

    async fn save(&mut self, state: OwnedFd) -> Result<SystemTime, ControlError> {
        let refused = |reason: String| ControlError::Refused {
            command: "vm.snapshot".to_owned(),
            reason,
        };
        let Some(saves) = self.saves.clone() else {
            return Err(refused("the machine was not built to be saved".to_owned()));
        };
        self.require_running()?;
        zmachine_sys::process::allow_file_size(self.pid, saves.largest())?;
        // What was not moved away when it was saved last.
        saves.clear()?;
        self.order("vm.pause").await?;
        let stopped = SystemTime::now();
        let body = SnapshotConfig {
            destination_url: saves.url(),
        };
        let saved = self.client.put_with("vm.snapshot", &body, &[], saves.patience()).await;
        saved.map_err(|error| error.of("vm.snapshot"))?;
        let packed = tokio::task::spawn_blocking(move || saves.pack(state)).await;
        let packed = packed.unwrap_or_else(|error| Err(io::Error::other(error)));
        packed.map_err(|error| refused(format!("what it has written cannot be used: {error}")))?;
        Ok(stopped)
    }

    async fn go_on(&mut self) -> Result<(), ControlError> {
        self.order("vm.resume").await?;
        self.went_on = Some(SystemTime::now());
        Ok(())
    }

    fn went_on_at(&self) -> Option<SystemTime> {
        self.went_on
    }

    async fn power_button(&mut self) -> Result<(), ControlError> {
        self.order("vm.power-button").await
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        self.switch("vm.pause", "Paused", VmEvent::Paused).await
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        self.switch("vm.resume", "Running", VmEvent::Resumed).await
    }

    async fn resize_disk(&mut self, id: &str, bytes: u64) -> Result<(), ControlError> {
        // It was started with a limit that fits the disks it had then.
        zmachine_sys::process::allow_file_size(self.pid, bytes)?;
        let body = ResizeDisk {
            id: id.to_owned(),
            desired_size: bytes,
        };
        self.order_with("vm.resize-disk", &body).await
    }

    async fn add_nic(&mut self, nic: &Nic, tap: OwnedFd) -> Result<(), ControlError> {
        self.require_running()?;
        let config = NetConfig::new(nic);
        let added = self
            .client
            .put_with("vm.add-net", &config, &[tap.as_fd()], self.patience)
            .await;
        added.map(drop).map_err(|error| error.of("vm.add-net"))
    }

    /// Asks the guest to let the interface go, and waits until it has: until then its tap is in use, and its id taken.
    async fn remove_nic(&mut self, id: &str) -> Result<(), ControlError> {
        let body = RemoveDevice { id: id.to_owned() };
        self.order_with("vm.remove-device", &body).await?;
        let patience = UNPLUG_TIMEOUT.min(self.patience);
        let deadline = Instant::now() + patience;
        loop {
            let info = self.client.get("vm.info", self.patience).await;
            let info = info.map_err(|error| error.of("vm.info"))?;
            if info["device_tree"].get(id).is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ControlError::Refused {
                    command: "vm.remove-device".to_owned(),
                    reason: format!(
                        "the guest has not let the interface '{id}' go within {} s",
                        patience.as_secs()
                    ),
                });
            }
            tokio::time::sleep(UNPLUG_PAUSE).await;
        }
    }

    async fn quit(&mut self) -> Result<(), ControlError> {
        self.require_running()?;
        self.quit = true;
        match self.client.put("vmm.shutdown", self.patience).await {
            // It may be gone before its answer is read.
            Ok(_) | Err(ApiError::Gone) => Ok(()),
            Err(error) => Err(error.of("vmm.shutdown")),
        }
    }

    fn kill(&mut self) {
        let _ = self.child.start_kill(); // fails only when it is gone already
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn take_agent(&mut self) -> Option<AgentStream> {
        self.agent.take()
    }

    async fn connect_agent(&mut self) -> io::Result<UnixStream> {
        // The last one that called: those before it have been replaced in the guest.
        let newest = self.calls.pop_back();
        self.calls.clear();
        newest.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    fn take_log(&mut self) -> Option<LogLines> {
        self.log.lines.take()
    }
}
