//! Devices of containers: which disk of the guest a container means, and which devices its processes may open.
//!
//! The second is a program of the kernel's at the container's control group (BPF, type `cgroup/dev`; `include/uapi/linux/bpf.h`): it is
//! given what is opened and answers whether it may be. A container that can make device nodes would have every disk of the guest otherwise.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};
use zmachine_agent_protocol::{Container, DeviceNode};

use super::error::{ContainerError, step};
use super::memory;
use crate::setup::Disk;

/// How long a disk that is on its way may take to appear.
const APPEAR: Duration = Duration::from_secs(30);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What is done to a device, as the kernel counts it: a node is made, it is read, it is written.
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// Character devices that every container may use: major and minor number, all of them where there is none. `null`, `zero`, `full`,
/// `random`, `urandom`; `tty`, `console`, `ptmx` and pseudoterminals; `net/tun`, whose
/// interfaces need a capability.
const USABLE: [(i32, Option<i32>); 10] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
    (10, Some(200)),
];

/// The disk with this serial number, once it is there.
///
/// # Errors
/// [`ContainerError`] when it does not come.
pub(super) async fn disk(serial: &str) -> Result<Disk, ContainerError> {
    if !memory::is_name(serial) {
        let what = format!("the disk {serial:?}");
        return Err(ContainerError::Unusable { what });
    }
    let deadline = Instant::now() + APPEAR;
    loop {
        match Disk::find(serial) {
            Some(disk) => return Ok(disk),
            None if Instant::now() > deadline => {
                let what = format!("the disk {serial}, which has not come within {} s,", APPEAR.as_secs());
                return Err(ContainerError::Unusable { what });
            }
            None => sleep(LOOK).await,
        }
    }
}

/// The devices of a container, with the numbers of those that are disks.
///
/// # Errors
/// [`ContainerError`] when a disk does not come.
pub(super) async fn found(container: &Container) -> Result<Vec<DeviceNode>, ContainerError> {
    let mut all = Vec::new();
    for device in &container.devices {
        let mut device = device.clone();
        if let Some(serial) = &device.serial {
            let numbers = disk(serial).await?.numbers();
            (device.major, device.minor) = numbers.ok_or_else(|| ContainerError::Unusable {
                what: format!("the disk {serial}, which is gone,"),
            })?;
        }
        all.push(device);
    }
    Ok(all)
}

/// Lets the processes of the control group `folder` open `devices`, those that every container has, and no others.
///
/// # Errors
/// [`ContainerError`] when the kernel cannot.
pub(super) fn restrict(folder: &Path, devices: &[DeviceNode]) -> Result<(), ContainerError> {
    let failed = step("restrict its devices");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let attached = rustix::fs::openat(CWD, folder, flags, Mode::empty())
        .and_then(|group| attach(&group, &load(&program(&rules(devices)))?));
    attached.map_err(failed)
}

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    block: bool,
    /// All when `None`.
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

fn rules(devices: &[DeviceNode]) -> Vec<Rule> {
    // A node by itself gives nothing.
    let nodes = [false, true].map(|block| Rule {
        block,
        major: None,
        minor: None,
        access: MAKE,
    });
    let usable = USABLE.map(|(major, minor)| Rule {
        block: false,
        major: Some(major),
        minor,
        access: ALL,
    });
    let own = devices.iter().map(|device| Rule {
        block: device.block,
        major: Some(device.major.cast_signed()),
        minor: Some(device.minor.cast_signed()),
        access: if device.read_only { ALL & !WRITE } else { ALL },
    });
    nodes.into_iter().chain(usable).chain(own).collect()
}

/// One instruction.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

