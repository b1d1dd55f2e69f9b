//! The control group of a container: what it may use, what it uses, and all of its processes at once.
//!
//! Groups are below the root of the guest's hierarchy (version 2), which the agent itself is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use zmachine_agent_protocol::{ContainerLimits, ContainerStats};

/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// What the groups of containers have; one that the kernel lacks is done without until a limit of it is asked for.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// The kernel's period of a CPU limit, in microseconds.
const PERIOD_US: u64 = 100_000;

/// A container's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroup {
    folder: PathBuf,
}

/// A file of the group that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("control group: {}: {source}", path.display())]
pub(super) struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

impl Cgroup {
    /// Makes the group of the container `id`.
    ///
    /// # Errors
    /// When the guest has no control groups, or a limit cannot be set.
    pub(super) fn make(id: &str, limits: &ContainerLimits) -> Result<Cgroup, CgroupError> {
        enable();
        let group = Cgroup {
            folder: Path::new(ROOT).join(format!("container-{id}")),
        };
        match fs::create_dir(&group.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError {
                    path: group.folder,
                    source: error,
                });
            }
            _ => {}
        }
        group.limit(limits)?;
        Ok(group)
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that takes processes in.
    pub(super) fn members(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Changes limits; what is `None` stays.
    ///
    /// # Errors
    /// Naming the file.
    pub(super) fn limit(&self, limits: &ContainerLimits) -> Result<(), CgroupError> {
        for (file, value) in settings(limits) {
            self.write(file, &value)?;
        }
        Ok(())
    }

    /// Stops all processes, or lets them go on.
    ///
    /// # Errors
    /// Naming the file.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Kills all processes.
    pub(super) fn kill(&self) {
        let _ = self.freeze(false);
        // Linux 5.14.
        if self.write("cgroup.kill", "1").is_err() {
            for pid in self.pids() {
                let pid = rustix::process::Pid::from_raw(pid.cast_signed());
                let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
            }
        }
    }

    /// Its processes, as the agent numbers them.
    pub(super) fn pids(&self) -> Vec<u32> {
        let text = self.read("cgroup.procs");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes it. One that still has a process stays.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// What it uses.
    pub(super) fn stats(&self) -> ContainerStats {
        ContainerStats::of_group(|file| self.read(file))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.folder.join(file);
        fs::write(&path, value).map_err(|source| CgroupError { path, source })
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }
}

/// Gives the groups of containers what there is of the controllers. All at once where it can be: the kernel goes over all groups each time.
fn enable() {
    let file = Path::new(ROOT).join("cgroup.subtree_control");
    let wanted = CONTROLLERS.map(|controller| format!("+{controller}"));
    if fs::write(&file, wanted.join(" ")).is_err() {
        for one in wanted {
            let _ = fs::write(&file, one);
        }
    }
}

/// The files that limits are written to.
fn settings(limits: &ContainerLimits) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let period = limits.cpu_period_us.unwrap_or(PERIOD_US);
        let quota = limits
            .cpu_quota_us
            .map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        all.push(("cpu.max", format!("{quota} {period}")));
    }
    all.extend(
        limits
            .cpu_weight
            .map(|weight| ("cpu.weight", weight.clamp(1, 10_000).to_string())),
    );
    all.extend(limits.cpuset.clone().map(|cpus| ("cpuset.cpus", cpus)));
    all.extend(limits.memory_bytes.map(|bytes| ("memory.max", bytes.to_string())));
    all.extend(limits.pids.map(|pids| ("pids.max", pids.to_string())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_limited_is_written() {
        assert!(settings(&ContainerLimits::default()).is_empty());
        let limits = ContainerLimits {
            cpu_quota_us: Some(50_000),
            cpu_weight: Some(20_000),
            memory_bytes: Some(64 << 20),
            ..ContainerLimits::default()
        };
        let written = settings(&limits);
        let expected = [
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "10000"),
            ("memory.max", "67108864"),
        ];
        assert_eq!(written, expected.map(|(file, value)| (file, value.to_owned())));
    }
}
