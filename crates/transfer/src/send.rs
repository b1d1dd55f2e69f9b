//! From files to a stream.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use crate::{ROOT, TransferError, xattr};

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
    let mut entries = Entries::new(stream, &mut warn, false);
    let mut waiting = vec![(source.to_owned(), PathBuf::from(ROOT), metadata)];
    while let Some((path, name, metadata)) = waiting.pop() {
        entries.add(&path, &name, &metadata)?;
        if !metadata.is_dir() {
            continue;
        }
        for child in children(&path)?.into_iter().rev() {
            let Some(child_name) = child.file_name() else { continue };
            let inner = name.join(child_name);
            if let Some(metadata) = look_at(&child)? {
                waiting.push((child, inner, metadata));
            }
        }
    }
    entries.finish()
}

/// What is in a directory, in the order of the names.
pub(crate) fn children(directory: &Path) -> Result<Vec<PathBuf>, TransferError> {
    let mut children: Vec<PathBuf> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(TransferError::io("read", directory))?;
    children.sort_unstable();
    Ok(children)
}

/// What something is; `None` when it is not there, or not any more.
pub(crate) fn look_at(path: &Path) -> Result<Option<Metadata>, TransferError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(TransferError::io("look at", path)(error)),
    }
}

/// A tar archive that is written.
pub(crate) struct Entries<'a, W: Write> {
    builder: Builder<W>,
    /// The first name of every file that has several.
    linked: HashMap<(u64, u64), PathBuf>,
    warn: &'a mut dyn FnMut(String),
    keeps_xattrs: bool,
}

impl<'a, W: Write> Entries<'a, W> {
    /// With extended attributes or without.
    pub(crate) fn new(stream: W, warn: &'a mut dyn FnMut(String), keeps_xattrs: bool) -> Self {
        Entries {
            builder: Builder::new(stream),
            linked: HashMap::new(),
            warn,
            keeps_xattrs,
        }
    }

    /// Ends the archive.
    pub(crate) fn finish(self) -> Result<(), TransferError> {
        let mut stream = self.builder.into_inner().map_err(TransferError::Stream)?;
        stream.flush().map_err(TransferError::Stream)
    }

    /// An empty file that says something by its name.
    pub(crate) fn mark(&mut self, name: &Path) -> Result<(), TransferError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_mtime(0);
        header.set_size(0);
        self.append(&mut header, name, io::empty())
    }

    /// The file, link, directory or node at `path`, as `name`.
    pub(crate) fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), TransferError> {
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(u64::from(metadata.uid()));
        header.set_gid(u64::from(metadata.gid()));
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        let kind = metadata.file_type();
        if kind.is_file() && metadata.nlink() > 1 {
            let file = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&file) {
                header.set_entry_type(EntryType::Link);
                return self
                    .builder
                    .append_link(&mut header, name, first)
                    .map_err(TransferError::Stream);
            }
            self.linked.insert(file, name.to_owned());
        }
        if kind.is_file() {
            return self.regular(path, name, header);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(TransferError::io("read the link", path))?;
            self.attributes(path)?;
            header.set_entry_type(EntryType::Symlink);
            return self
                .builder
                .append_link(&mut header, name, target)
                .map_err(TransferError::Stream);
        }
        if kind.is_dir() {
            self.attributes(path)?;
            header.set_entry_type(EntryType::Directory);
            return self.append(&mut header, name, io::empty());
        }
        self.node(path, name, metadata, header)
    }

    fn append(&mut self, header: &mut Header, name: &Path, content: impl Read) -> Result<(), TransferError> {
        self.builder
            .append_data(header, name, content)
            .map_err(TransferError::Stream)
    }

    /// Extended attributes belong to the next entry.
    fn attributes(&mut self, path: &Path) -> Result<(), TransferError> {
        if !self.keeps_xattrs {
            return Ok(());
        }
        let attributes = xattr::of_path(path).map_err(TransferError::io("read the attributes of", path))?;
        let mut named: Vec<(String, &[u8])> = Vec::new();
        for (name, value) in &attributes.kept {
            match std::str::from_utf8(name) {
                Ok(name) => named.push((format!("SCHILY.xattr.{name}"), value)),
                Err(_) => (self.warn)(format!(
                    "an attribute of {} has no name in UTF-8, and is left out",
                    path.display()
                )),
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        self.builder
            .append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value)))
            .map_err(TransferError::Stream)
    }

    fn node(&mut self, path: &Path, name: &Path, metadata: &Metadata, mut header: Header) -> Result<(), TransferError> {
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
                (self.warn)(format!("{} is a socket, and is left out", path.display()));
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
        self.attributes(path)?;
        self.append(&mut header, name, io::empty())
    }

    /// A regular file. What it says of its size is not always so: files of `/proc` say 0 and files of `/sys` a whole page, so
    /// short ones are read before their header is written.
    fn regular(&mut self, path: &Path, name: &Path, mut header: Header) -> Result<(), TransferError> {
        // Something else may have its name by now, whose opening waits.
        let file = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(TransferError::io("open", path))?;
        let metadata = file.metadata().map_err(TransferError::io("look at", path))?;
        if !metadata.is_file() {
            (self.warn)(format!(
                "{} was replaced while it was copied, and is left out",
                path.display()
            ));
            return Ok(());
        }
        self.attributes(path)?;
        header.set_entry_type(EntryType::Regular);
        if metadata.len() <= SHORT {
            return self.short(path, name, header, file);
        }
        let size = metadata.len();
        header.set_size(size);
        let mut content = Exactly {
            file,
            left: size,
            failed: false,
        };
        let sent = self.builder.append_data(&mut header, name, &mut content);
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

    fn short(&mut self, path: &Path, name: &Path, mut header: Header, file: File) -> Result<(), TransferError> {
        let mut content = Vec::new();
        file.take(UNSIZED + 1)
            .read_to_end(&mut content)
            .map_err(TransferError::io("read", path))?;
        if content.len() as u64 > UNSIZED {
            content.truncate(UNSIZED as usize);
            let cut = UNSIZED >> 20;
            (self.warn)(format!(
                "{} says it is short and is not: cut after {cut} MiB",
                path.display()
            ));
        }
        header.set_size(content.len() as u64);
        self.append(&mut header, name, content.as_slice())
    }
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
