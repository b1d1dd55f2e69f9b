//! A machine's networks: attached at a start, kept until its end, joined and left while it runs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};
use zmachine_agent_protocol::{Connection, Request as AgentRequest};
use zmachine_hypervisor::{Nic, NicKind, Vm};
use zmachine_network::{Attachment, Made};
use zmachine_plan as plan;
use zmachine_plan::Plan;
use zmachine_spec::control::{Reconnect, Reply};
use zmachine_spec::{Class, Failure, MachineSpec};
use zmachine_store::catalog;
use zmachine_store::journal::Resource;
use zmachine_store::log::Source;

use super::change::{Answered, Change, Step};
use super::context::{AbortOnDrop, Monitor};
use super::guest::{self, within};
use super::inbox::Event;
use super::session::Session;

/// What a machine has of its networks when its hypervisor starts.
#[derive(Default)]
pub(super) struct Attached {
    /// The open tap, or connection to passt, of each interface.
    pub(super) taps: HashMap<String, OwnedFd>,
    /// What is kept until the end.
    pub(super) hold: NetworkHold,
    /// What ends a machine whose network is lost.
    pub(super) failures: Option<mpsc::Receiver<Failure>>,
}

/// What of a running machine a network concerns.
pub(super) struct Parts<'a> {
    /// The virtual machine.
    pub(super) vm: &'a mut (dyn Vm + 'static),
    /// The session with an agent that sets the guest up; a guest with an init of its own sees an interface come or go.
    pub(super) session: Option<&'a Session>,
    /// What it keeps of its networks.
    pub(super) hold: &'a mut NetworkHold,
}

/// What a machine keeps of its networks until it ends.
#[derive(Default)]
pub(super) struct NetworkHold {
    /// The published host ports, so that nobody else takes one.
    ports: Vec<OwnedFd>,
    /// Those who start a network's name service, or passt, again, by the network's name.
    watches: HashMap<String, AbortOnDrop>,
}

impl<P> Monitor<P> {
    /// Makes every resource of the machine's networks, each claimed before.
    pub(super) async fn attach(&mut self, attachments: &[Attachment]) -> Result<Attached, Failure> {
        let mut attached = Attached::default();
        let (ended, failures) = mpsc::channel(attachments.len().max(1));
        attached.failures = Some(failures);
        for attachment in attachments {
            if attachment.user.is_some() {
                let (hypervisor, watch) = self.start_uplink(attachment, ended.clone()).await?;
                attached.taps.insert(attachment.interface.clone(), hypervisor);
                attached.hold.watches.insert(attachment.network.clone(), watch);
                continue;
            }
            self.attach_one(attachment, &mut attached).await?;
        }
        if attachments.iter().any(|a| a.user.is_none()) {
            for rule in zmachine_network::external_firewalls().await {
                self.log.note(Source::Monitor, &rule);
                let warning = format!("{rule}: docs/networks.md says what lets machines through");
                self.machine.state.warn(warning);
            }
        }
        Ok(attached)
    }

    async fn attach_one(&mut self, attachment: &Attachment, attached: &mut Attached) -> Result<(), Failure> {
        for resource in attachment.resources() {
            // The address belongs to the machine until it is removed, so no run may give it back.
            if !resource.outlives_stop() {
                self.journal.claim(Resource::Network(resource.clone()))?;
            }
            self.kill.pass("start: network resource claimed");
            match resource.make(&self.networks).await? {
                Made::Nothing => {}
                Made::Tap(tap) => drop(attached.taps.insert(attachment.interface.clone(), tap)),
                Made::Ports(held) => attached.hold.ports.extend(held),
            }
            self.kill.pass("start: network resource made");
        }
        let watch = self.watch_network(&attachment.network);
        attached.hold.watches.insert(attachment.network.clone(), watch);
        Ok(())
    }

