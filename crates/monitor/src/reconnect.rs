//! A machine that joins or leaves a network while it runs.
//!
//! A network is joined from the host to the guest (rules, tap, interface, addresses) and left the other way round. Where our agent
//! sets interfaces up, its answer is an event, and the change goes on with that.

use tokio::sync::oneshot;
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::{Connection, Request as AgentRequest};
use zmachine_hypervisor::{Nic, NicKind};
use zmachine_network::Attachment;
use zmachine_plan as plan;
use zmachine_plan::Plan;
use zmachine_spec::control::{Reconnect, Reply};
use zmachine_spec::{Class, Failure, MachineSpec};
use zmachine_store::catalog;

use super::change::{Answered, Change, Step};
use super::context::Monitor;
use super::follow::Follow;
use super::guest::{self, within};
use super::inbox::{Cut, Event};
use super::networks::Attached;
use super::running::Running;

impl Follow<'_> {
    /// Begins to have the machine be in the networks that were asked for: one more, or one less.
    pub(super) async fn change_networks(&mut self, wanted: Reconnect, client: oneshot::Sender<Reply>) {
        let (step, agent) = match self.may_change(&wanted) {
            Ok(possible) => possible,
            Err(failure) => return guest::reply(client, Err(failure)),
        };
        let change = Change { wanted, step, client };
        match (change.step.clone(), agent) {
            (Step::Joins(attachment), agent) => self.begin_to_join(&attachment, agent, change).await,
            (Step::Leaves(attachment), Some(session)) => {
                let connection = connection(&self.monitor.machine.spec, &attachment, &change.wanted.attachments);
                self.ask_guest(session, AgentRequest::Disconnect(Box::new(connection)), change);
            }
            (Step::Leaves(attachment), None) => self.leave(&attachment, change).await,
        }
    }

    /// The one network that comes or goes, when that can be done now, and the agent that has to do its part.
    fn may_change(&self, wanted: &Reconnect) -> Result<(Step, Option<Session>), Failure> {
        let present = self.plan.attachments();
        self.init.may_change_networks(present)?;
        self.monitor.require_awake()?;
        if self.changing.is_some() {
            let busy = Failure::new(Class::Conflict, "the machine's networks are being changed already");
            return Err(busy.hint("try again when that is done"));
        }
        plan::check_step(present, &wanted.attachments)?;
        let is_in = |all: &[Attachment], one: &Attachment| all.iter().any(|a| a.network == one.network);
        let comes = wanted.attachments.iter().find(|a| !is_in(present, a)).cloned();
        let goes = present.iter().find(|a| !is_in(&wanted.attachments, a)).cloned();
        let step = comes.map(Step::Joins).or(goes.map(Step::Leaves));
        let step = step.ok_or_else(|| Failure::new(Class::Conflict, "the machine is in these networks already"))?;
        // What cannot be written down in the end is refused before anything is changed.
        self.planned(wanted)?;
        let agent = match self.init.sets_up_interfaces() {
            true => Some(self.awake_agent()?),
            false => None,
        };
        Ok((step, agent))
    }

    /// The plan with those networks.
    fn planned(&self, wanted: &Reconnect) -> Result<Plan, Failure> {
        let plan = self.plan.clone();
        Ok(plan.with_attachments(&self.monitor.machine.spec, wanted.attachments.clone())?)
    }

    /// Goes on with a change when the guest has answered.
    pub(super) async fn go_on_changing(&mut self, Answered(answer): Answered) {
        let Some(change) = self.changing.take() else { return };
        match (change.step.clone(), answer) {
            (Step::Joins(_), Ok(())) => self.finish(change).await,
            (Step::Joins(attachment), Err(failure)) => self.take_back(&attachment, change, failure).await,
            (Step::Leaves(attachment), Ok(())) => self.leave(&attachment, change).await,
            (Step::Leaves(_), Err(failure)) => change.answer(Err(failure)),
        }
    }

    async fn begin_to_join(&mut self, attachment: &Attachment, agent: Option<Session>, change: Change) {
        self.is_rewired = true;
        let plugged = within("join a network", plug_in(self.monitor, self.running, attachment));
        match self.inbox.unless_ended(plugged).await {
            Err(Cut) => return,
            Ok(Err(failure)) => return self.take_back(attachment, change, failure).await,
            Ok(Ok(())) => {}
        }
        match agent {
            Some(session) => {
                let connection = connection(&self.monitor.machine.spec, attachment, &change.wanted.attachments);
                self.ask_guest(session, AgentRequest::Connect(Box::new(connection)), change);
            }
            None => self.finish(change).await,
        }
    }

    /// Has the agent asked; its answer is an event, with which the change goes on.
    fn ask_guest(&mut self, session: Session, request: AgentRequest, change: Change) {
        self.changing = Some(change);
        let events = self.monitor.events.clone();
        tokio::spawn(async move {
            let answered = guest::ask(&session, &request, guest::NETWORK_TIMEOUT).await;
            let _ = events.send(Event::NetworkAnswered(Answered(answered))).await;
        });
    }

    /// Undoes a network that could not be joined for the reason `why`.
    async fn take_back(&mut self, attachment: &Attachment, change: Change, why: Failure) {
        let undone = within("leave a network", unplug(self.monitor, self.running, attachment));
        if let Ok(undone) = self.inbox.unless_ended(undone).await {
            change.answer(undone.and(Err(why)));
        }
    }

    async fn leave(&mut self, attachment: &Attachment, change: Change) {
        self.is_rewired = true;
        let left = within("leave a network", leave(self.monitor, self.running, attachment));
        match self.inbox.unless_ended(left).await {
            Err(Cut) => {}
            Ok(Err(failure)) => change.answer(Err(failure)),
            Ok(Ok(())) => self.finish(change).await,
        }
    }

    /// Tells the networks that stay what is right now, and writes down those that the machine is in, for its next start.
    async fn finish(&mut self, change: Change) {
        for attachment in &change.wanted.attachments {
            let machine = &self.monitor.machine.id;
            let networks = &self.monitor.networks;
            let reported = networks.update(&attachment.network, machine, &attachment.membership);
            match self.inbox.unless_ended(within("update a network", reported)).await {
                Err(Cut) => return,
                Ok(Err(failure)) => return change.answer(Err(failure)),
                Ok(Ok(())) => {}
            }
        }
        let written = self.write_networks(&change.wanted);
        change.answer(written);
    }

    fn write_networks(&mut self, wanted: &Reconnect) -> Result<(), Failure> {
        *self.plan = self.planned(wanted)?;
        let machine = &mut self.monitor.machine;
        machine.spec.networks.clone_from(&wanted.networks);
        machine.state.addresses = self.plan.addresses();
        catalog::write_networks(&machine.dir, &machine.spec, self.plan)?;
        self.monitor.save()
    }
}

