//! From an OCI specification to what the agent in the guest is told. Pure, but for what it asks of the host's paths.

use std::path::{Path, PathBuf};

use zmachine_agent_protocol::{
    Container, ContainerLimits, ContainerMount, ContainerProcess, ContainerRoot, MountSource, ResourceLimit, WindowSize,
};
use zmachine_spec::pod::SHARE_TARGET;
use zmachine_sys::mount::VolumeOptions;

use crate::devices;
use crate::error::ShimError;
use crate::names::{self, MountOptions, mount_options};
use crate::oci::{self, Place, Spec};

/// A file or directory of the host that a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostBind {
    /// On the host.
    pub(crate) source: PathBuf,
    /// Its name among the container's.
    pub(crate) name: String,
    /// How it is brought.
    pub(crate) options: VolumeOptions,
}

/// What is asked of the host's paths.
pub(crate) trait HostPaths {
    /// A file system in memory made for a pod's volume: its size in bytes. `None` for everything else.
    fn memory_volume(&self, path: &Path) -> Option<u64>;

    /// Whether something is mounted below it.
    fn has_mounts_below(&self, path: &Path) -> bool;

    /// Whether it is the host's own node of the block device with these numbers.
    fn is_node_of(&self, path: &Path, major: u32, minor: u32) -> bool;
}

/// The host's name of a container's root in the pod's share.
pub(crate) const ROOT: &str = "rootfs";

/// The folder of a container's volumes in the pod's share.
pub(crate) const MOUNTS: &str = "mounts";

/// The folder of kernel modules in the pod's share: no container has this name.
pub(crate) const MODULES: &str = ".modules";

/// Whether a process may manage networks: it may want modules of the kernel that no guest has loaded at its boot.
pub(crate) fn manages_networks(process: &ContainerProcess) -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    process.capabilities.is_none_or(|sets| sets.bounding & NET_ADMIN != 0)
}

/// Where the guest has a file of the folder of kernel modules.
pub(crate) fn module_in_guest(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    Some(format!("{SHARE_TARGET}/{MODULES}/{name}"))
}

/// The container `id` as the agent makes it, and what the host has to bring into the pod's share for it.
///
/// # Errors
/// What no machine can do.
pub(crate) fn container(
    id: &str,
    spec: &Spec,
    root: ContainerRoot,
    host: &dyn HostPaths,
) -> Result<(Container, Vec<HostBind>), ShimError> {
    let mut binds = Vec::new();
    let mut mounts = Vec::new();
    for mount in &spec.mounts {
        mounts.push(one_mount(id, mount, host, &mut binds)?);
    }
    let limits = limits(spec.linux.resources.as_ref());
    let container = Container {
        root,
        read_only: spec.root.as_ref().is_some_and(|root| root.readonly),
        modules: Vec::new(),
        mounts,
        devices: devices::nodes(&spec.linux, host),
        devices_alone: !devices::may_use_all(spec),
        masked: spec.linux.masked_paths.clone(),
        read_only_paths: spec.linux.readonly_paths.clone(),
        own_pids: spec.namespace("pid") == Place::Own,
        // That of a pod is the machine's.
        hostname: (spec.namespace("uts") == Place::Own && !spec.hostname.is_empty()).then(|| spec.hostname.clone()),
        // As above.
        sysctls: Vec::new(),
        limits,
    };
    Ok((container, binds))
}

/// Where the guest has the directory of a container's root.
pub(crate) fn root_in_guest(id: &str) -> ContainerRoot {
    ContainerRoot::Directory {
        path: format!("{SHARE_TARGET}/{id}/{ROOT}"),
    }
}

fn one_mount(
    id: &str,
    mount: &oci::Mount,
    host: &dyn HostPaths,
    binds: &mut Vec<HostBind>,
) -> Result<ContainerMount, ShimError> {
    let mut options = mount_options(&mount.options);
    let is_bind = mount.kind == "bind" || options.bind.is_some();
    let data = std::mem::take(&mut options.data);
    let (source, data) = match mount.kind.as_str() {
        // All containers of a pod have the same one, which the host has made for them: in the guest it is the guest's.
        _ if is_bind && mount.destination == "/dev/shm" => {
            let source = MountSource::Bind {
                path: "/dev/shm".to_owned(),
                recursive: false,
            };
            (source, String::new())
        }
        _ if is_bind => (bound(id, mount, &mut options, host, binds)?, String::new()),
        "cgroup" | "cgroup2" => {
            let fstype = "cgroup2".to_owned();
            (MountSource::New { fstype }, String::new())
        }
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" => {
            let fstype = mount.kind.clone();
            (MountSource::New { fstype }, data)
        }
        other => {
            return Err(ShimError::Unsupported(format!(
                "no '{other}' can be mounted at {} in a machine: bring it as a directory, or a block volume",
                mount.destination
            )));
        }
    };
    Ok(ContainerMount {
        source,
        target: mount.destination.clone(),
        flags: options.flags,
        propagation: options.propagation,
        options: data,
    })
}

