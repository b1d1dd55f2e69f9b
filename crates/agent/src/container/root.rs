//! The root of a container, put together in the child that becomes its first process: in mount and other namespaces of its
//! own, and still with the guest's root.
//!
//! # Invariants
//! No path of the container is followed out of its root: targets are looked up by descriptors, with the root as the place where
//! absolute links begin.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move,
    mount_remount, unmount,
};
use zmachine_agent_protocol::{Container, ContainerMount, ContainerRoot, DeviceNode, ImageLayer, MountSource};

use super::error::{ContainerError, step};
use super::{devices, memory};
use crate::setup::Layers;

/// Where images are mounted that came by disks of their own.
const IMAGES: &str = "/run/zmachine/images";

/// As of the machine's own image.
const READ_AHEAD_KIB: u32 = 512;

/// What of the flags of a mount its file system has, and not the place.
const NO_DEVICE_FILES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// In every container: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Puts the root of `container` together at `place`, an empty directory or [`Image`], and makes it the root of this process.
///
/// # Errors
/// [`ContainerError`] naming the mount.
pub(super) fn enter(
    container: &Container,
    devices: &[DeviceNode],
    place: &Path,
    terminal: Option<BorrowedFd<'_>>,
) -> Result<(), ContainerError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("make mounts private"))?;
    if let ContainerRoot::Directory { path } = &container.root {
        mount_bind_recursive(path.as_str(), place).map_err(|source| ContainerError::Mount {
            what: path.clone(),
            target: place.display().to_string(),
            source,
        })?;
    }
    let root = open_directory(place).map_err(step("open the root"))?;
    for mount in &container.mounts {
        put(root.as_fd(), mount)?;
    }
    make_devices(root.as_fd(), devices, terminal)?;
    for path in &container.masked {
        mask(root.as_fd(), path)?;
    }
    change_root(root.as_fd()).map_err(step("change the root"))?;
    for path in &container.read_only_paths {
        protect(path)?;
    }
    if container.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount("/", flags, "").map_err(step("make the root read-only"))?;
    }
    Ok(())
}

/// The machine's image, mounted for a container that is about to start: the child gets a copy of the mount with all others. It is
/// mounted by the agent, because the kernel makes an overlay only of mounts of the caller's own namespace.
#[derive(Debug)]
pub(super) struct Image<'a> {
    place: &'a Path,
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.place, UnmountFlags::DETACH);
    }
}

impl Image<'_> {
    /// Mounts it at `place`, with the layer of the container `id` above it.
    ///
    /// # Errors
    /// [`ContainerError`]
    pub(super) fn mount<'a>(id: &str, place: &'a Path, layers: Option<&Layers>) -> Result<Image<'a>, ContainerError> {
        let layers = layers.ok_or_else(no_image)?;
        Image::overlay(id, place, (&[&layers.lower], &layers.upper), "the machine's image")
    }

    /// The same with other layers, each on a disk, in the place of the machine's own image.
    ///
    /// # Errors
    /// [`ContainerError`], also when a disk does not come in time.
    pub(super) async fn mount_disks<'a>(
        id: &str,
        place: &'a Path,
        layers: Option<&Layers>,
        wanted: &[ImageLayer],
    ) -> Result<Image<'a>, ContainerError> {
        let upper = &layers.ok_or_else(no_image)?.upper;
        let mut lower = Vec::new();
        for layer in wanted {
            lower.push(image_on(layer).await?);
        }
        let names: Vec<&str> = wanted.iter().map(|layer| layer.serial.as_str()).collect();
        let lower: Vec<&OwnedFd> = lower.iter().collect();
        let what = format!("the image on the disk {}", names.join(", "));
        Image::overlay(id, place, (&lower, upper), &what)
    }

    fn overlay<'a>(
        id: &str,
        place: &'a Path,
        (lower, upper): (&[&OwnedFd], &OwnedFd),
        what: &str,
    ) -> Result<Image<'a>, ContainerError> {
        overlay(lower, upper, id, place).map_err(|source| ContainerError::Mount {
            what: what.to_owned(),
            target: place.display().to_string(),
            source,
        })?;
        Ok(Image { place })
    }
}

fn no_image() -> ContainerError {
    ContainerError::Unusable {
        what: "the machine's image, which it has not,".to_owned(),
    }
}

