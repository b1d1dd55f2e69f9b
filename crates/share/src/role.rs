//! The `share` role: a process that puts a tree together, for itself alone, and becomes virtiofsd over it.
//!
//! # Layout of a machine's layer
//! ```text
//! <layer>/lock      locked by whoever serves it
//! <layer>/upper     what the machine has written over its image
//! <layer>/work      overlayfs's own
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use thiserror::Error;
use zmachine_sys::jail::{self, Access, Jail, JailError, Limits};
use zmachine_sys::{fd, mount};

use crate::server::{MissingServer, Sandbox, Server};

/// How long the processes of a run before may take to leave the layer. They are being killed when this one starts.
const LAYER_TIMEOUT: Duration = Duration::from_secs(20);

/// Private memory that virtiofsd may have in bytes: its threads' stacks (8 MiB each, reserved), and what it knows of open files.
const PRIVATE_BYTES: u64 = 2 << 30;

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// A directory of the host.
    Directory {
        /// Absolute path without links.
        path: PathBuf,
        /// Nothing in it can be changed.
        read_only: bool,
    },
    /// A directory of the host that is a mount point with shared propagation, with all that is mounted in it, now and later. Nothing
    /// but what is mounted in it can be changed.
    Following {
        /// Absolute path without links.
        path: PathBuf,
    },
    /// An unpacked image.
    Image {
        /// Its directory, which is never written.
        image: PathBuf,
        /// What is written goes there, made when missing; `None`: nothing can be written.
        layer: Option<PathBuf>,
    },
}

/// What the role is started with.
#[derive(Debug)]
pub struct ShareArgs {
    /// The listening socket that the hypervisor connects to.
    pub listener: OwnedFd,
    /// An empty directory.
    pub mount_point: PathBuf,
    /// What is served.
    pub tree: Tree,
    /// What the process locks itself into before it becomes virtiofsd; `None`: it has virtiofsd's own sandbox alone.
    pub jail: Option<Jail>,
}

/// Why a tree cannot be served.
#[derive(Debug, Error)]
pub enum ShareError {
    /// No program to serve it.
    #[error(transparent)]
    MissingServer(#[from] MissingServer),
    /// What is to be shared is not a directory any more.
    #[error("cannot share {}", path.display())]
    Source {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer is another process's.
    #[error("the writable layer {} is still in use", layer.display())]
    LayerInUse {
        /// The layer.
        layer: PathBuf,
    },
    /// The process cannot be locked in; it serves nothing then.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A step that the host refused.
    #[error("cannot {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> ShareError {
    move |source| ShareError::Process {
        action,
        source: source.into(),
    }
}

/// Waits until standard input is at its end, then serves. Returns only when that fails. Call it in the main thread, before
/// any other is started.
///
/// # Errors
/// [`ShareError`]; nothing is left then.
pub fn become_server(args: &ShareArgs) -> ShareError {
    match prepare(args) {
        Ok(mut command) => failed("start virtiofsd")(command.exec()),
        Err(error) => error,
    }
}

fn prepare(args: &ShareArgs) -> Result<Command, ShareError> {
    // Whoever started this one first writes down that it did: everything from here on belongs to its machine.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let server = Server::find()?;
    let own_mounts = match &args.tree {
        Tree::Following { .. } => mount::make_following(),
        Tree::Directory { .. } | Tree::Image { .. } => mount::make_private(),
    };
    own_mounts.map_err(failed("get a mount namespace of its own (this needs root)"))?;
    let mut following = None;
    let is_root = match &args.tree {
        Tree::Directory { path, read_only } => {
            // It had no links when it was written down: one that appeared since leads where nobody agreed to.
            bind(path, ResolveFlags::NO_SYMLINKS, &args.mount_point, *read_only)?;
            false
        }
        Tree::Following { path } => {
            let source = directory(path, ResolveFlags::NO_SYMLINKS)?;
            // Itself it is read-only, so that a guest has nothing there to put in the way of who mounts on this host; what is mounted
            // in it is as its own mount says.
            let tree = mount::copy_tree(source, true).map_err(|source| ShareError::Source {
                path: path.clone(),
                source,
            })?;
            match args.jail {
                // There it goes in at the end: on the way in, every mount that is at a path gets lost to the host.
                Some(_) => following = Some(tree),
                None => mount::attach(tree, &args.mount_point).map_err(failed("put the tree together"))?,
            }
            false
        }
        Tree::Image { image, layer: None } => {
            bind(image, ResolveFlags::empty(), &args.mount_point, true)?;
            true
        }
        Tree::Image {
            image,
            layer: Some(layer),
        } => {
            overlay(image, layer, &args.mount_point)?;
            true
        }
    };
    fd::set_inheritable(args.listener.as_fd(), true).map_err(failed("pass the socket on"))?;
    if let Some(base) = &args.jail {
        let tree = following.as_ref().map(AsRawFd::as_raw_fd);
        jail::enter(&locked_in(base, server.program(), &args.mount_point, tree))?;
        // The jail has taken it.
        std::mem::forget(following.take());
    }
    let mut command = Command::new(server.program());
    command.arg0("virtiofsd");
    let sandbox = match args.jail {
        Some(_) => Sandbox::ChangedRoot,
        None => Sandbox::Namespaces,
    };
    command.args(server.arguments(&args.mount_point, args.listener.as_raw_fd(), is_root, sandbox));
    Ok(command)
}

/// What it takes to make files as any user, which is what a guest's root does: the capabilities that virtiofsd itself keeps,
/// by their numbers in linux/capability.h.
const OF_FILES: [u32; 8] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    27, // CAP_MKNOD
    31, // CAP_SETFCAP
];

/// What it takes until then: CAP_SETPCAP to give the rest up, CAP_SYS_CHROOT to make the tree its root.
const TO_START: [u32; 2] = [8, 18];

/// virtiofsd's jail. It is root, because files of all users are behind it; all it can see is the tree.
fn locked_in(base: &Jail, program: &Path, tree: &Path, mount: Option<RawFd>) -> Jail {
    let mut jail = Jail {
        user: None,
        capabilities: OF_FILES.iter().chain(&TO_START).copied().collect(),
        // It asks the system for the number of files it may have open.
        system_proc: true,
        // Which files of the tree are reached is the guest's business; where they end is a matter of mounts.
        own_landlock: true,
        limits: Limits {
            private_bytes: Some(PRIVATE_BYTES),
            ..Limits::default()
        },
        ..base.clone()
    };
    jail = jail.see_program(program);
    match mount {
        Some(mount) => jail.see_mount(tree, Access::Write, mount),
        None => jail.see(tree, Access::Write),
    }
}

fn directory(path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, ShareError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|e| ShareError::Source {
        path: path.to_owned(),
        source: e.into(),
    })
}

