//! Control groups (cgroup v2): what a machine's processes may take of the host.
//!
//! ```text
//! /sys/fs/cgroup/zmachine-<8 hex of the home>/<id>/     hypervisor and rootfs server; the monitor stays outside, so that
//!                                                       it can tell what happened when a limit ends one of them
//! ```
//! Interface: `Documentation/admin-guide/cgroup-v2.rst` of the Linux kernel. Only the unified hierarchy is used; with v1 or the
//! hybrid one the controllers are not in it, and machines run without these limits.
//!
//! # Invariants
//! A group is claimed in the journal before it is made, and removed with what still runs in it. The home's own folder
//! goes with the last machine. Nothing here decides whether a machine starts: a host without control groups is a warning.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use sha2::{Digest, Sha256};
use zmachine_hypervisor::{Accel, VmSpec};
use zmachine_sys::file::FileError;

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The controllers that are used.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Period of the CPU quota in microseconds, the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// Memory of hypervisor and rootfs server beside the guest's and translated code, in bytes. Both together were measured
/// at 179 MiB of private memory for a small guest under emulation, translated code included (`zmachine stats`, overhead);
/// what this and [`TRANSLATED_CODE`] leave above that is for the page cache that I/O needs to move at all.
const OVERHEAD: u64 = 128 << 20;

/// What QEMU's emulator may use for translated code in bytes: `tb-size` of its command line.
const TRANSLATED_CODE: u64 = 256 << 20;

/// How long processes that were killed may take to leave a group.
const LEAVING: Duration = Duration::from_secs(5);

/// Limits of one machine's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max` in bytes: the guest's memory and the overhead.
    pub memory_bytes: u64,
    /// `cpu.weight`: 100 for each virtual CPU, so that machines which compete share by what they were given.
    pub cpu_weight: u64,
    /// CPU time in microseconds in each `PERIOD_US`: what was asked for, or one CPU for each virtual one, and one for disks and
    /// emulation.
    pub cpu_quota_us: u64,
    /// `pids.max`: threads. QEMU has one for each virtual CPU and up to 64 for I/O; this is far above and far below harm.
    pub pids: u64,
}

impl Limits {
    /// The limits for a virtual machine; with `cpu_limit_milli`, its CPU time is limited to that many thousandths of a CPU.
    pub fn of(vm: &VmSpec, cpu_limit_milli: Option<u32>) -> Limits {
        let cpus = u64::from(vm.cpus);
        let translated = match vm.accel {
            Accel::Kvm => 0,
            Accel::Tcg => TRANSLATED_CODE,
        };
        Limits {
            // The kernel keeps up to a 64th of a guest's memory in page tables and the like.
            memory_bytes: vm.memory_bytes + vm.memory_bytes / 64 + OVERHEAD + translated,
            cpu_weight: (100 * cpus).min(10_000),
            cpu_quota_us: match cpu_limit_milli {
                Some(milli) => u64::from(milli) * PERIOD_US / 1000,
                None => (cpus + 1) * PERIOD_US,
            },
            pids: 512 + 16 * cpus,
        }
    }

    /// File and content of each, `memory.max` first.
    fn files(self) -> [(&'static str, String); 4] {
        [
            ("memory.max", self.memory_bytes.to_string()),
            ("cpu.weight", self.cpu_weight.to_string()),
            ("cpu.max", format!("{} {PERIOD_US}", self.cpu_quota_us)),
            ("pids.max", self.pids.to_string()),
        ]
    }
}

/// Why machines cannot be limited on this host; `None` when they can.
pub fn lacking(root: &Path) -> Option<String> {
    let offered = match fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(offered) => offered,
        Err(_) => return Some(format!("{} is not a cgroup v2 hierarchy", root.display())),
    };
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|wanted| !offered.split_whitespace().any(|c| c == *wanted))
        .collect();
    if !missing.is_empty() {
        return Some(format!("cgroup v2 has no controller for {}", missing.join(", ")));
    }
    let is_writable = rustix::fs::access(root.join("cgroup.subtree_control"), rustix::fs::Access::WRITE_OK).is_ok();
    (!is_writable).then(|| format!("{} belongs to root", root.display()))
}

