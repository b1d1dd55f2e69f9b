//! What QEMU must see in its jail, and may take.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zmachine_sys::jail::{Access, Device, Jail, Limits};

use crate::{Accel, Boot, Disk, VmSpec};

/// Firmware and option ROMs, by distribution.
const DATA: [&str; 6] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/ipxe",
    "/usr/share/qemu-kvm",
    "/usr/local/share/qemu",
    "/usr/lib/ipxe",
];

/// Descriptors: disks, taps, connections of the console, I/O of up to 64 threads.
const DESCRIPTORS: u64 = 4096;

/// Private memory beside the guest's in bytes: code and heap of QEMU, the stacks of up to 64 threads for I/O (8 MiB each,
/// reserved rather than used), and 256 MiB of translated code when it emulates.
const PRIVATE: u64 = 2 << 30;

/// Private memory for each virtual CPU in bytes: its thread's stack and arena.
const PRIVATE_PER_CPU: u64 = 80 << 20;

/// The smallest limit of a file's size in bytes.
const FILE_AT_LEAST: u64 = 64 << 20;

/// How much larger files may become where the limit can not be raised later, in bytes.
const ROOM_TO_GROW: u64 = 1 << 40;

/// The jail of the QEMU at `program` for `vm`, whose largest file has `largest` bytes. `base` has user and folder.
pub(super) fn of(base: &Jail, program: &Path, vm: &VmSpec, largest: u64) -> Jail {
    let mut jail = base.clone().see_program(program);
    for folder in DATA {
        jail = jail.see(folder, Access::Read);
    }
    if let Boot::Kernel { kernel, initrd, .. } = &vm.boot {
        jail = jail.see(kernel, Access::Read);
        if let Some(initrd) = initrd {
            jail = jail.see(initrd, Access::Read);
        }
    }
    for disk in &vm.disks {
        if let Disk::VhostUser { socket, .. } = disk {
            jail = jail.see(socket, Access::Read);
        }
    }
    for share in &vm.shares {
        jail = jail.see(&share.socket, Access::Read);
    }
    if vm.accel == Accel::Kvm {
        jail.devices.push(Device::Kvm);
    }
    // A volume may grow under the running guest.
    let room_to_grow = if zmachine_sys::process::may_raise_limits() {
        0
    } else {
        ROOM_TO_GROW
    };
    jail.limits = Limits {
        descriptors: Some(DESCRIPTORS),
        processes: Some(512 + 16 * u64::from(vm.cpus)),
        // The guest's memory is a file too.
        file_bytes: Some(largest.max(vm.memory_bytes).max(FILE_AT_LEAST) + room_to_grow),
        private_bytes: Some(PRIVATE + PRIVATE_PER_CPU * u64::from(vm.cpus)),
    };
    jail
}

/// Lets the jail's user read what the guest boots. It is in folders that only its owner can enter, and not secret.
///
/// # Errors
/// When one is unreadable for others and can not be changed.
pub(super) fn make_readable(boot: &Boot) -> io::Result<()> {
    let Boot::Kernel { kernel, initrd, .. } = boot else {
        return Ok(());
    };
    for path in [Some(kernel), initrd.as_ref()].into_iter().flatten() {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o004 == 0 {
            fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 | 0o444))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_sees_what_it_boots_and_connects_to_and_no_disk() {
        let vm: VmSpec = serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap();
        let jail = of(
            &Jail::new("/run/m/jail", Some(5)),
            Path::new("/usr/bin/qemu"),
            &vm,
            1 << 40,
        );
        let sees = |path: &str| jail.view.iter().any(|view| Path::new(path).starts_with(&view.path));
        assert!(sees("/usr/bin/qemu") && sees("/k/vmlinux") && sees("/usr/share/seabios/bios.bin"));
        for disk in &vm.disks {
            match disk {
                Disk::File { path, .. } => assert!(!sees(path.to_str().unwrap())),
                Disk::VhostUser { socket, .. } => assert!(sees(socket.to_str().unwrap())),
            }
        }
        assert!(!sees("/usr/bin/sh") && !sees("/etc/passwd") && !sees("/usr/share/doc"));
        assert!(jail.limits.file_bytes >= Some(1 << 40));
        assert!(!jail.devices.contains(&Device::Kvm) || vm.accel == Accel::Kvm);
    }
}
