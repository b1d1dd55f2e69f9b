//! What the kernel knows of a connected socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written to a stream socket and that its peer's kernel (TCP) or its peer (unix) has not taken yet.
///
/// # Errors
/// When it is no stream socket.
pub fn untaken_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    match result {
        0 => Ok(count.max(0) as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn bytes_count_until_they_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nonblocking(true).unwrap();
        let chunk = vec![7; 1 << 20];
        let mut sent = 0;
        while let Ok(n) = sender.write(&chunk) {
            sent += n;
        }
        assert!(untaken_bytes(&sender).unwrap() > 0);
        let (mut receiver, _) = listener.accept().unwrap();
        let mut left = vec![0; sent];
        receiver.read_exact(&mut left).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while untaken_bytes(&sender).unwrap() > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
