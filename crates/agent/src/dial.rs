//! Connections of the host to programs that listen on the guest's loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::future::{Either, select};
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use std::pin::pin;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
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

/// Carries a connection over its stream until either side has ended it.
pub(crate) async fn carry(mut stream: yamux::Stream, decoder: FrameDecoder, connection: TcpStream) {
    if stream
        .write_all(&Frame::message(&Reply::Done).to_bytes())
        .await
        .is_err()
    {
        return;
    }
    let (from_host, to_host) = stream.split();
    let (from_program, to_program) = connection.into_split();
    let out = pin!(outward(from_program, to_host));
    let inward = pin!(inward(from_host, decoder, to_program));
    // The host may end its direction and wait for the answer; when the program ends its own, all is over.
    if let Either::Right((Ok(()), out)) = select(out, inward).await {
        let _ = out.await;
    }
}

async fn outward(mut from: OwnedReadHalf, mut to: WriteHalf<yamux::Stream>) -> io::Result<()> {
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
    mut to: OwnedWriteHalf,
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
