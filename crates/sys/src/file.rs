//! Durable files: a file or directory is either there as a whole or not at all, also after a power loss.
//!
//! [`replace`] is tmp + fsync + rename + fsync of the directory. [`NewFile`] is an unnamed file that gets its name
//! only when it is complete (`O_TMPFILE` + `linkat`). [`sync_dir`] makes a rename or unlink durable. [`open_regular`] is for
//! files that somebody else named or may have changed: it never waits for the other end of a pipe.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A file operation that failed, with its path.
#[derive(Debug, Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried (`read`, `write`, ...).
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what belongs there.
    #[error("{} is not valid JSON of its kind", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl FileError {
    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// An error of `action` on `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> FileError {
        FileError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, FileError> {
    result.map_err(|source| FileError::io(action, path, source))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    }
}

/// Makes the names in `dir` durable.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    at("sync", dir, File::open(dir).and_then(|d| d.sync_all()))
}

/// Replaces the content of `path` with `bytes`, mode 0600 at creation: readers see the old or the new content, never a mixture.
///
/// # Errors
/// When the directory is missing, full or not writable; the old content stays.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let new = NewFile::create(parent(path), 0o600)?;
    at("write", path, new.file().write_all(bytes))?;
    new.publish_over(path)
}

/// [`replace`] with the indented JSON of `value`.
///
/// # Errors
/// As [`replace`].
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| FileError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    bytes.push(b'\n');
    replace(path, &bytes)
}

/// [`replace_json`] for what need not outlive a power cut: nothing is synced, so no disk is waited for. After one the file may be
/// the old one, the new one, or broken.
///
/// # Errors
/// As [`replace`].
pub fn replace_json_unsynced<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(value).map_err(|source| FileError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    let new = NewFile::create(parent(path), 0o600)?;
    at("write", path, new.file().write_all(&bytes))?;
    new.rename_over(path)
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read, or is not the JSON of a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = at("read", path, fs::read(path))?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// Opens a regular file for reading. Anything else is refused at once: a FIFO would wait for a writer, a device may never end
/// or do something when it is opened. A link to a regular file is one.
///
/// # Errors
/// When it cannot be opened, or is something else ([`io::ErrorKind::InvalidInput`], or `IsADirectory`).
pub fn open_regular(path: &Path) -> io::Result<File> {
    open_regular_with(path, OFlags::empty())
}

/// [`open_regular`] that follows no link at the end of the path.
///
/// # Errors
/// As [`open_regular`]; a link is something else.
pub fn open_regular_itself(path: &Path) -> io::Result<File> {
    open_regular_with(path, OFlags::NOFOLLOW)
}

fn open_regular_with(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    let other = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file"));
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // What `open` says of a socket, and of a device that nothing drives.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => return Err(other("a socket or device")),
        Err(rustix::io::Errno::LOOP) if more.contains(OFlags::NOFOLLOW) => return Err(other("a link")),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    match meta.is_file() {
        true => Ok(file),
        false if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(other("a FIFO or device")),
    }
}

/// All of a regular file of at most `limit` bytes; a longer one is an error, not a truncation.
///
/// # Errors
/// As [`open_regular`], when it cannot be read, or is longer ([`io::ErrorKind::FileTooLarge`]).
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "file is too long")),
        false => Ok(bytes),
    }
}

/// Reads a text file of at most `limit` bytes; a longer one is an error, not a truncation.
///
/// # Errors
/// When it cannot be read, is longer, or is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(limit + 1).read_to_string(&mut text));
    let len = at("read", path, read)?;
    if len as u64 > limit {
        return Err(FileError::io(
            "read",
            path,
            io::Error::new(io::ErrorKind::FileTooLarge, "file is too long"),
        ));
    }
    Ok(text)
}

/// Makes `dir` and its parents, mode 0700 for those it makes.
///
/// # Errors
/// When one cannot be made.
pub fn make_dirs(dir: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    at(
        "create directory",
        dir,
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir),
    )
}

