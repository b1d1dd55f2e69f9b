//! Processes that outlive their streams: what was sent of their output lately, and the way to the one that carries it.
//!
//! A host that takes a session over says how much it has; the rest comes from here. What was never read off the process's
//! pipes is in the pipes still, so nothing is lost but what went to a host that did not live to use it and is older than
//! [`KEPT`].

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use futures::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zmachine_agent_protocol::{ExitStatus, Frame, FrameDecoder, HEADER_LEN, MAX_DATA, Reply};

/// Output of one session that is kept after it was sent, in bytes: yamux's window, which is as much as can be on its way to
/// a host that has read none of it, and the frame that waits for room in it.
const KEPT: usize = 256 * 1024 + MAX_DATA;

/// The last output of a session.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// All bytes of output so far.
    end: Rc<Cell<u64>>,
}

impl Replay {
    /// One without output yet, which counts it in `end`.
    pub(super) fn new(end: Rc<Cell<u64>>) -> Replay {
        Replay {
            end,
            ..Replay::default()
        }
    }

    /// Adds an encoded frame of output that is about to be sent.
    pub(super) fn push(&mut self, frame: &[u8]) {
        let length = frame.len() - HEADER_LEN;
        self.end.set(self.end.get() + length as u64);
        self.bytes += length;
        self.frames.push_back(frame.to_vec());
        while let Some(first) = self.frames.front()
            && self.bytes - (first.len() - HEADER_LEN) >= KEPT
        {
            self.bytes -= first.len() - HEADER_LEN;
            self.frames.pop_front();
        }
    }

    /// What a host gets that has `received` bytes: the frames after them, and how many bytes before those are gone.
    fn after(&self, received: u64) -> (Vec<u8>, u64) {
        let mut at = self.end.get() - self.bytes as u64;
        let lost = at.saturating_sub(received);
        let mut out = Vec::new();
        for frame in &self.frames {
            let (header, payload) = frame.split_at(HEADER_LEN);
            let skipped = usize::try_from(received.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(payload.len());
            at += payload.len() as u64;
            if skipped < payload.len() {
                out.push(header[0]);
                out.extend_from_slice(&((payload.len() - skipped) as u32).to_le_bytes());
                out.extend_from_slice(&payload[skipped..]);
            }
        }
        (out, lost)
    }

    /// The beginning of a stream that takes the session of `pid` over.
    pub(super) fn resumed(&self, pid: i32, received: u64) -> Vec<u8> {
        let (frames, lost) = self.after(received);
        let mut out = Frame::message(&Reply::Resumed { pid: pid as u32, lost }).to_bytes();
        out.extend(frames);
        out
    }
}

/// A session that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(super) pid: i32,
    pub(crate) status: ExitStatus,
    pub(super) replay: Replay,
}

impl Ended {
    /// Everything that a host gets that has `received` bytes of it.
    pub(crate) fn resumed(&self, received: u64) -> Vec<u8> {
        let mut out = self.replay.resumed(self.pid, received);
        Frame::message(&Reply::Exited(self.status)).encode(&mut out);
        out
    }

    /// The process it was.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

/// Gives a running session another stream.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Bytes of output so far.
    sent: Rc<Cell<u64>>,
    input: UnboundedSender<(ReadHalf<yamux::Stream>, FrameDecoder)>,
    output: UnboundedSender<(WriteHalf<yamux::Stream>, u64)>,
}

/// Where a session gets its next streams from.
#[derive(Debug)]
pub(crate) struct NextStreams {
    pub(super) sent: Rc<Cell<u64>>,
    pub(super) input: UnboundedReceiver<(ReadHalf<yamux::Stream>, FrameDecoder)>,
    pub(super) output: UnboundedReceiver<(WriteHalf<yamux::Stream>, u64)>,
}

/// The two ends of the way to a session.
pub(crate) fn handle() -> (Handle, NextStreams) {
    let (input, next_input) = unbounded_channel();
    let (output, next_output) = unbounded_channel();
    let sent: Rc<Cell<u64>> = Rc::default();
    (
        Handle {
            sent: Rc::clone(&sent),
            input,
            output,
        },
        NextStreams {
            sent,
            input: next_input,
            output: next_output,
        },
    )
}

impl Handle {
    /// Bytes of output that were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Lets the session go on with `stream`, whose host has `received` bytes of its output.
    pub(crate) fn resume(&self, stream: yamux::Stream, decoder: FrameDecoder, received: u64) {
        let (read, write) = stream.split();
        // A session that ends right now closes the stream by dropping it.
        let _ = self.input.send((read, decoder));
        let _ = self.output.send((write, received));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(mut bytes: &[u8]) -> Vec<u8> {
        let mut decoder = FrameDecoder::new();
        decoder.push(std::mem::take(&mut bytes));
        let mut all = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            match frame {
                Frame::Stdout(bytes) | Frame::Stderr(bytes) => all.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    #[test]
    fn a_host_gets_exactly_what_it_lacks() {
        let mut replay = Replay::default();
        let all: Vec<u8> = (0..100u8).collect();
        for (index, piece) in all.chunks(7).enumerate() {
            let frame = match index % 2 {
                0 => Frame::Stdout(piece.to_vec()),
                _ => Frame::Stderr(piece.to_vec()),
            };
            replay.push(&frame.to_bytes());
        }
        for received in 0..=100 {
            let (bytes, lost) = replay.after(received);
            assert_eq!((frames(&bytes), lost), (all[received as usize..].to_vec(), 0));
        }
        assert_eq!(replay.after(u64::MAX), (Vec::new(), 0));
    }

    #[test]
    fn a_window_and_the_frame_behind_it_are_kept() {
        let mut replay = Replay::default();
        for _ in 0..256 * 1024 / MAX_DATA + 1 {
            replay.push(&Frame::Stdout(vec![1; MAX_DATA]).to_bytes());
        }
        assert_eq!(replay.after(0).1, 0);
    }

    #[test]
    fn what_is_too_old_is_counted() {
        let mut replay = Replay::default();
        for _ in 0..10 {
            replay.push(&Frame::Stdout(vec![1; 64 * 1024]).to_bytes());
        }
        let kept = replay.bytes as u64;
        assert!((KEPT as u64..KEPT as u64 + 64 * 1024).contains(&kept));
        let (bytes, lost) = replay.after(0);
        assert_eq!((frames(&bytes).len() as u64, lost), (kept, 640 * 1024 - kept));
        assert_eq!(replay.after(640 * 1024 - 5).0.len(), HEADER_LEN + 5);
    }
}
