//! The folder of a run in which the hypervisor makes its sockets, as it is seen from both sides.
//!
//! ```text
//! <run>/ch/{api, events, com1, vs, vs_1024}      names as the hypervisor knows them
//! ```
//! In a jail it is a file system of its own in memory, which the process alone has mounted there; the monitor reaches it by the
//! mount's descriptor. So nothing that a guest makes there with a hypervisor it has taken over fills a disk of the host, shows in
//! its mounts, or stays behind. Without the right to that it is the folder of this name.
//!
//! # Invariants
//! Whoever has taken the hypervisor over can make anything there: links to sockets of the host above all, which a privileged
//! monitor could connect to. So nothing there is followed ([`connect`]), and what is ours is made before the process starts.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use tokio::net::UnixStream;
use zmachine_sys::mount;

use super::config::Sockets;

/// The folder's name in that of a run.
const NAME: &str = "ch";
/// What it holds at most: sockets need no space, and locks beside them none either.
const BYTES: u64 = 64 << 10;
/// Files that it holds at most, itself included.
const FILES: u64 = 32;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    user: Option<u32>,
    mount: Option<OwnedFd>,
}

impl Folder {
    /// Makes an empty folder for a run in `run`. `user`: it is for a process in a jail, of this user.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn make(run: &Path, user: Option<u32>) -> io::Result<Folder> {
        let path = run.join(NAME);
        // What an earlier start left: the serial console's socket would be "already in use" for ever.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let mut folder = Folder {
            path,
            user,
            mount: None,
        };
        if let Some(user) = user {
            match mount::in_memory(user, BYTES, FILES) {
                Ok(mount) => folder.mount = Some(mount),
                Err(_) => folder.give(&folder.path)?,
            }
        }
        Ok(folder)
    }

    /// The folder as the hypervisor sees it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be mounted there for the hypervisor; `None`: it is what it is.
    pub(super) fn mount(&self) -> Option<RawFd> {
        self.mount.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The sockets by the names that the hypervisor is told.
    pub(super) fn reported(&self) -> Sockets {
        Sockets::of(&self.path)
    }

    /// The sockets by the names that this process reaches them by, for as long as the folder lives.
    pub(super) fn reached(&self) -> Sockets {
        match self.mount() {
            Some(mount) => Sockets::of(&PathBuf::from(format!("/proc/self/fd/{mount}"))),
            None => self.reported(),
        }
    }

    /// Gives something that was made there to the hypervisor's user.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        if let Some(user) = self.user {
            rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        }
        Ok(())
    }
}

/// Connects to the socket at `path`, if it is one: a link to another is not followed.
///
/// # Errors
/// The system's reason.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let found = rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_to_a_socket_of_the_host_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path(), None).unwrap();
        let host = dir.path().join("host.sock");
        let _listener = UnixListener::bind(&host).unwrap();
        connect(&host).await.unwrap();
        let sockets = folder.reached();
        symlink(&host, &sockets.serial).unwrap();
        connect(&sockets.serial).await.unwrap_err();
        std::fs::write(&sockets.api, "").unwrap();
        assert_eq!(
            connect(&sockets.api).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[tokio::test]
    async fn the_folder_of_a_jail_is_on_no_disk_and_what_it_holds_is_limited() {
        if let Some(lack) = zmachine_testkit::lacking(&[zmachine_testkit::Need::Root]) {
            return zmachine_testkit::skip(lack);
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path(), Some(1_999_999_998)).unwrap();
        let sockets = folder.reached();
        let _listener = UnixListener::bind(&sockets.vsock).unwrap();
        connect(&sockets.vsock).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join(NAME)).unwrap().count(), 0);
        let inside = sockets.api.parent().unwrap();
        std::fs::write(inside.join("large"), vec![1; 1 << 20]).unwrap_err();
        let many = (0..2 * FILES).map(|number| std::fs::write(inside.join(number.to_string()), ""));
        assert!(many.filter(Result::is_err).count() > 0);
    }
}
