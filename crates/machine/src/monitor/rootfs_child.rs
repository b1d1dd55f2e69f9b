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

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use zmachine_image::store::CREDENTIALS_FILE;
use zmachine_sys::jail::{Jail, Jailed};
use zmachine_sys::process::{ChildSetup, ProcessId};

use super::cell::Cell;
use crate::failure::{Class, Failure};
use crate::plan;

/// What the server is started with.
#[derive(Debug)]
pub(super) struct RootfsServer {
    listener: UnixListener,
    image: PathBuf,
    blocks: PathBuf,
    stores: Vec<String>,
    jail: Option<Jail>,
    child: Child,
    events: Lines<BufReader<UnixStream>>,
}

impl RootfsServer {
    /// Binds `socket` and starts the server on it.
    ///
    /// # Errors
    /// When the socket can not be bound or the process not started.
    pub(super) fn start(
        socket: &Path,
        image: PathBuf,
        blocks: PathBuf,
        stores: Vec<String>,
        cell: Option<&Cell>,
    ) -> Result<RootfsServer, Failure> {
        let bound = UnixListener::bind(socket);
        let listener =
            bound.map_err(|e| Failure::from(e).context(format!("can not listen on {}", socket.display())))?;
        let jail = cell.and_then(Cell::jail);
        if let Some(cell) = cell {
            cell.give(socket).map_err(not_started)?;
        }
        let (child, events) = spawn(&listener, &image, &blocks, &stores, jail.as_ref()).map_err(not_started)?;
        Ok(RootfsServer {
            listener,
            image,
            blocks,
            stores,
            jail,
            child,
            events,
        })
    }

    /// Starts a new server in place of one that ended.
    ///
    /// # Errors
    /// When the process can not be started.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        let jail = self.jail.as_ref();
        (self.child, self.events) =
            spawn(&self.listener, &self.image, &self.blocks, &self.stores, jail).map_err(not_started)?;
        Ok(())
    }

    /// Which process it is; `None` when it has ended.
    pub(super) fn id(&self) -> Option<ProcessId> {
        self.child.id().and_then(ProcessId::of)
    }

    /// The next line of its events; `Err` with how it ended when there are no more. Dropping the future loses nothing.
    pub(super) async fn next_event(&mut self) -> Result<String, String> {
        if let Ok(Some(line)) = self.events.next_line().await {
            return Ok(line);
        }
        Err(match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        })
    }

    /// Ends it.
    pub(super) async fn kill(mut self) {
        let _ = self.child.kill().await;
    }
}

/// The next event of a server, as [`RootfsServer::next_event`]; without one there never is any.
pub(super) async fn next_event(server: &mut Option<RootfsServer>) -> Result<String, String> {
    match server {
        Some(server) => server.next_event().await,
        None => std::future::pending().await,
    }
}

fn not_started(error: io::Error) -> Failure {
    Failure::from_error(Class::Failed, &error).context("can not start the rootfs server")
}

fn spawn(
    listener: &UnixListener,
    image: &Path,
    blocks: &Path,
    stores: &[String],
    jail: Option<&Jail>,
) -> io::Result<(Child, Lines<BufReader<UnixStream>>)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let theirs = OwnedFd::from(theirs);
    let mut command = super::own_program("rootfs");
    command.arg("--image-dir").arg(image).arg("--blocks-dir").arg(blocks);
    command.args(["--serial", plan::ROOT_SERIAL, "--queues", "1"]);
    command.arg("--listener-fd").arg(listener.as_raw_fd().to_string());
    command.arg("--events-fd").arg(theirs.as_raw_fd().to_string());
    command
        .arg("--credentials")
        .arg(blocks.with_file_name(CREDENTIALS_FILE));
    // Stores may have credentials in them, and everybody on the host sees arguments. A pipe holds 64 KiB before its reader
    // comes.
    let (stdin, mut told) = io::pipe()?;
    let stores = serde_json::to_vec(stores)?;
    if stores.len() > 32 << 10 {
        return Err(io::Error::other("the URLs of its stores are too long"));
    }
    told.write_all(&stores)?;
    drop(told);
    command.stdin(stdin).stdout(Stdio::null()).stderr(theirs.try_clone()?);
    command.arg0("zmachine");
    let jailed = match jail {
        Some(jail) => Jailed::role(jail, command)?,
        None => Jailed::free(command),
    };
    let setup = ChildSetup {
        keep: vec![listener.as_raw_fd(), theirs.as_raw_fd()],
        die_with_parent: true,
        new_session: false,
    };
    let child = jailed.spawn(setup, |command| Command::from(command).kill_on_drop(true).spawn())?;
    Ok((child, BufReader::new(UnixStream::from_std(ours)?).lines()))
}
