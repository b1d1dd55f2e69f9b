//! Removing volumes that nobody uses.

use zmachine_spec::{Class, Failure};

use super::Engine;

/// What a pruning of volumes came to.
#[derive(Debug, Default)]
pub struct PrunedVolumes {
    /// Names of what is gone.
    pub removed: Vec<String>,
    /// What it took on this host, in bytes.
    pub bytes: u64,
    /// Why others are still there that nobody seems to use.
    pub failures: Vec<Failure>,
}

impl Engine {
    /// Removes the volumes that no machine uses: those that were made without a name, and with `all` the others too. One of
    /// which it cannot be told who uses it stays.
    ///
    /// # Errors
    /// When volumes cannot be listed.
    pub fn prune_volumes(&self, all: bool) -> Result<PrunedVolumes, Failure> {
        let volumes = self.volumes();
        let (views, failures) = self.volume_list()?;
        let mut pruned = PrunedVolumes {
            failures,
            ..PrunedVolumes::default()
        };
        for view in views {
            let is_unused = view.machines.as_ref().is_some_and(Vec::is_empty);
            if !is_unused || !(all || view.anonymous) {
                continue;
            }
            match volumes.remove(&view.name) {
                Ok(()) => {
                    pruned.bytes += view.used_bytes;
                    pruned.removed.push(view.name);
                }
                // Somebody has come to use it, or removed it.
                Err(failure) if matches!(failure.class, Class::Conflict | Class::NotFound) => {}
                Err(failure) => pruned.failures.push(failure),
            }
        }
        Ok(pruned)
    }
}
