//! From files to a stream.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use crate::{ROOT, TransferError};

/// Files up to this size are read before their header is written, in bytes.
const SHORT: u64 = 64 << 10;

/// The most that is taken of a file which says it is short, in bytes.
const UNSIZED: u64 = 16 << 20;

/// Writes the file, link or directory at `source` as a stream. `warn` is told of what is left out.
///
/// # Errors
/// When the source is not there or cannot be read, or nobody reads the stream.
pub fn send(source: &Path, stream: impl Write, mut warn: impl FnMut(String)) -> Result<(), TransferError> {
    let metadata = fs::symlink_metadata(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => TransferError::NotFound {
            path: source.to_owned(),
        },
        _ => TransferError::io("look at", source)(error),
    })?;
    // A path that ends in `/` or `/.` names what a link leads to.
    let wants_target =
        source.as_os_str().as_encoded_bytes().ends_with(b"/") || source.as_os_str().as_encoded_bytes().ends_with(b"/.");
    let metadata = match metadata.is_symlink() && wants_target {
        true => fs::metadata(source).map_err(TransferError::io("look at", source))?,
        false => metadata,
    };
    let mut builder = Builder::new(stream);
    let mut linked = HashMap::new();
    let mut waiting = vec![(source.to_owned(), PathBuf::from(ROOT), metadata)];
    while let Some((path, name, metadata)) = waiting.pop() {
        entry(&mut builder, &path, &name, &metadata, &mut linked, &mut warn)?;
        if !metadata.is_dir() {
            continue;
        }
        let mut children: Vec<PathBuf> = fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(TransferError::io("read", &path))?;
        children.sort_unstable_by(|a, b| b.cmp(a));
        for child in children {
            let Some(child_name) = child.file_name() else { continue };
            let inner = name.join(child_name);
            match fs::symlink_metadata(&child) {
                Ok(metadata) => waiting.push((child, inner, metadata)),
                // Gone since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(TransferError::io("look at", child)(error)),
            }
        }
    }
    let mut stream = builder.into_inner().map_err(TransferError::Stream)?;
    stream.flush().map_err(TransferError::Stream)
}

fn entry(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    linked: &mut HashMap<(u64, u64), PathBuf>,
    warn: &mut impl FnMut(String),
) -> Result<(), TransferError> {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(TransferError::io("read the link", path))?;
        header.set_entry_type(EntryType::Symlink);
        return builder
            .append_link(&mut header, name, target)
            .map_err(TransferError::Stream);
    }
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return builder
            .append_data(&mut header, name, io::empty())
            .map_err(TransferError::Stream);
    }
    if !kind.is_file() {
        return node(builder, path, name, metadata, header, warn);
    }
    if metadata.nlink() > 1 {
        let file = (metadata.dev(), metadata.ino());
        if let Some(first) = linked.get(&file) {
            header.set_entry_type(EntryType::Link);
            return builder
                .append_link(&mut header, name, first)
                .map_err(TransferError::Stream);
        }
        linked.insert(file, name.to_owned());
    }
    regular(builder, path, name, header, warn)
}

fn node(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    mut header: Header,
    warn: &mut impl FnMut(String),
) -> Result<(), TransferError> {
    let kind = metadata.file_type();
    let entry_type = match kind {
        kind if kind.is_fifo() => EntryType::Fifo,
        kind if kind.is_char_device() => EntryType::Char,
        kind if kind.is_block_device() => EntryType::Block,
        _ if name == Path::new(ROOT) => {
            return Err(TransferError::NotCopied {
                path: path.to_owned(),
                kind: "a socket",
            });
        }
        _ => {
            warn(format!("{} is a socket, and is left out", path.display()));
            return Ok(());
        }
    };
    header.set_entry_type(entry_type);
    if entry_type != EntryType::Fifo {
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        header
            .set_device_major(major)
            .and_then(|()| header.set_device_minor(minor))
            .map_err(TransferError::Stream)?;
    }
    builder
        .append_data(&mut header, name, io::empty())
        .map_err(TransferError::Stream)
}

/// A regular file. What it says of its size is not always so: files of `/proc` say 0 and files of `/sys` a whole page, so
/// short ones are read before their header is written.
fn regular(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    mut header: Header,
    warn: &mut impl FnMut(String),
) -> Result<(), TransferError> {
    // Something else may have its name by now, whose opening waits.
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(TransferError::io("open", path))?;
    let metadata = file.metadata().map_err(TransferError::io("look at", path))?;
    if !metadata.is_file() {
        warn(format!(
            "{} was replaced while it was copied, and is left out",
            path.display()
        ));
        return Ok(());
    }
    header.set_entry_type(EntryType::Regular);
    if metadata.len() <= SHORT {
        return short(builder, path, name, header, file, warn);
    }
    let size = metadata.len();
    header.set_size(size);
    let mut content = Exactly {
        file,
        left: size,
        failed: false,
    };
    let sent = builder.append_data(&mut header, name, &mut content);
    sent.map_err(|error| match content.failed {
        true => TransferError::io("read", path)(error),
        false => TransferError::Stream(error),
    })?;
    if content.left > 0 {
        return Err(TransferError::io("read", path)(io::Error::other(
            "it shrank while it was copied",
        )));
    }
    Ok(())
}

fn short(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    mut header: Header,
    file: File,
    warn: &mut impl FnMut(String),
) -> Result<(), TransferError> {
    let mut content = Vec::new();
    file.take(UNSIZED + 1)
        .read_to_end(&mut content)
        .map_err(TransferError::io("read", path))?;
    if content.len() as u64 > UNSIZED {
        content.truncate(UNSIZED as usize);
        let cut = UNSIZED >> 20;
        warn(format!(
            "{} says it is short and is not: cut after {cut} MiB",
            path.display()
        ));
    }
    header.set_size(content.len() as u64);
    builder
        .append_data(&mut header, name, content.as_slice())
        .map_err(TransferError::Stream)
}

/// The bytes a file had when its header was written: one that grows meanwhile is cut off there.
struct Exactly {
    file: File,
    left: u64,
    failed: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self
            .file
            .read(&mut buffer[..most])
            .inspect_err(|_| self.failed = true)?;
        self.left -= count as u64;
        Ok(count)
    }
}
