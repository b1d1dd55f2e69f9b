//! What reaches the monitor's loop, and what must never wait there.
//!
//! # Invariants
//! The loop never waits for a guest: a request to one is a task with a deadline ([`super::guest`]). What it does wait for (the
//! hypervisor, the host's network, a disk that is made) it waits for through [`Inbox::unless_ended`], which a command to end the
//! machine cuts short. So `kill`, `rm -f` and SIGTERM work whatever a guest or a helper does.

use std::collections::VecDeque;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use zmachine_agent_client::session::SessionError;
use zmachine_agent_protocol::ExitStatus;
use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Class, Failure, Health};

use super::change::Answered;
use super::frozen::Frozen;

/// Commands that may wait while something else is under way; those beyond are refused.
const WAITING: usize = 256;

/// What reaches the monitor's loop from its other tasks.
#[derive(Debug)]
pub(super) enum Event {
    /// A command of a client, and where its answer goes.
    Command(Request, oneshot::Sender<Reply>),
    /// The host wants the machine to end: SIGTERM to this process.
    Terminate,
    /// The entrypoint ended, or the channel to it did.
    EntryEnded(Result<ExitStatus, SessionError>),
    /// The guest of a VM is up: its agent answers, or somebody could log in.
    GuestUp,
    /// A health check was made: how the machine is now.
    Probed(Box<Health>),
    /// The entrypoint says that it is ready.
    EntryReady,
    /// The guest's agent has set an interface up or given it up, or has not.
    NetworkAnswered(Answered),
    /// The guest stands still, so that the machine can be saved, or does not.
    Frozen(Box<Frozen>),
}

impl Event {
    /// Nothing that is under way is worth finishing before it.
    fn ends_the_run(&self) -> bool {
        matches!(self, Event::Command(Request::Kill, _) | Event::Terminate)
    }

    /// The same while the machine starts: there is nothing yet to stop in an orderly way.
    fn ends_the_start(&self) -> bool {
        self.ends_the_run() || matches!(self, Event::Command(Request::Stop { .. }, _))
    }
}

/// Events in their order.
pub(super) struct Inbox {
    events: mpsc::Receiver<Event>,
    terminate: Signal,
    waiting: VecDeque<Event>,
}

/// Something was given up because the machine is to end; what wants that is the next event.
#[derive(Debug)]
pub(super) struct Cut;

impl Inbox {
    /// An empty one, and where events come from. SIGTERM to this process is one from here on.
    ///
    /// # Errors
    /// When the signal cannot be taken.
    pub(super) fn new() -> io::Result<(mpsc::Sender<Event>, Inbox)> {
        let (sender, events) = mpsc::channel(64);
        let inbox = Inbox {
            events,
            terminate: signal(SignalKind::terminate())?,
            waiting: VecDeque::new(),
        };
        Ok((sender, inbox))
    }

    /// A run is over: what its tasks had to say concerns no other one.
    pub(super) fn end_of_run(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.waiting.push_back(event);
        }
        self.waiting
            .retain(|event| matches!(event, Event::Command(..) | Event::Terminate));
    }

    /// The next event. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Event {
        match self.waiting.pop_front() {
            Some(event) => event,
            None => self.arriving().await,
        }
    }

    /// The next event that arrives, whatever waits already.
    async fn arriving(&mut self) -> Event {
        tokio::select! {
            Some(event) = self.events.recv() => event,
            _ = self.terminate.recv() => Event::Terminate,
        }
    }

    /// Does `work` unless the machine is to end at once; other events wait meanwhile.
    ///
    /// # Errors
    /// [`Cut`]; the work is dropped where it was.
    pub(super) async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        self.unless(Event::ends_the_run, work).await
    }

    /// [`Inbox::unless_ended`] for a step of a start, which a request to stop cuts as well.
    ///
    /// # Errors
    /// [`Cut`]; the work is dropped where it was.
    pub(super) async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        self.unless(Event::ends_the_start, work).await
    }

    async fn unless<T>(&mut self, cuts: fn(&Event) -> bool, work: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::pin!(work);
        loop {
            if let Some(at) = self.waiting.iter().position(cuts) {
                let event = self.waiting.remove(at);
                event.into_iter().for_each(|event| self.waiting.push_front(event));
                return Err(Cut);
            }
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                event = self.arriving() => self.hold(event, cuts),
            }
        }
    }

    fn hold(&mut self, event: Event, cuts: fn(&Event) -> bool) {
        let is_too_much = self.waiting.len() >= WAITING && !cuts(&event);
        match event {
            Event::Command(_, answer) if is_too_much => {
                let failure = Failure::new(Class::Conflict, "the machine is busy with earlier commands");
                let _ = answer.send(Reply::Failed(failure.hint("try again in a moment")));
            }
            event => self.waiting.push_back(event),
        }
    }
}
