//! The container's root: the image below, a writable layer above, overlayfs on both, and the change into it.
//!
//! # Layout (in the initramfs, before the switch)
//! ```text
//! /lower     the image, read-only: an EROFS disk, or a tree over virtio-fs
//! /upper     ext4 disk or tmpfs: upper/ and work/
//! /newroot   overlay of both, becomes /
//! ```
//! After the switch `/lower` and `/upper` are mounted still, below the new root, where no path of the guest leads.
//! A read-only root is an overlay too, with a tmpfs above that is sealed when the set-up is done: so mount points and
//! `/etc` files exist whatever the image brings. A machine without an image of its own has that tmpfs alone.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, MountFlags, UnmountFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick, mount, mount_move,
    mount_remount, unmount,
};
use zmachine_agent_protocol::{Root, Upper};

use super::disks::Disk;
use super::error::SetupError;

/// A tree of the host, which is no disk.
pub(super) const SHARED: &str = "virtiofs";

/// A mounted file system that holds a user's data.
#[derive(Debug)]
pub(crate) struct Writable {
    /// What it is, for messages.
    pub(crate) name: String,
    root: OwnedFd,
}

impl Writable {
    /// Takes hold of the file system mounted at `path`, wherever its mount goes later.
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub(super) fn hold(name: &str, path: &str) -> Result<Writable, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Writable {
            name: name.into(),
            root: rustix::fs::openat(CWD, path, flags, Mode::empty())?,
        })
    }

    /// Its root, opened: requests to a file system need more than what is held.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, ".", flags, Mode::empty())
    }

    /// Makes the file system read-only: everything is written and its journal is empty afterwards.
    ///
    /// # Errors
    /// `EBUSY` while a file on it is open for writing.
    pub(crate) fn make_read_only(&self) -> Result<(), Errno> {
        let context = fspick(
            &self.root,
            "",
            FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC,
        )?;
        fsconfig_set_flag(context.as_fd(), "ro")?;
        fsconfig_reconfigure(context.as_fd())
    }
}

/// The two directories that the root shows as one, held wherever their mounts go.
#[derive(Debug)]
pub(crate) struct Layers {
    /// What was written.
    pub(crate) upper: OwnedFd,
    /// The image.
    pub(crate) lower: OwnedFd,
}

impl Layers {
    /// The same, held once more.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub(crate) fn try_clone(&self) -> std::io::Result<Layers> {
        Ok(Layers {
            upper: self.upper.try_clone()?,
            lower: self.lower.try_clone()?,
        })
    }

    fn hold() -> Result<Layers, SetupError> {
        let open = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|source| SetupError::Switch {
                step: "open the layers",
                source,
            })
        };
        Ok(Layers {
            upper: open("/upper/upper")?,
            lower: open("/lower")?,
        })
    }
}

/// Mounts both layers and the overlay on `/newroot`; the layers, where there are any.
///
/// # Errors
/// [`SetupError`] naming the disk or the mount.
pub(super) fn assemble(
    root: &Root,
    read_ahead_kib: u32,
    writable: &mut Vec<Writable>,
) -> Result<Option<Layers>, SetupError> {
    if root.upper == Upper::WithoutImage {
        make_directory("/newroot")?;
        mount_at(
            Path::new("tmpfs"),
            "/newroot",
            "tmpfs",
            MountFlags::NOATIME,
            "mode=0755",
        )?;
        return Ok(None);
    }
    for directory in ["/lower", "/upper", "/newroot"] {
        make_directory(directory)?;
    }
    let image = if root.lower_fstype == SHARED {
        PathBuf::from(&root.lower_serial)
    } else {
        let lower = Disk::wait_for(&root.lower_serial)?;
        lower.set_read_ahead(read_ahead_kib);
        lower.device()
    };
    mount_at(&image, "/lower", &root.lower_fstype, MountFlags::RDONLY, "")?;
    writable.extend(mount_upper(&root.upper)?);
    make_directory("/upper/upper")?;
    make_directory("/upper/work")?;
    // redirect_dir: an image's directory can be renamed without EXDEV; safe, because lower and upper stay a pair.
    let layers = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,redirect_dir=on";
    mount_at(Path::new("overlay"), "/newroot", "overlay", MountFlags::empty(), layers)?;
    Layers::hold().map(Some)
}

