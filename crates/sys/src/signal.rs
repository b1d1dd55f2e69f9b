//! Signals as a readable descriptor.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks `signals` in the calling thread, and in every thread it starts from now on, and gives a descriptor that is
/// readable once one of them is pending. Call it before the first thread starts, or others still take them.
///
/// # Errors
/// When a number is no signal, or there is no free descriptor.
pub fn watch(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is valid storage for `sigemptyset`, which initialises it; every pointer is to it and
    // outlives its call; the descriptor is new, so nothing else owns it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            check(libc::sigaddset(&mut set, signal))?;
        }
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_watched_signal_can_be_read_and_does_not_kill() {
        std::thread::spawn(|| {
            let mut file = std::fs::File::from(watch(&[libc::SIGUSR2]).unwrap());
            let mut info = [0; 128];
            assert_eq!(file.read(&mut info).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            // SAFETY: raises a signal that this thread has blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(file.read(&mut info).unwrap(), 128);
            assert_eq!(info[0], libc::SIGUSR2 as u8);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_number_that_is_no_signal_is_an_error() {
        assert!(watch(&[9999]).is_err());
    }
}
