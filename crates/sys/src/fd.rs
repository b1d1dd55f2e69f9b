//! Descriptors: socket pairs, inheritance, and closing what a role must not have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::io::FdFlags;

/// A connected pair of stream sockets, both close-on-exec.
///
/// # Errors
/// When the process is out of descriptors.
pub fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

/// Lets children inherit this descriptor, or not.
///
/// # Errors
/// When the descriptor is not open.
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable {
        FdFlags::empty()
    } else {
        FdFlags::CLOEXEC
    };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Takes over a descriptor that this process inherited under the number `fd`, and makes it close-on-exec.
///
/// # Errors
/// When no such descriptor is open, or it is one of the standard three.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "standard descriptors are not passed by number",
        ));
    }
    // SAFETY: fcntl only reads the descriptor table; an fd that is not open gives EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and by contract of the role's command line it was passed for this
    // process to own: nothing else in it refers to that number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks every descriptor from 3 on as close-on-exec, except `keep`.
///
/// # Errors
/// When the kernel has no `close_range` and `/proc` is not there either.
pub fn close_on_exec_except(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC changes flags only; no descriptor is closed under its owner.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in keep {
        // SAFETY: sets a flag of a descriptor that the caller says is open; otherwise EBADF is returned.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The number behind a descriptor, for command lines of children that inherit it.
pub fn number(fd: &impl AsRawFd) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_descriptor_that_is_not_open_is_an_error() {
        assert!(take_inherited(2).is_err());
        assert_eq!(take_inherited(9_999).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
