//! A change of a running machine's networks, as a value.

use tokio::sync::oneshot;
use zmachine_network::Attachment;
use zmachine_spec::Failure;
use zmachine_spec::control::{Reconnect, Reply};

use super::guest;

/// A change of a machine's networks that is under way, and who is told of its end.
pub(super) struct Change {
    pub(super) wanted: Reconnect,
    pub(super) step: Step,
    pub(super) client: oneshot::Sender<Reply>,
}

/// What a change comes to.
#[derive(Clone)]
pub(super) enum Step {
    Joins(Attachment),
    Leaves(Attachment),
}

impl Change {
    /// It has ended so.
    pub(super) fn answer(self, result: Result<(), Failure>) {
        guest::reply(self.client, result);
    }
}

/// What came of the agent's part in a change of networks.
#[derive(Debug)]
pub(super) struct Answered(pub(super) Result<(), Failure>);
