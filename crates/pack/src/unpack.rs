//! Unpacking: from a flist to a directory of the host.
//!
//! The target is made by the unpacking, or is empty. A tree can name nothing outside of itself: a name is one path
//! component and never `.` or `..` (an invariant of [`zmachine_flist::Tree`]), a directory is always made by `mkdir`, files
//! with `O_EXCL`, and nothing is ever written through a symbolic link of the tree, because what an entry is made in was
//! made as a directory right before. So links may lead anywhere and hurt nobody who does not follow them.
//!
//! Order: directories with mode 0700; files, in batches and in parallel; further names of files, links and specials; last
//! the metadata of directories, deepest first, because making entries changes it. Per file: content, owner, mode (a change
//! of owner drops setuid), attributes (likewise capabilities), times; owner and mode are only set where they are not right
//! already. Whole blocks of zeros become holes. A failure removes what was made.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use thiserror::Error;
use zmachine_flist::{BlockRef, Flist, Metadata, Node, NodeId, NodeKind, Opener};
use zmachine_image::fetch::{FetchError, Fetcher};
use zmachine_image::progress::Progress;

use crate::batch::{LARGE_TOGETHER, Spares, batches};
use crate::pack::{PackError, is_kept_xattr, thread_pool};
use crate::zeros;

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnpackOptions {
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// Files belong to who unpacks, and have no setuid, setgid and `trusted.*`; devices are left out. For who is not root.
    pub unprivileged: bool,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackReport {
    /// Nodes of every kind.
    pub nodes: u64,
    /// Sum of the sizes of the regular files.
    pub bytes: u64,
    /// Devices that were left out.
    pub devices_left_out: u64,
}

/// Why a flist could not be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The target holds something already.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// Something below the target could not be made.
    #[error("cannot {action} {}", path.display())]
    Target {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A block could not be had.
    #[error("{file} cannot be read from the flist's stores")]
    Fetch {
        /// The file in the flist.
        file: String,
        /// Why.
        source: FetchError,
    },
    /// The threads could not be started.
    #[error("cannot unpack")]
    Threads {
        /// Why.
        source: PackError,
    },
}

impl UnpackError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            UnpackError::NotEmpty { .. } => Some("name a directory that is empty or does not exist yet".into()),
            UnpackError::Fetch { source, .. } => source.hint(),
            UnpackError::Target { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("owners, devices and some attributes need root; --unprivileged leaves them out".into())
            }
            _ => None,
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> UnpackError {
    move |source| UnpackError::Target {
        action,
        path: path.into(),
        source,
    }
}

fn failed_errno(action: &'static str, path: &Path) -> impl Fn(Errno) -> UnpackError {
    move |source| failed(action, path)(source.into())
}

/// Unpacks everything below `target`. Progress is told in bytes.
///
/// # Errors
/// [`UnpackError`]; what was made is removed again, the target too when it was made.
pub fn unpack(
    flist: &Flist,
    target: &Path,
    fetcher: &Fetcher,
    options: UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport, UnpackError> {
    let made = make_target(target)?;
    let pool = thread_pool(options.threads).map_err(|source| UnpackError::Threads { source })?;
    let unpacking = Unpacking {
        flist,
        fetcher,
        options,
        progress,
        left_out: AtomicU64::new(0),
        openers: Spares::default(),
    };
    progress.begin(Some(flist.tree.counts().file_bytes), "unpacking");
    let result = pool.install(|| unpacking.all(target));
    if result.is_err() {
        clear(target, made);
    }
    result?;
    Ok(UnpackReport {
        nodes: flist.tree.len() as u64,
        bytes: flist.tree.counts().file_bytes,
        devices_left_out: unpacking.left_out.into_inner(),
    })
}

/// Makes the target, or finds it empty; whether it was made.
fn make_target(target: &Path) -> Result<bool, UnpackError> {
    match fs::create_dir(target) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("create directory", target)(error)),
    }
    match fs::read_dir(target).map_err(failed("list", target))?.next() {
        None => Ok(false),
        Some(_) => Err(UnpackError::NotEmpty { path: target.into() }),
    }
}

/// Removes what a failed unpacking made. A failure of that is not told: the first one is what matters.
fn clear(target: &Path, made: bool) {
    if made {
        let _ = fs::remove_dir_all(target);
        return;
    }
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
    }
}

struct Unpacking<'a> {
    flist: &'a Flist,
    fetcher: &'a Fetcher,
    options: UnpackOptions,
    progress: &'a dyn Progress,
    left_out: AtomicU64,
    openers: Spares<Opener>,
}

