//! Processes over an upgraded connection: between docker's frames and those of a machine's monitor.
//!
//! # Frames
//! Without a terminal, output comes in frames: the stream (1 standard output, 2 standard error), three zero bytes, the length
//! (4 bytes, big endian), the bytes. With a terminal it comes as it is. Input always comes as it is.

use std::os::unix::net::UnixStream as StdStream;

use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use zmachine_agent_protocol::{ExitStatus, Frame, FrameDecoder, Reply};
use zmachine_engine::attach::ProcessOutput;
use zmachine_spec::control;

use crate::http::{Answer, Body, Refusal};

/// Bytes that are read at once, of a client or of a monitor.
const CHUNK: usize = 32 << 10;

/// The type of output in frames.
pub const FRAMED: &str = "application/vnd.docker.multiplexed-stream";

/// The type of output as it is.
pub const RAW: &str = "application/vnd.docker.raw-stream";

/// A stream of a process from its monitor, which blocks nobody.
#[derive(Debug)]
pub struct ToMonitor {
    stream: StdStream,
    decoder: FrameDecoder,
}

impl ToMonitor {
    /// Of what an engine gives.
    pub fn new(output: ProcessOutput) -> ToMonitor {
        let (stream, decoder) = output.into_parts();
        ToMonitor { stream, decoder }
    }

    /// The two sides of it.
    ///
    /// # Errors
    /// When the runtime cannot have it.
    pub fn split(self) -> std::io::Result<(MonitorReader, OwnedWriteHalf)> {
        self.stream.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(self.stream)?.into_split();
        let reader = MonitorReader {
            read,
            decoder: self.decoder,
            buffer: vec![0; CHUNK],
        };
        Ok((reader, write))
    }
}

/// What comes from a process.
#[derive(Debug)]
pub struct MonitorReader {
    read: OwnedReadHalf,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl MonitorReader {
    /// The next frame; `None` when the stream is at its end, or broken.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(_) => return None,
            }
            match self.read.read(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&self.buffer[..count]),
            }
        }
    }
}

/// How a process ended, when a frame says so; `Err` with the reason when it never ran.
pub fn end_of(frame: &Frame) -> Option<Result<ExitStatus, String>> {
    if !matches!(frame, Frame::Message(_)) {
        return None;
    }
    match frame.parse::<Reply>() {
        Ok(Reply::Exited(status)) => return Some(Ok(status)),
        Ok(Reply::Error(error)) => return Some(Err(error.message)),
        _ => {}
    }
    // What the monitor itself says.
    match frame.parse::<control::Reply>() {
        Ok(control::Reply::Failed(failure)) => Some(Err(failure.to_string())),
        _ => None,
    }
}

/// The header of a frame of docker's.
pub fn header(stream: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// What a client sees of a process.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// It has a terminal.
    pub terminal: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
}

impl Shown {
    /// The bytes of a frame for the client; `None` for one that is nothing for it.
    pub fn bytes(self, frame: Frame) -> Option<Vec<u8>> {
        let (stream, bytes) = match frame {
            Frame::Stdout(bytes) if self.stdout || self.terminal => (1, bytes),
            Frame::Stderr(bytes) if self.stderr => (2, bytes),
            _ => return None,
        };
        if self.terminal {
            return Some(bytes);
        }
        let mut framed = header(stream, bytes.len()).to_vec();
        framed.extend_from_slice(&bytes);
        Some(framed)
    }

    /// The type of the stream for a client of a version of the API: earlier ones knew no type for frames.
    pub fn content_type(self, version: (u32, u32)) -> &'static str {
        match self.terminal || version < (1, 42) {
            true => RAW,
            false => FRAMED,
        }
    }
}

/// What becomes of a client's input.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// It goes to the process.
    pub wanted: bool,
    /// With its end, that of the process ends.
    pub ends: bool,
}

