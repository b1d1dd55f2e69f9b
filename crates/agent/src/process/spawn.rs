//! Fork and exec.
//!
//! # Invariants
//! The agent has one thread, so the child may run any code; on the way to a program it still allocates nothing and only
//! makes system calls. A child that copies files stays what it is and may allocate.
//! A pipe that closes on exec carries the step and errno of a failure: a process that could not become its program is
//! reported as an error, never as an exit status.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::null;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Resource, Rlimit};
use tokio::sync::oneshot;
use zmachine_agent_protocol::ExitStatus;

use super::stdio::ChildSide;
use super::{Plan, StartError};
use crate::pollable::Pollable;
use crate::reaper::Reaper;

/// The descriptor on which an init of ours finds the error pipe.
pub(crate) const REPORT: RawFd = 3;

/// The longest error text of a child, in bytes.
const ANSWER: usize = 4096;

/// Soft limit of open files of a process, as systemd and login shells have it: programs loop up to it.
const SOFT_OPEN_FILES: u64 = 1024;

/// Where a process lives.
#[derive(Debug)]
pub(crate) enum Namespaces {
    /// With the agent.
    Shared,
    /// As PID 1 of namespaces of its own.
    New,
    /// In the namespaces of this process (a pid of the agent's namespace).
    Join(i32),
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its id in the agent's namespace.
    pub(crate) pid: i32,
    /// Resolves when it is reaped.
    pub(crate) exited: oneshot::Receiver<ExitStatus>,
}

/// The step of a child that failed; the byte on the error pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Session,
    Namespace,
    Stdio,
    Terminal,
    Groups,
    User,
    Limits,
    Capabilities,
    Directory,
    NotFound,
    Execute,
    Init,
}

/// Starts `plan` on `stdio`.
///
/// # Errors
/// [`StartError`] when no process could be made, or it failed before it became its program.
pub(crate) async fn start(
    plan: &Plan,
    stdio: ChildSide,
    namespaces: &Namespaces,
    proc: &OwnedFd,
    reaper: &Reaper,
) -> Result<Started, StartError> {
    let at = |step| move |source| StartError::Step { step, source };
    let (errors, report) = pipe_with(PipeFlags::CLOEXEC).map_err(at("open the error pipe"))?;
    let joined = match namespaces {
        Namespaces::Join(pid) => Some(pidfd(*pid).map_err(at("find the container's namespaces"))?),
        Namespaces::Shared | Namespaces::New => None,
    };
    // The agent's file may be gone; this is what the kernel runs.
    let own_file = plan
        .init
        .then(|| rustix::fs::openat(proc, "self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
        .transpose()
        .map_err(at("find the init"))?;
    let front = match plan.init {
        true => vec![CString::from(c"zmachine-init"), c"--".into()],
        false => Vec::new(),
    };
    let arguments = pointers(front.iter().chain(&plan.arguments));
    let environment = pointers(&plan.environment);
    let child = Child {
        plan,
        arguments: &arguments,
        environment: &environment,
        stdio: &stdio,
        report: report.as_fd(),
        proc: proc.as_fd(),
        own_proc: matches!(namespaces, Namespaces::New),
        resets_score: has_score(proc),
        join_mounts: joined.as_ref().map(AsFd::as_fd),
        init: own_file.as_ref().map(AsFd::as_fd),
    };
    let pid = fork_into(&child, namespaces, proc).map_err(at("fork"))?;
    let exited = reaper.watch(pid);
    drop(stdio);
    drop(report);
    match verdict(errors).await {
        None => Ok(Started { pid, exited }),
        Some((step, errno)) => Err(explain(plan, step, errno)),
    }
}

/// Whether the agent has a score for when memory is short, which what it starts must not inherit: the init of a guest may have given it one.
fn has_score(proc: &OwnedFd) -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let score = rustix::fs::openat(proc, "self/oom_score_adj", flags, Mode::empty());
        let score = score.map(|file| io::read_to_string(File::from(file)));
        !matches!(score, Ok(Ok(text)) if text.trim_end() == "0")
    })
}