    /// Keeps the name service of a network running for as long as the task is.
    fn watch_network(&self, network: &str) -> AbortOnDrop {
        let (networks, network, log) = (self.networks.clone(), network.to_owned(), self.log.clone());
        AbortOnDrop(tokio::spawn(async move {
            let note = |line: String| log.note(Source::Monitor, &line);
            networks.keep_served(&network, note).await;
        }))
    }

    /// Undoes what an attachment has on the host, but for its lease. It stays in the journal, whose undo finds nothing.
    async fn detach(&self, attachment: &Attachment) -> Result<(), Failure> {
        for resource in attachment.resources().iter().rev().filter(|r| !r.outlives_stop()) {
            resource.undo(&self.networks).await?;
        }
        Ok(())
    }

    /// Begins to have the machine, which is in `present`, be in the networks that were asked for: one more, or one less. The
    /// change when nothing is left to do but to write it down; `None` when the guest is asked first, or it was refused.
    pub(super) async fn begin_change(
        &mut self,
        parts: Parts<'_>,
        present: &[Attachment],
        wanted: Reconnect,
        client: oneshot::Sender<Reply>,
    ) -> Option<Change> {
        let step = match self.may_change(present, &wanted) {
            Ok(step) => step,
            Err(failure) => {
                guest::reply(client, Err(failure));
                return None;
            }
        };
        let change = Change { wanted, step, client };
        match change.step.clone() {
            Step::Joins(attachment) => self.begin_to_join(parts, attachment, change).await,
            Step::Leaves(attachment) => match parts.session {
                Some(session) => {
                    let connection = connection(&self.machine.spec, &attachment, &change.wanted.attachments);
                    self.ask_guest(session, AgentRequest::Disconnect(Box::new(connection)));
                    self.changing = Some(change);
                    None
                }
                None => self.leave(parts, &attachment, change).await,
            },
        }
    }

    /// The one network that comes or goes, when that can be done now.
    fn may_change(&self, present: &[Attachment], wanted: &Reconnect) -> Result<Step, Failure> {
        self.require_awake()?;
        if self.changing.is_some() {
            let busy = Failure::new(Class::Conflict, "the machine's networks are being changed already");
            return Err(busy.hint("try again when that is done"));
        }
        plan::check_step(present, &wanted.attachments)?;
        let is_in = |all: &[Attachment], one: &Attachment| all.iter().any(|a| a.network == one.network);
        let comes = wanted.attachments.iter().find(|a| !is_in(present, a)).cloned();
        let goes = present.iter().find(|a| !is_in(&wanted.attachments, a)).cloned();
        let step = comes.map(Step::Joins).or(goes.map(Step::Leaves));
        step.ok_or_else(|| Failure::new(Class::Conflict, "the machine is in these networks already"))
    }

    /// Goes on with a change when the guest has answered.
    pub(super) async fn answered_change(&mut self, parts: Parts<'_>, Answered(answer): Answered) -> Option<Change> {
        let change = self.changing.take()?;
        match (change.step.clone(), answer) {
            (Step::Joins(_), Ok(())) => self.update(change).await,
            (Step::Joins(attachment), Err(failure)) => {
                let undone = self.unplug(parts, &attachment).await;
                change.answer(undone.and(Err(failure)));
                None
            }
            (Step::Leaves(attachment), Ok(())) => self.leave(parts, &attachment, change).await,
            (Step::Leaves(_), Err(failure)) => {
                change.answer(Err(failure));
                None
            }
        }
    }

    async fn begin_to_join(&mut self, parts: Parts<'_>, attachment: Attachment, change: Change) -> Option<Change> {
        let Parts { vm, session, hold } = parts;
        let parts = Parts {
            vm: &mut *vm,
            session,
            hold: &mut *hold,
        };
        if let Err(failure) = within("join a network", self.plug_in(parts, &attachment)).await {
            let parts = Parts { vm, session, hold };
            let undone = self.unplug(parts, &attachment).await;
            change.answer(undone.and(Err(failure)));
            return None;
        }
        match session {
            Some(session) => {
                let connection = connection(&self.machine.spec, &attachment, &change.wanted.attachments);
                self.ask_guest(session, AgentRequest::Connect(Box::new(connection)));
                self.changing = Some(change);
                None
            }
            None => self.update(change).await,
        }
    }

