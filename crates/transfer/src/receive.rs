//! From a stream to files.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, chmodat, makedev, mknodat};
use tar::{Archive, EntryType};

use crate::members::{Member, Members};
use crate::{ROOT, TransferError};

/// What a receiver keeps beside content, names and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Owner and group as numbers; otherwise everything belongs to the receiver.
    pub owner: bool,
    /// The set-user-id, set-group-id and sticky bits; otherwise only read, write and execute.
    pub special_bits: bool,
    /// Devices; otherwise they are left out.
    pub devices: bool,
}

/// A directory that gets its mode and time when everything below it is there: it may forbid writing.
struct Directory {
    path: PathBuf,
    mode: u32,
    modified: SystemTime,
}

/// Puts the stream of a source called `name` to `target`, as `cp -r` does: into a directory that is there, or in its own
/// place. With `contents`, what is in the source directory goes into `target`. `warn` is told of what is left out.
///
/// # Errors
/// When the place is missing, something cannot be written, or the stream wants to lead out of the target.
pub fn receive(
    stream: impl Read,
    target: &Path,
    name: &OsStr,
    contents: bool,
    keep: Keep,
    mut warn: impl FnMut(String),
) -> Result<(), TransferError> {
    let mut archive = Archive::new(stream);
    let mut members = Members::new(&mut archive)?;
    let mut root = None;
    let mut directories = Vec::new();
    while let Some(mut member) = members.next()? {
        let inner = inner(&member.path)?;
        let is_root = inner.as_os_str().is_empty();
        let root = match &root {
            Some(root) => root,
            None => {
                // A stream of contents alone need not have their directory.
                let is_directory = member.entry.header().entry_type().is_dir() || (contents && !is_root);
                root.insert(resolve_target(target, name, contents, is_directory)?)
            }
        };
        let to = match is_root {
            true => root.clone(),
            false => {
                stays_inside(root, &inner, &member.path)?;
                root.join(&inner)
            }
        };
        put(&mut member, root, &to, keep, &mut directories, &mut warn)?;
    }
    for directory in directories.into_iter().rev() {
        finish(&directory.path, directory.mode, directory.modified)?;
    }
    Ok(())
}

/// Where the root of the stream goes.
fn resolve_target(target: &Path, name: &OsStr, contents: bool, is_directory: bool) -> Result<PathBuf, TransferError> {
    let wants_directory = target.as_os_str().as_encoded_bytes().ends_with(b"/");
    match fs::metadata(target) {
        Ok(there) if there.is_dir() && contents && is_directory => canonical(target),
        Ok(there) if there.is_dir() => Ok(canonical(target)?.join(name)),
        Ok(_) if is_directory => Err(TransferError::NotADirectory {
            path: target.to_owned(),
        }),
        Ok(_) if wants_directory => Err(TransferError::NoDirectory {
            path: target.to_owned(),
        }),
        Ok(_) => beside(target),
        Err(_) if wants_directory && !is_directory => Err(TransferError::NoDirectory {
            path: target.to_owned(),
        }),
        Err(_) => beside(target),
    }
}

/// `target` in its directory, which must be there.
fn beside(target: &Path) -> Result<PathBuf, TransferError> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let no_directory = || TransferError::NoDirectory {
        path: parent.to_owned(),
    };
    let name = target.file_name().ok_or_else(no_directory)?;
    match parent.is_dir() {
        true => Ok(canonical(parent)?.join(name)),
        false => Err(no_directory()),
    }
}

fn canonical(path: &Path) -> Result<PathBuf, TransferError> {
    path.canonicalize().map_err(TransferError::io("look at", path))
}

/// The path below the root, of plain names only.
fn inner(path: &Path) -> Result<PathBuf, TransferError> {
    let escape = || TransferError::Escape { path: path.to_owned() };
    let mut components = path.components();
    if components.next() != Some(Component::Normal(OsStr::new(ROOT))) {
        return Err(escape());
    }
    let inner = components.as_path();
    match inner.components().all(|c| matches!(c, Component::Normal(_))) {
        true => Ok(inner.to_owned()),
        false => Err(escape()),
    }
}

/// No directory between the root and the entry is a symbolic link: neither one that came with the stream, nor one that
/// was there.
fn stays_inside(root: &Path, inner: &Path, path: &Path) -> Result<(), TransferError> {
    let is_directory = |step: &Path| match fs::symlink_metadata(step) {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => Err(TransferError::Escape { path: path.to_owned() }),
        Err(error) => Err(TransferError::io("look at", step)(error)),
    };
    let mut step = root.to_owned();
    is_directory(&step)?;
    for component in inner.parent().into_iter().flat_map(Path::components) {
        step.push(component);
        is_directory(&step)?;
    }
    Ok(())
}

