//! The machine's control group: made with the run, entered by each child, gone with the journal.

use std::path::{Path, PathBuf};

use zmachine_hypervisor::VmSpec;
use zmachine_spec::Failure;
use zmachine_store::cgroup::{self, Limits};
use zmachine_store::journal::Resource;

use super::context::Monitor;

impl Monitor {
    fn group(&self) -> PathBuf {
        cgroup::path(Path::new(cgroup::ROOT), self.home.data(), &self.machine.id)
    }

    /// Makes the group where this host has control groups. Where it has none, the plan has warned of that.
    pub(super) fn make_group(&mut self, vm: &VmSpec) {
        let root = Path::new(cgroup::ROOT);
        if cgroup::lacking(root).is_some() {
            return;
        }
        let path = self.group();
        let claimed = self.journal.claim(Resource::ControlGroup { path: path.clone() });
        let made = claimed.and_then(|()| cgroup::make(root, &path, Limits::of(vm)));
        if let Err(error) = made {
            self.unlimited(&error.into());
        }
        self.kill.pass("start: control group made");
    }

    /// Puts a child into the group, if there is one.
    pub(super) fn confine(&mut self, pid: u32) {
        let path = self.group();
        if !path.exists() {
            return;
        }
        if let Err(error) = cgroup::add(&path, pid) {
            self.unlimited(&error.into());
        }
    }

    fn unlimited(&mut self, failure: &Failure) {
        self.machine
            .state
            .warn(format!("its processes run without limits of the host: {failure}"));
    }
}
