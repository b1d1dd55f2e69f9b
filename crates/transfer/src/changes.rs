//! What a container changed in its image: the upper directory of an overlay, as a list or as a layer of an OCI image.
//!
//! The upper directory says what changed. Contents come from the overlay itself, so what a directory became that was renamed is
//! found as programs see it. A directory that hides the one below it, or was moved there, is given as a whole.
//!
//! # Invariants
//! Parents come before what is in them. A directory of the image is only listed when something in it is, or its owner, mode or
//! attributes are others: a file that came and went is no change.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::send::{Entries, children, look_at};
use crate::{TransferError, xattr};

/// What a machine writes at each start, and is no change of its user's.
const OWN: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// A container's root, in three views.
#[allow(missing_debug_implementations)]
pub struct Layers<'a> {
    /// What was written, in the form of overlayfs.
    pub upper: &'a Path,
    /// The image.
    pub lower: &'a Path,
    /// Both, without anything that is mounted below.
    pub merged: &'a Path,
    /// Whether something is mounted at this path, relative to the root.
    pub is_mount_point: &'a dyn Fn(&Path) -> bool,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The image has nothing there.
    Added,
    /// The image has something else there, or the same with other contents.
    Changed,
    /// Only the image has it.
    Deleted,
}

impl Change {
    /// As it is on the wire, and as docker has it.
    pub fn letter(self) -> char {
        match self {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        }
    }

    /// The change with this letter.
    pub fn of(letter: u8) -> Option<Change> {
        let all = [Change::Added, Change::Changed, Change::Deleted];
        all.into_iter()
            .find(|change| change.letter() as u32 == u32::from(letter))
    }
}

/// Writes what changed as a layer of an OCI image.
///
/// # Errors
/// When something cannot be read, or nobody reads the stream.
pub fn send_changes(
    layers: &Layers<'_>,
    stream: impl Write,
    mut warn: impl FnMut(String),
) -> Result<(), TransferError> {
    let mut entries = Entries::new(stream, &mut warn, true);
    Walk::new(layers, &mut entries).all()?;
    entries.finish()
}

/// Writes the whole root.
///
/// # Errors
/// As [`send_changes`].
pub fn send_root(root: &Path, stream: impl Write, mut warn: impl FnMut(String)) -> Result<(), TransferError> {
    let mut entries = Entries::new(stream, &mut warn, true);
    let mut waiting: Vec<PathBuf> = children(root)?.into_iter().rev().collect();
    while let Some(path) = waiting.pop() {
        let Some(metadata) = look_at(&path)? else { continue };
        let name = path.strip_prefix(root).unwrap_or(&path);
        entries.add(&path, name, &metadata)?;
        if metadata.is_dir() {
            waiting.extend(children(&path)?.into_iter().rev());
        }
    }
    entries.finish()
}

/// Writes what changed as a list: letter, path, NUL.
///
/// # Errors
/// As [`send_changes`].
pub fn send_list(layers: &Layers<'_>, stream: impl Write) -> Result<(), TransferError> {
    let mut list = List(stream);
    Walk::new(layers, &mut list).all()?;
    list.0.flush().map_err(TransferError::Stream)
}

/// A list of changes as it came; `None` when it is none.
pub fn read_list(bytes: &[u8]) -> Option<Vec<(Change, PathBuf)>> {
    let Some(lines) = bytes.strip_suffix(&[0]) else {
        return bytes.is_empty().then(Vec::new);
    };
    let line = |line: &[u8]| {
        let (letter, path) = line.split_first()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        Some((Change::of(*letter)?, path))
    };
    lines.split(|byte| *byte == 0).map(line).collect()
}

/// Who is told of changes, paths relative to the root.
trait Sink {
    fn is(&mut self, change: Change, name: &Path, at: &Path, metadata: &Metadata) -> Result<(), TransferError>;
    fn is_gone(&mut self, name: &Path) -> Result<(), TransferError>;
    /// Nothing of what the image has in this directory is left; whether what comes next is all there is to be told.
    fn is_replaced(&mut self, name: &Path) -> Result<bool, TransferError>;
}

impl<W: Write> Sink for Entries<'_, W> {
    fn is(&mut self, _: Change, name: &Path, at: &Path, metadata: &Metadata) -> Result<(), TransferError> {
        self.add(at, name, metadata)
    }

    fn is_gone(&mut self, name: &Path) -> Result<(), TransferError> {
        let mut whiteout = std::ffi::OsString::from(".wh.");
        whiteout.push(name.file_name().unwrap_or_default());
        self.mark(&name.with_file_name(whiteout))
    }

    fn is_replaced(&mut self, name: &Path) -> Result<bool, TransferError> {
        self.mark(&name.join(".wh..wh..opq"))?;
        Ok(true)
    }
}

struct List<W>(W);

impl<W: Write> List<W> {
    fn line(&mut self, change: Change, name: &Path) -> Result<(), TransferError> {
        let mut line = vec![change.letter() as u8, b'/'];
        line.extend_from_slice(name.as_os_str().as_bytes());
        line.push(0);
        self.0.write_all(&line).map_err(TransferError::Stream)
    }
}

impl<W: Write> Sink for List<W> {
    fn is(&mut self, change: Change, name: &Path, _: &Path, _: &Metadata) -> Result<(), TransferError> {
        self.line(change, name)
    }

    fn is_gone(&mut self, name: &Path) -> Result<(), TransferError> {
        self.line(Change::Deleted, name)
    }

    fn is_replaced(&mut self, _: &Path) -> Result<bool, TransferError> {
        Ok(false)
    }
}