async fn plug_in(monitor: &mut Monitor, running: &mut Running, attachment: &Attachment) -> Result<(), Failure> {
    let mut attached = Attached::default();
    monitor.attach_one(attachment, &mut attached).await?;
    running.networks.watches.extend(attached.hold.watches);
    let no_tap = || Failure::new(Class::Failed, "the network gave no tap");
    let tap = attached.taps.remove(&attachment.interface).ok_or_else(no_tap)?;
    let nic = Nic {
        id: attachment.interface.clone(),
        mac: attachment.mac.to_string(),
        mtu: Some(attachment.mtu),
        kind: NicKind::Tap,
    };
    running.vm.add_nic(&nic, tap).await.map_err(refused)
}

/// Takes back what [`plug_in`] did, or a part of it.
async fn unplug(monitor: &Monitor, running: &mut Running, attachment: &Attachment) -> Result<(), Failure> {
    // One that was never plugged in cannot be taken away either.
    let _ = running.vm.remove_nic(&attachment.interface).await;
    running.networks.watches.remove(&attachment.network);
    monitor.detach(attachment).await
}

async fn leave(monitor: &Monitor, running: &mut Running, attachment: &Attachment) -> Result<(), Failure> {
    running.vm.remove_nic(&attachment.interface).await.map_err(refused)?;
    running.networks.watches.remove(&attachment.network);
    monitor.detach(attachment).await
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
