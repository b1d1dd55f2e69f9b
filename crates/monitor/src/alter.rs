//! A machine that is to be something else while it runs: another name, other limits, another policy.

use tokio::sync::oneshot;
use zmachine_spec::control::Reply;
use zmachine_spec::{Change, Class, Failure};
use zmachine_store::catalog;
use zmachine_sys::host::HostFacts;

use super::context::Monitor;
use super::follow::Follow;
use super::guest::{self, within};
use super::inbox::Cut;

impl Follow<'_> {
    /// Makes it so. Its networks are told of another name first: what cannot be done there is not written down.
    pub(super) async fn change(&mut self, change: Change, client: oneshot::Sender<Reply>) {
        let before = &self.monitor.machine.spec;
        if let Some(setting) = change.needs_stop(before) {
            let message = format!(
                "machine '{}' is running, and keeps its {setting} until it is stopped",
                before.name
            );
            return guest::reply(client, Err(Failure::new(Class::Conflict, message).about(setting)));
        }
        let after = change.applied(before);
        let plan = match self.plan.clone().changed(before, &after, &HostFacts::gather()) {
            Ok(plan) => plan,
            Err(error) => return guest::reply(client, Err(error.into())),
        };
        if change.name.is_some() {
            // The network without root has no names.
            for attachment in plan.attachments().iter().filter(|a| a.user.is_none()) {
                let (networks, machine) = (&self.monitor.networks, &self.monitor.machine.id);
                let told = networks.update(&attachment.network, machine, &attachment.membership);
                match self.inbox.unless_ended(within("update a network", told)).await {
                    Err(Cut) => return,
                    Ok(Err(failure)) => return guest::reply(client, Err(failure)),
                    Ok(Ok(())) => {}
                }
            }
        }
        let written = catalog::write_networks(&self.monitor.machine.dir, &after, &plan);
        if written.is_ok() {
            *self.plan = plan;
            self.monitor.machine.spec = after;
            if change.cpus.is_some() || change.cpuset.is_some() {
                self.monitor.limit_again(self.plan.vm());
            }
            if change.idle_timeout_ms.is_some() {
                self.expect_quiet();
            }
        }
        let saved = written.map_err(Failure::from).and_then(|()| self.monitor.save());
        guest::reply(client, saved);
    }
}

impl Monitor {
    /// The same while there is no guest: what follows a run can be said at any time.
    pub(super) fn change_policy(&mut self, change: &Change) -> Result<(), Failure> {
        let after = change.applied(&self.machine.spec);
        after.write(&self.machine.dir)?;
        self.machine.spec = after;
        Ok(())
    }
}
