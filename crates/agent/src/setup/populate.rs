//! A fresh volume takes over what the image has in its place: owner, mode, attributes and files, once.
//!
//! # The marker
//! An attribute of the volume's own root directory, [`MARKER`], says how far that came. It is in the file system that it
//! speaks of, so no crash, of the guest or the host, can part them:
//!
//! | marker | content | what is done |
//! |---|---|---|
//! | none | nothing | [`FILLING`] is set and synced; everything is copied and synced; [`DONE`] is set and synced |
//! | `filling` | part of the image's files | emptied, and as above |
//! | `done` | whatever processes have made of it | nothing, ever again |
//! | none | something | it was in use before there was a marker: `done` is set |
//!
//! Processes run after `done` is on the disk, so nothing of theirs is ever emptied. `lost+found` is no content: a file
//! system check makes it anew when it needs it.
//!
//! What is mounted below the image's directory is not copied: secrets are in memory for a reason.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr,
    llistxattr, lsetxattr, lstat, mknodat, syncfs, utimensat,
};
use rustix::io::Errno;

use super::error::SetupError;

/// The attribute of a volume's root directory. Of the kind that only the superuser sees.
#[cfg(not(test))]
const MARKER: &str = "trusted.zmachine.volume";
#[cfg(test)]
const MARKER: &str = "user.zmachine.volume";
/// The image's files are being copied.
const FILLING: &[u8] = b"filling";
/// The volume is its users' own.
const DONE: &[u8] = b"done";

/// The largest value of an attribute (`XATTR_SIZE_MAX`) and of a list of names (`XATTR_LIST_MAX`), in bytes.
const ATTRIBUTE: usize = 64 * 1024;

/// How much of a file is on its way at a time, in bytes.
const PIECE: usize = 256 * 1024;

/// How far the volume mounted at `target` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Unmarked,
    Filling,
    Done,
}

/// The directory that is at `target` before the volume is; `None` when the image has none.
///
/// # Errors
/// [`SetupError::Populate`] when it is there and cannot be read: its files are not to be missed without a word.
pub(super) fn open_source(target: &str) -> Result<Option<OwnedFd>, SetupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, target, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(SetupError::Populate {
            path: target.into(),
            source: errno.into(),
        }),
    }
}

/// Has the volume mounted at `target` take `image` over, when that was never done and there is nothing on it yet. Without
/// an `image` nothing is decided: an empty volume may still take another image over.
///
/// # Errors
/// [`SetupError::Populate`] naming the file. The next call begins anew.
pub(super) fn take_over(image: Option<OwnedFd>, target: &str) -> Result<(), SetupError> {
    let root = Path::new(target);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| SetupError::Populate { path, source }
    };
    let progress = progress(root).map_err(at(root))?;
    match progress {
        Progress::Done => return Ok(()),
        Progress::Filling => empty(root).map_err(at(root))?,
        Progress::Unmarked => {
            // Refused when a file system check has put something there.
            let _ = fs::remove_dir(root.join("lost+found"));
            if fs::read_dir(root).map_err(at(root))?.next().is_some() {
                return mark(root, DONE).map_err(at(root));
            }
        }
    }
    let Some(image) = image else {
        return match progress {
            Progress::Filling => unmark(root).map_err(at(root)),
            _ => Ok(()),
        };
    };
    mark(root, FILLING).map_err(at(root))?;
    copy(&image, root)?;
    mark(root, DONE).map_err(at(root))
}

/// That the volume at `target`, which can only be read, is not half of an image's files.
///
/// # Errors
/// [`SetupError::HalfPopulated`], or [`SetupError::Populate`] when that cannot be told.
pub(super) fn require_whole(target: &str) -> Result<(), SetupError> {
    match progress(Path::new(target)) {
        Ok(Progress::Filling) => Err(SetupError::HalfPopulated { target: target.into() }),
        Ok(Progress::Unmarked | Progress::Done) => Ok(()),
        Err(source) => Err(SetupError::Populate {
            path: target.into(),
            source,
        }),
    }
}