/// Takes hold of a process, for its namespaces.
///
/// # Errors
/// The kernel's.
pub(crate) fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// The list that execve wants, which is good for as long as `strings` are.
pub(crate) fn pointers<'a>(strings: impl IntoIterator<Item = &'a CString>) -> Vec<*const libc::c_char> {
    let strings = strings.into_iter().map(|string| string.as_ptr());
    strings.chain([null()]).collect()
}

/// Carries `work` out in a child, which shares namespaces and file systems with the agent: whatever waits in there, for a
/// device or in the kernel, the agent goes on.
///
/// # Errors
/// What `work` says, or why there is no child.
pub(crate) async fn work<E: std::fmt::Display>(
    reaper: &Reaper,
    work: impl FnOnce() -> Result<(), E>,
) -> Result<(), String> {
    let (answer, report) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| format!("open a pipe: {errno}"))?;
    let pid = fork(0, || {
        let text = work().err().map(|error| error.to_string());
        let code = i32::from(text.is_some());
        let _ = rustix::io::write(&report, text.unwrap_or_default().as_bytes());
        // SAFETY: _exit ends the child without running anything of the copied agent.
        unsafe { libc::_exit(code) }
    })
    .map_err(|errno| format!("fork: {errno}"))?;
    let exited = reaper.watch(pid);
    drop(report);
    let mut text = Vec::new();
    if let Ok(answer) = Pollable::new(answer) {
        while text.len() < ANSWER
            && poll_fn(|cx| {
                text.reserve(ANSWER);
                answer.poll_read_into(cx, &mut text)
            })
            .await
            .is_ok_and(|count| count > 0)
        {}
    }
    match exited.await {
        Ok(ExitStatus::Code(0)) => Ok(()),
        _ if !text.is_empty() => Err(String::from_utf8_lossy(&text).into_owned()),
        status => Err(format!("the process that does it ended early: {status:?}")),
    }
}

/// Forks; for a joined PID namespace the agent's future children are sent there for the moment of the fork.
fn fork_into(child: &Child<'_>, namespaces: &Namespaces, proc: &OwnedFd) -> Result<i32, Errno> {
    let Some(target) = child.join_mounts else {
        let flags = match namespaces {
            Namespaces::New => libc::CLONE_NEWPID | libc::CLONE_NEWNS,
            Namespaces::Shared | Namespaces::Join(_) => 0,
        };
        return fork(flags, || child.run());
    };
    let own = own_pids(proc)?;
    set_namespace(target, libc::CLONE_NEWPID)?;
    let forked = fork(0, || child.run());
    set_namespace(own, libc::CLONE_NEWPID)?;
    forked
}

/// The agent's own PID namespace, which it never leaves: found once, not for each process.
///
/// # Errors
/// The kernel's.
pub(crate) fn own_pids(proc: &OwnedFd) -> Result<BorrowedFd<'static>, Errno> {
    static OWN: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own.as_fd());
    }
    let own = rustix::fs::openat(proc, "self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(OWN.get_or_init(|| own).as_fd())
}

/// Enters namespaces of the process or namespace `of`.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_namespace(of: BorrowedFd<'_>, kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: setns takes a descriptor and a number; no memory is involved.
    check(unsafe { libc::setns(of.as_raw_fd(), kind) })
}

/// Forks a child, in new namespaces as `flags` say, that runs `child` and ends.
///
/// # Errors
/// The kernel's.
pub(crate) fn fork<T>(flags: libc::c_int, child: impl FnOnce() -> T) -> Result<i32, Errno> {
    let flags = (flags | libc::SIGCHLD) as libc::c_long;
    // SAFETY: without CLONE_VM and with no stack this is fork: the child continues on a copy of everything, and as the
    // agent has one thread, no lock in that copy is held. The child never gets beyond `_exit`.
    unsafe {
        match libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) {
            -1 => Err(last_errno()),
            0 => {
                child();
                libc::_exit(127)
            }
            pid => Ok(pid as i32),
        }
    }
}

