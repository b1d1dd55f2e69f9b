//! What listings show of machines, kept from one listing to the next for those that do not run.
//!
//! Every file that a listing reads is replaced by a new one when it changes, so the folder of the machine has another time then. What is kept
//! holds for a folder that is the same by its inode and times, and that was left alone for a while when it was read: a change in the
//! same tick of the file system's clock would not be seen. Machines that run are read each time.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use zmachine_engine::Engine;
use zmachine_engine::views::MachineSummary;
use zmachine_spec::{Class, Failure};
use zmachine_store::catalog;

use crate::app::locked;

/// How long a folder must have been left alone.
const QUIET: Duration = Duration::from_secs(2);

/// By what a folder is known to be the same: inode, and times of change of its entries and of itself, in nanoseconds.
type Mark = (u64, i128, i128);

/// What is kept.
#[derive(Debug, Default)]
pub struct Listing(Mutex<HashMap<String, (Mark, Arc<MachineSummary>)>>);

/// A machine, or the id of one that cannot be read, and why.
pub type Listed = Result<Arc<MachineSummary>, (String, Failure)>;

impl Listing {
    /// All machines, oldest first.
    ///
    /// # Errors
    /// When the folder of machines cannot be read.
    pub fn all(&self, engine: &Engine) -> Result<Vec<Listed>, Failure> {
        // For the whole time: two at once would read everything twice.
        let mut kept = locked(&self.0);
        let ids = catalog::ids(engine.home())?;
        let mut next = HashMap::with_capacity(ids.len());
        let mut all: Vec<Listed> = Vec::with_capacity(ids.len());
        for id in ids {
            // Before reading, so that what changes meanwhile is read again.
            let mark = mark(engine, &id);
            let known = kept
                .remove(&id)
                .filter(|(known, _)| mark.is_some_and(|(mark, _)| mark == *known));
            if let Some((mark, summary)) = known {
                all.push(Ok(Arc::clone(&summary)));
                next.insert(id, (mark, summary));
                continue;
            }
            match engine.machine_by_id(&id) {
                Ok(machine) => {
                    let summary = Arc::new(MachineSummary::new(&machine));
                    if let Some((mark, true)) = mark
                        && !machine.state.phase.is_active()
                    {
                        next.insert(id, (mark, Arc::clone(&summary)));
                    }
                    all.push(Ok(summary));
                }
                // Removed since the listing.
                Err(failure) if failure.class == Class::NotFound => {}
                Err(failure) => all.push(Err((id, failure))),
            }
        }
        *kept = next;
        all.sort_by_key(|listed| {
            listed
                .as_ref()
                .map_or(jiff::Timestamp::MIN, |summary| summary.created_at)
        });
        Ok(all)
    }
}

/// How a machine's folder is now, and whether it has been left alone.
fn mark(engine: &Engine, id: &str) -> Option<(Mark, bool)> {
    let folder = engine.home().machine(id).metadata().ok()?;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let changed = folder.modified().ok()?;
    let is_quiet = SystemTime::now().duration_since(changed).is_ok_and(|age| age > QUIET);
    let mark = (
        folder.ino(),
        nanos(folder.mtime(), folder.mtime_nsec()),
        nanos(folder.ctime(), folder.ctime_nsec()),
    );
    Some((mark, is_quiet))
}
