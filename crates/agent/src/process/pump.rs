//! Carries one process's input and output over its stream.
//!
//! # Invariants
//! * Memory is bounded: one piece of output is on its way at a time, and input is read from the stream only while less
//!   than [`INPUT_LIMIT`] waits for the process. Everything else waits in pipes and in yamux's windows.
//! * `Exited` is the last frame. An entrypoint whose container switched itself off has none: the machine's power goes, and
//!   that is what the host sees. What the process itself wrote comes before it; what children that live on write is
//!   waited for only briefly.
//! * A host whose own reader has left says so with SIGPIPE: the process's standard output is closed then, as in a pipeline.
//!   The signal alone is not enough, since the kernel drops it for a PID 1 without a handler.
//! * A host that closes the stream early ends its own interest, not the process: a terminal hangs up, a pipe ends, and
//!   the output is drained to nowhere. Not so with a process that outlives its stream ([`super::resume`]): nothing ends, nothing
//!   is read of it, and both go on with the next stream.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use rustix::termios::{SpecialCodeIndex, tcgetattr};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Sleep, sleep, timeout};
use zmachine_agent_protocol::{ExitStatus, Frame, FrameDecoder, HEADER_LEN, Input, MAX_DATA, Reply};

use super::Started;
use super::resume::{Ended, NextStreams, Replay};
use super::stdio::{AgentSide, resize};
use crate::pollable::Pollable;
use crate::reaper::Reaper;

/// Input that may wait in the agent for a process that does not read, in bytes.
const INPUT_LIMIT: usize = 256 * 1024;
/// How long the agent waits for more output of children that outlive the process.
const QUIET: Duration = Duration::from_millis(100);
/// The most it waits for them in all.
const LINGER: Duration = Duration::from_secs(1);
/// How long a host that closed its side may take to read what it still gets.
const STALL: Duration = Duration::from_secs(5);
/// How long the host may take to close a stream after `Exited`.
const GOODBYE: Duration = Duration::from_secs(5);

/// A process and the stream it belongs to.
pub(crate) struct Session {
    /// The stream, past its request.
    pub(crate) stream: yamux::Stream,
    /// Bytes read with the request.
    pub(crate) decoder: FrameDecoder,
    /// The process.
    pub(crate) process: Started,
    /// Its streams.
    pub(crate) side: AgentSide,
    /// Who signals it.
    pub(crate) reaper: Rc<Reaper>,
    /// It is PID 1 of a namespace.
    pub(crate) is_entrypoint: bool,
    /// The streams that come after this one, of a process that outlives it.
    pub(crate) next: Option<NextStreams>,
}

impl Session {
    /// Runs until the process is gone, `Exited` is sent, and the host has closed the stream or 5 s have passed. `over` gets what a host may
    /// still ask of a process that outlives its streams, at the moment from which it takes no other stream.
    pub(crate) async fn run(self, over: impl FnOnce(Option<Ended>)) {
        let Session {
            stream,
            decoder,
            process,
            side,
            reaper,
            is_entrypoint,
            next,
        } = self;
        let (next_input, next_output) = next.map(|next| (next.input, (next.output, next.sent))).unzip();
        let (pid, exited) = (process.pid, process.exited);
        let (read, write) = stream.split();
        let host = Notify::new();
        let reader_left = Cell::new(false);
        let is_over = Cell::new(false);
        let Ok((sources, feed)) = split(side) else {
            // No descriptors left for the runtime: the process loses its streams, and the host is told the end.
            finish(write, exited.await).await;
            return over(None);
        };
        let typed = Typed {
            stream: read,
            decoder,
            waiting: VecDeque::new(),
            ended: false,
            feed,
            pid,
            reaper: &reaper,
            reader_left: &reader_left,
            wakes_output: false,
            next: next_input,
            replacement: None,
            is_over: &is_over,
        };
        let input = pin!(typed.carry(&host));
        let output = pin!(
            Output {
                stream: Some(write),
                sources,
                host: &host,
                reader_left: &reader_left,
                is_entrypoint,
                pid,
                kept: next_output.map(|(streams, sent)| Kept {
                    replay: Replay::new(sent),
                    streams,
                }),
                is_over: &is_over,
            }
            .carry(exited)
        );
        match select(output, input).await {
            Either::Left((ended, input)) => {
                over(ended);
                let _ = timeout(GOODBYE, input).await;
            }
            Either::Right(((), output)) => over(output.await),
        }
    }
}

