//! The processes of containers: fork, namespaces, root, credentials, exec.
//!
//! # Invariants
//! The agent has one thread, so the child may run any code before it becomes its program. It ends by exec or by `_exit`.
//! A pipe that closes on exec carries its reason when it does not get there: a byte for the class, then a text.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use zmachine_agent_protocol::{Container, ContainerProcess, DeviceNode, ErrorKind};

use super::cgroup::Cgroup;
use super::credentials;
use super::error::{ContainerError, errno, step};
use super::root;
use crate::pollable::Pollable;
use crate::process::{
    ChildSide, DEFAULT_PATH, Started, Step, candidates, check, connect_stdio, execute, fork_in, own_pids, pointers,
    reset_signals, set_namespace, take_terminal,
};
use crate::reaper::Reaper;
use crate::users;

/// The longest reason of a child, in bytes.
const REASON: usize = 4096;

/// Classes of failure, as the first byte of a reason counts them.
const KINDS: [ErrorKind; 6] = [
    ErrorKind::Internal,
    ErrorKind::CommandNotFound,
    ErrorKind::CommandNotExecutable,
    ErrorKind::WorkingDirectory,
    ErrorKind::Setup,
    ErrorKind::BadRequest,
];

/// Where a process is started.
pub(super) enum Place<'a> {
    /// In a container that is made for it.
    New {
        container: &'a Container,
        /// Its devices, with their numbers.
        devices: &'a [DeviceNode],
        /// An empty directory, or where the machine's image is mounted.
        folder: &'a Path,
    },
    /// Beside this process, the first one of its container. A descriptor: numbers are others inside.
    Beside { first: OwnedFd, own_pids: bool },
}

/// Starts `process` at `place`, as a member of `cgroup`.
///
/// # Errors
/// [`ContainerError`] when it did not become its program; the process is gone then.
pub(super) async fn start(
    place: &Place<'_>,
    process: &ContainerProcess,
    cgroup: &Cgroup,
    stdio: ChildSide,
    proc: &OwnedFd,
    reaper: &Reaper,
) -> Result<Started, ContainerError> {
    let (reason, report) = pipe_with(PipeFlags::CLOEXEC).map_err(step("open a pipe"))?;
    let child = |is_member: bool| {
        let Err(error) = become_program(place, process, cgroup, is_member, &stdio);
        let kind = KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or_default();
        let mut text = vec![kind as u8];
        text.extend_from_slice(error.to_string().as_bytes());
        text.truncate(REASON);
        let _ = rustix::io::write(&report, &text);
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group =
        rustix::fs::openat(CWD, cgroup.folder(), flags, Mode::empty()).map_err(step("open the control group"))?;
    let pid = fork_at(place, group.as_fd(), proc, child).map_err(step("fork"))?;
    let exited = reaper.watch(pid);
    drop(stdio);
    drop(report);
    match read_reason(reason).await {
        None => Ok(Started { pid, exited }),
        Some(error) => {
            let _ = exited.await;
            Err(error)
        }
    }
}

fn fork_at(place: &Place<'_>, group: BorrowedFd<'_>, proc: &OwnedFd, child: impl FnOnce(bool)) -> Result<i32, Errno> {
    match place {
        Place::New { container, .. } => {
            let mut flags = libc::CLONE_NEWNS;
            if container.own_pids {
                flags |= libc::CLONE_NEWPID;
            }
            if container.hostname.is_some() {
                flags |= libc::CLONE_NEWUTS;
            }
            fork_in(flags, group, child)
        }
        Place::Beside { own_pids: false, .. } => fork_in(0, group, child),
        // The agent's next children are sent there, for the moment of the fork.
        Place::Beside { first, own_pids: true } => {
            let own = own_pids(proc)?;
            set_namespace(first.as_fd(), libc::CLONE_NEWPID)?;
            let forked = fork_in(0, group, child);
            set_namespace(own, libc::CLONE_NEWPID)?;
            forked
        }
    }
}

async fn read_reason(pipe: OwnedFd) -> Option<ContainerError> {
    let pipe = Pollable::new(pipe).ok()?;
    let mut bytes = Vec::new();
    while bytes.len() < REASON {
        bytes.reserve(REASON);
        match poll_fn(|cx| pipe.poll_read_into(cx, &mut bytes)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let (kind, text) = bytes.split_first()?;
    Some(ContainerError::Child {
        kind: KINDS.get(usize::from(*kind)).copied().unwrap_or(ErrorKind::Internal),
        message: String::from_utf8_lossy(text).into_owned(),
    })
}

fn become_program(
    place: &Place<'_>,
    process: &ContainerProcess,
    cgroup: &Cgroup,
    is_member: bool,
    stdio: &ChildSide,
) -> Result<std::convert::Infallible, ContainerError> {
    reset_signals();
    rustix::process::setsid().map_err(step("make a session"))?;
    adjust_score(process.oom_score_adj.unwrap_or(0));
    if !is_member {
        fs::write(cgroup.members(), "0").map_err(|error| step("join the control group")(errno(&error)))?;
    }
    match place {
        Place::New {
            container,
            devices,
            folder,
        } => {
            // After it joined: its group is the root of what it sees.
            // SAFETY: unshare takes a number.
            check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map_err(step("make a control group namespace"))?;
            if let Some(hostname) = &container.hostname {
                rustix::system::sethostname(hostname.as_bytes()).map_err(step("set the host name"))?;
            }
            for (name, value) in &container.sysctls {
                let written = fs::write(format!("/proc/sys/{name}"), value);
                written.map_err(|error| step(format!("set {}", name.replace('/', ".")))(errno(&error)))?;
            }
            root::enter(container, devices, folder, stdio.terminal())?;
        }
        Place::Beside { first, .. } => {
            let namespaces = libc::CLONE_NEWCGROUP | libc::CLONE_NEWUTS | libc::CLONE_NEWNS;
            set_namespace(first.as_fd(), namespaces).map_err(step("enter the container"))?;
        }
    }
    connect_stdio(stdio).map_err(step("connect the standard streams"))?;
    if stdio.terminal().is_some() {
        take_terminal().map_err(step("take the terminal"))?;
    }
    let environment = environment(process);
    let program = Program::new(process, &environment)?;
    let directory = if process.cwd.is_empty() { "/" } else { &process.cwd };
    // As an absolute path of the container's: its root is this process's.
    let _ = fs::create_dir_all(directory);
    credentials::assume(process)?;
    rustix::process::chdir(directory).map_err(|source| ContainerError::WorkingDirectory {
        path: directory.to_owned(),
        source,
    })?;
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022) & 0o777));
    // SAFETY: marks descriptors to be closed by exec; none is used by number after it but the pipe of the reason, which is
    // open until then.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Err(program.execute())
}