/// The answer after which a connection is the process's.
pub fn upgraded(kind: &'static str) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Passes input and output of a process on until it has ended, and tells how. When the client goes before, `drains` decides
/// whether the rest of the output is read for nobody: a process that nobody reads would wait.
pub async fn pump(
    client: TokioIo<Upgraded>,
    monitor: ToMonitor,
    shown: Shown,
    input: Input,
    control: mpsc::Receiver<Frame>,
    drains: bool,
) -> Option<Result<ExitStatus, String>> {
    let (mut reader, mut writer) = monitor.split().ok()?;
    let (from_client, mut to_client) = tokio::io::split(client);
    let feeding = feed(from_client, &mut writer, input, control);
    let output = async {
        let mut is_gone = false;
        loop {
            let frame = reader.next().await?;
            if let Some(end) = end_of(&frame) {
                return Some((end, to_client));
            }
            if let Some(bytes) = shown.bytes(frame)
                && !is_gone
                && to_client.write_all(&bytes).await.is_err()
            {
                if !drains {
                    return None;
                }
                is_gone = true;
            }
        }
    };
    let (end, mut to_client) = tokio::select! {
        ended = output => ended?,
        () = async { feeding.await; std::future::pending::<()>().await } => return None,
    };
    if let Err(reason) = &end {
        let line = format!("{reason}\r\n").into_bytes();
        if let Some(bytes) = shown.bytes(Frame::Stdout(line)) {
            let _ = to_client.write_all(&bytes).await;
        }
    }
    // The caller notes the end before the client sees it.
    tokio::spawn(async move {
        tokio::task::yield_now().await;
        let _ = to_client.shutdown().await;
    });
    Some(end)
}

/// Sends what a client types, and what others say to the process, until the client is at its end.
async fn feed(
    mut client: impl AsyncRead + Unpin,
    writer: &mut OwnedWriteHalf,
    input: Input,
    mut control: mpsc::Receiver<Frame>,
) {
    let mut buffer = vec![0; CHUNK];
    let (mut is_open, mut is_said) = (true, true);
    loop {
        let frame = tokio::select! {
            read = client.read(&mut buffer), if is_open => match read {
                Ok(count) if count > 0 => {
                    if !input.wanted {
                        continue;
                    }
                    Frame::Stdin(buffer[..count].to_vec())
                }
                _ => {
                    is_open = false;
                    if !(input.wanted && input.ends) {
                        continue;
                    }
                    Frame::StdinEof
                }
            },
            said = control.recv(), if is_said => match said {
                Some(frame) => frame,
                None => {
                    is_said = false;
                    continue;
                }
            },
            else => return,
        };
        if send(writer, &frame).await.is_err() {
            return;
        }
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> std::io::Result<()> {
    writer.write_all(&frame.to_bytes()).await
}

/// Input of a machine's monitor that is told once.
///
/// # Errors
/// When it is gone.
pub async fn tell(monitor: ToMonitor, frame: &Frame) -> Result<(), Refusal> {
    let (_reader, mut writer) = monitor.split()?;
    send(&mut writer, frame).await?;
    writer.shutdown().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Shown = Shown {
        terminal: false,
        stdout: true,
        stderr: true,
    };

    #[test]
    fn output_is_framed_unless_it_is_a_terminals() {
        assert_eq!(
            BOTH.bytes(Frame::Stderr(b"no".to_vec())).unwrap(),
            b"\x02\0\0\0\0\0\0\x02no"
        );
        let terminal = Shown { terminal: true, ..BOTH };
        assert_eq!(terminal.bytes(Frame::Stdout(b"ab".to_vec())).unwrap(), b"ab");
        let quiet = Shown { stderr: false, ..BOTH };
        assert_eq!(quiet.bytes(Frame::Stderr(b"no".to_vec())), None);
    }

    #[test]
    fn clients_of_early_versions_know_one_type_of_stream() {
        assert_eq!(BOTH.content_type((1, 41)), RAW);
        assert_eq!(BOTH.content_type((1, 42)), FRAMED);
    }
}
