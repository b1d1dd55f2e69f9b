//! Samples of running machines.

use zmachine_spec::control::{Reply, Request};
use zmachine_spec::{Failure, Phase};
use zmachine_store::catalog::Machine;

use super::Engine;
use crate::stats::{InterfaceSample, Sample};

impl Engine {
    /// What a running machine uses now; `None` for one that does not run.
    ///
    /// # Errors
    /// When its plan cannot be read.
    pub fn sample(&self, machine: &Machine) -> Result<Option<Sample>, Failure> {
        if !machine.state.phase.is_active() {
            return Ok(None);
        }
        let plan = machine.plan()?;
        let attachments = plan.attachments();
        let through_passt = match attachments.iter().any(|a| a.user.is_some()) {
            true => match self.reply(machine, &Request::Traffic) {
                Ok(Some(Reply::Traffic(traffic))) => traffic,
                _ => Default::default(),
            },
            false => Default::default(),
        };
        let interfaces = InterfaceSample::take(attachments, &through_passt);
        // A paused guest does not answer, and one that starts or stops has other things to do.
        let guest = match machine.state.phase {
            Phase::Running => match self.reply(machine, &Request::Capacity) {
                Ok(Some(Reply::Capacity(capacity))) => Some(capacity),
                _ => None,
            },
            _ => None,
        };
        Ok(Some(Sample::take(&machine.state, interfaces, guest)))
    }
}
