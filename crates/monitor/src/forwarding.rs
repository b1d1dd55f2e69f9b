//! The thread that forwards the machine's log, when its user wants that.

use zmachine_store::catalog::Machine;
use zmachine_store::log::{Forwarder, Sender, Source};

use super::output::SharedLog;

/// Begins to forward. A receiver that cannot be had never stops the machine, so neither does this.
pub(super) fn start(machine: &Machine, log: &SharedLog) -> Option<Forwarder> {
    let to = machine.spec.log_to.clone()?;
    let sender = Sender {
        machine: machine.dir.clone(),
        name: machine.spec.name.clone(),
        id: machine.id.clone(),
    };
    let teller = log.clone();
    Forwarder::start(sender, to.clone(), move |line| teller.note(Source::Monitor, &line))
        .inspect_err(|why| log.note(Source::Monitor, &format!("the log is not sent to {to}: {why}")))
        .ok()
}

/// Sends what is left, as far as the receiver takes it.
pub(super) fn finish(forwarder: Option<Forwarder>) {
    if let Some(forwarder) = forwarder {
        forwarder.finish();
    }
}
