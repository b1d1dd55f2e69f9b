//! The folder of a pod on this host, and what of it the guest sees.
//!
//! ```text
//! <run>/pods/<key>.lock          held by the pod's shim
//! <run>/pods/<key>/              of the pod
//!   shim.log                     what its shim has to say
//!   share/                       a mount with shared propagation: what is mounted below, the guest sees
//!     <container>/rootfs         the container's root, as the snapshotter describes it
//!     <container>/mounts/<n>     a volume
//!     .modules                   modules of the guest's kernel, where a container may manage networks
//! ```
//! It is outside of containerd's bundle: containerd removes a bundle with everything in it, and what is mounted here is not its own. The
//! mounts are in the shim's own namespace (see [`crate::host`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use zmachine_sys::mount::{VolumeOptions, attach};

use zmachine_flist::Digest;
use zmachine_spec::pod::IMAGE_OPTION;

use crate::error::ShimError;
use crate::etc::{self, EtcFiles};
use crate::host;
use crate::layers;
use crate::names::{MountOptions, mount_options};
use crate::translate::{HostBind, MODULES, MOUNTS, ROOT};

/// As many digits of a pod's key as its folder has.
const DIGITS: usize = 16;

/// The folder of a container's layers, where the host has to mount them.
const LAYERS: &str = "layers";

/// The most that the kernel takes as the data of one mount(2), in bytes.
const DATA_LIMIT: usize = 4095;

/// How often one who waits for a pod's folder looks whether it is free.
const LOOK: Duration = Duration::from_millis(50);

/// A pod's folder.
#[derive(Debug, Clone)]
pub(crate) struct PodFolder {
    path: PathBuf,
}

/// The right to have a pod's folder, which its shim holds for as long as it lives.
#[derive(Debug)]
pub(crate) struct PodLock {
    path: PathBuf,
    _file: File,
}

impl Drop for PodLock {
    fn drop(&mut self) {
        // Before it is free: whoever waits for it looks whether the file is still the one at the path.
        let _ = fs::remove_file(&self.path);
    }
}

/// A mount that a snapshotter describes.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

impl SnapshotMount {
    /// The image that it stands for, when it is of our snapshotter.
    pub(crate) fn image(&self) -> Option<Result<Digest, ShimError>> {
        let digest = self
            .options
            .iter()
            .find_map(|option| option.strip_prefix(IMAGE_OPTION))?;
        let unreadable = |_| ShimError::Invalid(format!("{digest}: this is not the digest of an image"));
        Some(digest.parse().map_err(unreadable))
    }
}

