//! Bodies that are as long as they are: archives to the host and from it, by threads that read and write.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;
use zmachine_spec::{Class, Failure};

use crate::connection::{Ask, Server, document};

/// Pieces that wait for the network, or for the disk.
const WAITING: usize = 4;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

/// What may follow the part of a stream that was wanted, in bytes.
const TRAIL: usize = 1 << 20;

/// The type of an archive.
const ARCHIVE: &str = "application/x-tar";

/// A body that a thread writes.
struct Upward {
    sender: mpsc::Sender<io::Result<Bytes>>,
    is_refused: Arc<AtomicBool>,
}

impl Write for Upward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes))).is_err() {
            self.is_refused.store(true, Ordering::Release);
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer that a thread reads.
struct Downward {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Downward {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::from_error(Class::Fetch, error).context("the stream of the host broke off")
}

fn early() -> Failure {
    Failure::new(Class::Failed, "the copying thread ended early")
}

impl Server {
    /// Asks with the archive that `write` writes, and reads the whole answer.
    ///
    /// # Errors
    /// Those of `write`; as [`Server::ask`].
    pub async fn upload(
        &self,
        ask: &Ask<'_>,
        write: impl FnOnce(&mut dyn Write) -> Result<(), Failure> + Send + 'static,
    ) -> Result<Value, Failure> {
        let (sender, pieces) = mpsc::channel::<io::Result<Bytes>>(WAITING);
        let is_refused = Arc::new(AtomicBool::new(false));
        let upward = Upward {
            sender: sender.clone(),
            is_refused: Arc::clone(&is_refused),
        };
        let writing = tokio::task::spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(PIECE, upward);
            let written = write(&mut out).and_then(|()| Ok(out.flush()?));
            if written.is_err() {
                // What is there already is no whole archive: the request breaks off.
                let _ = sender.blocking_send(Err(io::Error::other("the archive ends early")));
            }
            written
        });
        let pieces = futures::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
        let body = BodyExt::boxed_unsync(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))));
        let answer = match self.sending(ask, body, Some(ARCHIVE)).await {
            Ok(answer) => document(answer).await,
            Err(failure) => Err(failure),
        };
        let written = writing.await.unwrap_or_else(|_| Err(early()));
        match (answer, written) {
            // The host's own words say why it takes no more.
            (Err(failure), Err(_)) if is_refused.load(Ordering::Acquire) => Err(failure),
            (Ok(answer), Err(_)) if is_refused.load(Ordering::Acquire) => Ok(answer),
            (_, Err(failure)) => Err(failure),
            (answer, Ok(())) => answer,
        }
    }

    /// Asks, and has `read` read the answer.
    ///
    /// # Errors
    /// Those of `read`; as [`Server::open`]; [`Class::Fetch`] for an answer that breaks off.
    pub async fn download<T: Send + 'static>(
        &self,
        ask: &Ask<'_>,
        read: impl FnOnce(&mut dyn Read) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let mut body = self.open(ask).await?.into_body();
        let (sender, pieces) = mpsc::channel(WAITING);
        let reading = tokio::task::spawn_blocking(move || {
            let mut downward = Downward {
                pieces,
                rest: Bytes::new(),
            };
            read(&mut downward)
        });
        let mut unwanted = 0;
        let mut broke = None;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    let length = piece.len();
                    if sender.send(Ok(piece)).await.is_err() {
                        // It has what it wants. What the host says of its end comes soon, or is not waited for.
                        unwanted += length;
                        if unwanted > TRAIL {
                            break;
                        }
                    }
                }
                Err(error) => {
                    let _ = sender
                        .send(Err(io::Error::other("the stream of the host broke off")))
                        .await;
                    broke = Some(broken(&error));
                    break;
                }
            }
        }
        drop(sender);
        let done = reading.await.unwrap_or_else(|_| Err(early()));
        match broke {
            Some(failure) => Err(failure),
            None => done,
        }
    }
}