/// The file system of a disk, mounted by the first container that wants it.
async fn image_on(layer: &ImageLayer) -> Result<OwnedFd, ContainerError> {
    let serial = layer.serial.as_str();
    if !memory::is_name(serial) {
        let what = format!("the disk {serial:?}");
        return Err(ContainerError::Unusable { what });
    }
    let place = Path::new(IMAGES).join(serial);
    let open = || open_directory(&place).map_err(step("open an image"));
    if place.is_dir() {
        return open();
    }
    let disk = devices::disk(serial).await?;
    let mut options = Vec::new();
    for data in &layer.devices {
        let data = devices::disk(data).await?;
        data.set_read_ahead(READ_AHEAD_KIB);
        options.push(format!("device={}", data.device().display()));
    }
    let options = CString::new(options.join(",")).unwrap_or_default();
    disk.set_read_ahead(READ_AHEAD_KIB);
    // Under another name until it is mounted: who finds the place finds the image.
    let unfinished = Path::new(IMAGES).join(format!(".{serial}"));
    fs::create_dir_all(&unfinished).map_err(|error| step("make an image's folder")(super::error::errno(&error)))?;
    let mounted = mount(
        disk.device(),
        &unfinished,
        "erofs",
        MountFlags::RDONLY,
        options.as_c_str(),
    );
    mounted.map_err(|source| ContainerError::Mount {
        what: format!("the image on the disk {serial}"),
        target: place.display().to_string(),
        source,
    })?;
    let image = open_directory(&unfinished).map_err(step("open an image"))?;
    match fs::create_dir(&place) {
        Ok(()) => mount_move(&unfinished, &place).map_err(step("place an image"))?,
        // Another container was faster; its mount is of the same disk.
        Err(_) => unmount(&unfinished, UnmountFlags::DETACH).map_err(step("give up an image"))?,
    }
    let _ = fs::remove_dir(&unfinished);
    Ok(image)
}

/// An image below, the uppermost of its layers first, and above it a layer that is this container's: on the machine's writable disk, or in memory.
///
/// The layer is of no use to anybody after the container (`volatile`). Otherwise the kernel would write out the whole disk where the
/// last process of the container ends, before anybody is told of that end, and even SIGKILL would wait for the host's disk.
fn overlay(lower: &[&OwnedFd], upper: &OwnedFd, id: &str, place: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(upper, "..", flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(0o755);
    let make = |at: &OwnedFd, name: &Path| match rustix::fs::mkdirat(at, name, mode) {
        Ok(()) | Err(Errno::EXIST) => rustix::fs::openat(at, name, flags, Mode::empty()),
        Err(errno) => Err(errno),
    };
    let containers = make(&above, Path::new("containers"))?;
    let own = make(&containers, Path::new(id))?;
    let (own_upper, work) = (make(&own, Path::new("upper"))?, make(&own, Path::new("work"))?);
    let by_number = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,volatile",
        lower.iter().map(|fd| by_number(fd)).collect::<Vec<_>>().join(":"),
        by_number(&own_upper),
        by_number(&work)
    );
    let options = CString::new(options).unwrap_or_default();
    mount("overlay", place, "overlay", MountFlags::empty(), options.as_c_str())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// A descriptor as a path for calls that take no descriptors.
fn path_of(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn put(root: BorrowedFd<'_>, mount: &ContainerMount) -> Result<(), ContainerError> {
    let failed = |source| ContainerError::Mount {
        what: describe(&mount.source),
        target: mount.target.clone(),
        source,
    };
    put_unnamed(root, mount).map_err(failed)
}

fn put_unnamed(root: BorrowedFd<'_>, wanted: &ContainerMount) -> Result<(), Errno> {
    let flags = MountFlags::from_bits_retain(wanted.flags as u32);
    match &wanted.source {
        MountSource::New { fstype } => {
            let target = target(root, &wanted.target, true)?;
            let options = CString::new(wanted.options.as_str()).map_err(|_| Errno::INVAL)?;
            mount(
                fstype.as_str(),
                path_of(&target),
                fstype.as_str(),
                flags,
                options.as_c_str(),
            )?;
        }
        MountSource::Bind { path, recursive } => bind(root, Path::new(path), *recursive, wanted, flags)?,
        MountSource::Memory { name, .. } => bind(root, &memory::place(name), false, wanted, flags)?,
    }
    let propagation = MountPropagationFlags::from_bits_retain(wanted.propagation as u32);
    if !propagation.is_empty() {
        mount_change(path_of(&target(root, &wanted.target, false)?), propagation)?;
    }
    Ok(())
}

fn bind(
    root: BorrowedFd<'_>,
    source: &Path,
    recursive: bool,
    wanted: &ContainerMount,
    flags: MountFlags,
) -> Result<(), Errno> {
    let is_directory = fs::metadata(source)
        .map_err(|error| super::error::errno(&error))?
        .is_dir();
    let place = target(root, &wanted.target, is_directory)?;
    match recursive {
        true => mount_bind_recursive(source, path_of(&place))?,
        false => mount_bind(source, path_of(&place))?,
    }
    if flags.is_empty() {
        return Ok(());
    }
    // A bind takes no flags with it. The target is looked up again: by now it is the mount.
    let mounted = target(root, &wanted.target, is_directory)?;
    mount_remount(path_of(&mounted), MountFlags::BIND | flags, "")
}

/// The file at `path` in the root, or what is mounted there; made when it is missing.
fn target(root: BorrowedFd<'_>, path: &str, is_directory: bool) -> Result<OwnedFd, Errno> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let path = Path::new(path);
    match open(path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => target(root, &parent.to_string_lossy(), true)?,
        _ => root.try_clone_to_owned().map_err(|error| super::error::errno(&error))?,
    };
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let made = match is_directory {
        true => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        false => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => open(path),
        Err(errno) => Err(errno),
    }
}

fn make_devices(
    root: BorrowedFd<'_>,
    more: &[DeviceNode],
    terminal: Option<BorrowedFd<'_>>,
) -> Result<(), ContainerError> {
    let dev = target(root, "/dev", true).map_err(step("make /dev"))?;
    let mode = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEVICES {
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)) {
            // The mask of the agent is in the way of the mode.
            Ok(()) => {
                rustix::fs::chmodat(&dev, name, mode, AtFlags::empty()).map_err(step(format!("make /dev/{name}")))?
            }
            Err(Errno::EXIST) => {}
            // A tree of the host's that takes no devices: the guest's own.
            Err(_) => {
                let bound = target(root, &format!("/dev/{name}"), false)
                    .and_then(|at| mount_bind(format!("/dev/{name}"), path_of(&at)));
                bound.map_err(step(format!("make /dev/{name}")))?;
            }
        }
    }
    for (name, to) in LINKS {
        let _ = rustix::fs::symlinkat(to, &dev, name);
    }
    for device in more {
        make_device(root, device).map_err(step(format!("make {}", device.path)))?;
    }
    if let Some(terminal) = terminal {
        // By its path: the descriptor is of a mount of the agent's own namespace.
        let bound = fs::read_link(path_of(&terminal))
            .map_err(|error| super::error::errno(&error))
            .and_then(|path| mount_bind(path, path_of(&target(root, "/dev/console", false)?)));
        bound.map_err(step("make /dev/console"))?;
    }
    Ok(())
}