fn progress(root: &Path) -> io::Result<Progress> {
    let mut value = Vec::with_capacity(16);
    match lgetxattr(root, MARKER, spare_capacity(&mut value)) {
        Ok(_) if value == FILLING => Ok(Progress::Filling),
        // A later version's word: not ours to empty.
        Ok(_) | Err(Errno::RANGE) => Ok(Progress::Done),
        Err(Errno::NODATA) => Ok(Progress::Unmarked),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets the marker once everything before it is on the disk, and has it there itself.
fn mark(root: &Path, progress: &[u8]) -> io::Result<()> {
    let directory = File::open(root)?;
    syncfs(&directory)?;
    lsetxattr(root, MARKER, progress, XattrFlags::empty())?;
    Ok(syncfs(&directory)?)
}

fn unmark(root: &Path) -> io::Result<()> {
    let directory = File::open(root)?;
    syncfs(&directory)?;
    rustix::fs::lremovexattr(root, MARKER)?;
    Ok(syncfs(&directory)?)
}

fn empty(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Copies what is in the directory `image`, and what the directory itself is like, to `root`.
fn copy(image: &OwnedFd, root: &Path) -> Result<(), SetupError> {
    // What is mounted over it now hides its path, not its descriptor. Nothing else runs yet that could change it.
    let from = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
    let stat = rustix::fs::fstat(image).map_err(|errno| SetupError::Populate {
        path: root.into(),
        source: errno.into(),
    })?;
    let mut copy = Copy {
        device: stat.st_dev,
        linked: BTreeMap::new(),
    };
    copy.children(&from, root)?;
    // The link itself has none of the directory's attributes; its target has.
    let from = from.join(".");
    attributes(&from, root, &stat).map_err(|source| SetupError::Populate {
        path: root.into(),
        source,
    })
}

/// A copy under way. Directories become whole after what is in them, so their times stay.
struct Copy {
    /// Where the image is; another device is something mounted.
    device: u64,
    /// The first copy of every file with several names.
    linked: BTreeMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn children(&mut self, from: &Path, to: &Path) -> Result<(), SetupError> {
        let at = |source| SetupError::Populate {
            path: to.into(),
            source,
        };
        for entry in fs::read_dir(from).map_err(at)? {
            let name = entry.map_err(at)?.file_name();
            self.node(&from.join(&name), &to.join(&name))?;
        }
        Ok(())
    }

    fn node(&mut self, from: &Path, to: &Path) -> Result<(), SetupError> {
        let at = |source| SetupError::Populate {
            path: to.into(),
            source,
        };
        let stat = lstat(from).map_err(|errno| at(errno.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            fs::DirBuilder::new().mode(0o700).create(to).map_err(at)?;
            if stat.st_dev == self.device {
                self.children(from, to)?;
            }
            return attributes(from, to, &stat).map_err(at);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return fs::hard_link(first, to).map_err(at);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), to.to_owned());
        }
        let made = match kind {
            FileType::RegularFile => contents(from, to),
            FileType::Symlink => fs::read_link(from).and_then(|link| std::os::unix::fs::symlink(link, to)),
            _ => mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), stat.st_rdev).map_err(io::Error::from),
        };
        made.and_then(|()| attributes(from, to, &stat)).map_err(at)
    }
}

/// Copies a regular file; zeros become a hole, so a file that is mostly one does not fill the volume.
fn contents(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return to.set_len(length);
        }
        length += count as u64;
        match piece[..count].iter().all(|byte| *byte == 0) {
            true => drop(to.seek(SeekFrom::Start(length))?),
            false => to.write_all(&piece[..count])?,
        }
    }
}

