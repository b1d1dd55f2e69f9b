//! The writable layer: a sparse ext4 disk image that the guest stacks on the read-only root.
//!
//! # Invariants
//! A file with the asked-for name is a complete file system. It is never mounted on the host.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;
use zmachine_sys::file::{random_u64, sync_dir};

/// The label of the file system.
pub const LABEL: &str = "zmachine-upper";
/// Below this `mkfs.ext4` makes no journal, and nothing useful fits.
pub const SIZE_MIN: u64 = 16 << 20;
/// Where distributions keep the tool; a user's search path often lacks these.
const TOOL_PATHS: [&str; 4] = [
    "/usr/sbin/mkfs.ext4",
    "/sbin/mkfs.ext4",
    "/usr/bin/mkfs.ext4",
    "/usr/local/sbin/mkfs.ext4",
];
/// Byte offset of the ext4 superblock, and of fields in it.
const SUPERBLOCK: u64 = 1024;

/// Why there is no writable layer.
#[derive(Debug, Error)]
pub enum UpperError {
    /// `mkfs.ext4` is not installed.
    #[error("mkfs.ext4 is needed to make a writable layer and was not found")]
    NoTool,
    /// Too small for a file system.
    #[error("a writable layer of {size_bytes} bytes is too small; {SIZE_MIN} are the least")]
    Size {
        /// The size asked for.
        size_bytes: u64,
    },
    /// `mkfs.ext4` failed.
    #[error("mkfs.ext4 failed for {}: {message}", path.display())]
    Tool {
        /// The file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The operating system refused.
    #[error("cannot {action} writable layer {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and holds something else.
    #[error("{} is no writable layer: {what}", path.display())]
    NotALayer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl UpperError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            UpperError::NoTool => Some("install e2fsprogs"),
            UpperError::Io { source, .. } if source.kind() == ErrorKind::StorageFull => Some("free some space"),
            _ => None,
        }
    }
}

/// Makes an empty writable layer of `size_bytes` at `path`; the file is sparse and takes little space.
///
/// # Errors
/// When the tool is missing or fails, or the file cannot be written; nothing is left then.
pub fn create_upper(path: &Path, size_bytes: u64) -> Result<(), UpperError> {
    if size_bytes < SIZE_MIN {
        return Err(UpperError::Size { size_bytes });
    }
    let tool = TOOL_PATHS.iter().map(Path::new).find(|tool| tool.exists());
    let tool = tool.ok_or(UpperError::NoTool)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{:016x}", random_u64()));
    let unfinished = PathBuf::from(name);
    let made = make(tool, &unfinished, size_bytes)
        .and_then(|()| fs::rename(&unfinished, path).map_err(|e| failed("name", path, e)));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made?;
    let parent = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    sync_dir(parent).map_err(|e| failed("name", path, io::Error::other(e)))
}

fn make(tool: &Path, path: &Path, size_bytes: u64) -> Result<(), UpperError> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = opened.map_err(|e| failed("create", path, e))?;
    file.set_len(size_bytes).map_err(|e| failed("size", path, e))?;
    format(tool, path)?;
    file.sync_all().map_err(|e| failed("sync", path, e))
}

/// What e2fsprogs 1.47 is told: a new sparse file reads as zeros, so neither the tool nor, in the background of the first
/// hours, the guest has to write any.
const PREZEROED: &str = "assume_storage_prezeroed=1,nodiscard";
/// The same for an older one, which knows only to leave the zeroing to the guest.
const LAZY: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";

fn format(tool: &Path, path: &Path) -> Result<(), UpperError> {
    match format_with(tool, path, PREZEROED) {
        Err(UpperError::Tool { message, .. }) if message.contains("assume_storage_prezeroed") => {
            format_with(tool, path, LAZY)
        }
        done => done,
    }
}

/// Formats; `-F` because a file is no block device, `-m 0` because nobody needs a reserve there.
fn format_with(tool: &Path, path: &Path, extended: &str) -> Result<(), UpperError> {
    let output = Command::new(tool)
        .args(["-q", "-F", "-m", "0", "-L", LABEL, "-E", extended])
        .arg("--")
        .arg(path)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed("format", path, e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(UpperError::Tool {
        path: path.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
    })
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> UpperError {
    UpperError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Whether `path` holds an ext4 file system that fits into the file. Reads the superblock only; what a guest did to the
/// rest is its own affair.
///
/// # Errors
/// When it cannot be read or holds something else.
pub fn check(path: &Path) -> Result<(), UpperError> {
    let not = |what| UpperError::NotALayer {
        path: path.to_owned(),
        what,
    };
    let file = File::open(path).map_err(|e| failed("open", path, e))?;
    let metadata = file.metadata().map_err(|e| failed("look at", path, e))?;
    if !metadata.is_file() {
        return Err(not("it is not a file"));
    }
    let mut superblock = [0; 64];
    match file.read_exact_at(&mut superblock, SUPERBLOCK) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(not("it is too short")),
        other => other.map_err(|e| failed("read", path, e))?,
    }
    if superblock[56..58] != [0x53, 0xEF] {
        return Err(not("it holds no ext file system"));
    }
    let word = |at: usize| {
        u32::from_le_bytes([
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ])
    };
    let block_size = 1024u64.checked_shl(word(24)).filter(|size| *size <= 65536);
    let needed = block_size.and_then(|size| size.checked_mul(u64::from(word(4))));
    match needed {
        Some(needed) if needed <= metadata.len() => Ok(()),
        _ => Err(not("its file system is larger than the file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_older_mkfs_is_asked_in_its_own_words() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("mkfs.ext4");
        let real = TOOL_PATHS.iter().find(|tool| Path::new(tool).exists()).unwrap();
        // Says no as e2fsprogs 1.46 does.
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *prezeroed*) echo 'Bad option(s) specified: assume_storage_prezeroed' >&2; exit 1;; esac\nexec {real} \"$@\"\n"
        );
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("root.img");
        make(&tool, &path, 64 << 20).unwrap();
        check(&path).unwrap();
    }

    #[test]
    fn a_new_layer_is_sparse_passes_the_check_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.img");
        create_upper(&path, 8 << 30).unwrap();
        check(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 8 << 30);
        assert!(
            metadata.blocks() * 512 < 8 << 20,
            "{} bytes on disk",
            metadata.blocks() * 512
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_layer_that_can_not_be_made_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            create_upper(&dir.path().join("x"), 4096),
            Err(UpperError::Size { size_bytes: 4096 })
        ));
        let missing = dir.path().join("no/such/dir/x");
        let error = create_upper(&missing, 1 << 30).unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn something_else_is_no_layer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(check(&path), Err(UpperError::NotALayer { .. })));
        create_upper(&path, SIZE_MIN).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(SIZE_MIN / 2)
            .unwrap();
        assert!(matches!(check(&path), Err(UpperError::NotALayer { .. })));
    }
}