/// Whether something has the name `path`, a link that leads nowhere included. A path that cannot be looked at is an error,
/// never an absence: whoever deletes or frees what belonged to an absent file must not be misled by a failing disk.
///
/// # Errors
/// When it cannot be told.
pub fn is_there(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(FileError::io("look at", path, e)),
    }
}

/// The names in a directory. One that cannot be read is an error: a listing that silently lacks an entry is wrong.
///
/// # Errors
/// When the directory is not there, or not all of it can be read.
pub fn names_in(dir: &Path) -> Result<Vec<OsString>, FileError> {
    let entries = at("read", dir, fs::read_dir(dir))?;
    entries
        .map(|entry| at("read", dir, entry).map(|entry| entry.file_name()))
        .collect()
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => at("remove", path, other),
    }
}

/// Removes a directory and all below it; one that is not there is fine. It is renamed out of sight first, so a reader
/// sees it whole or not at all, also after a power loss.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_dir_all(dir: &Path) -> Result<(), FileError> {
    let Some(hidden) = hide(dir)? else { return Ok(()) };
    // Before its content goes: after a power loss it is there whole, or it is gone.
    sync_dir(parent(dir))?;
    at("remove", dir, fs::remove_dir_all(&hidden))
}

/// [`remove_dir_all`] for what does not outlive the boot anyway: nothing is synced.
///
/// # Errors
/// As [`remove_dir_all`].
pub fn discard_dir_all(dir: &Path) -> Result<(), FileError> {
    match hide(dir)? {
        Some(hidden) => at("remove", dir, fs::remove_dir_all(&hidden)),
        None => Ok(()),
    }
}

/// Renames a directory to a hidden name that nobody else uses, not even a process of an earlier boot; `None` when it is
/// not there.
fn hide(dir: &Path) -> Result<Option<PathBuf>, FileError> {
    let name = dir.file_name().unwrap_or(OsStr::new("dir")).to_string_lossy();
    let hidden = parent(dir).join(format!(".gone-{name}-{:016x}", random_u64()));
    match fs::rename(dir, &hidden) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => at("remove", dir, other).map(|()| Some(hidden)),
    }
}

/// A file without a name, given one when complete.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    dir: PathBuf,
    /// The temporary name where the file system has no `O_TMPFILE`.
    named: Option<PathBuf>,
}

impl NewFile {
    /// A new unnamed file that can be published in `dir` (or elsewhere on its file system), with permission bits `mode`.
    ///
    /// # Errors
    /// When `dir` is missing or not writable.
    pub fn create(dir: &Path, mode: u32) -> Result<NewFile, FileError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(NewFile {
                file: File::from(fd),
                dir: dir.to_owned(),
                named: None,
            }),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
                let path = dir.join(format!(".new-{}-{:016x}", std::process::id(), random_u64()));
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let fd = at(
                    "create",
                    &path,
                    rustix::fs::open(&path, flags, Mode::from_raw_mode(mode)).map_err(Into::into),
                )?;
                Ok(NewFile {
                    file: File::from(fd),
                    dir: dir.to_owned(),
                    named: Some(path),
                })
            }
            Err(e) => Err(FileError::io("create a file in", dir, e.into())),
        }
    }

    /// The file, for writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file the name `path` unless something has it already; `false` then, and the new file is gone.
    /// The content is synced first when `durable`.
    ///
    /// # Errors
    /// When syncing or linking fails.
    pub fn publish_new(mut self, path: &Path, durable: bool) -> Result<bool, FileError> {
        if durable {
            at("sync", path, self.file.sync_all())?;
        }
        let linked = self.link(path);
        self.drop_name();
        match linked {
            Ok(()) if durable => sync_dir(parent(path)).map(|()| true),
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(FileError::io("create", path, e)),
        }
    }

    /// Syncs the content and gives the file the name `path`, replacing what had it.
    ///
    /// # Errors
    /// When syncing, linking or renaming fails; what was there stays.
    pub fn publish_over(self, path: &Path) -> Result<(), FileError> {
        at("sync", path, self.file.sync_all())?;
        self.rename_over(path)?;
        sync_dir(parent(path))
    }

    fn rename_over(mut self, path: &Path) -> Result<(), FileError> {
        let tmp = match self.named.take() {
            Some(tmp) => tmp,
            None => {
                let tmp = self
                    .dir
                    .join(format!(".new-{}-{:016x}", std::process::id(), random_u64()));
                at("create", &tmp, self.link(&tmp))?;
                tmp
            }
        };
        if let Err(e) = fs::rename(&tmp, path) {
            let _ = fs::remove_file(&tmp);
            return Err(FileError::io("replace", path, e));
        }
        Ok(())
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        if let Some(tmp) = &self.named {
            return fs::hard_link(tmp, path);
        }
        // By the descriptor alone: the detour through /proc costs half as much again. Before Linux 6.10 that needs
        // CAP_DAC_READ_SEARCH, and without it the kernel finds no such file.
        match rustix::fs::linkat(&self.file, c"", CWD, path, AtFlags::EMPTY_PATH) {
            Err(rustix::io::Errno::NOENT) => {}
            linked => return linked.map_err(Into::into),
        }
        use std::os::fd::AsRawFd;
        let proc_name = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        rustix::fs::linkat(CWD, &proc_name, CWD, path, AtFlags::SYMLINK_FOLLOW).map_err(Into::into)
    }

    fn drop_name(&mut self) {
        if let Some(tmp) = self.named.take() {
            let _ = fs::remove_file(tmp);
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.drop_name();
    }
}

