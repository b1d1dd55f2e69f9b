//! The standard streams of a process: pipes, or a pseudo terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use zmachine_agent_protocol::WindowSize;

use super::StartError;
use crate::users::Identity;

/// Size of an output pipe in bytes. Fewer switches between a busy writer and the agent; only filled pages count.
const PIPE_BYTES: usize = 256 * 1024;

/// The child's side: what becomes its descriptors 0, 1 and 2.
#[derive(Debug)]
pub(crate) struct ChildSide {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// Descriptor 0 is a terminal to be taken as the controlling one.
    pub(super) terminal: bool,
}

impl ChildSide {
    /// The terminal, where there is one.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.then(|| self.stdin.as_fd())
    }
}

/// The agent's side.
#[derive(Debug)]
pub(crate) enum AgentSide {
    /// Separate streams.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The master of a pseudo terminal; `input` when the host may type.
    Terminal { master: OwnedFd, input: bool },
}

/// Makes both sides. The process's user owns its side: programs reopen `/dev/stdout`.
///
/// # Errors
/// [`StartError::Step`]: no descriptors left, or no devpts.
pub(crate) fn open(
    terminal: Option<WindowSize>,
    stdin: bool,
    identity: &Identity,
) -> Result<(ChildSide, AgentSide), StartError> {
    match terminal {
        Some(size) => open_terminal(size, stdin, identity).map_err(|source| StartError::Step {
            step: "open a terminal",
            source,
        }),
        None => open_pipes(stdin, identity).map_err(|source| StartError::Step {
            step: "open pipes",
            source,
        }),
    }
}

fn open_pipes(with_stdin: bool, identity: &Identity) -> Result<(ChildSide, AgentSide), Errno> {
    let (stdin, feed) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        give(&read, identity);
        (read, Some(write))
    } else {
        (
            rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            None,
        )
    };
    let (stdout_read, stdout) = output_pipe(identity)?;
    let (stderr_read, stderr) = output_pipe(identity)?;
    Ok((
        ChildSide {
            stdin,
            stdout,
            stderr,
            terminal: false,
        },
        AgentSide::Pipes {
            stdin: feed,
            stdout: stdout_read,
            stderr: stderr_read,
        },
    ))
}

fn output_pipe(identity: &Identity) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Refused when memory is short: the default size works as well.
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    give(&write, identity);
    Ok((read, write))
}

fn open_terminal(size: WindowSize, input: bool, identity: &Identity) -> Result<(ChildSide, AgentSide), Errno> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(identity.uid)), None);
    let (stdout, stderr) = (slave.try_clone(), slave.try_clone());
    let (Ok(stdout), Ok(stderr)) = (stdout, stderr) else {
        return Err(Errno::MFILE);
    };
    Ok((
        ChildSide {
            stdin: slave,
            stdout,
            stderr,
            terminal: true,
        },
        AgentSide::Terminal { master, input },
    ))
}

fn give(pipe: &OwnedFd, identity: &Identity) {
    // What the agent makes is root's already.
    if (identity.uid, identity.gid) == (0, 0) {
        return;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let _ = rustix::fs::fchown(pipe, Some(uid), Some(gid));
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH.
///
/// # Errors
/// The kernel's.
pub(super) fn resize(master: impl AsFd, size: WindowSize) -> Result<(), Errno> {
    tcsetwinsize(
        master,
        Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
}
