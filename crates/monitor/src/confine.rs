//! What the machine's processes may take of this host: their control group, made with the run, entered by each child, gone with
//! the journal; and the CPUs they run on.

use std::path::{Path, PathBuf};

use zmachine_hypervisor::VmSpec;
use zmachine_spec::Failure;
use zmachine_store::cgroup::{self, Limits};
use zmachine_store::journal::Resource;
use zmachine_sys::affinity;

use super::context::Monitor;

impl Monitor {
    fn group(&self) -> PathBuf {
        let of_pod = self.machine.spec.pod.as_ref().and_then(|pod| pod.group.clone());
        if let Some(group) = of_pod.filter(|group| group.starts_with(cgroup::ROOT)) {
            return group;
        }
        cgroup::path(Path::new(cgroup::ROOT), self.home.data(), &self.machine.id)
    }

    /// Makes the group where this host has control groups. Where it has none, the plan has warned of that.
    pub(super) fn make_group(&mut self, vm: &VmSpec) {
        let root = Path::new(cgroup::ROOT);
        match cgroup::lacking(root) {
            Some(why) => self.unlimited_cpus(&why),
            None => {
                let path = self.group();
                let claimed = self.journal.claim(Resource::ControlGroup { path: path.clone() });
                let limits = Limits::of(vm, self.machine.spec.cpu_limit_milli);
                let made = claimed.and_then(|()| cgroup::make(root, &path, limits));
                if let Err(error) = made {
                    self.unlimited(&error.into());
                }
            }
        }
        self.kill.pass("start: control group made");
        self.choose_cpus();
    }

    /// The limits of a machine that runs are others now.
    pub(super) fn limit_again(&mut self, vm: &VmSpec) {
        let path = self.group();
        match path.exists() {
            true => {
                let limits = Limits::of(vm, self.machine.spec.cpu_limit_milli);
                if let Err(error) = cgroup::set_limits(&path, limits) {
                    self.unlimited(&error.into());
                }
            }
            false => self.unlimited_cpus("its processes are in no control group"),
        }
        self.choose_cpus();
    }

    /// Has its processes run on the CPUs that were chosen: by the control group or, where that cannot do it, by their affinity,
    /// which whatever this process starts inherits.
    fn choose_cpus(&mut self) {
        let cpuset = &self.machine.spec.cpuset;
        let group = self.group();
        // A controller that nobody asked for stays as it is.
        let grouped = match cpuset.is_all() && !group.join("cpuset.cpus").exists() {
            true => Ok(false),
            false => cgroup::set_cpus(Path::new(cgroup::ROOT), &group, &cpuset.to_string()),
        };
        let wanted: Vec<u32> = match (&grouped, cpuset.is_all()) {
            (Ok(true), _) | (_, true) => self.host_cpus.clone(),
            _ => cpuset.numbers().collect(),
        };
        let chosen = match affinity::allowed() == wanted {
            true => Ok(()),
            false => affinity::set(&wanted),
        };
        if let Err(error) = chosen {
            let text = format!("its processes do not run on the CPUs {cpuset} alone: {error}");
            self.machine.state.warn(text);
        }
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

    /// That a limit which was asked for does not hold.
    fn unlimited_cpus(&mut self, why: &str) {
        if self.machine.spec.cpu_limit_milli.is_some() {
            let cpus = self.machine.spec.all_cpus();
            let text = format!("its CPU time is not limited to {cpus} CPUs: {why}");
            self.machine.state.warn(text);
        }
    }

    fn unlimited(&mut self, failure: &Failure) {
        self.machine
            .state
            .warn(format!("its processes run without limits of the host: {failure}"));
    }
}