/// A file or directory of the host. That it is read-only is seen to on the host, where a guest has no say.
fn bound(
    id: &str,
    mount: &oci::Mount,
    options: &mut MountOptions,
    host: &dyn HostPaths,
    binds: &mut Vec<HostBind>,
) -> Result<MountSource, ShimError> {
    if options.propagation & names::SHARED != 0 {
        return Err(ShimError::Unsupported(format!(
            "what a machine mounts at {} cannot appear on its host (mountPropagation: Bidirectional): use HostToContainer, or another runtime class",
            mount.destination
        )));
    }
    if let Some(size) = host.memory_volume(&mount.source) {
        return Ok(MountSource::Memory {
            name: memory_name(&mount.source),
            size_bytes: Some(size),
        });
    }
    let name = binds.len().to_string();
    let volume = VolumeOptions {
        recursive: options.bind.unwrap_or(true),
        read_only: options.flags & names::READ_ONLY != 0,
        read_only_below: options.read_only_below,
        follows: options.propagation & names::SLAVE != 0,
    };
    // The guest sees one file system, and could make no difference between a volume and what is mounted in it.
    if volume.read_only && !volume.read_only_below && volume.recursive && host.has_mounts_below(&mount.source) {
        options.flags &= !names::READ_ONLY;
    }
    binds.push(HostBind {
        source: mount.source.clone(),
        name: name.clone(),
        options: volume,
    });
    Ok(MountSource::Bind {
        path: format!("{SHARE_TARGET}/{id}/{MOUNTS}/{name}"),
        recursive: true,
    })
}

