//! A machine that stands by: its guest is there as its template was, before an entrypoint, and waits to be told who it is.
//!
//! It is nobody's, and ends by itself when nobody takes it. Who takes it writes into its folder what it is from then on (spec and plan,
//! under the catalog's lock), and claims it on the control socket. It is started as that machine then, with the hypervisor, the rootfs server
//! and the interfaces that it has; its guest hears who it is as every copy of a template does.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use zmachine_agent_client::clock::GuestClock;
use zmachine_agent_client::session::{FrameReader, FrameWriter, Session, SessionError};
use zmachine_agent_protocol::{Frame, Rehearsal, Request as AgentRequest};
use zmachine_network::{Made, Resource as NetworkResource};
use zmachine_plan::Plan;
use zmachine_spec::control::{Reply, Report, Request};
use zmachine_spec::{Class, Exit, Failure, Home};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;
use zmachine_sys::file;

use super::agent_start::{Interrupt, RootfsEnd};
use super::console;
use super::context::{Monitor, Outcome, at};
use super::inbox::{Cut, Event, Inbox};
use super::launch::{in_thread, joined};
use super::output::ReportPipe;
use super::restored::Restoring;
use super::run::end_with;
use super::running::Running;

/// How long a guest is kept that nobody takes: so many rounds of so long.
const ROUNDS: u32 = 9;
const ROUND: Duration = Duration::from_secs(60);

/// How long the guest may take to answer.
const ANSWER: Duration = Duration::from_secs(120);

/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(5);

/// A machine that was taken.
pub(super) struct Stood {
    pub(super) restoring: Restoring,
    pub(super) running: Running,
    pub(super) session: Session,
}

/// Who takes it, and how.
struct Claim {
    stream: UnixStream,
    wait_for_owner: bool,
    ends_with_client: bool,
}

impl Monitor {
    /// Brings the guest up and waits until somebody takes the machine.
    ///
    /// # Errors
    /// How it ended, when nobody did.
    pub(super) async fn stand_by(
        &mut self,
        plan: &mut Plan,
        console: Option<console::Waiting>,
        listener: &UnixListener,
        inbox: &mut Inbox,
    ) -> Result<Stood, Outcome> {
        let without = || Failure::new(Class::Failed, "a machine that stands by begins from a template");
        let restore = self.take_restore(plan).and_then(|restore| restore.ok_or_else(without));
        let (mut restoring, saved) = restore.map_err(|failure| Err(at("snapshot")(failure)))?;
        let rehearsal = restoring.rehearsal(plan).ok_or_else(without);
        let rehearsal = rehearsal.map_err(|failure| Err(at("standby")(failure)))?;
        let console = console.unwrap_or_else(|| console::new().1);
        let mut running = match inbox.unless_stopped(self.launch(plan, console, Some(saved))).await {
            Ok(launched) => launched.map_err(Err)?,
            Err(Cut) => return Err(Ok(self.cut_short(inbox).await)),
        };
        let taken = match self
            .wait_to_be_taken(rehearsal, &mut restoring, &mut running, listener, inbox)
            .await
        {
            Ok((session, claim)) => match self.become_what_it_is(plan, &mut running, claim).await {
                Ok(()) => Ok(session),
                Err(failure) => Err(Err(at("standby")(failure))),
            },
            Err(outcome) => Err(outcome),
        };
        match taken {
            Ok(session) => Ok(Stood {
                restoring,
                running,
                session,
            }),
            Err(outcome) => {
                running.halt().await;
                self.last_rootfs_lines(&mut running.rootfs).await;
                running.end().await;
                Err(outcome)
            }
        }
    }

    async fn wait_to_be_taken(
        &mut self,
        rehearsal: Rehearsal,
        restoring: &mut Restoring,
        running: &mut Running,
        listener: &UnixListener,
        inbox: &mut Inbox,
    ) -> Result<(Session, Claim), Outcome> {
        let session = restoring.session(running).map_err(Err)?;
        let asked = async {
            let done = session.ask(&AgentRequest::Rehearse(Box::new(rehearsal))).await;
            restoring.seen = GuestClock::read(&session).await;
            done
        };
        match self.during(running, inbox, RootfsEnd::IsMended, ANSWER, asked).await {
            Ok(Ok(_)) => {}
            // It waits all the same, and takes a little longer when it is taken.
            Ok(Err(SessionError::Agent(error))) => {
                let text = format!("what is to come was not rehearsed: {}", error.message);
                self.log.note(Source::Monitor, &text);
            }
            Ok(Err(error)) => return Err(Err(self.cut_off(running, error, "standby").await)),
            Err(interrupt) => return Err(self.not_taken(interrupt)),
        }
        catalog::save_state(&self.machine.dir, &self.machine.state).map_err(|e| Err(at("standby")(e)))?;
        std::fs::write(self.home.standby_mark(&self.machine.id), []).map_err(|e| Err(at("standby")(e)))?;
        self.report.send(&Report::Ready);
        self.report.close();
        let mut is_taken = false;
        let mut rounds = 0;
        let events = self.events.clone();
        // Over all rounds: a claim on its way is not lost between two.
        let mut claimed = pin!(claimed(listener, &events));
        loop {
            let round = self.during(running, inbox, RootfsEnd::IsMended, ROUND, claimed.as_mut());
            match round.await {
                Ok(claim) => return Ok((session, claim)),
                Err(Interrupt::Timeout(_)) if rounds < ROUNDS => {
                    rounds += 1;
                    // The guest counts its time a little faster or slower than this host.
                    restoring.seen = GuestClock::read(&session).await.or(restoring.seen);
                    continue;
                }
                Err(Interrupt::Timeout(_)) => rounds = 0,
                Err(interrupt) => return Err(self.not_taken(interrupt)),
            }
            let (home, id) = (self.home.clone(), self.machine.id.clone());
            let given_up = joined(in_thread(move || give_up(&home, &id))).await;
            match given_up {
                // It is about to be claimed. Who took it and did not has all of that time once more.
                Ok(false) if !is_taken => is_taken = true,
                Ok(_) => return Err(Ok(Exit::Killed)),
                Err(failure) => return Err(Err(at("standby")(failure))),
            }
        }
    }

