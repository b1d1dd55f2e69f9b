//! Who a container's process is and what it may do, from its root to its program: called in the child, in this order.

#![allow(unsafe_code)]

use rustix::io::Errno;
use zmachine_agent_protocol::{Capabilities, ContainerProcess};

use super::error::{ContainerError, step};
use crate::process::check;

/// Version 3 of the kernel's call for capabilities: two words for each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The most instructions that the kernel takes in a filter (`BPF_MAXINSNS`).
const FILTER_LIMIT: usize = 4096;

/// Sets limits, user, groups, capabilities and filter.
///
/// # Errors
/// [`ContainerError`] naming the step.
pub(super) fn assume(process: &ContainerProcess) -> Result<(), ContainerError> {
    set_limits(process)?;
    let capabilities = process.capabilities;
    if let Some(capabilities) = &capabilities {
        drop_bounding_set(capabilities.bounding).map_err(step("limit the capabilities"))?;
        // Permitted ones survive the change of the user.
        // SAFETY: prctl takes numbers here.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).map_err(step("keep capabilities"))?;
    }
    let has_filter = !process.system_call_filter.is_empty();
    // Without the right to administer the system, a filter is for those alone who gain nothing by programs: then it comes last.
    if has_filter && !process.no_new_privileges {
        filter(&process.system_call_filter)?;
    }
    set_user(process)?;
    if let Some(capabilities) = &capabilities {
        set_capabilities(capabilities).map_err(step("set the capabilities"))?;
    }
    if process.no_new_privileges {
        // SAFETY: prctl takes numbers here.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map_err(step("give up new privileges"))?;
        if has_filter {
            filter(&process.system_call_filter)?;
        }
    }
    Ok(())
}

fn set_limits(process: &ContainerProcess) -> Result<(), ContainerError> {
    for limit in &process.limits {
        let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
        let both = libc::rlimit {
            rlim_cur: value(limit.soft),
            rlim_max: value(limit.hard),
        };
        // SAFETY: the pointer is to a live value; a number that is no resource is refused by the kernel.
        check(unsafe { libc::setrlimit(limit.resource.into(), &raw const both) })
            .map_err(step(format!("set resource limit {}", limit.resource)))?;
    }
    Ok(())
}

fn drop_bounding_set(kept: u64) -> Result<(), Errno> {
    for number in 0..64u64 {
        if kept & (1 << number) != 0 {
            continue;
        }
        // SAFETY: prctl takes numbers here.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }) {
            Ok(()) => {}
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_user(process: &ContainerProcess) -> Result<(), ContainerError> {
    // SAFETY: the pointer and length are of a live vector; the raw calls change this process only, which has one thread.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, process.groups.len(), process.groups.as_ptr()) as libc::c_int)
            .map_err(step("set the groups"))?;
        check(libc::syscall(libc::SYS_setresgid, process.gid, process.gid, process.gid) as libc::c_int)
            .map_err(step(format!("become group {}", process.gid)))?;
        check(libc::syscall(libc::SYS_setresuid, process.uid, process.uid, process.uid) as libc::c_int)
            .map_err(step(format!("become user {}", process.uid)))
    }
}

fn set_capabilities(wanted: &Capabilities) -> Result<(), Errno> {
    let header = [CAPABILITY_VERSION, 0];
    let known = known_capabilities();
    let word = |set: u64, half: u32| ((set & known) >> (32 * half)) as u32;
    let sets = [0, 1].map(|half| {
        [
            word(wanted.effective, half),
            word(wanted.permitted, half),
            word(wanted.inheritable | wanted.ambient, half),
        ]
    });
    // SAFETY: both pointers are to live memory of the sizes that this version of the call has.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) as libc::c_int })?;
    for number in (0..64u64).filter(|number| wanted.ambient & known & (1 << number) != 0) {
        // SAFETY: prctl takes numbers here.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) })?;
    }
    Ok(())
}

/// Those that this kernel has: it refuses others.
fn known_capabilities() -> u64 {
    // SAFETY: prctl takes numbers here.
    let is_known = |number: &u64| unsafe { libc::prctl(libc::PR_CAPBSET_READ, *number, 0, 0, 0) } >= 0;
    let count = (0..64).take_while(is_known).count();
    u64::MAX.checked_shr(64 - count as u32).unwrap_or_default()
}

fn filter(instructions: &[u64]) -> Result<(), ContainerError> {
    if instructions.len() > FILTER_LIMIT {
        return Err(ContainerError::Unusable {
            what: format!("a system call filter of {} instructions", instructions.len()),
        });
    }
    let mut program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|instruction| {
            let bytes = instruction.to_le_bytes();
            libc::sock_filter {
                code: u16::from_le_bytes([bytes[0], bytes[1]]),
                jt: bytes[2],
                jf: bytes[3],
                k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            }
        })
        .collect();
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the structure and the instructions behind its pointer live for the call, which copies and checks them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) as libc::c_int
    })
    .map_err(step("set the system call filter"))
}