fn put(
    member: &mut Member<'_, impl Read>,
    root: &Path,
    to: &Path,
    keep: Keep,
    directories: &mut Vec<Directory>,
    warn: &mut impl FnMut(String),
) -> Result<(), TransferError> {
    let entry = &mut member.entry;
    let header = entry.header();
    let bits = if keep.special_bits { 0o7777 } else { 0o777 };
    let mode = header.mode().map_err(TransferError::Stream)? & bits;
    let seconds = header.mtime().map_err(TransferError::Stream)?;
    let modified = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let owner = (
        header.uid().ok().and_then(|id| u32::try_from(id).ok()),
        header.gid().ok().and_then(|id| u32::try_from(id).ok()),
    );
    match header.entry_type() {
        EntryType::Directory => {
            make_directory(to)?;
            if keep.owner {
                chown(to, owner.0, owner.1).map_err(TransferError::io("change the owner of", to))?;
            }
            directories.push(Directory {
                path: to.to_owned(),
                mode,
                modified,
            });
        }
        EntryType::Symlink => {
            clear(to)?;
            symlink(&member.target, to).map_err(TransferError::io("make the link", to))?;
            if keep.owner {
                lchown(to, owner.0, owner.1).map_err(TransferError::io("change the owner of", to))?;
            }
        }
        EntryType::Link => {
            let first = inner(&member.target)?;
            stays_inside(root, &first, &member.target)?;
            let first = root.join(first);
            match fs::symlink_metadata(&first) {
                Ok(there) if there.is_file() => {}
                Ok(_) => {
                    return Err(TransferError::Escape {
                        path: member.target.clone(),
                    });
                }
                Err(error) => return Err(TransferError::io("look at", first)(error)),
            }
            if first != to {
                clear(to)?;
                fs::hard_link(&first, to).map_err(TransferError::io("make the hard link", to))?;
            }
        }
        EntryType::Fifo => make_node(to, FileType::Fifo, 0, mode, keep, owner)?,
        kind @ (EntryType::Char | EntryType::Block) if keep.devices => {
            let number = |part: io::Result<Option<u32>>| Ok(part.map_err(TransferError::Stream)?.unwrap_or_default());
            let device = makedev(number(header.device_major())?, number(header.device_minor())?);
            let node = match kind {
                EntryType::Char => FileType::CharacterDevice,
                _ => FileType::BlockDevice,
            };
            make_node(to, node, device, mode, keep, owner)?;
        }
        EntryType::Char | EntryType::Block if to == root => {
            return Err(TransferError::NotCopied {
                path: to.to_owned(),
                kind: "a device",
            });
        }
        EntryType::Regular | EntryType::Continuous => {
            clear(to)?;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(to)
                .map_err(TransferError::io("create", to))?;
            copy(entry, &file, to)?;
            if keep.owner {
                chown(to, owner.0, owner.1).map_err(TransferError::io("change the owner of", to))?;
            }
            // Through the open file: what has the name by now does not matter. After the owner, which clears bits.
            file.set_permissions(Permissions::from_mode(mode))
                .and_then(|()| file.set_modified(modified))
                .map_err(TransferError::io("change the mode of", to))?;
        }
        other => warn(format!(
            "{} is left out: entries of kind {other:?} are not copied",
            to.display()
        )),
    }
    Ok(())
}

fn make_node(
    to: &Path,
    kind: FileType,
    device: u64,
    mode: u32,
    keep: Keep,
    owner: (Option<u32>, Option<u32>),
) -> Result<(), TransferError> {
    clear(to)?;
    mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), device)
        .map_err(io::Error::from)
        .map_err(TransferError::io("create", to))?;
    if keep.owner {
        lchown(to, owner.0, owner.1).map_err(TransferError::io("change the owner of", to))?;
    }
    chmodat(CWD, to, Mode::from_raw_mode(mode), AtFlags::empty())
        .map_err(io::Error::from)
        .map_err(TransferError::io("change the mode of", to))
}

/// Copies and tells the stream's errors from the disk's.
fn copy(entry: &mut impl Read, mut file: &fs::File, to: &Path) -> Result<(), TransferError> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match entry.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(TransferError::Stream(error)),
        };
        io::Write::write_all(&mut file, &buffer[..count]).map_err(TransferError::io("write", to))?;
    }
}

fn make_directory(to: &Path) -> Result<(), TransferError> {
    match DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(to) {
            Ok(there) if there.is_dir() => Ok(()),
            _ => Err(TransferError::NotADirectory { path: to.to_owned() }),
        },
        other => other.map_err(TransferError::io("create", to)),
    }
}

/// Removes a file or link that is in the way; a directory stays, and is an error of what comes next.
fn clear(to: &Path) -> Result<(), TransferError> {
    match fs::symlink_metadata(to) {
        Ok(there) if !there.is_dir() => fs::remove_file(to).map_err(TransferError::io("replace", to)),
        _ => Ok(()),
    }
}

fn finish(path: &Path, mode: u32, modified: SystemTime) -> Result<(), TransferError> {
    let directory = fs::File::open(path).map_err(TransferError::io("open", path))?;
    directory
        .set_modified(modified)
        .and_then(|()| directory.set_permissions(Permissions::from_mode(mode)))
        .map_err(TransferError::io("change the mode of", path))
}