    fn not_taken(&self, interrupt: Interrupt) -> Outcome {
        match self.interrupted(interrupt, "standby") {
            Ok(exit) => Ok(exit.unwrap_or(Exit::Killed)),
            Err(failed) => Err(failed),
        }
    }

    /// Starts it as what its folder says by now.
    async fn become_what_it_is(&mut self, plan: &mut Plan, running: &mut Running, claim: Claim) -> Result<(), Failure> {
        let _ = std::fs::remove_file(self.home.standby_mark(&self.machine.id));
        let stream = claim.stream.into_std()?;
        stream.set_nonblocking(false)?;
        let client = OwnedFd::from(stream);
        if claim.ends_with_client {
            end_with(client.try_clone()?, self.events.clone());
        }
        self.report = ReportPipe::new(client);
        self.wait_for_owner = claim.wait_for_owner;
        self.machine.spec = Machine::load(&self.home, &self.machine.id)?.spec;
        let is = self.machine.plan()?;
        for attachment in is.attachments() {
            // The lease and the tap stay as they are; its names and ports are others now.
            for resource in attachment.resources() {
                if matches!(
                    resource,
                    NetworkResource::NetworkUp { .. } | NetworkResource::Publish { .. }
                ) {
                    self.journal.claim(Resource::Network(resource.clone()))?;
                    if let Made::Ports(held) = resource.make(&self.networks).await? {
                        running.networks.keep_ports(held);
                    }
                }
            }
        }
        *plan = is;
        // What was before was nobody's start.
        self.recorder = None;
        file::remove_dir_all(&self.machine.dir.join("attempts"))?;
        let had = self.machine.state.clone();
        self.machine.state.created_at = Timestamp::now();
        self.machine.state.starts = 0;
        self.begin(plan.warnings())?;
        let state = &mut self.machine.state;
        (state.hypervisor, state.rootfs, state.user) = (had.hypervisor, had.rootfs, had.user);
        had.warnings.into_iter().for_each(|warning| state.warn(warning));
        catalog::save_state(&self.machine.dir, &self.machine.state)?;
        Ok(())
    }
}

/// Lets nobody take it any more, unless somebody has: whether nobody has. Who takes it does so under the same lock.
fn give_up(home: &Home, id: &str) -> Result<bool, Failure> {
    let _catalog = catalog::lock(home)?;
    let is_nobodys = Machine::load(home, id)?.spec.standby;
    if is_nobodys {
        file::remove_if_there(&home.standby_mark(id))?;
    }
    Ok(is_nobodys)
}

/// Waits for who takes it; each client by itself, so that none keeps that one waiting.
async fn claimed(listener: &UnixListener, events: &mpsc::Sender<Event>) -> Claim {
    let (claims, mut claimed) = mpsc::channel(1);
    loop {
        tokio::select! {
            Some(claim) = claimed.recv() => return claim,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (claims, events) = (claims.clone(), events.clone());
                    tokio::spawn(async move {
                        if let Ok(Some(claim)) = tokio::time::timeout(REQUEST, claim(stream, &events)).await {
                            let _ = claims.send(claim).await;
                        }
                    });
                }
                // Out of descriptors, most likely.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// What a client wants: the machine; anything else is for the monitor's loop.
async fn claim(stream: UnixStream, events: &mpsc::Sender<Event>) -> Option<Claim> {
    let (read, write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let request = reader.next().await.ok()??.parse::<Request>().ok()?;
    if let Request::Claim {
        wait_for_owner,
        ends_with_client,
    } = request
    {
        let stream = reader.into_inner().reunite(write).ok()?;
        return Some(Claim {
            stream,
            wait_for_owner,
            ends_with_client,
        });
    }
    let (answer, reply) = oneshot::channel();
    events.send(Event::Command(request, answer)).await.ok()?;
    tokio::spawn(async move {
        let ended = || Reply::Failed(Failure::new(Class::Conflict, "the machine has ended"));
        let reply = reply.await.unwrap_or_else(|_| ended());
        let _ = FrameWriter::new(write).send(&Frame::message(&reply)).await;
    });
    None
}
