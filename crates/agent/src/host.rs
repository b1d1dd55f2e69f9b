//! Hosts that come after the first one: each finds the port opened anew, which also throws away what was on its way.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::port::{self, PortError};
use crate::vsock;

/// Pause between two looks for a host: nothing announces one.
const PAUSE: Duration = Duration::from_millis(100);

/// Pause between two calls over the virtual socket.
const CALL_PAUSE: Duration = Duration::from_secs(1);

/// The port, opened, once a host is connected to it; or the virtual socket, in a guest that has that and no port.
///
/// # Errors
/// [`PortError`]: no port in 30 s, or it cannot be opened.
pub(crate) async fn next(device: Option<&PathBuf>) -> Result<OwnedFd, PortError> {
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
