//! TAP devices: opening one by name, and nothing else (links are configured by netlink in crate `network`).
//!
//! # Invariants
//! A tap made here is not persistent: the kernel removes it when its last descriptor is closed. It carries a
//! virtio-net header (`IFF_VNET_HDR`), which is what QEMU's `-netdev tap,fd=` and Cloud Hypervisor probe for.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The longest name of a network interface in bytes (`IFNAMSIZ` without its NUL, linux/if.h).
pub const INTERFACE_NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// The device through which taps are made.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Makes the tap `name` in the current network namespace and returns its one descriptor (close-on-exec, non-blocking).
/// The tap is down, has no address, and lives as long as the descriptor or a copy of it.
///
/// # Errors
/// `InvalidInput` for a name that is empty, too long or has a `/`, a NUL or white space; `ResourceBusy` when the name is in
/// use; `PermissionDenied` without CAP_NET_ADMIN; `NotFound` without the tun driver.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let fits = (1..=INTERFACE_NAME_MAX).contains(&name.len());
    if !fits || name.bytes().any(|b| b == b'/' || b <= b' ') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)?;
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame for the whole call; the name in it is
    // NUL-terminated, since it is shorter than IFNAMSIZ and the rest is zero.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

/// Bytes that precede each frame that is read from, or written to, a tap: its virtio-net header, as whoever had it last chose.
///
/// # Errors
/// For what is no tap.
pub fn header_bytes(tap: &impl AsRawFd) -> io::Result<usize> {
    /// `_IOR('T', 215, int)` (linux/if_tun.h).
    const TUNGETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one `int`, which lives on this stack frame for the whole call.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETVNETHDRSZ as _, &raw mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_the_kernel_would_cut_or_expand_is_refused() {
        for name in ["", "a-name-that-is-too-long", "a/b", "a b", "a\0b"] {
            assert_eq!(
                open_tap(name).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name:?}"
            );
        }
    }
}
