//! Hosts that come after the first one: each finds the port opened anew, which also throws away what was on its way.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use zmachine_agent_protocol::greeting::Greeting;
use zmachine_agent_protocol::{FrameDecoder, Thaw};

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

/// A host that takes the machine over.
#[derive(Debug)]
pub(crate) struct Taken {
    /// What has come of its connection.
    pub(crate) first: Vec<u8>,
    /// What it wants of a copy before that, and its greeting, which waits for the answer.
    pub(crate) thaw: Option<(Greeting, Box<Thaw>)>,
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

/// The next host that takes the machine over, once it has said so: see [`zmachine_agent_protocol::greeting`].
///
/// # Errors
/// As [`next`], and when the host is gone again.
pub(crate) async fn next_that_takes_over() -> Result<(Pollable, Taken), TakeoverError> {
    let port = Pollable::new(next(None).await?)?;
    let taken = taken_over(&port, Greeted::default()).await?;
    Ok((port, taken))
}

/// Answers the host of a copy on the port that the one before it had: to open it anew takes longer than all the rest. What is still
/// on its way was meant for the other host, and is dropped with what comes before a greeting.
///
/// # Errors
/// When the host is gone again, or what it says is none of ours.
pub(crate) async fn taken_over(port: &Pollable, greeted: Greeted) -> io::Result<Taken> {
    let Greeted { mut first, mut rest } = greeted;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        while let Some(greeting) = first.take().or_else(|| rest.next_greeting()) {
            if let Greeting::Thaw(_) = greeting {
                let (thaw, first) = thaw(port, rest.into_rest()).await?;
                let thaw = Some((greeting, Box::new(thaw)));
                return Ok(Taken { first, thaw });
            }
            write(port, &greeting.to_bytes()).await?;
            if let Greeting::Begin(_) = greeting {
                let first = rest.into_rest();
                return Ok(Taken { first, thaw: None });
            }
        }
        read(port, &mut piece).await?;
        rest.push(&piece);
    }
}

/// What comes behind a greeting with which a copy is told who it is, and what came behind that.
async fn thaw(port: &Pollable, came: Vec<u8>) -> io::Result<(Thaw, Vec<u8>)> {
    let mut frames = FrameDecoder::new();
    frames.push(&came);
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        if let Some(frame) = frames.next_frame().map_err(io::Error::other)? {
            let thaw = frame.parse().map_err(io::Error::other)?;
            return Ok((thaw, frames.into_rest()));
        }
        read(port, &mut piece).await?;
        frames.push(&piece);
    }
}

async fn read(port: &Pollable, piece: &mut Vec<u8>) -> io::Result<()> {
    piece.clear();
    match poll_fn(|cx| port.poll_read_into(cx, piece)).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Writes all of it.
///
/// # Errors
/// When the host is gone.
pub(crate) async fn write(port: &Pollable, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| port.poll_write(cx, bytes)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
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