/// [`fork`] into a control group (version 2), which costs less than a move: its child is told whether it is in it already. Kernels before 5.7
/// cannot.
///
/// # Errors
/// The kernel's.
pub(crate) fn fork_in<T>(
    flags: libc::c_int,
    group: BorrowedFd<'_>,
    child: impl FnOnce(bool) -> T,
) -> Result<i32, Errno> {
    const INTO_GROUP: u64 = 0x2_0000_0000;
    // SAFETY: numbers alone, for which zero means nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.cast_unsigned()) | INTO_GROUP;
    arguments.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    arguments.cgroup = group.as_raw_fd().cast_unsigned().into();
    // SAFETY: as in `fork`; the kernel reads as many bytes as it is told.
    let forked = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match forked {
        0 => {
            child(true);
            // SAFETY: ends this process, and nothing of it is needed.
            unsafe { libc::_exit(127) }
        }
        -1 if matches!(last_errno(), Errno::NOSYS | Errno::INVAL | Errno::TOOBIG) => fork(flags, || child(false)),
        -1 => Err(last_errno()),
        pid => Ok(pid as i32),
    }
}

/// Reads the error pipe to its end: nothing means that the program runs.
async fn verdict(errors: OwnedFd) -> Option<(u8, Errno)> {
    let errors = Pollable::new(errors).ok()?;
    let mut report = Vec::with_capacity(8);
    while report.len() < 5 {
        match poll_fn(|cx| errors.poll_read_into(cx, &mut report)).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
    let code = i32::from_ne_bytes(report[1..5].try_into().ok()?);
    Some((report[0], Errno::from_raw_os_error(code)))
}

fn explain(plan: &Plan, step: u8, errno: Errno) -> StartError {
    let known = |wanted: Step| step == wanted as u8;
    let program = plan.program();
    if known(Step::NotFound) {
        return StartError::NotFound { program };
    }
    if known(Step::Execute) {
        let reason = match errno {
            // The file is there, so what is missing is its interpreter or loader.
            Errno::NOENT | Errno::NOTDIR => "its interpreter is not found".into(),
            errno => errno.to_string(),
        };
        return StartError::NotExecutable { program, reason };
    }
    if known(Step::Directory) {
        let path = plan.directory.to_string_lossy().into_owned();
        return StartError::WorkingDirectory { path, source: errno };
    }
    let names = [
        (Step::Session, "make a session"),
        (Step::Namespace, "enter the namespaces"),
        (Step::Stdio, "connect the standard streams"),
        (Step::Terminal, "take the terminal"),
        (Step::Groups, "set the groups"),
        (Step::Limits, "set the resource limits"),
        (Step::Capabilities, "drop the capabilities"),
        (Step::Init, "start the init"),
    ];
    let step = names
        .iter()
        .find(|(step, _)| known(*step))
        .map_or("set the user", |(_, name)| name);
    StartError::Step { step, source: errno }
}

/// What the child sees.
struct Child<'a> {
    plan: &'a Plan,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    stdio: &'a ChildSide,
    report: BorrowedFd<'a>,
    proc: BorrowedFd<'a>,
    own_proc: bool,
    /// The agent's standing when memory is short is not its own.
    resets_score: bool,
    join_mounts: Option<BorrowedFd<'a>>,
    /// The executable that is PID 1 in the program's place.
    init: Option<BorrowedFd<'a>>,
}