fn mount_upper(upper: &Upper) -> Result<Option<Writable>, SetupError> {
    match upper {
        Upper::Disk { serial, fstype } => {
            let disk = Disk::wait_for(serial)?;
            mount_layer(&disk.device(), fstype)?;
            let held = Writable::hold(serial, "/upper");
            held.map(Some).map_err(|source| SetupError::Switch {
                step: "open the writable layer",
                source,
            })
        }
        Upper::Memory | Upper::ReadOnly | Upper::WithoutImage => {
            mount_at(Path::new("tmpfs"), "/upper", "tmpfs", MountFlags::NOATIME, "mode=0755")?;
            Ok(None)
        }
    }
}

/// Mounts the disk of the writable layer.
fn mount_layer(device: &Path, fstype: &str) -> Result<(), SetupError> {
    let plain = discard_option(fstype);
    let mounted = |options: &str| mount_at(device, "/upper", fstype, MountFlags::NOATIME, options);
    if fstype != "ext4" {
        return mounted(plain);
    }
    // Its maps are read when something is written to what they are of. Else a thread reads them all in the first second, which is when
    // a machine has something better to do. Kernels before 5.17 do not know the word.
    match mounted(&format!("{plain},no_prefetch_block_bitmaps")) {
        Err(SetupError::Mount {
            source: rustix::io::Errno::INVAL,
            ..
        }) => mounted(plain),
        mounted => mounted,
    }
}

/// What lets the host have back the space of what is deleted.
pub(super) fn discard_option(fstype: &str) -> &'static str {
    match fstype {
        "ext4" | "xfs" => "discard",
        "btrfs" => "discard=async",
        _ => "",
    }
}

/// Mounts, with an error that names source and target.
pub(super) fn mount_at(
    source: &Path,
    target: &str,
    fstype: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), SetupError> {
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(source, target, fstype, flags, data.as_c_str()).map_err(|errno| SetupError::Mount {
        what: format!("{} ({fstype})", source.display()),
        target: target.into(),
        source: errno,
    })
}

fn make_directory(path: &str) -> Result<(), SetupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(SetupError::File {
            path: path.into(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Makes `/newroot` the root of the mount namespace, and frees the initramfs.
///
/// # Errors
/// [`SetupError::Switch`] with the step.
pub(super) fn switch() -> Result<(), SetupError> {
    let at = |step| move |source| SetupError::Switch { step, source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(at("open the initramfs"))?;
    for early in ["/sys", "/proc", "/dev"] {
        unmount(early, UnmountFlags::DETACH).map_err(at("leave the early mounts"))?;
    }
    rustix::process::chdir("/newroot").map_err(at("enter"))?;
    mount_move(".", "/").map_err(at("move"))?;
    rustix::process::chroot(".").map_err(at("chroot"))?;
    rustix::process::chdir("/").map_err(at("enter /"))?;
    if let Ok(stat) = rustix::fs::fstat(&old) {
        empty(old.as_fd(), stat.st_dev);
    }
    Ok(())
}

/// Removes everything below `directory` that is on device `device`: the initramfs's memory, never a mounted disk.
fn empty(directory: BorrowedFd<'_>, device: u64) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if stat.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(below) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
            empty(below.as_fd(), device);
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Makes the root read-only, when everything that had to be written is.
///
/// # Errors
/// [`SetupError::Mount`].
pub(super) fn seal() -> Result<(), SetupError> {
    mount_remount("/", MountFlags::RDONLY, "").map_err(|source| SetupError::Mount {
        what: "the root (read-only)".into(),
        target: "/".into(),
        source,
    })
}

/// Whether the root is read-only.
///
/// # Errors
/// [`SetupError::Mount`] when it cannot be looked at.
pub(super) fn is_sealed() -> Result<bool, SetupError> {
    let found = rustix::fs::statvfs("/").map_err(|source| SetupError::Mount {
        what: "the root".into(),
        target: "/".into(),
        source,
    })?;
    Ok(found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Lets the root be written to, until it is made read-only again.
///
/// # Errors
/// [`SetupError::Mount`].
pub(super) fn unseal() -> Result<(), SetupError> {
    mount_remount("/", MountFlags::empty(), "").map_err(|source| SetupError::Mount {
        what: "the root (writable)".into(),
        target: "/".into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_emptied_and_its_links_are_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        fs::create_dir_all(tree.path().join("lib/modules")).unwrap();
        fs::write(tree.path().join("lib/modules/a.ko"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.path().join("link")).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = rustix::fs::open(tree.path(), flags, Mode::empty()).unwrap();
        let device = rustix::fs::fstat(&directory).unwrap().st_dev;
        empty(directory.as_fd(), device + 1);
        assert!(
            tree.path().join("lib/modules/a.ko").exists(),
            "another device is left alone"
        );
        empty(directory.as_fd(), device);
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }
}