/// The group of the machine `id` of the home whose state is in `data`.
pub fn path(root: &Path, data: &Path, id: &str) -> PathBuf {
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    let hex: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    root.join(format!("zmachine-{hex}")).join(id)
}

/// Makes the group at `path` below `root` with its limits. One that is there gets the limits.
///
/// # Errors
/// When the kernel refuses a part of it; what was made stays, for [`remove`].
pub fn make(root: &Path, path: &Path, limits: Limits) -> Result<(), FileError> {
    make_group(path)?;
    enable(
        root,
        path,
        &CONTROLLERS.map(|controller| format!("+{controller}")).join(" "),
    )?;
    set_limits(path, limits)
}

/// Gives a group that is there these limits.
///
/// # Errors
/// When the kernel refuses one.
pub fn set_limits(path: &Path, limits: Limits) -> Result<(), FileError> {
    limits
        .files()
        .into_iter()
        .try_for_each(|(file, content)| write(&path.join(file), &content))
}

/// Has what is in the group at `path` below `root` run on these CPUs, a list as `0-3,6`; an empty one is all. `false` when this
/// host has no controller for that.
///
/// # Errors
/// When the kernel refuses it.
pub fn set_cpus(root: &Path, path: &Path, cpus: &str) -> Result<bool, FileError> {
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let is_offered = offered.split_whitespace().any(|controller| controller == "cpuset");
    if !is_offered || !path.is_dir() {
        return Ok(false);
    }
    enable(root, path, "+cpuset")?;
    write(&path.join("cpuset.cpus"), &format!("{cpus}\n"))?;
    Ok(true)
}

/// Enables controllers for the group at `path`, in all above it.
fn enable(root: &Path, path: &Path, controllers: &str) -> Result<(), FileError> {
    let above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|folder| folder.starts_with(root))
        .collect();
    above
        .iter()
        .rev()
        .try_for_each(|folder| write(&folder.join("cgroup.subtree_control"), controllers))
}

fn make_group(path: &Path) -> Result<(), FileError> {
    // The home's folder may go with its last machine at any moment.
    for _ in 0..16 {
        match fs::create_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(|e| FileError::io("create", path, e)),
        }
    }
    Err(FileError::io("create", path, io::ErrorKind::NotFound.into()))
}

/// Moves a process, with all its threads, into the group at `path`.
///
/// # Errors
/// When it is gone or may not be moved.
pub fn add(path: &Path, pid: u32) -> Result<(), FileError> {
    write(&path.join("cgroup.procs"), &pid.to_string())
}

/// Ends what runs in the group at `path` and removes it. One that is not there is fine.
///
/// # Errors
/// When it cannot be removed within five seconds.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let deadline = Instant::now() + LEAVING;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                // Linux 5.14 and later. Before that, the journal's other claims have ended the processes.
                let _ = write(&path.join("cgroup.kill"), "1");
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(FileError::io("remove", path, e)),
        }
    }
    // The home's folder; other machines may be in it.
    if let Some(home) = path.parent() {
        let _ = fs::remove_dir(home);
    }
    Ok(())
}

