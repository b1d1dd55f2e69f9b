//! What processes in a guest that copy files read and write, as streams of bytes.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zmachine_agent_protocol::{ExitStatus, Frame, MAX_DATA, Reply};
use zmachine_spec::{Class, Failure};

use crate::attach::{ProcessInput, ProcessOutput};

/// The bytes that a process in the guest writes, and how it ends.
#[derive(Debug)]
pub struct FromGuest {
    output: ProcessOutput,
    bytes: Vec<u8>,
    at: usize,
    errors: Vec<u8>,
    ended: Option<Result<ExitStatus, Failure>>,
}

impl FromGuest {
    /// Of the process behind `output`.
    pub fn new(output: ProcessOutput) -> FromGuest {
        FromGuest {
            output,
            bytes: Vec::new(),
            at: 0,
            errors: Vec::new(),
            ended: None,
        }
    }

    /// Takes one frame; `false` at the end.
    fn step(&mut self) -> Result<bool, Failure> {
        if self.ended.is_some() {
            return Ok(false);
        }
        match self.output.next_frame()? {
            Some(Frame::Stdout(bytes)) => {
                self.bytes = bytes;
                self.at = 0;
            }
            // Warnings for many files would fill the memory otherwise.
            Some(Frame::Stderr(bytes)) if self.errors.len() < MAX_DATA => self.errors.extend_from_slice(&bytes),
            Some(frame @ Frame::Message(_)) => match frame.parse::<Reply>() {
                Ok(Reply::Exited(status)) => self.ended = Some(Ok(status)),
                Ok(Reply::Error(error)) => self.ended = Some(Err(error.into())),
                _ => {}
            },
            Some(_) => {}
            None => self.ended = Some(Err(Failure::new(Class::Failed, "the machine ended meanwhile"))),
        }
        Ok(true)
    }

    /// Reads to the end, and tells whether all went well. `warn` hears of the guest's warnings.
    ///
    /// # Errors
    /// What the guest says.
    pub fn end(mut self, mut warn: impl FnMut(String)) -> Result<(), Failure> {
        while self.step()? {}
        let text = String::from_utf8_lossy(&self.errors).into_owned();
        let mut message = String::new();
        for line in text.lines() {
            match line.strip_prefix("warning: ") {
                Some(text) => warn(text.to_owned()),
                None => message = line.to_owned(),
            }
        }
        match self.ended {
            Some(Ok(ExitStatus::Code(0))) => Ok(()),
            Some(Ok(ExitStatus::Code(3))) => Err(Failure::new(Class::NotFound, message)),
            Some(Ok(status)) => Err(Failure::new(
                Class::Failed,
                if message.is_empty() {
                    format!("the copying process in the guest ended with {status:?}")
                } else {
                    message
                },
            )),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::new(Class::Failed, "the machine ended meanwhile")),
        }
    }
}

impl Read for &mut FromGuest {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.bytes.len() {
            if !self.step().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// The standard input of a process in the guest.
#[derive(Debug)]
pub struct ToGuest {
    input: ProcessInput,
    ended: Arc<AtomicBool>,
}

impl ToGuest {
    /// A writer that gives up when the process has `ended`.
    pub fn new(input: ProcessInput, ended: Arc<AtomicBool>) -> ToGuest {
        ToGuest { input, ended }
    }
}

impl Write for ToGuest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        let count = bytes.len().min(MAX_DATA);
        self.input.send(&Frame::Stdin(bytes[..count].to_vec()))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
