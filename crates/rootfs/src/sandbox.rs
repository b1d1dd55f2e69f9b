//! Locks the process in, before a hostile guest is listened to.
//!
//! | what | afterwards |
//! |---|---|
//! | capabilities | none, and none can come back (bounding set empty, `no_new_privs`) |
//! | files (Landlock) | the block cache is read and written; the image and local stores are read; nothing else is there. With a block broker (see [`crate::broker`]): nothing |
//! | network (Landlock) | TCP can be connected, not listened to |
//! | system calls (seccomp) | a list; any other ends the process |
//! | others | cannot trace it or read its memory (not dumpable) |
//!
//! Landlock is missing in old kernels; the process then says so and runs without that wall.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

/// What stays reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The block cache: read, and files made and removed in it. `None`: nothing is written, and nothing is connected to.
    pub write: Option<PathBuf>,
    /// Files and directories to read; those that do not exist are left out.
    pub read: Vec<PathBuf>,
    /// Blocks come over the network: names are resolved and certificates checked, with the files that needs.
    pub uses_network: bool,
}

/// What resolving a name and checking a certificate read.
pub(crate) const NETWORK_FILES: [&str; 10] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/run/systemd/resolve",
];

/// Why the process cannot be locked in.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The kernel refused a step.
    #[error("cannot {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Landlock is there and does not work.
    #[error("cannot restrict file access")]
    Landlock {
        /// Why.
        #[from]
        source: RulesetError,
    },
    /// The system call filter could not be made or installed.
    #[error("cannot filter system calls")]
    Seccomp {
        /// Why.
        #[from]
        source: seccompiler::Error,
    },
}

/// Locks in the calling thread and all it starts from now on; what could not be done although it should be.
///
/// # Errors
/// When a wall that this kernel has cannot be put up.
pub fn enter(access: &Access) -> Result<Vec<String>, SandboxError> {
    let refused = |action| {
        move |e: rustix::io::Errno| SandboxError::Refused {
            action,
            source: e.into(),
        }
    };
    if access.uses_network {
        // Makes the C library load what it needs to resolve names while it still can.
        let _ = ("localhost", 0).to_socket_addrs();
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("become undumpable"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("give up new privileges"))?;
    let warnings = restrict_files(access)?;
    drop_capabilities().map_err(refused("drop capabilities"))?;
    for filter in filters(access)? {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(warnings)
}

fn drop_capabilities() -> rustix::io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for bit in 0..64 {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Past the kernel's last one; or the process is unprivileged and has none to lose.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}

fn restrict_files(access: &Access) -> Result<Vec<String>, RulesetError> {
    const NEWEST: ABI = ABI::V5;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::Truncate
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        // Connecting is not handled, so it stays allowed: stores are reached by TCP.
        .handle_access(AccessNet::BindTcp)?
        .create()?;
    let network: &[&str] = if access.uses_network { &NETWORK_FILES } else { &[] };
    let read_only = network
        .iter()
        .map(Path::new)
        .chain(access.read.iter().map(PathBuf::as_path));
    for (path, rights) in read_only
        .map(|path| (path, read))
        .chain(access.write.iter().map(|path| (path.as_path(), write)))
    {
        if let Some(rule) = beneath(path, rights) {
            rules = rules.add_rule(rule)?;
        }
    }
    let warning = match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => return Ok(Vec::new()),
        RulesetStatus::PartiallyEnforced => "this kernel's Landlock is old: files are restricted, but not in every way",
        RulesetStatus::NotEnforced => {
            "this kernel has no Landlock: the root disk server's file access is not restricted"
        }
    };
    Ok(vec![warning.to_owned()])
}

fn beneath(path: &Path, rights: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let rights = if path.is_dir() {
        rights
    } else {
        rights & AccessFs::from_file(ABI::V5)
    };
    PathFd::new(path).ok().map(|fd| PathBeneath::new(fd, rights))
}

/// The filters, in the order of their installation; the strictest answer of all counts.
fn filters(access: &Access) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    // The C library falls back to `clone`, whose flags a filter can see.
    let errno = |number: i32| SeccompAction::Errno(number as u32);
    let clone3 = filter([(libc::SYS_clone3, vec![])], SeccompAction::Allow, errno(libc::ENOSYS))?;
    let exec = vec![argument(
        2,
        SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
        libc::PROT_EXEC,
    )?];
    let executable = [(libc::SYS_mmap, exec.clone()), (libc::SYS_mprotect, exec)];
    let executable = filter(executable, SeccompAction::Allow, errno(libc::EACCES))?;
    let mut allowed = allowed()?;
    if access.write.is_none() {
        allowed.retain(|(number, _)| !OF_THE_COURIER.contains(number));
    }
    let listed = filter(allowed, SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(vec![clone3, executable, listed])
}

fn filter(
    rules: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let rules: BTreeMap<_, _> = rules.into_iter().collect();
    Ok(SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()?)
}

/// A rule on the lower 32 bits of one argument.
fn argument(index: u8, operator: SeccompCmpOp, value: i32) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value as u32 as u64)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// The system calls of serving, fetching and caching.
fn allowed() -> Result<Vec<(i64, Vec<SeccompRule>)>, seccompiler::Error> {
    let equal = |index, values: &[i32]| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        values
            .iter()
            .map(|value| argument(index, SeccompCmpOp::Eq, *value))
            .collect()
    };
    let mut list: Vec<_> = ALWAYS.iter().chain(LEGACY).map(|number| (*number, vec![])).collect();
    list.push((
        libc::SYS_socket,
        equal(0, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK])?,
    ));
    list.push((
        libc::SYS_ioctl,
        equal(1, &[libc::FIONBIO as i32, libc::FIONREAD as i32])?,
    ));
    list.push((libc::SYS_prctl, equal(0, &[libc::PR_SET_NAME, libc::PR_SET_VMA])?));
    // Threads, not processes.
    let threads = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    list.push((libc::SYS_clone, vec![argument(0, threads, libc::CLONE_THREAD)?]));
    // The access times of open files, which is how the cache knows what is in use.
    let no_path = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    list.push((libc::SYS_utimensat, vec![SeccompRule::new(vec![no_path])?]));
    // Limits can be read, not set.
    let no_new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    list.push((libc::SYS_prlimit64, vec![SeccompRule::new(vec![no_new_limit])?]));
    Ok(list)
}

/// What a server does not do that has somebody else fetch its blocks: change files, and connect.
const OF_THE_COURIER: &[i64] = &[
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_utimensat,
    libc::SYS_memfd_create,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

const ALWAYS: &[i64] = &[
    // Reading, writing, waiting.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // Files of the cache and of local stores.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    // Threads, time, signals, the end.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The hypervisor's connection, stores, name servers.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Older numbers of the same, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
/// Older numbers of the same, which newer architectures lack.
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];
