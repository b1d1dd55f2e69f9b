//! Reconciling: what the files say against what is alive.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use zmachine_spec::{Class, Failure, Phase};
use zmachine_store::attempt::{Attempt, Outcome};
use zmachine_store::catalog::Machine;
use zmachine_store::journal::Journal;
use zmachine_store::log::{LogWriter, Source};
use zmachine_store::{catalog, events, leftovers, restoring, tombstones};
use zmachine_sys::file;
use zmachine_sys::host::boot_id;
use zmachine_sys::lock::FileLock;

use super::Engine;

/// A program that makes one machine after the other looks at all of them this often at most; at those it uses, always.
const ANEW: Duration = Duration::from_secs(1);

impl Engine {
    /// Finds machines whose monitor died, undoes what they left on the host, and marks them failed. Warns of each, and of
    /// each machine that lost its name.
    ///
    /// # Errors
    /// When the folder of machines cannot be read. A machine that cannot be reconciled is a warning.
    pub fn reconcile(&self) -> Result<(), Failure> {
        *self.reconciled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut lines = Vec::new();
        for id in catalog::ids(&self.home)? {
            // One that cannot be read is left alone, and told by every listing.
            let Ok(state) = catalog::load_state(&self.home.machine(&id)) else {
                continue;
            };
            match self.settle_restore(&id) {
                Ok(line) => lines.extend(line),
                Err(failure) => lines.push(format!(
                    "an interrupted restore of machine {id} cannot be put right: {failure}"
                )),
            }
            if state.phase.is_active() {
                match self.reconcile_one(&id) {
                    Ok(line) => lines.extend(line),
                    Err(failure) => lines.push(format!("machine {id} cannot be cleaned up: {failure}")),
                }
            }
        }
        self.sweep()?;
        self.snapshots().sweep()?;
        let repair = |line| format!("{line}; 'zmachine doctor --repair' gives it back");
        lines.extend(self.name_findings()?.into_iter().map(repair));
        lines.iter().for_each(|line| (self.warn)(line));
        Ok(())
    }

    /// Finishes or undoes a restore that was cut off, unless it is under way.
    fn settle_restore(&self, id: &str) -> Result<Option<String>, Failure> {
        let folder = self.home.machine(id);
        if !restoring::is_pending(&folder)? {
            return Ok(None);
        }
        let Some(_lock) = FileLock::try_exclusive(&folder.join("lock"))? else {
            return Ok(None);
        };
        let became = match restoring::settle(&self.home, id)? {
            Some(restoring::Settled::Finished) => "was finished: its disks are those of the snapshot",
            Some(restoring::Settled::Undone) => "was undone",
            None => return Ok(None),
        };
        let name = Machine::load(&self.home, id).map_or_else(|_| id.to_owned(), |machine| machine.spec.name);
        Ok(Some(format!("an interrupted restore of machine '{name}' {became}")))
    }

    /// [`Engine::reconcile`] for who has not done so a moment ago.
    pub(super) fn reconcile_anew(&self) -> Result<(), Failure> {
        let last = *self.reconciled.lock().unwrap_or_else(PoisonError::into_inner);
        match self.reconciles && last.is_none_or(|last| last.elapsed() >= ANEW) {
            true => self.reconcile(),
            false => Ok(()),
        }
    }

    pub(super) fn reconcile_one(&self, id: &str) -> Result<Option<String>, Failure> {
        let lock = match FileLock::try_exclusive(&self.home.machine(id).join("lock")) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(None),
            // Removed since the listing.
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut machine = match Machine::load(&self.home, id) {
            Ok(machine) => machine,
            Err(failure) if failure.class == Class::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if !machine.state.phase.is_active() {
            return Ok(None);
        }
        let (step, message) = match machine.state.boot_id == boot_id() {
            true => ("running", "its monitor ended without a word"),
            false => ("running", "the host was restarted while it ran"),
        };
        let networks = self.networks()?;
        let mut journal = Journal::open(&machine.dir)?;
        self.kill.pass("reconcile: before undo");
        self.block_on(journal.undo_all(&networks))??;
        // A power cut may have lost the journal, which is not synced, but not the places of what it named.
        self.block_on(leftovers::undo(&self.home, &machine, &networks))??;
        self.kill.pass("reconcile: undone");
        let failure = Failure::new(Class::Failed, message);
        machine.state.advance(
            Phase::Failed {
                step: step.to_owned(),
                failure,
            },
            jiff::Timestamp::now(),
        );
        catalog::save_state(&machine.dir, &machine.state)?;
        events::record(
            &self.home,
            &events::Event::of_phase(id, &machine.spec.name, &machine.state),
        );
        close_attempt(&machine);
        if let Ok(mut log) = LogWriter::open(&machine.dir, machine.spec.log_limits.clone()) {
            log.note(
                Source::Monitor,
                &format!("{message}; what it left on the host was removed"),
            );
        }
        let name = &machine.spec.name;
        let mut line = format!("machine '{name}' failed: {message}; what it left on the host was removed");
        if machine.spec.auto_remove {
            let _catalog = catalog::lock(&self.home)?;
            networks.release_all(|m| m == id)?;
            catalog::remove(&self.home, id, &self.kill)?;
            line.push_str(", and the machine too (--rm)");
        }
        drop(lock);
        Ok(Some(line))
    }

    /// Removes what an interrupted creation or removal left. Nothing happens while another command creates or removes.
    fn sweep(&self) -> Result<(), Failure> {
        let Some(_catalog) = FileLock::try_exclusive(&self.home.machines().join(".lock"))? else {
            return Ok(());
        };
        catalog::sweep(&self.home)?;
        tombstones::sweep(&self.home)?;
        self.volumes().sweep()?;
        let networks = self.networks()?;
        // An address goes only when its machine is surely gone.
        Ok(networks.release_all(|id| matches!(file::is_there(&self.home.machine(id)), Ok(false)))?)
    }
}

/// Gives the record of the run that was cut off an end.
fn close_attempt(machine: &Machine) {
    let Some(mut attempt) = Attempt::all(&machine.dir).pop() else {
        return;
    };
    if let (None, Phase::Failed { step, failure }) = (&attempt.outcome, &machine.state.phase) {
        attempt.ended_at = machine.state.finished_at;
        attempt.rootfs = machine.state.rootfs_counters;
        attempt.warnings.clone_from(&machine.state.warnings);
        attempt.outcome = Some(Outcome::Failed {
            step: step.clone(),
            failure: failure.clone(),
        });
        // The state tells the same, only shorter.
        let _ = attempt.save(&machine.dir);
    }
}
