//! Taking over a guest whose agent was somebody else's: what its channel still holds is thrown away, in both directions.
//!
//! See [`zmachine_agent_protocol::greeting`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use zmachine_agent_protocol::greeting::{Finder, Greeting};
use zmachine_agent_protocol::{Frame, FrameDecoder, Thaw};

/// Between two greetings: the agent answers the first that it finds whole.
const PAUSE: Duration = Duration::from_millis(20);

/// Read at once while a greeting is looked for, in bytes.
const PIECE: usize = 4096;

/// Greets the agent until it answers; the stream is the connection's then.
///
/// # Errors
/// When the guest's end is gone.
pub async fn take_over(mut stream: UnixStream) -> io::Result<UnixStream> {
    let mut nonce = [0; 16];
    zmachine_sys::file::fill_random(&mut nonce)?;
    let mut finder = Finder::default();
    loop {
        stream.write_all(&Greeting::Hello(nonce).to_bytes()).await?;
        let answered = until(&mut stream, &mut finder, Greeting::Hello(nonce));
        if let Ok(answered) = tokio::time::timeout(PAUSE, answered).await {
            answered?;
            break;
        }
    }
    stream.write_all(&Greeting::Begin(nonce).to_bytes()).await?;
    until(&mut stream, &mut finder, Greeting::Begin(nonce)).await?;
    Ok(stream)
}

/// Tells the agent of a copy who it is, and begins a connection with it: what is sent on that need not wait for the answer, which comes
/// as one frame to `answer`. Whatever comes before that is dropped.
///
/// # Errors
/// When the guest's end is gone.
pub async fn begin_with_thaw(mut stream: UnixStream, thaw: &Thaw, answer: oneshot::Sender<Frame>) -> io::Result<Begun> {
    let mut nonce = [0; 16];
    zmachine_sys::file::fill_random(&mut nonce)?;
    let greeting = Greeting::Thaw(nonce);
    let mut said = greeting.to_bytes().to_vec();
    Frame::message(thaw).encode(&mut said);
    stream.write_all(&said).await?;
    let awaited = Awaited::Greeting(greeting, Finder::default());
    Ok(Begun {
        stream,
        awaited: Some((awaited, answer)),
        rest: Vec::new(),
    })
}

/// A connection that begins behind an answer.
#[derive(Debug)]
pub struct Begun {
    stream: UnixStream,
    /// What has not come yet, and where the answer goes.
    awaited: Option<(Awaited, oneshot::Sender<Frame>)>,
    /// What came with it.
    rest: Vec<u8>,
}

#[derive(Debug)]
enum Awaited {
    Greeting(Greeting, Finder),
    Answer(FrameDecoder),
}

impl Awaited {
    /// Takes bytes as they come. The answer, and what came behind it, or what is awaited still.
    fn take(self, bytes: &[u8]) -> io::Result<Result<(Frame, Vec<u8>), Awaited>> {
        let mut frames = match self {
            Awaited::Greeting(wanted, mut finder) => {
                finder.push(bytes);
                loop {
                    match finder.next_greeting() {
                        Some(greeting) if greeting == wanted => break,
                        Some(_) => {}
                        None => return Ok(Err(Awaited::Greeting(wanted, finder))),
                    }
                }
                let mut frames = FrameDecoder::new();
                frames.push(&finder.into_rest());
                frames
            }
            Awaited::Answer(mut frames) => {
                frames.push(bytes);
                frames
            }
        };
        Ok(match frames.next_frame().map_err(io::Error::other)? {
            Some(answer) => Ok((answer, frames.into_rest())),
            None => Err(Awaited::Answer(frames)),
        })
    }
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.awaited.is_some() {
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let Some((awaited, told)) = this.awaited.take() else {
                break;
            };
            match awaited.take(piece.filled())? {
                Ok((answer, rest)) => {
                    // Nobody may wait for it any more.
                    let _ = told.send(answer);
                    this.rest = rest;
                }
                Err(awaited) => this.awaited = Some((awaited, told)),
            }
        }
        if this.rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..count]);
        this.rest.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Drops what comes until this greeting did. Nothing comes behind the last one before the host has spoken.
async fn until(stream: &mut UnixStream, finder: &mut Finder, wanted: Greeting) -> io::Result<()> {
    let mut piece = [0; PIECE];
    loop {
        while let Some(greeting) = finder.next_greeting() {
            if greeting == wanted {
                return Ok(());
            }
        }
        match stream.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => finder.push(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use zmachine_agent_protocol::Reply;

    use super::*;

    #[tokio::test]
    async fn what_was_on_its_way_is_dropped_and_the_connection_begins_behind_the_last_greeting() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest
            .write_all(b"rest of an older connection zmachine take")
            .await
            .unwrap();
        let agent = async {
            let mut finder = Finder::default();
            let mut piece = [0; 64];
            loop {
                while let Some(greeting) = finder.next_greeting() {
                    guest.write_all(&greeting.to_bytes()).await.unwrap();
                    if matches!(greeting, Greeting::Begin(_)) {
                        return;
                    }
                }
                let count = guest.read(&mut piece).await.unwrap();
                finder.push(&piece[..count]);
            }
        };
        let (taken, ()) = tokio::join!(take_over(ours), agent);
        let mut taken = taken.unwrap();
        guest.write_all(b"first").await.unwrap();
        let mut first = [0; 5];
        taken.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_is_an_error() {
        let (ours, guest) = UnixStream::pair().unwrap();
        drop(guest);
        assert!(take_over(ours).await.is_err());
    }

    #[tokio::test]
    async fn a_connection_begins_behind_the_answer_of_a_copy() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"rest of an older connection").await.unwrap();
        let thaw = Thaw {
            seed: vec![7; 32],
            unix_nanos: 1,
            monotonic_began: Some(2),
            identity: None,
        };
        let (told, answer) = oneshot::channel();
        let mut begun = begin_with_thaw(ours, &thaw, told).await.unwrap();
        begun.write_all(b"question").await.unwrap();
        let mut heard = vec![0; 4096];
        let mut length = 0;
        while !heard[..length].ends_with(b"question") {
            length += guest.read(&mut heard[length..]).await.unwrap();
        }
        let mut finder = Finder::default();
        finder.push(&heard[..length]);
        let greeting = finder.next_greeting().unwrap();
        let mut frames = FrameDecoder::new();
        frames.push(&finder.into_rest());
        assert_eq!(frames.next_frame().unwrap().unwrap().parse::<Thaw>().unwrap(), thaw);
        assert_eq!(frames.into_rest(), b"question");
        let reply = Frame::message(&Reply::Thawed { sent: 5 });
        let mut bytes = Greeting::Thaw([0; 16]).to_bytes().to_vec();
        bytes.extend(greeting.to_bytes());
        reply.encode(&mut bytes);
        bytes.extend(b"answer");
        for byte in bytes {
            guest.write_all(&[byte]).await.unwrap();
        }
        let mut said = [0; 6];
        begun.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"answer");
        assert_eq!(answer.await.unwrap(), reply);
        drop(guest);
        assert_eq!(begun.read(&mut said).await.unwrap(), 0);
    }
}
