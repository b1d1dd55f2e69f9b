//! The rootfs server of a machine: a child process that serves the image's blocks as a disk.
//!
//! The listening socket belongs to the monitor and is inherited, so a server that dies is started again on the same
//! socket, and the hypervisor reconnects to it: the guest sees a pause, no error.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use zmachine_hypervisor::choice::SEARCH_PATH;
use zmachine_hypervisor::lines::Lines;
use zmachine_rootfs::Prefetch;
use zmachine_spec::{Class, Failure};
use zmachine_sys::jail::{Jail, Jailed};
use zmachine_sys::process::{ChildSetup, ProcessId};

use super::sandbox::Sandbox;

/// Longest line of a server in bytes: the blocks that were read first, each 64 digits, are a few thousand at most.
const LINE_BYTES: usize = 4 << 20;

/// How long a killed server may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server is started with.
#[derive(Debug)]
pub(super) struct Settings {
    /// The image's directory.
    pub(super) image: PathBuf,
    /// The block cache.
    pub(super) blocks: PathBuf,
    /// The credentials of stores.
    pub(super) credentials: PathBuf,
    /// The serial number that the guest knows the disk by.
    pub(super) serial: String,
    /// Block stores in place of the flist's routes.
    pub(super) stores: Vec<String>,
    /// Queues of the disk.
    pub(super) queues: u16,
    /// It is served over NBD.
    pub(super) is_nbd: bool,
    /// How much is fetched before it is read.
    pub(super) prefetch: Prefetch,
    /// It tells what is read first.
    pub(super) record: bool,
}

/// A server, and the one after it.
#[derive(Debug)]
pub(super) struct RootfsServer {
    listener: UnixListener,
    settings: Settings,
    jail: Option<Jail>,
    child: Child,
    events: Lines<UnixStream>,
    /// When the next one is to be started.
    restart: Option<Instant>,
}

/// What happens to a server.
#[derive(Debug)]
pub(super) enum RootfsEvent {
    /// A line of its events.
    Line(String),
    /// How it ended.
    Ended(String),
    /// A new one has taken its place.
    Restarted,
    /// None could be started in its place.
    NotRestarted(Failure),
}

impl RootfsServer {
    /// Binds `socket` and starts the server on it.
    ///
    /// # Errors
    /// When the socket cannot be bound or the process not started.
    pub(super) fn start(socket: &Path, settings: Settings, sandbox: Option<&Sandbox>) -> Result<RootfsServer, Failure> {
        RootfsServer::on(listen(socket, sandbox)?, settings, sandbox)
    }

    /// Starts the server on a socket that [`listen`] has bound.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn on(
        listener: UnixListener,
        settings: Settings,
        sandbox: Option<&Sandbox>,
    ) -> Result<RootfsServer, Failure> {
        let jail = sandbox.and_then(Sandbox::jail);
        let (child, events) = spawn(&listener, &settings, jail.as_ref()).map_err(not_started)?;
        Ok(RootfsServer {
            listener,
            settings,
            jail,
            child,
            events,
            restart: None,
        })
    }

    /// Lets a new server take the place of one that ended, after `pause`; [`RootfsServer::next_event`] does it.
    pub(super) fn restart_after(&mut self, pause: Duration) {
        self.restart = Some(Instant::now() + pause);
    }

    /// Which process it is; `None` when it has ended.
    pub(super) fn id(&self) -> Option<ProcessId> {
        self.child.id().and_then(ProcessId::of)
    }

    /// The next thing that happens to it. Dropping the future loses nothing.
    pub(super) async fn next_event(&mut self) -> RootfsEvent {
        if let Some(at) = self.restart {
            tokio::time::sleep_until(at.into()).await;
            self.restart = None;
            return match spawn(&self.listener, &self.settings, self.jail.as_ref()) {
                Ok(started) => {
                    (self.child, self.events) = started;
                    RootfsEvent::Restarted
                }
                Err(error) => RootfsEvent::NotRestarted(not_started(error)),
            };
        }
        if let Ok(Some(line)) = self.events.next_line().await {
            return RootfsEvent::Line(line);
        }
        RootfsEvent::Ended(match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        })
    }

    /// Ends it. One that does not go even so (the kernel waits for a disk on its behalf) is in the journal.
    pub(super) async fn kill(mut self) {
        let _ = tokio::time::timeout(KILL_TIMEOUT, self.child.kill()).await;
    }
}

/// Binds `socket`, for a server of the machine.
///
/// # Errors
/// When it cannot be bound.
pub(super) fn listen(socket: &Path, sandbox: Option<&Sandbox>) -> Result<UnixListener, Failure> {
    let bound = UnixListener::bind(socket);
    let listener = bound.map_err(|e| Failure::from(e).context(format!("cannot listen on {}", socket.display())))?;
    if let Some(sandbox) = sandbox {
        sandbox.give(socket).map_err(not_started)?;
    }
    Ok(listener)
}

/// The next event of a server, as [`RootfsServer::next_event`]; without one there never is any.
pub(super) async fn next_event(server: &mut Option<RootfsServer>) -> RootfsEvent {
    match server {
        Some(server) => server.next_event().await,
        None => std::future::pending().await,
    }
}

fn not_started(error: io::Error) -> Failure {
    Failure::from_error(Class::Failed, &error).context("cannot start the rootfs server")
}

fn spawn(listener: &UnixListener, settings: &Settings, jail: Option<&Jail>) -> io::Result<(Child, Lines<UnixStream>)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let theirs = OwnedFd::from(theirs);
    let mut command = zmachine_sys::process::own_program("rootfs", SEARCH_PATH);
    command.arg("--image-dir").arg(&settings.image);
    command.arg("--blocks-dir").arg(&settings.blocks);
    command.args(["--serial", &settings.serial, "--queues", &settings.queues.to_string()]);
    command.args(["--prefetch", settings.prefetch.name()]);
    if settings.is_nbd {
        command.arg("--nbd");
    }
    if settings.record {
        command.arg("--record");
    }
    command.arg("--listener-fd").arg(listener.as_raw_fd().to_string());
    command.arg("--events-fd").arg(theirs.as_raw_fd().to_string());
    command.arg("--credentials").arg(&settings.credentials);
    // Stores may have credentials in them, and everybody on the host sees arguments. A pipe holds 64 KiB before its reader
    // comes.
    let (stdin, mut reported) = io::pipe()?;
    let stores = serde_json::to_vec(&settings.stores)?;
    if stores.len() > 32 << 10 {
        return Err(io::Error::other("the URLs of its stores are too long"));
    }
    reported.write_all(&stores)?;
    drop(reported);
    command.stdin(stdin).stdout(Stdio::null()).stderr(theirs.try_clone()?);
    command.arg0("zmachine");
    let jailed = match jail {
        Some(jail) => Jailed::role(jail, command)?,
        None => Jailed::free(command),
    };
    let setup = ChildSetup {
        keep: vec![listener.as_raw_fd(), theirs.as_raw_fd()],
        die_with_parent: true,
        ..ChildSetup::default()
    };
    let child = jailed.spawn(setup, |command| Command::from(command).kill_on_drop(true).spawn())?;
    Ok((child, Lines::new(UnixStream::from_std(ours)?, LINE_BYTES)))
}
