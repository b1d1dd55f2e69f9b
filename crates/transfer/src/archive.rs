//! Between the stream and archives as users have them: the names alone differ.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

use crate::members::Members;
use crate::{ROOT, TransferError};

/// Writes the stream as an archive in which its root is called `name`, or `.` for what is in a directory.
///
/// # Errors
/// When the stream breaks or its names lead out of its root, or the archive cannot be written.
pub fn to_archive(stream: impl Read, archive: impl Write, name: &Path) -> Result<(), TransferError> {
    let mut stream = Archive::new(stream);
    let mut members = Members::new(&mut stream)?;
    let mut builder = Builder::new(archive);
    let written = |error: io::Error| TransferError::Io {
        action: "write",
        path: PathBuf::from("the archive"),
        source: error,
    };
    let named = |path: &Path| {
        let inner = below_root(path)?;
        Ok::<_, TransferError>(match inner.as_os_str().is_empty() {
            // Not joined: a name that ends in a slash is a directory's.
            true => name.to_owned(),
            false => name.join(inner),
        })
    };
    while let Some(mut member) = members.next()? {
        let path = named(&member.path)?;
        let mut header = member.entry.header().clone();
        let done = match header.entry_type() {
            EntryType::Symlink => builder.append_link(&mut header, &path, &member.target),
            EntryType::Link => builder.append_link(&mut header, &path, named(&member.target)?),
            _ => builder.append_data(&mut header, &path, &mut member.entry),
        };
        done.map_err(written)?;
    }
    builder
        .into_inner()
        .and_then(|mut archive| archive.flush())
        .map_err(written)
}

fn below_root(path: &Path) -> Result<PathBuf, TransferError> {
    let escape = || TransferError::Escape { path: path.to_owned() };
    let inner = path.strip_prefix(ROOT).map_err(|_| escape())?;
    let is_plain = inner.components().all(|c| matches!(c, Component::Normal(_)));
    is_plain.then(|| inner.to_owned()).ok_or_else(escape)
}

/// Writes an archive of a user's as a stream: what is in it is what is in the stream's root. Its directories come with it,
/// also where the archive leaves them out. `warn` is told of what is left out.
///
/// # Errors
/// When it is no archive, leads out of the directory it is for, or nobody reads the stream.
pub fn from_archive(archive: impl Read, stream: impl Write, mut warn: impl FnMut(String)) -> Result<(), TransferError> {
    let mut archive = Archive::new(archive);
    let mut builder = Builder::new(stream);
    let mut directories = HashSet::new();
    let unread = |error: io::Error| TransferError::Io {
        action: "read",
        path: PathBuf::from("the archive"),
        source: error,
    };
    for entry in archive.entries().map_err(unread)? {
        let mut entry = entry.map_err(unread)?;
        let path = entry.path().map_err(unread)?.into_owned();
        let inner = relative(&path)?;
        let kind = entry.header().entry_type();
        if inner.as_os_str().is_empty() {
            // The directory itself: the one it goes to stays as it is.
            continue;
        }
        parents(&mut builder, &inner, &mut directories)?;
        let name = Path::new(ROOT).join(&inner);
        let mut header = plain(&entry);
        let link = entry.link_name().map_err(unread)?.map(|link| link.into_owned());
        let sent = match kind {
            EntryType::Directory => {
                directories.insert(inner);
                builder.append_data(&mut header, name, io::empty())
            }
            EntryType::Symlink => builder.append_link(&mut header, name, link.unwrap_or_default()),
            EntryType::Link => {
                let target = Path::new(ROOT).join(relative(&link.unwrap_or_default())?);
                builder.append_link(&mut header, name, target)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(entry.size());
                let mut content = Reported {
                    inner: &mut entry,
                    failed: None,
                };
                let sent = builder.append_data(&mut header, name, &mut content);
                match content.failed {
                    Some(error) => return Err(unread(error)),
                    None => sent,
                }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => builder.append_data(&mut header, name, io::empty()),
            other => {
                warn(format!("{} is left out: it is of kind {other:?}", path.display()));
                continue;
            }
        };
        sent.map_err(TransferError::Stream)?;
    }
    let mut stream = builder.into_inner().map_err(TransferError::Stream)?;
    stream.flush().map_err(TransferError::Stream)
}

/// Names begin below the directory they are for, whether the archive has them from `/`, from `./` or plain.
fn relative(path: &Path) -> Result<PathBuf, TransferError> {
    let mut inner = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inner.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(TransferError::Escape { path: path.to_owned() });
            }
        }
    }
    Ok(inner)
}

/// The header of an entry without what only its own form of archive has.
fn plain(entry: &tar::Entry<'_, impl Read>) -> Header {
    let from = entry.header();
    let mut header = Header::new_gnu();
    header.set_entry_type(from.entry_type());
    header.set_size(0);
    header.set_mode(from.mode().unwrap_or(0o644));
    header.set_uid(from.uid().unwrap_or(0));
    header.set_gid(from.gid().unwrap_or(0));
    header.set_mtime(from.mtime().unwrap_or(0));
    if let (Ok(Some(major)), Ok(Some(minor))) = (from.device_major(), from.device_minor()) {
        // A GNU header has room for both.
        let _ = header
            .set_device_major(major)
            .and_then(|()| header.set_device_minor(minor));
    }
    header
}

fn parents(
    builder: &mut Builder<impl Write>,
    inner: &Path,
    directories: &mut HashSet<PathBuf>,
) -> Result<(), TransferError> {
    let mut missing: Vec<&Path> = inner.ancestors().skip(1).filter(|p| *p != OsStr::new("")).collect();
    missing.reverse();
    for directory in missing {
        if directories.insert(directory.to_owned()) {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            header.set_mtime(0);
            builder
                .append_data(&mut header, Path::new(ROOT).join(directory), io::empty())
                .map_err(TransferError::Stream)?;
        }
    }
    Ok(())
}

/// Tells errors of reading from those of writing, which the builder mixes.
struct Reported<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Reported<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}
