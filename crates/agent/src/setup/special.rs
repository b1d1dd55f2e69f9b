//! The file systems of the kernel inside the new root, laid out as container images expect them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::MountFlags;

use zmachine_agent_protocol::Tmpfs;

use super::error::SetupError;
use super::root::mount_at;

const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// One mount: file system, target, flags, options.
type Special = (&'static str, &'static str, MountFlags, &'static str);

/// Without these no container runs.
const NEEDED: [Special; 5] = [
    ("proc", "/proc", NO_EXEC, ""),
    ("sysfs", "/sys", NO_EXEC, ""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, ""),
    // Group 5 is tty in every distribution; programs open terminals through the mode.
    (
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "gid=5,mode=620,ptmxmode=666",
    ),
    ("tmpfs", "/dev/shm", NO_DEVICES, "mode=1777"),
];

/// Missing in some kernels.
const WANTED: [Special; 2] = [
    ("mqueue", "/dev/mqueue", NO_EXEC, ""),
    ("cgroup2", "/sys/fs/cgroup", NO_EXEC, "nsdelegate,memory_recursiveprot"),
];

/// A read-only root still needs somewhere to write.
const SCRATCH: [Special; 2] = [
    ("tmpfs", "/run", NO_DEVICES, "mode=0755"),
    ("tmpfs", "/tmp", NO_DEVICES, "mode=1777"),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Kernel settings of container runtimes: everybody may ping, and ports below 1024 need no privilege.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Work that an idle guest's kernel does every second and half second: its counters of memory are summed up less often, and nothing is moved
/// together for huge pages before somebody wants one. An idle guest wakes less often, and a copy of one has less to do at once. A kernel
/// may be without these.
const LESS_OFTEN: [(&str, &str); 2] = [
    ("/proc/sys/vm/stat_interval", "10"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Mounts everything; `scratch` adds `/run` and `/tmp` in memory.
///
/// # Errors
/// [`SetupError`] for a file system no container runs without; the others become `warnings`.
pub(super) fn mount_all(scratch: bool, shm_bytes: Option<u64>, warnings: &mut Vec<String>) -> Result<(), SetupError> {
    for special in NEEDED.iter().chain(if scratch { SCRATCH.iter() } else { [].iter() }) {
        match (special, shm_bytes) {
            ((fstype, "/dev/shm", flags, options), Some(bytes)) => {
                let _ = fs::create_dir_all("/dev/shm");
                let options = format!("{options},size={bytes}");
                mount_at(Path::new(fstype), "/dev/shm", fstype, *flags, &options)?;
            }
            _ => mount_one(special)?,
        }
    }
    for special in &WANTED {
        if let Err(error) = mount_one(special) {
            warnings.push(error.to_string());
        }
    }
    for (target, link) in LINKS {
        let _ = symlink(target, link);
    }
    for (file, value) in SETTINGS {
        if let Err(error) = fs::write(file, value) {
            warnings.push(format!("set {file}: {error}"));
        }
    }
    for (file, value) in LESS_OFTEN {
        let _ = fs::write(file, value);
    }
    Ok(())
}

/// Mounts the file systems in memory that are asked for.
///
/// # Errors
/// [`SetupError`] naming the target.
pub(super) fn mount_tmpfs(all: &[Tmpfs]) -> Result<(), SetupError> {
    for tmpfs in all {
        let mut flags = NO_DEVICES;
        flags.set(MountFlags::NOEXEC, !tmpfs.exec);
        flags.set(MountFlags::RDONLY, tmpfs.read_only);
        let size = tmpfs
            .size_bytes
            .map(|bytes| format!(",size={bytes}"))
            .unwrap_or_default();
        let _ = fs::create_dir_all(&tmpfs.target);
        let options = format!("mode={:o}{size}", tmpfs.mode);
        mount_at(Path::new("tmpfs"), &tmpfs.target, "tmpfs", flags, &options)?;
    }
    Ok(())
}

/// Sets what is asked of the kernel.
///
/// # Errors
/// [`SetupError`] naming the file.
pub(super) fn set_kernel(sysctls: &[(String, String)]) -> Result<(), SetupError> {
    for (name, value) in sysctls {
        let path = format!("/proc/sys/{name}");
        fs::write(&path, value).map_err(|source| SetupError::File { path, source })?;
    }
    Ok(())
}

fn mount_one((fstype, target, flags, data): &Special) -> Result<(), SetupError> {
    // When it cannot be made, the mount fails and says so.
    let _ = fs::create_dir_all(target);
    mount_at(Path::new(fstype), target, fstype, *flags, data)
}
