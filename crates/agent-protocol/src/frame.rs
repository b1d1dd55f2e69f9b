//! Frames: the unit on every stream. `u8 kind`, `u32` little-endian payload length, payload.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 5;
/// The largest payload either side accepts, in bytes. Data frames stay at [`MAX_DATA`].
pub const MAX_PAYLOAD: usize = 4 * 1024 * 1024;
/// The largest piece of process output or input put into one frame, in bytes.
pub const MAX_DATA: usize = 64 * 1024;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A JSON message; its type follows from the stream's state.
    Message(Vec<u8>),
    /// Bytes for the process's standard input.
    Stdin(Vec<u8>),
    /// Bytes the process wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// Bytes the process wrote to standard error.
    Stderr(Vec<u8>),
    /// Standard input is at its end.
    StdinEof,
}

/// Why a frame or a message could not be read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("frame of {len} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong {
        /// Announced payload length in bytes.
        len: usize,
    },
    /// The kind byte is none of ours.
    #[error("unknown frame kind {kind}")]
    UnknownKind {
        /// The byte read.
        kind: u8,
    },
    /// The payload is not the JSON message that belongs here.
    #[error("malformed message")]
    Malformed(#[from] serde_json::Error),
    /// Another kind of frame belongs here.
    #[error("expected a message, got {got}")]
    NotAMessage {
        /// Name of the frame kind received.
        got: &'static str,
    },
}

impl Frame {
    /// A message frame with `value` as JSON.
    ///
    /// # Panics
    /// When `value` has a map with keys that are not strings; no type of this crate has one.
    pub fn message<T: Serialize>(value: &T) -> Frame {
        Frame::Message(serde_json::to_vec(value).expect("messages serialize to JSON"))
    }

    /// Reads the JSON of a message frame.
    ///
    /// # Errors
    /// [`FrameError::NotAMessage`] for a data frame, [`FrameError::Malformed`] for other JSON.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self {
            Frame::Message(payload) => Ok(serde_json::from_slice(payload)?),
            other => Err(FrameError::NotAMessage { got: other.name() }),
        }
    }

    /// Appends the encoded frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, payload): (u8, &[u8]) = match self {
            Frame::Message(p) => (0, p),
            Frame::Stdin(p) => (1, p),
            Frame::Stdout(p) => (2, p),
            Frame::Stderr(p) => (3, p),
            Frame::StdinEof => (4, &[]),
        };
        out.push(kind);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
    }

    /// The encoded frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    fn name(&self) -> &'static str {
        match self {
            Frame::Message(_) => "message",
            Frame::Stdin(_) => "stdin",
            Frame::Stdout(_) => "stdout",
            Frame::Stderr(_) => "stderr",
            Frame::StdinEof => "stdin-eof",
        }
    }
}

/// Cuts a byte stream into frames. Feed it with [`push`](Self::push), drain it with [`next_frame`](Self::next_frame).
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_DATA {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] and [`FrameError::UnknownKind`]: the stream is out of step and must be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = &self.buffer[self.start..];
        let Some(header) = pending.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let kind = header[0];
        let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if kind > 4 {
            return Err(FrameError::UnknownKind { kind });
        }
        if len > MAX_PAYLOAD {
            return Err(FrameError::TooLong { len });
        }
        if pending.len() < HEADER_LEN + len {
            return Ok(None);
        }
        let payload = pending[HEADER_LEN..HEADER_LEN + len].to_vec();
        self.start += HEADER_LEN + len;
        Ok(Some(match kind {
            0 => Frame::Message(payload),
            1 => Frame::Stdin(payload),
            2 => Frame::Stdout(payload),
            3 => Frame::Stderr(payload),
            _ => Frame::StdinEof,
        }))
    }

    /// What came behind the last complete frame.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.drain(..self.start);
        self.buffer
    }

    /// Whether bytes of an unfinished frame are waiting: at the end of a stream, it was cut.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Message(b"{}".to_vec()),
            Frame::Stdin(vec![0, 255, 10]),
            Frame::Stdout(vec![7; MAX_DATA]),
            Frame::Stderr(vec![]),
            Frame::StdinEof,
        ]
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let mut bytes = Vec::new();
        frames().iter().for_each(|f| f.encode(&mut bytes));
        for step in [1, 2, 5, 7, 4096, bytes.len()] {
            let mut decoder = FrameDecoder::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames(), "step {step}");
            assert!(!decoder.is_mid_frame());
        }
    }

    #[test]
    fn an_over_long_frame_is_refused_before_it_is_buffered() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&[2, 255, 255, 255, 255]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&[9, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::UnknownKind { kind: 9 })));
    }
}
