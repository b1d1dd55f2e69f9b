//! The pod's control group on this host, in which the kubelet expects all that a pod uses: `linux.cgroupsPath` of its sandbox.
//!
//! ```text
//! version 2    <path>/shim       the shim, the process that holds the network, the monitor
//!              <path>/machine    hypervisor and servers, with limits of their own (the monitor makes it)
//! version 1    <path>            all of them, in the hierarchies of cpu, cpuacct, memory and pids that are mounted
//! ```
//! Whatever the shim starts is in its group from its first instruction. Nothing here decides whether a pod starts.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use zmachine_agent_protocol::{ContainerStats, keyed};

/// Where hierarchies are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Hierarchies of version 1 that are used.
const HIERARCHIES: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

/// The shim's part of a group of version 2, whose inner groups have no processes.
const SHIM: &str = "shim";

/// The machine's part.
const MACHINE: &str = "machine";

/// How long processes that were killed may take to leave a group.
const LEAVING: Duration = Duration::from_secs(2);

/// Units of `cpuacct.stat`, in a second.
const TICKS: u64 = 100;

/// A pod's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodGroup {
    is_v2: bool,
    root: PathBuf,
    /// One for each hierarchy.
    folders: Vec<PathBuf>,
}

/// The path in a hierarchy that `linux.cgroupsPath` means: a path itself, or `SLICE:PREFIX:NAME` where systemd has made the slices.
fn relative(path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = path.split(':').collect();
    let plain = match parts[..] {
        [slice, prefix, name] => {
            let words: Vec<&str> = slice.strip_suffix(".slice")?.split('-').collect();
            // `a-b.slice` is in `a.slice`.
            let slices = (1..=words.len()).map(|count| format!("{}.slice", words[..count].join("-")));
            slices.collect::<PathBuf>().join(format!("{prefix}-{name}.scope"))
        }
        [path] => PathBuf::from(path.trim_start_matches('/')),
        _ => return None,
    };
    let is_plain = plain.components().all(|part| matches!(part, Component::Normal(_)));
    (is_plain && plain.components().next().is_some()).then_some(plain)
}

