//! Starts that do not boot: from the template of an earlier machine like this one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use zmachine_hypervisor::{Accel, qemu};
use zmachine_plan::{ContainerPlan, Plan};
use zmachine_spec::Failure;
use zmachine_spec::saved::HostMark;
use zmachine_store::catalog::Machine;
use zmachine_store::snapshot::holders::Holders;
use zmachine_store::snapshot::{DISK, Snapshot};
use zmachine_store::template::{TemplateUse, Templates, key};
use zmachine_sys::jail::find_program;

use crate::Engine;
use crate::root::copy_file;
use crate::snapshots::RestoreFrom;

/// A template that a start begins from.
#[derive(Debug)]
pub(super) struct Warm {
    folder: PathBuf,
    memory: OwnedFd,
    holders: Holders,
}

impl Warm {
    /// What a monitor is told.
    pub(super) fn from(&self) -> RestoreFrom<'_> {
        RestoreFrom {
            folder: &self.folder,
            memory: &self.memory,
            shared: Some(&self.holders),
            is_fork: true,
        }
    }
}

impl Engine {
    /// The templates of its home, by the digest of their image.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn template_uses(&self) -> Result<BTreeMap<String, TemplateUse>, Failure> {
        Templates::of(&self.home).uses()
    }

    /// The key of the template that machines like this one begin from, where they can.
    pub(super) fn template_key(&self, machine: &Machine) -> Option<String> {
        let Ok(Plan::Container(plan)) = machine.plan() else {
            return None;
        };
        if !machine.spec.is_warm() || !plan.vm.is_saveable {
            return None;
        }
        // It is built to be saved all the same with --snapshots; but a template has no part in volumes, and a start is the first one by its
        // disk.
        // A machine whose memory is that of others as well cannot be saved when it is idle.
        if !plan.volumes.is_empty() || plan.upper_bytes.is_none() || machine.spec.idle_timeout_ms.is_some() {
            return None;
        }
        let is_ready = machine.spec.warm_ready;
        // Its entrypoint would have the secrets of another machine, and a terminal or an input that ended with that one.
        let is_own = plan.process.terminal.is_some() || plan.process.stdin || !machine.spec.secrets.is_empty();
        if is_ready && (is_own || plan.is_idle()) {
            return None;
        }
        let host = HostMark::of_this_host(plan.vm.accel == Accel::Kvm);
        let hypervisor = find_program(Path::new(qemu::BINARY))?;
        Some(key(&plan, &host, &hypervisor, is_ready))
    }

    /// The key of the machine's template, and that where there is one; `None` where this start has nothing to do with templates: only
    /// the first one has, whose disk is the template's.
    pub(super) fn template_of(&self, machine: &Machine) -> Option<(String, Option<Warm>)> {
        if machine.dir.join(DISK).exists() {
            return None;
        }
        let Ok(Plan::Container(plan)) = machine.plan() else {
            return None;
        };
        let key = self.template_key(machine)?;
        let host = HostMark::of_this_host(plan.vm.accel == Accel::Kvm);
        let templates = Templates::of(&self.home);
        let Some((template, folder)) = templates.find(&key) else {
            return Some((key, None));
        };
        let begun = match misfit(&plan, &host, &template) {
            Some(why) => Err(why),
            None => self
                .begin(machine, &template, &folder)
                .map_err(|failure| failure.to_string()),
        };
        match begun {
            Ok((memory, holders)) => Some((
                key,
                Some(Warm {
                    folder,
                    memory,
                    holders,
                }),
            )),
            // It boots then, and makes another one.
            Err(why) => {
                (self.warn)(&format!(
                    "the template of machine '{}' is not used: {why}",
                    machine.spec.name
                ));
                let _ = templates.discard(&key);
                Some((key, None))
            }
        }
    }

    /// Gives the machine the template's disk; the memory it begins with.
    fn begin(&self, machine: &Machine, template: &Snapshot, folder: &Path) -> Result<(OwnedFd, Holders), Failure> {
        let memory = self.shared_memory(template, folder)?;
        let (disk, new) = (machine.dir.join(DISK), machine.dir.join("root.img.new-template"));
        zmachine_sys::file::remove_if_there(&new)?;
        copy_file(&folder.join(DISK), &new)?;
        if new.exists() {
            std::fs::rename(&new, &disk)?;
        }
        Ok(memory)
    }
}

/// What of the machine or this host does not fit a template.
fn misfit(plan: &ContainerPlan, host: &HostMark, template: &Snapshot) -> Option<String> {
    match (template.require_memory(), &template.plan) {
        (Ok(saved), Plan::Container(was)) => host.differs_from(&saved.host).or(plan.misfit(was)),
        (Ok(_), Plan::Vm(_)) => Some("it is that of a VM".to_owned()),
        (Err(failure), _) => Some(failure.message),
    }
}