/// Whether reboot(2) ended this PID 1 of a namespace. The kernel tells it by these signals (`reboot_pid_ns`), which cannot
/// have ended it otherwise: it drops them where there is no handler.
fn switched_off(status: ExitStatus) -> bool {
    matches!(status, ExitStatus::Signal(libc::SIGINT | libc::SIGHUP))
}

async fn finish(mut stream: WriteHalf<yamux::Stream>, status: Result<ExitStatus, oneshot::error::RecvError>) {
    // The reaper lives as long as the machine, so the sender is never dropped.
    let status = status.unwrap_or(ExitStatus::Code(255));
    let _ = stream
        .write_all(&Frame::message(&Reply::Exited(status)).to_bytes())
        .await;
    let _ = stream.close().await;
}

/// Where output comes from.
struct Source {
    fd: Rc<Pollable>,
    frame: fn(Vec<u8>) -> Frame,
    /// Bytes that were there when the process ended: they are its own and all sent.
    owed: usize,
    /// The pipe of standard output.
    is_stdout: bool,
}

/// Where input goes.
enum Feed {
    Pipe(Option<Pollable>),
    Terminal { master: Rc<Pollable>, input: bool },
}

fn split(side: AgentSide) -> io::Result<(Vec<Source>, Feed)> {
    match side {
        AgentSide::Pipes { stdin, stdout, stderr } => {
            let sources = vec![
                Source {
                    fd: Rc::new(Pollable::new(stdout)?),
                    frame: Frame::Stdout,
                    owed: 0,
                    is_stdout: true,
                },
                Source {
                    fd: Rc::new(Pollable::new(stderr)?),
                    frame: Frame::Stderr,
                    owed: 0,
                    is_stdout: false,
                },
            ];
            Ok((sources, Feed::Pipe(stdin.map(Pollable::new).transpose()?)))
        }
        AgentSide::Terminal { master, input } => {
            let master = Rc::new(Pollable::new(master)?);
            let source = Source {
                fd: Rc::clone(&master),
                frame: Frame::Stdout,
                owed: 0,
                is_stdout: false,
            };
            Ok((vec![source], Feed::Terminal { master, input }))
        }
    }
}

/// The way out.
struct Output<'a> {
    /// `None` once nobody reads: the output is then drained to nowhere.
    stream: Option<WriteHalf<yamux::Stream>>,
    sources: Vec<Source>,
    host: &'a Notify,
    /// Nobody reads standard output any more.
    reader_left: &'a Cell<bool>,
    is_entrypoint: bool,
    pid: i32,
    /// Of a process that outlives its stream: without one, nothing is read of it.
    kept: Option<Kept>,
    /// `Exited` was sent.
    is_over: &'a Cell<bool>,
}

/// What a session has that goes on with another stream.
struct Kept {
    replay: Replay,
    /// The next streams, and how much their host has received.
    streams: UnboundedReceiver<(WriteHalf<yamux::Stream>, u64)>,
}

enum Event {
    Data(usize),
    Exited(ExitStatus),
    Resumed(WriteHalf<yamux::Stream>, u64),
    Done,
}