impl PodGroup {
    /// The one that a sandbox names, in the hierarchies below `root`; `None` where it names none, or this host has none.
    pub(crate) fn of(root: &Path, cgroups_path: &str) -> Option<PodGroup> {
        let path = relative(cgroups_path)?;
        let is_v2 = root.join("cgroup.controllers").exists();
        let hierarchies: Vec<PathBuf> = match is_v2 {
            true => vec![root.to_owned()],
            false => HIERARCHIES
                .iter()
                // Two names may be of one hierarchy.
                .filter_map(|name| fs::canonicalize(root.join(name)).ok())
                .filter(|folder| folder.join("cgroup.procs").exists())
                .collect(),
        };
        let mut folders: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.join(&path)).collect();
        folders.dedup();
        (!folders.is_empty()).then(|| PodGroup {
            is_v2,
            root: root.to_owned(),
            folders,
        })
    }

    /// The group that the machine makes for its own processes; `None`: they stay in that of the shim.
    pub(crate) fn machine(&self) -> Option<PathBuf> {
        self.is_v2.then(|| self.folders[0].join(MACHINE))
    }

    /// Where processes of the shim are.
    fn members(&self) -> impl Iterator<Item = PathBuf> {
        self.folders.iter().map(|folder| match self.is_v2 {
            true => folder.join(SHIM),
            false => folder.clone(),
        })
    }

    /// Moves processes into it, with all their threads.
    ///
    /// # Errors
    /// Naming the file.
    pub(crate) fn enter(&self, pids: &[u32]) -> io::Result<()> {
        let named =
            |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        for folder in self.members() {
            fs::create_dir_all(&folder).map_err(|error| named(&folder, error))?;
            let procs = folder.join("cgroup.procs");
            for pid in pids {
                write(&procs, *pid).map_err(|error| named(&procs, error))?;
            }
        }
        Ok(())
    }

    /// Moves this process out of it, to where all of them come from, and removes it.
    ///
    /// # Errors
    /// When something is still in it.
    pub(crate) fn leave(&self) -> io::Result<()> {
        for folder in self.members() {
            let is_inside = fs::read_to_string(folder.join("cgroup.procs"));
            let own = std::process::id().to_string();
            if is_inside.is_ok_and(|pids| pids.lines().any(|pid| pid == own)) {
                write(&self.hierarchy(&folder).join("cgroup.procs"), std::process::id())?;
            }
        }
        self.remove()
    }

    /// The folder of the hierarchy that a group is in.
    fn hierarchy<'a>(&self, folder: &'a Path) -> &'a Path {
        let of_root = |above: &&Path| match self.is_v2 {
            true => *above == self.root,
            false => above
                .parent()
                .is_some_and(|parent| fs::canonicalize(&self.root).is_ok_and(|root| parent == root)),
        };
        folder.ancestors().find(of_root).unwrap_or(folder)
    }

    /// Removes it, once the processes in it have ended.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let inner = match self.is_v2 {
            true => vec![self.folders[0].join(MACHINE), self.folders[0].join(SHIM)],
            false => Vec::new(),
        };
        let deadline = Instant::now() + LEAVING;
        inner.iter().chain(&self.folders).try_for_each(|folder| {
            loop {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    other => return other,
                }
            }
        })
    }

    /// What all of the pod's processes use on this host; `None` where there is no such group.
    pub(crate) fn stats(&self) -> Option<ContainerStats> {
        let found = self.folders.iter().any(|folder| folder.is_dir());
        found.then(|| {
            if self.is_v2 {
                ContainerStats::of_group(|file| self.read(file))
            } else {
                self.stats_v1()
            }
        })
    }

    /// A file of the group, in the first hierarchy that has it.
    fn read(&self, file: &str) -> String {
        let read = |folder: &PathBuf| fs::read_to_string(folder.join(file)).ok();
        self.folders.iter().find_map(read).unwrap_or_default()
    }

    /// The number in a file; `max` is none.
    fn number(&self, file: &str) -> Option<u64> {
        self.read(file).trim().parse().ok()
    }

    fn stats_v1(&self) -> ContainerStats {
        let (cpu, used, memory) = (
            self.read("cpu.stat"),
            self.read("cpuacct.stat"),
            self.read("memory.stat"),
        );
        let ticks = |key: &str| keyed(&used, key).saturating_mul(1_000_000 / TICKS);
        // The largest number of pages stands for none.
        let is_limit = |bytes: &u64| *bytes < 1 << 62;
        ContainerStats {
            cpu_us: self.number("cpuacct.usage").unwrap_or_default() / 1000,
            cpu_user_us: ticks("user"),
            cpu_system_us: ticks("system"),
            cpu_periods: keyed(&cpu, "nr_periods"),
            cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
            cpu_throttled_us: keyed(&cpu, "throttled_time") / 1000,
            memory_bytes: self.number("memory.usage_in_bytes").unwrap_or_default(),
            memory_limit_bytes: self.number("memory.limit_in_bytes").filter(is_limit),
            memory_anon_bytes: keyed(&memory, "total_rss"),
            memory_file_bytes: keyed(&memory, "total_cache"),
            memory_inactive_file_bytes: keyed(&memory, "total_inactive_file"),
            memory_kernel_bytes: self.number("memory.kmem.usage_in_bytes").unwrap_or_default(),
            page_faults: keyed(&memory, "total_pgfault"),
            major_page_faults: keyed(&memory, "total_pgmajfault"),
            oom_kills: keyed(&self.read("memory.oom_control"), "oom_kill"),
            pids: self.number("pids.current").unwrap_or_default(),
            pids_limit: self.number("pids.max"),
        }
    }
}

