//! What QEMU must see in its jail, and may take.

use std::path::Path;

use zmachine_sys::jail::{Access, Device, Jail};

use crate::{Accel, Boot, VmSpec};

/// Firmware and option ROMs, by distribution.
const DATA: [&str; 6] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/ipxe",
    "/usr/share/qemu-kvm",
    "/usr/local/share/qemu",
    "/usr/lib/ipxe",
];

/// Private memory beside the guest's in bytes: code and heap of QEMU, the stacks of up to 64 threads for I/O (8 MiB each,
/// reserved rather than used), and 256 MiB of translated code when it emulates.
const PRIVATE: u64 = 2 << 30;

/// Private memory for each virtual CPU in bytes: its thread's stack and arena.
const PRIVATE_PER_CPU: u64 = 80 << 20;

/// The jail of the QEMU at `program` for `vm`, whose largest file has `largest` bytes. `base` has user and folder.
/// `has_private_memory`: what the guest writes to its memory is its process's own.
pub(super) fn of(base: &Jail, program: &Path, vm: &VmSpec, largest: u64, has_private_memory: bool) -> Jail {
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
        if let Some(socket) = disk.socket() {
            jail = jail.see(socket, Access::Read);
        }
    }
    for disk in &vm.later_disks {
        jail = jail.see(&disk.socket, Access::Read);
    }
    for share in &vm.shares {
        jail = jail.see(&share.socket, Access::Read);
    }
    if vm.accel == Accel::Kvm {
        jail.devices.push(Device::Kvm);
    }
    let of_guest = if has_private_memory { vm.memory_bytes } else { 0 };
    let private = PRIVATE + PRIVATE_PER_CPU * u64::from(vm.cpus) + of_guest;
    jail.limits = crate::jail::limits(vm, largest, private);
    jail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn qemu_sees_what_it_boots_and_connects_to_and_no_disk() {
        let vm: VmSpec = serde_json::from_str(include_str!("../../tests/golden/vmspec-v1.json")).unwrap();
        let jail = of(
            &Jail::new("/run/m/jail", Some(5)),
            Path::new("/usr/bin/qemu"),
            &vm,
            1 << 40,
            false,
        );
        let sees = |path: &str| jail.view.iter().any(|view| Path::new(path).starts_with(&view.path));
        assert!(sees("/usr/bin/qemu") && sees("/k/vmlinux") && sees("/usr/share/seabios/bios.bin"));
        for disk in &vm.disks {
            match disk {
                Disk::File { path, .. } => assert!(!sees(path.to_str().unwrap())),
                Disk::VhostUser { socket, .. } | Disk::Nbd { socket, .. } => {
                    assert!(sees(socket.to_str().unwrap()));
                }
            }
        }
        assert!(!sees("/usr/bin/sh") && !sees("/etc/passwd") && !sees("/usr/share/doc"));
        assert!(jail.limits.file_bytes >= Some(1 << 40));
        assert!(!jail.devices.contains(&Device::Kvm) || vm.accel == Accel::Kvm);
    }
}
