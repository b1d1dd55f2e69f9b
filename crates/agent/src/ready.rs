//! An entrypoint that says when it is ready, by the notification protocol of systemd.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdUnixDatagram};

use tokio::net::UnixDatagram;
use zmachine_agent_protocol::READY_SOCKET;

/// The longest message that is read, in bytes.
const LONGEST: usize = 4096;

/// Listens for what the entrypoint says.
///
/// # Errors
/// When somebody listens already.
pub(crate) fn listen() -> io::Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name(READY_SOCKET.trim_start_matches('@'))?;
    let socket = StdUnixDatagram::bind_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// Waits until it says that it is ready.
///
/// # Errors
/// The kernel's.
pub(crate) async fn said(socket: &UnixDatagram) -> io::Result<()> {
    let mut message = [0; LONGEST];
    loop {
        let length = socket.recv(&mut message).await?;
        if says_ready(&message[..length]) {
            return Ok(());
        }
    }
}

fn says_ready(message: &[u8]) -> bool {
    message.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_line_among_others() {
        assert!(says_ready(b"READY=1") && says_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!says_ready(b"READY=0") && !says_ready(b"STATUS=READY=1") && !says_ready(b""));
    }

    #[tokio::test]
    async fn other_messages_are_passed_over() {
        let socket = listen().unwrap();
        assert!(listen().is_err(), "there is one who listens");
        let address = SocketAddr::from_abstract_name("zmachine/ready").unwrap();
        let program = StdUnixDatagram::unbound().unwrap();
        for message in ["STATUS=loading", "WATCHDOG=1", "READY=1"] {
            program.send_to_addr(message.as_bytes(), &address).unwrap();
        }
        said(&socket).await.unwrap();
    }
}
