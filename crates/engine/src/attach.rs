//! A command's side of a process stream: the entrypoint (`attach`) or one more process (`exec`).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zmachine_agent_protocol::{Frame, FrameDecoder, FrameError};
use zmachine_spec::{Class, Failure};

/// The receiving side of a process stream.
#[derive(Debug)]
pub struct ProcessOutput {
    stream: UnixStream,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

/// The sending side of a process stream.
#[derive(Debug)]
pub struct ProcessInput {
    stream: UnixStream,
}

/// Both sides of a stream that has sent its request already.
///
/// # Errors
/// When the process is out of descriptors.
pub fn split(stream: UnixStream) -> io::Result<(ProcessInput, ProcessOutput)> {
    let input = ProcessInput {
        stream: stream.try_clone()?,
    };
    Ok((
        input,
        ProcessOutput {
            stream,
            decoder: FrameDecoder::new(),
            buffer: vec![0; 64 * 1024],
        },
    ))
}

impl ProcessOutput {
    /// The next frame; `None` when the monitor closed the stream.
    ///
    /// # Errors
    /// When the stream breaks or carries no frames.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Failure> {
        loop {
            let frame = self
                .decoder
                .next_frame()
                .map_err(|e: FrameError| Failure::from_error(Class::Failed, &e))?;
            if let Some(frame) = frame {
                return Ok(Some(frame));
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => self.decoder.push(&self.buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The monitor is gone: the same as its closing the stream.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                // Of a socket with a time limit alone.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Failure::new(Class::Failed, "nothing came in time"));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl ProcessOutput {
    /// The stream itself, for who waits for many of them at once, and what has been read of it and was not taken yet.
    pub fn into_parts(self) -> (UnixStream, FrameDecoder) {
        (self.stream, self.decoder)
    }
}

impl ProcessOutput {
    /// [`ProcessOutput::next_frame`], for at most `patience`.
    ///
    /// # Errors
    /// As there, and when nothing came in time.
    pub fn next_frame_within(&mut self, patience: Duration) -> Result<Option<Frame>, Failure> {
        self.stream.set_read_timeout(Some(patience))?;
        let frame = self.next_frame();
        self.stream.set_read_timeout(None)?;
        frame
    }
}

impl ProcessInput {
    /// Sends one frame.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.stream.write_all(&frame.to_bytes())
    }

    /// Ends the stream in both directions: the other side's [`ProcessOutput`] is at its end then.
    pub fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// One more handle to the same stream.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<ProcessInput> {
        Ok(ProcessInput {
            stream: self.stream.try_clone()?,
        })
    }
}
