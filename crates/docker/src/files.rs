//! Files between clients and machines: what both APIs do with the streams of a guest.

use std::io::{BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use zmachine_agent_protocol::{Frame, MAX_DATA, Transfer};
use zmachine_engine::Engine;
use zmachine_engine::transfer::{FromGuest, ToGuest};
use zmachine_spec::{Class, Failure};
use zmachine_transfer::TransferError;

use crate::app::App;
use crate::http::{Body, ChunkWriter};

/// Bytes that are collected before they are sent to a client.
const PIECE: usize = 128 << 10;

/// Has `write` send files to a machine that runs, and waits until the guest has them.
///
/// # Errors
/// What the guest says; [`Class::Usage`] for what the client sends and is no archive, or leads out of its target.
pub fn send(
    engine: &Engine,
    machine: &str,
    transfer: Transfer,
    write: impl FnOnce(BufWriter<ToGuest>) -> Result<(), TransferError>,
) -> Result<(), Failure> {
    let (input, output) = engine.transfer(machine, transfer)?;
    let ended = Arc::new(AtomicBool::new(false));
    let mut eof = input.try_clone()?;
    let (sent, reported) = std::thread::scope(|scope| {
        let reporting = scope.spawn(|| {
            let reported = FromGuest::new(output).end(|_| ());
            ended.store(true, Ordering::Release);
            reported
        });
        let writer = BufWriter::with_capacity(MAX_DATA, ToGuest::new(input, Arc::clone(&ended)));
        let sent = write(writer);
        match &sent {
            Ok(()) => drop(eof.send(&Frame::StdinEof)),
            Err(TransferError::Stream(_)) => {}
            Err(_) => eof.close(),
        }
        let early = || Err(Failure::new(Class::Failed, "the copying thread ended early"));
        (sent, reporting.join().unwrap_or_else(|_| early()))
    });
    match (sent, reported) {
        // A guest that ended well had the whole archive, and did not wait for what comes after its end.
        (Ok(()) | Err(TransferError::Stream(_)), reported) => reported,
        (Err(error), _) => Err(Failure::from_error(Class::Usage, &error)),
    }
}

/// A stream to a client that a thread writes: `work` calls its second argument with what the head of the answer needs as soon as nothing
/// can be refused any more, and then writes. When it fails after that, the stream breaks off.
///
/// # Errors
/// Those of `work` before the stream begins.
pub async fn written<T, E>(
    app: &Arc<App>,
    work: impl FnOnce(&App, &mut dyn FnMut(T), &mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Result<(T, Body), E>
where
    T: Send + 'static,
    E: From<Failure> + Send + 'static,
{
    let (sender, body) = Body::stream();
    let (told, hears) = oneshot::channel();
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || {
        let mut told = Some(told);
        let mut out = BufWriter::with_capacity(PIECE, ChunkWriter(sender));
        let mut begin = |what: T| {
            if let Some(told) = told.take() {
                let _ = told.send(Ok(what));
            }
        };
        let done = work(&app, &mut begin, &mut out);
        let flushed = out.flush();
        match (done, told.take()) {
            (Err(error), Some(told)) => drop(told.send(Err(error))),
            (Err(_), None) => out.get_ref().abort(),
            (Ok(()), _) if flushed.is_err() => out.get_ref().abort(),
            (Ok(()), _) => {}
        }
    });
    let early = || E::from(Failure::new(Class::Failed, "the request ended early"));
    Ok((hears.await.unwrap_or_else(|_| Err(early()))?, body))
}

/// A stream of a guest whose first bytes have come: what is wrong with it has been told before.
#[derive(Debug)]
pub struct Begun {
    first: std::io::Cursor<Vec<u8>>,
    rest: FromGuest,
}

impl Begun {
    /// Waits for the first bytes.
    ///
    /// # Errors
    /// What the guest says instead.
    pub fn wait(mut stream: FromGuest) -> Result<Begun, Failure> {
        let mut first = vec![0; 512];
        let count = (&mut stream).read(&mut first)?;
        first.truncate(count);
        match count {
            0 => {
                stream.end(|_| ())?;
                Err(Failure::new(Class::Failed, "the guest sent nothing"))
            }
            _ => Ok(Begun {
                first: std::io::Cursor::new(first),
                rest: stream,
            }),
        }
    }

    /// How it ended.
    ///
    /// # Errors
    /// What the guest says.
    pub fn end(self) -> Result<(), Failure> {
        self.rest.end(|_| ())
    }
}

impl Read for &mut Begun {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.first.read(buffer)? {
            0 => (&mut self.rest).read(buffer),
            count => Ok(count),
        }
    }
}
