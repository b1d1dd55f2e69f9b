//! Removing machines.

use std::time::{Duration, Instant};

use zmachine_plan::Plan;
use zmachine_spec::control::Request;
use zmachine_spec::{Class, Failure, Origin, Phase};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::journal::Journal;
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use super::Engine;

/// How long the end of a killed monitor may take.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a machine whose lock somebody has.
const LOOK: Duration = Duration::from_millis(100);

/// How long a guest may take to put what it wrote onto its disks.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine {
    /// What a container's processes wrote is there afterwards, as it is where they share the kernel of the host: a guest that is cut off
    /// would lose half a minute of it. So its agent kills them and empties its caches. Whatever goes wrong, or takes too long: the machine
    /// is killed next.
    pub(super) fn let_guest_settle(&self, machine: &Machine) {
        let runs = machine.state.phase == Phase::Running;
        if !runs || !matches!(machine.plan(), Ok(Plan::Container(_))) {
            return;
        }
        if let Ok((_input, mut output)) = self.stream(machine, &Request::Stop { grace_ms: Some(0) }) {
            let _ = output.next_frame_within(SETTLE_TIMEOUT);
        }
    }

    /// Removes a machine with its writable disk and logs, with `volumes` also those that were made for it without a name; one
    /// that runs only with `force`, which kills it first.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] for a machine that runs.
    pub fn remove(&self, name: &str, force: bool, volumes: bool) -> Result<(), Failure> {
        let id = catalog::find(&self.home, name)?;
        let mut was_killed = false;
        let gone = |was_killed| match was_killed {
            // One made with --rm removes itself when it ends.
            true => Ok(()),
            false => Err(catalog::not_found(name)),
        };
        let lock_path = self.home.machine(&id).join("lock");
        let deadline = Instant::now() + END_TIMEOUT;
        // The machine's lock before the catalog's, as its monitor takes them.
        let lock = loop {
            match self.end_for_removal(&id, force) {
                Ok(is_killed) => was_killed |= is_killed,
                Err(failure) if was_killed && failure.class == Class::NotFound => return gone(was_killed),
                Err(failure) => return Err(failure),
            }
            // Its monitor may have been started a moment ago, by a command that is gone: it says so only once it has the lock.
            match FileLock::exclusive_within(&lock_path, LOOK) {
                Ok(Some(lock)) => break lock,
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => {
                    let message = format!("the monitor of machine '{name}' does not end");
                    return Err(Failure::new(Class::Conflict, message).hint("'zmachine ps' shows its state"));
                }
                Err(e) if e.is_not_found() => return gone(was_killed),
                Err(e) => return Err(e.into()),
            }
        };
        let _catalog = catalog::lock(&self.home)?;
        // Somebody may have removed it while we waited.
        if !file::is_there(&self.home.machine(&id))? {
            return gone(was_killed);
        }
        let networks = self.networks()?;
        let mut journal = Journal::open(&self.home.machine(&id))?;
        self.block_on(journal.undo_all(&networks))??;
        networks.release_all(|other| other == id)?;
        if volumes {
            self.volumes().remove_anonymous(&id)?;
        }
        catalog::remove(&self.home, &id, &self.kill)?;
        drop(lock);
        Ok(())
    }

    /// Ends a machine that runs, if it may be; whether it did.
    fn end_for_removal(&self, id: &str, force: bool) -> Result<bool, Failure> {
        match Machine::load(&self.home, id) {
            Ok(machine) if machine.state.phase.is_active() => {
                if !force {
                    let message = format!("machine '{}' is {}", machine.spec.name, machine.state.phase.word());
                    return Err(Failure::new(Class::Conflict, message).hint("stop it first, or use 'rm -f'"));
                }
                // What is in its own root goes with it.
                let outlives = |origin: &Origin| matches!(origin, Origin::Named(_));
                if machine.spec.volumes.iter().any(|v| !v.read_only && outlives(&v.origin)) {
                    self.let_guest_settle(&machine);
                }
                match self.cut_off(id) {
                    Err(failure) if !matches!(failure.class, Class::Conflict | Class::NotFound) => Err(failure),
                    _ => Ok(true),
                }
            }
            // One that cannot be read is removed all the same by whoever insists.
            Err(failure) if !force || failure.class == Class::NotFound => Err(failure),
            _ => Ok(false),
        }
    }
}
