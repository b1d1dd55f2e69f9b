//! A driver without a hypervisor, for the tests of the crates above: the test plays the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};

use crate::{
    AgentStream, ControlError, Driver, ExitReason, LaunchError, LogLines, Nic, Resources, RunDir, Unsupported, Vm,
    VmEvent, VmSpec,
};

/// A driver whose machines do what the test says. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Fake(Arc<Launches>);

#[derive(Debug, Default)]
struct Launches {
    guests: Mutex<Vec<Guest>>,
    /// There is one more.
    more: Notify,
    /// How many were begun.
    begun: AtomicUsize,
    /// A launch never comes to an end.
    hang: AtomicBool,
}

/// The test's end of a machine.
#[derive(Debug)]
pub struct Guest {
    /// What was launched.
    pub spec: VmSpec,
    /// Makes things happen to the machine; it exits with [`ExitReason::GuestShutdown`] when this is dropped.
    pub events: mpsc::UnboundedSender<VmEvent>,
    /// The orders the machine was given: `power_button`, `resize_disk`, `pause`, `resume`, `quit`, `kill`.
    pub orders: Arc<Mutex<Vec<&'static str>>>,
    /// While this is set the hypervisor hangs: it takes orders and does nothing, not even go.
    pub hangs: Arc<AtomicBool>,
    /// The guest's end of the agent's byte stream.
    pub agent: UnixStream,
    /// The guest's end of the console.
    pub console: UnixStream,
}

impl Fake {
    /// The machine that was launched last and not asked for yet.
    pub fn guest(&self) -> Option<Guest> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Waits for a machine to be launched.
    pub async fn launched(&self) -> Guest {
        loop {
            if let Some(guest) = self.guest() {
                return guest;
            }
            self.0.more.notified().await;
        }
    }

    /// How many launches were begun.
    pub fn launches(&self) -> usize {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// From now on no launch comes to an end.
    pub fn hang_at_launch(&self) {
        self.0.hang.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn supports(&self, _: &VmSpec) -> Result<(), Unsupported> {
        Ok(())
    }

    async fn launch(&self, vm: &VmSpec, _: Resources, _: &RunDir) -> Result<Box<dyn Vm>, LaunchError> {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        if self.0.hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let channel = |what| move |source| LaunchError::Channel { what, source };
        let (our_agent, agent) = UnixStream::pair().map_err(channel("agent channel"))?;
        let (our_console, console) = UnixStream::pair().map_err(channel("console"))?;
        let (events, incoming) = mpsc::unbounded_channel();
        let orders = Arc::new(Mutex::new(Vec::new()));
        let hangs = Arc::new(AtomicBool::new(false));
        let own = FakeVm {
            incoming,
            events: events.downgrade(),
            orders: orders.clone(),
            hangs: hangs.clone(),
            agent: Some(our_agent),
            console: Some(our_console),
            exited: None,
        };
        let guest = Guest {
            spec: vm.clone(),
            events,
            orders,
            hangs,
            agent,
            console,
        };
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner).push(guest);
        self.0.more.notify_one();
        Ok(Box::new(own))
    }
}

struct FakeVm {
    incoming: mpsc::UnboundedReceiver<VmEvent>,
    events: mpsc::WeakUnboundedSender<VmEvent>,
    orders: Arc<Mutex<Vec<&'static str>>>,
    hangs: Arc<AtomicBool>,
    agent: Option<UnixStream>,
    console: Option<UnixStream>,
    exited: Option<ExitReason>,
}

impl FakeVm {
    /// An order that is answered, unless the hypervisor hangs.
    async fn answered(&self, order: &'static str, event: Option<VmEvent>) -> Result<(), ControlError> {
        let done = self.order(order, event);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        done
    }

    fn order(&self, order: &'static str, event: Option<VmEvent>) -> Result<(), ControlError> {
        if self.exited.is_some() {
            return Err(ControlError::Gone);
        }
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        if self.hangs.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let (Some(event), Some(events)) = (event, self.events.upgrade()) {
            let _ = events.send(event); // the receiver is ours
        }
        Ok(())
    }
}

#[async_trait]
impl Vm for FakeVm {
    async fn next_event(&mut self) -> VmEvent {
        if self.exited.is_none() {
            match self.incoming.recv().await {
                Some(VmEvent::Exited(reason)) => self.exited = Some(reason),
                Some(other) => return other,
                None => self.exited = Some(ExitReason::GuestShutdown),
            }
        }
        VmEvent::Exited(self.exited.clone().unwrap_or(ExitReason::GuestShutdown))
    }

    async fn power_button(&mut self) -> Result<(), ControlError> {
        self.answered("power_button", None).await
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        self.answered("pause", Some(VmEvent::Paused)).await
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        self.answered("resume", Some(VmEvent::Resumed)).await
    }

    async fn resize_disk(&mut self, _id: &str, _bytes: u64) -> Result<(), ControlError> {
        self.answered("resize_disk", None).await
    }

    async fn add_nic(&mut self, _nic: &Nic, _tap: OwnedFd) -> Result<(), ControlError> {
        self.answered("add_nic", None).await
    }

    async fn remove_nic(&mut self, _id: &str) -> Result<(), ControlError> {
        self.answered("remove_nic", None).await
    }

    async fn quit(&mut self) -> Result<(), ControlError> {
        self.answered("quit", Some(VmEvent::Exited(ExitReason::HostQuit))).await
    }

    fn kill(&mut self) {
        let _ = self.order("kill", Some(VmEvent::Exited(ExitReason::HostSignal(9)))); // gone already is fine
    }

    fn pid(&self) -> u32 {
        // No process of Linux has this number; 0 would mean the caller itself in some places.
        i32::MAX.unsigned_abs()
    }

    fn version(&self) -> String {
        "fake 1.0".to_owned()
    }

    fn take_agent(&mut self) -> Option<AgentStream> {
        self.agent.take().map(AgentStream::Connected)
    }

    async fn connect_agent(&mut self) -> io::Result<UnixStream> {
        self.agent.take().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    fn take_log(&mut self) -> Option<LogLines> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_test_plays_the_guest() {
        let fake = Fake::default();
        let spec = serde_json::from_str(include_str!("../tests/golden/vmspec-v1.json")).unwrap();
        let mut vm = fake
            .launch(&spec, Resources::default(), &RunDir::new("/"))
            .await
            .unwrap();
        let guest = fake.guest().unwrap();
        vm.pause().await.unwrap();
        assert_eq!(vm.next_event().await, VmEvent::Paused);
        guest.events.send(VmEvent::Panicked).unwrap();
        assert_eq!(vm.next_event().await, VmEvent::Panicked);
        drop(guest.events);
        assert_eq!(vm.next_event().await, VmEvent::Exited(ExitReason::GuestShutdown));
        assert!(matches!(vm.resume().await, Err(ControlError::Gone)));
    }
}
