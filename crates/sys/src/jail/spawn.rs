//! Starting a process that locks itself in: as the first of a pid namespace, and a child of the caller all the same.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::{Jail, ROLE};
use crate::process::{ChildSetup, prepare_child};

/// A command that is started in a jail, or free.
#[derive(Debug)]
pub struct Jailed {
    command: Command,
    /// Of this process; `None`: there is no jail.
    parent: Option<OwnedFd>,
}

impl Jailed {
    /// `program`, an absolute path, in `jail`. Its environment is empty. [`Jail::launcher`] has the role [`ROLE`].
    ///
    /// # Errors
    /// When no descriptor of this process can be had.
    pub fn program(jail: &Jail, program: &Path) -> io::Result<Jailed> {
        let launcher = jail.launcher.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        let mut command = Command::new(launcher);
        command.arg(ROLE).env_clear().current_dir("/");
        let mut jailed = Jailed::role(jail, command)?;
        jailed.command.arg("--").arg(program);
        Ok(jailed)
    }

    /// `program`, an absolute path, in `jail`, when it goes to the background by itself and outlives whoever starts it: it has no
    /// pid namespace, and only namespaces of files, of ipc and of the host's name. The jail has no user: it gives up what it is
    /// itself, and has the capabilities for that.
    pub fn daemon(jail: &Jail, program: &Path) -> Jailed {
        let mut command = Command::new(jail.launcher.as_deref().unwrap_or(Path::new("/proc/self/exe")));
        command
            .arg(ROLE)
            .arg("--jail")
            .arg(jail.to_argument())
            .arg("--")
            .arg(program);
        command.env_clear().current_dir("/");
        Jailed { command, parent: None }
    }

    /// `command`, a role of the calling program that enters the jail it is told by `--jail` itself.
    ///
    /// # Errors
    /// As [`Jailed::program`].
    pub fn role(jail: &Jail, mut command: Command) -> io::Result<Jailed> {
        let own = Pid::from_raw(std::process::id() as i32).ok_or(io::ErrorKind::NotFound)?;
        let parent = rustix::process::pidfd_open(own, PidfdFlags::empty())?;
        let reported = Jail {
            parent: Some(parent.as_raw_fd()),
            ..jail.clone()
        };
        command.arg("--jail").arg(reported.to_argument());
        Ok(Jailed {
            command,
            parent: Some(parent),
        })
    }

    /// `command` without a jail.
    pub fn free(command: Command) -> Jailed {
        Jailed { command, parent: None }
    }

    /// The command, for arguments and standard streams.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Starts it by `start`, which forks. In a jail the child is the first process of a pid namespace, where this process
    /// may make one: with it the kernel kills all the others in there.
    ///
    /// # Errors
    /// Those of `start`; or when this thread cannot come back to its own namespace, which has not been seen to happen.
    pub fn spawn<T>(self, mut setup: ChildSetup, start: impl FnOnce(Command) -> io::Result<T>) -> io::Result<T> {
        let Jailed { mut command, parent } = self;
        setup.keep.extend(parent.as_ref().map(AsRawFd::as_raw_fd));
        prepare_child(&mut command, setup);
        let Some(back) = parent.as_ref().and_then(|_| leave()) else {
            return start(command);
        };
        let started = start(command);
        rustix::thread::move_into_link_name_space(back.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
        started
    }
}

/// Lets the next child of this thread be the first of a namespace; the way back, or `None` when this is not allowed.
fn leave() -> Option<OwnedFd> {
    let back = File::open("/proc/self/ns/pid").ok()?;
    // SAFETY: only where children of this thread are put changes, until the caller sets it back.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.ok()?;
    Some(back.into())
}

/// Whether the calling process is in another pid namespace than the `/proc` it sees: the first of one, or a child of that.
pub(super) fn has_process_namespace() -> bool {
    let seen = std::fs::read_link("/proc/self").ok();
    let own = std::process::id();
    own == 1 || seen.is_some_and(|seen| seen.as_os_str() != own.to_string().as_str())
}
