//! Bodies and answers of HTTP, and what goes wrong with a request.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use zmachine_spec::{Class, Failure};

/// The largest body in JSON, in bytes. The largest known are those of `create`, with a few kilobytes.
pub const JSON_LIMIT: usize = 4 << 20;

/// How long a client may take to send a body in JSON.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What is read of a body that nobody wants, in bytes: as much as Go's servers read.
const UNREAD_LIMIT: usize = 256 << 10;

/// How long a client may send nothing of a body that is read as it comes.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest body that is read as it comes, in bytes: an image, or files for a container.
pub const UPLOAD_LIMIT: u64 = 256 << 30;

/// Chunks in flight to one client.
pub const STREAM_CHUNKS: usize = 4;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// What somebody writes as time goes by; at its end when the sender is dropped. An empty chunk breaks the connection off, so
    /// that the client does not take what it has for the whole.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body {
    /// No body.
    pub fn empty() -> Body {
        Body::Whole(None)
    }

    /// A stream, and where to write it. The sender fails when the client is gone, and waits while it does not read.
    pub fn stream() -> (mpsc::Sender<Bytes>, Body) {
        let (sender, receiver) = mpsc::channel(STREAM_CHUNKS);
        (sender, Body::Stream(receiver))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take()),
            Body::Stream(receiver) => receiver.poll_recv(context),
        };
        frame.map(|bytes| {
            bytes.map(|bytes| match bytes.is_empty() {
                true => Err(io::Error::other("what was to be sent cannot be had")),
                false => Ok(Frame::data(bytes)),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer.
pub type Answer = Response<Body>;

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    typed(status, "application/json", Body::Whole(Some(bytes.into())))
}

/// An answer with a body of a type.
pub fn typed(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// Why, and what to do.
    pub message: String,
}

impl Refusal {
    /// With a status and a reason.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal {
            status,
            message: message.into(),
        }
    }

    /// The request makes no sense.
    pub fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, message)
    }

    /// The state of the thing does not allow it.
    pub fn conflict(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, message)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        let status = match failure.class {
            Class::Usage | Class::CommandNotFound | Class::CommandNotExecutable | Class::Unsupported => {
                StatusCode::BAD_REQUEST
            }
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Conflict => StatusCode::CONFLICT,
            Class::Failed | Class::Fetch => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, text_of(&failure))
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::from(Failure::from(error))
    }
}

impl From<zmachine_image::ResolveError> for Refusal {
    fn from(error: zmachine_image::ResolveError) -> Refusal {
        Refusal::from(Failure::from(error))
    }
}

/// A failure in one line: what, why, and what to do.
pub fn text_of(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("{failure} ({hint})"),
        None => failure.to_string(),
    }
}

/// Reads a body of at most [`JSON_LIMIT`] bytes.
///
/// # Errors
/// 413 for a larger one, 408 for one that does not end, 400 for one that breaks off.
pub async fn whole(body: Incoming) -> Result<Bytes, Refusal> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, JSON_LIMIT).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {JSON_LIMIT} bytes"),
        )),
        Ok(Err(error)) => Err(Refusal::bad(format!("the body cannot be read: {error}"))),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come in time",
        )),
    }
}

/// Writes a stream from a thread that may wait.
#[derive(Debug)]
pub struct ChunkWriter(pub mpsc::Sender<Bytes>);

impl ChunkWriter {
    /// Breaks the stream off.
    pub fn abort(&self) {
        let _ = self.0.blocking_send(Bytes::new());
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a request's body in a thread that may wait.
#[derive(Debug)]
pub struct ChunkReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// A reader of a body, which is read for as long as the reader is there, comes on, and is not larger than [`UPLOAD_LIMIT`].
pub fn reader(body: Incoming) -> ChunkReader {
    reader_within(body, UPLOAD_LIMIT, CHUNK_TIMEOUT)
}

/// Reads a little of what nobody wants any more: a client whose request was refused while it writes would be cut off, and say that in place of
/// the reason.
async fn discard<B>(body: &mut B, patience: Duration)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let discarded = async {
        let mut left = UNREAD_LIMIT;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(patience, discarded).await;
}

fn reader_within<B>(mut body: B, limit: u64, patience: Duration) -> ChunkReader
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (sender, chunks) = mpsc::channel(STREAM_CHUNKS);
    tokio::spawn(async move {
        let mut left = limit;
        loop {
            let chunk = match tokio::time::timeout(patience, body.frame()).await {
                Ok(None) => return,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => match left.checked_sub(data.len() as u64) {
                        Some(rest) => {
                            left = rest;
                            Ok(data)
                        }
                        None => Err(io::Error::new(
                            io::ErrorKind::FileTooLarge,
                            format!("the body is larger than {limit} bytes"),
                        )),
                    },
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => Err(io::Error::other(error)),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the body stopped coming for {} s", patience.as_secs()),
                )),
            };
            let is_over = chunk.is_err();
            let is_taken = sender.send(chunk).await.is_ok();
            if is_over {
                return;
            }
            if !is_taken {
                return discard(&mut body, patience).await;
            }
        }
    });
    ChunkReader {
        chunks,
        rest: Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_class_cause_and_hint() {
        let failure = Failure::new(Class::Conflict, "it runs")
            .context("cannot remove it")
            .hint("stop it");
        let refusal = Refusal::from(failure);
        assert_eq!(refusal.status, StatusCode::CONFLICT);
        assert_eq!(refusal.message, "cannot remove it: it runs (stop it)");
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_stops_coming_is_an_error() {
        let kind = |limit, keeps_open: bool| async move {
            let (sender, body) = Body::stream();
            sender.send(Bytes::from_static(b"abc")).await.unwrap();
            let kept = keeps_open.then_some(sender);
            let mut reader = reader_within(body, limit, Duration::from_millis(50));
            let read = tokio::task::spawn_blocking(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all).map_err(|error| error.kind())
            });
            let read = read.await.unwrap();
            drop(kept);
            read
        };
        assert_eq!(kind(3, false).await, Ok(b"abc".to_vec()));
        assert_eq!(kind(2, false).await, Err(io::ErrorKind::FileTooLarge));
        assert_eq!(kind(3, true).await, Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn a_client_that_was_refused_may_write_on_for_a_little() {
        let (sender, body) = Body::stream();
        drop(reader_within(body, u64::MAX, Duration::from_secs(60)));
        let chunk = Bytes::from(vec![0; 64 << 10]);
        for _ in 0..UNREAD_LIMIT / chunk.len() {
            sender.send(chunk.clone()).await.unwrap();
        }
        // But not for ever.
        let refused = async { while sender.send(chunk.clone()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
    }

    #[test]
    fn a_reader_gets_what_comes_and_its_error() {
        let (sender, chunks) = mpsc::channel(4);
        sender.try_send(Ok(Bytes::from_static(b"abc"))).unwrap();
        sender.try_send(Err(io::Error::other("gone"))).unwrap();
        let mut reader = ChunkReader {
            chunks,
            rest: Bytes::new(),
        };
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"ab");
        assert_eq!(reader.read(&mut two).unwrap(), 1);
        assert_eq!(reader.read(&mut two).unwrap_err().to_string(), "gone");
    }
}