fn make_device(root: BorrowedFd<'_>, device: &DeviceNode) -> Result<(), Errno> {
    let path = Path::new(&device.path);
    let parent = path.parent().ok_or(Errno::INVAL)?;
    let folder = target(root, &parent.to_string_lossy(), true)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let kind = match device.block {
        true => FileType::BlockDevice,
        false => FileType::CharacterDevice,
    };
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let make = |folder: BorrowedFd<'_>, name: &OsStr| {
        rustix::fs::mknodat(folder, name, kind, mode, makedev(device.major, device.minor))?;
        rustix::fs::chmodat(folder, name, mode, AtFlags::empty())?;
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    };
    match make(folder.as_fd(), name) {
        Err(Errno::EXIST) => Ok(()),
        // A tree of the host's that takes no devices: a node of the guest's, which has no name any more once it is there.
        Err(Errno::PERM) => {
            let dev = open_directory(Path::new("/dev"))?;
            let unnamed = format!("container-{}", std::process::id());
            make(dev.as_fd(), OsStr::new(&unnamed))?;
            let bound =
                target(root, &device.path, false).and_then(|at| mount_bind(format!("/dev/{unnamed}"), path_of(&at)));
            rustix::fs::unlinkat(&dev, unnamed, AtFlags::empty())?;
            bound
        }
        other => other,
    }
}

/// Hides a path: a file behind `/dev/null`, a directory behind an empty one.
fn mask(root: BorrowedFd<'_>, path: &str) -> Result<(), ContainerError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let masked = match found {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
        Ok(file) => match rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => mount(
                "tmpfs",
                path_of(&file),
                "tmpfs",
                MountFlags::RDONLY | NO_DEVICE_FILES,
                c"size=0k,nr_inodes=2",
            ),
            Ok(_) => mount_bind("/dev/null", path_of(&file)),
            Err(errno) => Err(errno),
        },
    };
    masked.map_err(step(format!("hide {path}")))
}

/// Makes a path read-only, from inside.
fn protect(path: &str) -> Result<(), ContainerError> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let protected = match mount_bind_recursive(path, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
        Ok(()) => mount_remount(path, flags, ""),
    };
    protected.map_err(step(format!("make {path} read-only")))
}

fn change_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

fn describe(source: &MountSource) -> String {
    match source {
        MountSource::New { fstype } => fstype.clone(),
        MountSource::Bind { path, .. } => path.clone(),
        MountSource::Memory { name, .. } => format!("memory {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn targets_are_made_in_the_root_whatever_links_say() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../outside", root.join("relative")).unwrap();
        let open = open_directory(&root).unwrap();
        // Links to nowhere in the root: what they name is not made outside of it.
        for path in ["/absolute/x", "/relative/y"] {
            let _ = target(open.as_fd(), path, true);
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        target(open.as_fd(), "/etc/sub/file", false).unwrap();
        assert!(root.join("etc/sub/file").is_file());
        target(open.as_fd(), "/var/lib", true).unwrap();
        target(open.as_fd(), "/var/lib", true).unwrap();
        assert!(root.join("var/lib").is_dir());
    }
}
