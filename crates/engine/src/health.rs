//! Waiting for what becomes of machines, beyond the end of a run.
//!
//! What is waited for is read from the machine's files: that needs no monitor that knows of it, and works across its end.

use std::time::{Duration, Instant};

use zmachine_spec::{Class, Exit, Failure, HealthStatus, Phase, State};
use zmachine_store::catalog::Machine;

use super::Engine;

/// How long the records of a machine that is removed may be in no folder.
const BURIAL: Duration = Duration::from_secs(2);

/// How often is looked.
const POLL: Duration = Duration::from_millis(100);

impl Engine {
    /// Waits until the health of a machine that runs is one of `wanted`, and returns it; for at most `limit`, if there is one. A
    /// machine that its restart policy starts again is waited for.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run (any more) or has no health check, [`Class::Failed`] when the time is over.
    pub fn wait_for_health(
        &self,
        name: &str,
        wanted: &[HealthStatus],
        limit: Option<Duration>,
    ) -> Result<HealthStatus, Failure> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let id = self.machine(name)?.id;
        loop {
            let machine = self.machine(&id)?;
            if machine.plan()?.health().is_none() {
                let message = format!("machine '{name}' has no health check");
                return Err(Failure::new(Class::Conflict, message)
                    .hint("make it with --health-cmd, or of an image that has one"));
            }
            let status = machine.health().map(|health| health.status);
            match &machine.state.phase {
                Phase::Starting | Phase::Restarting { .. } => {}
                phase if phase.is_active() => {
                    if let Some(status) = status.filter(|status| wanted.contains(status)) {
                        return Ok(status);
                    }
                }
                phase => {
                    let message = format!("machine '{name}' is not running (it is {})", phase.word());
                    return Err(Failure::new(Class::Conflict, message)
                        .hint(format!("'zmachine why {name}' tells why it ended")));
                }
            }
            if let Some(deadline) = deadline
                && Instant::now() >= deadline
            {
                let word = status.map_or("not up", HealthStatus::word);
                let message = format!("machine '{name}' is still {word} after {:?}", limit.unwrap_or_default());
                return Err(Failure::new(Class::Failed, message).hint(format!(
                    "'zmachine inspect --format '{{{{json .State.Health}}}}' {name}' shows its last checks"
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a run of a machine ends: this one or, when it does not run, the next.
    ///
    /// # Errors
    /// As [`Engine::wait`].
    pub fn wait_for_next_exit(&self, name: &str) -> Result<Option<Exit>, Failure> {
        let first = self.machine(name)?;
        let mut machine = first.clone();
        while !machine.state.phase.is_active() && machine.state.starts == first.state.starts {
            std::thread::sleep(POLL);
            machine = self.machine(&first.id)?;
        }
        self.wait(&first.id)
    }

    /// Waits until a machine is removed, and tells how its last run ended.
    ///
    /// # Errors
    /// [`Class::NotFound`] when there is none from the start.
    pub fn wait_for_removal(&self, name: &str) -> Result<Option<Exit>, Failure> {
        let mut last = self.machine(name)?;
        loop {
            match self.machine(&last.id) {
                Ok(machine) => last = machine,
                Err(failure) if failure.class == Class::NotFound => return Ok(self.last_exit(&last)),
                Err(failure) => return Err(failure),
            }
            std::thread::sleep(POLL);
        }
    }

    /// How the last run of a machine ended that is gone. One made with `--rm` goes before its last state can be seen.
    fn last_exit(&self, last: &Machine) -> Option<Exit> {
        match self.last_state(last).phase {
            Phase::Stopped { exit } => Some(exit),
            _ => None,
        }
    }

    /// The last state of a machine that is gone; the one that was seen of it where nothing is left, as of one that was never started.
    pub fn last_state(&self, last: &Machine) -> State {
        // One that was never seen to start most likely never did, and then there are none.
        let was_seen = last.state.starts > 0 || last.state.phase != Phase::Created;
        let deadline = Instant::now() + if was_seen { BURIAL } else { BURIAL / 8 };
        loop {
            if let Some(state) = self.history(&last.id).ok().and_then(|history| history.state) {
                return state;
            }
            // Its records are on their way from one folder to the other.
            if Instant::now() >= deadline {
                return last.state.clone();
            }
            std::thread::sleep(POLL);
        }
    }
}
