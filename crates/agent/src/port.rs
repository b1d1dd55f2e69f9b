//! The virtio-serial port to the host: found by its name, opened, and read and written without blocking.
//!
//! What the host sends before the port is open waits in the host's socket. A port whose host side is not connected
//! reads as "at its end" and polls as hung up, so [`wait_for_host`] comes before the runtime sees the port; from
//! then on an end means that the host is gone for good.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncWrite};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;
use zmachine_agent_protocol::PORT_NAME;
use zmachine_agent_protocol::greeting::{Finder, Greeting};

use crate::pollable::Pollable;

/// How long the port may take to appear.
const APPEAR: Duration = Duration::from_secs(30);
/// How long the host may take to connect to it.
const CONNECT: Duration = Duration::from_secs(180);
/// Pause between two looks: the port is announced by the hypervisor within a few of them.
const PAUSE: Duration = Duration::from_millis(1);

/// Why there is no channel to the host.
#[derive(Debug, Error)]
pub(crate) enum PortError {
    /// The machine has no port of that name.
    #[error("no virtio-serial port {PORT_NAME} after {} s", APPEAR.as_secs())]
    Missing,
    /// The port cannot be opened.
    #[error("open {path}: {source}")]
    Open { path: PathBuf, source: Errno },
    /// The host did not answer on the virtual socket.
    #[error("call the host over vsock: {0}")]
    Call(#[source] io::Error),
    /// Nobody connected on the host.
    #[error("the host did not connect to {PORT_NAME} within {} s", CONNECT.as_secs())]
    NoHost,
}

/// Waits for the agent's port, and opens it.
///
/// # Errors
/// [`PortError`]: no port in 30 s, or the port is in use.
pub(crate) fn open() -> Result<OwnedFd, PortError> {
    let deadline = Instant::now() + APPEAR;
    loop {
        if let Some(port) = open_if_there()? {
            return Ok(port);
        }
        if Instant::now() > deadline {
            return Err(PortError::Missing);
        }
        sleep(PAUSE);
    }
}

/// Opens the agent's port if the kernel knows it by now.
///
/// # Errors
/// [`PortError::Open`] when it cannot be opened.
pub(crate) fn open_if_there() -> Result<Option<OwnedFd>, PortError> {
    match find(Path::new("/sys/class/virtio-ports"), PORT_NAME) {
        Some(name) => open_device(Path::new("/dev").join(name)).map(Some),
        None => Ok(None),
    }
}

/// Opens the port with this device node.
///
/// # Errors
/// [`PortError::Open`] when it cannot be opened.
pub(crate) fn open_device(device: PathBuf) -> Result<OwnedFd, PortError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = rustix::fs::open(&device, flags, Mode::empty());
    opened.map_err(|source| PortError::Open { path: device, source })
}

/// The device name of the port called `wanted`: each port is a folder with a file `name`.
fn find(class: &Path, wanted: &str) -> Option<String> {
    let ports = fs::read_dir(class).ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim_end() == wanted).then(|| port.file_name().to_string_lossy().into_owned())
    })
}

/// Waits until the host's side of the port is connected.
///
/// # Errors
/// [`PortError::NoHost`] after 180 s.
pub(crate) fn wait_for_host(port: &OwnedFd) -> Result<(), PortError> {
    let deadline = Instant::now() + CONNECT;
    loop {
        if has_host(port) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(PortError::NoHost);
        }
        sleep(PAUSE);
    }
}

/// Whether the host's side of the port is connected.
pub(crate) fn has_host(port: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    !fds[0].revents().contains(PollFlags::HUP)
}

/// The open port as a byte stream. It has nothing more to say when a host greets a frozen guest: that is the host of a copy of it, which
/// knows nothing of what the one before it has begun. The descriptor stays open then: see [`crate::host::taken_over`].
#[derive(Debug)]
pub(crate) struct Port {
    port: Rc<Pollable>,
    /// What it has read already.
    first: Vec<u8>,
    is_frozen: Rc<Cell<bool>>,
    greeted: Rc<RefCell<Greeted>>,
}

/// What a host has said that greets a frozen guest.
#[derive(Debug, Default)]
pub(crate) struct Greeted {
    /// Its first greeting.
    pub(crate) first: Option<Greeting>,
    /// What came with it.
    pub(crate) rest: Finder,
}

impl Port {
    /// `is_frozen`: whether the guest is. The greeting is left in `greeted`; whoever polls the stream looks there.
    pub(crate) fn new(
        port: Rc<Pollable>,
        first: Vec<u8>,
        is_frozen: Rc<Cell<bool>>,
        greeted: Rc<RefCell<Greeted>>,
    ) -> Port {
        Port {
            port,
            first,
            is_frozen,
            greeted,
        }
    }
}

impl AsyncRead for Port {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.greeted.borrow().first.is_some() {
            return Poll::Pending;
        }
        if !self.first.is_empty() {
            let count = self.first.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(count));
        }
        let read = self
            .port
            .poll_read_with(cx, |fd| Ok(rustix::io::read(fd, &mut *buffer)?));
        if let Poll::Ready(Ok(count)) = &read
            && self.is_frozen.get()
        {
            let mut greeted = self.greeted.borrow_mut();
            greeted.rest.push(&buffer[..*count]);
            if greeted.first.is_none() {
                greeted.first = greeted.rest.next_greeting();
            }
            if greeted.first.is_some() {
                return Poll::Pending;
            }
        }
        read
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.port.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name_among_others() {
        let class = tempfile::tempdir().unwrap();
        for (device, name) in [("vport1p1", "org.other\n"), ("vport1p2", "org.zmachine.agent.0\n")] {
            fs::create_dir(class.path().join(device)).unwrap();
            fs::write(class.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(find(class.path(), PORT_NAME).as_deref(), Some("vport1p2"));
        assert_eq!(find(class.path(), "org.zmachine"), None);
    }
}