impl Unpacking<'_> {
    fn all(&self, target: &Path) -> Result<(), UnpackError> {
        let tree = &self.flist.tree;
        let (mut directories, mut files, mut others, mut links) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut first: Vec<Option<PathBuf>> = vec![None; tree.len()];
        for (path, id) in tree.walk() {
            let path = target.join(OsStr::from_bytes(&path));
            match &tree.get(id).kind {
                NodeKind::Directory(_) => {
                    if id != NodeId::ROOT {
                        let made = fs::DirBuilder::new().mode(0o700).create(&path);
                        made.map_err(failed("create directory", &path))?;
                    }
                    directories.push((path, id));
                }
                _ if first[id.0 as usize].is_some() => links.push((path, id)),
                NodeKind::Regular { .. } => {
                    first[id.0 as usize] = Some(path.clone());
                    files.push((path, id));
                }
                _ => {
                    first[id.0 as usize] = Some(path.clone());
                    others.push((path, id));
                }
            }
        }
        let sizes = files.iter().map(|(_, id)| size(tree.get(*id)));
        batches(sizes, rayon::current_num_threads())
            .into_par_iter()
            .try_for_each(|batch| self.files(&files[batch]))?;
        others
            .iter()
            .try_for_each(|(path, id)| self.other(path, tree.get(*id)))?;
        for (path, id) in &links {
            let first = first[id.0 as usize].as_deref().unwrap_or(path);
            // The first name of a device that was left out is not there.
            if first.symlink_metadata().is_ok() {
                fs::hard_link(first, path).map_err(failed("create hard link", path))?;
            }
        }
        let backwards = directories.iter().rev();
        backwards
            .into_iter()
            .try_for_each(|(path, id)| self.metadata(path, tree.get(*id)))
    }

    /// A batch of files.
    fn files(&self, files: &[(PathBuf, NodeId)]) -> Result<(), UnpackError> {
        let tree = &self.flist.tree;
        let contents = files
            .iter()
            .map(|(_, id)| tree.get(*id).content().unwrap_or_default().1);
        // Format 1 may have small files of any number of blocks: a few at a time, whatever a store sends for them.
        if contents.clone().any(|blocks| blocks.len() > 1) {
            return files
                .iter()
                .try_for_each(|(path, id)| self.large_file(path, tree.get(*id)));
        }
        let blocks: Vec<BlockRef> = contents.clone().flatten().copied().collect();
        self.openers.with(|opener| {
            let plains = self.fetcher.fetch_batch(&blocks, opener);
            let plains = plains.map_err(|(at, source)| {
                let ends = contents.scan(0, |end, blocks| {
                    *end += blocks.len();
                    Some(*end)
                });
                let path = ends.zip(files).find(|(end, _)| *end > at).map(|(_, (path, _))| path);
                fetch_failure(path.map_or(Path::new(""), PathBuf::as_path), source)
            })?;
            let mut plains = plains.iter();
            for (path, id) in files {
                let node = tree.get(*id);
                let blocks = node.content().unwrap_or_default().1;
                let file = self.create(path, &node.metadata)?;
                for (index, plain) in plains.by_ref().take(blocks.len()).enumerate() {
                    write_block(path, &file, blocks, index, plain)?;
                }
                self.finish(&file, path, node)?;
            }
            let bytes = blocks.iter().map(|block| u64::from(block.len)).sum();
            self.progress.advance(bytes);
            Ok(())
        })
    }

    /// A file of several blocks, written by all threads.
    fn large_file(&self, path: &Path, node: &Node) -> Result<(), UnpackError> {
        let blocks = node.content().unwrap_or_default().1;
        let file = self.create(path, &node.metadata)?;
        let batches = blocks.par_chunks(LARGE_TOGETHER as usize).enumerate();
        batches.try_for_each(|(batch, together)| -> Result<(), UnpackError> {
            self.openers.with(|opener| {
                let first = batch * LARGE_TOGETHER as usize;
                let wanted = (first..).zip(together).filter(|(_, block)| !zeros::is_zeros(block));
                let (places, wanted): (Vec<usize>, Vec<BlockRef>) = wanted.unzip();
                let plains = self.fetcher.fetch_batch(&wanted, opener);
                let plains = plains.map_err(|(_, source)| fetch_failure(path, source))?;
                for (index, plain) in places.into_iter().zip(plains.iter()) {
                    write_block(path, &file, blocks, index, plain)?;
                }
                self.progress
                    .advance(together.iter().map(|block| u64::from(block.len)).sum());
                Ok(())
            })
        })?;
        self.finish(&file, path, node)
    }

    /// Makes a file, for nobody else to read as long as it is not known to have the right owner.
    fn create(&self, path: &Path, meta: &Metadata) -> Result<File, UnpackError> {
        let mine = (rustix::process::geteuid(), rustix::process::getegid());
        let mode = match self.owner(meta).is_none_or(|owner| owner == mine) {
            true => u32::from(meta.mode & 0o777),
            false => 0o600,
        };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.map_err(failed("create", path))
    }

    /// Length and metadata of a file that has its content.
    fn finish(&self, file: &File, path: &Path, node: &Node) -> Result<(), UnpackError> {
        let stat = file.metadata().map_err(failed("look at", path))?;
        // The last blocks may have been holes.
        if stat.len() != size(node) {
            file.set_len(size(node)).map_err(failed("write", path))?;
        }
        self.file_metadata(file, &stat, path, &node.metadata)
    }

    /// Links, devices, pipes, sockets.
    fn other(&self, path: &Path, node: &Node) -> Result<(), UnpackError> {
        let special = |kind, device| {
            let made = rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device);
            made.map_err(failed_errno("create", path))
        };
        match &node.kind {
            NodeKind::Symlink(target) => {
                let made = std::os::unix::fs::symlink(OsStr::from_bytes(target), path);
                made.map_err(failed("create link", path))?;
            }
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } if self.options.unprivileged => {
                self.left_out.fetch_add(1, Relaxed);
                return Ok(());
            }
            NodeKind::CharDevice { major, minor } => {
                special(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))?;
            }
            NodeKind::BlockDevice { major, minor } => {
                special(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))?;
            }
            NodeKind::Fifo => special(FileType::Fifo, 0)?,
            _ => special(FileType::Socket, 0)?,
        }
        self.metadata(path, node)
    }

    /// Owner, mode, attributes and times; of a link the link's own.
    fn metadata(&self, path: &Path, node: &Node) -> Result<(), UnpackError> {
        let meta = &node.metadata;
        if let Some((uid, gid)) = self.owner(meta) {
            let owned = rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            owned.map_err(failed_errno("set the owner of", path))?;
        }
        if !matches!(node.kind, NodeKind::Symlink(_)) {
            rustix::fs::chmod(path, self.mode(meta)).map_err(failed_errno("set the mode of", path))?;
        }
        self.xattrs(path, meta)?;
        let set = rustix::fs::utimensat(CWD, path, &times(meta), AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(failed_errno("set the time of", path))
    }

    /// The same of an open file, without three more walks along its path; `stat` is what it has.
    fn file_metadata(&self, file: &File, stat: &fs::Metadata, path: &Path, meta: &Metadata) -> Result<(), UnpackError> {
        let is_of = |(uid, gid): (Uid, Gid)| (stat.uid(), stat.gid()) == (uid.as_raw(), gid.as_raw());
        let other = self.owner(meta).filter(|owner| !is_of(*owner));
        if let Some((uid, gid)) = other {
            let owned = rustix::fs::fchown(file, Some(uid), Some(gid));
            owned.map_err(failed_errno("set the owner of", path))?;
        }
        if other.is_some() || stat.mode() & 0o7777 != self.mode(meta).as_raw_mode() {
            rustix::fs::fchmod(file, self.mode(meta)).map_err(failed_errno("set the mode of", path))?;
        }
        self.xattrs(path, meta)?;
        rustix::fs::futimens(file, &times(meta)).map_err(failed_errno("set the time of", path))
    }

    /// `None` when the owner stays who unpacks.
    fn owner(&self, meta: &Metadata) -> Option<(Uid, Gid)> {
        let owner = (Uid::from_raw_unchecked(meta.uid), Gid::from_raw_unchecked(meta.gid));
        (!self.options.unprivileged).then_some(owner)
    }

    fn mode(&self, meta: &Metadata) -> Mode {
        let mask = if self.options.unprivileged { 0o1777 } else { 0o7777 };
        Mode::from_raw_mode(u32::from(meta.mode & mask))
    }

    fn xattrs(&self, path: &Path, meta: &Metadata) -> Result<(), UnpackError> {
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| is_kept_xattr(name)) {
            if self.options.unprivileged && !name.starts_with(b"user.") {
                continue;
            }
            let set = rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
            set.map_err(failed_errno("set an attribute of", path))?;
        }
        Ok(())
    }
}

fn times(meta: &Metadata) -> Timestamps {
    let time = Timespec {
        tv_sec: meta.mtime,
        tv_nsec: meta.mtime_nsec.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Size of a regular file.
fn size(node: &Node) -> u64 {
    node.content().map_or(0, |(size, _)| size)
}

fn fetch_failure(path: &Path, source: FetchError) -> UnpackError {
    UnpackError::Fetch {
        file: path.display().to_string(),
        source,
    }
}

/// Writes a block of a file to its place; one of zeros stays a hole.
fn write_block(path: &Path, file: &File, blocks: &[BlockRef], index: usize, plain: &[u8]) -> Result<(), UnpackError> {
    // Every block but the last has the length of the first.
    let offset = index as u64 * u64::from(blocks[0].len);
    if is_zeros(plain) {
        return Ok(());
    }
    file.write_all_at(plain, offset).map_err(failed("write", path))
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Nearly every block that is something else says so in its first bytes.
    let head = bytes.len().min(16);
    bytes[..head].iter().all(|byte| *byte == 0) && bytes.iter().all(|byte| *byte == 0)
}
