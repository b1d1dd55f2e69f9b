//! Putting the protections up around the calling process, in the order in which each still can be.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::{Access, Device, Jail, JailError, View, filter, has_process_namespace, landlock};
use crate::mount::bind_restricted;

/// Folders of the old layout, links to the new one on today's systems.
const LINKS: [&str; 5] = ["/lib", "/lib32", "/lib64", "/bin", "/sbin"];

/// Locks the calling process in. It has one thread, and has opened what it needs that is not in the view.
///
/// # Errors
/// When a wall that this host has cannot be put up. The process must end then.
pub fn enter(jail: &Jail) -> Result<(), JailError> {
    if jail.parent.is_none() && jail.user.is_some() {
        return Err(JailError::new("see who started it", io::ErrorKind::InvalidInput));
    }
    let own = namespaces(jail)?;
    if own.mounts {
        put_view_together(jail, &own)?;
    } else {
        // Without a place for them the mounts it was given must not stay open.
        jail.view
            .iter()
            .filter_map(|view| view.mount)
            .for_each(|mount| drop(take(mount)));
    }
    if own.uts {
        rustix::system::sethostname(b"jail").map_err(|e| JailError::new("change the host name", e))?;
    }
    limit(jail)?;
    become_user(jail, &own)?;
    rustix::thread::set_no_new_privs(true).map_err(|e| JailError::new("give up new privileges", e))?;
    die_with_parent(jail)?;
    if !jail.own_landlock {
        landlock::restrict(jail).map_err(|e| JailError::new("restrict file access", io::Error::other(e)))?;
    }
    match filter::install() {
        // A kernel without seccomp.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other.map_err(|e| JailError::new("filter system calls", e)),
    }
}

/// The namespaces that this process has of its own now.
#[derive(Debug, Clone, Copy)]
struct Namespaces {
    mounts: bool,
    uts: bool,
    /// Everything is in a user namespace, where only one user exists.
    user: bool,
}

impl Namespaces {
    const NONE: Namespaces = Namespaces {
        mounts: false,
        uts: false,
        user: false,
    };
}

fn namespaces(jail: &Jail) -> Result<Namespaces, JailError> {
    let mut wanted = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !jail.network {
        wanted |= UnshareFlags::NEWNET;
    }
    let done = |user| Namespaces {
        mounts: true,
        uts: true,
        user,
    };
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    // SAFETY: descriptors stay shared; this process has one thread.
    let privileged = unsafe { rustix::thread::unshare_unsafe(wanted) };
    match privileged {
        Ok(()) => return Ok(done(false)),
        Err(e) if !is_lacking(e) => return Err(JailError::new("make namespaces", e)),
        Err(_) => {}
    }
    if !jail.capabilities.is_empty() {
        // In a user namespace they would be powers over nothing that the program needs them for.
        return Ok(Namespaces::NONE);
    }
    // SAFETY: as above.
    match unsafe { rustix::thread::unshare_unsafe(wanted | UnshareFlags::NEWUSER) } {
        Ok(()) => {}
        Err(e) if is_lacking(e) => {
            return Ok(Namespaces::NONE);
        }
        Err(e) => return Err(JailError::new("make namespaces", e)),
    }
    let map = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| JailError::new(format!("write {file}"), e))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("{0} {0} 1", uid.as_raw()))?;
    map("gid_map", format!("{0} {0} 1", gid.as_raw()))?;
    Ok(done(true))
}

/// Whether the error says that this host, or this user, has no such thing.
fn is_lacking(error: Errno) -> bool {
    matches!(
        error,
        Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL | Errno::NOSPC
    )
}

fn put_view_together(jail: &Jail, own: &Namespaces) -> Result<(), JailError> {
    let root = jail.folder.as_path();
    // What is made here is for another user to enter, and what the program makes is out of everybody's sight.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let failed = |action: &str| {
        let action = format!("{action} {}", root.display());
        move |e: Errno| JailError::new(action, e)
    };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make mounts private for"))?;
    tmpfs(root, root, "size=64k,nr_inodes=1k,mode=755", true).map_err(failed("mount a tmpfs on"))?;
    // Outer ones first, or they would cover what is in them.
    let mut views: Vec<&View> = jail.view.iter().collect();
    views.sort_by_key(|view| &view.path);
    for view in views {
        show(root, view).map_err(|e| JailError::new(format!("show {}", view.path.display()), e))?;
    }
    for link in LINKS {
        // What the link leads to is in the view, or nothing is there, as it should be.
        if let Ok(target) = fs::read_link(link) {
            let _ = symlink(target, inside(root, Path::new(link)));
        }
    }
    devices(root, jail).map_err(|e| JailError::new("make devices", e))?;
    proc(root, jail, own).map_err(failed("mount /proc in"))?;
    change_root(root).map_err(failed("make a root of"))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount("/", flags, "").map_err(failed("seal"))
}

/// Whose jail it is shows in the table of mounts.
fn tmpfs(name: &Path, target: &Path, options: &str, no_devices: bool) -> rustix::io::Result<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    if no_devices {
        flags |= MountFlags::NODEV;
    }
    let options = CString::new(options).unwrap_or_default();
    mount(name, target, "tmpfs", flags, options.as_c_str())
}

/// Where an absolute path is below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
    parts.fold(root.to_owned(), |at, part| at.join(part))
}

