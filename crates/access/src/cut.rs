//! Connections that can be ended from outside, also after a request has taken one over for a stream of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream that is broken off when a token is cancelled. Whoever reads it is woken by that.
#[derive(Debug)]
pub struct Cut<S> {
    stream: S,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    token: CancellationToken,
}

impl<S> Cut<S> {
    /// Around a stream.
    pub fn new(stream: S, token: CancellationToken) -> Cut<S> {
        Cut {
            stream,
            ended: Box::pin(token.clone().cancelled_owned()),
            token,
        }
    }

    fn error() -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, "the token is not valid any more")
    }
}

/// Whoever watches over it learns that it is not needed any more.
impl<S> Drop for Cut<S> {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.token.is_cancelled() || self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(Self::error()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(Self::error()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_reads_and_who_writes_sees_the_end() {
        let (near, mut far) = tokio::io::duplex(16);
        let token = CancellationToken::new();
        let mut cut = Cut::new(near, token.clone());
        far.write_all(b"ab").await.unwrap();
        let mut two = [0; 2];
        cut.read_exact(&mut two).await.unwrap();
        tokio::spawn(async move { token.cancel() });
        assert!(cut.read(&mut two).await.is_err());
        assert!(cut.write(b"c").await.is_err());
    }
}
