//! The tree of a directory without contents.
//!
//! Nothing is opened but directories and no link is followed (only the source itself may be one). Regular files are
//! listed for reading; what they are is decided again when they are opened.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use zmachine_flist::{Metadata, Node, NodeId, NodeKind, TreeBuilder};

use super::{PackError, xattr};

/// A regular file to read.
#[derive(Debug)]
pub(super) struct FileToRead {
    pub(super) node: NodeId,
    pub(super) path: PathBuf,
    /// When it was scanned.
    pub(super) size: u64,
}

/// A tree whose files are still empty.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) builder: TreeBuilder,
    pub(super) files: Vec<FileToRead>,
    /// Sum of the sizes of the files.
    pub(super) bytes: u64,
    /// Names of files that had a name already, which became hard links.
    pub(super) hard_links: u64,
    /// Attributes of overlayfs, which were left out.
    pub(super) overlay_xattrs: AtomicU64,
}

/// Scans everything below `source`.
pub(super) fn scan(source: &Path) -> Result<Scan, PackError> {
    let root = fs::metadata(source).map_err(failed("look at", source))?;
    if !root.is_dir() {
        return Err(PackError::NotADirectory { path: source.into() });
    }
    let mut top = metadata(&root);
    let overlay = AtomicU64::new(0);
    top.xattrs = xattr::of_path(&source.canonicalize().map_err(failed("find", source))?, &overlay)?;
    let builder = TreeBuilder::new(top);
    let mut scan = Scan {
        builder,
        files: Vec::new(),
        bytes: 0,
        hard_links: 0,
        overlay_xattrs: overlay,
    };
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut directories = vec![(NodeId::ROOT, source.to_path_buf())];
    while let Some((directory, path)) = directories.pop() {
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            let path = entry.path();
            let stat = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
            let tree_error = |error| PackError::Tree {
                path: path.clone(),
                source: error,
            };
            let (name, inode) = (entry.file_name().into_vec(), (stat.dev(), stat.ino()));
            if let Some(first) = linked.get(&inode).filter(|_| !stat.is_dir()) {
                scan.builder.link(directory, name, *first).map_err(tree_error)?;
                scan.hard_links += 1;
                continue;
            }
            let mut metadata = metadata(&stat);
            if !stat.is_file() {
                metadata.xattrs = xattr::of_path(&path, &scan.overlay_xattrs)?;
            }
            let node = Node {
                metadata,
                kind: kind(&path, &stat)?,
            };
            let id = scan.builder.add(directory, name, node).map_err(tree_error)?;
            if !stat.is_dir() && stat.nlink() > 1 {
                linked.insert(inode, id);
            }
            if stat.is_dir() {
                directories.push((id, path));
            } else if stat.is_file() {
                scan.bytes += stat.len();
                scan.files.push(FileToRead {
                    node: id,
                    path,
                    size: stat.len(),
                });
            }
        }
    }
    Ok(scan)
}

/// Names the file that something failed on.
pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> PackError {
    move |source| PackError::Source {
        action,
        path: path.into(),
        source,
    }
}

/// What a flist keeps of a `stat`.
pub(super) fn metadata(stat: &fs::Metadata) -> Metadata {
    Metadata {
        mode: (stat.mode() & 0o7777) as u16,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: stat.mtime(),
        mtime_nsec: u32::try_from(stat.mtime_nsec()).unwrap_or_default(),
        ctime: stat.ctime(),
        ..Metadata::default()
    }
}

/// The node without entries or blocks; the target of a link is read here.
fn kind(path: &Path, stat: &fs::Metadata) -> Result<NodeKind, PackError> {
    let kind = stat.file_type();
    let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    Ok(if kind.is_dir() {
        NodeKind::Directory(Vec::new())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed("read the link", path))?;
        NodeKind::Symlink(target.as_os_str().as_bytes().to_vec())
    } else if kind.is_char_device() {
        NodeKind::CharDevice { major, minor }
    } else if kind.is_block_device() {
        NodeKind::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else if kind.is_socket() {
        NodeKind::Socket
    } else {
        NodeKind::Regular {
            size: 0,
            blocks: Vec::new(),
        }
    })
}