/// Control files exist before they are written.
fn write(procs: &Path, pid: u32) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(cfg!(test))
        .truncate(false)
        .open(procs)?;
    file.write_all(pid.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_by_its_path_or_by_slices_of_systemd() {
        let path = |text: &str| relative(text).map(|path| path.display().to_string());
        assert_eq!(
            path("/kubepods/burstable/pod1/abc").as_deref(),
            Some("kubepods/burstable/pod1/abc")
        );
        assert_eq!(
            path("kubepods-besteffort-pod1_2.slice:cri-containerd:abc").as_deref(),
            Some("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope")
        );
        for none in ["", "/", "/../x", "a/../../x", "a:b", "a:b:c:d"] {
            assert_eq!(path(none), None, "{none}");
        }
    }

    /// What looks like hierarchies of version 1.
    fn hierarchies(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("cgroup.procs"), "").unwrap();
        }
        root
    }

    #[test]
    fn a_pod_is_in_every_hierarchy_that_there_is_and_its_figures_are_found_in_them() {
        let root = hierarchies(&["cpuacct", "memory", "blkio"]);
        let group = PodGroup::of(root.path(), "/kubepods/pod1/abc").unwrap();
        assert_eq!(group.machine(), None);
        assert_eq!(group.stats(), None);
        group.enter(&[42]).unwrap();
        let file = |name: &str| root.path().join(name);
        assert_eq!(
            fs::read_to_string(file("memory/kubepods/pod1/abc/cgroup.procs")).unwrap(),
            "42"
        );
        assert!(!file("blkio/kubepods").exists());
        fs::write(file("cpuacct/kubepods/pod1/abc/cpuacct.usage"), "7000\n").unwrap();
        fs::write(file("memory/kubepods/pod1/abc/memory.usage_in_bytes"), "4096\n").unwrap();
        fs::write(
            file("memory/kubepods/pod1/abc/memory.limit_in_bytes"),
            "9223372036854771712\n",
        )
        .unwrap();
        fs::write(
            file("memory/kubepods/pod1/abc/memory.stat"),
            "total_rss 1\ntotal_inactive_file 9\n",
        )
        .unwrap();
        let stats = group.stats().unwrap();
        assert_eq!(
            (stats.cpu_us, stats.memory_bytes, stats.memory_limit_bytes),
            (7, 4096, None)
        );
        assert_eq!((stats.memory_anon_bytes, stats.memory_inactive_file_bytes), (1, 9));
    }

    #[test]
    fn in_version_2_the_machine_has_a_group_beside_that_of_the_shim() {
        let root = hierarchies(&[]);
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let group = PodGroup::of(root.path(), "/pod/abc").unwrap();
        group.enter(&[42]).unwrap();
        assert!(root.path().join("pod/abc/shim/cgroup.procs").exists());
        assert_eq!(group.machine(), Some(root.path().join("pod/abc/machine")));
    }

    #[test]
    fn a_host_without_control_groups_has_none_for_a_pod() {
        assert_eq!(PodGroup::of(hierarchies(&[]).path(), "/pod/abc"), None);
    }

    #[test]
    fn a_real_group_takes_a_process_in_and_goes() {
        let name = format!("/zmachine-test-{}/x", std::process::id());
        let Some(group) = PodGroup::of(Path::new(ROOT), &name) else {
            return zmachine_testkit::skip("needs control groups");
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        if let Err(error) = group.enter(&[child.id()]) {
            child.kill().unwrap();
            child.wait().unwrap();
            return zmachine_testkit::skip(&format!("needs control groups that may be written: {error}"));
        }
        let of_child = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(of_child.contains(&name), "{of_child}");
        assert!(group.stats().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        group.leave().unwrap();
        for folder in &group.folders {
            assert!(!folder.exists());
            fs::remove_dir(folder.parent().unwrap()).unwrap();
        }
    }
}