fn make_dirs(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn show(root: &Path, view: &View) -> io::Result<()> {
    // A folder of the old layout that is a link is made again as a link.
    if LINKS.iter().any(|link| view.path == Path::new(link)) && view.path.is_symlink() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let source = match view.mount {
        Some(number) => take(number)?,
        None => match rustix::fs::open(&view.path, flags, Mode::empty()) {
            Ok(source) => source,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
    };
    let target = inside(root, &view.path);
    let is_there = target.exists();
    if FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) == FileType::Directory {
        if !is_there {
            make_dirs(&target)?;
        }
    } else if !is_there {
        make_dirs(target.parent().unwrap_or(root))?;
        File::create(&target)?;
    }
    if view.mount.is_some() {
        return crate::mount::attach(source, &target);
    }
    let (read_only, executable) = match view.access {
        Access::Execute => (true, true),
        Access::Read => (true, false),
        Access::Write => (false, false),
    };
    bind_restricted(source, &target, read_only, executable)
}

fn devices(root: &Path, jail: &Jail) -> io::Result<()> {
    let folder = root.join("dev");
    make_dirs(&folder)?;
    tmpfs(root, &folder, "size=4k,nr_inodes=32,mode=755", false)?;
    for device in &jail.devices {
        let host = Path::new("/dev").join(device.name());
        let Ok(meta) = host.metadata() else { continue };
        if !meta.file_type().is_char_device() {
            continue;
        }
        device_node(&folder, *device, &host, meta.rdev(), jail.user)?;
    }
    symlink("/proc/self/fd", folder.join("fd"))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount_remount(&folder, flags, "")?)
}

fn device_node(folder: &Path, device: Device, host: &Path, number: u64, user: Option<u32>) -> io::Result<()> {
    let path = folder.join(device.name());
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let mode = match device {
        Device::Kvm => Mode::from_raw_mode(0o600),
        _ => Mode::from_raw_mode(0o666),
    };
    match rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(major, minor)) {
        Ok(()) => {
            rustix::fs::chmod(&path, mode)?;
            if let Some(user) = user {
                rustix::fs::chown(&path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
            }
            Ok(())
        }
        // In a user namespace, or in a container: the host's node, with its own permissions.
        Err(Errno::PERM) => {
            File::create(&path)?;
            Ok(rustix::mount::mount_bind(host, &path)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// `/proc` of the own pid namespace; of another one it would show other processes.
fn proc(root: &Path, jail: &Jail, own: &Namespaces) -> rustix::io::Result<()> {
    let target = root.join("proc");
    make_dirs(&target).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    if !has_process_namespace() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let options = if jail.system_proc { c"" } else { c"subset=pid" };
    match mount("proc", &target, "proc", flags, options) {
        // Before Linux 5.8.
        Err(Errno::INVAL) if !jail.system_proc => mount("proc", &target, "proc", flags, c""),
        Err(Errno::PERM) if own.user => Ok(()),
        other => other,
    }
}

fn change_root(root: &Path) -> rustix::io::Result<()> {
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

fn limit(jail: &Jail) -> Result<(), JailError> {
    let limits = jail.limits;
    let each = [
        (Resource::Core, Some(0)),
        (Resource::Nofile, limits.descriptors),
        (Resource::Nproc, limits.processes),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Data, limits.private_bytes),
    ];
    for (resource, wanted) in each {
        let Some(wanted) = wanted else { continue };
        // Without privilege a limit can only become smaller.
        let highest = getrlimit(resource).maximum.map_or(wanted, |hard| hard.min(wanted));
        let limit = Rlimit {
            current: Some(highest),
            maximum: Some(highest),
        };
        setrlimit(resource, limit).map_err(|e| JailError::new(format!("limit {resource:?}"), e))?;
    }
    Ok(())
}

/// Gives up groups, identity and capabilities.
fn become_user(jail: &Jail, own: &Namespaces) -> Result<(), JailError> {
    let failed = |action: &'static str| move |e: Errno| JailError::new(action, e);
    let kept = jail.capabilities.iter().fold(CapabilitySet::empty(), |set, number| {
        set | CapabilitySet::from_bits_retain(1 << number)
    });
    rustix::thread::clear_ambient_capability_set().map_err(failed("clear ambient capabilities"))?;
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the kernel's last one; or there are none to lose.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(JailError::new("bound capabilities", error)),
        }
    }
    // A user of its own sees its files by mounts alone.
    if let (Some(user), true, false) = (jail.user, own.mounts, own.user)
        && rustix::process::geteuid().is_root()
    {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        rustix::thread::set_thread_groups(&[]).map_err(failed("leave all groups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    }
    let had = rustix::thread::capabilities(None)
        .map_err(failed("read capabilities"))?
        .permitted;
    let left = had & kept;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(failed("drop capabilities"))
}

/// Asks again for the signal at the end of the parent: the change of user has cancelled it.
fn die_with_parent(jail: &Jail) -> Result<(), JailError> {
    let failed = |e: Errno| JailError::new("follow its parent", e);
    let Some(number) = jail.parent else { return Ok(()) };
    let parent = take(number).map_err(|e| JailError::new("follow its parent", e))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    // It may have ended in between; then its pidfd is readable.
    let mut polled = [PollFd::new(&parent, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&now)).map_err(failed)? {
        0 => Ok(()),
        _ => Err(JailError::new("follow its parent", Errno::SRCH)),
    }
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    crate::fd::take_inherited(number)
}
