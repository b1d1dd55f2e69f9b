//! What is known of machines beyond their state: records of their starts, also of those that were removed.

use std::path::PathBuf;

use jiff::Timestamp;
use zmachine_spec::{Class, Failure, MachineSpec, State};
use zmachine_store::attempt::Attempt;
use zmachine_store::catalog::Machine;
use zmachine_store::{catalog, tombstones};

use super::Engine;

/// What is known of a machine that is or was.
#[derive(Debug, Clone)]
pub struct History {
    /// Its id.
    pub id: String,
    /// Its spec.
    pub spec: MachineSpec,
    /// Its last state; `None` when that cannot be read any more.
    pub state: Option<State>,
    /// When it was removed; `None` while it is there.
    pub removed_at: Option<Timestamp>,
    /// The folder with its logs.
    pub dir: PathBuf,
    /// Its start attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

impl Engine {
    /// The history of a machine, by name, id or the unique beginning of an id; of one that was removed in the last seven
    /// days when there is no other.
    ///
    /// # Errors
    /// [`Class::NotFound`] when there is no such machine either way.
    pub fn history(&self, name: &str) -> Result<History, Failure> {
        match self.machine(name) {
            Ok(machine) => Ok(History {
                attempts: Attempt::all(&machine.dir),
                id: machine.id,
                spec: machine.spec,
                state: Some(machine.state),
                removed_at: None,
                dir: machine.dir,
            }),
            Err(failure) if failure.class == Class::NotFound => match tombstones::find(&self.home, name) {
                Some((buried, spec)) => Ok(History {
                    attempts: Attempt::all(&buried.dir),
                    id: buried.id,
                    spec,
                    state: catalog::load_state(&buried.dir).ok(),
                    removed_at: Some(buried.at),
                    dir: buried.dir,
                }),
                None => Err(failure),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Writes down a start that failed before there was a monitor to do it.
    pub(super) fn record_failed_start(&self, machine: &Machine, failure: &Failure) {
        let plan = zmachine_sys::file::read_json(&machine.dir.join("plan.json")).unwrap_or_default();
        let mut attempt = Attempt::begin(machine, Attempt::next_number(&machine.dir), plan);
        attempt.ended_at = Some(Timestamp::now());
        attempt.outcome = Some(zmachine_store::attempt::Outcome::Failed {
            step: "preparation".to_owned(),
            failure: failure.clone(),
        });
        let _ = attempt.save(&machine.dir);
    }

    /// Whether somebody has the name now.
    ///
    /// # Errors
    /// When the folder of machines cannot be read.
    pub fn exists(&self, name: &str) -> Result<bool, Failure> {
        match catalog::find(&self.home, name) {
            Ok(_) => Ok(true),
            Err(failure) if failure.class == Class::NotFound => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}
