//! A running QEMU: orders, and the meaning of its events.
//!
//! Measured with QEMU 7.2: its exit status is 0 however the guest ended, so the reason comes from `SHUTDOWN`,
//! `GUEST_PANICKED` and, when there is neither, from how the process died. With `-no-shutdown` QEMU stays after the guest
//! ended; it is told to quit then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::Child;

use crate::process_log::Log;
use crate::{AgentStream, ControlError, ExitReason, LaterDisk, LaterFile, LogLines, Nic, Vm, VmEvent};

use super::arguments::{AGENT_DEVICE, HOTPLUG_SLOTS, later_disk, later_file, later_nic};
use super::qmp::{Event, Qmp};
use super::save;

/// QEMU needs milliseconds to quit; then it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a guest may take to let a device go.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(10);

const SIGTERM: i32 = 15;

/// How far the machine's end has come.
#[derive(Debug)]
enum End {
    /// It runs.
    None,
    /// The guest ended, or QEMU said that it will: the process is still to go.
    Known(ExitReason),
    /// The process is gone.
    Over(ExitReason),
}

#[derive(Debug)]
pub(super) struct QemuVm {
    child: Child,
    pid: u32,
    qmp: Qmp,
    /// The control channel broke or ended: only the process itself can tell more.
    deaf: bool,
    console: Option<UnixStream>,
    agent: Option<UnixStream>,
    agent_socket: PathBuf,
    memory: Option<OwnedFd>,
    went_on_at: Option<SystemTime>,
    log: Log,
    end: End,
    /// The interface in each of its slots, the first of [`HOTPLUG_SLOTS`].
    slots: Vec<Option<String>>,
}

impl QemuVm {
    /// `agent` is the stream that is there already, and where others can be connected.
    pub(super) fn new(
        child: Child,
        qmp: Qmp,
        console: UnixStream,
        (agent, agent_socket): (Option<UnixStream>, PathBuf),
        log: Log,
    ) -> Self {
        let pid = child.id().unwrap_or_default();
        let console = Some(console);
        Self {
            child,
            pid,
            qmp,
            deaf: false,
            console,
            agent,
            agent_socket,
            memory: None,
            went_on_at: None,
            log,
            end: End::None,
            slots: Vec::new(),
        }
    }

    /// `memory` is the guest's, and the machine can be saved.
    pub(super) fn with_memory(self, memory: Option<OwnedFd>) -> Self {
        Self { memory, ..self }
    }

    /// It has so many slots for interfaces that come later.
    pub(super) fn with_slots(self, count: usize) -> Self {
        Self {
            slots: vec![None; count],
            ..self
        }
    }