/// A name that the guest can use for what is at `path` on the host, and for nothing else.
fn memory_name(path: &Path) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(path.as_os_str().as_encoded_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What a container may use, as control groups of version 2 have it.
pub(crate) fn limits(resources: Option<&oci::Resources>) -> ContainerLimits {
    let Some(resources) = resources else {
        return ContainerLimits::default();
    };
    let positive = |value: Option<i64>| value.filter(|value| *value > 0).map(i64::cast_unsigned);
    let cpu = resources.cpu.clone().unwrap_or_default();
    ContainerLimits {
        cpu_quota_us: positive(cpu.quota),
        // Without a quota it says nothing.
        cpu_period_us: positive(cpu.quota).and(cpu.period).filter(|period| *period > 0),
        cpu_weight: cpu.shares.filter(|shares| *shares > 0).map(weight),
        // CPUs of the host.
        cpuset: None,
        memory_bytes: positive(resources.memory.as_ref().and_then(|memory| memory.limit)),
        pids: positive(resources.pids.as_ref().and_then(|pids| pids.limit)),
    }
}

/// From shares (2 to 262,144) to a weight (1 to 10,000), as all runtimes do.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// A process of a container.
///
/// # Errors
/// For names that are none.
pub(crate) fn process(
    process: &oci::Process,
    terminal: bool,
    stdin: bool,
    system_call_filter: Vec<u64>,
) -> Result<ContainerProcess, ShimError> {
    let size = |value: u32, default: u16| match value {
        0 => default,
        value => value.min(u32::from(u16::MAX)) as u16,
    };
    let window = process.console_size.unwrap_or_default();
    let limits = process.rlimits.iter().map(|limit| {
        let value = |value: u64| (value != u64::MAX).then_some(value);
        Ok(ResourceLimit {
            resource: names::limit(&limit.kind)?,
            soft: value(limit.soft),
            hard: value(limit.hard),
        })
    });
    Ok(ContainerProcess {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids.clone(),
        umask: process.user.umask,
        terminal: terminal.then_some(WindowSize {
            rows: size(window.height, 24),
            columns: size(window.width, 80),
        }),
        stdin,
        capabilities: process.capabilities.as_ref().map(names::capabilities).transpose()?,
        limits: limits.collect::<Result<_, ShimError>>()?,
        no_new_privileges: process.no_new_privileges,
        // What the host's kernel makes of it is the hypervisor's business.
        oom_score_adj: process.oom_score_adj,
        system_call_filter,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Everything below `/memory` is a volume in memory.
    pub(crate) struct Paths;

    impl HostPaths for Paths {
        fn memory_volume(&self, path: &Path) -> Option<u64> {
            path.starts_with("/memory").then_some(1 << 20)
        }

        fn has_mounts_below(&self, path: &Path) -> bool {
            path.starts_with("/mounts")
        }

        fn is_node_of(&self, path: &Path, major: u32, minor: u32) -> bool {
            path == Path::new("/dev/sda") && (major, minor) == (8, 0)
        }
    }

    fn spec(json: serde_json::Value) -> Spec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn mounts_of_the_host_come_over_the_share_and_others_are_made_in_the_guest() {
        let spec = spec(serde_json::json!({
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                {"destination": "/etc/hosts", "type": "bind", "source": "/var/hosts", "options": ["rbind", "ro"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
                {"destination": "/cache", "type": "bind", "source": "/memory/a", "options": ["rbind"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            ],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]},
        }));
        let (container, binds) = container("c", &spec, root_in_guest("c"), &Paths).unwrap();
        assert!(container.read_only && container.own_pids);
        let sources: Vec<_> = container.mounts.iter().map(|mount| &mount.source).collect();
        let bind = |path: &str, recursive| MountSource::Bind {
            path: path.to_owned(),
            recursive,
        };
        assert_eq!(sources[1], &bind("/run/zmachine/pod/c/mounts/0", true));
        assert_eq!(sources[2], &bind("/dev/shm", false));
        assert!(matches!(sources[3], MountSource::Memory { size_bytes: Some(size), .. } if *size == 1 << 20));
        assert_eq!(
            sources[4],
            &MountSource::New {
                fstype: "cgroup2".into()
            }
        );
        assert_eq!(container.mounts[1].flags, 1);
        let expected = HostBind {
            source: "/var/hosts".into(),
            name: "0".into(),
            options: VolumeOptions {
                recursive: true,
                read_only: true,
                ..VolumeOptions::default()
            },
        };
        assert_eq!(binds, [expected]);
    }

    #[test]
    fn a_pod_with_shared_processes_and_one_that_wants_the_hosts_both_see_the_guests() {
        for namespaces in [
            serde_json::json!([{"type": "pid", "path": "/proc/7/ns/pid"}]),
            serde_json::json!([]),
        ] {
            let spec = spec(serde_json::json!({"linux": {"namespaces": namespaces}}));
            assert!(!container("c", &spec, root_in_guest("c"), &Paths).unwrap().0.own_pids);
        }
    }

    #[test]
    fn a_read_only_volume_is_so_on_the_host_and_leaves_alone_what_is_mounted_in_it() {
        let spec = spec(serde_json::json!({"mounts": [
            {"destination": "/a", "type": "bind", "source": "/mounts/a", "options": ["rbind", "rprivate", "ro"]},
            {"destination": "/b", "type": "bind", "source": "/mounts/a", "options": ["rbind", "rprivate", "rro"]},
            {"destination": "/c", "type": "bind", "source": "/c", "options": ["rbind", "rslave"]},
        ]}));
        let (container, binds) = container("c", &spec, root_in_guest("c"), &Paths).unwrap();
        let in_guest: Vec<_> = container.mounts.iter().map(|mount| mount.flags).collect();
        assert_eq!(in_guest, [0, names::READ_ONLY, 0]);
        let on_host = |at: usize| {
            let options: VolumeOptions = binds[at].options;
            (options.read_only, options.read_only_below, options.follows)
        };
        assert_eq!(
            [0, 1, 2].map(on_host),
            [(true, false, false), (true, true, false), (false, false, true)]
        );
    }

    #[test]
    fn a_mount_of_a_guest_that_should_appear_on_the_host_is_refused() {
        let shared =
            serde_json::json!({"destination": "/x", "type": "bind", "source": "/x", "options": ["rbind", "rshared"]});
        let spec = spec(serde_json::json!({"mounts": [shared]}));
        let refused = container("c", &spec, root_in_guest("c"), &Paths)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("/x") && refused.contains("HostToContainer"),
            "{refused}"
        );
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        let spec = spec(serde_json::json!({"mounts": [{"destination": "/x", "type": "nfs", "source": "h:/"}]}));
        let refused = container("c", &spec, root_in_guest("c"), &Paths)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("nfs") && refused.contains("/x"), "{refused}");
    }

    #[test]
    fn limits_are_those_of_version_two() {
        let resources: oci::Resources = serde_json::from_value(serde_json::json!({
            "cpu": {"shares": 1024, "quota": 50000, "period": 100000},
            "memory": {"limit": 67108864}, "pids": {"limit": -1},
        }))
        .unwrap();
        let limits = limits(Some(&resources));
        assert_eq!((limits.cpu_weight, limits.cpu_quota_us), (Some(39), Some(50_000)));
        assert_eq!((limits.memory_bytes, limits.pids), (Some(64 << 20), None));
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
    }
}