/// Answers 1 to what one of the rules allows, 0 to all else.
///
/// Registers: 1 is what is asked about (kind and access, major, minor: 32 bits each), 2 the kind, 3 the access, 4 and 5 the numbers.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD: u8 = 0x61;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    const BLOCK: i32 = 1;
    const CHARACTER: i32 = 2;

    let mut all = vec![
        instruction(LOAD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD, 4, 1, 4, 0),
        instruction(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { BLOCK } else { CHARACTER };
        let conditions: Vec<(u8, i32)> = [Some((2, kind)), rule.major.map(|n| (4, n)), rule.minor.map(|n| (5, n))]
            .into_iter()
            .flatten()
            .collect();
        // Each condition leads to the next rule; five instructions follow them.
        for (at, (register, value)) in conditions.iter().enumerate() {
            let skip = conditions.len() - at - 1 + 5;
            all.push(instruction(JUMP_UNLESS_EQUAL, *register, 0, skip as i16, *value));
        }
        all.extend([
            instruction(COPY, 6, 3, 0, 0),
            instruction(AND, 6, 0, 0, ALL & !rule.access),
            instruction(JUMP_UNLESS_EQUAL, 6, 0, 2, 0),
            instruction(SET, 0, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ]);
    }
    all.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    all
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; what follows is zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    version: u32,
    flags: u32,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_int, Errno> {
    // SAFETY: the kernel reads as many bytes as it is told, which is the size of the value behind the pointer.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match done {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        // Descriptors are small.
        done => Ok(done as libc::c_int),
    }
}

fn load(program: &[u64]) -> Result<OwnedFd, Errno> {
    const COMMAND: libc::c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    let attributes = Load {
        kind: CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"".as_ptr().expose_provenance() as u64,
        log: [0; 4],
        version: 0,
        flags: 0,
    };
    let number = bpf(COMMAND, &attributes)?;
    // SAFETY: the kernel has just opened it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn attach(group: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    const COMMAND: libc::c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    let attributes = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: 0,
    };
    bpf(COMMAND, &attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(read_only: bool) -> DeviceNode {
        DeviceNode {
            path: "/dev/data".into(),
            block: true,
            major: 254,
            minor: 16,
            mode: 0o600,
            uid: 0,
            gid: 0,
            serial: None,
            read_only,
        }
    }

    /// Runs a program as the kernel does.
    fn answer(program: &[u64], block: bool, numbers: (i64, i64), access: i64) -> i64 {
        let kind = if block { 1 } else { 2 };
        let asked = [access << 16 | kind, numbers.0, numbers.1];
        let mut registers = [0_i64; 8];
        let mut at = 0;
        loop {
            let one = program[at];
            let (to, from) = ((one >> 8 & 15) as usize, (one >> 12 & 15) as usize);
            let (offset, value) = (i64::from((one >> 16) as i16), i64::from((one >> 32) as i32));
            at += 1;
            match one & 0xff {
                0x61 => registers[to] = asked[(offset / 4) as usize],
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = value,
                0x57 => registers[to] &= value,
                0x77 => registers[to] >>= value,
                0x55 if registers[to] != value => at += offset as usize,
                0x55 => {}
                0x95 => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn a_container_may_open_what_it_was_given_and_no_other_disk() {
        let own = program(&rules(&[disk(false)]));
        let (read, write, make) = (i64::from(READ), i64::from(WRITE), i64::from(MAKE));
        assert_eq!(answer(&own, true, (254, 16), read | write), 1);
        assert_eq!(answer(&own, true, (254, 0), read), 0);
        assert_eq!(answer(&own, true, (8, 0), make), 1, "a node by itself");
        assert_eq!(answer(&own, false, (254, 16), read), 0, "a character device");
        assert_eq!(answer(&own, false, (1, 3), read | write), 1);
        assert_eq!(answer(&own, false, (136, 7), read | write), 1);
        assert_eq!(answer(&own, false, (1, 1), read), 0, "the guest's memory");
    }

    #[test]
    fn what_is_only_read_is_not_written() {
        let own = program(&rules(&[disk(true)]));
        assert_eq!(answer(&own, true, (254, 16), i64::from(READ)), 1);
        assert_eq!(answer(&own, true, (254, 16), i64::from(READ | WRITE)), 0);
    }
}