    /// What an event means; `None` when it is of no interest.
    fn understand(&mut self, event: &Event) -> Option<VmEvent> {
        let text = |key: &str| {
            event
                .data
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let ending = !matches!(self.end, End::None);
        match event.name.as_str() {
            "SHUTDOWN" if !ending => {
                self.end = End::Known(shutdown_reason(&text("reason")));
                None
            }
            "GUEST_PANICKED" if !ending => {
                self.end = End::Known(ExitReason::GuestPanic);
                Some(VmEvent::Panicked)
            }
            "RESET" if !ending && event.data.get("guest").and_then(Value::as_bool) == Some(true) => {
                Some(VmEvent::Rebooted)
            }
            "VSERPORT_CHANGE" if text("id") == AGENT_DEVICE => Some(VmEvent::AgentPort {
                is_open: event.data.get("open").and_then(Value::as_bool).unwrap_or_default(),
            }),
            // A machine that ends is stopped too, but that is not a pause.
            "STOP" if !ending => Some(VmEvent::Paused),
            "RESUME" if !ending => Some(VmEvent::Resumed),
            "BLOCK_IO_ERROR" => Some(VmEvent::DiskError {
                disk: text("node-name"),
                operation: text("operation"),
                reason: text("reason"),
                no_space: event.data.get("nospace").and_then(Value::as_bool).unwrap_or_default(),
            }),
            _ => None,
        }
    }

    /// Waits for an event or for the process; notes what ends the machine.
    async fn one_step(&mut self) -> Option<VmEvent> {
        if self.deaf {
            let status = self.child.wait().await;
            self.note_process_end(status.ok()).await;
            return None;
        }
        match self.qmp.next_event().await {
            Ok(event) => self.understand(&event),
            Err(_) => {
                self.deaf = true;
                None
            }
        }
    }

    /// Lets QEMU quit, for a guest that has ended, and reaps it.
    async fn wind_up(&mut self, reason: ExitReason) {
        if !self.deaf
            && matches!(
                reason,
                ExitReason::GuestShutdown | ExitReason::GuestReset | ExitReason::GuestPanic
            )
        {
            let _ = self.qmp.execute("quit", json!({})).await; // its death is what counts, see below
        }
        if tokio::time::timeout(QUIT_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        self.deaf = true;
        let reason = match reason {
            ExitReason::HostSignal(_) => ExitReason::HostSignal(signal_in(&self.log.last_lines().await)),
            other => other,
        };
        self.end = End::Over(reason);
    }

    /// The process ended without having said why.
    async fn note_process_end(&mut self, status: Option<ExitStatus>) {
        self.end = End::Over(self.log.reason_of(status).await);
    }

    async fn order(&mut self, command: &str, arguments: Value) -> Result<Value, ControlError> {
        if self.deaf || !matches!(self.end, End::None) {
            return Err(ControlError::Gone);
        }
        self.qmp.execute(command, arguments).await
    }
}

#[async_trait]
impl Vm for QemuVm {
    async fn next_event(&mut self) -> VmEvent {
        loop {
            match &self.end {
                End::Over(reason) => return VmEvent::Exited(reason.clone()),
                End::Known(reason) => {
                    let reason = reason.clone();
                    self.wind_up(reason).await;
                }
                End::None => {
                    if let Some(event) = self.one_step().await {
                        return event;
                    }
                }
            }
        }
    }

    async fn power_button(&mut self) -> Result<(), ControlError> {
        self.order("system_powerdown", json!({})).await.map(drop)
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        self.order("stop", json!({})).await.map(drop)
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        self.order("cont", json!({})).await.map(drop)
    }

    async fn save(&mut self, state: OwnedFd) -> Result<SystemTime, ControlError> {
        if self.deaf || !matches!(self.end, End::None) {
            return Err(ControlError::Gone);
        }
        save::save(&mut self.qmp, state).await
    }

    async fn go_on(&mut self) -> Result<(), ControlError> {
        if self.deaf || !matches!(self.end, End::None) {
            return Err(ControlError::Gone);
        }
        self.went_on_at = Some(save::go_on(&mut self.qmp).await?);
        Ok(())
    }

    fn went_on_at(&self) -> Option<SystemTime> {
        self.went_on_at
    }

    fn memory(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(AsFd::as_fd)
    }

    async fn resize_disk(&mut self, id: &str, bytes: u64) -> Result<(), ControlError> {
        // It was started with a limit that fits the disks it had then.
        zmachine_sys::process::allow_file_size(self.pid, bytes)?;
        let arguments = json!({ "node-name": id, "size": bytes });
        self.order("block_resize", arguments).await.map(drop)
    }

    async fn add_disk(&mut self, disk: &LaterDisk) -> Result<(), ControlError> {
        let (channel, device) = later_disk(disk);
        self.order("chardev-add", channel).await?;
        if let Err(error) = self.order("device_add", device).await {
            let channel = json!({ "id": format!("chr-{}", disk.id) });
            let _ = self.order("chardev-remove", channel).await;
            return Err(error);
        }
        Ok(())
    }

    async fn add_file(&mut self, file: &LaterFile, opened: OwnedFd) -> Result<(), ControlError> {
        zmachine_sys::process::allow_file_size(self.pid, file.bytes)?;
        if self.deaf || !matches!(self.end, End::None) {
            return Err(ControlError::Gone);
        }
        let set = self.qmp.add_descriptor(opened).await?;
        let (node, device) = later_file(file, set);
        let id = file.id();
        let added = match self.order("blockdev-add", node).await {
            Ok(_) => match self.order("device_add", device).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    let _ = self.order("blockdev-del", json!({ "node-name": id })).await;
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        // QEMU has opened it by now, or will not: a set goes with the last one who has it open.
        let _ = self.order("remove-fd", json!({ "fdset-id": set })).await;
        added
    }

    async fn add_nic(&mut self, nic: &Nic, tap: OwnedFd) -> Result<(), ControlError> {
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return Err(ControlError::Refused {
                command: "device_add".to_owned(),
                reason: format!(
                    "the {} slots for interfaces that come later are taken",
                    self.slots.len()
                ),
            });
        };
        if self.deaf || !matches!(self.end, End::None) {
            return Err(ControlError::Gone);
        }
        self.qmp.pass_descriptor(&nic.id, tap).await?;
        let backend = json!({"type": "tap", "id": nic.id, "fd": nic.id, "vhost": false});
        self.order("netdev_add", backend).await?;
        if let Err(error) = self.order("device_add", later_nic(nic, HOTPLUG_SLOTS[slot])).await {
            let _ = self.order("netdev_del", json!({ "id": nic.id })).await;
            return Err(error);
        }
        self.slots[slot] = Some(nic.id.clone());
        Ok(())
    }

    async fn remove_nic(&mut self, id: &str) -> Result<(), ControlError> {
        let slot = self.slots.iter().position(|slot| slot.as_deref() == Some(id));
        if let Some(slot) = slot {
            let device = format!("dev-{id}");
            self.order("device_del", json!({ "id": device })).await?;
            let is_gone = |event: &Event| {
                event.name == "DEVICE_DELETED" && event.data.get("device").and_then(Value::as_str) == Some(&device)
            };
            // The guest has to let it go. One that does not keeps it, without a link, and the slot.
            if self.qmp.await_event(is_gone, UNPLUG_TIMEOUT).await?.is_some() {
                self.slots[slot] = None;
            }
        }
        self.order("netdev_del", json!({ "id": id })).await.map(drop)
    }

    async fn quit(&mut self) -> Result<(), ControlError> {
        match self.order("quit", json!({})).await {
            // It may be gone before its answer is read.
            Ok(_) | Err(ControlError::Gone) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn kill(&mut self) {
        let _ = self.child.start_kill(); // fails only when it is gone already
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn version(&self) -> String {
        self.qmp.version().to_owned()
    }

    fn take_agent(&mut self) -> Option<AgentStream> {
        self.agent.take().map(AgentStream::Connected)
    }

    async fn connect_agent(&mut self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.agent_socket).await
    }

    fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    fn take_log(&mut self) -> Option<LogLines> {
        self.log.lines.take()
    }
}

/// What `SHUTDOWN`'s `reason` means (QAPI type `ShutdownCause`).
fn shutdown_reason(cause: &str) -> ExitReason {
    match cause {
        "guest-shutdown" => ExitReason::GuestShutdown,
        "guest-reset" | "subsystem-reset" | "host-qmp-system-reset" => ExitReason::GuestReset,
        "guest-panic" => ExitReason::GuestPanic,
        "host-signal" => ExitReason::HostSignal(SIGTERM),
        "host-qmp-quit" | "host-ui" => ExitReason::HostQuit,
        other => ExitReason::Crashed {
            status: other.to_owned(),
            last_stderr_lines: Vec::new(),
        },
    }
}

/// The number in `terminating on signal 15 from pid 1`, which QEMU prints when a signal makes it quit.
fn signal_in(lines: &[String]) -> i32 {
    let number = |line: &String| {
        line.split_once("terminating on signal ")?
            .1
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    lines.iter().rev().find_map(number).unwrap_or(SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_of_qemu_has_a_meaning() {
        assert_eq!(shutdown_reason("guest-shutdown"), ExitReason::GuestShutdown);
        assert_eq!(shutdown_reason("guest-reset"), ExitReason::GuestReset);
        assert_eq!(shutdown_reason("host-qmp-quit"), ExitReason::HostQuit);
        assert!(matches!(shutdown_reason("host-error"), ExitReason::Crashed { .. }));
    }

    #[test]
    fn the_signal_is_read_from_qemus_words() {
        assert_eq!(signal_in(&["terminating on signal 2 from pid 77 (sh)".into()]), 2);
        assert_eq!(signal_in(&[]), SIGTERM);
    }
}