    /// Has the agent asked; its answer is an event.
    fn ask_guest(&self, session: &Session, request: AgentRequest) {
        let (session, events) = (session.clone(), self.events.clone());
        tokio::spawn(async move {
            let answered = guest::ask(&session, &request, guest::NETWORK_TIMEOUT).await;
            let _ = events.send(Event::NetworkAnswered(Answered(answered.map(drop)))).await;
        });
    }

    async fn leave(&mut self, parts: Parts<'_>, attachment: &Attachment, change: Change) -> Option<Change> {
        let Parts { vm, hold, .. } = parts;
        let gone = async {
            vm.remove_nic(&attachment.interface).await.map_err(refused)?;
            hold.watches.remove(&attachment.network);
            self.detach(attachment).await
        };
        match within("leave a network", gone).await {
            Ok(()) => self.update(change).await,
            Err(failure) => {
                change.answer(Err(failure));
                None
            }
        }
    }

    /// Tells the networks that stay what is right now.
    async fn update(&mut self, change: Change) -> Option<Change> {
        for attachment in &change.wanted.attachments {
            let machine = &self.machine.id;
            let reported = self
                .networks
                .update(&attachment.network, machine, &attachment.membership);
            if let Err(failure) = within("update a network", reported).await {
                change.answer(Err(failure));
                return None;
            }
        }
        Some(change)
    }

    async fn plug_in(&mut self, parts: Parts<'_>, attachment: &Attachment) -> Result<(), Failure> {
        let Parts { vm, hold, .. } = parts;
        let mut attached = Attached::default();
        self.attach_one(attachment, &mut attached).await?;
        hold.watches.extend(attached.hold.watches);
        let no_tap = || Failure::new(Class::Failed, "the network gave no tap");
        let tap = attached.taps.remove(&attachment.interface).ok_or_else(no_tap)?;
        let nic = Nic {
            id: attachment.interface.clone(),
            mac: attachment.mac.to_string(),
            mtu: Some(attachment.mtu),
            kind: NicKind::Tap,
        };
        vm.add_nic(&nic, tap).await.map_err(refused)
    }

    /// Takes back what [`Monitor::plug_in`] did, or a part of it.
    async fn unplug(&mut self, parts: Parts<'_>, attachment: &Attachment) -> Result<(), Failure> {
        let undo = async {
            let _ = parts.vm.remove_nic(&attachment.interface).await;
            parts.hold.watches.remove(&attachment.network);
            self.detach(attachment).await
        };
        within("leave a network", undo).await
    }

    /// Writes down the networks that the machine is in now, for its next start.
    pub(super) fn write_networks(&mut self, wanted: &Reconnect, plan: &Plan) -> Result<(), Failure> {
        self.machine.spec.networks.clone_from(&wanted.networks);
        catalog::write_networks(&self.machine.dir, &self.machine.spec, plan)?;
        self.machine.state.addresses = plan.addresses();
        self.save()
    }
}

/// What the agent is told about an interface that comes or goes, and what is right then.
fn connection(spec: &MachineSpec, attachment: &Attachment, all: &[Attachment]) -> Connection {
    Connection {
        interface: plan::interface(attachment),
        routes: plan::routes(all),
        nameservers: match spec.dns.is_empty() {
            true => plan::resolvers(all),
            false => Vec::new(),
        },
        search: attachment.search.clone(),
    }
}

fn refused(error: zmachine_hypervisor::ControlError) -> Failure {
    Failure::from_error(Class::Failed, &error).hint("stop the machine, and do it then")
}