impl Output<'_> {
    async fn carry(mut self, exited: oneshot::Receiver<ExitStatus>) -> Option<Ended> {
        let mut exited = Some(exited);
        let mut status = ExitStatus::Code(255);
        // A whole frame: output is read to its place behind the header, so no byte is copied here.
        let mut frame = Vec::with_capacity(HEADER_LEN + MAX_DATA);
        let mut last_call = None;
        let mut quiet = pin!(sleep(QUIET));
        loop {
            frame.clear();
            frame.resize(HEADER_LEN, 0);
            let event = poll_fn(|cx| self.poll_event(cx, &mut exited, &mut frame, quiet.as_mut())).await;
            match event {
                Event::Data(index) => {
                    let source = &mut self.sources[index];
                    let length = frame.len() - HEADER_LEN;
                    source.owed = source.owed.saturating_sub(length);
                    (source.frame)(Vec::new())
                        .to_bytes()
                        .into_iter()
                        .zip(&mut frame)
                        .for_each(|(byte, at)| *at = byte);
                    frame[1..HEADER_LEN].copy_from_slice(&(length as u32).to_le_bytes());
                    self.send(&frame).await;
                    quiet.as_mut().reset(Instant::now() + QUIET);
                    let owed = self.sources.iter().any(|source| source.owed > 0);
                    if !owed && last_call.is_some_and(|end| Instant::now() > end) {
                        break;
                    }
                }
                Event::Exited(ended) => {
                    status = ended;
                    last_call = Some(Instant::now() + LINGER);
                    quiet.as_mut().reset(Instant::now() + QUIET);
                    for source in &mut self.sources {
                        source.owed = rustix::io::ioctl_fionread(source.fd.as_fd()).unwrap_or(0) as usize;
                    }
                }
                Event::Resumed(stream, received) => {
                    self.resume(stream, received).await;
                    quiet.as_mut().reset(Instant::now() + QUIET);
                }
                Event::Done => break,
            }
        }
        if self.is_entrypoint && switched_off(status) {
            if let Some(mut stream) = self.stream.take() {
                let _ = stream.close().await;
            }
            return None;
        }
        let Some(kept) = &mut self.kept else {
            if let Some(stream) = self.stream.take() {
                finish(stream, Ok(status)).await;
            }
            return None;
        };
        let ended = Ended {
            pid: self.pid,
            status,
            replay: std::mem::take(&mut kept.replay),
        };
        self.is_over.set(true);
        let exited = Frame::message(&Reply::Exited(status)).to_bytes();
        let (mut is_told, mut next) = (false, None);
        if let Some(mut stream) = self.stream.take() {
            let told = pin!(async { stream.write_all(&exited).await.is_ok() && stream.close().await.is_ok() });
            match select(told, pin!(kept.streams.recv())).await {
                Either::Left((told, _)) => is_told = told,
                // As long as the process ran: whoever comes takes the place of whoever does not read.
                Either::Right((come, _)) => next = come,
            }
        }
        // Hosts that came meanwhile. From the last look on, the end is in the caller's hands, without a pause in which one could come.
        // The end of an execution can be asked for later; the machine ends with its entrypoint, so there somebody is waited for.
        loop {
            let come = match next.take() {
                Some(come) => Some(come),
                None => match kept.streams.try_recv() {
                    Ok(come) => Some(come),
                    Err(_) if self.is_entrypoint && !is_told => kept.streams.recv().await,
                    Err(_) => None,
                },
            };
            let Some((mut stream, received)) = come else { break };
            let bytes = ended.resumed(received);
            let tell = async { stream.write_all(&bytes).await.is_ok() && stream.close().await.is_ok() };
            is_told |= timeout(STALL, tell).await.unwrap_or(false);
        }
        Some(ended)
    }

    /// Goes on with another stream, from what its host has received.
    async fn resume(&mut self, mut stream: WriteHalf<yamux::Stream>, received: u64) {
        let Some(kept) = &self.kept else { return };
        let beginning = kept.replay.resumed(self.pid, received);
        self.stream = stream.write_all(&beginning).await.is_ok().then_some(stream);
    }

    /// The exit first: a child that writes for ever must not hide it.
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        exited: &mut Option<oneshot::Receiver<ExitStatus>>,
        buffer: &mut Vec<u8>,
        quiet: Pin<&mut Sleep>,
    ) -> Poll<Event> {
        if let Some(receiver) = exited
            && let Poll::Ready(status) = Pin::new(receiver).poll(cx)
        {
            *exited = None;
            return Poll::Ready(Event::Exited(status.unwrap_or(ExitStatus::Code(255))));
        }
        if let Some(kept) = &mut self.kept {
            if let Poll::Ready(Some((stream, received))) = kept.streams.poll_recv(cx) {
                return Poll::Ready(Event::Resumed(stream, received));
            }
            // What it writes waits in its pipes; when it is gone, what is in them is kept.
            if self.stream.is_none() && exited.is_some() {
                return Poll::Pending;
            }
        }
        if self.reader_left.get() {
            self.sources.retain(|source| !source.is_stdout);
        }
        let mut index = 0;
        while index < self.sources.len() {
            match self.sources[index].fd.poll_read_into(cx, buffer) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    // The other stream goes first next time.
                    let last = self.sources.len() - 1;
                    self.sources.swap(index, last);
                    return Poll::Ready(Event::Data(last));
                }
                // The end of a pipe; a terminal whose last user is gone reads as EIO.
                Poll::Ready(_) => drop(self.sources.remove(index)),
                Poll::Pending => index += 1,
            }
        }
        if exited.is_none() && (self.sources.is_empty() || quiet.poll(cx).is_ready()) {
            return Poll::Ready(Event::Done);
        }
        Poll::Pending
    }

    async fn send(&mut self, bytes: &[u8]) {
        if let Some(kept) = &mut self.kept {
            kept.replay.push(bytes);
            let Some(stream) = &mut self.stream else { return };
            let written = match select(stream.write_all(bytes), pin!(kept.streams.recv())).await {
                Either::Left((written, _)) => Ok(written.is_ok()),
                // The host that does not read is not the host any more.
                Either::Right((next, _)) => Err(next),
            };
            match written {
                Err(Some((stream, received))) => self.resume(stream, received).await,
                Ok(true) => {}
                Ok(false) | Err(None) => self.stream = None,
            }
            return;
        }
        let Some(stream) = &mut self.stream else { return };
        let host = self.host;
        let write = pin!(stream.write_all(bytes));
        let given_up = pin!(async {
            host.notified().await;
            sleep(STALL).await;
        });
        let sent = match select(write, given_up).await {
            Either::Left((result, _)) => result.is_ok(),
            Either::Right(_) => {
                // Others may ask as well.
                host.notify_one();
                false
            }
        };
        if !sent {
            self.stream = None;
        }
    }
}