/// Control files exist before they are written, and are never truncated or replaced.
fn write(path: &Path, content: &str) -> Result<(), FileError> {
    use std::io::Write;
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(cfg!(test))
        .truncate(false)
        .open(path);
    opened
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|e| FileError::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes: 1 << 30,
        cpu_weight: 200,
        cpu_quota_us: 300_000,
        pids: 544,
    };

    /// A folder that looks like the top of a hierarchy with these controllers.
    fn tree(controllers: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(root.path().join("cgroup.subtree_control"), "").unwrap();
        root
    }

    fn vm(cpus: u32, accel: Accel) -> VmSpec {
        VmSpec {
            name: "vm".into(),
            uuid: "u".into(),
            cpus,
            memory_bytes: 512 << 20,
            accel,
            boot: zmachine_hypervisor::Boot::Kernel {
                kernel: "/k".into(),
                initrd: None,
                cmdline: String::new(),
            },
            disks: Vec::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            agent: true,
            platform: Default::default(),
            is_saveable: false,
            later_disks: Vec::new(),
            later_files: 0,
        }
    }

    #[test]
    fn limits_are_what_the_guest_was_given_and_what_carrying_it_takes() {
        let (kvm, tcg) = (
            Limits::of(&vm(2, Accel::Kvm), None),
            Limits::of(&vm(2, Accel::Tcg), None),
        );
        assert_eq!(kvm.memory_bytes, (512 + 8 + 128) << 20);
        assert_eq!(tcg.memory_bytes, kvm.memory_bytes + (256 << 20));
        assert_eq!((kvm.cpu_weight, kvm.cpu_quota_us, kvm.pids), (200, 300_000, 544));
        assert_eq!(Limits::of(&vm(255, Accel::Kvm), None).cpu_weight, 10_000);
        assert_eq!(Limits::of(&vm(1, Accel::Kvm), Some(500)).cpu_quota_us, 50_000);
        assert_eq!(Limits::of(&vm(2, Accel::Kvm), Some(1500)).cpu_quota_us, 150_000);
    }

    #[test]
    fn a_group_gets_its_limits_and_the_controllers_on_the_way() {
        let root = tree("cpuset cpu io memory pids");
        assert_eq!(lacking(root.path()), None);
        let path = path(root.path(), Path::new("/var/lib/zmachine"), "0123456789ab");
        make(root.path(), &path, LIMITS).unwrap();
        add(&path, 42).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(path.join("memory.max")), "1073741824");
        assert_eq!(read(path.join("cpu.max")), "300000 100000");
        assert_eq!(
            (read(path.join("cpu.weight")), read(path.join("pids.max"))),
            ("200".into(), "544".into())
        );
        assert_eq!(read(path.join("cgroup.procs")), "42");
        for folder in [root.path(), path.parent().unwrap()] {
            assert_eq!(read(folder.join("cgroup.subtree_control")), "+cpu +memory +pids");
        }
        assert!(!path.join("cgroup.subtree_control").exists());
    }

    #[test]
    fn a_group_runs_where_it_is_told_when_the_host_has_a_controller_for_that() {
        for (controllers, is_possible) in [("cpuset cpu memory pids", true), ("cpu memory pids", false)] {
            let root = tree(controllers);
            let path = path(root.path(), Path::new("/var/lib/zmachine"), "0123456789ab");
            assert!(!set_cpus(root.path(), &path, "0").unwrap(), "there is no group yet");
            make(root.path(), &path, LIMITS).unwrap();
            assert_eq!(set_cpus(root.path(), &path, "0-1,3").unwrap(), is_possible);
            let written = fs::read_to_string(path.join("cpuset.cpus")).ok();
            assert_eq!(written.as_deref(), is_possible.then_some("0-1,3\n"));
        }
    }

    #[test]
    fn what_a_host_lacks_is_told_in_words() {
        assert!(lacking(tree("cpu io").path()).unwrap().contains("memory, pids"));
        assert!(
            lacking(tempfile::tempdir().unwrap().path())
                .unwrap()
                .contains("not a cgroup v2")
        );
    }

    #[test]
    fn two_homes_and_two_machines_have_groups_of_their_own() {
        let of = |home: &str, id: &str| path(Path::new(ROOT), Path::new(home), id);
        assert_ne!(of("/a", "1"), of("/b", "1"));
        assert_eq!(of("/a", "1").parent(), of("/a", "2").parent());
    }

    /// The unified hierarchy of this host, with or without controllers.
    fn real_root() -> Option<PathBuf> {
        let roots = [ROOT, "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let is_usable = |root: &PathBuf| {
            root.join("cgroup.controllers").exists()
                && rustix::fs::access(root.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
        };
        roots.into_iter().find(is_usable)
    }

    #[test]
    fn a_real_group_holds_a_process_and_goes_with_it() {
        let Some(root) = real_root() else {
            return zmachine_testkit::skip("needs a cgroup v2 hierarchy that may be written");
        };
        let home = tempfile::tempdir().unwrap();
        let path = path(&root, home.path(), "0123456789ab");
        make_group(&path).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        add(&path, child.id()).unwrap();
        let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), child.id().to_string());
        if !path.join("cgroup.kill").exists() {
            child.kill().unwrap();
        }
        remove(&path).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!path.exists() && !path.parent().unwrap().exists());
        remove(&path).unwrap();
    }
}
