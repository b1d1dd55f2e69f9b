//! The session with the guest agent: yamux over the one byte stream to the guest.
//!
//! A task drives the connection; everybody else opens streams through a [`Session`]. When the connection ends, opening
//! fails and open streams end. It ends with the last [`Session`], whatever streams there are.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use zmachine_agent_protocol::{AgentError, Frame, FrameDecoder, FrameError, Reply, Request};
use zmachine_spec::{Class, Failure};

type Opened = oneshot::Sender<yamux::Stream>;

/// What a session's stream is made of.
pub type ByteStream = Compat<yamux::Stream>;

/// A handle to the connection; clones share it.
#[derive(Debug, Clone)]
pub struct Session {
    open: mpsc::Sender<Opened>,
}

/// Why a request to the agent has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest's end of the channel is gone.
    #[error("the guest agent does not answer any more")]
    Closed,
    /// The stream broke.
    #[error("the channel to the guest agent broke")]
    Io(#[from] io::Error),
    /// What came is no frame or message of ours.
    #[error("the guest agent sent what is no message")]
    Frame(#[from] FrameError),
    /// The agent refused.
    #[error("{}", .0.message)]
    Agent(AgentError),
    /// The agent answered something else than was asked.
    #[error("the guest agent gave an answer that does not fit")]
    Unexpected,
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        match error {
            SessionError::Agent(error) => error.into(),
            other => Failure::from_error(Class::Failed, &other),
        }
    }
}

impl Session {
    /// Starts the session on the stream to the guest, once that is there. Data waits until then, and until the guest reads.
    pub fn start<S>(stream: impl Future<Output = io::Result<S>> + Send + 'static) -> Session
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut config = yamux::Config::default();
        config.set_split_send_size(zmachine_agent_protocol::MAX_DATA);
        let (open, requests) = mpsc::channel(16);
        tokio::spawn(async move {
            if let Ok(stream) = stream.await {
                let connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Client);
                drive(connection, requests).await;
            }
        });
        Session { open }
    }

    /// Opens a stream and sends its first frame.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn open(&self, request: &Request) -> Result<AgentStream, SessionError> {
        let (opened, stream) = oneshot::channel();
        self.open.send(opened).await.map_err(|_| SessionError::Closed)?;
        let stream = stream.await.map_err(|_| SessionError::Closed)?;
        let mut stream = AgentStream::new(stream.compat());
        stream.writer.send(&Frame::message(request)).await?;
        Ok(stream)
    }

    /// Sends a request and reads its one reply.
    ///
    /// # Errors
    /// When the connection is gone or the agent refuses.
    pub async fn ask(&self, request: &Request) -> Result<Reply, SessionError> {
        let mut stream = self.open(request).await?;
        stream.reader.reply().await
    }
}

async fn drive<S>(mut connection: yamux::Connection<Compat<S>>, mut requests: mpsc::Receiver<Opened>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting: VecDeque<Opened> = VecDeque::new();
    poll_fn(|cx| {
        loop {
            loop {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => waiting.push_back(request),
                    // Nobody has the session any more. The channel must end as well: QEMU takes one host at a time, so the
                    // session with an agent that was started again could not begin.
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            if !waiting.is_empty() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(request) = waiting.pop_front() {
                            // A requester that gave up meanwhile drops the stream, which closes it.
                            let _ = request.send(stream);
                        }
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(cx) {
                // The agent opens no streams; one that comes all the same is closed by dropping it.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// A stream to the agent, by frames.
#[derive(Debug)]
pub struct AgentStream {
    /// What comes from the agent.
    pub reader: FrameReader<ReadHalf<ByteStream>>,
    /// What goes to it.
    pub writer: FrameWriter<WriteHalf<ByteStream>>,
}

impl AgentStream {
    fn new(stream: ByteStream) -> AgentStream {
        let (read, write) = tokio::io::split(stream);
        AgentStream {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        }
    }
}

/// What comes from a client.
pub type Reader = FrameReader<tokio::net::unix::OwnedReadHalf>;
/// What goes to it.
pub type Writer = FrameWriter<tokio::net::unix::OwnedWriteHalf>;

/// Reads frames from a byte stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl<R: tokio::io::AsyncRead + Unpin> FrameReader<R> {
    /// A reader at the start of a stream.
    pub fn new(inner: R) -> FrameReader<R> {
        FrameReader {
            inner,
            decoder: FrameDecoder::new(),
            buffer: vec![0; 16 * 1024],
        }
    }

    /// The stream, when nothing has come behind the frames that were read.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next frame; `None` at the end of the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the stream breaks, ends inside a frame, or carries no frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, SessionError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let n = self.inner.read(&mut self.buffer).await?;
            if n == 0 {
                return match self.decoder.is_mid_frame() {
                    true => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    false => Ok(None),
                };
            }
            self.decoder.push(&self.buffer[..n]);
        }
    }

    /// The next frame as a reply of the agent; its refusal is an error.
    ///
    /// # Errors
    /// As [`FrameReader::next`], or what the agent says.
    pub async fn reply(&mut self) -> Result<Reply, SessionError> {
        match self.next().await?.ok_or(SessionError::Closed)?.parse()? {
            Reply::Error(error) => Err(SessionError::Agent(error)),
            reply => Ok(reply),
        }
    }
}

/// Writes frames to a byte stream.
#[derive(Debug)]
pub struct FrameWriter<W>(W);

impl<W: tokio::io::AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer at the start of a stream.
    pub fn new(inner: W) -> FrameWriter<W> {
        FrameWriter(inner)
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// When the stream is gone.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), SessionError> {
        self.0.write_all(&frame.to_bytes()).await?;
        Ok(self.0.flush().await?)
    }

    /// Ends the stream in this direction.
    pub async fn close(&mut self) {
        let _ = self.0.shutdown().await;
    }
}
