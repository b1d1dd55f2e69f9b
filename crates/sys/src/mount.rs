//! Mounts of a process of its own: a private mount namespace, and trees of mounts in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::thread::UnshareFlags;

/// Gives the calling thread mounts of its own: nothing that is mounted from here on is seen outside, and it is gone with the
/// last process of this namespace.
///
/// # Errors
/// When the caller is not privileged.
pub fn make_private() -> io::Result<()> {
    // SAFETY: descriptors stay shared with the other threads, as CLONE_FILES is not asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Mounts the directory behind `source`, with all that is mounted below it, on `target`: without devices and setuid, and
/// not writable by any way through `target` when `read_only`.
///
/// # Errors
/// The kernel's reason.
pub fn bind_tree(source: impl AsFd, target: &Path, read_only: bool) -> io::Result<()> {
    bind_restricted(source, target, read_only, true)
}

/// As [`bind_tree`], of a directory or any other file; programs in it can be executed only when `executable`.
///
/// # Errors
/// The kernel's reason.
pub fn bind_restricted(source: impl AsFd, target: &Path, read_only: bool, executable: bool) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source.as_fd(), "", flags)?;
    restrict(&tree, read_only, executable)?;
    move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Sets the attributes of all mounts of a tree.
fn restrict(tree: &OwnedFd, read_only: bool, executable: bool) -> io::Result<()> {
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    if !executable {
        attributes |= libc::MOUNT_ATTR_NOEXEC;
    }
    let wanted = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is an empty C string, and the kernel reads as many bytes of the structure as
    // it is told it has.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
