//! What every hypervisor may take in its jail, and what its user must be able to read.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

use zmachine_sys::jail::Limits;

use crate::{Boot, VmSpec};

/// Descriptors: disks, taps, connections of the console, I/O of up to 64 threads. Cloud Hypervisor makes its table as large as
/// this at its start, up to 4096.
const DESCRIPTORS: u64 = 4096;

/// The smallest limit of a file's size in bytes.
const FILE_AT_LEAST: u64 = 64 << 20;

/// How much larger files may become where the limit cannot be raised later, in bytes.
const ROOM_TO_GROW: u64 = 1 << 40;

/// The limits of a hypervisor for `vm`, whose largest file has `largest` bytes, and which needs `private_bytes` of memory.
pub(crate) fn limits(vm: &VmSpec, largest: u64, private_bytes: u64) -> Limits {
    // A volume may grow under the running guest.
    let room_to_grow = if zmachine_sys::process::may_raise_limits() {
        0
    } else {
        ROOM_TO_GROW
    };
    Limits {
        descriptors: Some(DESCRIPTORS),
        processes: Some(512 + 16 * u64::from(vm.cpus)),
        // The guest's memory is a file too.
        file_bytes: Some(largest.max(vm.memory_bytes).max(FILE_AT_LEAST) + room_to_grow),
        private_bytes: Some(private_bytes),
    }
}

/// Lets the jail's user read what the guest boots. It is in folders that only its owner can enter, and not secret.
///
/// # Errors
/// When one is unreadable for others and cannot be changed.
pub(crate) fn make_readable(boot: &Boot) -> io::Result<()> {
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
