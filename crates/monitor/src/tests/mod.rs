//! Whole runs of the monitor, with a fake hypervisor and a scripted agent: everything of it is real but these two and the
//! networks, which have nothing on this host. The clock is tokio's and stands still but when everybody waits, so minutes of
//! patience take no time.
//!
//! | module | shows |
//! |---|---|
//! | `table` | what every command is answered in every phase, for both kinds of machines |
//! | `agents` | that no guest, whatever its agent is like, keeps a command or a kill waiting |
//! | `ends` | how machines end, by themselves and by force, and what a hypervisor that hangs does to that |
//! | `health` | health checks: what they make of the machine, and that they are in nobody's way |
//! | `events` | what guest and hypervisor do by themselves: restarts, agents that come and go, a full disk |

use std::process::{Command, ExitStatus};
use std::sync::{PoisonError, RwLock};

mod agent;
mod agents;
mod ends;
mod events;
mod health;
mod rig;
mod table;

/// Held for reading by whoever takes a lock again that it has just let go. A process that another test starts has a copy of the lock
/// for a moment, until it executes its program.
static FORKS: RwLock<()> = RwLock::new(());

/// Runs a program while no such test runs.
pub(crate) fn status_of(command: &mut Command) -> ExitStatus {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.status().expect("a program of this host")
}