impl Child<'_> {
    /// Becomes the program, or reports why not and exits.
    fn run(&self) -> ! {
        let (step, errno) = match self.become_program() {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        report(self.report.as_raw_fd(), step, errno)
    }

    fn become_program(&self) -> Result<std::convert::Infallible, (Step, Errno)> {
        reset_signals();
        rustix::process::setsid().map_err(|errno| (Step::Session, errno))?;
        self.reset_limits();
        self.set_limits().map_err(|errno| (Step::Limits, errno))?;
        self.enter_namespaces().map_err(|errno| (Step::Namespace, errno))?;
        connect_stdio(self.stdio).map_err(|errno| (Step::Stdio, errno))?;
        if self.stdio.terminal {
            take_terminal().map_err(|errno| (Step::Terminal, errno))?;
        }
        if self.plan.make_directory {
            make_all(&self.plan.directory);
        }
        self.drop_bounding_set().map_err(|errno| (Step::Capabilities, errno))?;
        self.drop_privileges()?;
        self.drop_capabilities().map_err(|errno| (Step::Capabilities, errno))?;
        rustix::process::chdir(self.plan.directory.as_c_str()).map_err(|errno| (Step::Directory, errno))?;
        if let Some(transfer) = &self.plan.transfer {
            let layers = self.plan.layers;
            let mut kept: Vec<_> = layers.iter().flatten().map(|fd| fd.cast_unsigned()).collect();
            kept.sort_unstable();
            let mut first: libc::c_uint = 3;
            // SAFETY: everything but the standard streams and the layers is closed, the error pipe with it, which tells the agent
            // that all went well; nothing else of what was open is used again before _exit ends the child.
            unsafe {
                for fd in kept {
                    if fd > first {
                        libc::syscall(libc::SYS_close_range, first, fd - 1, 0);
                    }
                    first = fd + 1;
                }
                libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
                libc::_exit(super::transfer::run(transfer, layers))
            }
        }
        // SAFETY: marks descriptors to be closed by exec; none is used by number after it but the report pipe, which is
        // open until then.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Err(match self.init {
            Some(init) => self.become_init(init),
            None => execute(&self.plan.candidates, self.arguments, self.environment),
        })
    }

    /// Becomes the init, which gets the error pipe and reports what the program does. The answer is why that failed.
    fn become_init(&self, init: BorrowedFd<'_>) -> (Step, Errno) {
        let report = self.report.as_raw_fd();
        // SAFETY: numbers, and NUL-terminated strings and lists that live as long as `self`. When the pipe has the wanted
        // number already, dup2 changes nothing, so the mark is taken off apart.
        unsafe {
            if libc::dup2(report, REPORT) < 0 || libc::fcntl(REPORT, libc::F_SETFD, 0) < 0 {
                return (Step::Stdio, last_errno());
            }
            libc::syscall(
                libc::SYS_execveat,
                init.as_raw_fd(),
                c"".as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        (Step::Init, last_errno())
    }

    fn reset_limits(&self) {
        if self.resets_score {
            self.reset_score();
        }
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        let _ = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(SOFT_OPEN_FILES),
                maximum: hard,
            },
        );
    }

    fn reset_score(&self) {
        let score = rustix::fs::openat(
            self.proc,
            "self/oom_score_adj",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if let Ok(score) = score {
            let _ = rustix::io::write(&score, b"0");
        }
    }

    fn set_limits(&self) -> Result<(), Errno> {
        for limit in &self.plan.restrictions.limits {
            let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
            let both = libc::rlimit {
                rlim_cur: value(limit.soft),
                rlim_max: value(limit.hard),
            };
            // SAFETY: the pointer is to a live value; a number that is no resource is refused by the kernel.
            check(unsafe { libc::setrlimit(limit.resource.into(), &raw const both) })?;
        }
        Ok(())
    }

    /// What is not in the bounding set comes back by no program either.
    fn drop_bounding_set(&self) -> Result<(), Errno> {
        for number in &self.plan.restrictions.drop_capabilities {
            // SAFETY: prctl takes numbers here.
            match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*number), 0, 0, 0) }) {
                // One that this kernel does not know.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Takes the capabilities of root away that are not to be had; another user has none.
    fn drop_capabilities(&self) -> Result<(), Errno> {
        let restrictions = &self.plan.restrictions;
        if restrictions.no_new_privileges {
            // SAFETY: prctl takes numbers here.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        if restrictions.drop_capabilities.is_empty() {
            return Ok(());
        }
        // Linux's version 3 of the call: two words for each set.
        let header = [0x2008_0522u32, 0];
        let mut sets = [[0u32; 3]; 2];
        // SAFETY: both pointers are to live memory of the sizes that this version of the call has.
        unsafe {
            check(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) as libc::c_int)?;
            for number in &restrictions.drop_capabilities {
                for set in &mut sets[usize::from(number / 32) & 1] {
                    *set &= !(1 << (number % 32));
                }
            }
            check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) as libc::c_int)
        }
    }

    fn enter_namespaces(&self) -> Result<(), Errno> {
        if let Some(target) = self.join_mounts {
            set_namespace(target, libc::CLONE_NEWNS)?;
        }
        if self.own_proc {
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            let _ = rustix::mount::unmount("/proc", UnmountFlags::DETACH);
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount(c"proc", c"/proc", c"proc", flags, None)?;
        }
        Ok(())
    }

    fn drop_privileges(&self) -> Result<(), (Step, Errno)> {
        let identity = &self.plan.identity;
        // SAFETY: the pointer and length are of a live vector; the raw calls change this process only, which has one
        // thread.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()) as libc::c_int)
                .map_err(|errno| (Step::Groups, errno))?;
            check(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid) as libc::c_int)
                .map_err(|errno| (Step::Groups, errno))?;
            check(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid) as libc::c_int)
                .map_err(|errno| (Step::User, errno))
        }
    }
}

