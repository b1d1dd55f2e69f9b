//! Mounts of a process of its own: a private mount namespace, and trees of mounts in it.
//!
//! A mount can also be made for another process: a descriptor of a mount that is nowhere yet is inherited, and put at a path
//! by [`attach`] in the namespace of whoever has it. No table of the host shows it, and it is gone with its last user.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

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

/// Gives the calling thread mounts of its own that follow those of the host: what is mounted and unmounted outside is so here, and
/// nothing that is mounted here is seen outside.
///
/// # Errors
/// When the caller is not privileged.
pub fn make_following() -> io::Result<()> {
    // SAFETY: descriptors stay shared with the other threads, as CLONE_FILES is not asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
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
    let tree = copied(source, read_only, executable)?;
    attach(tree, target)
}

/// The directory behind `source`, with all that is mounted below it, as a mount that is nowhere yet: without devices and setuid.
/// What it follows of the host, it goes on to follow.
///
/// # Errors
/// The kernel's reason.
pub fn copy_tree(source: impl AsFd, read_only: bool) -> io::Result<OwnedFd> {
    copied(source, read_only, true)
}

fn copied(source: impl AsFd, read_only: bool, executable: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source.as_fd(), "", flags)?;
    restrict(&tree, read_only, executable, None)?;
    Ok(tree)
}

/// How [`copy_volume`] makes a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// With what is mounted below the source.
    pub recursive: bool,
    /// Nothing can be written through it; what is mounted below it stays as it is.
    pub read_only: bool,
    /// Nor through what is mounted below it.
    pub read_only_below: bool,
    /// What is mounted below the source later is there as well.
    pub follows: bool,
}

/// The file or directory at `source` as a mount that is nowhere yet. Nothing that is mounted in it is seen at the source.
///
/// # Errors
/// The kernel's reason.
pub fn copy_volume(source: &Path, options: VolumeOptions) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, options.recursive);
    let tree = open_tree(CWD, source, flags)?;
    let read_only = |set: bool| if set { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let propagation = match options.follows {
        true => libc::MS_SLAVE,
        false => libc::MS_PRIVATE,
    };
    // Before it is anywhere: it is never seen writable, and who gets a copy gets one that is not.
    set_attributes(
        &tree,
        options.recursive,
        read_only(options.read_only_below),
        propagation,
        None,
    )?;
    set_attributes(&tree, false, read_only(options.read_only), 0, None)?;
    Ok(tree)
}

/// Puts a mount that is nowhere yet on `target`.
///
/// # Errors
/// The kernel's reason.
pub fn attach(mount: impl AsFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mount.as_fd(), "", CWD, target, flags)?)
}

/// A small empty file system in memory, which is nowhere yet: its folder belongs to `user` and is for nobody else, it holds
/// `bytes` in `files` at most, and none of them is a device or a program.
///
/// # Errors
/// When the caller is not privileged, or the kernel is older than 5.2.
pub fn in_memory(user: u32, bytes: u64, files: u64) -> io::Result<OwnedFd> {
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: String| fsconfig_set_string(system.as_fd(), key, value);
    set("size", bytes.to_string())?;
    set("nr_inodes", files.to_string())?;
    set("mode", "0700".to_owned())?;
    set("uid", user.to_string())?;
    set("gid", user.to_string())?;
    fsconfig_create(system.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(system.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The file at `path` as a mount that is nowhere yet, in which `user` is its owner. The file itself does not change: to everybody
/// else, and on the disk, it belongs to whom it did.
///
/// # Errors
/// When the caller is not privileged, or the kernel (before 5.12) or the file system has no such mounts.
pub fn owned_by(user: u32, path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let owner = rustix::fs::fstat(&file)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(file.as_fd(), "", flags)?;
    let mapping = user_namespace((owner.st_uid, owner.st_gid), user)?;
    restrict(&tree, read_only, false, Some(&mapping))?;
    Ok(tree)
}

/// A user namespace that nobody is in, where `owner` (user and group) is `user` outside: a mapping for mounts.
fn user_namespace(owner: (u32, u32), user: u32) -> io::Result<OwnedFd> {
    let caller = std::process::id();
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without a stack and CLONE_VM this is a fork. Other threads may hold any lock, so the child makes nothing but system
    // calls, which touch no memory.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: as above; all arguments are numbers. It ends with its parent, which may have ended before.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != caller {
                libc::_exit(0);
            }
            loop {
                libc::pause();
            }
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let mapped = (|| {
        std::fs::write(format!("/proc/{child}/uid_map"), format!("{} {user} 1", owner.0))?;
        std::fs::write(format!("/proc/{child}/gid_map"), format!("{} {user} 1", owner.1))?;
        std::fs::File::open(format!("/proc/{child}/ns/user"))
    })();
    let pid = rustix::process::Pid::from_raw(child as i32).ok_or(io::ErrorKind::NotFound)?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    Ok(mapped?.into())
}

/// Sets the attributes of all mounts of a tree; `mapping`: whose files its files are.
fn restrict(tree: &OwnedFd, read_only: bool, executable: bool, mapping: Option<&OwnedFd>) -> io::Result<()> {
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    if !executable {
        attributes |= libc::MOUNT_ATTR_NOEXEC;
    }
    if mapping.is_some() {
        attributes |= libc::MOUNT_ATTR_IDMAP;
    }
    set_attributes(tree, true, attributes, 0, mapping)
}

/// Sets attributes of a mount that is nowhere yet; `recursive`: and of all below it.
fn set_attributes(
    tree: &OwnedFd,
    recursive: bool,
    attributes: u64,
    propagation: u64,
    mapping: Option<&OwnedFd>,
) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: mapping.map_or(0, |mapping| mapping.as_raw_fd() as u64),
    };
    let scope = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is an empty C string, and the kernel reads as many bytes of the structure as
    // it is told it has.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | scope,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does `work` with the mounts of another mount namespace, in a thread that ends with it.
///
/// # Errors
/// When the namespace cannot be entered, and those of `work`.
pub fn within<T: Send>(namespace: impl AsFd, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = namespace.as_fd();
    let entered = move || {
        // SAFETY: descriptors stay shared with the other threads, as CLONE_FILES is not asked for.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, entered)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
    })
}

/// Does `work` in the calling thread, with `folder` as its working directory and none that it shares with other threads from then on.
///
/// # Errors
/// When the directory cannot be entered, and those of `work`.
pub fn in_folder<T>(folder: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // SAFETY: descriptors stay shared with the other threads, as CLONE_FILES is not asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::chdir(folder)?;
    work()
}
