//! A guest that stands still because there is no room for what it writes: it is let go on when there may be.
//!
//! The hypervisor stops the guest instead of giving it an error, so no file system of a guest is ever damaged by a full
//! disk of its host. Whether there is room again shows only by trying.

use std::time::{Duration, Instant};

use zmachine_hypervisor::{Vm, VmEvent};

use super::run::Monitor;
use crate::log::Source;

/// Time between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether the guest waits for room.
#[derive(Debug, Default)]
pub(super) struct Space {
    next_try: Option<Instant>,
    told: bool,
}

impl Space {
    /// When the guest is to be let go on.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.next_try
    }

    /// Somebody else decides now whether the guest runs.
    pub(super) fn forget(&mut self) {
        self.next_try = None;
    }
}

impl<P> Monitor<P> {
    /// An event of the hypervisor that changes nothing about the machine's end; a lack of room starts the waiting.
    pub(super) fn note_event(&mut self, event: &VmEvent) {
        self.log.note(Source::Hypervisor, &format!("{event:?}"));
        if let VmEvent::DiskError {
            disk, no_space: true, ..
        } = event
        {
            self.space.next_try = Some(Instant::now() + PAUSE);
            if !std::mem::replace(&mut self.space.told, true) {
                let warning = format!("there is no room on this host for what the guest writes to its disk '{disk}'");
                self.machine.state.warn(format!("{warning}: it waits until there is"));
                self.log.note(Source::Monitor, &warning);
            }
        }
    }

    /// Lets a guest that waits for room go on. Without room it stops again at its next write.
    pub(super) async fn try_again(&mut self, vm: &mut dyn Vm) {
        self.space.next_try = None;
        if let Err(error) = vm.resume().await {
            self.log
                .note(Source::Monitor, &format!("the guest can not be let go on: {error}"));
        }
    }
}
