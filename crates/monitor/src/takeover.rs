//! Taking over a guest whose agent was somebody else's: what its channel still holds is thrown away, in both directions.
//!
//! See [`zmachine_agent_protocol::greeting`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use zmachine_agent_protocol::greeting::{Finder, Greeting};

/// Between two greetings: the agent answers the first that it finds whole.
const PAUSE: Duration = Duration::from_millis(20);

/// Read at once while a greeting is looked for, in bytes.
const PIECE: usize = 4096;

/// Greets the agent until it answers; the stream is the connection's then.
///
/// # Errors
/// When the guest's end is gone.
pub(super) async fn take_over(mut stream: UnixStream) -> io::Result<UnixStream> {
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

/// Begins a connection with an agent that is known to wait for it, as that of a frozen guest does: what is sent next need not wait for the
/// answer, and what comes before it is dropped.
///
/// # Errors
/// When the guest's end is gone.
pub(super) async fn begin_at_once(mut stream: UnixStream) -> io::Result<Begun> {
    let mut nonce = [0; 16];
    zmachine_sys::file::fill_random(&mut nonce)?;
    let begin = Greeting::Begin(nonce);
    stream.write_all(&begin.to_bytes()).await?;
    Ok(Begun {
        stream,
        awaited: Some((begin, Finder::default())),
        rest: Vec::new(),
    })
}

/// A connection that begins behind the answer to a greeting.
#[derive(Debug)]
pub(super) struct Begun {
    stream: UnixStream,
    /// The answer that has not come yet.
    awaited: Option<(Greeting, Finder)>,
    /// What came with it.
    rest: Vec<u8>,
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Some((wanted, finder)) = &mut this.awaited {
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            finder.push(piece.filled());
            while let Some(greeting) = finder.next_greeting() {
                if greeting == *wanted {
                    this.rest = std::mem::take(finder).into_rest();
                    this.awaited = None;
                    break;
                }
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
    async fn a_connection_that_waits_for_no_answer_begins_behind_it() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"rest of an older connection").await.unwrap();
        let mut begun = begin_at_once(ours).await.unwrap();
        begun.write_all(b"question").await.unwrap();
        let mut heard = [0; zmachine_agent_protocol::greeting::LEN + 8];
        guest.read_exact(&mut heard).await.unwrap();
        assert!(heard.ends_with(b"question"));
        let mut answer = heard[..heard.len() - 8].to_vec();
        answer.extend(b"answer");
        for byte in answer {
            guest.write_all(&[byte]).await.unwrap();
        }
        let mut said = [0; 6];
        begun.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"answer");
        drop(guest);
        assert_eq!(begun.read(&mut said).await.unwrap(), 0);
    }
}
