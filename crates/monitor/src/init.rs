//! Who is process 1 of the guest. All that the event loop does differently for containers and VMs follows from that, and is
//! here.

use std::time::Duration;

use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_network::Attachment;
use zmachine_plan::Plan;
use zmachine_spec::{Class, Failure};

/// Time the guest gets to power off after its entrypoint is gone, before it is killed.
pub(super) const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(30);

/// Who is process 1 of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Init {
    /// Our agent, which runs one entrypoint: a container. It is there from the guest's first instruction on, and does what is
    /// asked of it.
    Agent {
        /// What the entrypoint is sent when it is to end.
        stop_signal: i32,
    },
    /// One of the guest's own: a VM, or a container with a kernel of its own. Our agent may run in it, and come and go.
    Own,
}

/// How a guest is asked to stop.
#[derive(Debug)]
pub(super) enum Stop {
    /// Its agent is asked.
    Ask(Box<AgentRequest>),
    /// Its power button is pressed.
    PressButton,
}

impl Init {
    /// Of a machine with this plan.
    pub(super) fn of(plan: &Plan) -> Init {
        match plan {
            Plan::Container(plan) => Init::Agent {
                stop_signal: plan.stop_signal,
            },
            Plan::Vm(_) => Init::Own,
        }
    }

    /// How it is asked to stop within `grace_ms`, and after which time it is ended by force. Our agent kills the entrypoint itself
    /// at the end of the grace period, so what comes on top of that is for the power-off; any other init has that time in all.
    pub(super) fn stop(self, grace_ms: u64) -> (Stop, Duration) {
        let grace = Duration::from_millis(grace_ms);
        match self {
            Init::Agent { stop_signal } => {
                let request = AgentRequest::Shutdown {
                    signal: stop_signal,
                    grace_ms,
                };
                (Stop::Ask(Box::new(request)), grace.saturating_add(POWER_OFF_TIMEOUT))
            }
            Init::Own => (Stop::PressButton, grace),
        }
    }

    /// What delivers a signal to the entrypoint, which only our agent has.
    ///
    /// # Errors
    /// [`Class::Conflict`] when there is none.
    pub(super) fn signal(self, signal: i32) -> Result<AgentRequest, Failure> {
        match self {
            Init::Agent { .. } => Ok(AgentRequest::Signal { signal }),
            Init::Own => {
                let message = format!("signal {signal} cannot be sent: a VM has no entrypoint");
                Err(Failure::new(Class::Conflict, message)
                    .hint("'zmachine stop' presses its power button, 'zmachine kill' ends it at once"))
            }
        }
    }

    /// Whether a guest in the networks `present` may join or leave one: our agent loads the driver of interfaces at the start,
    /// and only when there is one.
    ///
    /// # Errors
    /// [`Class::Conflict`].
    pub(super) fn may_change_networks(self, present: &[Attachment]) -> Result<(), Failure> {
        match self {
            Init::Agent { .. } if present.is_empty() => {
                let message = "the machine runs without any network, so its guest has no driver for one";
                Err(Failure::new(Class::Conflict, message).hint("stop it, and do it then"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the agent sets up an interface that comes, and gives up one that goes; any other init sees it come and go.
    pub(super) fn sets_up_interfaces(self) -> bool {
        matches!(self, Init::Agent { .. })
    }

    /// Whether a volume has grown only when the file system on it has: our agent has mounted it. What another guest has there
    /// is its own business, and may grow at its next start.
    pub(super) fn mounts_volumes(self) -> bool {
        matches!(self, Init::Agent { .. })
    }
}
