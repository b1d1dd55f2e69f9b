//! How far the end of a run has come.

use std::time::Duration;

use tokio::time::Instant;
use zmachine_hypervisor::Vm;
use zmachine_spec::Exit;

/// Time a killed hypervisor gets to be gone: the kernel may be waiting for a disk on its behalf.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the end of a run has come.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// How the entrypoint ended.
    pub(super) exit: Option<Exit>,
    /// It was ended by force.
    pub(super) killed: bool,
    /// When that happens; when it has, when the hypervisor has to be gone.
    pub(super) deadline: Option<Instant>,
    /// When the power button is pressed once more.
    pub(super) press_again: Option<Instant>,
}

impl Ending {
    /// Ends it by force. Should the hypervisor not go, the loop is left all the same, however often this is asked for.
    pub(super) fn kill(&mut self, vm: &mut dyn Vm) {
        if !std::mem::replace(&mut self.killed, true) {
            self.deadline = Some(Instant::now() + KILL_TIMEOUT);
        }
        self.press_again = None;
        vm.kill();
    }

    /// Force follows after this time. A second request may shorten the time, not lengthen it.
    pub(super) fn no_later_than(&mut self, from_now: Duration) {
        let deadline = Instant::now() + from_now;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// The entrypoint has ended: the guest has this time to power off.
    pub(super) fn entrypoint_ended(&mut self, exit: Exit, power_off: Duration) {
        self.exit = Some(exit);
        if !self.killed {
            self.deadline = Some(Instant::now() + power_off);
        }
    }
}