impl PodFolder {
    /// That of the pod `key`, below the run folder of the state.
    pub(crate) fn of(run: &Path, key: &str) -> PodFolder {
        PodFolder {
            path: run.join("pods").join(&key[..DIGITS.min(key.len())]),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn make(&self) -> io::Result<()> {
        zmachine_sys::file::make_dirs(&self.path).map_err(io::Error::other)
    }

    /// Takes the right to it, once a shim that is ending has given it back; `None`: not within `patience`.
    ///
    /// # Errors
    /// When there can be no lock.
    pub(crate) fn lock(&self, patience: Duration) -> io::Result<Option<PodLock>> {
        let path = self.path.with_extension("lock");
        if let Some(folder) = path.parent() {
            zmachine_sys::file::make_dirs(folder).map_err(io::Error::other)?;
        }
        let deadline = Instant::now() + patience;
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let (own, there) = (file.metadata()?, fs::metadata(&path));
                    if there.is_ok_and(|there| (there.ino(), there.dev()) == (own.ino(), own.dev())) {
                        return Ok(Some(PodLock { path, _file: file }));
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Where the shim writes what it has to say.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("shim.log")
    }

    /// What the guest sees.
    pub(crate) fn share(&self) -> PathBuf {
        self.path.join("share")
    }

    /// Makes the share.
    ///
    /// # Errors
    /// Naming the step.
    pub(crate) fn make_share(&self) -> Result<(), ShimError> {
        let share = self.share();
        let failed = |error: io::Error| ShimError::failed(&format!("cannot share {}", share.display()), error);
        zmachine_sys::file::make_dirs(&share).map_err(|error| failed(io::Error::other(error)))?;
        mount_bind(&share, &share).map_err(|e| failed(e.into()))?;
        // First a group of its own: in that of its parent, the mount would go round and round.
        mount_change(&share, MountPropagationFlags::PRIVATE).map_err(|e| failed(e.into()))?;
        mount_change(&share, MountPropagationFlags::SHARED).map_err(|e| failed(e.into()))
    }

    fn container(&self, id: &str) -> PathBuf {
        self.share().join(id)
    }

    /// Brings the root of a container to the guest.
    ///
    /// # Errors
    /// Naming the mount; nothing is left then.
    pub(crate) fn mount_root(&self, id: &str, mounts: &[SnapshotMount], bundle_root: &Path) -> Result<(), ShimError> {
        let target = self.container(id).join(ROOT);
        make(&target)?;
        let all = VolumeOptions {
            recursive: true,
            ..VolumeOptions::default()
        };
        let (what, root) = match mounts {
            // containerd has put it into the bundle.
            [] => (bundle_root.display().to_string(), host::copy_volume(bundle_root, all)),
            mounts if layers::of(mounts)?.is_some() => {
                let layers = layers::of(mounts)?.unwrap_or_default();
                let places: Vec<PathBuf> = (0..layers.len())
                    .map(|number| self.container(id).join(LAYERS).join(number.to_string()))
                    .collect();
                let stack = layers::stack(mounts, &places)?;
                places.iter().try_for_each(|place| make(place))?;
                let mount = || {
                    let mut all = layers.iter().zip(&places);
                    all.try_for_each(|(layer, place)| mount_snapshot(&layers::on_host(layer), place))?;
                    mount_snapshot(&stack, &target)
                };
                (
                    format!("{} layers of EROFS", layers.len()),
                    host::mounted(&target, mount),
                )
            }
            mounts => {
                let names: Vec<String> = mounts
                    .iter()
                    .map(|mount| format!("{} {}", mount.kind, mount.source))
                    .collect();
                let mount = || mounts.iter().try_for_each(|mount| mount_snapshot(mount, &target));
                (names.join(", "), host::mounted(&target, mount))
            }
        };
        let mounted = root.and_then(|root| attach(root, &target));
        let failed = |error| ShimError::failed(&format!("cannot mount the root of a container ({what})"), error);
        mounted.map_err(failed).inspect_err(|_| drop(self.remove_container(id)))
    }

    /// Brings volumes of a container to the guest.
    ///
    /// # Errors
    /// Naming the volume.
    pub(crate) fn bind_all(&self, id: &str, binds: &[HostBind]) -> Result<(), ShimError> {
        let folder = self.container(id).join(MOUNTS);
        make(&folder)?;
        for bind in binds {
            let target = folder.join(&bind.name);
            bind_one(bind, &target).map_err(|error| {
                ShimError::failed(&format!("cannot bring {} to the pod", bind.source.display()), error)
            })?;
        }
        Ok(())
    }

    /// Brings files to the guest that all containers have in common.
    ///
    /// # Errors
    /// Naming the file.
    pub(crate) fn bring_files(&self, files: &EtcFiles) -> Result<(), ShimError> {
        let (own, shared) = (self.path.join("etc"), self.share().join(etc::FOLDER));
        make(&own)?;
        make(&shared)?;
        for (name, contents) in files.all() {
            let bind = HostBind {
                source: own.join(name),
                name: name.to_owned(),
                options: VolumeOptions::default(),
            };
            let written = fs::write(&bind.source, contents).and_then(|()| bind_one(&bind, &shared.join(name)));
            written.map_err(|error| ShimError::failed(&format!("cannot bring /etc/{name} to the pod"), error))?;
        }
        Ok(())
    }

    /// Brings the kernel modules in `folder` to the guest.
    ///
    /// # Errors
    /// Naming the folder.
    pub(crate) fn bind_modules(&self, folder: &Path) -> Result<(), ShimError> {
        let bind = HostBind {
            source: folder.to_owned(),
            name: MODULES.to_owned(),
            options: VolumeOptions {
                read_only: true,
                ..VolumeOptions::default()
            },
        };
        let target = self.share().join(MODULES);
        if target.exists() {
            return Ok(());
        }
        bind_one(&bind, &target)
            .map_err(|error| ShimError::failed(&format!("cannot bring {} to the pod", folder.display()), error))
    }

    /// Unmounts what is a container's, and removes its folder.
    ///
    /// # Errors
    /// When something stays.
    pub(crate) fn remove_container(&self, id: &str) -> io::Result<()> {
        clear(&self.container(id))
    }

    /// Unmounts and removes everything.
    ///
    /// # Errors
    /// When something stays.
    pub(crate) fn remove(&self) -> io::Result<()> {
        clear(&self.path)
    }
}

fn make(folder: &Path) -> Result<(), ShimError> {
    fs::create_dir_all(folder).map_err(|error| ShimError::failed(&format!("cannot make {}", folder.display()), error))
}

fn bind_one(bind: &HostBind, target: &Path) -> io::Result<()> {
    let volume = host::copy_volume(&bind.source, bind.options)?;
    match fs::metadata(format!("/proc/self/fd/{}", volume.as_raw_fd()))?.is_dir() {
        true => fs::create_dir(target)?,
        false => drop(fs::File::create_new(target)?),
    }
    attach(volume, target)
}

/// Whether something is mounted below a path of the host.
pub(crate) fn has_mounts_below(path: &Path) -> bool {
    let looked = host::within(|| {
        // As the kernel names it.
        let path = fs::canonicalize(path)?;
        let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let has_some = mount_points(&table).any(|point| point != path && point.starts_with(&path));
        Ok(has_some)
    });
    looked.unwrap_or(false)
}

fn mount_snapshot(wanted: &SnapshotMount, target: &Path) -> io::Result<()> {
    let options = mount_options(&wanted.options);
    let flags = MountFlags::from_bits_retain(options.flags as u32);
    if wanted.kind == "bind" || options.bind.is_some() {
        mount_bind_recursive(&wanted.source, target)?;
        if !flags.is_empty() {
            mount_remount(target, MountFlags::BIND | flags, "")?;
        }
        return Ok(());
    }
    mount_new(wanted, &options, flags, target)
}

fn mount_new(wanted: &SnapshotMount, options: &MountOptions, flags: MountFlags, target: &Path) -> io::Result<()> {
    let mount_at = |source: &str, target: &Path, data: &str| {
        let data = std::ffi::CString::new(data)?;
        Ok(mount(source, target, wanted.kind.as_str(), flags, data.as_c_str())?)
    };
    if options.data.len() <= DATA_LIMIT || wanted.kind != "overlay" {
        return mount_at(&wanted.source, target, &options.data);
    }
    // More layers than paths fit: they are named from a folder that they have in common. This thread is there for nothing else.
    let (folder, data) = shortened(&options.data)
        .filter(|(_, data)| data.len() <= DATA_LIMIT)
        .ok_or_else(|| io::Error::other("it has more layers than one mount takes"))?;
    zmachine_sys::mount::in_folder(&folder, || mount_at(&wanted.source, target, &data))
}

/// The options of an overlay with paths of layers from the folder that all of them are in.
fn shortened(data: &str) -> Option<(PathBuf, String)> {
    let options: Vec<&str> = data.split(',').collect();
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut folder = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(folder)) {
        folder = folder.parent()?;
    }
    let short: Vec<String> = layers
        .iter()
        .map(|layer| layer.strip_prefix(folder).unwrap_or(layer).display().to_string())
        .collect();
    let options: Vec<String> = options
        .iter()
        .map(|option| match option.starts_with("lowerdir=") {
            true => format!("lowerdir={}", short.join(":")),
            false => (*option).to_owned(),
        })
        .collect();
    Some((folder.to_owned(), options.join(",")))
}

/// Unmounts all that is mounted at or below a path, and removes the path itself. What cannot be unmounted stays, with all that leads
/// to it: nothing that is another one's is ever removed through a mount.
fn clear(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = mount_points(&text).filter(|point| point.starts_with(path)).collect();
    points.reverse();
    for point in &points {
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    let after = fs::read_to_string("/proc/self/mountinfo")?;
    if mount_points(&after).any(|point| point.starts_with(path)) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The paths of a table of mounts, in its order.
fn mount_points(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| {
        let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .into_iter()
            .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain));
        PathBuf::from(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_whatever_their_names() {
        let text = "22 1 0:20 / / rw - ext4 x rw\n31 22 0:3 / /run/a\\040b rw shared:1 - tmpfs t rw\n";
        let points: Vec<_> = mount_points(text).collect();
        assert_eq!(points, [PathBuf::from("/"), "/run/a b".into()]);
    }

    #[test]
    fn many_layers_are_named_from_where_they_all_are() {
        let data = "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/8/fs:/s/71/fs";
        let (folder, short) = shortened(data).unwrap();
        assert_eq!(folder, Path::new("/s"));
        assert_eq!(
            short,
            "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=8/fs:71/fs"
        );
        assert_eq!(shortened("upperdir=/a"), None);
    }

    #[test]
    fn a_pod_of_the_same_name_waits_until_the_one_before_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let pod = PodFolder::of(folder.path(), &"0123456789abcdef".repeat(4));
        let held = pod.lock(Duration::ZERO).unwrap().unwrap();
        assert!(pod.lock(Duration::from_millis(120)).unwrap().is_none());
        drop(held);
        let again = pod.lock(Duration::ZERO).unwrap().unwrap();
        drop(again);
        assert_eq!(fs::read_dir(folder.path().join("pods")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_without_mounts_is_removed_and_one_that_is_not_there_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let pod = PodFolder::of(folder.path(), &"0123456789abcdef".repeat(4));
        pod.make().unwrap();
        fs::create_dir_all(pod.container("c").join(ROOT)).unwrap();
        pod.remove_container("c").unwrap();
        assert!(!pod.container("c").exists());
        pod.remove().unwrap();
        pod.remove().unwrap();
        assert!(!pod.path.exists());
    }
}