fn bind(path: &Path, resolve: ResolveFlags, target: &Path, read_only: bool) -> Result<(), ShareError> {
    mount::bind_tree(directory(path, resolve)?, target, read_only).map_err(|source| ShareError::Source {
        path: path.to_owned(),
        source,
    })
}

/// Mounts the image with the layer above it.
fn overlay(image: &Path, layer: &Path, target: &Path) -> Result<(), ShareError> {
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    let is_new = !upper.exists();
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    for (path, mode) in [(layer, 0o700), (&work, 0o700), (&upper, 0o755)] {
        builder
            .mode(mode)
            .create(path)
            .map_err(failed("make the writable layer"))?;
    }
    lock(layer)?;
    let ours = ResolveFlags::empty();
    let image = directory(image, ours)?;
    if is_new {
        // The root of the overlay has the owner and mode of its upper directory.
        let stat = rustix::fs::statat(&image, ".", AtFlags::empty()).map_err(failed("look at the image"))?;
        let owner = (
            Some(rustix::fs::Uid::from_raw(stat.st_uid)),
            Some(rustix::fs::Gid::from_raw(stat.st_gid)),
        );
        rustix::fs::chown(&upper, owner.0, owner.1).map_err(failed("make the writable layer"))?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        rustix::fs::chmod(&upper, mode).map_err(failed("make the writable layer"))?;
    }
    let (upper, work) = (directory(&upper, ours)?, directory(&work, ours)?);
    // By descriptor: the paths of a home may have commas and colons. redirect_dir: a directory of the image can be renamed.
    let by_number = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on",
        by_number(&image),
        by_number(&upper),
        by_number(&work)
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
        .map_err(failed("mount the image with its writable layer (overlayfs)"))?;
    if is_new {
        remove_host_keys(target).map_err(failed("remove the image's ssh host keys"))?;
    }
    Ok(())
}

/// Takes the layer's lock for this process and all that come from it.
fn lock(layer: &Path) -> Result<(), ShareError> {
    let path = layer.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed("lock the writable layer"))?;
    let deadline = Instant::now() + LAYER_TIMEOUT;
    while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        match error {
            Errno::WOULDBLOCK if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Errno::WOULDBLOCK => {
                return Err(ShareError::LayerInUse {
                    layer: layer.to_owned(),
                });
            }
            other => return Err(failed("lock the writable layer")(other)),
        }
    }
    fd::set_inheritable(file.as_fd(), true).map_err(failed("lock the writable layer"))?;
    // It stays open for as long as any of the processes lives.
    std::mem::forget(file);
    Ok(())
}

/// Removes `/etc/ssh/ssh_host_*`: host keys are a machine's own. No link of the tree leads out of it.
fn remove_host_keys(tree: &Path) -> io::Result<()> {
    let root = fs::File::open(tree)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat2(&root, "etc/ssh", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(folder) => folder,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut keys = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let name = entry?.file_name().to_owned();
        if name.to_bytes().starts_with(b"ssh_host_") {
            keys.push(name);
        }
    }
    for name in keys {
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::ISDIR | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_real_directory_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("f"), "").unwrap();
        std::os::unix::fs::symlink("d", root.join("l")).unwrap();
        let open = |name: &str| directory(&root.join(name), ResolveFlags::NO_SYMLINKS);
        open("d").unwrap();
        for (name, wanted) in [("f", Errno::NOTDIR), ("l", Errno::LOOP), ("none", Errno::NOENT)] {
            let ShareError::Source { source, path } = open(name).unwrap_err() else {
                panic!("another error");
            };
            assert_eq!(source.raw_os_error(), Some(wanted.raw_os_error()), "{name}");
            assert!(path.ends_with(name));
        }
    }

    #[test]
    fn host_keys_go_and_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("ssh_host_rsa_key"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("etc/ssh")).unwrap();
        remove_host_keys(&tree).unwrap();
        assert!(outside.join("ssh_host_rsa_key").exists());
        fs::remove_file(tree.join("etc/ssh")).unwrap();
        fs::create_dir(tree.join("etc/ssh")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(tree.join("etc/ssh").join(name), "").unwrap();
        }
        remove_host_keys(&tree).unwrap();
        let left: Vec<_> = fs::read_dir(tree.join("etc/ssh")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
    }
}