/// The way in.
struct Typed<'a> {
    stream: ReadHalf<yamux::Stream>,
    decoder: FrameDecoder,
    /// Read from the stream, not yet taken by the process.
    waiting: VecDeque<u8>,
    /// The host said that this was all.
    ended: bool,
    feed: Feed,
    pid: i32,
    reaper: &'a Reaper,
    /// Nobody reads standard output any more.
    reader_left: &'a Cell<bool>,
    /// The output, which the same task carries, is to look at that.
    wakes_output: bool,
    /// The streams that come after this one.
    next: Option<UnboundedReceiver<NextInput>>,
    /// The one that takes this one's place.
    replacement: Option<NextInput>,
    /// The host was told the end.
    is_over: &'a Cell<bool>,
}

/// The input of a stream that takes over, and what came with its request.
type NextInput = (ReadHalf<yamux::Stream>, FrameDecoder);

impl Typed<'_> {
    /// Runs until the host closes its side, the last one's of a process that outlives its stream.
    async fn carry(mut self, host: &Notify) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            // Frames that came with the request.
            if self.take_frames().is_ok() {
                poll_fn(|cx| self.poll(cx, &mut buffer)).await;
            }
            let next = match (self.replacement.take(), &mut self.next) {
                (None, Some(streams)) if !self.is_over.get() => streams.recv().await,
                (replacement, _) => replacement,
            };
            let Some(next) = next else { break };
            (self.stream, self.decoder) = next;
        }
        match &mut self.feed {
            Feed::Pipe(pipe) => *pipe = None,
            Feed::Terminal { .. } => drop(self.reaper.signal(self.pid, libc::SIGHUP)),
        }
        host.notify_one();
    }

    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<()> {
        loop {
            if std::mem::take(&mut self.wakes_output) {
                cx.waker().wake_by_ref();
            }
            self.poll_feed(cx);
            if let Some(streams) = &mut self.next
                && let Poll::Ready(Some(next)) = streams.poll_recv(cx)
            {
                self.replacement = Some(next);
                return Poll::Ready(());
            }
            if self.waiting.len() >= INPUT_LIMIT {
                return Poll::Pending;
            }
            match Pin::new(&mut self.stream).poll_read(cx, buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 => self.decoder.push(&buffer[..count]),
                Poll::Ready(_) => return Poll::Ready(()),
            }
            if self.take_frames().is_err() {
                return Poll::Ready(());
            }
        }
    }

    fn take_frames(&mut self) -> Result<(), zmachine_agent_protocol::FrameError> {
        while let Some(frame) = self.decoder.next_frame()? {
            match frame {
                Frame::Stdin(bytes) if self.accepts_input() => self.waiting.extend(bytes),
                Frame::StdinEof => self.ended = true,
                Frame::Message(_) => match frame.parse()? {
                    Input::Resize(size) => {
                        if let Feed::Terminal { master, .. } = &self.feed {
                            let _ = resize(master.as_fd(), size);
                        }
                    }
                    Input::Signal(signal) => {
                        if signal == libc::SIGPIPE {
                            self.reader_left.set(true);
                            self.wakes_output = true;
                        }
                        let _ = self.reaper.signal(self.pid, signal);
                    }
                },
                // Input nobody asked for, or output in the wrong direction.
                Frame::Stdin(_) | Frame::Stdout(_) | Frame::Stderr(_) => {}
            }
        }
        Ok(())
    }

    fn accepts_input(&self) -> bool {
        !self.ended && matches!(&self.feed, Feed::Pipe(Some(_)) | Feed::Terminal { input: true, .. })
    }

    /// Writes what fits; at the end of the input closes the pipe, or types the terminal's end-of-file character.
    fn poll_feed(&mut self, cx: &mut Context<'_>) {
        loop {
            let target = match &self.feed {
                Feed::Pipe(Some(pipe)) => pipe,
                Feed::Pipe(None) => return self.waiting.clear(),
                Feed::Terminal { master, .. } => master,
            };
            if self.waiting.is_empty() {
                return self.end_feed();
            }
            match target.poll_write(cx, self.waiting.as_slices().0) {
                Poll::Pending => return,
                Poll::Ready(Ok(count)) => drop(self.waiting.drain(..count)),
                Poll::Ready(Err(_)) => {
                    // The process closed its input: what comes is for nobody.
                    self.waiting.clear();
                    match &mut self.feed {
                        Feed::Pipe(pipe) => *pipe = None,
                        Feed::Terminal { input, .. } => *input = false,
                    }
                    return;
                }
            }
        }
    }

    fn end_feed(&mut self) {
        if !self.ended {
            return;
        }
        match &mut self.feed {
            Feed::Pipe(pipe) => *pipe = None,
            Feed::Terminal { master, input } => {
                if std::mem::take(input)
                    && let Ok(attributes) = tcgetattr(master.as_fd())
                {
                    self.waiting.push_back(attributes.special_codes[SpecialCodeIndex::VEOF]);
                }
            }
        }
    }
}
