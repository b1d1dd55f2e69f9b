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
use crate::modules;
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

/// Character devices that every container may use: a major number and its minor ones, all of them where there are none. `null`, `zero`,
/// `full`, `random`, `urandom`; `tty`, `console`, `ptmx`; pseudoterminals; `net/tun`, whose interfaces need a capability.
const USABLE: [(i32, &[i32]); 4] = [(1, &[3, 5, 7, 8, 9]), (5, &[0, 1, 2]), (136, &[]), (10, &[200])];

/// The disk with this serial number, once it is there.
///
/// # Errors
/// [`ContainerError`] when it does not come.
pub(super) async fn disk(serial: &str) -> Result<Disk, ContainerError> {
    if !memory::is_name(serial) {
        let what = format!("the disk {serial:?}");
        return Err(ContainerError::Unusable { what });
    }
    modules::load_kept().map_err(|error| ContainerError::Unusable {
        what: format!("the disk {serial} ({error})"),
    })?;
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
        .and_then(|group| attach(&group, &load(&program(devices))?));
    attached.map_err(failed)
}

/// One instruction.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

const LOAD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// What the kernel calls a block device and a character device.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

// What a program has in its registers: 1 is what is asked about (kind and access, major, minor: 32 bits each), and the answer in 0.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const WORK: u8 = 6;

/// Where a jump leads that is not known yet: to the answer that allows it.
const TO_YES: i16 = i16::MAX;

/// Answers 1 to what a container may do, 0 to all else. As short as it can be: the kernel follows every way through it before it takes it, in
/// each container's start.
fn program(devices: &[DeviceNode]) -> Vec<u64> {
    let mut all = vec![
        instruction(LOAD, KIND, 1, 0, 0),
        instruction(COPY, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD, MAJOR, 1, 4, 0),
        instruction(LOAD, MINOR, 1, 8, 0),
        // A node by itself gives nothing.
        instruction(COPY, WORK, ACCESS, 0, 0),
        instruction(AND, WORK, 0, 0, ALL & !MAKE),
        instruction(JUMP_IF_EQUAL, WORK, 0, TO_YES, 0),
    ];
    let usable = usable();
    all.push(instruction(JUMP_UNLESS_EQUAL, KIND, 0, usable.len() as i16, CHARACTER));
    all.extend(usable);
    for device in devices {
        let kind = if device.block { BLOCK } else { CHARACTER };
        let mut forbidden = vec![];
        if device.read_only {
            forbidden = vec![
                instruction(COPY, WORK, ACCESS, 0, 0),
                instruction(AND, WORK, 0, 0, WRITE),
                instruction(JUMP_UNLESS_EQUAL, WORK, 0, 1, 0),
            ];
        }
        let conditions = [
            (KIND, kind),
            (MAJOR, device.major.cast_signed()),
            (MINOR, device.minor.cast_signed()),
        ];
        // Each condition that does not hold leads behind the jump.
        for (at, (register, value)) in conditions.into_iter().enumerate() {
            let skip = conditions.len() - at - 1 + forbidden.len() + 1;
            all.push(instruction(JUMP_UNLESS_EQUAL, register, 0, skip as i16, value));
        }
        all.extend(forbidden);
        all.push(instruction(JUMP_IF_EQUAL, KIND, 0, TO_YES, kind));
    }
    all.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    let yes = all.len();
    all.extend([instruction(SET, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    for (at, one) in all.iter_mut().enumerate() {
        if (*one >> 16) as i16 == TO_YES {
            let offset = (yes - at - 1) as u16;
            *one = *one & !0xffff_0000 | u64::from(offset) << 16;
        }
    }
    all
}

/// The part about character devices that every container may use.
fn usable() -> Vec<u64> {
    let mut all = Vec::new();
    for (major, minors) in USABLE {
        match minors {
            [] => all.push(instruction(JUMP_IF_EQUAL, MAJOR, 0, TO_YES, major)),
            minors => {
                all.push(instruction(JUMP_UNLESS_EQUAL, MAJOR, 0, minors.len() as i16, major));
                all.extend(
                    minors
                        .iter()
                        .map(|minor| instruction(JUMP_IF_EQUAL, MINOR, 0, TO_YES, *minor)),
                );
            }
        }
    }
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
                0x15 if registers[to] == value => at += offset as usize,
                0x55 if registers[to] != value => at += offset as usize,
                0x15 | 0x55 => {}
                0x95 => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn a_container_may_open_what_it_was_given_and_no_other_disk() {
        let own = program(&[disk(false)]);
        let (read, write, make) = (i64::from(READ), i64::from(WRITE), i64::from(MAKE));
        assert_eq!(answer(&own, true, (254, 16), read | write), 1);
        assert_eq!(answer(&own, true, (254, 0), read), 0);
        assert_eq!(answer(&own, true, (8, 0), make), 1, "a node by itself");
        assert_eq!(answer(&own, false, (254, 16), read), 0, "a character device");
        assert_eq!(answer(&own, false, (1, 3), read | write), 1);
        assert_eq!(answer(&own, false, (136, 7), read | write), 1);
        assert_eq!(answer(&own, false, (1, 1), read), 0, "the guest's memory");
        assert_eq!(answer(&own, false, (5, 3), read), 0);
        assert_eq!(answer(&own, false, (10, 200), read | write), 1);
        assert_eq!(answer(&own, false, (10, 201), read), 0);
        assert_eq!(answer(&own, true, (1, 3), read), 0, "a block device");
    }

    #[test]
    fn what_is_only_read_is_not_written() {
        let own = program(&[disk(true)]);
        assert_eq!(answer(&own, true, (254, 16), i64::from(READ)), 1);
        assert_eq!(answer(&own, true, (254, 16), i64::from(READ | WRITE)), 0);
    }
}
