//! Connections between the host and programs in the guest: to those that listen on the guest's loopback ([`connect`]), and of those that connect
//! to a socket which leads to the host ([`accept`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::future::{Either, select};
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use zmachine_agent_protocol::{Frame, FrameDecoder, Reply};

/// How long a program may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// What is read at once, in bytes.
const PIECE: usize = 32 * 1024;

/// Connects to `port` of the loopback, in IPv4 or else in IPv6.
///
/// # Errors
/// Why nobody accepts.
pub(crate) async fn connect(port: u16) -> Result<TcpStream, String> {
    let mut reason = String::new();
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match tokio::time::timeout(CONNECT, TcpStream::connect((loopback, port))).await {
            Ok(Ok(connection)) => return Ok(connection),
            // What IPv4 says is what people know.
            Ok(Err(error)) if reason.is_empty() => reason = error.to_string(),
            Err(_) if reason.is_empty() => reason = "nobody accepts".to_owned(),
            _ => {}
        }
    }
    Err(format!("port {port} of the guest's loopback: {reason}"))
}

/// Waits for a program that connects to a socket; `None` when the host does not wait any more.
///
/// # Errors
/// Why there can be none.
pub(crate) async fn accept(listener: &UnixListener, stream: &mut yamux::Stream) -> io::Result<Option<UnixStream>> {
    // The host says nothing before there is somebody: whatever can be read is its end.
    let mut one = [0; 1];
    let accepted = pin!(listener.accept());
    match select(accepted, stream.read(&mut one)).await {
        Either::Left((accepted, _)) => Ok(Some(accepted?.0)),
        Either::Right(_) => Ok(None),
    }
}

/// What the end of a program's direction means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgramEnds {
    /// The end of the connection: it has answered.
    All,
    /// That it has asked, and waits for the answer.
    ItsOwn,
}

/// Carries a connection over its stream until it has ended.
pub(crate) async fn carry<C>(mut stream: yamux::Stream, decoder: FrameDecoder, connection: C, ends: ProgramEnds)
where
    C: AsyncRead + AsyncWrite,
{
    if stream
        .write_all(&Frame::message(&Reply::Done).to_bytes())
        .await
        .is_err()
    {
        return;
    }
    let (from_host, to_host) = stream.split();
    let (from_program, to_program) = tokio::io::split(connection);
    let out = pin!(outward(from_program, to_host));
    let inward = pin!(inward(from_host, decoder, to_program));
    // The host may end its direction and wait for the answer; when the program ends its own, all is over.
    match select(out, inward).await {
        Either::Right((Ok(()), out)) => drop(out.await),
        Either::Left((Ok(()), inward)) if ends == ProgramEnds::ItsOwn => drop(inward.await),
        _ => {}
    }
}

async fn outward(mut from: impl AsyncRead + Unpin, mut to: WriteHalf<yamux::Stream>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.close().await,
            length => {
                to.write_all(&Frame::Stdout(buffer[..length].to_vec()).to_bytes())
                    .await?;
            }
        }
    }
}

/// Ends with an error when the host is gone.
async fn inward(
    mut from: ReadHalf<yamux::Stream>,
    mut decoder: FrameDecoder,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            match frame {
                Frame::Stdin(bytes) => to.write_all(&bytes).await?,
                Frame::StdinEof => {
                    to.shutdown().await?;
                    return Ok(());
                }
                _ => {}
            }
        }
        match from.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::ConnectionReset.into()),
            length => decoder.push(&buffer[..length]),
        }
    }
}