/// Eight random bytes of the kernel, for names.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // The kernel's pool is ready long before any of our programs runs; a short read cannot happen for 8 bytes.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// Fills `bytes` with random ones of the kernel's.
///
/// # Errors
/// When the kernel gives none.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => rest = &mut rest[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_leaves_no_other_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace_json(&path, &vec![1, 2]).unwrap();
        replace_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), vec![3]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_that_is_taken_keeps_its_first_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block");
        for (text, is_new) in [("first", true), ("second", false)] {
            let new = NewFile::create(dir.path(), 0o644).unwrap();
            new.file().write_all(text.as_bytes()).unwrap();
            assert_eq!(new.publish_new(&path, true).unwrap(), is_new);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_absent() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent/x", dir.path().join("leads-nowhere")).unwrap();
        assert!(is_there(&dir.path().join("leads-nowhere")).unwrap());
        assert!(!is_there(&dir.path().join("absent")).unwrap());
        assert!(is_there(&dir.path().join("x".repeat(300))).is_err());
        assert_eq!(names_in(dir.path()).unwrap(), ["leads-nowhere"]);
        assert!(names_in(&dir.path().join("absent")).unwrap_err().is_not_found());
    }

    #[test]
    fn an_unpublished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(NewFile::create(dir.path(), 0o644).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened_and_nobody_waits_for_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        rustix::fs::mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_regular(&at(name), 4).unwrap(), b"text");
        }
        assert_eq!(
            read_regular(&at("file"), 3).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        assert!(open_regular_itself(&at("file")).is_ok());
        for path in [at("fifo"), at("socket"), "/dev/null".into()] {
            for error in [
                open_regular(&path).unwrap_err(),
                open_regular_itself(&path).unwrap_err(),
            ] {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", path.display());
            }
        }
        let error = open_regular_itself(&at("link")).unwrap_err();
        assert_eq!(error.to_string(), "it is a link, not a regular file");
        assert_eq!(
            open_regular(dir.path()).unwrap_err().kind(),
            io::ErrorKind::IsADirectory
        );
        assert_eq!(open_regular(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn errors_name_the_path() {
        let error = read_json::<u32>(Path::new("/nonexistent/x.json")).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "cannot read /nonexistent/x.json");
    }

    #[test]
    fn a_directory_is_removed_as_a_whole_and_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        make_dirs(&sub).unwrap();
        fs::write(sub.join("f"), "x").unwrap();
        remove_dir_all(&dir.path().join("a")).unwrap();
        remove_dir_all(&dir.path().join("a")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