struct Walk<'a, S> {
    layers: &'a Layers<'a>,
    sink: &'a mut S,
    /// Directories of the image on the way here that are not told yet.
    silent: Vec<PathBuf>,
}

impl<'a, S: Sink> Walk<'a, S> {
    fn new(layers: &'a Layers<'a>, sink: &'a mut S) -> Self {
        Walk {
            layers,
            sink,
            silent: Vec::new(),
        }
    }

    fn all(&mut self) -> Result<(), TransferError> {
        self.directory(Path::new(""), true)
    }

    /// Tells of the directories that lead here.
    fn tell_parents(&mut self) -> Result<(), TransferError> {
        for name in std::mem::take(&mut self.silent) {
            let at = self.layers.merged.join(&name);
            if let Some(metadata) = look_at(&at)? {
                self.sink.is(Change::Changed, &name, &at, &metadata)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, change: Change, name: &Path, metadata: &Metadata) -> Result<(), TransferError> {
        self.tell_parents()?;
        let at = self.layers.merged.join(name);
        self.sink.is(change, name, &at, metadata)
    }

    /// What is in a directory of the upper layer, with a directory of the image below it or nothing.
    fn directory(&mut self, name: &Path, has_lower: bool) -> Result<(), TransferError> {
        for child in children(&self.layers.upper.join(name))? {
            let Some(file_name) = child.file_name() else { continue };
            let name = name.join(file_name);
            let Some(upper) = look_at(&child)? else { continue };
            let lower = match has_lower {
                true => look_at(&self.layers.lower.join(&name))?,
                false => None,
            };
            self.entry(&name, &child, &upper, lower.as_ref())?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &Path,
        child: &Path,
        upper: &Metadata,
        lower: Option<&Metadata>,
    ) -> Result<(), TransferError> {
        if upper.file_type().is_char_device() && upper.rdev() == 0 {
            if lower.is_some() {
                self.tell_parents()?;
                self.sink.is_gone(name)?;
            }
            return Ok(());
        }
        if OWN.iter().any(|own| name == Path::new(own)) {
            return Ok(());
        }
        let change = match lower {
            Some(_) => Change::Changed,
            None => Change::Added,
        };
        if lower.is_none() && self.is_placeholder(name, upper)? {
            return Ok(());
        }
        if !upper.is_dir() {
            return match look_at(&self.layers.merged.join(name))? {
                Some(metadata) => self.tell(change, name, &metadata),
                None => Ok(()),
            };
        }
        let below = lower.filter(|lower| lower.is_dir());
        if is_whole(child)? {
            self.tell(change, name, upper)?;
            let covers = match below {
                Some(_) => self.sink.is_replaced(name)?,
                None => true,
            };
            return self.whole(name, below.is_some(), covers);
        }
        let Some(below) = below else {
            self.tell(change, name, upper)?;
            return self.directory(name, false);
        };
        let same = |a: &Metadata, b: &Metadata| (a.mode(), a.uid(), a.gid()) == (b.mode(), b.uid(), b.gid());
        let merged = self.layers.merged.join(name);
        let kept = |path: &Path| {
            let found = xattr::of_path(path).map_err(TransferError::io("read the attributes of", path));
            found.map(|found| found.kept)
        };
        if !same(upper, below) || kept(&merged)? != kept(&self.layers.lower.join(name))? {
            self.tell(Change::Changed, name, upper)?;
            return self.directory(name, true);
        }
        self.silent.push(name.to_owned());
        self.directory(name, true)?;
        // Still there when nothing in it was told.
        if self.silent.last().is_some_and(|last| last == name) {
            self.silent.pop();
        }
        Ok(())
    }

    /// Whether something is only there for what is mounted on it.
    fn is_placeholder(&self, name: &Path, metadata: &Metadata) -> Result<bool, TransferError> {
        if !(self.layers.is_mount_point)(name) {
            return Ok(false);
        }
        match metadata.is_dir() {
            true => Ok(children(&self.layers.merged.join(name))?.is_empty()),
            false => Ok(metadata.len() == 0),
        }
    }

    /// All that is in a directory, whatever layer it is from. What is gone is told unless that is `covered` already.
    fn whole(&mut self, name: &Path, has_lower: bool, covered: bool) -> Result<(), TransferError> {
        let present = children(&self.layers.merged.join(name))?;
        if has_lower && !covered {
            for gone in children(&self.layers.lower.join(name))? {
                let Some(file_name) = gone.file_name() else { continue };
                if !present.iter().any(|path| path.file_name() == Some(file_name)) {
                    self.sink.is_gone(&name.join(file_name))?;
                }
            }
        }
        for child in present {
            let Some(file_name) = child.file_name() else { continue };
            let name = name.join(file_name);
            let Some(metadata) = look_at(&child)? else { continue };
            let lower = match has_lower {
                true => look_at(&self.layers.lower.join(&name))?,
                false => None,
            };
            if lower.is_none() && self.is_placeholder(&name, &metadata)? {
                continue;
            }
            let change = lower.as_ref().map_or(Change::Added, |_| Change::Changed);
            self.sink.is(change, &name, &child, &metadata)?;
            if metadata.is_dir() {
                self.whole(&name, lower.is_some_and(|lower| lower.is_dir()), covered)?;
            }
        }
        Ok(())
    }
}

/// Whether a directory of the upper layer hides the one below it, or shows one that was elsewhere.
fn is_whole(directory: &Path) -> Result<bool, TransferError> {
    let says = |name| xattr::word(directory, name).map_err(TransferError::io("read the attributes of", directory));
    Ok(says("trusted.overlay.opaque")?.is_some_and(|value| value == b"y")
        || says("trusted.overlay.redirect")?.is_some())
}