/// Gives `to` what `stat` says of `from`, and its extended attributes. The owner first: a change of it takes the set-user-id
/// bit and file capabilities away.
fn attributes(from: &Path, to: &Path, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(CWD, to, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    extended_attributes(from, to)?;
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn extended_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = Vec::with_capacity(ATTRIBUTE);
    match llistxattr(from, spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    // Those of the overlay that the root is say where its layers are, and ours how far this copy is.
    let kept = names.filter(|name| !name.starts_with(b"trusted.overlay.") && *name != MARKER.as_bytes());
    for name in kept {
        let mut value = Vec::with_capacity(ATTRIBUTE);
        lgetxattr(from, name, spare_capacity(&mut value))?;
        match lsetxattr(to, name, &value, XattrFlags::empty()) {
            // What neither this kernel nor its file systems know, nothing in the guest can ask for.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Bench {
        image: tempfile::TempDir,
        volume: tempfile::TempDir,
    }

    impl Bench {
        /// An image's directory with files, and an empty volume as `mkfs.ext4` leaves it.
        fn new() -> Bench {
            let bench = Bench {
                image: tempfile::tempdir().unwrap(),
                volume: tempfile::tempdir().unwrap(),
            };
            let image = bench.image.path();
            fs::create_dir_all(image.join("conf.d/deep")).unwrap();
            fs::write(image.join("conf.d/a"), "a").unwrap();
            fs::set_permissions(image.join("conf.d/a"), fs::Permissions::from_mode(0o4751)).unwrap();
            fs::hard_link(image.join("conf.d/a"), image.join("b")).unwrap();
            symlink("/nowhere", image.join("link")).unwrap();
            let sparse = File::create(image.join("sparse")).unwrap();
            sparse.set_len(64 << 20).unwrap();
            fs::set_permissions(image, fs::Permissions::from_mode(0o1730)).unwrap();
            lsetxattr(image.join("b"), "user.kind", b"x", XattrFlags::empty()).unwrap();
            fs::create_dir(bench.volume.path().join("lost+found")).unwrap();
            bench
        }

        fn take_over(&self) {
            let image = open_source(self.image.path().to_str().unwrap()).unwrap();
            take_over(image, self.target()).unwrap();
        }

        fn target(&self) -> &str {
            self.volume.path().to_str().unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.volume.path()).unwrap();
            let mut names: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn an_empty_volume_becomes_what_the_image_has() {
        let bench = Bench::new();
        bench.take_over();
        assert_eq!(bench.names(), ["b", "conf.d", "link", "sparse"]);
        let at = |name: &str| bench.volume.path().join(name);
        let (a, b) = (fs::metadata(at("conf.d/a")).unwrap(), fs::metadata(at("b")).unwrap());
        assert_eq!((a.mode() & 0o7777, a.ino()), (0o4751, b.ino()));
        assert_eq!(
            a.mtime_nsec(),
            fs::metadata(bench.image.path().join("b")).unwrap().mtime_nsec()
        );
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/nowhere"));
        let sparse = fs::metadata(at("sparse")).unwrap();
        assert!(sparse.len() == 64 << 20 && sparse.blocks() < 64, "{sparse:?}");
        assert_eq!(fs::metadata(bench.volume.path()).unwrap().mode() & 0o7777, 0o1730);
        let mut value = Vec::with_capacity(8);
        lgetxattr(at("b"), "user.kind", spare_capacity(&mut value)).unwrap();
        assert_eq!(value, b"x");
    }

    #[test]
    fn what_was_done_once_is_never_done_again() {
        let bench = Bench::new();
        bench.take_over();
        empty(bench.volume.path()).unwrap();
        bench.take_over();
        assert!(bench.names().is_empty());
    }

    #[test]
    fn an_interrupted_copy_is_done_again_and_can_not_be_read_before() {
        let bench = Bench::new();
        lsetxattr(bench.volume.path(), MARKER, FILLING, XattrFlags::empty()).unwrap();
        fs::create_dir_all(bench.volume.path().join("conf.d/gone")).unwrap();
        fs::write(bench.volume.path().join("b"), "half").unwrap();
        assert!(matches!(
            require_whole(bench.target()),
            Err(SetupError::HalfPopulated { .. })
        ));
        bench.take_over();
        assert_eq!(fs::read_to_string(bench.volume.path().join("b")).unwrap(), "a");
        assert!(!bench.volume.path().join("conf.d/gone").exists());
        require_whole(bench.target()).unwrap();
    }

    #[test]
    fn a_volume_with_data_of_before_the_marker_keeps_them() {
        let bench = Bench::new();
        fs::write(bench.volume.path().join("data"), "mine").unwrap();
        bench.take_over();
        assert_eq!(bench.names(), ["data"]);
        fs::remove_file(bench.volume.path().join("data")).unwrap();
        bench.take_over();
        assert!(bench.names().is_empty(), "its users emptied it");
    }

    #[test]
    fn without_an_image_directory_an_empty_volume_waits_for_one() {
        let bench = Bench::new();
        take_over(None, bench.target()).unwrap();
        assert!(bench.names().is_empty(), "no lost+found in sight");
        bench.take_over();
        assert_eq!(bench.names().len(), 4);
    }
}
