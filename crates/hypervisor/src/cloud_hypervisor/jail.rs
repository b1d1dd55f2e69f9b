//! What Cloud Hypervisor must see in its jail, and may take.
//!
//! Unlike QEMU it opens disks by their paths and not by inherited descriptors. They belong to root and must stay so, whoever runs
//! the machine: in its jail each is a mount in which it belongs to the machine's user ([`mount::owned_by`]). Where the kernel or the
//! file system has no such mounts, the process stays root, as the owner of its files and without any of root's powers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use zmachine_sys::jail::{Access, Device, Jail};
use zmachine_sys::mount;

use crate::{Boot, Disk, LaunchError, VmSpec};

use super::folder::Folder;
use super::save::Saves;

/// Private memory beside the guest's in bytes: code, heap, and the stacks of its threads (8 MiB each in a build with glibc,
/// reserved rather than used).
const PRIVATE: u64 = 1 << 30;

/// Private memory for each virtual CPU in bytes: its thread's stack and arena.
const PRIVATE_PER_CPU: u64 = 80 << 20;

/// The files of a machine that only their owner may open.
#[derive(Debug)]
pub(super) struct Files {
    /// Whom the hypervisor runs as, and for whom the files are there.
    pub(super) user: Option<u32>,
    all: Vec<(PathBuf, Access, Option<OwnedFd>)>,
    largest: u64,
}

impl Files {
    /// Those of `vm`, for `user` if they can be, else for their owner.
    ///
    /// # Errors
    /// When one is not there, or a socket cannot be given back to the owner.
    pub(super) fn of(vm: &VmSpec, user: Option<u32>) -> Result<Files, LaunchError> {
        let paths = paths(vm);
        let size = |path: &Path| match path.metadata() {
            Ok(meta) => Ok(meta.len()),
            Err(source) => Err(LaunchError::Missing {
                what: "the disk",
                path: path.to_owned(),
                source,
            }),
        };
        let sizes = paths.iter().map(|(path, _)| size(path));
        let largest = sizes.collect::<Result<Vec<_>, _>>()?.into_iter().max();
        let mount = |user| {
            let owned = |(path, access): &(PathBuf, Access)| mount::owned_by(user, path, *access == Access::Read);
            paths.iter().map(owned).collect::<io::Result<Vec<_>>>()
        };
        let mounts = user.map(mount).and_then(Result::ok);
        let given = mounts.is_some();
        if user.is_some() && !given {
            give_back(vm).map_err(|source| LaunchError::Channel {
                what: "connection to its disks",
                source,
            })?;
        }
        let mut mounts = mounts.into_iter().flatten();
        let with_mount = |(path, access)| (path, access, mounts.next());
        Ok(Files {
            user: user.filter(|_| given),
            all: paths.into_iter().map(with_mount).collect(),
            largest: largest.unwrap_or_default(),
        })
    }

    /// The descriptors that the jailed process inherits.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.all
            .iter()
            .filter_map(|(_, _, mount)| Some(mount.as_ref()?.as_raw_fd()))
    }
}

/// Disks and firmware, and what can be done with them.
fn paths(vm: &VmSpec) -> Vec<(PathBuf, Access)> {
    let disk = |disk: &Disk| match disk {
        Disk::File { path, read_only, .. } => {
            let access = if *read_only { Access::Read } else { Access::Write };
            Some((path.clone(), access))
        }
        Disk::VhostUser { .. } | Disk::Nbd { .. } => None,
    };
    let mut paths: Vec<_> = vm.disks.iter().filter_map(disk).collect();
    if let Boot::Firmware { code, .. } = &vm.boot {
        paths.push((code.clone(), Access::Read));
    }
    paths
}

/// The sockets that the machine's devices are served at.
fn served(vm: &VmSpec) -> impl Iterator<Item = &Path> {
    let disks = vm.disks.iter().filter_map(|disk| match disk {
        Disk::VhostUser { socket, .. } => Some(socket.as_path()),
        Disk::File { .. } | Disk::Nbd { .. } => None,
    });
    disks.chain(vm.shares.iter().map(|share| share.socket.as_path()))
}

/// Takes the sockets of the machine from its user again, which the hypervisor is not to be.
fn give_back(vm: &VmSpec) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    for socket in served(vm) {
        rustix::fs::chown(
            socket,
            Some(Uid::from_raw(uid.as_raw())),
            Some(Gid::from_raw(gid.as_raw())),
        )?;
    }
    Ok(())
}

/// The jail of the program at `program` for `vm`. `base` has user and folder.
pub(super) fn of(
    base: &Jail,
    program: &Path,
    vm: &VmSpec,
    files: &Files,
    folder: &Folder,
    saves: Option<&Saves>,
) -> Jail {
    let mut jail = base.clone().see_program(program);
    jail.user = files.user;
    if let Boot::Kernel { kernel, initrd, .. } = &vm.boot {
        jail = jail.see(kernel, Access::Read);
        if let Some(initrd) = initrd {
            jail = jail.see(initrd, Access::Read);
        }
    }
    for socket in served(vm) {
        jail = jail.see(socket, Access::Read);
    }
    let with = |jail: Jail, path: &Path, access, mount| match mount {
        Some(mount) => jail.see_mount(path, access, mount),
        None => jail.see(path, access),
    };
    jail = files.all.iter().fold(jail, |jail, (path, access, mount)| {
        with(jail, path, *access, mount.as_ref().map(AsRawFd::as_raw_fd))
    });
    jail = with(jail, folder.path(), Access::Write, folder.mount());
    if let Some(saves) = saves {
        jail = with(jail, saves.path(), Access::Write, saves.mount());
    }
    jail.devices.push(Device::Kvm);
    // Memory that is not shared with others is private.
    let private = PRIVATE + PRIVATE_PER_CPU * u64::from(vm.cpus) + vm.memory_bytes;
    let largest = files.largest.max(saves.map_or(0, Saves::largest));
    jail.limits = crate::jail::limits(vm, largest, private);
    jail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sees_what_it_boots_and_connects_to_and_its_own_disks() {
        let mut vm: VmSpec = serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap();
        let run = tempfile::tempdir().unwrap();
        let disk = run.path().join("root.img");
        std::fs::write(&disk, "").unwrap();
        for file in &mut vm.disks {
            if let Disk::File { path, .. } = file {
                path.clone_from(&disk);
            }
        }
        let folder = Folder::make(run.path(), None).unwrap();
        let files = Files::of(&vm, None).unwrap();
        let base = Jail::new("/run/m/jail", None);
        let jail = of(&base, Path::new("/opt/cloud-hypervisor"), &vm, &files, &folder, None);
        let may = |path: &Path| {
            let view = jail.view.iter().find(|view| path.starts_with(&view.path));
            view.map(|view| view.access)
        };
        let at = |path: &str| may(Path::new(path));
        assert_eq!(at("/opt/cloud-hypervisor"), Some(Access::Execute));
        assert_eq!(at("/k/vmlinux"), Some(Access::Read));
        assert_eq!(at("/run/rootfs.sock"), Some(Access::Read));
        assert_eq!(may(&disk), Some(Access::Write));
        assert_eq!(may(&folder.reported().api), Some(Access::Write));
        for path in ["/m/spec.json", "/bin/sh", "/etc/passwd", "/run/ctl.sock", "/sys"] {
            assert_eq!(at(path), None, "{path}");
        }
        assert_eq!(may(&run.path().join("ctl.sock")), None);
        assert!(jail.devices.contains(&Device::Kvm));
        assert!(jail.limits.private_bytes > Some(vm.memory_bytes));
    }
}
