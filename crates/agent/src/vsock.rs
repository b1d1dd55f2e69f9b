//! The virtual socket to the host: the channel where the hypervisor has no virtio-serial. The guest calls its host, so the
//! host waits for one thing only, and nothing is tried again while the guest boots.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// The list of its modules; that it is there tells the agent to use it (`crates/kernel`).
pub(crate) const ORDER: &str = "/lib/modules/order.vsock";

/// The host's address on the bus (`VMADDR_CID_HOST`).
const HOST: u32 = 2;
/// The port at which the host listens for the agent.
const PORT: u32 = 1024;
/// How long the host may take to answer: it listens from before the guest's start.
const CONNECT: Duration = Duration::from_secs(180);
/// Pause between two calls.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether the guest has such a device: its driver makes the node.
pub(crate) fn is_there() -> bool {
    Path::new("/dev/vsock").exists()
}

/// Calls the host once.
///
/// # Errors
/// When there is no such socket, or nobody listens.
pub(crate) fn call() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &VsockAddr::new(HOST, PORT)) {
        Ok(()) => Ok(socket),
        Err(Errno::EINTR) => Err(io::ErrorKind::Interrupted.into()),
        Err(error) => Err(error.into()),
    }
}

/// Calls the host until it answers.
///
/// # Errors
/// The last call's, after 180 s.
pub(crate) fn call_patiently() -> io::Result<OwnedFd> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match call() {
            Err(_) if Instant::now() < deadline => sleep(PAUSE),
            called => return called,
        }
    }
}
