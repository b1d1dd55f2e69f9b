//! Machines that are to be something else after they were made: another name, other limits, another policy.
//!
//! # Invariants
//! A machine has a name at every moment of a rename: the new one leads to it before its spec says so, and the old one goes
//! last. What a crash leaves of the two is one name too many, which the next sweep takes away.

use zmachine_plan::Plan;
use zmachine_spec::control::Request;
use zmachine_spec::{Change, Class, Failure, RestartPolicy, Setting, check_name};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::events::{self, Event};
use zmachine_sys::host::HostFacts;
use zmachine_sys::lock::FileLock;

use super::Engine;

impl Engine {
    /// Changes a machine: at once what can be while it runs, the rest only while it does not.
    ///
    /// # Errors
    /// [`Class::Conflict`] for what waits for a stop; whatever this host has not. Nothing has changed then.
    pub fn update(&self, name: &str, change: &Change) -> Result<(), Failure> {
        let machine = self.machine(name)?;
        if machine.spec.auto_remove && change.restart.is_some_and(|policy| policy != RestartPolicy::No) {
            let message = format!("machine '{name}' is removed when it stops (--rm), so it is not started again");
            return Err(Failure::new(Class::Conflict, message).hint("make it again without --rm"));
        }
        if change.idle_timeout_ms.is_some_and(|timeout| timeout > 0) {
            require_idleable(&machine)?;
        }
        let lock = match machine.state.phase.is_active() {
            true => None,
            false => Some(self.held(&machine)?),
        };
        self.change(&machine, change, lock.as_ref())?;
        if change.cpus.is_some() {
            self.warn_of_cpu_time(&change.applied(&machine.spec));
        }
        Ok(())
    }

    /// Gives a machine another name. What it calls itself, its host name, stays; its networks know it by the new name at once.
    ///
    /// # Errors
    /// [`Class::Usage`] for what is no name, [`Class::Conflict`] for one that is taken.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), Failure> {
        check_name(new)?;
        let machine = self.machine(name)?;
        let old = machine.spec.name.clone();
        if old == new {
            let message = format!("machine '{name}' has the name '{new}' already");
            return Err(Failure::new(Class::Conflict, message));
        }
        let lock = match machine.state.phase.is_active() {
            true => None,
            false => Some(self.held(&machine)?),
        };
        let _catalog = catalog::lock(&self.home)?;
        self.kill.pass("rename: before the name");
        catalog::take_name(&self.home, new, &machine.id)?;
        self.kill.pass("rename: both names");
        let change = Change {
            name: Some(new.to_owned()),
            ..Change::default()
        };
        if let Err(failure) = self.change(&machine, &change, lock.as_ref()) {
            // Unless the monitor did it and could not say so.
            if Machine::load(&self.home, &machine.id).is_ok_and(|machine| machine.spec.name == old) {
                catalog::give_up_name(&self.home, new, &machine.id)?;
            }
            return Err(failure);
        }
        self.kill.pass("rename: spec written");
        catalog::give_up_name(&self.home, &old, &machine.id)?;
        let event = Event {
            detail: Some(format!("it was '{old}'")),
            ..Event::new(&machine.id, new, "renamed")
        };
        events::record(&self.home, &event);
        Ok(())
    }

    /// The lock of a machine that does not run.
    pub(super) fn held(&self, machine: &Machine) -> Result<FileLock, Failure> {
        FileLock::try_exclusive(&machine.lock_path())?.ok_or_else(|| {
            let message = format!("machine '{}' is starting or ending", machine.spec.name);
            Failure::new(Class::Conflict, message).hint("try again in a moment")
        })
    }

    /// Has the change made: by the machine's monitor, or on disk by whoever has its lock.
    fn change(&self, machine: &Machine, change: &Change, lock: Option<&FileLock>) -> Result<(), Failure> {
        let name = &machine.spec.name;
        if lock.is_none() {
            if let Some(setting) = change.needs_stop(&machine.spec) {
                let message = format!("machine '{name}' runs, and keeps its {setting} until it is stopped");
                return Err(Failure::new(Class::Conflict, message)
                    .hint(format!("stop it first: zmachine stop {name}"))
                    .about(setting));
            }
            return self.ask(machine, &Request::Change(Box::new(change.clone())));
        }
        // It may have been changed before the lock was ours.
        let current = Machine::load(&self.home, &machine.id)?;
        let spec = change.applied(&current.spec);
        let plan = current.plan()?.changed(&current.spec, &spec, &HostFacts::gather())?;
        Ok(catalog::write_networks(&current.dir, &spec, &plan)?)
    }
}

/// That a machine can be saved when it is idle, which it was built for or not.
fn require_idleable(machine: &Machine) -> Result<(), Failure> {
    match machine.plan()? {
        Plan::Container(plan) if plan.vm.is_saveable => Ok(()),
        Plan::Container(_) => {
            let message = format!(
                "machine '{}' was not built to be saved when it is idle",
                machine.spec.name
            );
            Err(Failure::new(Class::Conflict, message)
                .hint("make it with --idle-timeout or --snapshots")
                .about(Setting::IdleTimeout))
        }
        Plan::Vm(_) => {
            let message = format!("machine '{}' is a VM, and never idle", machine.spec.name);
            Err(Failure::new(Class::Unsupported, message).about(Setting::IdleTimeout))
        }
    }
}
