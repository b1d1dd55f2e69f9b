//! A file descriptor the runtime can wait for: pipes, pseudo terminals, the virtio port.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor registered with the runtime. One reader and one writer may wait at a time.
#[derive(Debug)]
pub(crate) struct Pollable(AsyncFd<OwnedFd>);

impl Pollable {
    /// Sets `fd` non-blocking and registers it.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for (a regular file), or none are left.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, and it is never given out.
        Ok(Pollable(unsafe { AsyncFd::register(fd) }?))
    }

    /// Appends what can be read to the spare capacity of `buffer`; 0 is the end.
    pub(crate) fn poll_read_into(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, |fd| Ok(rustix::io::read(fd, spare_capacity(buffer))?))
    }

    /// Reads with `read`, which gets the descriptor each time there may be something.
    pub(crate) fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| read(fd.as_fd())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes what fits of `bytes`.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsFd for Pollable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
