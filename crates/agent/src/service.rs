//! The agent beside another init: a service of a whole operating system.
//!
//! Here it sets nothing up and stops nothing. The host may start processes, ask for the guest's capacity, let mounted file
//! systems grow, and ask for a power-off, which is passed on to the init. The service may be stopped, replaced or missing
//! without harm to the guest.
//!
//! # The port
//! A host that goes ends its session, not the service: the port is opened anew, which also throws away what was on its way,
//! and the next host finds an agent that knows nothing of the one before.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::port::{self, PortError};
use crate::{server, vsock};

/// Pause between two looks for a host: nothing announces one.
const PAUSE: Duration = Duration::from_millis(100);

/// Pause between two calls over the virtual socket.
const CALL_PAUSE: Duration = Duration::from_secs(1);

/// Why the service ends.
#[derive(Debug, Error)]
enum ServiceError {
    /// No channel to a host.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The guest has no `/proc`.
    #[error("open /proc: {0}")]
    Proc(Errno),
    /// The runtime cannot work.
    #[error("watch the port: {0}")]
    Io(#[from] io::Error),
}

/// Serves on `device`, or on the port with the agent's name, until something breaks; the exit status.
pub(crate) fn run(device: Option<PathBuf>) -> i32 {
    let served = open_proc().and_then(|proc| server::serve_guest(proc, async || next_port(device.as_ref()).await));
    match served {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("zmachine-agent: {error}");
            1
        }
    }
}

fn open_proc() -> Result<OwnedFd, ServiceError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/proc", flags, Mode::empty()).map_err(ServiceError::Proc)
}

/// The port, opened, once a host is connected to it; or the virtual socket, in a guest that has that and no port.
async fn next_port(device: Option<&PathBuf>) -> Result<OwnedFd, ServiceError> {
    let port = match device {
        Some(device) => port::open_device(device.clone())?,
        None => match port::open_if_there()? {
            Some(port) => port,
            None if vsock::is_there() => return Ok(next_call().await),
            None => port::open()?,
        },
    };
    while !port::has_host(&port) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(port)
}

/// Calls the host until it answers.
async fn next_call() -> OwnedFd {
    loop {
        if let Ok(called) = vsock::call() {
            return called;
        }
        tokio::time::sleep(CALL_PAUSE).await;
    }
}
