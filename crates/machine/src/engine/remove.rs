//! Removing machines.

use std::time::Duration;

use zmachine_sys::lock::FileLock;

use super::{Engine, release_leases};
use crate::catalog;
use crate::failure::{Class, Failure};
use crate::journal::Journal;

/// How long the end of a killed monitor may take.
const END_PATIENCE: Duration = Duration::from_secs(60);

impl Engine {
    /// Removes a machine with its writable disk and logs, with `volumes` also those that were made for it without a name; one
    /// that runs only with `force`, which kills it first.
    ///
    /// # Errors
    /// [`Class::NotFound`], or [`Class::Conflict`] for a machine that runs.
    pub fn remove(&self, name: &str, force: bool, volumes: bool) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        if machine.state.phase.is_active() {
            if !force {
                let message = format!("machine '{}' is {}", machine.spec.name, machine.state.phase.word());
                return Err(Failure::new(Class::Conflict, message).hint("stop it first, or use 'rm -f'"));
            }
            match self.kill(name) {
                Err(failure) if failure.class != Class::Conflict => return Err(failure),
                _ => {}
            }
        }
        // The machine's lock before the catalog's, as its monitor takes them: one made with --rm removes itself.
        let lock = match FileLock::exclusive_within(&machine.lock_path(), END_PATIENCE) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                let message = format!("the monitor of machine '{}' does not end", machine.spec.name);
                return Err(Failure::new(Class::Conflict, message).hint("'zmachine ps' shows its state"));
            }
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let _catalog = catalog::lock(&self.home)?;
        // Somebody may have removed it while we waited.
        if !machine.dir.exists() {
            return Ok(());
        }
        let networks = self.networks()?;
        let mut journal = Journal::open(&machine.dir)?;
        self.block_on(journal.undo_all(&networks))??;
        release_leases(&networks, |id| id == machine.id)?;
        if volumes {
            self.volumes().remove_anonymous(&machine.id)?;
        }
        catalog::remove(&self.home, &machine, &self.kill)?;
        drop(lock);
        Ok(())
    }
}
