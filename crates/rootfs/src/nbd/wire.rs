//! The bytes of a connection after its negotiation: requests and simple replies. All numbers are big-endian.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const REQUEST_LENGTH: usize = 28;
/// Length of the head of a reply.
const REPLY_LENGTH: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    /// One that was not offered.
    Other,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: Command,
    /// The client's, by which it knows the answer.
    cookie: [u8; 8],
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    /// The next one; `None` when the client is gone between two.
    ///
    /// # Errors
    /// When the connection breaks inside of one, or it is none.
    pub(super) fn read(socket: &OwnedFd) -> io::Result<Option<Request>> {
        let mut bytes = [0; REQUEST_LENGTH];
        let first = read_some(socket, &mut bytes)?;
        if first == 0 {
            return Ok(None);
        }
        read_exactly(socket, &mut bytes[first..])?;
        Request::parse(&bytes)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what came is no NBD request"))
    }

    /// `{magic u32, flags u16, type u16, cookie u64, offset u64, length u32}`
    fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Option<Request> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (_flags, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, _) = rest.split_first_chunk()?;
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then(|| Request {
            command: match u16::from_be_bytes(*kind) {
                0 => Command::Read,
                1 => Command::Write,
                2 => Command::Disconnect,
                3 => Command::Flush,
                _ => Command::Other,
            },
            cookie: *cookie,
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(*length),
        })
    }

    /// The head of the answer: `{magic u32, error u32, cookie u64}`
    pub(super) fn reply(&self, errno: u32) -> [u8; REPLY_LENGTH] {
        let mut head = [0; REPLY_LENGTH];
        head[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&errno.to_be_bytes());
        head[8..].copy_from_slice(&self.cookie);
        head
    }
}

fn read_some(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(socket, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => return Ok(count),
        }
    }
}

/// Fills `buffer`.
///
/// # Errors
/// When the connection ends or breaks before.
pub(super) fn read_exactly(socket: &OwnedFd, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match read_some(socket, buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => buffer = &mut buffer[count..],
        }
    }
    Ok(())
}

/// Reads `length` bytes that nobody wants.
///
/// # Errors
/// As [`read_exactly`].
pub(super) fn skip(socket: &OwnedFd, length: u32) -> io::Result<()> {
    let mut left = length as usize;
    let mut buffer = [0; 16 * 1024];
    while left > 0 {
        let here = left.min(buffer.len());
        read_exactly(socket, &mut buffer[..here])?;
        left -= here;
    }
    Ok(())
}

/// Writes `head` and then `data`.
///
/// # Errors
/// When the connection breaks.
pub(super) fn write_all(socket: &OwnedFd, mut head: &[u8], mut data: &[u8]) -> io::Result<()> {
    while !head.is_empty() || !data.is_empty() {
        let parts = [IoSlice::new(head), IoSlice::new(data)];
        let written = match rustix::io::writev(socket, &parts) {
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
        };
        let of_head = written.min(head.len());
        (head, data) = (&head[of_head..], &data[written - of_head..]);
    }
    Ok(())
}
