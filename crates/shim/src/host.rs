//! The mounts of the host, and those of the shim, which has a mount namespace of its own: what it mounts for its pod is in nobody's way,
//! and is gone with the last process of the pod, whatever ends that.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use zmachine_sys::mount::{self, VolumeOptions};

/// The namespace that the shim came from; none in other roles of this program, which stay in it.
static HOST: OnceLock<File> = OnceLock::new();

/// Gives this process mounts of its own, in which those of the host come and go. Call it before there are threads.
///
/// # Errors
/// When it is not privileged.
pub(crate) fn leave() -> io::Result<()> {
    let namespace = File::open("/proc/self/ns/mnt")?;
    mount::make_following()?;
    let _ = HOST.set(namespace);
    Ok(())
}

/// Does `work` with the mounts of the host: there is all that containerd and the kubelet have mounted, at the latest.
///
/// # Errors
/// Those of `work`.
pub(crate) fn within<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    match HOST.get() {
        Some(host) => mount::within(host, work),
        None => work(),
    }
}

/// A file or directory of the host, to be attached somewhere.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn copy_volume(source: &Path, options: VolumeOptions) -> io::Result<OwnedFd> {
    within(|| mount::copy_volume(source, options))
}

/// What `work` mounts at `target`, to be attached there by the shim: the host itself never has it.
///
/// # Errors
/// Those of `work`, and the kernel's reason.
pub(crate) fn mounted(target: &Path, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<OwnedFd> {
    let all = VolumeOptions {
        recursive: true,
        ..VolumeOptions::default()
    };
    let namespace = HOST
        .get()
        .map_or_else(|| File::open("/proc/self/ns/mnt"), File::try_clone)?;
    mount::within(namespace, || {
        mount::make_private()?;
        work()?;
        mount::copy_volume(target, all)
    })
}
