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

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::port::PortError;
use crate::{host, server};

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
    let served =
        open_proc().and_then(|proc| server::serve_guest(proc, async || Ok(host::next(device.as_ref()).await?)));
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
