//! Sockets in a container that lead to sockets of this host: each connection there becomes one here.
//!
//! The host opens all streams to the agent, so it always has one that waits for the next connection. A guest that connects again and again is
//! held by the number of connections at a time, those that are too many wait in the guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use zmachine_agent_protocol::{Frame, Reply, Request};

use zmachine_agent_client::session::{AgentStream, Session};

/// Connections of a socket at a time.
const CONNECTIONS: usize = 64;

/// What is read at once, in bytes.
const PIECE: usize = 32 << 10;

/// Takes the connections to all sockets until the guest is gone.
pub(super) fn forward(session: &Session, sockets: &[(String, PathBuf)]) {
    for (path, host) in sockets {
        tokio::spawn(accept_all(session.clone(), path.clone(), host.clone()));
    }
}

async fn accept_all(session: Session, path: String, host: PathBuf) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok(mut stream) = session.open(&Request::Accept { path: path.clone() }).await else {
            return;
        };
        // Whatever else it answers, it has no more connections for us.
        let Ok(Reply::Done) = stream.reader.reply().await else {
            return;
        };
        let host = host.clone();
        tokio::spawn(async move {
            carry(stream, &host).await;
            drop(place);
        });
    }
}

/// Carries one connection until both directions have ended, or one is broken.
async fn carry(stream: AgentStream, host: &Path) {
    let AgentStream { mut reader, mut writer } = stream;
    // A program of the host that does not listen now may do so for the next one: the guest's sees the end of its connection.
    let Ok(connection) = UnixStream::connect(host).await else {
        return writer.close().await;
    };
    let (mut from_host, mut to_host) = connection.into_split();
    let inward = async {
        let mut buffer = vec![0; PIECE];
        loop {
            match from_host.read(&mut buffer).await? {
                0 => break,
                length => send(&mut writer, Frame::Stdin(buffer[..length].to_vec())).await?,
            }
        }
        send(&mut writer, Frame::StdinEof).await
    };
    let outward = async {
        loop {
            match reader.next().await {
                Ok(Some(Frame::Stdout(bytes))) => to_host.write_all(&bytes).await?,
                Ok(Some(_)) => {}
                Ok(None) => return to_host.shutdown().await,
                Err(error) => return Err(std::io::Error::other(error)),
            }
        }
    };
    let _ = tokio::try_join!(inward, outward);
    writer.close().await;
}

async fn send<W>(writer: &mut zmachine_agent_client::session::FrameWriter<W>, frame: Frame) -> std::io::Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    writer.send(&frame).await.map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::UnixListener;
    use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
    use zmachine_agent_protocol::FrameDecoder;

    /// An agent with one program, which asks and ends its direction, and gives what it is answered.
    async fn agent(stream: UnixStream) -> Vec<u8> {
        let mut connection = yamux::Connection::new(stream.compat(), yamux::Config::default(), yamux::Mode::Server);
        let first = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await;
        let mut accepted = first.expect("a stream").expect("a stream").compat();
        let others = tokio::spawn(async move {
            // The next one waits for ever.
            let mut kept = Vec::new();
            while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
                kept.push(stream);
            }
        });
        let asked = Frame::Stdout(b"question".to_vec()).to_bytes();
        let both = [Frame::message(&Reply::Done).to_bytes(), asked].concat();
        accepted.write_all(&both).await.expect("sent");
        accepted.shutdown().await.expect("its end");
        let mut decoder = FrameDecoder::new();
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let count = accepted.read(&mut buffer).await.expect("read");
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame().expect("a frame") {
                match frame {
                    Frame::Stdin(bytes) => answer.extend(bytes),
                    Frame::StdinEof => {
                        others.abort();
                        return answer;
                    }
                    _ => {}
                }
            }
            if count == 0 {
                others.abort();
                return answer;
            }
        }
    }

    async fn asked(host: &Path) -> Vec<u8> {
        let (near, far) = UnixStream::pair().unwrap();
        let session = Session::start(async { Ok(near) });
        forward(&session, &[("/run/s".to_owned(), host.to_owned())]);
        tokio::time::timeout(Duration::from_secs(10), agent(far))
            .await
            .expect("an end")
    }

    #[tokio::test]
    async fn a_program_asks_a_socket_of_the_host_and_is_answered_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let host = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = String::new();
            stream.read_to_string(&mut question).await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            question
        });
        assert_eq!(asked(&path).await, b"answer");
        assert_eq!(host.await.unwrap(), "question");
    }

    #[tokio::test]
    async fn a_socket_on_which_nobody_listens_ends_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(asked(&folder.path().join("none")).await, b"");
    }
}
