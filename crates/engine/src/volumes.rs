//! Volumes of machines that are gone: those that nobody uses, and those that another machine takes over.

use std::collections::BTreeMap;

use zmachine_spec::volume::anonymous;
use zmachine_spec::{Class, Failure, MachineSpec, Origin};
use zmachine_store::catalog::Machine;

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
    /// The volumes that were made for a machine without a name of the user's, by the paths where they are in it.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn own_volumes(&self, machine: &Machine) -> Result<BTreeMap<String, String>, Failure> {
        let volumes = self.volumes();
        let mut own = BTreeMap::new();
        for (index, request) in machine.spec.volumes.iter().enumerate() {
            let name = match &request.origin {
                Origin::Anonymous => anonymous(&machine.id, index),
                // What it took over from another one has a name.
                Origin::Named(name) => name.clone(),
                Origin::Directory(_) => continue,
            };
            let known = volumes.find(&name)?;
            if known.is_some_and(|volume| volume.record.anonymous_of.as_deref() == Some(&machine.id)) {
                own.insert(request.target.clone(), name);
            }
        }
        Ok(own)
    }

    /// The spec of a machine that takes the place of another one: what it would get new volumes for, it finds in those of
    /// [`Engine::own_volumes`], which must not go with the other machine then.
    #[must_use]
    pub fn with_volumes_of(&self, spec: MachineSpec, own: &BTreeMap<String, String>) -> MachineSpec {
        let mut spec = spec;
        for request in &mut spec.volumes {
            if let (Origin::Anonymous, Some(name)) = (&request.origin, own.get(&request.target)) {
                request.origin = Origin::Named(name.clone());
                (request.size_bytes, request.fs) = (None, None);
            }
        }
        spec
    }

    /// Makes such volumes the machine's own.
    ///
    /// # Errors
    /// When one is gone, or cannot be written down.
    pub fn take_over(&self, machine: &Machine, own: &BTreeMap<String, String>) -> Result<(), Failure> {
        let volumes = self.volumes();
        for request in &machine.spec.volumes {
            if let Origin::Named(name) = &request.origin
                && own.get(&request.target) == Some(name)
            {
                volumes.adopt(name, &machine.id)?;
            }
        }
        Ok(())
    }

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
