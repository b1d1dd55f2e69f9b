//! Hosts that come after the first one: each finds the port opened anew, which also throws away what was on its way.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use zmachine_agent_protocol::greeting::Greeting;

use crate::pollable::Pollable;
use crate::port::{self, Greeted, PortError};
use crate::vsock;

/// Pause between two looks for a host: nothing announces one.
const PAUSE: Duration = Duration::from_millis(100);

/// Read at once while a greeting is looked for, in bytes.
const PIECE: usize = 4096;

/// Why nobody takes over.
#[derive(Debug, Error)]
pub(crate) enum TakeoverError {
    /// There is no channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// It broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

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

/// The next host that takes the machine over, once it has said so, and what it has said since: see [`zmachine_agent_protocol::greeting`].
///
/// # Errors
/// As [`next`], and when the host is gone again.
pub(crate) async fn next_that_takes_over() -> Result<(Pollable, Vec<u8>), TakeoverError> {
    let port = Pollable::new(next(None).await?)?;
    let rest = taken_over(&port, Greeted::default()).await?;
    Ok((port, rest))
}

/// Answers the host of a copy on the port that the one before it had: to open it anew takes longer than all the rest. What is still
/// on its way was meant for the other host, and is dropped with what comes before a greeting. What has come behind the last one is returned.
///
/// # Errors
/// When the host is gone again.
pub(crate) async fn taken_over(port: &Pollable, greeted: Greeted) -> io::Result<Vec<u8>> {
    let Greeted { mut first, mut rest } = greeted;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        while let Some(greeting) = first.take().or_else(|| rest.next_greeting()) {
            let answer = greeting.to_bytes();
            let mut left = answer.as_slice();
            while !left.is_empty() {
                let written = poll_fn(|cx| port.poll_write(cx, left)).await?;
                left = &left[written..];
            }
            if matches!(greeting, Greeting::Begin(_)) {
                return Ok(rest.into_rest());
            }
        }
        piece.clear();
        if poll_fn(|cx| port.poll_read_into(cx, &mut piece)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rest.push(&piece);
    }
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