/// The agent's own score, which nothing kills, is not inherited.
fn adjust_score(score: i32) {
    let file = rustix::fs::openat(
        CWD,
        "/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    if let Ok(file) = file {
        let _ = rustix::io::write(&file, score.clamp(-1000, 1000).to_string().as_bytes());
    }
}

/// The environment, with `HOME` as the passwd of the root has it, and `TERM` at a terminal.
fn environment(process: &ContainerProcess) -> Vec<String> {
    let mut all = process.env.clone();
    let has = |all: &[String], name: &str| all.iter().any(|entry| entry.starts_with(&format!("{name}=")));
    if !has(&all, "HOME") {
        let identity = users::identify(Some(&format!("{}:{}", process.uid, process.gid)));
        let home = identity.map_or_else(|_| "/".to_owned(), |identity| identity.home);
        all.push(format!("HOME={home}"));
    }
    if process.terminal.is_some() && !has(&all, "TERM") {
        all.push("TERM=xterm".to_owned());
    }
    all
}

/// What is executed.
struct Program {
    name: String,
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    fn new(process: &ContainerProcess, environment: &[String]) -> Result<Program, ContainerError> {
        let name = process.args.first().cloned().unwrap_or_default();
        if name.is_empty() {
            return Err(ContainerError::NotFound { program: "\"\"".into() });
        }
        let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
        let strings = |texts: &[String]| {
            let string = |text: &String| {
                CString::new(text.as_str()).map_err(|_| ContainerError::Unusable {
                    what: format!("{text:?}"),
                })
            };
            texts.iter().map(string).collect::<Result<Vec<_>, _>>()
        };
        Ok(Program {
            candidates: strings(&candidates(&name, path.unwrap_or(DEFAULT_PATH)))?,
            arguments: strings(&process.args)?,
            environment: strings(environment)?,
            name,
        })
    }

    /// Becomes it; the answer is why that failed.
    fn execute(&self) -> ContainerError {
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let program = self.name.clone();
        match execute(&self.candidates, &arguments, &environment) {
            (Step::NotFound, _) => ContainerError::NotFound { program },
            (_, Errno::NOENT | Errno::NOTDIR) => ContainerError::NotExecutable {
                program,
                reason: "its interpreter is not found".to_owned(),
            },
            (_, errno) => ContainerError::NotExecutable {
                program,
                reason: errno.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_a_home_and_keeps_what_is_given() {
        let process = ContainerProcess {
            env: vec!["A=1".into(), "HOME=/here".into()],
            ..ContainerProcess::default()
        };
        assert_eq!(environment(&process), ["A=1", "HOME=/here"]);
        let without = ContainerProcess {
            terminal: Some(zmachine_agent_protocol::WindowSize { rows: 1, columns: 1 }),
            ..ContainerProcess::default()
        };
        let all = environment(&without);
        assert!(all[0].starts_with("HOME=/"), "{all:?}");
        assert_eq!(all[1], "TERM=xterm");
    }

    #[test]
    fn what_cannot_be_a_program_is_refused() {
        let process = |args: &[&str]| ContainerProcess {
            args: args.iter().map(ToString::to_string).collect(),
            ..ContainerProcess::default()
        };
        assert!(matches!(
            Program::new(&process(&[]), &[]),
            Err(ContainerError::NotFound { .. })
        ));
        assert!(matches!(
            Program::new(&process(&["a\0b"]), &[]),
            Err(ContainerError::Unusable { .. })
        ));
        let found = Program::new(&process(&["ls"]), &["PATH=/x:/y".into()]).unwrap();
        assert_eq!(found.candidates, [c"/x/ls".to_owned(), c"/y/ls".into()]);
    }
}