/// Makes `stdio` the standard streams of this child.
///
/// # Errors
/// The kernel's.
pub(crate) fn connect_stdio(stdio: &ChildSide) -> Result<(), Errno> {
    // The agent's descriptors 0 to 2 are open, so none of ours is one of them and the order does not matter.
    let sides = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    for (target, source) in sides.iter().enumerate() {
        // SAFETY: dup2 takes two numbers; both are valid descriptors of the child.
        check(unsafe { libc::dup2(source.as_raw_fd(), target as RawFd) })?;
    }
    Ok(())
}

/// Makes standard input the controlling terminal of this session.
///
/// # Errors
/// The kernel's.
pub(crate) fn take_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer argument.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
}

/// Tells the agent on the descriptor `pipe` why no program runs, and ends this process.
pub(crate) fn report(pipe: RawFd, step: Step, errno: Errno) -> ! {
    let mut report = [0u8; 5];
    report[0] = step as u8;
    report[1..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // SAFETY: the bytes live for the call; a descriptor that is none is refused. _exit ends the process without running
    // anything of what it is a copy of.
    unsafe {
        libc::write(pipe, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Tries the candidates; the answer is why none runs. Missing files are passed over, and a file that is there but
/// cannot run is only named when no later one does. The lists are those of [`pointers`].
pub(crate) fn execute(
    candidates: &[CString],
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> (Step, Errno) {
    let mut refused = None;
    for candidate in candidates {
        // SAFETY: the path is a NUL-terminated string, and both lists are of such strings and end with a null pointer.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        let errno = last_errno();
        let missing = matches!(errno, Errno::NOENT | Errno::NOTDIR) && !is_there(candidate);
        if !missing && refused.is_none() {
            refused = Some(errno);
        }
        if !missing && errno != Errno::ACCESS {
            break;
        }
    }
    refused.map_or((Step::NotFound, Errno::NOENT), |errno| (Step::Execute, errno))
}

fn is_there(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// `mkdir -p` without allocation: what fails shows when the directory is entered.
fn make_all(path: &CStr) {
    let mut part = [0u8; 4096];
    let bytes = path.to_bytes();
    if bytes.len() >= part.len() {
        return;
    }
    for end in (1..=bytes.len()).filter(|&end| end == bytes.len() || bytes[end] == b'/') {
        part[..end].copy_from_slice(&bytes[..end]);
        part[end] = 0;
        if let Ok(part) = CStr::from_bytes_until_nul(&part) {
            let _ = rustix::fs::mkdir(part, Mode::from_raw_mode(0o755));
        }
    }
}

/// Default dispositions and an empty mask: ignored and blocked signals would be inherited through exec.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL is valid for every signal; numbers that cannot be changed are refused by the kernel without
    // effect. `set` is initialised by sigemptyset before it is read.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// The error of a system call that gave -1.
///
/// # Errors
/// The kernel's.
pub(crate) fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}
